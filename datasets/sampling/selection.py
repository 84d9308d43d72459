"""Which geometries differ: an invariant descriptor, removal of duplicates, farthest-point selection."""

from __future__ import annotations

import numpy as np
from ase.geometry import get_distances


def descriptors(
    numbers: np.ndarray,
    positions: np.ndarray,
    *,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
    inverse: bool = False,
) -> np.ndarray:
    """All pair distances, sorted within each pair of elements: invariant to motion, mirroring and permutation.

    Two geometries that differ by a rigid motion, a reflection or a swap of like atoms have the same descriptor; the
    reverse holds but for rare homometric sets.

    Parameters
    ----------
    numbers
        (N,) atomic numbers.
    positions
        (M, N, 3), Å, the geometries.
    cell, pbc
        (3, 3) Å and (3,) bool, where distances are to the nearest image.
    inverse
        1/r (in Å⁻¹) instead of r, which puts the weight on near neighbours.

    Returns
    -------
    (M, N(N−1)/2) float64.
    """
    numbers = np.asarray(numbers, dtype=int)
    first, second = np.triu_indices(len(numbers), k=1)
    low, high = np.minimum(numbers[first], numbers[second]), np.maximum(numbers[first], numbers[second])
    kind = low * 1000 + high
    order = np.argsort(kind, kind="stable")
    first, second, kind = first[order], second[order], kind[order]
    starts = np.flatnonzero(np.diff(kind, prepend=-1)).tolist()
    rows = np.empty((len(positions), len(first)))
    for row, geometry in zip(rows, positions, strict=True):
        if pbc is not None and np.any(pbc):
            row[:] = get_distances(geometry, cell=cell, pbc=pbc)[1][first, second]
        else:
            vectors = geometry[first] - geometry[second]
            row[:] = np.sqrt(np.einsum("pc,pc->p", vectors, vectors))
    for start, stop in zip(starts, [*starts[1:], len(first)], strict=True):
        rows[:, start:stop].sort(axis=1)
    if inverse:
        with np.errstate(divide="ignore"):
            return 1.0 / rows
    return rows


def drop_duplicates(rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices of the geometries that are not within `tolerance` of an earlier one that is kept.

    The measure is the root mean square difference of sorted distances (Å). It needs no alignment and no matching of
    like atoms, and never exceeds what the distances under the best matching would give.

    Parameters
    ----------
    rows
        (M, P) from `descriptors`.
    tolerance
        Å; 0 keeps all.

    Returns
    -------
    (K,) int, ascending.
    """
    if tolerance <= 0 or rows.shape[1] == 0:
        return np.arange(len(rows))
    limit = tolerance**2 * rows.shape[1]
    norms = np.sqrt(np.einsum("mp,mp->m", rows, rows))
    kept = np.empty(len(rows), dtype=int)
    count = 0
    for i, row in enumerate(rows):
        # |‖a‖ − ‖b‖| ≤ ‖a − b‖ leaves few to compare.
        near = kept[:count][np.abs(norms[kept[:count]] - norms[i]) <= limit**0.5]
        difference = rows[near] - row
        if not len(near) or np.einsum("kp,kp->k", difference, difference).min() > limit:
            kept[count] = i
            count += 1
    return kept[:count].copy()


def farthest_points(rows: np.ndarray, count: int) -> np.ndarray:
    """The `count` most different geometries, in the order they are taken.

    Starts with the first one, then always takes the geometry farthest from all taken (Gonzalez 1985,
    10.1016/0304-3975(85)90224-5; at most twice the radius of the best covering). Ties go to the lower index; no random
    numbers, and no BLAS, whose last digit would depend on the number of threads.

    Parameters
    ----------
    rows
        (M, P) descriptors.
    count
        How many; M or more, or 0, keeps all in their order.
    """
    if count <= 0 or count >= len(rows):
        return np.arange(len(rows))
    chosen = np.empty(count, dtype=int)
    nearest = np.full(len(rows), np.inf)
    squares = np.einsum("mp,mp->m", rows, rows)
    current = 0
    for k in range(count):
        chosen[k] = current
        distance = squares + squares[current] - 2.0 * np.einsum("mp,p->m", rows, rows[current])
        nearest = np.minimum(nearest, distance)
        nearest[chosen[: k + 1]] = -1.0
        current = int(np.argmax(nearest))
    return chosen
