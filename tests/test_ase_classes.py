"""`PotentialCalculator` under ASE's own machinery: every optimizer, every MD class, vibrations, NEB, files."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil

import ase.md
import ase.optimize
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read
from ase.md.md import MolecularDynamics
from ase.md.switch_langevin import SwitchLangevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.mep import NEB
from ase.optimize.optimize import Optimizer
from ase.vibrations import Vibrations
from potentials import Counting, MorsePotential

from distillase.ase_calcs.calculator import PotentialCalculator


@pytest.fixture
def calc():
    return PotentialCalculator(MorsePotential([1, 6, 8]))


@pytest.fixture
def ethanol(calc):
    return molecule("CH3CH2OH", calculator=calc)


def classes_below(package, base):
    found = set()
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "test" in module.name:
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(cls) and issubclass(cls, base) and cls.__module__.startswith(package.__name__):
                found.add(cls)
    return sorted(found - {base}, key=lambda cls: cls.__name__)


NOT_LOCAL_MINIMISERS = {
    "BFGSClimbFixInternals",  # climbs along a constrained coordinate
    "BasinHopping",  # global
    "SciPyOptimizer",  # abstract
    "SciPyGradientlessOptimizer",  # abstract
    "SciPyFmin",  # energies only, thousands of calls
    "SciPyFminPowell",
    "oldBFGS",  # ASE 3.29 keeps it for reference; it fails with every calculator
}
OPTIMIZERS = [c for c in classes_below(ase.optimize, Optimizer) if c.__name__ not in NOT_LOCAL_MINIMISERS]


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_optimizer_reaches_a_minimum(cls, calc, tmp_path):
    if cls.__name__ == "CellAwareBFGS":
        atoms = bulk("C", "fcc", a=2.0, cubic=True)
        atoms.rattle(0.05, seed=1)
        atoms.calc = calc
        target = FrechetCellFilter(atoms, exp_cell_factor=1.0)
        optimizer = cls(target, logfile=None)
        assert optimizer.run(fmax=0.05, smax=0.01, steps=200)
        return
    atoms = Atoms("C4", 0.57 * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]), calculator=calc)
    atoms.rattle(0.05, seed=1)
    kwargs = {"precon": None} if cls.__name__.startswith("Precon") else {}
    kwargs |= {"dt": 0.05} if cls.__name__ == "MDMin" else {}  # its default is too long for this bond
    optimizer = cls(atoms, logfile=None, trajectory=str(tmp_path / "opt.traj"), **kwargs)
    start = atoms.get_potential_energy()
    optimizer.run(fmax=0.02, steps=300)
    assert np.abs(atoms.get_forces()).max() < 0.02
    assert atoms.get_potential_energy() < start


MD_ARGUMENTS = {
    "timestep": 0.5 * units.fs,
    "temperature_K": 300,
    "friction": 0.02,
    "andersen_prob": 0.1,
    "taut": 50 * units.fs,
    "taup": 500 * units.fs,
    "tdamp": 50 * units.fs,
    "pdamp": 500 * units.fs,
    "T_tau": 50 * units.fs,
    "P_tau": 500 * units.fs,
    "P_mass_factor": 1.0,
    "pressure_au": 0.0,
    "compressibility_au": 4.6e-5 / units.bar,
    "externalstress": 0.0,
    "ttime": 50 * units.fs,
    "pfactor": (500 * units.fs) ** 2 * 1.0,
}


def md_arguments(cls):
    accepted = {name for base in cls.__mro__ if "__init__" in vars(base) for name in inspect.signature(base).parameters}
    # `NVTBerendsen` and friends take a deprecated `temperature` too; only names in the table are given.
    return {name: value for name, value in MD_ARGUMENTS.items() if name in accepted}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("cls", classes_below(ase.md, MolecularDynamics), ids=lambda cls: cls.__name__)
def test_every_md_class_runs_with_one_evaluation_per_geometry(cls, tmp_path):
    calc = Counting(MorsePotential([1, 6, 8]))
    atoms = bulk("C", "fcc", a=2.0, cubic=True)
    atoms.calc = calc
    thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
    if cls is SwitchLangevin:
        twin = PotentialCalculator(MorsePotential([6], depth=1.1))
        md = cls(atoms, calc, twin, 0.5 * units.fs, temperature_K=300, friction=0.02, n_eq=2, n_switch=3)
        md.run()
        assert np.isfinite(md.get_free_energy_difference())
        return
    arguments = md_arguments(cls)
    if cls.__name__ == "MaskedMTKNPT":
        arguments["mask"] = np.array([True, True, False])
    if cls.__name__ == "ContourExploration":
        arguments = {"rng": np.random.RandomState(0)}
    md = cls(atoms, trajectory=str(tmp_path / "md.traj"), logfile=str(tmp_path / "md.log"), **arguments)
    md.run(8)
    assert np.isfinite(atoms.get_total_energy())
    assert np.isfinite(atoms.positions).all()
    frames = read(tmp_path / "md.traj", ":")
    assert frames[-1].get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-12)
    # The first geometries tell what is wanted; from then on none is evaluated twice.
    assert len(calc.calls) <= len(calc.geometries) + 3


def test_nve_conserves_the_energy(ethanol):
    from ase.md.verlet import VelocityVerlet
    from ase.optimize import BFGS

    BFGS(ethanol, logfile=None).run(fmax=0.01, steps=200)
    thermalize_momenta(ethanol, temperature_K=300, rng=np.random.default_rng(0))
    start = ethanol.get_total_energy()
    deviations = []
    md = VelocityVerlet(ethanol, 0.25 * units.fs)
    md.attach(lambda: deviations.append(ethanol.get_total_energy() - start))
    md.run(400)
    assert np.abs(deviations).max() < 2e-3
    assert ethanol.calc.neighbors.n_builds < 50


def test_vibrations_of_a_water_molecule(calc, tmp_path):
    from ase.optimize import BFGS

    atoms = molecule("H2O", calculator=calc)
    BFGS(atoms, logfile=None).run(fmax=1e-5, steps=300)
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    energies = vibrations.get_energies()
    assert np.abs(energies[:6]).max() < 1e-3  # three translations, three rotations
    assert np.isrealobj(energies[6:]) or np.abs(energies[6:].imag).max() == 0
    assert energies[6:].real.min() > 0.02


@pytest.mark.parametrize("shared", [True, False])
def test_neb_with_shared_and_with_separate_calculators(calc, shared):
    from ase.optimize import FIRE

    start = Atoms("OH2", [[0, 0, 0], [0.95, 0, 0], [-0.3, 0.9, 0]])
    end = Atoms("OH2", [[0, 0, 0], [0.95, 0, 0], [-0.3, -0.9, 0]])
    images = [start, *(start.copy() for _ in range(3)), end]
    for image in images:
        image.calc = calc if shared else copy.deepcopy(calc)
    neb = NEB(images, method="improvedtangent", allow_shared_calculator=shared)
    neb.interpolate()
    images[2].positions[2, 0] -= 0.5  # around the oxygen
    FIRE(neb, logfile=None).run(fmax=0.5, steps=10)
    assert np.isfinite(neb.get_forces()).all()
    energies = [image.get_potential_energy() for image in images]
    fresh = [r["energy"] for r in calc.calculate_many(images, ["energy"])]
    np.testing.assert_allclose(energies, fresh, atol=1e-10)


def test_trajectories_and_databases_keep_what_was_calculated(ethanol, tmp_path):
    energy, forces = ethanol.get_potential_energy(), ethanol.get_forces()
    with Trajectory(tmp_path / "a.traj", "w") as trajectory:
        trajectory.write(ethanol)
        ethanol.positions[0] += 0.1  # not calculated: must not be written with the old energy
        trajectory.write(ethanol)
    first, second = read(tmp_path / "a.traj", ":")
    assert first.get_potential_energy() == energy
    np.testing.assert_array_equal(first.get_forces(), forces)
    assert second.calc is None or "energy" not in second.calc.results
    ethanol.get_forces()
    with connect(tmp_path / "a.db") as database:
        database.write(ethanol)
    assert connect(tmp_path / "a.db").get(1).energy == ethanol.get_potential_energy()
    ethanol.write(tmp_path / "a.xyz", format="extxyz")
    assert read(tmp_path / "a.xyz").get_potential_energy() == pytest.approx(ethanol.get_potential_energy(), abs=1e-6)
