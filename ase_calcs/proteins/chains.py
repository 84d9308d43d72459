"""Chains of beads: who is whose neighbour, and beads as `ase.Atoms`.

Beads carry ``residuetypes`` (place in `CODES`), ``chains`` and residue masses. Element symbols mean nothing here: all
beads are carbons, so that viewers show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from ase import Atoms

from ..errors import InputError, StructureError
from .residues import CODES, MASSES, NAMES

_BROKEN = 4.6  # Å; neighbours along an intact chain are 3.8 Å apart (2.9 with a cis bond)
_LOCAL = 5  # sequence separation up to which two beads repel by excluded volume


@dataclass(frozen=True)
class Chains:
    """The beads of one or several chains.

    Attributes
    ----------
    types
        (N,) int, places in `CODES`.
    chain
        (N,) int, which chain a bead belongs to; beads of a chain stand one behind the other.
    """

    types: np.ndarray
    chain: np.ndarray

    def __post_init__(self) -> None:
        if self.types.ndim != 1 or self.types.shape != self.chain.shape or not len(self.types):
            raise StructureError(f"Types {self.types.shape} and chains {self.chain.shape} must be one number per bead.")
        if self.types.min() < 0 or self.types.max() >= len(CODES):
            raise StructureError(f"`residuetypes` must be 0 to {len(CODES) - 1}, the place of the residue in {CODES}.")
        starts = np.flatnonzero(np.diff(self.chain, prepend=self.chain[0] - 1))
        if len(set(self.chain[starts].tolist())) < len(starts):
            raise StructureError("The beads of a chain must stand one behind the other.")

    @classmethod
    def from_sequence(cls, sequence: str) -> Chains:
        """One-letter codes; colons divide chains, or what is left of a chain on both sides of a gap."""
        parts = ["".join(part.split()).upper() for part in sequence.split(":")]
        unknown = sorted({letter for part in parts for letter in part if letter not in CODES})
        if unknown or not all(parts):
            raise InputError(
                f"`{sequence}` is no sequence: {', '.join(unknown) or 'a chain is empty'}. Allowed are the one-letter "
                f"codes {CODES}, and colons between chains."
            )
        types = np.array([CODES.index(letter) for part in parts for letter in part])
        return cls(types, np.repeat(np.arange(len(parts)), [len(part) for part in parts]))

    @classmethod
    def from_atoms(cls, atoms: Atoms) -> Chains:
        """Of beads that `coarse_grained_atoms` or `read_beads_pdb` made."""
        if "residuetypes" not in atoms.arrays:
            raise StructureError(
                "The atoms have no array `residuetypes`: these are no beads. Make them with "
                "`coarse_grained_atoms(sequence, positions)` or `read_beads_pdb(file)`."
            )
        chain = atoms.arrays.get("chains", np.zeros(len(atoms), dtype=int))
        return cls(np.asarray(atoms.arrays["residuetypes"], dtype=int), np.asarray(chain, dtype=int))

    def __len__(self) -> int:
        return len(self.types)

    @property
    def sequence(self) -> str:
        """One letter for each bead, chains divided by colons."""
        letters = np.array(list(CODES))[self.types]
        breaks = np.flatnonzero(np.diff(self.chain)) + 1
        return ":".join("".join(part) for part in np.split(letters, breaks))

    @property
    def masses(self) -> np.ndarray:
        """(N,) u."""
        return np.array([MASSES[CODES[k]] for k in self.types])

    def _runs(self, length: int) -> np.ndarray:
        """(M, length) beads that follow each other in one chain."""
        first = np.arange(max(0, len(self) - length + 1))
        first = first[self.chain[first] == self.chain[first + length - 1]] if len(first) else first
        return first[:, None] + np.arange(length)

    @cached_property
    def bonds(self) -> np.ndarray:
        """(B, 2)."""
        return self._runs(2)

    @cached_property
    def angles(self) -> np.ndarray:
        """(A, 3)."""
        return self._runs(3)

    @cached_property
    def dihedrals(self) -> np.ndarray:
        """(D, 4)."""
        return self._runs(4)

    @cached_property
    def excluded(self) -> np.ndarray:
        """(P, 2) beads of one chain two to five apart in sequence."""
        i, j = np.triu_indices(len(self), 2)
        near = (self.chain[i] == self.chain[j]) & (j - i <= _LOCAL)
        return np.stack([i[near], j[near]], axis=1)

    @cached_property
    def distant(self) -> np.ndarray:
        """(P, 2) all other pairs: six or more apart in sequence, or in different chains."""
        i, j = np.triu_indices(len(self), 1)
        far = (self.chain[i] != self.chain[j]) | (j - i > _LOCAL)
        return np.stack([i[far], j[far]], axis=1)


def coarse_grained_atoms(sequence: str, positions: np.ndarray) -> Atoms:
    """Beads as `ase.Atoms`.

    Parameters
    ----------
    sequence
        One letter for each bead; colons where a chain ends or is broken.
    positions
        (N, 3) Å, of the Cα atoms.
    """
    chains = Chains.from_sequence(sequence)
    positions = np.asarray(positions, dtype=float)
    if positions.shape != (len(chains), 3):
        raise InputError(f"The sequence has {len(chains)} residues and the positions have shape {positions.shape}.")
    atoms = Atoms(np.full(len(chains), 6), positions, masses=chains.masses)
    atoms.set_array("residuetypes", chains.types)
    atoms.set_array("chains", chains.chain)
    return atoms


def extended_chain(sequence: str, *, angle: float = 120.0, dihedral: float = -170.0) -> np.ndarray:
    """Positions (N, 3), Å, of one chain in a zigzag with bonds of 3.84 Å; several chains lie 10 Å side by side."""
    placed, offset = [], 0.0
    sequence = "".join(sequence.split())
    theta, phi, bond = np.radians(180.0 - angle), np.radians(dihedral), 3.84
    step = np.array([bond * np.cos(theta), bond * np.sin(theta) * np.cos(phi), bond * np.sin(theta) * np.sin(phi)])
    for part in sequence.split(":"):
        xyz = [
            np.zeros(3),
            np.array([bond, 0.0, 0.0]),
            np.array([bond * (1 + np.cos(theta)), bond * np.sin(theta), 0.0]),
        ]
        for _ in range(max(0, len(part) - 3)):
            ahead = (xyz[-1] - xyz[-2]) / bond
            normal = np.cross(xyz[-2] - xyz[-3], ahead)
            normal /= np.linalg.norm(normal)
            xyz.append(xyz[-1] + step @ np.stack([ahead, np.cross(normal, ahead), normal]))
        placed.append(np.array(xyz[: len(part)]) + np.array([0.0, 0.0, offset]))
        offset += 10.0
    return np.concatenate(placed)


def read_beads_pdb(path: str | Path, model: int = 0) -> Atoms:
    """The Cα atoms of a PDB file as beads; a chain that is broken becomes two.

    Parameters
    ----------
    path
        PDB file; alternate locations other than the first are left out.
    model
        Which of its models, from 0.

    Raises
    ------
    StructureError
        No Cα atoms, a residue that is no amino acid with a Cα, or no such model.
    """
    models = _alpha_carbon_models(Path(path))
    if not -len(models) <= model < len(models):
        raise StructureError(f"{path} has {len(models)} models; there is no number {model}.")
    names, labels, positions = models[model]
    if not names:
        raise StructureError(f"{path} has no Cα atoms.")
    unknown = sorted({name for name in names if name not in NAMES})
    if unknown:
        raise StructureError(
            f"{path} has residues that no bead stands for: {', '.join(unknown)}. `distillase cg reference` replaces "
            "modified residues by what they were made from."
        )
    xyz = np.array(positions)
    gaps = np.linalg.norm(np.diff(xyz, axis=0), axis=1) > _BROKEN
    letters = "".join(
        (":" if k and (labels[k] != labels[k - 1] or gaps[k - 1]) else "") + NAMES[name] for k, name in enumerate(names)
    )
    return coarse_grained_atoms(letters, xyz)


def _alpha_carbon_models(path: Path) -> list[tuple[list[str], list[str], list[list[float]]]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise InputError(f"`{path}` cannot be read as a PDB file ({error}).") from error
    models: list[tuple[list[str], list[str], list[list[float]]]] = [([], [], [])]
    last, chain = "", 0
    for line in lines:
        if line.startswith("MODEL ") and models[-1][0]:
            models.append(([], [], []))
            last = ""
        if line.startswith("TER"):
            last, chain = "", chain + 1
        if not line.startswith(("ATOM  ", "HETATM")) or line[12:16] != " CA ":
            continue
        residue = line[17:27]  # name, chain, number, insertion code
        if line[16] not in " A" and residue[3:] == last[3:]:
            continue  # another location of the same atom
        last = residue
        try:
            xyz = [float(line[a : a + 8]) for a in (30, 38, 46)]
        except ValueError:
            raise StructureError(f"{path}: a malformed line: {line!r}") from None
        for column, value in zip(models[-1], (line[17:20].strip(), f"{line[21]}{chain}", xyz), strict=True):
            column.append(value)  # type: ignore[attr-defined]
    return models


def write_pdb(sequence: str, frames: Sequence[np.ndarray]) -> str:
    """The text of a PDB file with a model for each frame (N, 3), Å."""
    from .residues import THREE_LETTER

    lines = []
    for k, frame in enumerate(frames):
        lines.append(f"MODEL     {k + 1:4d}")
        bead = 0
        for number, part in enumerate(sequence.split(":")):
            for residue, letter in enumerate(part):
                x, y, z = frame[bead]
                lines.append(
                    f"ATOM  {(bead + 1) % 100000:5d}  CA  {THREE_LETTER[letter]} {chr(65 + number % 26)}"
                    f"{(residue + 1) % 10000:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C"
                )
                bead += 1
            lines.append("TER")
        lines.append("ENDMDL")
    return "\n".join([*lines, "END", ""])
