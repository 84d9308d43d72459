"""Bonds, angles and dihedrals of a molecule as indices, found once; and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...ase_calcs.jumps.graph import bond_hops


@dataclass(frozen=True)
class Topology:
    """Indices of one molecule.

    Attributes
    ----------
    hops
        (N, N) bonds between two atoms.
    bonds, angles, dihedrals
        (2, M), (3, M), (4, M) int64; the middle of an angle is its apex.
    """

    hops: np.ndarray
    bonds: np.ndarray
    angles: np.ndarray
    dihedrals: np.ndarray


def find_topology(numbers: np.ndarray, positions: np.ndarray) -> Topology:
    """Bonds by distance in this geometry, and what follows from them."""
    hops = bond_hops(numbers, positions)
    neighbours = [np.flatnonzero(row == 1).tolist() for row in hops]
    bonds = [(i, j) for i in range(len(numbers)) for j in neighbours[i] if i < j]
    angles = [(i, j, k) for j in range(len(numbers)) for i in neighbours[j] for k in neighbours[j] if i < k]
    dihedrals = [
        (i, j, k, m) for j, k in bonds for i in neighbours[j] for m in neighbours[k] if i != k and m != j and i != m
    ]

    def columns(tuples: Sequence[tuple[int, ...]], width: int) -> np.ndarray:
        return np.array(tuples, dtype=np.int64).reshape(-1, width).T

    return Topology(hops, columns(bonds, 2), columns(angles, 3), columns(dihedrals, 4))


def lengths(x: Tensor, bonds: Tensor) -> Tensor:
    """(N, 3), (2, M) → (M, 1) Å."""
    return torch.linalg.norm(x[bonds[1]] - x[bonds[0]], dim=-1, keepdim=True)


def angle_vectors(x: Tensor, angles: Tensor) -> Tensor:
    """(N, 3), (3, M) → (M, 2): cosine and sine; their difference is the angle's for small ones."""
    a, b = x[angles[0]] - x[angles[1]], x[angles[2]] - x[angles[1]]
    return _unit(torch.stack([(a * b).sum(-1), torch.linalg.norm(torch.linalg.cross(a, b), dim=-1)], dim=-1))


def dihedral_vectors(x: Tensor, dihedrals: Tensor) -> Tensor:
    """(N, 3), (4, M) → (M, 2): cosine and sine of the dihedral, sign as in IUPAC's convention."""
    a, b, c = (x[dihedrals[k + 1]] - x[dihedrals[k]] for k in range(3))
    n1, n2 = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    sine = torch.linalg.norm(b, dim=-1) * (a * n2).sum(-1)
    return _unit(torch.stack([(n1 * n2).sum(-1), sine], dim=-1))


def _unit(v: Tensor) -> Tensor:
    return v / torch.sqrt((v * v).sum(dim=-1, keepdim=True) + 1e-12)
