"""`JumpGraph`: what a jump network sees of a batch of molecules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from ..neighbors import neighbor_list

BOND = 1.25  # two atoms are bonded if nearer than this many times the sum of their covalent radii
FAR = 8  # bonds between two atoms are counted up to here; this also stands for "not connected"


@dataclass(frozen=True)
class JumpGraph:
    """B molecules, N atoms and E directed edges in all.

    Attributes
    ----------
    numbers
        (N,) int64.
    masses
        (N,) u.
    system
        (N,) int64, ascending.
    positions
        (N, 3) Å.
    velocities
        (N, 3) Å/fs.
    edges
        (2, E) int64, centre and neighbour.
    hops
        (E,) int64, bonds between the two, at most `FAR`; 0 is not used.
    interval
        (B,) fs, how far to jump.
    """

    numbers: Tensor
    masses: Tensor
    system: Tensor
    positions: Tensor
    velocities: Tensor
    edges: Tensor
    hops: Tensor
    interval: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def bond_hops(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(N, N) int64: bonds on the shortest way between two atoms, at most `FAR`, which also says "not connected".

    Bonds are those of this geometry. Unlike an atom's index the number does not change when atoms are renumbered.
    """
    radii = covalent_radii[numbers]
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    bonded = distances < BOND * (radii[:, None] + radii[None])
    hops = np.full((len(numbers), len(numbers)), FAR, dtype=np.int64)
    reached = np.eye(len(numbers), dtype=bool)
    for n in range(FAR):
        hops[reached & (hops == FAR)] = n
        reached = reached @ bonded
    np.fill_diagonal(hops, 0)
    return hops


def jump_graph(
    numbers: np.ndarray,
    masses: np.ndarray,
    positions: np.ndarray,
    velocities: np.ndarray,
    interval: float,
    *,
    cutoff: float,
    hops: np.ndarray,
    dtype: torch.dtype = torch.float32,
) -> JumpGraph:
    """One molecule (N, 3) as a graph; `hops` (N, N) from `bond_hops`, of any one of its geometries."""
    i, j, _ = neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, dtype=bool), cutoff)
    centred = positions - (masses[:, None] * positions).sum(axis=0) / masses.sum()

    def real(array: np.ndarray | Sequence[float]) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=dtype)

    return JumpGraph(
        numbers=torch.as_tensor(np.asarray(numbers, dtype=np.int64)),
        masses=real(masses),
        system=torch.zeros(len(numbers), dtype=torch.int64),
        positions=real(centred),
        velocities=real(velocities),
        edges=torch.as_tensor(np.stack([i, j]).astype(np.int64)),
        hops=torch.as_tensor(hops[i, j]),
        interval=real([interval]),
    )
