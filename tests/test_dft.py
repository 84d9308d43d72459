"""The PySCF teacher: a published energy, gradients, one SCF for everything, spin, failures, names."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from distillase.ase_calcs.errors import InputError, TeacherError
from distillase.ase_calcs.teachers import make_teacher, parse_teacher, teacher_settings, teacher_version
from distillase.ase_calcs.units import BOHR, HARTREE

pytest.importorskip("pyscf")

from distillase.ase_calcs.teachers.dft import PySCFCalculator

# Water of Crawford's programming projects (github.com/CrawfordGroup/ProgrammingProjects, project 3), in Bohr.
WATER = Atoms(
    "OH2",
    BOHR
    * np.array(
        [[0.0, -0.143225816552, 0.0], [1.638036840407, 1.136548822547, 0.0], [-1.638036840407, 1.136548822547, 0.0]]
    ),
)
WATER_HF_STO3G = -74.942079928192  # Hartree
WATER_DIPOLE = 0.603521296526  # e·Bohr, same source


def hf(**kwargs) -> PySCFCalculator:
    return PySCFCalculator("HF", "STO-3G", **{"density_fit": False, "tolerance": 1e-11, **kwargs})


def water(calculator=None) -> Atoms:
    atoms = WATER.copy()
    atoms.calc = calculator if calculator is not None else hf()
    return atoms


def test_water_has_its_published_energy_and_dipole() -> None:
    atoms = water()
    assert atoms.get_potential_energy() == pytest.approx(WATER_HF_STO3G * HARTREE, abs=1e-6)
    assert np.linalg.norm(atoms.get_dipole_moment()) == pytest.approx(WATER_DIPOLE * BOHR, abs=1e-5)
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-8)


@pytest.mark.parametrize("method", ["HF", "PBE"])
def test_forces_are_the_gradient_of_the_energy(method: str) -> None:
    calculator = PySCFCalculator(method, "STO-3G", density_fit=method == "HF", grid=6, tolerance=1e-11)
    atoms = water(calculator)
    forces = atoms.get_forces()
    h = 5e-4
    energies = []
    for sign in (1, -1):
        atoms.positions[1, 0] = WATER.positions[1, 0] + sign * h
        energies.append(atoms.get_potential_energy())
    # Of a functional the grid does not move along, which PySCF leaves out of the gradient.
    assert forces[1, 0] == pytest.approx((energies[1] - energies[0]) / (2 * h), abs=2e-5 if method == "HF" else 2e-3)
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-6 if method == "HF" else 2e-3)


@pytest.mark.parametrize("guess", ["cold", "warm"])
@pytest.mark.parametrize("first", ["energy", "forces"])
def test_one_scf_gives_energy_and_forces_in_either_order(guess: str, first: str) -> None:
    calculator = hf(guess=guess)
    atoms = water(calculator)
    for name in (first, "forces", "energy", "dipole", "charges"):
        calculator.get_property(name, atoms)
    assert calculator.scf_runs == 1
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert calculator.scf_runs == 2


def test_a_cold_label_does_not_depend_on_the_one_before_it() -> None:
    other = WATER.copy()
    other.rattle(0.1, seed=1)
    calculator = hf()
    fresh = hf().get_property("forces", WATER)
    calculator.get_property("forces", other)
    # Two threads add in no fixed order; a warm guess would leave a thousand times more.
    np.testing.assert_allclose(calculator.get_property("forces", WATER), fresh, atol=1e-10)
    warm = hf(guess="warm")
    warm.get_property("forces", other)
    np.testing.assert_allclose(warm.get_property("forces", WATER), fresh, atol=1e-5)
    assert warm.get_property("energy", molecule("CH4")) < 0  # a density of another size is not tried


def test_charge_and_multiplicity_are_those_of_the_calculator() -> None:
    radical = molecule("OH")
    doublet = hf(multiplicity=2).get_property("energy", radical)
    anion = hf(charge=-1).get_property("energy", radical)
    assert abs(doublet - anion) > 1.0
    with pytest.raises(TeacherError, match="cannot have multiplicity 1"):
        hf().get_property("energy", radical)
    assert hf(charge=-1).get_property("charges", radical).sum() == pytest.approx(-1.0, abs=1e-8)


def test_an_scf_that_does_not_converge_is_tried_in_all_ways_and_then_refused() -> None:
    calculator = hf(max_cycle=1)
    with pytest.raises(TeacherError, match=r"did not converge.*3 ways"):
        calculator.get_property("energy", molecule("C6H6"))
    assert calculator.scf_runs == 3
    assert calculator.results == {}


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("H2", [(0, 0, 0), (0, 0, np.nan)]), "NaN"),
        (Atoms("H2", [(0, 0, 0), (0, 0, 0.7)], cell=[9, 9, 9], pbc=True), "periodic"),
        (Atoms("Pu", [(0, 0, 0)]), "basis `STO-3G`"),
    ],
)
def test_structures_that_cannot_be_computed(atoms: Atoms, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        hf().get_property("energy", atoms)


def test_copies_and_pickles_compute_the_same() -> None:
    calculator = hf(guess="warm")
    energy = calculator.get_property("energy", WATER)
    moved = WATER.copy()
    moved.positions[0, 0] += 0.02
    for twin in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert twin.get_property("energy", WATER) == energy
        assert twin.get_property("forces", WATER).shape == (3, 3)
        assert twin.get_property("energy", moved) == pytest.approx(calculator.get_property("energy", moved), abs=1e-8)


def test_names_in_the_registry() -> None:
    spec = parse_teacher("pyscf:B3LYP/6-31G*?grid=4&density_fit=False")
    assert (spec.name, spec.builtin, spec.options) == ("pyscf:B3LYP/6-31G*", True, {"grid": 4, "density_fit": False})
    assert teacher_settings("pyscf:HF/STO-3G?guess=warm")["guess"] == "warm"
    assert teacher_version("pyscf:HF/STO-3G").startswith("pyscf ")
    teacher = make_teacher("pyscf:HF/STO-3G?density_fit=False&device=cpu", charge=1, multiplicity=2)
    assert (teacher.charge, teacher.multiplicity, teacher.runs_on) == (1, 2, "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pyscf", "pyscf:METHOD/BASIS"),
        ("pyscf:PBE", "pyscf:METHOD/BASIS"),
        ("pyscf:/STO-3G", "pyscf:METHOD/BASIS"),
        ("pyscf:PBE/STO-3G?gird=3", "did you mean `grid`"),
        ("pyscf:PBEE/STO-3G", "no functional `PBEE`"),
        ("pyscf:PBE/STO-3G?grid=12", "0 to 9"),
        ("pyscf:PBE/STO-3G?guess=lukewarm", "'cold' and 'warm'"),
        ("pyscf:PBE/STO-3G?dispersion=d2", "'d3bj'"),
    ],
)
def test_wrong_names_and_options_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_teacher(name)


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="GPU4PySCF is not installed"):
        hf(device="gpu")
    assert hf(device="auto").runs_on == "cpu"


def test_dispersion_attracts_what_hartree_fock_repels() -> None:
    pair = Atoms("He2", [(0, 0, 0), (0, 0, 3.2)])
    apart = Atoms("He2", [(0, 0, 0), (0, 0, 12.0)])

    def binding(dispersion: str | None) -> float:
        calculator = hf(dispersion=dispersion)
        return calculator.get_property("energy", pair) - calculator.get_property("energy", apart)

    assert binding("d3bj") < 0 < binding(None) + 1e-4
    assert binding("d3bj") < binding(None) - 1e-4
