"""`Structure` and `Labels`: what travels from the readers to the dataset file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms


@dataclass(frozen=True)
class Structure:
    """One geometry with its electronic state and where it came from.

    Attributes
    ----------
    numbers
        (N,) int, atomic numbers.
    positions
        (N, 3) float64, Å.
    cell
        (3, 3) float64, Å, rows are lattice vectors; zeros for a molecule.
    pbc
        (3,) bool.
    charge
        Total charge, e.
    multiplicity
        Spin multiplicity 2S+1.
    group
        The molecule, protein or material it belongs to; splits never tear a group apart unless asked.
    origin
        How the geometry was made, e.g. ``"md-500K/03"``; frames with one origin are correlated in time.
    smiles
        Canonical SMILES with explicit charges where known, else "".
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))
    charge: int = 0
    multiplicity: int = 1
    group: str = ""
    origin: str = ""
    smiles: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    def to_atoms(self) -> Atoms:
        """An `ase.Atoms` with ``info["charge"]`` and ``info["multiplicity"]`` (read by teachers and calculators)."""
        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc)
        atoms.info["charge"] = int(self.charge)
        atoms.info["multiplicity"] = int(self.multiplicity)
        return atoms

    def key(self) -> str:
        """Hash of what a label depends on: numbers, positions, cell, pbc, charge, multiplicity (32 hex digits)."""
        digest = hashlib.blake2b(digest_size=16)
        for array, dtype in (
            (self.numbers, np.int64),
            (self.positions, np.float64),
            (self.cell, np.float64),
            (self.pbc, np.uint8),
            ([self.charge, self.multiplicity], np.int64),
        ):
            digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Labels:
    """What a teacher says of one structure, in our units. Fields the teacher does not give are None.

    Attributes
    ----------
    energy
        eV, total.
    forces
        (N, 3), eV/Å.
    stress
        (6,) Voigt in ASE's order and sign, eV/Å³.
    charges
        (N,) partial charges, e.
    dipole
        (3,), e·Å.
    energies
        (N,) atomic energies, eV.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None = None
    charges: np.ndarray | None = None
    dipole: np.ndarray | None = None
    energies: np.ndarray | None = None
