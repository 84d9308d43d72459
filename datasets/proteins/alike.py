"""Frames of all atoms whose beads are nearly where they shall be: what runs at held beads begin in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from .build import read_protein
from .frames import reference_pieces

_ALIKE = 200  # frames that are looked at more closely
_PAIRS = 200  # of distances, by which configurations are compared


@dataclass(frozen=True)
class AllAtomFrames:
    """Frames of one temperature, run after run.

    Attributes
    ----------
    positions
        (T, N, 3) Å, float32.
    run, place
        (T,) which run a frame belongs to, and where in it.
    """

    positions: np.ndarray
    run: np.ndarray
    place: np.ndarray

    def runs(self) -> list[np.ndarray]:
        """The rows of each run."""
        return [np.flatnonzero(self.run == run) for run in np.unique(self.run)]

    def select(self, rows: np.ndarray) -> AllAtomFrames:
        """Some of them."""
        return AllAtomFrames(self.positions[rows], self.run[rows], self.place[rows])


def all_atom_frames(reference: str | Path, temperature: float) -> AllAtomFrames:
    """The frames of a reference at a temperature."""
    runs: dict[str, list[np.ndarray]] = {}
    for piece in reference_pieces(reference, (temperature,)):
        runs.setdefault(piece.origin, []).append(piece.positions)
    whole = [np.concatenate(run) for run in runs.values()]
    none = np.zeros((0, len(read_protein(Path(reference) / "protein.pdb").positions), 3), dtype=np.float32)
    return AllAtomFrames(
        np.concatenate([none, *whole]),
        np.repeat(np.arange(len(whole)), [len(run) for run in whole]),
        np.concatenate([np.zeros(0, dtype=int), *(np.arange(len(run)) for run in whole)]),
    )


def most_alike(targets: np.ndarray, frames: AllAtomFrames, beads: np.ndarray, count: int, apart: float) -> np.ndarray:
    """(M, K, N, 3) Å: for each configuration of beads (M, B, 3) the K frames whose beads are most like it, superposed.

    Any two of one run are at least `apart` frames from each other; where there are not enough of them, the best ones
    appear again.
    """
    found = []
    for near, target in zip(nearest(targets, frames.positions[:, beads], _ALIKE), targets, strict=True):
        placed = [_superposed(frames.positions[k].astype(float), target, beads) for k in near]
        # Distances do not tell a configuration from its mirror image.
        order = np.argsort([_off(x, target, beads) for x in placed])
        chosen: list[int] = []
        for k in order:
            one = near[k]
            if all(
                frames.run[near[j]] != frames.run[one] or abs(frames.place[near[j]] - frames.place[one]) >= apart
                for j in chosen
            ):
                chosen.append(int(k))
            if len(chosen) == count:
                break
        found.append(np.stack([placed[chosen[k % len(chosen)]] for k in range(count)]))
    return np.stack(found)


def nearest(wanted: np.ndarray, frames: np.ndarray, n: int) -> np.ndarray:
    """(M, n) for each of M configurations (M, B, 3) the frames of (T, B, 3) with the most similar distances."""
    n = min(n, len(frames))
    return squared_differences(wanted, frames).argpartition(n - 1, axis=1)[:, :n]


def _off(atoms: np.ndarray, target: np.ndarray, beads: np.ndarray) -> float:
    return float(((atoms[beads] - target) ** 2).sum())


def squared_differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(M, T) Å²: of the distances between beads in (M, B, 3) and (T, B, 3), the mean squared difference.

    Of many pairs of beads, some.
    """
    i, j = np.triu_indices(one.shape[1], 1)
    chosen = np.random.default_rng(0).permutation(len(i))[:_PAIRS]
    a, b = (np.linalg.norm(x[:, i[chosen]] - x[:, j[chosen]], axis=-1).astype(float) for x in (one, other))
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.maximum(squared, 0.0) / max(1, len(chosen))


def _superposed(atoms: np.ndarray, target: np.ndarray, beads: np.ndarray) -> np.ndarray:
    """All atoms (N, 3), turned and moved so that their beads lie on the target as well as they can."""
    centre = atoms[beads].mean(0)
    rotation, _ = Rotation.align_vectors(target - target.mean(0), atoms[beads] - centre)
    return rotation.apply(atoms - centre) + target.mean(0)
