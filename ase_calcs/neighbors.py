"""Neighbour lists (vesin), a list with a skin that knows when it may be reused, and `AtomGraph`s made from them.

The contract of every list here: a *full* list of directed edges (i, j, S) with ``|x_j + S @ cell − x_i| < cutoff``,
both directions of every pair, periodic images of an atom itself included, the atom itself (i = j, S = 0) not; sorted by
i, then j, then S. Positions may lie anywhere, inside the cell or outside; S always refers to the positions as given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from vesin import NeighborList

from .errors import InputError, StructureError
from .graph import AtomGraph

Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


class EdgeArrays(NamedTuple):
    """Edges as `AtomGraph` wants them: pairs (2, E) int64, rows i and j, and shifts (E, 3) int64."""

    pairs: np.ndarray
    shifts: np.ndarray


def neighbor_list(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Edges:
    """Full neighbour list, any cell: triclinic, left-handed, smaller than the cutoff, periodic in some directions only.

    Parameters
    ----------
    positions
        (N, 3), Å.
    cell
        (3, 3), Å, rows are lattice vectors; rows of directions that are not periodic are not looked at.
    pbc
        (3,) bool.
    cutoff
        Å; pairs closer than this are neighbours.

    Returns
    -------
    i, j
        (E,) int64, centres and neighbours.
    S
        (E, 3) int64, lattice translations of j in units of the cell vectors.

    Raises
    ------
    StructureError
        Positions or cell with NaN or infinities; a periodic direction without a lattice vector, or periodic lattice
        vectors that are not linearly independent.
    """
    positions = np.ascontiguousarray(positions, dtype=np.float64)
    pbc = np.asarray(pbc, dtype=bool)
    _check_finite(positions)
    if len(positions) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)
    box = periodic_frame(cell, pbc)
    backend = NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    pairs, shifts = backend.compute(positions, box, pbc, "PS", copy=False)
    order = _order(pairs, shifts, len(positions))
    pairs = pairs[order].astype(np.int64)  # indexing copies: the backend owns what it returned
    shifts = shifts[order].astype(np.int64)
    return pairs[:, 0], pairs[:, 1], shifts


def periodic_frame(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """The cell with the rows of non-periodic directions replaced by unit vectors orthogonal to the periodic ones.

    Such a frame is always invertible, and depends only on what matters to a neighbour list.

    Raises
    ------
    StructureError
        If the periodic rows are not finite and linearly independent.
    """
    frame = np.array(cell, dtype=np.float64)
    if not pbc.any():
        return np.eye(3)
    if not np.isfinite(frame[pbc]).all():
        raise StructureError("The cell has NaN or infinite entries. Give finite lattice vectors, in Å.")
    if not pbc.all():
        periodic = frame[pbc]
        _, _, basis = np.linalg.svd(periodic)
        frame[~pbc] = basis[len(periodic) :]  # rows of V that span the complement
    lengths = np.linalg.norm(frame, axis=1)
    if (lengths == 0).any() or abs(np.linalg.det(frame / lengths[:, None])) < 1e-6:
        raise StructureError(
            f"pbc is {pbc.tolist()}, but the cell {np.asarray(cell).tolist()} does not have a lattice vector for each "
            "periodic direction, or they are linearly dependent. Set the cell (atoms.cell = …) or switch pbc off."
        )
    return frame


def _check_finite(positions: np.ndarray) -> None:
    if not np.isfinite(positions).all():
        bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        raise StructureError(
            f"Positions of {len(bad)} of {len(positions)} atoms are NaN or infinite (first: atom {bad[0]}). "
            "If this happened during dynamics, the run has blown up: use a shorter time step or a better model."
        )


def _order(pairs: np.ndarray, shifts: np.ndarray, n_atoms: int) -> np.ndarray:
    """Permutation that sorts edges by i, j, S."""
    if len(pairs) == 0:
        return np.zeros(0, np.int64)
    low = shifts.min(axis=0).astype(np.int64)
    span = shifts.max(axis=0).astype(np.int64) - low + 1
    # One packed integer sorts several times faster than lexsort; Python integers below cannot overflow.
    if int(n_atoms) ** 2 * int(span[0]) * int(span[1]) * int(span[2]) >= 2**63:
        return np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], pairs[:, 1], pairs[:, 0]))
    key = pairs[:, 0].astype(np.int64) * n_atoms + pairs[:, 1].astype(np.int64)
    for axis in range(3):
        if span[axis] > 1:
            key = key * span[axis] + (shifts[:, axis] - low[axis])
    return np.argsort(key, kind="stable")


class SkinNeighborList:
    """A neighbour list that is remade only when an edge could have been missed.

    A list of all edges within ``cutoff + skin`` is kept, and every call returns those of them that are now within
    ``cutoff``: exactly what `neighbor_list` returns, at a few array operations per call.

    When may the kept list be used? Write the new cell as ``C' = C F`` and the new positions as ``x' = x F + u``. The
    vector of a pair becomes ``r' = r F + u_j − u_i``, so ``|r'| ≥ σ_min(F) |r| − 2 max|u|``, with σ_min the smallest
    singular value of F. A pair that was not listed (``|r| ≥ cutoff + skin``) therefore stays outside the cutoff as
    long as ``σ_min(F) (cutoff + skin) − 2 max|u| ≥ cutoff``. This covers drifting atoms, cells that change under a
    barostat, and atoms that are wrapped back into the cell (u jumps by a lattice vector, so the list is remade).

    Parameters
    ----------
    cutoff
        Å.
    skin
        Å; zero remakes the list at every call in which anything moved.
    """

    def __init__(self, cutoff: float, skin: float):
        if not (np.isfinite(cutoff) and cutoff > 0):
            raise InputError(f"cutoff is {cutoff!r}; a positive length in Å is needed.")
        if not (np.isfinite(skin) and skin >= 0):
            raise InputError(f"skin is {skin!r}; zero or a positive length in Å is needed.")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.n_builds = 0  # how often the list was remade
        self.n_updates = 0  # how often it was asked for
        self.reset()

    def reset(self) -> None:
        """Forget the kept list."""
        self._reference: np.ndarray | None = None  # positions the list was made for
        self._cell_key = self._pbc_key = self._mask_key = self._offsets_key = b""
        self._offsets = np.zeros((0, 3))
        self._pbc = np.zeros(3, dtype=bool)
        self._frame_inverse = np.eye(3)
        self._candidates = self._edges = EdgeArrays(np.zeros((2, 0), np.int64), np.zeros((0, 3), np.int64))
        self._real_shifts: np.ndarray | None = None  # float64 copy of the candidates' shifts; None if all are zero

    def update(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> EdgeArrays:
        """Edges of these positions, as `neighbor_list` finds them and with the errors it raises.

        The very same object comes back as long as no edge came or went; it must not be written to.
        """
        positions = np.asarray(positions, dtype=np.float64)
        cell = np.asarray(cell, dtype=np.float64)
        self.n_updates += 1
        if not self._reusable(positions, cell, pbc):
            self._build(positions, cell, np.array(pbc, dtype=bool))
        pairs = self._candidates.pairs
        vectors = positions.take(pairs[1], axis=0)
        vectors -= positions.take(pairs[0], axis=0)
        if self._real_shifts is not None:
            if self._offsets_key != (key := cell.tobytes()):
                self._offsets = self._real_shifts @ np.where(self._pbc[:, None], cell, 0.0)
                self._offsets_key = key
            vectors += self._offsets
        inside = np.einsum("ec,ec->e", vectors, vectors) < self.cutoff**2
        key = inside.tobytes()
        if key != self._mask_key:
            kept = inside.nonzero()[0]
            if len(kept) == len(inside):
                self._edges = self._candidates
            else:
                self._edges = EdgeArrays(pairs.take(kept, axis=1), self._candidates.shifts.take(kept, axis=0))
            self._mask_key = key
        return self._edges

    def _build(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
        self.reset()  # an error below must not leave a stale list behind
        i, j, shifts = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
        self._candidates = EdgeArrays(np.stack([i, j]), shifts)
        self._real_shifts = shifts.astype(np.float64) if shifts.any() else None
        self._cell_key, self._pbc_key, self._pbc = cell.tobytes(), pbc.tobytes(), pbc
        self._frame_inverse = np.linalg.inv(periodic_frame(cell, pbc))
        self._reference = positions.copy()
        self.n_builds += 1

    def _reusable(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        reference = self._reference
        if reference is None or reference.shape != positions.shape or not len(positions):
            return False
        if self._pbc_key != np.asarray(pbc, dtype=bool).tobytes():
            return False
        reach = self.cutoff + self.skin
        if self._cell_key != cell.tobytes() and self._pbc.any():
            strain = self._frame_inverse @ periodic_frame(cell, self._pbc)  # F of C' = C F
            reference = reference @ strain
            reach *= np.linalg.svd(strain, compute_uv=False)[-1]
        moved = positions - reference
        margin = 0.5 * (reach - self.cutoff)
        # A NaN anywhere makes the comparison false, and remaking the list raises the error that names it.
        return bool(margin >= 0 and np.maximum.reduce(np.einsum("nc,nc->n", moved, moved)) <= margin**2)


def graph_from_arrays(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    cutoff: float,
    charge: float = 0.0,
    multiplicity: float = 1.0,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device | str = "cpu",
    edges: Edges | EdgeArrays | None = None,
) -> AtomGraph:
    """One structure as an `AtomGraph`.

    Parameters
    ----------
    numbers, positions, cell, pbc
        (N,) int, (N, 3) Å, (3, 3) Å, (3,) bool.
    cutoff
        Å; not used if `edges` is given.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S+1.
    dtype, device
        Of the tensors that are made.
    edges
        (i, j, S) from `neighbor_list` or `SkinNeighborList.update`, if there are some already.

    Raises
    ------
    StructureError
        See `neighbor_list`.
    """
    if edges is None:
        edges = neighbor_list(positions, cell, pbc, cutoff)
    if not isinstance(edges, EdgeArrays):
        edges = EdgeArrays(np.stack(edges[:2]), edges[2])
    n_atoms = len(numbers)
    return AtomGraph(
        numbers=torch.tensor(np.asarray(numbers, dtype=np.int64), device=device),
        positions=torch.tensor(np.asarray(positions), dtype=dtype, device=device),
        cell=torch.tensor(np.asarray(cell), dtype=dtype, device=device).reshape(1, 3, 3),
        pbc=torch.tensor(np.asarray(pbc, dtype=bool), device=device).reshape(1, 3),
        system=torch.zeros(n_atoms, dtype=torch.int64, device=device),
        edges=torch.tensor(edges.pairs, device=device),
        edge_shifts=torch.tensor(edges.shifts, dtype=dtype, device=device),
        charge=torch.tensor([float(charge)], dtype=dtype, device=device),
        multiplicity=torch.tensor([float(multiplicity)], dtype=dtype, device=device),
    )


def moved_graph(graph: AtomGraph, positions: np.ndarray, edges: EdgeArrays | None = None) -> AtomGraph:
    """A graph of one structure with other positions (N, 3), and other edges if there are any; it shares all else."""
    like = graph.positions
    pairs, shifts = graph.edges, graph.edge_shifts
    if edges is not None:
        pairs = torch.from_numpy(edges.pairs).to(like.device)
        shifts = torch.from_numpy(edges.shifts).to(like)
    return AtomGraph(
        numbers=graph.numbers,
        positions=torch.from_numpy(positions).to(like),
        cell=graph.cell,
        pbc=graph.pbc,
        system=graph.system,
        edges=pairs,
        edge_shifts=shifts,
        charge=graph.charge,
        multiplicity=graph.multiplicity,
    )


def graph_from_atoms(
    atoms: Atoms,
    cutoff: float,
    *,
    dtype: torch.dtype = torch.float32,
    charge: float = 0.0,
    multiplicity: float = 1.0,
    device: torch.device | str = "cpu",
) -> AtomGraph:
    """One `ase.Atoms` as an `AtomGraph`; charge and multiplicity are the arguments, not read from the atoms.

    Raises
    ------
    StructureError
        See `neighbor_list`.
    """
    return graph_from_arrays(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, cutoff, charge, multiplicity, dtype, device=device
    )
