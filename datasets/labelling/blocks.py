"""Structures as a few flat arrays: what goes to a worker, without one pickled object per frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..structure import Structure


@dataclass(frozen=True)
class Block:
    """Structures one after another.

    Attributes
    ----------
    keys
        (F, 16) uint8, the structures' keys.
    offsets
        (F + 1,) int64; structure f owns atoms ``offsets[f]:offsets[f + 1]``.
    numbers
        (A,) int64.
    positions
        (A, 3) float64, Å.
    cells
        (F, 3, 3) float64, Å.
    pbc
        (F, 3) bool.
    states
        (F, 2) int64, charge and multiplicity.
    smiles
        F strings, or one for all.
    """

    keys: np.ndarray
    offsets: np.ndarray
    numbers: np.ndarray
    positions: np.ndarray
    cells: np.ndarray
    pbc: np.ndarray
    states: np.ndarray
    smiles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def smiles_of(self, frame: int) -> str:
        """SMILES of one structure, "" where unknown."""
        return self.smiles[frame if len(self.smiles) > 1 else 0]


def pack(structures: Sequence[Structure], keys: Sequence[bytes]) -> Block:
    """Put structures into flat arrays.

    Parameters
    ----------
    structures
        At least one.
    keys
        `Structure.key()` of each, as 16 bytes.
    """
    sizes = np.fromiter((len(s) for s in structures), dtype=np.int64, count=len(structures))
    smiles = tuple(s.smiles for s in structures)
    return Block(
        keys=np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        numbers=np.concatenate([np.asarray(s.numbers, dtype=np.int64) for s in structures]),
        positions=np.concatenate([np.asarray(s.positions, dtype=np.float64) for s in structures]),
        cells=np.array([s.cell for s in structures], dtype=np.float64),
        pbc=np.array([s.pbc for s in structures], dtype=bool),
        states=np.array([(s.charge, s.multiplicity) for s in structures], dtype=np.int64),
        smiles=smiles if len(set(smiles)) > 1 else smiles[:1],
    )
