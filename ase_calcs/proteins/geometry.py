"""Distances, angles and dihedrals along chains of beads, for arrays of configurations."""

from __future__ import annotations

import numpy as np

# Contacts of the native structure, smoothly counted (Best, Hummer and Eaton, 10.1073/pnas.1311599110).
CONTACT = 8.0  # Å, between Cα atoms that are in contact in the native structure
CONTACT_APART = 3  # residues, at least, between two in contact
CONTACT_SHARPNESS = 5.0  # 1/Å
CONTACT_STRETCH = 1.2  # by how much a contact may stretch


def angles(positions: np.ndarray) -> np.ndarray:
    """Angles between successive bonds, radians.

    Parameters
    ----------
    positions
        (T, N, 3).

    Returns
    -------
    ndarray
        (T, N − 2).
    """
    back, ahead = positions[:, :-2] - positions[:, 1:-1], positions[:, 2:] - positions[:, 1:-1]
    cross = np.linalg.norm(np.cross(back, ahead), axis=-1)
    return np.arctan2(cross, (back * ahead).sum(-1))


def dihedrals(positions: np.ndarray) -> np.ndarray:
    """Dihedral angles along the chain, radians in (−π, π], with the sign of IUPAC: clockwise is positive.

    Parameters
    ----------
    positions
        (T, N, 3).

    Returns
    -------
    ndarray
        (T, N − 3).
    """
    bonds = np.diff(positions, axis=1)
    first, second, third = bonds[:, :-2], bonds[:, 1:-1], bonds[:, 2:]
    left, right = np.cross(first, second), np.cross(second, third)
    sine = np.linalg.norm(second, axis=-1) * (first * right).sum(-1)
    return np.arctan2(sine, (left * right).sum(-1))
