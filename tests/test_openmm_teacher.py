"""OpenMM as a teacher: energies on paper, gradients, cells in any orientation, and Systems that do not fit."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write
from scipy.spatial.transform import Rotation

from distillase.ase_calcs.contract import check_calculator
from distillase.ase_calcs.errors import InputError, MissingDependency, TeacherError
from distillase.ase_calcs.teachers import (
    make_teacher,
    parse_teacher,
    teacher_files,
    teacher_names,
    teacher_settings,
    teacher_version,
)

pytest.importorskip("openmm")

import openmm
from openmm import app, unit

from distillase.ase_calcs.teachers.openmm_system import reduced_box

# Alanine dipeptide, ACE-ALA-NME.
DIPEPTIDE = """\
HETATM    1  CH3 ACE A   1       1.988   2.141   0.067  1.00  0.00           C
HETATM    2  H1  ACE A   1       1.394   2.622   0.841  1.00  0.00           H
HETATM    3  H2  ACE A   1       1.974   1.061   0.204  1.00  0.00           H
HETATM    4  H3  ACE A   1       1.586   2.393  -0.913  1.00  0.00           H
HETATM    5  C   ACE A   1       3.415   2.625   0.170  1.00  0.00           C
HETATM    6  O   ACE A   1       4.302   1.863   0.535  1.00  0.00           O
ATOM      7  N   ALA A   2       3.628   3.894  -0.159  1.00  0.00           N
ATOM      8  H   ALA A   2       2.834   4.468  -0.408  1.00  0.00           H
ATOM      9  CA  ALA A   2       4.921   4.575  -0.116  1.00  0.00           C
ATOM     10  HA  ALA A   2       5.483   4.232   0.755  1.00  0.00           H
ATOM     11  CB  ALA A   2       5.695   4.209  -1.394  1.00  0.00           C
ATOM     12  HB1 ALA A   2       5.124   4.514  -2.272  1.00  0.00           H
ATOM     13  HB2 ALA A   2       5.856   3.131  -1.428  1.00  0.00           H
ATOM     14  HB3 ALA A   2       6.665   4.705  -1.411  1.00  0.00           H
ATOM     15  C   ALA A   2       4.721   6.099   0.002  1.00  0.00           C
ATOM     16  O   ALA A   2       3.590   6.584  -0.050  1.00  0.00           O
HETATM   17  N   NME A   3       5.821   6.857   0.119  1.00  0.00           N
HETATM   18  H   NME A   3       6.716   6.389   0.149  1.00  0.00           H
HETATM   19  C   NME A   3       5.811   8.320   0.086  1.00  0.00           C
HETATM   20  H1  NME A   3       5.877   8.662  -0.949  1.00  0.00           H
HETATM   21  H2  NME A   3       4.879   8.697   0.515  1.00  0.00           H
HETATM   22  H3  NME A   3       6.648   8.724   0.656  1.00  0.00           H
END
"""
R0, K, SIGMA, EPSILON, CHARGES = 0.11, 250000.0, 0.3, 0.8, (0.25, -0.25, 0.4)  # nm, kJ/mol/nm², nm, kJ/mol, e


def central_difference(atoms: Atoms, calculator, i: int, axis: int, step: float = 2e-3) -> float:
    """Five-point derivative of the energy, eV/Å."""
    energies = []
    for k in (2, 1, -1, -2):
        moved = atoms.copy()
        moved.positions[i, axis] += k * step
        energies.append(calculator.get_property("energy", moved))
    return (-energies[0] + 8 * energies[1] - 8 * energies[2] + energies[3]) / (12 * step)


def written(system, path: Path) -> str:
    """The teacher's name of a System."""
    path.write_text(openmm.XmlSerializer.serialize(system))
    return f"openmm:{path}"


def three_atoms() -> tuple:
    """C–O with a spring, and an argon that feels both: charges and one Lennard-Jones for all."""
    system = openmm.System()
    for mass in (12.011, 15.999, 39.95):
        system.addParticle(mass)
    bond, pairs = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    bond.addBond(0, 1, R0, K)
    for charge in CHARGES:
        pairs.addParticle(charge, SIGMA, EPSILON)
    pairs.addException(0, 1, 0.0, SIGMA, 0.0)
    system.addForce(bond)
    system.addForce(pairs)
    return system, Atoms("COAr", [[0.1, 0.2, 0.3], [0.2, 0.1, 1.45], [3.0, 1.2, 0.4]])


def water_box(model: str = "tip3p.xml", edge: float = 9.6, switch: float = 0.4) -> tuple:
    """27 flexible waters with particle-mesh Ewald, as a System and as atoms."""
    rng = np.random.default_rng(0)
    atoms, topology = Atoms(), app.Topology()
    chain = topology.addChain()
    for i in range(27):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 180), "z")
        water.rotate(rng.uniform(0, 180), "x")
        water.translate(edge / 3 * np.array([i % 3, i // 3 % 3, i // 9]))
        atoms += water
        residue = topology.addResidue("HOH", chain)
        names = [("O", app.element.oxygen), ("H1", app.element.hydrogen), ("H2", app.element.hydrogen)]
        oxygen, *hydrogens = [topology.addAtom(name, element, residue) for name, element in names]
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    atoms.set_cell([edge] * 3)
    atoms.pbc = True
    topology.setPeriodicBoxVectors(np.eye(3) * edge / 10 * unit.nanometer)
    force_field = app.ForceField(model)
    modeller = app.Modeller(topology, atoms.positions / 10 * unit.nanometer)
    modeller.addExtraParticles(force_field)
    system = force_field.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.45, switchDistance=switch, constraints=None,
        rigidWater=False,
    )  # fmt: skip
    return system, atoms


@pytest.fixture
def peptide(tmp_path: Path) -> tuple[Path, Atoms]:
    path = tmp_path / "ala 2.pdb"  # with a space, as users have them
    path.write_text(DIPEPTIDE)
    return path, read(path)


# --- Systems from files --------------------------------------------------------------------------------------------


def test_energy_and_forces_are_those_on_paper(tmp_path: Path) -> None:
    system, atoms = three_atoms()
    system.getForce(1).setParticleParameters(2, 0.0, SIGMA, EPSILON)
    calculator = make_teacher(written(system, tmp_path / "system.xml"))
    kj = units.kJ / units.mol
    d = atoms.get_all_distances()
    energy = 0.5 * K * kj / 100 * (d[0, 1] - 10 * R0) ** 2
    for i in (0, 1):
        x = (10 * SIGMA / d[i, 2]) ** 6
        energy += 4 * EPSILON * kj * (x**2 - x)
    assert calculator.get_property("energy", atoms) == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(calculator.get_property("charges", atoms), [0.25, -0.25, 0.0])
    np.testing.assert_allclose(
        calculator.get_property("dipole", atoms), 0.25 * (atoms.positions[0] - atoms.positions[1]), atol=1e-12
    )
    # A charge beyond the pair: Coulomb's law, e²/(4πε₀) = 14.39964 eV·Å.
    system.getForce(1).setParticleParameters(2, 1.0, SIGMA, EPSILON)
    cation = make_teacher(written(system, tmp_path / "cation.xml"), charge=1)
    coulomb = 14.399645 * (0.25 / d[0, 2] - 0.25 / d[1, 2])
    assert cation.get_property("energy", atoms) - energy == pytest.approx(coulomb, abs=1e-7)
    with pytest.raises(TeacherError, match=r"charge \+0, but the charges of the System .* add up to \+1\.000"):
        make_teacher(f"openmm:{tmp_path}/cation.xml").get_property("energy", atoms)


@pytest.mark.parametrize(("platform", "step", "tolerance"), [("Reference", 1e-3, 1e-8), ("CPU", 2e-3, 2e-3)])
@pytest.mark.parametrize("model", ["tip3p.xml", "tip4pew.xml"])
def test_forces_are_the_gradient_in_a_cell(tmp_path, model: str, platform: str, step: float, tolerance: float) -> None:
    """The second model has virtual sites, which are no atoms of the structure."""
    system, atoms = water_box(model)
    calculator = make_teacher(f"{written(system, tmp_path / 'water.xml')}?platform={platform}")
    forces = calculator.get_property("forces", atoms).copy()
    assert forces.shape == (81, 3)
    for i, axis in ((0, 0), (1, 1), (5, 2)):
        assert -central_difference(atoms, calculator, i, axis, step) == pytest.approx(forces[i, axis], abs=tolerance)
    reference = make_teacher(f"openmm:{tmp_path}/water.xml").get_property("forces", atoms)
    np.testing.assert_allclose(forces, reference, atol=2e-5)


@pytest.mark.parametrize("model", ["tip3p.xml", "tip4pew.xml"])
def test_a_cell_may_stand_and_be_cut_as_it_likes(tmp_path: Path, model: str) -> None:
    """Turned, left-handed, with long vectors, with molecules across faces, with atoms on faces: one energy."""
    system, atoms = water_box(model)
    calculator = make_teacher(written(system, tmp_path / "water.xml"))
    energy, forces = calculator.get_property("energy", atoms), calculator.get_property("forces", atoms).copy()

    def same(other: Atoms, turned: np.ndarray) -> None:
        assert calculator.get_property("energy", other) == pytest.approx(energy, abs=1e-8)
        np.testing.assert_allclose(calculator.get_property("forces", other) @ turned, forces, atol=1e-6)

    for seed in range(3):  # the first atoms have x = 0, on a face of the box but for rounding
        turn = Rotation.random(random_state=seed).as_matrix()
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ turn.T)
        other.positions = atoms.positions @ turn.T
        same(other, turn)
    for change in ([[1, 0, 0], [1, 1, 0], [-2, 1, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]):
        other = atoms.copy()
        other.set_cell(np.array(change) @ atoms.cell.array)
        same(other, np.eye(3))
    for other in (atoms.copy(), atoms.copy()):
        other.positions += np.random.default_rng(1).integers(-2, 3, (81, 3)) @ atoms.cell.array
        same(other, np.eye(3))


def test_reduced_boxes_are_the_same_lattice() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        cell = rng.normal(size=(3, 3)) * 5
        box, rotation = reduced_box(cell)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1.0)
        change = box @ rotation @ np.linalg.inv(cell)
        np.testing.assert_allclose(change, np.round(change), atol=1e-6)
        assert abs(np.linalg.det(change)) == pytest.approx(1.0)
        assert (np.abs(np.tril(box, -1)) <= 0.5000001 * np.diag(box)).all()
        assert (np.diag(box) > 0).all()


def test_labels_do_not_depend_on_their_order(tmp_path: Path) -> None:
    """Not on the cell before them either: OpenMM keeps the Ewald grid of the first."""
    system, atoms = water_box()
    name = written(system, tmp_path / "water.xml")
    frames = []
    for seed in range(4):
        frame = atoms.copy()
        frame.rattle(0.1, seed=seed)
        frame.set_cell(atoms.cell.array * (1 + 0.3 * seed), scale_atoms=False)
        frames.append(frame)
    fresh = [make_teacher(name).get_property("forces", frame).copy() for frame in frames]
    calculator = make_teacher(name)
    for k in (3, 1, 0, 2, 1, 3):
        assert np.array_equal(calculator.get_property("forces", frames[k]), fresh[k])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("swapped", "Atom 0 is H in the structure (1.008 u), but weighs 15.999 u"),
        ("fewer", "80 atoms, the System of"),
        ("molecule", "set `atoms.cell` and `atoms.pbc = True`"),
        ("small", "cutoff"),
        ("nan", "NaN"),
        ("clash", "not finite"),
    ],
)
def test_structures_that_do_not_fit_are_refused_and_the_next_is_not(tmp_path: Path, change: str, says: str) -> None:
    system, atoms = water_box()
    calculator = make_teacher(written(system, tmp_path / "water.xml"))
    bad = atoms.copy()
    if change == "swapped":
        bad = bad[[1, 0, *range(2, 81)]]
    elif change == "fewer":
        del bad[80]
    elif change == "molecule":
        bad.pbc = False
    elif change == "small":
        bad.set_cell([8.0] * 3)
    elif change == "nan":
        bad.positions[0, 0] = np.nan
    else:
        bad.positions[3] = bad.positions[0]
    with pytest.raises(TeacherError) as error:
        calculator.get_property("energy", bad)
    assert says in str(error.value)
    fresh = make_teacher(f"openmm:{tmp_path}/water.xml").get_property("energy", atoms)
    assert calculator.get_property("energy", atoms) == fresh


def test_a_system_without_a_cell_refuses_periodic_atoms(tmp_path: Path) -> None:
    system, atoms = three_atoms()
    system.getForce(1).setParticleParameters(2, 0.0, SIGMA, EPSILON)
    calculator = make_teacher(written(system, tmp_path / "system.xml"))
    atoms.set_cell([9, 9, 9])
    atoms.pbc = True
    with pytest.raises(TeacherError, match="the System is not"):
        calculator.get_property("energy", atoms)


def test_masses_may_be_repartitioned_but_not_others(tmp_path: Path) -> None:
    system, atoms = water_box()
    for i in range(0, 81, 3):
        system.setParticleMass(i, 15.999 - 4.0)
        system.setParticleMass(i + 1, 3.008)
        system.setParticleMass(i + 2, 3.008)
    name = written(system, tmp_path / "heavy.xml")
    assert np.isfinite(make_teacher(name).get_property("energy", atoms))
    system.setParticleMass(0, 30.0)
    name = written(system, tmp_path / "beads.xml")
    with pytest.raises(TeacherError, match=r"weighs 30\.000 u"):
        make_teacher(name).get_property("energy", atoms)
    assert np.isfinite(make_teacher(f"{name}?masses=ignore").get_property("energy", atoms))


def test_files_that_are_no_system(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        make_teacher(f"openmm:{tmp_path}/absent.xml")
    path = tmp_path / "field.xml"
    path.write_text("<ForceField/>")
    with pytest.raises(InputError, match=r"It is a force field: make a System with `ForceField\.createSystem`"):
        make_teacher(f"openmm:{path}")
    path.write_text(openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))
    with pytest.raises(InputError, match="VerletIntegrator, not a System"):
        make_teacher(f"openmm:{path}")
    system, _ = three_atoms()
    system.addConstraint(0, 1, 0.11)
    with pytest.raises(InputError, match=r"1 distances are constrained .* `constraints=None, rigidWater=False`"):
        make_teacher(written(system, path))
    with pytest.raises(TeacherError, match="closed shells"):
        make_teacher(f"openmm:{path}", multiplicity=2)


# --- amber14 -------------------------------------------------------------------------------------------------------


def test_amber14_is_openmms(peptide) -> None:
    path, atoms = peptide
    force_field = app.ForceField("amber14/protein.ff14SB.xml")
    system = force_field.createSystem(app.PDBFile(io.StringIO(DIPEPTIDE)).topology, nonbondedMethod=app.NoCutoff)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(atoms.positions / 10)
    state = context.getState(getEnergy=True, getForces=True)
    calculator = make_teacher(f"openmm:amber14?pdb='{path}'")
    kj = 0.010364269  # eV per kJ/mol
    assert calculator.get_property("energy", atoms) == pytest.approx(state.getPotentialEnergy()._value * kj, abs=1e-6)
    np.testing.assert_allclose(
        calculator.get_property("forces", atoms), state.getForces(asNumpy=True)._value * kj / 10, atol=1e-6
    )
    assert calculator.get_property("charges", atoms).sum() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("solvation", [None, "obc2"])
@pytest.mark.parametrize(("platform", "step", "tolerance"), [("Reference", 1e-3, 1e-7), ("CPU", 5e-3, 1e-3)])
def test_amber14_forces_are_the_gradient(peptide, solvation, platform: str, step: float, tolerance: float) -> None:
    path, atoms = peptide
    atoms.rattle(0.05, seed=1)
    calculator = make_teacher(f"openmm:amber14?pdb='{path}'&solvation={solvation!r}&platform={platform}")
    forces = calculator.get_property("forces", atoms).copy()
    for i, axis in ((0, 0), (6, 1), (8, 2), (21, 0)):
        assert -central_difference(atoms, calculator, i, axis, step) == pytest.approx(forces[i, axis], abs=tolerance)


def test_water_lowers_the_energy_of_a_peptide(peptide) -> None:
    path, atoms = peptide
    vacuum, water = (make_teacher(f"openmm:amber14?pdb='{path}'&solvation={s!r}") for s in (None, "obc2"))
    assert -1.0 < water.get_property("energy", atoms) - vacuum.get_property("energy", atoms) < -0.3


def test_residues_of_ases_reader_will_do(peptide, tmp_path: Path) -> None:
    path, atoms = peptide
    energy = make_teacher(f"openmm:amber14?pdb='{path}'").get_property("energy", atoms)
    calculator = make_teacher("openmm:amber14")
    assert calculator.get_property("energy", atoms) == pytest.approx(energy, abs=1e-12)
    # Two peptides far from one another: not one chain of six residues, though ASE keeps no chains.
    far = atoms.copy()
    far.positions += 500.0
    assert calculator.get_property("energy", atoms + far) == pytest.approx(2 * energy, abs=1e-3)
    renamed = atoms.copy()
    renamed.arrays["residuenames"][6:16] = "GLY"
    renamed.arrays["atomtypes"][8] = "XX"
    assert calculator.check_state(renamed) != []
    bare = Atoms(atoms.numbers, atoms.positions)
    with pytest.raises(TeacherError, match=r"Give a PDB file .*`openmm:amber14\?pdb=FILE`"):
        calculator.get_property("energy", bare)


def test_peptides_that_do_not_fit(peptide, tmp_path: Path) -> None:
    path, atoms = peptide
    name = f"openmm:amber14?pdb='{path}'"
    with pytest.raises(TeacherError, match=r"charge \+1, but the charges .* add up to .0\.000"):
        make_teacher(name, charge=1).get_property("energy", atoms)
    with pytest.raises(TeacherError, match="Atom 0 is H in the structure and C in"):
        make_teacher(name).get_property("energy", atoms[[1, 0, *range(2, 22)]])
    with pytest.raises(TeacherError, match="21 atoms"):
        make_teacher(name).get_property("energy", atoms[:21])
    periodic = atoms.copy()
    periodic.set_cell([30] * 3)
    periodic.pbc = True
    with pytest.raises(TeacherError, match="computes molecules"):
        make_teacher(name).get_property("energy", periodic)
    bare = tmp_path / "no_hydrogens.pdb"
    bare.write_text("\n".join(line for line in DIPEPTIDE.splitlines() if not line.endswith("H")))
    with pytest.raises(InputError, match=r"missing .*Missing hydrogens are added by PDBFixer"):
        make_teacher(f"openmm:amber14?pdb='{bare}'")
    with pytest.raises(InputError, match="no such file"):
        make_teacher("openmm:amber14?pdb=absent.pdb")
    write(tmp_path / "frame.xyz", atoms, format="xyz")
    with pytest.raises(InputError, match="PDB"):
        make_teacher(f"openmm:amber14?pdb='{tmp_path}/frame.xyz'")


# --- OpenFF --------------------------------------------------------------------------------------------------------


def test_openff_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openff.toolkit", None)
    with pytest.raises(MissingDependency, match="conda-forge openff-toolkit"):
        make_teacher("openmm:openff")


def test_openff_gets_the_molecule_in_the_order_of_the_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a toolkit that makes springs of the bonds it is given; the real one is not on PyPI."""
    pytest.importorskip("rdkit")

    class Molecule:
        def __init__(self, rdkit_molecule):
            self.rdkit = rdkit_molecule

        @classmethod
        def from_rdkit(cls, molecule, allow_undefined_stereo, hydrogens_are_explicit):
            assert hydrogens_are_explicit
            return cls(molecule)

        def to_topology(self):
            return self.rdkit

    class ForceField:
        def __init__(self, name):
            assert name.startswith("openff_unconstrained")

        def create_openmm_system(self, topology, charge_from_molecules):
            assert charge_from_molecules is None
            system, bonds = openmm.System(), openmm.HarmonicBondForce()
            for atom in topology.GetAtoms():
                system.addParticle(atom.GetMass())
            for bond in topology.GetBonds():
                # Short enough a rest length that each bond pulls.
                bonds.addBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), 0.05, 1000 * bond.GetBondTypeAsDouble())
            system.addForce(bonds)
            return system

    toolkit = types.SimpleNamespace(Molecule=Molecule, ForceField=ForceField)
    monkeypatch.setitem(sys.modules, "openff", types.ModuleType("openff"))
    monkeypatch.setitem(sys.modules, "openff.toolkit", toolkit)
    atoms = molecule("CH3CHO")
    calculator = make_teacher("openmm:openff", smiles="CC=O")
    kj = units.kJ / units.mol
    d = atoms.get_all_distances()
    orders = {(6, 8): 2, (6, 6): 1, (1, 6): 1}
    energy = sum(
        0.5 * 10 * kj * orders[tuple(sorted(atoms.numbers[[i, j]]))] * (d[i, j] - 0.5) ** 2
        for i in range(len(atoms))
        for j in range(i)
        if d[i, j] < 1.7 and tuple(sorted(atoms.numbers[[i, j]])) in orders
    )
    assert calculator.get_property("energy", atoms) == pytest.approx(energy, abs=1e-9)
    shuffled = atoms[np.random.default_rng(0).permutation(len(atoms))]
    assert calculator.get_property("energy", shuffled) == pytest.approx(energy, abs=1e-9)


# --- as every teacher ----------------------------------------------------------------------------------------------


def test_copies_and_pickles_compute_the_same(peptide, tmp_path: Path) -> None:
    path, atoms = peptide
    system, box = water_box()
    for name, frame in ((f"openmm:amber14?pdb='{path}'", atoms), (written(system, tmp_path / "water.xml"), box)):
        calculator = make_teacher(name)
        energy = calculator.get_property("energy", frame)
        moved = frame.copy()
        moved.positions[0, 2] += 0.01
        fresh = make_teacher(name).get_property("energy", moved)
        for twin in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
            assert twin.get_property("energy", moved) == fresh != energy
            assert twin.check_state(moved) == []


def test_the_contract_holds_but_for_other_atoms(peptide) -> None:
    """Permuted or single atoms are not those of the PDB file, which is an error and should be."""
    path, atoms = peptide
    report = check_calculator(make_teacher(f"openmm:amber14?pdb='{path}'"), atoms)
    assert {row.name for row in report.failures} == {
        "permutation of atoms permutes forces",
        "one atom keeps its shapes",
    }
    assert all("in `" in row.note or "atoms" in row.note for row in report.failures)


def test_names_settings_and_the_content_of_files(peptide, tmp_path: Path) -> None:
    path, _ = peptide
    assert {"openmm:PATH/TO/system.xml", "openmm:amber14", "openmm:openff"} <= set(teacher_names())
    spec = parse_teacher(f"openmm:{tmp_path}/a/system.xml?platform=CPU&threads=2")
    assert (spec.builtin, spec.options) == (True, {"platform": "CPU", "threads": 2})
    assert parse_teacher(str(spec)) == spec
    assert teacher_version("openmm:amber14").startswith("openmm ")
    assert teacher_settings("openmm:amber14")["solvation"] is None
    name = f"openmm:amber14?pdb='{path}'"
    before = teacher_settings(name)
    assert len(before["pdb_sha256"]) == 64
    path.write_text(DIPEPTIDE.replace("8.724", "8.725"))
    assert teacher_settings(name)["pdb_sha256"] != before["pdb_sha256"]
    assert teacher_files("gfn2-xtb") == {}
    with pytest.raises(InputError, match="no such file"):
        teacher_settings("openmm:absent.xml")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("openmm", "openmm:PATH/TO/system.xml"),
        ("openmm:", "openmm:PATH/TO/system.xml"),
        ("openmm:amber41", "did you mean `openmm:amber14`"),
        ("openmm:system.txt", "openmm:PATH/TO/system.xml"),
        ("openmm:amber14?solvent=obc2", "did you mean `solvation`"),
        ("openmm:amber14?solvation=water", "'obc2'"),
        ("openmm:amber14?platform=GPU", "'Reference' and 'CPU'"),
        ("openmm:amber14?threads=0", "1 or more"),
        ("openmm:a.xml?masses=maybe", "'check' and 'ignore'"),
        ("openmm:a.xml?pdb=b.pdb", "no option `pdb`"),
    ],
)
def test_wrong_names_and_options_are_refused(name: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        make_teacher(name)
    assert says in str(error.value)


def test_labelling_keeps_systems_apart(peptide, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    from distillase.ase_calcs.errors import DataError
    from distillase.datasets.labelling import LabelConfig, label_structures
    from distillase.datasets.store import Dataset
    from distillase.datasets.structure import Structure

    path, atoms = peptide
    frames = []
    for seed in range(4):
        frames.append(atoms.copy())
        frames[-1].rattle(0.03, seed=seed)
    structures = [Structure(frame.numbers, frame.positions, group="ala2") for frame in frames]
    name = f"openmm:amber14?pdb='{path}'"
    result = label_structures(structures, tmp_path / "out", teacher=name, config=LabelConfig(workers=1))
    assert result.refused == []
    with Dataset(result.dataset) as dataset:
        for k, frame in enumerate(frames):
            assert dataset.labels(k).energy == make_teacher(name).get_property("energy", frame)
    path.write_text(DIPEPTIDE.replace("8.724", "8.725"))
    with pytest.raises(DataError, match="Labels of two teachers are never mixed"):
        label_structures(structures, tmp_path / "out", teacher=name, config=LabelConfig(workers=1))
