"""Forces of all atoms onto Cα beads: which sums of atomic forces have the mean force on the beads as their average.

A bead sits where its Cα is. Then any linear map W (B, N) of the atomic forces averages to the mean force as long as a
bead has weight 1 on its own Cα and 0 on every other one, and all atoms that rigid distances bind together share one
weight, so that constraint forces, which no program reports, cancel (10.1021/acs.jpclett.3c00444). Among these maps the
one with the smallest mean square is the least noisy, and the solution of a linear least-squares problem.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ...ase_calcs.errors import DataError, InputError

MapKind = Literal["raw", "basic", "optimal"]

_RIGID = 0.01  # Å; files of rounded coordinates blur rigid distances by half of this, and no bond vibrates as little
_NEAR = 3.0  # Å; no rigid distance is longer
_RIDGE = 1e-8  # of the mean diagonal: decides between maps that fit alike
_RIDGES = (_RIDGE, *(float(x) for x in 10.0 ** np.arange(-4.0, 1.51, 0.5)))


def rigid_pairs(positions: np.ndarray, tolerance: float = _RIGID) -> np.ndarray:
    """Pairs of atoms whose distance never changes.

    Parameters
    ----------
    positions
        (T, N, 3) Å, ten frames or more; they may lie anywhere.
    tolerance
        Å, standard deviation of a distance that counts as rigid.

    Returns
    -------
    ndarray
        (C, 2) int, i < j.
    """
    if len(positions) < 10:
        raise DataError(f"Rigid bonds cannot be told from {len(positions)} frames; give ten or more.")
    first = np.asarray(positions[0], dtype=float)
    # Only atoms that are close in the first frame can be bound rigidly.
    i, j = np.nonzero(np.triu(np.linalg.norm(first[:, None] - first, axis=-1) < _NEAR, 1))
    spread = np.linalg.norm(np.asarray(positions, dtype=float)[:, i] - positions[:, j], axis=-1).std(0)
    return np.stack([i, j], axis=1)[spread < tolerance]


def rigid_clusters(n_atoms: int, pairs: np.ndarray) -> np.ndarray:
    """(N,) which cluster of rigidly bound atoms each atom belongs to, numbered from 0."""
    pairs = np.asarray(pairs, dtype=int).reshape(-1, 2)
    bonds = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n_atoms, n_atoms))
    return connected_components(bonds, directed=False)[1]


class ForceMapper:
    """Collects what the best map depends on, frame by frame, and solves for it.

    Parameters
    ----------
    beads
        (B,) indices of the Cα atoms.
    pairs
        (C, 2) rigidly bound atoms.
    n_atoms
        Atoms of a frame.

    Raises
    ------
    DataError
        Two Cα atoms are bound rigidly to each other: then no such map exists.
    """

    def __init__(self, beads: np.ndarray, pairs: np.ndarray, n_atoms: int):
        self.beads = np.asarray(beads, dtype=int)
        self.clusters = rigid_clusters(n_atoms, pairs)
        self.own = self.clusters[self.beads]
        if len(set(self.own.tolist())) < len(self.beads):
            raise DataError("Rigid distances bind two Cα atoms together: no force map exists. Is the molecule rigid?")
        self.n_clusters = int(self.clusters.max()) + 1
        one = np.ones(n_atoms)
        self._member = coo_matrix((one, (self.clusters, np.arange(n_atoms))), shape=(self.n_clusters, n_atoms)).tocsr()
        self._gram = np.zeros((self.n_clusters, self.n_clusters))
        self.n_frames = 0

    def add(self, forces: np.ndarray) -> None:
        """Take forces (T, N, 3) of some frames into account."""
        per_atom = np.asarray(forces, dtype=float).transpose(1, 0, 2).reshape(len(self.clusters), -1)
        sums = self._member @ per_atom  # (C, 3T)
        self._gram += sums @ sums.T
        self.n_frames += len(forces)

    def best_ridge(self, others: ForceMapper) -> float:
        """Which ridge makes the optimal map of these frames the least noisy one on others.

        With few frames a map without any fits their noise: 200 frames of 35 residues gave 5.0 kcal/mol/Å on themselves
        and 30.1 on others, where the basic map has 24.6.
        """
        noise = []
        for ridge in _RIDGES:
            weights = self._clustered("optimal", ridge)
            noise.append(float(np.einsum("bc,cd,bd->", weights, others._gram, weights)))
        return _RIDGES[int(np.argmin(noise))]

    def without(self, part: ForceMapper) -> ForceMapper:
        """Of the frames that are not in `part`, which is of some of these."""
        rest = copy.copy(self)
        rest._gram, rest.n_frames = self._gram - part._gram, self.n_frames - part.n_frames
        return rest

    def solve(self, kind: MapKind, ridge: float = _RIDGE) -> np.ndarray:
        """The map (B, N).

        ``raw`` takes the force on the Cα alone, which is right only where nothing binds it rigidly; ``basic`` that of
        the Cα and what is rigidly bound to it; ``optimal`` has the smallest mean square over the frames seen. `ridge`,
        of the mean diagonal of its normal equations, draws it towards the basic one.
        """
        if kind not in get_args(MapKind):
            raise InputError(f"The map is {kind!r}; allowed are {', '.join(map(repr, get_args(MapKind)))}.")
        weights = np.zeros((len(self.beads), len(self.clusters)))
        if kind == "raw":
            weights[np.arange(len(self.beads)), self.beads] = 1.0
            return weights
        return self._clustered(kind, ridge)[:, self.clusters]

    def _clustered(self, kind: MapKind, ridge: float) -> np.ndarray:
        """(B, C) weights of clusters."""
        by_cluster = np.zeros((len(self.beads), self.n_clusters))
        by_cluster[np.arange(len(self.beads)), self.own] = 1.0
        if kind == "optimal":
            if self.n_frames == 0:
                raise DataError("The optimal map needs frames; there are none.")
            free = np.setdiff1d(np.arange(self.n_clusters), self.own)
            gram = self._gram[np.ix_(free, free)]
            added = ridge * max(float(np.trace(gram)) / max(len(free), 1), np.finfo(float).tiny)
            right = -self._gram[np.ix_(free, self.own)]
            by_cluster[:, free] = np.linalg.solve(gram + added * np.eye(len(free)), right).T
        return by_cluster


def map_forces(forces: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Forces (T, N, 3) onto beads: (T, B, 3)."""
    return np.einsum("bn,tnd->tbd", weights, forces)


def check_map(weights: np.ndarray, beads: np.ndarray, pairs: np.ndarray, tolerance: float = 1e-6) -> None:
    """Refuse a map whose average is not the mean force.

    Raises
    ------
    DataError
        Saying which of the three conditions does not hold.
    """
    weights = np.asarray(weights, dtype=float)
    if np.abs(weights[:, beads] - np.eye(len(beads))).max() > tolerance:
        raise DataError("The force map must have weight 1 on a bead's own Cα and 0 on every other one.")
    pairs = np.asarray(pairs, dtype=int).reshape(-1, 2)
    if len(pairs) and np.abs(weights[:, pairs[:, 0]] - weights[:, pairs[:, 1]]).max() > tolerance:
        i, j = pairs[int(np.abs(weights[:, pairs[:, 0]] - weights[:, pairs[:, 1]]).max(0).argmax())]
        raise DataError(f"Atoms {i} and {j} are bound rigidly and have different weights in the force map.")


def root_mean_square(parts: Iterable[np.ndarray]) -> float:
    """Of all components of several arrays."""
    total = count = 0.0
    for part in parts:
        total += float((np.asarray(part, dtype=float) ** 2).sum())
        count += part.size
    return float(np.sqrt(total / count)) if count else float("nan")
