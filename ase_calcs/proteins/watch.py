"""Looks after beads in any ASE dynamics, as `ReplicaLangevin` does by itself."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.io import write

from ..errors import DistillaseError, InputError, check_positive

_SIGMAS = 8.0  # of the kinetic temperature of 3N momenta


class UnstableBeads(DistillaseError, RuntimeError):
    """Beads are where none should be: too close, forces without bounds, NaN, or too hot."""


class BeadWatch:
    """Ends a run that went wrong, and keeps the last good frames. Attach it to a dynamics:

    >>> watch = BeadWatch(dynamics, temperature_K=300, path="last_good.extxyz")
    >>> dynamics.attach(watch, interval=50)

    Parameters
    ----------
    dynamics
        Any `ase.md` dynamics of beads, ours (`MTSLangevin`, …) among them.
    temperature_K
        Of the thermostat: a kinetic temperature more than 8 standard deviations, T (2/3N)½ each for N beads,
        above it ends the run. None does not look.
    least_distance
        Å; beads that come closer end the run.
    largest_force
        eV/Å on a bead; more ends the run.
    keep
        How many good frames are kept, the latest ones.
    path
        A file (extxyz with velocities) that holds these frames at any moment: a run that is killed, or a calculator
        that refuses NaN before this observer sees it, leaves them too.

    Attributes
    ----------
    frames
        The good frames, oldest first, with velocities; ``info["time_ps"]`` says of when.
    shortest, largest
        Å and eV/Å, over all that was looked at.
    temperatures
        K, of every frame that was looked at.

    Raises
    ------
    UnstableBeads
        From within the run.
    """

    def __init__(
        self,
        dynamics: Any,
        *,
        temperature_K: float | None = None,
        least_distance: float = 2.5,
        largest_force: float = 50.0,
        keep: int = 5,
        path: str | Path | None = None,
    ) -> None:
        if temperature_K is not None:
            check_positive("temperature_K", temperature_K)
        check_positive("least_distance", least_distance)
        check_positive("largest_force", largest_force)
        if keep < 1:
            raise InputError(f"`keep` is {keep!r}; at least one good frame is kept.")
        self.dynamics = dynamics
        self.least_distance, self.largest_force = least_distance, largest_force
        self.path = None if path is None else Path(path)
        self.frames: deque[Atoms] = deque(maxlen=keep)
        self.shortest, self.largest = np.inf, 0.0
        self.temperatures: list[float] = []
        freedom = 3 * len(dynamics.atoms)
        self.hottest = np.inf if temperature_K is None else temperature_K * (1 + _SIGMAS * np.sqrt(2 / freedom))

    def __call__(self) -> None:
        """Look at the present step."""
        atoms = self.dynamics.atoms
        x, momenta, forces = atoms.positions, atoms.get_momenta(), atoms.get_forces()
        distance, force = _shortest(x), float(np.abs(forces).max(initial=0.0))
        kelvin = float((momenta**2 / atoms.get_masses()[:, None]).sum() / (3 * len(atoms) * units.kB))
        if not all(np.isfinite(part).all() for part in (x, momenta, forces)):
            self._end("positions, velocities or forces are not finite")
        if distance < self.least_distance:
            self._end(f"two beads came within {distance:.2f} Å; {self.least_distance:g} Å is allowed")
        if force > self.largest_force:
            self._end(f"there is a force of {force:.1f} eV/Å on a bead; {self.largest_force:g} eV/Å is allowed")
        if kelvin > self.hottest:
            self._end(f"the beads are at {kelvin:.0f} K; a fluctuation could reach {self.hottest:.0f} K")
        self.shortest, self.largest = min(self.shortest, distance), max(self.largest, force)
        self.temperatures.append(kelvin)
        good = atoms.copy()
        good.info["time_ps"] = self._time()
        self.frames.append(good)
        if self.path is not None:
            part = self.path.with_name(f"{self.path.name}.part")
            write(part, list(self.frames), format="extxyz")
            part.replace(self.path)

    def _time(self) -> float:
        return float(self.dynamics.get_time() / units.fs / 1000)

    def _end(self, what: str) -> None:
        if not self.frames:
            kept = "It was so from the start: relax the structure first."
        else:
            where = "`frames` of this observer" if self.path is None else str(self.path)
            kept = (
                f"The last good frame is of {self.frames[-1].info['time_ps']:g} ps, in {where}. Take a shorter time "
                "step, or, if that does not help, a force field that knows such configurations."
            )
        raise UnstableBeads(f"After {self._time():g} ps {what}. {kept}")


def _shortest(x: np.ndarray) -> float:
    i, j = np.triu_indices(len(x), 1)
    return float(np.linalg.norm(x[i] - x[j], axis=1).min(initial=np.inf))
