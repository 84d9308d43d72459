"""OpenMM as a teacher: energies on paper, gradients, cells in any orientation, and Systems that do not fit."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from scipy.spatial.transform import Rotation

from distillase.ase_calcs.contract import check_calculator
from distillase.ase_calcs.errors import InputError, TeacherError
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
from openmm_systems import DIPEPTIDE, EPSILON, R0, SIGMA, K, central_difference, three_atoms, water_box, written

from distillase.ase_calcs.teachers.openmm_system import reduced_box


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
