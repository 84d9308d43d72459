"""Bonds, angles, the bonded partner of each hydrogen, and hydrogen bonds, all from geometry and under any boundary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ...ase_calcs.neighbors import neighbor_list

# Atoms closer than this times the sum of their covalent radii (Cordero 2008) are bonded; the teachers' topology and
# the readers use the same factor.
BOND_SCALE = 1.3
# Geometric criterion of a hydrogen bond D–H…A, D and A among N, O and F. It is deliberately generous: thermal motion
# stretches and bends hydrogen bonds.
HBOND_ELEMENTS = (7, 8, 9)
HBOND_DISTANCE = 2.5  # Å, H…A
HBOND_ANGLE = 120.0  # degrees, D–H…A
HBOND_CRITERION = (
    f"D–H…A with D and A among N, O, F; H…A shorter than {HBOND_DISTANCE:g} Å, the angle D–H…A larger than "
    f"{HBOND_ANGLE:g}°, and A neither bonded to H nor to D"
)


@dataclass(frozen=True)
class Bonding:
    """What is bonded to what in one structure of N atoms.

    Attributes
    ----------
    pairs
        (P, 2) int, bonded atoms.
    shifts
        (P, 3) int, lattice translation of the second atom.
    partner
        (N,) atomic number of the nearest bonded atom of each hydrogen; 0 for a free hydrogen and for other elements.
    hydrogen_bonds
        (H, 3) int, donor, hydrogen and acceptor.
    """

    pairs: np.ndarray
    shifts: np.ndarray
    partner: np.ndarray
    hydrogen_bonds: np.ndarray


def find_bonding(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> Bonding:
    """Bonds and hydrogen bonds of one geometry.

    Parameters
    ----------
    numbers, positions, cell, pbc
        (N,), (N, 3) Å, (3, 3) Å, (3,) bool.
    """
    radii = covalent_radii[numbers]
    reach = max(HBOND_DISTANCE, 2 * BOND_SCALE * float(radii.max(initial=0.0)))
    centre, neighbour, shift = (np.asarray(a) for a in neighbor_list(positions, cell, pbc, reach)[:3])
    vectors = positions[neighbour] + shift @ np.asarray(cell) - positions[centre]
    lengths = np.linalg.norm(vectors, axis=1)
    bonded = lengths < BOND_SCALE * (radii[centre] + radii[neighbour])
    once = bonded & _first_of_both(centre, neighbour, shift)
    partner = np.zeros(len(numbers), dtype=int)
    # Nearest partner per hydrogen: sort from far to near, so that the nearest is written last.
    of_h = np.flatnonzero(bonded & (numbers[centre] == 1))
    of_h = of_h[np.argsort(-lengths[of_h], kind="stable")]
    partner[centre[of_h]] = numbers[neighbour[of_h]]
    donor = np.full(len(numbers), -1)
    to_donor = np.zeros((len(numbers), 3))
    donor[centre[of_h]] = neighbour[of_h]
    to_donor[centre[of_h]] = vectors[of_h]
    bonds = set(zip(centre[bonded].tolist(), neighbour[bonded].tolist(), strict=True))
    found = []
    polar = np.isin(numbers, HBOND_ELEMENTS)
    candidates = (numbers[centre] == 1) & polar[neighbour] & (lengths < HBOND_DISTANCE) & ~bonded
    for e in np.flatnonzero(candidates):
        h, a, d = int(centre[e]), int(neighbour[e]), int(donor[centre[e]])
        if d < 0 or not polar[d] or a == d or (d, a) in bonds:
            continue
        if angle_between(to_donor[h], vectors[e]) > HBOND_ANGLE:
            found.append((d, h, a))
    pairs = np.stack([centre[once], neighbour[once]], axis=1)
    return Bonding(pairs, shift[once], partner, np.array(found, dtype=int).reshape(-1, 3))


def _first_of_both(centre: np.ndarray, neighbour: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """True for one of the two directions of every pair; a pair of an atom with its own image is kept once too."""
    own = centre == neighbour
    leading = np.where(shift[:, 0] != 0, shift[:, 0], np.where(shift[:, 1] != 0, shift[:, 1], shift[:, 2]))
    return (centre < neighbour) | (own & (leading > 0))


def angle_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle in degrees between vectors (…, 3); exact near 0° and 180°, where the arc cosine is not."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(a * b, axis=-1)))


@dataclass(frozen=True)
class InternalCoordinates:
    """Bonds and angles of one structure, fixed at its start so that a broken bond shows as a long one.

    Attributes
    ----------
    bonds
        (P, 2) int.
    bond_types
        (P,) str such as ``"C–H"``.
    angles
        (Q, 3) int; the middle one is the apex.
    angle_types
        (Q,) str such as ``"H–C–H"``.
    """

    bonds: np.ndarray
    bond_types: np.ndarray
    angles: np.ndarray
    angle_types: np.ndarray


def internal_coordinates(
    numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> InternalCoordinates:
    """All bonds, and all angles between two bonds of one atom."""
    bonds = find_bonding(numbers, positions, cell, pbc).pairs
    bonded_to: list[list[int]] = [[] for _ in numbers]
    for i, j in bonds:
        bonded_to[i].append(int(j))
        bonded_to[j].append(int(i))
    angles = [
        (a, apex, b)
        for apex, others in enumerate(bonded_to)
        for k, a in enumerate(others)
        for b in others[k + 1 :]
        if a != b
    ]
    angle_array = np.array(angles, dtype=int).reshape(-1, 3)
    return InternalCoordinates(
        bonds,
        np.array([type_name(numbers[b]) for b in bonds], dtype=object),
        angle_array,
        np.array([type_name(numbers[a]) for a in angle_array], dtype=object),
    )


def type_name(numbers: np.ndarray) -> str:
    """``C–H``, ``H–C–O``: the same name from both ends."""
    symbols = [chemical_symbols[int(z)] for z in numbers]
    if len(symbols) == 2:
        # Hydrogen last, carbon first, else alphabetical: C–H, O–H, C–O.
        symbols.sort(key=lambda s: (s == "H", s != "C", s))
    elif symbols[0] > symbols[-1]:
        symbols.reverse()
    return "–".join(symbols)


def displacement(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Vectors (…, 3) wrapped to the nearest periodic image (cells not much skewed; molecules pass unchanged)."""
    if not np.any(pbc):
        return vectors
    from ase.geometry import complete_cell

    full = complete_cell(np.asarray(cell))
    fractional = vectors @ np.linalg.inv(full)
    return vectors - (np.round(fractional) * np.asarray(pbc)) @ full


def bond_lengths(positions: np.ndarray, bonds: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """(T, N, 3) Å and (P, 2) → (T, P) Å."""
    return np.linalg.norm(displacement(positions[:, bonds[:, 1]] - positions[:, bonds[:, 0]], cell, pbc), axis=-1)


def bond_angles(positions: np.ndarray, angles: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """(T, N, 3) Å and (Q, 3) → (T, Q) degrees."""
    apex = positions[:, angles[:, 1]]
    first = displacement(positions[:, angles[:, 0]] - apex, cell, pbc)
    return angle_between(first, displacement(positions[:, angles[:, 2]] - apex, cell, pbc))
