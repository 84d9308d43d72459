"""Frames for tests of datasets: small molecules held together by springs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distillase.datasets.structure import Labels, Structure

h5py = pytest.importorskip("h5py")

WATER = np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])


def spring(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy and forces of springs between all atoms: no net force, no torque."""
    difference = positions[:, None] - positions[None]
    distance = np.linalg.norm(difference, axis=-1) + np.eye(len(positions))
    stretch = np.where(np.eye(len(positions)) > 0, 0.0, distance - 1.2)
    forces = -2.0 * (stretch / distance)[..., None] * difference
    return float(0.5 * (stretch**2).sum()), forces.sum(axis=1)


def frames(n: int = 30, seed: int = 0) -> list:
    """Molecules of 2 to 5 atoms: every third frame periodic with stress, every fifth without labels, odd extras."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        size = int(rng.integers(2, 6))
        # 8 + an even number of electrons in all, so that multiplicity 1 is right.
        numbers = np.array([8, 6, 8, 6, 8])[:size]
        positions = rng.normal(scale=0.1, size=(size, 3)) + 1.3 * np.arange(size)[:, None] * np.array([1.0, 0.3, 0.1])
        periodic = i % 3 == 0
        structure = Structure(
            numbers,
            positions,
            cell=np.eye(3) * 20.0 if periodic else np.zeros((3, 3)),
            pbc=np.full(3, periodic),
            charge=2 * (i % 2),
            multiplicity=1,
            group=f"molécule {size}",
            origin=f"md-500K/{i % 4:03d}",
            smiles="C/C=C\\C",
        )
        energy, forces = spring(positions)
        labels = Labels(
            energy,
            forces,
            stress=rng.normal(size=6) if periodic else None,
            charges=rng.normal(size=size),
            dipole=rng.normal(size=3),
        )
        extras = {}
        if i % 4 == 1:
            extras = {
                "velocities": rng.normal(size=(size, 3)),
                "temperature": np.float64(500.0),
                "hessian_rows": rng.normal(size=(2, 3 * size)),
                "hessian_row_index": np.array([0, 3 * size - 1]),
            }
        out.append((structure, None if i % 5 == 4 else labels, extras))
    return out


def damage(path: Path, change: Callable) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path
