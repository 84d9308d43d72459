"""`Trajectory`: one run of one molecule, as arrays; what jump networks learn from and what dynamics are compared by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Trajectory:
    """Frames of one run at equal intervals.

    Attributes
    ----------
    numbers
        (N,) int, atomic numbers.
    masses
        (N,) u, as the run had them.
    positions
        (T, N, 3) Å.
    velocities
        (T, N, 3) Å/fs. ASE's own are Å per √(u Å²/eV), which is 10.18 fs: multiply them by `ase.units.fs`.
    interval
        fs between two frames.
    energies
        (T,) eV, potential energy of the teacher; None where unknown.
    forces
        (T, N, 3) eV/Å of the teacher; None where unknown.
    group
        The molecule it belongs to.
    origin
        Which run it is: trajectories with different origins are independent.
    charge, multiplicity
        Electronic state.
    smiles
        Canonical SMILES where known, else "".
    settings
        How it was made: ``teacher``, ``integrator``, ``timestep`` (fs), ``friction`` (1/fs), ``temperature_K``,
        ``seed``, and what it cost: ``teacher_gradients``, ``teacher_energies``, ``seconds``. What is unknown is absent.
    """

    numbers: np.ndarray
    masses: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    interval: float
    energies: np.ndarray | None = None
    forces: np.ndarray | None = None
    group: str = ""
    origin: str = ""
    charge: int = 0
    multiplicity: int = 1
    smiles: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)
