"""Dihedral angles, the bonds that can turn, and how often they do."""

from __future__ import annotations

import numpy as np

from ..report.bonding import angle_between

LINEAR = 165.0  # degrees; three atoms this straight leave no dihedral about them
WELL_BINS = 72  # of the circle, for finding wells
WELL_WIDTH = 10.0  # degrees, standard deviation of the smoothing
WELL_SHARE = 0.03  # of the highest peak: lower ones are noise
WELL_DIP = 0.7  # of the lower of two peaks: the density between them must fall below that, or they are one well
WELL_DISTANCE = 60.0  # degrees between two wells at least, so that cores do not overlap
CORE = 30.0  # degrees about the centre of a well
ELSEWHERE = 100.0  # degrees from every well: a state that the reference does not know
FLIP_DEFINITION = (
    f"One dihedral stands for each rotatable bond. Its wells are the peaks of the reference's own histogram, at least "
    f"{WELL_DISTANCE:g}° apart. A flip is counted when the dihedral comes within {CORE:g}° of another well than the "
    f"last one it was within {CORE:g}° of, so that crossings which fall back do not count; more than {ELSEWHERE:g}° "
    "from every well counts as a well of its own. Rotatable are bonds outside rings whose two atoms both have another "
    "neighbour that is not in line with them: methyl and hydroxyl groups are among them, and so are double bonds, "
    "which do not turn"
)


def neighbours(bonds: np.ndarray, n_atoms: int) -> list[list[int]]:
    """Bonded atoms of every atom, from bonds (P, 2)."""
    found: list[list[int]] = [[] for _ in range(n_atoms)]
    for i, j in np.asarray(bonds, dtype=int).reshape(-1, 2).tolist():
        found[i].append(j)
        found[j].append(i)
    return [sorted(atoms) for atoms in found]


def proper_dihedrals(bonds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(D, 4) int: every chain of four bonded atoms once, without those that are straight in (N, 3) `positions`."""
    bonded = neighbours(bonds, len(positions))
    chains = [
        (a, i, j, b)
        for i, j in np.asarray(bonds, dtype=int).reshape(-1, 2).tolist()
        for a in bonded[i]
        if a != j and not _straight(positions, a, i, j)
        for b in bonded[j]
        if b not in (i, a) and not _straight(positions, i, j, b)
    ]
    return np.array(chains, dtype=int).reshape(-1, 4)


def _straight(positions: np.ndarray, a: int, apex: int, b: int) -> bool:
    return bool(angle_between(positions[a] - positions[apex], positions[b] - positions[apex]) > LINEAR)


def dihedral_angles(positions: np.ndarray, chains: np.ndarray) -> np.ndarray:
    """(T, N, 3) Å and (D, 4) → (T, D) degrees from −180 up to 180, with the sign of IUPAC.

    Source: Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), for the arc tangent, exact at every angle.
    """
    first = positions[:, chains[:, 1]] - positions[:, chains[:, 0]]
    middle = positions[:, chains[:, 2]] - positions[:, chains[:, 1]]
    last = positions[:, chains[:, 3]] - positions[:, chains[:, 2]]
    normal, other = np.cross(first, middle), np.cross(middle, last)
    sine = np.linalg.norm(middle, axis=-1) * np.sum(first * other, axis=-1)
    return wrap(np.degrees(np.arctan2(sine, np.sum(normal * other, axis=-1))))


def wrap(degrees: np.ndarray) -> np.ndarray:
    """The same angles from −180 up to 180."""
    return (np.asarray(degrees) + 180.0) % 360.0 - 180.0


def rotatable_dihedrals(numbers: np.ndarray, bonds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(R, 4) int: one dihedral for each rotatable bond, through the heaviest neighbours, the first of equal ones."""
    chains = proper_dihedrals(bonds, positions)
    bonded = neighbours(bonds, len(numbers))
    chosen: dict[tuple[int, int], tuple[int, ...]] = {}
    for chain in chains.tolist():
        a, i, j, b = chain
        if (i, j) not in chosen and _in_ring(bonded, i, j):
            continue
        rank = (-numbers[a], a, -numbers[b], b)
        held = chosen.get((i, j))
        if held is None or rank < (-numbers[held[0]], held[0], -numbers[held[3]], held[3]):
            chosen[i, j] = tuple(chain)
    return np.array([chosen[bond] for bond in sorted(chosen)], dtype=int).reshape(-1, 4)


def _in_ring(bonded: list[list[int]], i: int, j: int) -> bool:
    """Whether `j` can be reached from `i` without the bond between them."""
    seen, waiting = {i}, [k for k in bonded[i] if k != j]
    while waiting:
        atom = waiting.pop()
        if atom == j:
            return True
        if atom not in seen:
            seen.add(atom)
            waiting += bonded[atom]
    return False


def find_wells(degrees: np.ndarray) -> np.ndarray:
    """Centres of the peaks of the smoothed histogram of a dihedral, degrees, in rising order.

    Parameters
    ----------
    degrees
        (T,) or more dimensions, from −180 to 180.
    """
    counts = np.histogram(np.asarray(degrees).ravel(), bins=WELL_BINS, range=(-180, 180))[0].astype(float)
    centres = (np.arange(WELL_BINS) + 0.5) * 360.0 / WELL_BINS - 180.0
    # Starting at the first bin, so that the convolution shifts nothing.
    kernel = np.exp(-0.5 * (wrap(centres - centres[0]) / WELL_WIDTH) ** 2)
    density = np.fft.irfft(np.fft.rfft(counts) * np.fft.rfft(kernel), WELL_BINS)
    peak = (density >= np.roll(density, 1)) & (density > np.roll(density, -1)) & (density > WELL_SHARE * density.max())
    wells: list[int] = []
    for k in sorted(np.flatnonzero(peak).tolist(), key=lambda k: -density[k]):
        if all(
            abs(wrap(centres[k] - centres[w])) >= WELL_DISTANCE and _saddle(density, k, w) < WELL_DIP * density[k]
            for w in wells
        ):
            wells.append(k)
    return np.sort(centres[wells])


def _saddle(density: np.ndarray, a: int, b: int) -> float:
    """The higher of the two minima met on the two ways round the circle: the one over which it is easier to go."""
    low, high = sorted((a, b))
    return max(density[low : high + 1].min(), np.concatenate([density[high:], density[: low + 1]]).min())


def count_flips(degrees: np.ndarray, wells: np.ndarray) -> int:
    """How often a dihedral (T,) goes from one well to another; see `FLIP_DEFINITION`.

    Source: transition-based assignment of Buchete and Hummer, J. Phys. Chem. B 112, 6057 (2008).
    """
    away = np.abs(wrap(np.asarray(degrees)[:, None] - np.asarray(wells)[None, :]))  # (T, W)
    state = np.where(away.min(axis=1) <= CORE, away.argmin(axis=1), -1)
    state[away.min(axis=1) > ELSEWHERE] = len(wells)
    visited = state[state >= 0]
    return int(np.count_nonzero(np.diff(visited)))
