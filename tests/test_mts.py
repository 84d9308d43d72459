"""Multiple time stepping: velocity Verlet where it must be, reversible, restartable; the teacher's ensemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.cluster import Icosahedron
from ase.constraints import FixAtoms, FixBondLengths, FixCom, Hookean
from ase.io import read
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from distillase.ase_calcs.dynamics import MTSLangevin, MTSVelocityVerlet
from distillase.ase_calcs.errors import DataError, InputError

FS = units.fs


class Wells(Calculator):
    """Every atom in a harmonic well of its own about the origin; counts its calls."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's own way)

    def __init__(self, stiffness: float) -> None:
        super().__init__()
        self.stiffness = stiffness
        self.calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        x = self.atoms.positions
        self.results = {"energy": 0.5 * self.stiffness * (x * x).sum(), "forces": -self.stiffness * x}


def cluster(temperature: float = 600.0) -> Atoms:
    atoms = Icosahedron("Cu", 2)
    atoms.rattle(0.02, seed=1)
    thermalize_momenta(atoms, temperature, rng=np.random.default_rng(2))
    Stationary(atoms)
    atoms.calc = EMT()
    return atoms


def student() -> MorsePotential:
    """Something that binds copper roughly as EMT does."""
    return MorsePotential(epsilon=0.35, r0=2.6, rho0=4.5, rcut1=8.0, rcut2=9.0)


def same(a: Atoms, b: Atoms) -> bool:
    return np.array_equal(a.positions, b.positions) and np.array_equal(a.get_momenta(), b.get_momenta())


CONSTRAINTS = {
    "none": list,
    "FixAtoms": lambda: [FixAtoms([0, 3])],
    "FixBondLengths": lambda: [FixBondLengths([(0, 1), (2, 7)])],
    "FixCom": lambda: [FixCom()],
    "Hookean": lambda: [Hookean(0, 5, rt=2.0, k=3.0)],
}


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_k_1_is_velocity_verlet_to_the_last_bit(constraint: str) -> None:
    ours, ases = cluster(), cluster()
    for atoms in (ours, ases):
        atoms.set_constraint(CONSTRAINTS[constraint]())
    MTSVelocityVerlet(ours, 3.0 * FS, inner=student(), k=1).run(40)
    VelocityVerlet(ases, 3.0 * FS).run(40)
    assert same(ours, ases)


@pytest.mark.parametrize(("k", "n"), [(4, 4), ([2, 3], 6)])
def test_a_perfect_student_gives_velocity_verlet_at_the_inner_step(k: int | list[int], n: int) -> None:
    ours, ases = cluster(), cluster()
    inner = [EMT() for _ in k] if isinstance(k, list) else EMT()
    dyn = MTSVelocityVerlet(ours, 6.0 * FS, inner=inner, k=k)
    dyn.run(10)
    VelocityVerlet(ases, 6.0 * FS / n).run(10 * n)
    assert dyn.inner_timestep == pytest.approx(6.0 * FS / n)
    np.testing.assert_allclose(ours.positions, ases.positions, atol=1e-11)
    np.testing.assert_allclose(ours.get_momenta(), ases.get_momenta(), atol=1e-10)


@pytest.mark.parametrize("constraint", ["FixBondLengths", "FixAtoms"])
def test_constraints_hold_in_every_inner_step(constraint: str) -> None:
    atoms = cluster()
    atoms.set_constraint(CONSTRAINTS[constraint]())
    atoms.set_momenta(atoms.get_momenta())  # without what the constraints forbid
    bonds, fixed = [atoms.get_distance(*pair) for pair in ((0, 1), (2, 7))], atoms.positions[[0, 3]].copy()
    energy = atoms.get_total_energy()
    MTSVelocityVerlet(atoms, 4.0 * FS, inner=student(), k=4).run(100)
    if constraint == "FixAtoms":
        np.testing.assert_array_equal(atoms.positions[[0, 3]], fixed)
    else:
        assert [atoms.get_distance(*pair) for pair in ((0, 1), (2, 7))] == pytest.approx(bonds, abs=1e-10)
    assert atoms.get_total_energy() == pytest.approx(energy, abs=0.02)


def test_a_turned_back_run_returns_to_its_start() -> None:
    atoms = cluster()
    start, momenta = atoms.positions.copy(), atoms.get_momenta()
    MTSVelocityVerlet(atoms, 8.0 * FS, inner=student(), k=4).run(50)
    atoms.set_momenta(-atoms.get_momenta())
    MTSVelocityVerlet(atoms, 8.0 * FS, inner=student(), k=4).run(50)
    np.testing.assert_allclose(atoms.positions, start, atol=1e-9)
    np.testing.assert_allclose(atoms.get_momenta(), -momenta, atol=1e-8)


def test_the_teachers_energy_and_the_momentum_are_conserved() -> None:
    atoms = cluster()
    energy, excursions = atoms.get_total_energy(), []
    dyn = MTSVelocityVerlet(atoms, 8.0 * FS, inner=student(), k=4)
    dyn.attach(lambda: excursions.append(atoms.get_total_energy() - energy))
    dyn.run(500)
    first, last = np.mean(excursions[:250]), np.mean(excursions[250:])
    assert abs(last - first) / len(atoms) < 1e-4  # eV per atom in 2 ps
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)


def test_the_energy_error_falls_with_the_square_of_the_outer_step() -> None:
    spread = []
    for timestep in (4.0, 8.0):
        atoms = cluster()
        seen: list[float] = []
        dyn = MTSVelocityVerlet(atoms, timestep * FS, inner=student(), k=8)
        dyn.attach(lambda atoms=atoms, seen=seen: seen.append(atoms.get_total_energy()))
        dyn.run(int(800 / timestep))
        spread.append(np.std(seen))
    assert 3.0 < spread[1] / spread[0] < 5.0


def test_calls_are_few_and_counted() -> None:
    atoms = molecule("H2O")
    teacher, a, b = Wells(1.0), Wells(1.1), Wells(0.9)
    atoms.calc = teacher
    dyn = MTSVelocityVerlet(atoms, 4.0 * FS, inner=[a, b], k=[2, 4], logfile=None)
    dyn.run(10)
    assert teacher.calls == 11
    assert a.calls == 1 + 10 * 2
    assert b.calls == 1 + 10 * 8
    assert (dyn.teacher_calls, dyn.student_calls) == (11, [21, 81])


def test_time_and_steps_are_those_of_the_outer_step(tmp_path: Path) -> None:
    atoms = cluster()
    dyn = MTSVelocityVerlet(
        atoms, 4.0 * FS, inner=student(), k=4, trajectory=str(tmp_path / "a.traj"), logfile=str(tmp_path / "log")
    )
    assert list(dyn.irun(5)) == [False] * 5 + [True]
    assert dyn.get_time() == pytest.approx(20.0 * FS)
    assert len(read(tmp_path / "a.traj", ":")) == 6
    assert (tmp_path / "log").read_text().split("\n")[-2].split()[0] == "0.0200"  # ps
    assert read(tmp_path / "a.traj", -1).get_potential_energy() == atoms.get_potential_energy()


def wells(stiffness: float = 5.0, n: int = 300) -> Atoms:
    rng = np.random.default_rng(0)
    atoms = Atoms("H" * n, rng.normal(0, np.sqrt(units.kB * 300 / stiffness), (n, 3)))
    atoms.set_momenta(rng.normal(size=(n, 3)) * np.sqrt(atoms.get_masses()[:, None] * units.kB * 300))
    atoms.calc = Wells(stiffness)
    return atoms


@pytest.mark.parametrize("wrong", [0.7, 1.4])
def test_langevin_samples_the_teacher_whatever_the_student(wrong: float) -> None:
    atoms = wells()
    dyn = MTSLangevin(
        atoms, 1.0 * FS, inner=Wells(wrong * 5.0), k=4, temperature_K=300.0, friction=0.1 / FS, fixcm=False, rng=1
    )
    positions, momenta = [], []
    dyn.run(200)
    for _ in dyn.irun(2000):
        positions.append((atoms.positions**2).mean())
        momenta.append((atoms.get_velocities() ** 2).mean() * atoms.get_masses()[0])
    kT = units.kB * 300.0
    for values, expected in ((positions, kT / 5.0), (momenta, kT)):
        blocks = np.array(values[: 20 * 100]).reshape(20, 100).mean(axis=1)
        assert abs(blocks.mean() - expected) < 5 * blocks.std(ddof=1) / np.sqrt(20)
        assert blocks.std(ddof=1) / np.sqrt(20) < 0.01 * expected, "too short to tell"


def test_langevin_with_a_fixed_centre_of_mass_heats_the_other_degrees_of_freedom_to_the_target() -> None:
    atoms = wells(n=4)
    atoms.calc = Wells(0.0)  # free particles
    Stationary(atoms)
    dyn = MTSLangevin(atoms, 1.0 * FS, inner=Wells(0.0), k=1, temperature_K=300.0, friction=0.2 / FS, rng=3)
    kinetic = [atoms.get_kinetic_energy() for _ in dyn.irun(20000)]
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-12)
    blocks = np.array(kinetic[:20000]).reshape(40, 500).mean(axis=1) / (1.5 * units.kB)  # K · (N − 1)
    assert abs(blocks.mean() - 300.0 * 3) < 5 * blocks.std(ddof=1) / np.sqrt(40)


def test_langevin_without_friction_is_newton() -> None:
    a, b = cluster(), cluster()
    MTSLangevin(a, 4.0 * FS, inner=student(), k=4, temperature_K=300.0, friction=0.0).run(20)
    MTSVelocityVerlet(b, 4.0 * FS, inner=student(), k=4).run(20)
    np.testing.assert_allclose(a.positions, b.positions, atol=1e-10)


def start(kind: str, atoms: Atoms, path: Path | None, **changes: object) -> MTSVelocityVerlet | MTSLangevin:
    settings: dict = {"inner": student(), "k": 3, "restart": path, "restart_interval": 2, **changes}
    if kind == "verlet":
        return MTSVelocityVerlet(atoms, 4.0 * FS, **settings)
    return MTSLangevin(atoms, 4.0 * FS, **{"temperature_K": 300.0, "friction": 0.02 / FS, "rng": 5, **settings})


@pytest.mark.parametrize("kind", ["verlet", "langevin"])
def test_a_resumed_run_is_the_undisturbed_one_to_the_last_bit(kind: str, tmp_path: Path) -> None:
    whole = cluster()
    start(kind, whole, None).run(21)
    first = cluster()
    start(kind, first, tmp_path / "run.npz").run(9)
    second = cluster()
    dyn = start(kind, second, tmp_path / "run.npz", **({"rng": 99} if kind == "langevin" else {}))
    assert dyn.nsteps == 9
    assert same(first, second)
    dyn.run(12)
    assert same(whole, second)
    assert dyn.get_time() == pytest.approx(84.0 * FS)


def test_a_restart_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    start("langevin", cluster(), path).run(2)
    with pytest.raises(InputError, match=r"k = \[3\].*this one has k = \[2\]"):
        start("langevin", cluster(), path, k=2)
    with pytest.raises(InputError, match="MTSLangevin"):
        start("verlet", cluster(), path)
    with pytest.raises(InputError, match="other atoms"):
        start("langevin", wells(n=5), path)
    with pytest.raises(InputError, match="MT19937"):
        start("langevin", cluster(), path, rng=np.random.Generator(np.random.MT19937(1)))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot be read"):
        start("langevin", cluster(), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "whole numbers"),
        ({"k": 2.5}, "whole numbers"),
        ({"k": [2, 2]}, "every calculator its k"),
        ({"temperature_K": -1.0}, "0 or more"),
        ({"friction": np.nan}, "0 or more"),
        ({"friction": np.ones(3)}, "one for each atom"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict, message: str) -> None:
    settings = {"inner": student(), "k": 2, "temperature_K": 300.0, "friction": 0.01, **change}
    with pytest.raises(InputError, match=message):
        MTSLangevin(cluster(), 4.0 * FS, **settings)


def test_atoms_without_a_teacher_are_refused() -> None:
    with pytest.raises(InputError, match="no calculator"):
        MTSVelocityVerlet(molecule("H2O"), 1.0 * FS, inner=EMT(), k=2)


@pytest.mark.parametrize("old", [np.random.RandomState(3), np.random])
def test_the_generators_that_ase_takes_are_taken(old, tmp_path: Path) -> None:
    """As a source of the noise; a restart file could not bring them back, and is refused."""
    atoms = Icosahedron("Cu", 2)
    atoms.calc = EMT()
    settings = {"inner": EMT(), "k": 2, "temperature_K": 300.0, "friction": 0.01 / units.fs, "rng": old}
    dyn = MTSLangevin(atoms, 4.0 * units.fs, **settings)
    assert dyn.rng is old
    dyn.run(2)
    assert np.abs(atoms.get_momenta()).max() > 0
    with pytest.raises(InputError, match=r"can save a numpy Generator only"):
        MTSLangevin(atoms, 4.0 * units.fs, **settings, restart=tmp_path / "run.npz")
