"""What is refused, and why, without asking the teacher or after it has answered.

Guards are pure functions of a structure (or its label) and the configuration, so they are applied afresh in every run:
a limit can be changed without labelling again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ...ase_calcs.errors import TeacherError
from ...ase_calcs.teachers import check_electron_count
from ..structure import Labels, Structure
from .config import LabelConfig

# Structures whose distances are computed in one array operation: 2000 × 10² ethanol distances are 1.6 MB.
_ELEMENTS_PER_BLOCK = 200_000


def check_structures(structures: Sequence[Structure], config: LabelConfig) -> list[str]:
    """The reason why each structure is refused before the teacher sees it; "" where it is not.

    Checked are: at least one atom, finite positions, electrons against charge and multiplicity, minimum distance.
    """
    reasons = [""] * len(structures)
    electronic: dict[tuple[bytes, int, int], str] = {}
    start = 0
    for (numbers_bytes, periodic), run in groupby(structures, key=_composition):
        frames = list(run)
        distances = _too_close(frames, config.min_distance, periodic)
        for offset, (structure, too_close) in enumerate(zip(frames, distances, strict=True)):
            state = (numbers_bytes, structure.charge, structure.multiplicity)
            if state not in electronic:
                electronic[state] = _electron_reason(structure)
            reasons[start + offset] = electronic[state] or too_close
        start += len(frames)
    return reasons


def force_reason(labels: Labels, max_force: float) -> str:
    """The reason why a label with a force above the ceiling is refused."""
    squared = (labels.forces**2).sum(axis=1)
    atom = int(squared.argmax())
    return f"force of {np.sqrt(squared[atom]):.1f} eV/Å on atom {atom}, more than max_force = {max_force:g} eV/Å"


def _composition(structure: Structure) -> tuple[bytes, bool]:
    return np.asarray(structure.numbers, dtype=np.int64).tobytes(), any(np.asarray(structure.pbc).tolist())


def _electron_reason(structure: Structure) -> str:
    if len(structure) == 0:
        return "no atoms"
    try:
        check_electron_count(structure.numbers, structure.charge, structure.multiplicity)
    except TeacherError as error:
        return str(error)
    return ""


def _too_close(frames: list[Structure], factor: float, periodic: bool) -> Iterator[str]:
    n_atoms = len(frames[0])
    if n_atoms == 0:
        yield from [""] * len(frames)
    elif periodic:
        for structure in frames:
            yield _too_close_periodic(structure, factor)
    else:
        per_block = max(1, _ELEMENTS_PER_BLOCK // n_atoms**2)
        for first in range(0, len(frames), per_block):
            yield from _too_close_molecules(frames[first : first + per_block], factor)


def _too_close_molecules(frames: list[Structure], factor: float) -> Iterator[str]:
    """Frames of one composition together: per frame in Python it would cost as much as 5 % of a GFN2 label."""
    numbers = np.asarray(frames[0].numbers, dtype=int)
    positions = np.array([structure.positions for structure in frames], dtype=float)  # (F, N, 3)
    finite = np.isfinite(positions).all(axis=(1, 2))
    i, j = np.triu_indices(len(numbers), k=1)
    limit = factor * (covalent_radii[numbers[i]] + covalent_radii[numbers[j]])  # (P,)
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = ((positions[:, i] - positions[:, j]) ** 2).sum(axis=2) / np.maximum(limit, 1e-12) ** 2  # (F, P)
    good = finite & ~(ratio < 1.0).any(axis=1)
    for frame, is_good in enumerate(good.tolist()):
        if is_good:
            yield ""
        elif not finite[frame]:
            yield "positions are not finite"
        else:
            worst = int(ratio[frame].argmin())
            distance = float(np.sqrt(ratio[frame, worst]) * limit[worst])
            yield _reason(numbers, int(i[worst]), int(j[worst]), distance, float(limit[worst]))


def _too_close_periodic(structure: Structure, factor: float) -> str:
    if not np.isfinite(structure.positions).all() or not np.isfinite(structure.cell).all():
        return "positions or cell are not finite"
    if factor == 0:
        return ""
    periodic_vectors = np.asarray(structure.cell, dtype=float)[np.asarray(structure.pbc, dtype=bool)]
    if np.linalg.matrix_rank(periodic_vectors) < len(periodic_vectors):
        return "the cell has no volume along its periodic directions"
    from ase.neighborlist import neighbor_list  # brings scipy, which no worker needs

    radii = factor * covalent_radii[structure.numbers]
    atoms = structure.to_atoms()
    i, j, distance = neighbor_list("ijd", atoms, 2 * float(radii.max()))
    limit = radii[i] + radii[j]
    if not (distance < limit).any():
        return ""
    worst = int((distance / limit).argmin())
    return _reason(structure.numbers, int(i[worst]), int(j[worst]), float(distance[worst]), float(limit[worst]))


def _reason(numbers: np.ndarray, i: int, j: int, distance: float, limit: float) -> str:
    pair = f"{chemical_symbols[numbers[i]]}{i}–{chemical_symbols[numbers[j]]}{j}"
    return f"atoms too close: {pair} {distance:.3f} Å apart, at least {limit:.3f} Å is asked (min_distance)"
