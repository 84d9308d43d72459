"""Backbones of proteins in many conformations: N, Cα, C, O and Cβ of each residue, in the format of every dataset.

``group`` is the protein, ``origin`` the run or the model of a structure file, ``numbers`` are the elements of five
atoms for each residue. The provenance has ``kind: backbone``, the sequences, whose colons are chain ends and gaps, and
which atoms were not in the source and stand where ideal geometry has them (the Cβ of glycine always does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...ase_calcs.errors import DataError
from ...ase_calcs.proteins.backbone import (
    ATOMS,
    CA,
    CB,
    PSI,
    C,
    N,
    O,
    angle,
    frames_of,
    residues_in_frames,
    torsions_of,
)
from ...ase_calcs.proteins.chains import Chains
from ..store import Dataset
from ..writer import FrameTable, write_dataset
from .frames import types_of

KIND = "backbone"
PEPTIDE = 2.0  # Å, the longest bond from C to the next N (1.33); what is longer is a gap
_ELEMENTS = np.array([7, 6, 6, 8, 6], dtype=np.uint8)
_WITHOUT_NEXT = 2.4  # radians, the ψ that says where the last O of a chain is when there is none


@dataclass(frozen=True)
class BackboneFrames:
    """All conformations of one protein, in memory.

    Attributes
    ----------
    name
        Of the protein.
    sequence
        One-letter codes; colons divide chains, and what is left of a chain on both sides of a gap.
    positions
        (T, L, 5, 3) Å, the atoms in the order of `ATOMS`.
    built
        (L, 5) bool, atoms that were not in the source.
    temperatures
        (T,) K; NaN where unknown.
    origins
        (T,) str, which run or model each conformation is from.
    """

    name: str
    sequence: str
    positions: np.ndarray
    built: np.ndarray
    temperatures: np.ndarray
    origins: np.ndarray

    def __post_init__(self) -> None:
        n, count = len(self.types), len(self.positions)
        if self.positions.shape != (count, n, len(ATOMS), 3) or self.built.shape != (n, len(ATOMS)):
            raise DataError(
                f"{self.name} has {n} residues, positions {self.positions.shape} and a mask {self.built.shape}; needed "
                f"are (conformations, {n}, {len(ATOMS)}, 3) and ({n}, {len(ATOMS)})."
            )
        if self.temperatures.shape != (count,) or self.origins.shape != (count,):
            raise DataError(f"{self.name}: {count} conformations need as many temperatures and origins.")

    @property
    def types(self) -> np.ndarray:
        """(L,) place of every residue in `CODES`."""
        return types_of(self.sequence)

    @property
    def starts(self) -> np.ndarray:
        """(L,) bool, first residues of chains and after gaps."""
        return starts_of(self.sequence)

    def torsions(self) -> np.ndarray:
        """(T, L, 3) radians: φ, ψ, ω; zero where there is none."""
        return torsions_of(torch.as_tensor(self.positions), torch.as_tensor(self.starts)).numpy()

    def select(self, frames: np.ndarray) -> BackboneFrames:
        """Some of the conformations, by index or mask."""
        return BackboneFrames(
            self.name, self.sequence, self.positions[frames], self.built, self.temperatures[frames],
            self.origins[frames],
        )  # fmt: skip


def starts_of(sequence: str) -> np.ndarray:
    """(L,) bool, the first residues of the parts that colons divide."""
    chain = Chains.from_sequence(sequence).chain
    return np.diff(chain, prepend=-1) > 0


def with_gaps(letters: str, chain: np.ndarray, positions: np.ndarray) -> str:
    """The sequence with a colon wherever a chain ends, or a peptide bond is too long to be one in any conformation.

    Parameters
    ----------
    letters
        One for each of L residues.
    chain
        (L,) anything, alike within a chain.
    positions
        (T, L, 5, 3) Å.
    """
    far = np.linalg.norm(positions[:, 1:, N] - positions[:, :-1, C], axis=-1).max(axis=0, initial=0.0) > PEPTIDE
    ends = far | (chain[1:] != chain[:-1])
    return letters[:1] + "".join((":" if end else "") + letter for end, letter in zip(ends, letters[1:], strict=True))


def completed(sequence: str, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Backbones with every O and Cβ, those that are missing where ideal geometry has them.

    Parameters
    ----------
    sequence
        Of L residues.
    positions
        (T, L, 5, 3) Å; NaN where a conformation lacks an O or a Cβ.

    Returns
    -------
    ndarray
        (T, L, 5, 3).
    ndarray
        (L, 5) bool, which were built: an atom that some conformation lacks is built in all of them.

    Raises
    ------
    DataError
        An N, Cα or C is missing.
    """
    lacking = np.isnan(positions).any(axis=(0, 3))
    if lacking[:, [N, CA, C]].any():
        residue = int(np.flatnonzero(lacking[:, [N, CA, C]].any(axis=1))[0])
        raise DataError(f"Residue {residue + 1} lacks N, Cα or C; without these there is no backbone.")
    types, starts = torch.as_tensor(types_of(sequence)), torch.as_tensor(starts_of(sequence))
    lacking[types_of(sequence) == types_of("G")[0], CB] = True
    x = torch.as_tensor(positions)
    psi = torsions_of(x, starts)[..., PSI]
    last = torch.cat([starts[1:], starts.new_ones(1)])
    psi = torch.where(last, torch.full_like(psi, _WITHOUT_NEXT), psi)
    bends = angle(x[..., N, :], x[..., CA, :], x[..., C, :])
    frames = frames_of(x)
    ideal = residues_in_frames(types.expand(psi.shape), bends, psi) @ frames.rotation.mT
    ideal = ideal + frames.origin[..., None, :]
    # O belongs to C, and the bond from Cα to C has its own length here.
    ideal[..., O, :] += x[..., C, :] - ideal[..., C, :]
    return np.where(lacking[:, :, None], ideal.numpy(), positions), lacking


def write_backbones(path: str | Path, proteins: Sequence[BackboneFrames], provenance: Mapping[str, Any]) -> Path:
    """A dataset file of conformations.

    Raises
    ------
    DataError
        Two proteins of one name.
    """
    names = [p.name for p in proteins]
    if len(set(names)) < len(names):
        raise DataError(f"Each protein needs a name of its own; there are {', '.join(sorted(names))}.")
    described = {
        "kind": KIND,
        "sequences": {p.name: p.sequence for p in proteins},
        "built": {p.name: np.argwhere(p.built).tolist() for p in proteins},
    }
    return write_dataset(path, _tables(proteins), provenance={**described, **provenance})


def _tables(proteins: Sequence[BackboneFrames]) -> Iterator[FrameTable]:
    for p in proteins:
        n_frames, n_atoms = len(p.positions), p.positions.shape[1] * len(ATOMS)
        # Centred: float32 coordinates of a molecule far from the origin would lose digits of its bonds.
        centred = p.positions.reshape(n_frames, n_atoms, 3)
        centred = centred - centred.mean(axis=1, keepdims=True)
        columns: dict[str, Any] = {
            "numbers": np.tile(_ELEMENTS, n_frames * len(p.types)),
            "positions": centred.reshape(-1, 3),
            "temperature": p.temperatures.astype(float),
            "cell": np.zeros((n_frames, 3, 3)),
            "pbc": np.zeros((n_frames, 3), dtype=bool),
            "charge": np.zeros(n_frames, dtype=int),
            "multiplicity": np.ones(n_frames, dtype=int),
            "group": [p.name] * n_frames,
            "origin": p.origins.tolist(),
            "smiles": [""] * n_frames,
        }
        yield FrameTable(np.full(n_frames, n_atoms), columns)


def read_backbones(path: str | Path) -> list[BackboneFrames]:
    """Every protein of a dataset of backbones.

    Raises
    ------
    DataError
        It is a dataset of something else.
    """
    with Dataset(path) as data:
        if data.provenance.get("kind") != KIND:
            raise DataError(
                f"{path} is a dataset of something else than backbones: `distillase ensemble prepare` makes one."
            )
        sequences, built = data.provenance["sequences"], data.provenance["built"]
        groups, origins, offsets, positions = data.group, data.origin.astype(str), data.offsets, data.positions
        temperatures = data.temperature if "temperature" in data.fields else np.full(len(groups), np.nan)
    found = []
    for name in dict.fromkeys(groups.tolist()):
        frames = np.flatnonzero(groups == name)
        n = len(types_of(sequences[name]))
        rows = offsets[frames][:, None] + np.arange(n * len(ATOMS))
        mask = np.zeros((n, len(ATOMS)), dtype=bool)
        for residue, atom in built[name]:
            mask[residue, atom] = True
        xyz = positions[rows].reshape(-1, n, len(ATOMS), 3)
        found.append(BackboneFrames(name, sequences[name], xyz, mask, temperatures[frames], origins[frames]))
    return found
