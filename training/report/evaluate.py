"""Predictions beside labels for the frames of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ...ase_calcs.calculator import PotentialCalculator
from ...ase_calcs.errors import DataError, DistillaseError
from ...ase_calcs.progress import ProgressTask
from ...datasets.store import Dataset

CHUNK = 200  # frames between two moves of the progress bar


@dataclass(frozen=True)
class Evaluation:
    """Reference and prediction of M frames with A atoms in all.

    Attributes
    ----------
    frames
        (M,) index in the dataset.
    offsets
        (M + 1,) start of each frame in the flat arrays.
    group
        (M,) str.
    numbers
        (A,).
    energy, energy_predicted
        (M,) eV; NaN where the label is missing.
    forces, forces_predicted
        (A, 3) eV/Å.
    stress, stress_predicted
        (M, 6) eV/Å³ Voigt; NaN where there is no label; None if the set has none.
    dipole, dipole_predicted
        (M, 3) e·Å; None if the label or the model has none.
    refused
        (index, reason) of the frames that the student does not take.
    n_available
        Labelled frames of the split before any were drawn.
    """

    frames: np.ndarray
    offsets: np.ndarray
    group: np.ndarray
    numbers: np.ndarray
    energy: np.ndarray
    energy_predicted: np.ndarray
    forces: np.ndarray
    forces_predicted: np.ndarray
    stress: np.ndarray | None = None
    stress_predicted: np.ndarray | None = None
    dipole: np.ndarray | None = None
    dipole_predicted: np.ndarray | None = None
    refused: tuple[tuple[int, str], ...] = ()
    n_available: int = 0

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def sizes(self) -> np.ndarray:
        """(M,) atoms per frame."""
        return np.diff(self.offsets)

    @property
    def frame_of_atom(self) -> np.ndarray:
        """(A,) position in `frames` of the frame each atom belongs to."""
        return np.repeat(np.arange(len(self)), self.sizes)

    def atoms_of(self, k: int) -> slice:
        """Where frame k lies in the flat arrays."""
        return slice(int(self.offsets[k]), int(self.offsets[k + 1]))


def draw_frames(indices: Sequence[int] | np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` of the indices, drawn at random, in ascending order."""
    indices = np.unique(np.asarray(indices, dtype=int))
    return indices if len(indices) <= most else np.sort(rng.choice(indices, size=most, replace=False))


def evaluate(
    calculator: PotentialCalculator,
    dataset: Dataset,
    indices: Sequence[int] | np.ndarray,
    *,
    most: int,
    rng: np.random.Generator,
    task: ProgressTask,
) -> Evaluation:
    """Evaluate the student on the frames of a split that have forces.

    Frames that the student refuses (an element, charge or multiplicity it has not been trained on) are listed with the
    reason rather than stopping the report.

    Raises
    ------
    DataError
        An index outside the dataset, or no labelled frame that the student takes.
    """
    indices = np.asarray(indices, dtype=int)
    if len(indices) and (indices.min() < 0 or indices.max() >= len(dataset)):
        raise DataError(f"The split names frame {indices.max()}, and {dataset.path} has {len(dataset)} frames.")
    labelled = _labelled(dataset, indices)
    drawn = draw_frames(labelled, most, rng)
    accepted, refused = _accepted(calculator, dataset, drawn)
    if not len(accepted):
        why = f" The student refuses all of them: {refused[0][1]}" if refused else ""
        raise DataError(f"None of the {len(indices)} frames can be evaluated; forces are needed as labels.{why}")
    return _predict(calculator, dataset, accepted, tuple(refused), len(labelled), task)


def _labelled(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    if "forces" not in dataset.fields:
        return np.zeros(0, dtype=int)
    finite = np.isfinite(dataset.forces).all(axis=1)
    whole = np.array([finite[dataset.offsets[i] : dataset.offsets[i + 1]].all() for i in indices], dtype=bool)
    return indices[whole] if len(indices) else indices


def _accepted(
    calculator: PotentialCalculator, dataset: Dataset, frames: np.ndarray
) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Frames that the student takes; one trial per combination of elements, charge and multiplicity."""
    verdicts: dict[tuple, str] = {}
    good, refused = [], []
    for i in frames:
        numbers = dataset.numbers[dataset.offsets[i] : dataset.offsets[i + 1]]
        kind = (tuple(np.unique(numbers)), int(dataset.charge[i]), int(dataset.multiplicity[i]), int(numbers.sum()) % 2)
        if kind not in verdicts:
            try:
                calculator.calculate_many([dataset.structure(int(i)).to_atoms()], ("energy",))
                verdicts[kind] = ""
            except DistillaseError as error:
                verdicts[kind] = str(error).removeprefix("Structure 0 of the list: ")
        if verdicts[kind]:
            refused.append((int(i), verdicts[kind]))
        else:
            good.append(int(i))
    return np.array(good, dtype=int), refused


def _predict(
    calculator: PotentialCalculator,
    dataset: Dataset,
    frames: np.ndarray,
    refused: tuple[tuple[int, str], ...],
    n_available: int,
    task: ProgressTask,
) -> Evaluation:
    periodic = np.asarray(dataset.pbc)[frames].all(axis=1)
    with_stress = "stress" in dataset.fields and bool(periodic.all())
    with_dipole = "dipole" in dataset.fields and "dipole" in calculator.implemented_properties and not periodic.any()
    wanted = ["energy", "forces"] + ["stress"] * with_stress + ["dipole"] * with_dipole
    found: list[dict] = []
    for start in range(0, len(frames), CHUNK):
        chunk = frames[start : start + CHUNK]
        found += calculator.calculate_many([dataset.structure(int(i)).to_atoms() for i in chunk], tuple(wanted))
        task.advance(len(chunk) / max(len(frames), 1))
    starts, stops = dataset.offsets[frames], dataset.offsets[frames + 1]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
    energy = dataset.energy[frames] if "energy" in dataset.fields else np.full(len(frames), np.nan)
    extra: dict[str, np.ndarray] = {}
    for name, used in (("stress", with_stress), ("dipole", with_dipole)):
        if used:
            extra[name] = np.asarray(dataset.array(name)[frames])
            extra[f"{name}_predicted"] = np.array([result[name] for result in found])
    return Evaluation(
        frames=frames,
        offsets=np.concatenate([[0], np.cumsum(stops - starts)]),
        group=np.asarray(dataset.group)[frames],
        numbers=dataset.numbers[rows],
        energy=np.asarray(energy, dtype=float),
        energy_predicted=np.array([result["energy"] for result in found]),
        forces=np.asarray(dataset.forces[rows], dtype=float),
        forces_predicted=np.concatenate([result["forces"] for result in found]).astype(float),
        refused=refused,
        n_available=n_available,
        **extra,
    )


def symbol(number: int) -> str:
    """Chemical symbol of an atomic number."""
    return chemical_symbols[int(number)]
