"""Kinetic temperature per element, watched against the teacher's own.

A thermostat or a short run hides a resonance: one kind of vibration heats while the total looks right. Equipartition
says that every element has the same temperature, but not the one a thermometer of 3N degrees of freedom reads: with the
net momentum and rotation of ethanol removed, exact momenta of 300 K read 275, 168 and 113 K on H, C and O. So the
comparison is with a short run of the teacher from the same start, never with the target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.md.verlet import VelocityVerlet

from ..errors import DistillaseError, InputError, check_positive


class ModeHeating(DistillaseError, RuntimeError):
    """A kind of atom became hotter than the teacher's own dynamics makes it."""


def element_temperatures(atoms: Atoms) -> dict[int, float]:
    """K of every element, Σ m v² / (3 N k_B) over its atoms: no degree of freedom is subtracted."""
    twice = (atoms.get_momenta() ** 2).sum(axis=1) / atoms.get_masses()
    numbers = atoms.numbers
    return {int(z): float(twice[numbers == z].mean() / (3.0 * units.kB)) for z in np.unique(numbers)}


@dataclass(frozen=True)
class ReferenceTemperatures:
    """Block averages of the teacher's dynamics.

    Attributes
    ----------
    block
        fs.
    blocks
        Per element, K of every block.
    """

    block: float
    blocks: dict[int, np.ndarray]

    def mean(self, number: int) -> float:
        """K."""
        return float(self.blocks[number].mean())

    def spread(self, number: int) -> float:
        """K: standard deviation of one block."""
        return float(self.blocks[number].std(ddof=1))


def reference_temperatures(
    atoms: Atoms,
    teacher: Any,
    *,
    blocks: int = 8,
    block: float = 500.0,
    timestep: float = 0.5,
    dynamics: Callable[[Atoms, float], Any] | None = None,
) -> ReferenceTemperatures:
    """Run the teacher from these positions and momenta, which stay as they are.

    Parameters
    ----------
    atoms
        Prepared exactly as the run that will be watched.
    teacher
        ASE calculator; it is called ``blocks · block / timestep`` times.
    blocks, block
        Number of blocks, and fs in each.
    timestep
        fs.
    dynamics
        ``(atoms, timestep in ASE units) → dynamics``; velocity Verlet by default. For a thermostatted run name the same
        thermostat here.
    """
    if blocks < 3:
        raise InputError(f"`blocks` is {blocks}; the spread of fewer than 3 says nothing.")
    check_positive("block", block)
    check_positive("timestep", timestep)
    copy = atoms.copy()
    copy.calc = teacher
    run = (dynamics or VelocityVerlet)(copy, timestep * units.fs)
    collected: dict[int, list[float]] = {}
    n_steps = max(1, round(block / timestep))
    for _ in range(blocks):
        averages = _Averages()
        for _ in range(n_steps):
            run.run(1)
            averages.add(copy)
        for number, value in averages.take().items():
            collected.setdefault(number, []).append(value)
    return ReferenceTemperatures(block, {number: np.array(values) for number, values in collected.items()})


@dataclass
class _Averages:
    total: dict[int, float] = field(default_factory=dict)
    count: int = 0

    def add(self, atoms: Atoms) -> None:
        for number, value in element_temperatures(atoms).items():
            self.total[number] = self.total.get(number, 0.0) + value
        self.count += 1

    def take(self) -> dict[int, float]:
        means = {number: value / self.count for number, value in self.total.items()}
        self.total, self.count = {}, 0
        return means


class TemperatureMonitor:
    """Stops a run in which an element heats. Attach it to a dynamics:

    >>> monitor = TemperatureMonitor(dyn, reference_temperatures(atoms, teacher))
    >>> dyn.attach(monitor)

    Parameters
    ----------
    dyn
        The dynamics; its `dt` says when a block is full.
    reference
        Of the same start.
    sigmas, tolerance
        A block is too hot when it exceeds the reference by more than `sigmas` of its spreads **and** by more than
        `tolerance` of its mean.

    Attributes
    ----------
    blocks
        Per element, K of every block so far.

    Raises
    ------
    ModeHeating
        From within the run, after the first block that is too hot; what was written until then stays.
    """

    def __init__(
        self, dyn: Any, reference: ReferenceTemperatures, *, sigmas: float = 5.0, tolerance: float = 0.25
    ) -> None:
        check_positive("sigmas", sigmas)
        check_positive("tolerance", tolerance)
        self.dyn = dyn
        self.reference = reference
        self.sigmas = sigmas
        self.tolerance = tolerance
        self.blocks: dict[int, list[float]] = {}
        self._averages = _Averages()
        self._ends = reference.block

    def limit(self, number: int) -> float:
        """K above which a block of this element stops the run."""
        mean = self.reference.mean(number)
        return mean + max(self.sigmas * self.reference.spread(number), self.tolerance * mean)

    def __call__(self) -> None:
        """Look at the present step."""
        time = self.dyn.get_time() / units.fs
        if time == 0:
            return
        self._averages.add(self.dyn.atoms)
        if time < self._ends - 1e-6:
            return
        self._ends = time + self.reference.block
        latest = self._averages.take()
        for number, value in latest.items():
            self.blocks.setdefault(number, []).append(value)
        for number, value in latest.items():
            if value > self.limit(number):
                raise ModeHeating(
                    f"After {time:.0f} fs {chemical_symbols[number]} is at {value:.0f} K (mean of the last "
                    f"{self.reference.block:.0f} fs); the teacher's own dynamics from the same start has "
                    f"{self.reference.mean(number):.0f} ± {self.reference.spread(number):.0f} K. The outer step of "
                    f"{self.dyn.dt / units.fs:g} fs resonates with a vibration of {chemical_symbols[number]}: shorten "
                    "it, or ask `resonance` which steps are safe."
                )


def repartition_hydrogen_mass(atoms: Atoms, mass: float = 3.0) -> None:
    """Give every hydrogen this mass (u), taken from the heavy atom nearest to it: slower vibrations, longer steps.

    Masses of the whole, static averages and barriers stay; velocities of hydrogens and their spectra change. The atoms
    keep the velocities they have.

    Raises
    ------
    InputError
        A heavy atom would keep less than the hydrogens on it have, or there is no heavy atom.
    """
    check_positive("mass", mass)
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    heavy = np.flatnonzero(atoms.numbers > 1)
    if not len(hydrogens):
        return
    if not len(heavy):
        raise InputError("There is no heavy atom to take mass from.")
    velocities = atoms.get_velocities()
    masses = atoms.get_masses()
    for h in hydrogens:
        owner = heavy[int(np.argmin(atoms.get_distances(h, heavy, mic=bool(atoms.pbc.any()))))]
        masses[owner] -= mass - masses[h]
        masses[h] = mass
    if masses[heavy].min() < mass:
        worst = int(heavy[int(np.argmin(masses[heavy]))])
        raise InputError(
            f"With hydrogens of {mass:g} u, atom {worst} ({atoms.symbols[worst]}) would keep {masses[worst]:.2f} u. "
            "Take a smaller mass."
        )
    atoms.set_masses(masses)
    atoms.set_velocities(velocities)
