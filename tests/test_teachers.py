"""Teachers: the registry, xTB through tblite, MMFF94 through RDKit."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes

from distillase.ase_calcs.errors import InputError, MissingDependency, TeacherError
from distillase.ase_calcs.teachers import (
    check_electron_count,
    make_teacher,
    parse_teacher,
    teacher_names,
    teacher_settings,
    teacher_version,
)
from distillase.ase_calcs.teachers.mmff94 import MMFF94Calculator
from distillase.ase_calcs.units import DEBYE

XTB = ("gfn1-xtb", "gfn2-xtb")


class ChargedCalculator(Calculator):
    """A calculator that says how it was made."""

    implemented_properties = ["energy"]  # noqa: RUF012

    def __init__(self, charge: int = 0, multiplicity: int = 1, scale: float = 1.0, name: str = ""):
        super().__init__()
        self.made_with = (charge, multiplicity, scale, name)

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0}


def embedded(smiles: str, seed: int = 7) -> Atoms:
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    mol = chem.AddHs(chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, seed) == 0
    return Atoms([a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())


def rattled(atoms: Atoms, count: int, sigma: float = 0.05) -> list[Atoms]:
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(count):
        frame = atoms.copy()
        frame.positions += rng.normal(0.0, sigma, frame.positions.shape)
        frames.append(frame)
    return frames


def central_difference(atoms: Atoms, calculator: Calculator, i: int, axis: int, step: float) -> float:
    """Five-point derivative of the energy, eV/Å; the error is of fourth order in the step (Å)."""
    energies = []
    for k in (2, 1, -1, -2):
        moved = atoms.copy()
        moved.positions[i, axis] += k * step
        energies.append(calculator.get_property("energy", moved))
    return (-energies[0] + 8 * energies[1] - 8 * energies[2] + energies[3]) / (12 * step)


# --- registry ------------------------------------------------------------------------------------------------------


def test_builtin_names_are_there():
    assert {"gfn1-xtb", "gfn2-xtb", "mmff94"} <= set(teacher_names())


def test_labelling_processes_do_not_load_torch():
    code = "import sys, distillase.ase_calcs.teachers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_options_are_literals_and_the_canonical_name_round_trips():
    spec = parse_teacher("a.b:Make?x=1e-3&flag=False&device=cpu&t=('alpb', 'water')&n=None")
    assert spec.options == {"x": 1e-3, "flag": False, "device": "cpu", "t": ("alpb", "water"), "n": None}
    assert parse_teacher(str(spec)) == spec
    assert str(parse_teacher("gfn2-xtb?electronic_temperature=500&accuracy=1")) == str(
        parse_teacher("gfn2-xtb?accuracy=1&electronic_temperature=500")
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gfn2xtb", "did you mean `gfn2-xtb`"),
        ("GFN2-xTB", "did you mean `gfn2-xtb`"),
        ("nonsense", "module:Class"),
        ("gfn2-xtb?acuracy=1", "did you mean `accuracy`"),
        ("gfn2-xtb?accuracy", "key=value"),
        ("gfn2-xtb?accuracy=1&accuracy=2", "twice"),
        ("gfn2-xtb?accuracy=-1", "positive"),
        ("gfn2-xtb?guess=lukewarm", "cold"),
        ("gfn2-xtb?solvation=water", "alpb"),
        ("ase.calculators.emt:EMTT", "did you mean `EMT`"),
        ("ase.calculators.emt:EMT?asap_cutof=True", "did you mean `asap_cutoff`"),
        ("ase.calculators.emt:EMT?asap_cutoff=true", "`True`"),
        (f"{__name__}:ChargedCalculator?unknown_thing=3", "takes no `unknown_thing`"),
        ("ase.units:kB", "not a class"),
        ("ase.atoms:Atoms", "not an ASE calculator"),
    ],
)
def test_wrong_names_are_explained(name, says):
    with pytest.raises(InputError) as error:
        make_teacher(name)
    assert says in str(error.value)


def test_a_missing_module_is_said_so():
    with pytest.raises(MissingDependency, match="no_such_module"):
        make_teacher("no_such_module:Calculator")


def test_charge_and_multiplicity_reach_any_calculator():
    made = make_teacher(f"{__name__}:ChargedCalculator?scale=2.0&name=abc", charge=-1, multiplicity=2)
    assert made.made_with == (-1, 2, 2.0, "abc")
    # Said in the name, they are the user's.
    assert make_teacher(f"{__name__}:ChargedCalculator?charge=3", charge=-1).made_with[0] == 3


def test_a_calculator_without_charge_refuses_a_charged_structure():
    name = "ase.calculators.emt:EMT"
    assert make_teacher(name) is not None
    with pytest.raises(TeacherError, match="takes no argument `charge`"):
        make_teacher(name, charge=1)
    with pytest.raises(TeacherError, match="takes no argument `multiplicity`"):
        make_teacher(name, multiplicity=3)
    assert make_teacher(f"{name}?charge_from_info=True", charge=1) is not None


def test_versions_and_settings_for_provenance():
    from importlib.metadata import version

    assert teacher_version("gfn2-xtb") == f"tblite {version('tblite')}"
    assert teacher_version("ase.calculators.emt:EMT") == f"ase {version('ase')}"
    settings = teacher_settings("gfn2-xtb?electronic_temperature=500")
    assert settings["accuracy"] == 0.1
    assert settings["electronic_temperature"] == 500


@pytest.mark.parametrize(
    ("numbers", "charge", "allowed"),
    [([8, 1, 1], 0, {1, 3, 5, 7, 9, 11}), ([7, 1, 1, 1, 1], 1, {1, 3, 5, 7, 9, 11}), ([1], 0, {2}), ([1], 1, {1})],
)
def test_parity_of_electrons(numbers, charge, allowed):
    for multiplicity in range(-1, 14):
        if multiplicity in allowed:
            check_electron_count(np.array(numbers), charge, multiplicity)
        else:
            with pytest.raises(TeacherError):
                check_electron_count(np.array(numbers), charge, multiplicity)


# --- xTB -----------------------------------------------------------------------------------------------------------


def test_water_agrees_with_published_numbers():
    """Against what we did not compute: tblite's documentation, at its default accuracy, and experiment."""
    pytest.importorskip("tblite")
    water = molecule("H2O")
    water.calc = make_teacher("gfn2-xtb")
    assert water.get_potential_energy() == pytest.approx(-137.96777594361677, abs=1e-6)  # eV
    assert water.get_forces()[0, 2] == pytest.approx(-0.749527, abs=2e-5)  # eV/Å
    dipole = np.linalg.norm(water.get_dipole_moment())  # e·Å; in Debye or e·Bohr it would be 2.29 or 0.90
    assert dipole == pytest.approx(0.476, abs=1e-3)
    # 1.855 D from microwave spectra (10.1063/1.1679935); GFN2 makes the dipole about a quarter too large.
    assert dipole / DEBYE == pytest.approx(1.855, rel=0.3)
    water.calc = make_teacher("gfn1-xtb")
    assert water.get_potential_energy() == pytest.approx(-156.96750590276173, abs=1e-6)
    np.testing.assert_allclose(water.get_charges(), [-0.66558478, 0.33279239, 0.33279239], atol=1e-5)


@pytest.mark.parametrize("name", XTB)
def test_xtb_forces_and_stress_are_derivatives(name):
    pytest.importorskip("tblite")
    calculator = make_teacher(f"{name}?accuracy=1e-4")
    frame = rattled(molecule("CH3OH"), 1)[0]
    forces = calculator.get_property("forces", frame).copy()
    for i, axis in ((0, 0), (1, 1), (3, 2)):
        assert -central_difference(frame, calculator, i, axis, 5e-3) == pytest.approx(forces[i, axis], abs=1e-6)
    crystal = molecule("H2O")
    crystal.set_cell([[4.0, 0.2, 0.0], [0.0, 4.2, 0.1], [0.0, 0.0, 4.4]])
    crystal.pbc = True
    stress = calculator.get_property("stress", crystal).copy()
    for voigt, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
        energies = []
        for step in (2.5e-4, -2.5e-4):
            strain = np.eye(3)
            strain[i, j] += step / 2
            strain[j, i] += step / 2
            strained = crystal.copy()
            strained.set_cell(crystal.cell.array @ strain, scale_atoms=True)
            energies.append(calculator.get_property("energy", strained))
        assert (energies[0] - energies[1]) / 5e-4 / crystal.get_volume() == pytest.approx(stress[voigt], abs=3e-6)


@pytest.mark.parametrize("name", [*XTB, "mmff94"])
def test_labels_do_not_depend_on_their_order(name):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    frames = rattled(molecule("CH3CH2OH"), 8, sigma=0.08)
    fresh = [make_teacher(name).get_property("forces", frame).copy() for frame in frames]
    calculator = make_teacher(name)
    for k in np.random.default_rng(0).permutation(len(frames)).tolist() * 2:
        assert np.array_equal(calculator.get_property("forces", frames[k]), fresh[k])


def test_a_warm_guess_would_depend_on_the_order():
    """Why labels are cold: if this ever fails, the cold guess is not needed any more."""
    pytest.importorskip("tblite")
    frames = rattled(molecule("CH3CH2OH"), 4)
    warm = make_teacher("gfn2-xtb?guess=warm")
    there = [warm.get_property("forces", frame).copy() for frame in frames]
    warm.reset()
    back = [warm.get_property("forces", frame).copy() for frame in frames[::-1]][::-1]
    assert not np.array_equal(there[2], back[2])


def test_ammonium_needs_its_charge():
    pytest.importorskip("tblite")
    bond = 1.0301 / 3**0.5  # Å, GFN2's own N–H bond in NH4+ is within 0.02 Å of experiment's 1.03
    ammonium = Atoms("NH4", bond * np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]))
    cation = make_teacher("gfn2-xtb", charge=1)
    assert np.abs(cation.get_property("forces", ammonium)).max() < 0.5  # eV/Å
    assert cation.get_property("charges", ammonium).sum() == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(TeacherError, match="11 electrons"):
        make_teacher("gfn2-xtb").get_property("energy", ammonium)


def test_multiplicity_reaches_xtb():
    pytest.importorskip("tblite")
    oxygen = molecule("O2")
    name = "gfn2-xtb?spin_polarization=1.0"
    triplet, singlet = (make_teacher(name, 0, m).get_property("energy", oxygen) for m in (3, 1))
    assert triplet < singlet - 0.3  # Hund; in nature 0.98 eV
    hydrogen = molecule("H2")
    triplet, singlet = (make_teacher("gfn2-xtb", 0, m).get_property("energy", hydrogen) for m in (3, 1))
    assert triplet > singlet + 5.0  # eV; the antibonding orbital is filled, 10.6 in nature


@pytest.mark.parametrize(
    ("name", "atoms", "says"),
    [
        ("gfn2-xtb?max_iterations=2", molecule("CH3CH2OH"), "not converged"),
        ("gfn2-xtb", Atoms("Fm"), "Z >86"),
        ("gfn2-xtb", Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), "NaN"),
        ("gfn2-xtb", Atoms("H2", [[0, 0, 0], [0, 0, 0]]), "close"),
        ("gfn2-xtb", Atoms(), "no atoms"),
        ("mmff94", Atoms(), "no atoms"),
        ("mmff94", bulk("C", cubic=True), "periodic"),
        ("mmff94", Atoms("H2", [[0, 0, 0], [0, 0, np.inf]]), "NaN"),
    ],
)
def test_failures_are_reasons_and_the_calculator_survives(name, atoms, says):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    calculator = make_teacher(name)
    with pytest.raises(TeacherError, match=says):
        calculator.get_property("energy", atoms)
    good = molecule("H2O") if "max" not in name else Atoms("He")
    fresh = make_teacher(name).get_property("energy", good)
    assert calculator.get_property("energy", good) == fresh


@pytest.mark.parametrize("name", ["gfn2-xtb", "mmff94"])
def test_teachers_pickle_and_copy(name):
    pytest.importorskip("tblite")
    pytest.importorskip("rdkit")
    water = molecule("H2O")
    calculator = make_teacher(name)
    energy = calculator.get_property("energy", water)
    water.positions[0, 2] += 0.01
    fresh = make_teacher(name).get_property("energy", water)
    for twin in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert twin.get_property("energy", water) == fresh != energy


# --- MMFF94 --------------------------------------------------------------------------------------------------------

MOLECULES = [
    ("CCO", 0),
    ("ICI", 0),
    ("C[NH3+]", 1),
    ("CC(=O)[O-]", -1),
    ("C[N+](=O)[O-]", 0),
    ("CC(=O)Oc1ccccc1C(=O)O", 0),
]


@pytest.mark.parametrize(("smiles", "charge"), MOLECULES)
def test_mmff94_forces_are_the_gradient(smiles, charge):
    frame = rattled(embedded(smiles), 1, sigma=0.03)[0]
    calculator = make_teacher("mmff94", charge, smiles=smiles)
    forces = calculator.get_property("forces", frame).copy()
    for i in range(0, len(frame), 2):
        for axis in range(3):
            assert -central_difference(frame, calculator, i, axis, 1e-3) == pytest.approx(forces[i, axis], abs=1e-6)
    assert calculator.get_property("charges", frame).sum() == pytest.approx(charge, abs=1e-9)


def test_mmff94_energy_agrees_with_rdkit_in_kcal_per_mol():
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    mol = chem.AddHs(chem.MolFromSmiles("CC(=O)Nc1ccc(O)cc1"))
    AllChem.EmbedMolecule(mol, 1)
    field = AllChem.MMFFGetMoleculeForceField(mol, AllChem.MMFFGetMoleculeProperties(mol))
    atoms = Atoms([a.GetAtomicNum() for a in mol.GetAtoms()], mol.GetConformer().GetPositions())
    energy = MMFF94Calculator(molecule=mol).get_property("energy", atoms)
    assert energy == pytest.approx(field.CalcEnergy() * 0.0433641, rel=1e-5)  # kcal/mol in eV


@pytest.mark.parametrize(("smiles", "charge"), MOLECULES)
def test_mmff94_finds_the_bonds_in_any_atom_order(smiles, charge):
    atoms = embedded(smiles)
    order = np.random.default_rng(5).permutation(len(atoms))
    forces = make_teacher("mmff94", charge, smiles=smiles).get_property("forces", atoms)
    for known in (smiles, ""):  # bond orders from the SMILES, and perceived
        shuffled = make_teacher("mmff94", charge, smiles=known).get_property("forces", atoms[order])
        np.testing.assert_allclose(shuffled, forces[order], atol=1e-9)


def test_mmff94_refuses_what_it_cannot_describe():
    ethanol = embedded("CCO")
    with pytest.raises(TeacherError, match="does not have the bonds"):
        make_teacher("mmff94", smiles="COC").get_property("energy", ethanol)
    with pytest.raises(TeacherError, match="the structure"):
        make_teacher("mmff94", smiles="CCC").get_property("energy", ethanol)
    with pytest.raises(TeacherError, match="charge"):
        make_teacher("mmff94", smiles="CC[O-]").get_property("energy", ethanol)
    with pytest.raises(TeacherError, match="closed shells"):
        make_teacher("mmff94", multiplicity=3)
    with pytest.raises(TeacherError, match="no parameters"):
        make_teacher("mmff94", smiles="CB(C)C").get_property("energy", embedded("CB(C)C"))
