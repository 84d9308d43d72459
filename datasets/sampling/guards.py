"""When a geometry is not worth a label: clashes, broken or new bonds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from ase.geometry import get_distances

from ...ase_calcs.teachers.topology import bonded_pairs, covalent_sums, pair_distances

_BROKEN = 1.6  # a bond longer than this times the sum of covalent radii is broken (a C–C bond: 2.4 Å)
_FORMED = 1.15  # a pair of atoms without a bond, nearer than this times the sum, has reacted


@dataclass(frozen=True)
class Guard:
    """Checks geometries of one molecule or crystal against its reference.

    Attributes
    ----------
    numbers
        (N,) atomic numbers.
    bonds
        (P, 2) pairs bonded in the reference; None for a periodic structure, whose bonds may change.
    min_distance
        Smallest distance allowed, in sums of covalent radii.
    cell, pbc
        (3, 3) Å and (3,) bool.
    """

    numbers: np.ndarray
    bonds: np.ndarray | None
    min_distance: float
    cell: np.ndarray
    pbc: np.ndarray

    @classmethod
    def of(
        cls, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, *, min_distance: float
    ) -> Guard:
        """The guard for a reference geometry, positions (N, 3) in Å."""
        bonds = None if np.any(pbc) else bonded_pairs(numbers, positions)
        return cls(np.asarray(numbers), bonds, min_distance, np.asarray(cell), np.asarray(pbc))

    def fault(self, positions: np.ndarray) -> str:
        """What is wrong with a geometry, or ``""``."""
        if not np.isfinite(positions).all():
            return "positions are not finite"
        if len(self.numbers) < 2:
            return ""
        if np.any(self.pbc):
            distances = get_distances(positions, cell=self.cell, pbc=self.pbc)[1]
        else:
            distances = pair_distances(positions)
        ratio = distances / covalent_sums(self.numbers)
        np.fill_diagonal(ratio, np.inf)
        i, j = np.unravel_index(np.argmin(ratio), ratio.shape)
        if ratio[i, j] < self.min_distance:
            return f"{self._pair(i, j)} clash at {distances[i, j]:.2f} Å"
        if self.bonds is None:
            return ""
        bond_ratio = ratio[self.bonds[:, 0], self.bonds[:, 1]]
        if len(bond_ratio) and bond_ratio.max() > _BROKEN:
            i, j = self.bonds[np.argmax(bond_ratio)]
            return f"bond {self._pair(i, j)} broke ({distances[i, j]:.2f} Å)"
        ratio[self.bonds[:, 0], self.bonds[:, 1]] = ratio[self.bonds[:, 1], self.bonds[:, 0]] = np.inf
        i, j = np.unravel_index(np.argmin(ratio), ratio.shape)
        if ratio[i, j] < _FORMED:
            return f"{self._pair(i, j)} formed a bond ({distances[i, j]:.2f} Å)"
        return ""

    def _pair(self, i: np.intp, j: np.intp) -> str:
        return f"{chemical_symbols[self.numbers[i]]}{i}–{chemical_symbols[self.numbers[j]]}{j}"
