"""Temperatures per element, the monitor that stops a resonating run, and masses moved to hydrogen."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta

from distillase.ase_calcs.dynamics import (
    ModeHeating,
    MTSVelocityVerlet,
    TemperatureMonitor,
    element_temperatures,
    reference_temperatures,
    repartition_hydrogen_mass,
)
from distillase.ase_calcs.errors import InputError

FS = units.fs


class Wells(Calculator):
    """Every atom in a harmonic well, of a stiffness for each element."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's own way)

    def __init__(self, **stiffness: float) -> None:
        super().__init__()
        self.stiffness = stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        k = np.array([self.stiffness[symbol] for symbol in self.atoms.symbols])[:, None]
        x = self.atoms.positions
        self.results = {"energy": float((0.5 * k * x * x).sum()), "forces": -k * x}


def crystal() -> Atoms:
    atoms = Atoms("H50O50", np.zeros((100, 3)))
    thermalize_momenta(atoms, 600.0, rng=np.random.default_rng(1))
    return atoms


def half_period(stiffness: float, mass: float) -> float:
    return np.pi / np.sqrt(stiffness / mass)


def test_removing_momentum_and_rotation_cools_heavy_elements_most() -> None:
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(4000):
        atoms = molecule("CH3CH2OH")
        thermalize_momenta(atoms, 300.0, rng=rng)
        Stationary(atoms, preserve_temperature=False)
        ZeroRotation(atoms, preserve_temperature=False)
        found = element_temperatures(atoms)
        seen.append([found[1], found[6], found[8]])
    assert np.mean(seen, axis=0) == pytest.approx([275, 168, 113], abs=4)


def test_the_monitor_stops_what_resonates_and_lets_the_rest_run() -> None:
    stiff, light = 48.0, crystal().get_masses()[0]
    teacher, student = Wells(H=stiff, O=30.0), Wells(H=0.97 * stiff, O=30.0)
    reference = reference_temperatures(crystal(), teacher, blocks=4, block=50.0, timestep=0.5)
    assert reference.mean(1) == pytest.approx(element_temperatures(crystal())[1] / 2, rel=0.03)  # the wells take half
    for ratio, heats in ((0.7, False), (0.99, True)):
        atoms = crystal()
        atoms.calc = teacher
        dyn = MTSVelocityVerlet(atoms, ratio * half_period(stiff, light), inner=student, k=12)
        monitor = TemperatureMonitor(dyn, reference)
        dyn.attach(monitor)
        if heats:
            with pytest.raises(ModeHeating, match="H is at"):
                dyn.run(1000)
            assert monitor.blocks[8][-1] < monitor.limit(8)
            assert dyn.get_time() < 1000 * FS
        else:
            dyn.run(300)
            assert len(monitor.blocks[1]) >= 10


def test_the_reference_leaves_the_atoms_as_they_are() -> None:
    atoms = crystal()
    momenta = atoms.get_momenta()
    found = reference_temperatures(atoms, Wells(H=10.0, O=10.0), blocks=3, block=5.0)
    assert atoms.calc is None
    np.testing.assert_array_equal(atoms.positions, 0.0)
    np.testing.assert_array_equal(atoms.get_momenta(), momenta)
    assert [len(values) for values in found.blocks.values()] == [3, 3]
    with pytest.raises(InputError, match="fewer than 3"):
        reference_temperatures(atoms, Wells(H=10.0, O=10.0), blocks=2)


def test_mass_is_moved_from_the_heavy_neighbour_and_velocities_stay() -> None:
    atoms = molecule("CH3CH2OH")
    thermalize_momenta(atoms, 300.0, rng=np.random.default_rng(1))
    total, velocities = atoms.get_masses().sum(), atoms.get_velocities()
    repartition_hydrogen_mass(atoms, 3.0)
    assert atoms.get_masses().sum() == pytest.approx(total, abs=1e-12)
    assert atoms.get_masses()[atoms.numbers == 1] == pytest.approx(3.0)
    oxygen = int(np.flatnonzero(atoms.numbers == 8)[0])
    assert atoms.get_masses()[oxygen] == pytest.approx(15.999 - (3.0 - 1.008), abs=1e-6)
    np.testing.assert_allclose(atoms.get_velocities(), velocities, atol=1e-15)
    with pytest.raises(InputError, match="smaller mass"):
        repartition_hydrogen_mass(molecule("CH4"), 4.0)
    with pytest.raises(InputError, match="no heavy atom"):
        repartition_hydrogen_mass(molecule("H2"), 2.0)
