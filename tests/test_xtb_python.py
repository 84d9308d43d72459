"""xTB and GFN-FF through xtb-python: against tblite and published energies, and what the library must not do to us."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from distillase.ase_calcs.contract import check_calculator
from distillase.ase_calcs.errors import InputError, MissingDependency, TeacherError
from distillase.ase_calcs.teachers import make_teacher, parse_teacher, teacher_settings, teacher_version, xtb_python
from distillase.ase_calcs.units import BOHR, DEBYE, HARTREE

NAMES = ("gfn1-xtb@xtb", "gfn2-xtb@xtb", "gfn-ff")
# The molecule of `test_gfnff_sp` in xtb's own tests (test/unit/test_gfnff.f90, v6.5.1).
PHOSPHANE = Atoms(
    "NPF2H4",
    BOHR
    * np.array(
        [
            [1.50040286526241, -2.88219140061585, 0.0],
            [0.0, 1.90142164792207, 0.0],
            [-0.02649585010919, -5.05651406856634, 0.0],
            [-1.39762821979929, 4.65236211997835, 0.0],
            [2.62205170116282, -3.14316635901963, 1.53958066744940],
            [-1.46489869067775, 0.78885483581631, 1.94964934855945],
            [2.62205170116282, -3.14316635901963, -1.53958066744940],
            [-1.46489869067775, 0.78885483581631, -1.94964934855945],
        ]
    ),
)


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest) -> None:
    if "without_library" not in request.node.name:
        pytest.importorskip("xtb", reason="xtb-python is not installed (it has wheels up to Python 3.11)")


def rattled(name: str, sigma: float = 0.05, seed: int = 1) -> Atoms:
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(seed).normal(0.0, sigma, atoms.positions.shape)
    return atoms


def central_difference(atoms: Atoms, calculator, i: int, axis: int, step: float = 2e-3) -> float:
    """Five-point derivative of the energy, eV/Å."""
    energies = []
    for k in (2, 1, -1, -2):
        moved = atoms.copy()
        moved.positions[i, axis] += k * step
        energies.append(calculator.get_property("energy", moved))
    return (-energies[0] + 8 * energies[1] - 8 * energies[2] + energies[3]) / (12 * step)


@pytest.mark.parametrize("method", ["gfn1-xtb", "gfn2-xtb"])
@pytest.mark.parametrize(("name", "charge", "multiplicity"), [("CH3COOH", 0, 1), ("C6H6", 1, 2), ("OH", 0, 2)])
def test_two_implementations_of_xtb_agree(method: str, name: str, charge: int, multiplicity: int) -> None:
    pytest.importorskip("tblite")
    atoms = rattled(name)
    ours = make_teacher(f"{method}@xtb?accuracy=1e-3", charge, multiplicity)
    other = make_teacher(f"{method}?accuracy=1e-3", charge, multiplicity)
    assert ours.get_property("energy", atoms) == pytest.approx(other.get_property("energy", atoms), abs=1e-6)
    for quantity, tolerance in (("forces", 2e-6), ("charges", 1e-6), ("dipole", 1e-6)):
        np.testing.assert_allclose(
            ours.get_property(quantity, atoms), other.get_property(quantity, atoms), atol=tolerance, err_msg=quantity
        )
    default = make_teacher(f"{method}@xtb", charge, multiplicity)
    np.testing.assert_allclose(default.get_property("forces", atoms), other.get_property("forces", atoms), atol=5e-5)


def test_solvation_agrees_with_tblite() -> None:
    pytest.importorskip("tblite")
    atoms = molecule("CH3COOH")
    ours = make_teacher("gfn2-xtb@xtb?solvent=h2o").get_property("energy", atoms)
    assert ours == pytest.approx(
        make_teacher("gfn2-xtb?solvation=('gbsa', 'water')").get_property("energy", atoms), abs=1e-5
    )
    assert make_teacher("gfn-ff?solvent=h2o").get_property("energy", atoms) < make_teacher("gfn-ff").get_property(
        "energy", atoms
    )


def test_published_energies() -> None:
    """Water of the docstrings of xtb-python, and xtb's own test of GFN-FF."""
    water = Atoms(
        "OH2",
        BOHR
        * np.array(
            [
                [0.0, 0.0, -0.73578586109551],
                [1.44183152868459, 0.0, 0.36789293054775],
                [-1.44183152868459, 0.0, 0.36789293054775],
            ]
        ),
    )
    xtb = make_teacher("gfn2-xtb@xtb")
    assert xtb.get_property("energy", water) == pytest.approx(-5.070451354836705 * HARTREE, abs=1e-6)
    np.testing.assert_allclose(xtb.get_property("charges", water), [-0.56317912, 0.28158956, 0.28158956], atol=1e-6)
    assert xtb.get_property("forces", water)[0, 2] == pytest.approx(5.07156941e-03 * HARTREE / BOHR, abs=1e-5)
    field = make_teacher("gfn-ff")
    assert field.get_property("energy", PHOSPHANE) == pytest.approx(-0.76480130317838 * HARTREE, abs=1e-8)
    norm = np.linalg.norm(field.get_property("forces", PHOSPHANE))
    assert norm == pytest.approx(0.06237477492373 * HARTREE / BOHR, abs=1e-8)
    # 1.855 D from microwave spectra; in units of e·Bohr or Debye the number would be half or five times as large.
    dipole = np.linalg.norm(field.get_property("dipole", molecule("H2O")))
    assert dipole / DEBYE == pytest.approx(1.855, rel=0.1)


@pytest.mark.parametrize(
    "name", ["gfn1-xtb@xtb?accuracy=1e-3", "gfn2-xtb@xtb?accuracy=1e-3", "gfn-ff", "gfn-ff?topology=first"]
)
def test_forces_are_the_gradient_of_the_energy(name: str) -> None:
    atoms = rattled("CH3CONH2")
    calculator = make_teacher(name)
    forces = calculator.get_property("forces", atoms).copy()
    for i, axis in ((0, 0), (1, 1), (2, 2), (5, 0)):
        assert -central_difference(atoms, calculator, i, axis) == pytest.approx(forces[i, axis], abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_labels_do_not_depend_on_their_order(name: str) -> None:
    frames = [rattled("CH3CH2OH", 0.08, seed) for seed in range(6)]
    frames[3].set_distance(2, 3, 2.5, fix=0)  # with other bonds
    fresh = [make_teacher(name).get_property("forces", frame).copy() for frame in frames]
    calculator = make_teacher(name)
    for k in np.random.default_rng(0).permutation(len(frames)).tolist() * 2:
        assert np.array_equal(calculator.get_property("forces", frames[k]), fresh[k])


def test_topology_first_keeps_bonds_and_each_finds_them_anew() -> None:
    ethane = rattled("C2H6", 0.02)
    pulled = ethane.copy()
    half = pulled.positions[:, 2] > pulled.positions[:, 2].mean()
    pulled.positions[half, 2] += 2.0
    each, first = make_teacher("gfn-ff"), make_teacher("gfn-ff?topology=first")
    assert first.get_property("energy", ethane) == each.get_property("energy", ethane)
    kept = first.get_property("energy", pulled)
    assert abs(kept - each.get_property("energy", pulled)) > 0.1
    assert copy.deepcopy(first).get_property("energy", pulled) == kept
    first.reset()
    assert first.get_property("energy", pulled) == each.get_property("energy", pulled)


def test_nothing_is_printed_written_or_read_where_we_are(tmp_path: Path, monkeypatch, capfd) -> None:
    energy = make_teacher("gfn-ff").get_property("energy", PHOSPHANE)
    monkeypatch.chdir(tmp_path)
    for name in (".CHRG", "charges", ".param_gfnff.xtb", "param_gfn2-xtb.txt"):  # xtb would read them
        (tmp_path / name).write_text("1\n")
    before = sorted(os.listdir())
    assert make_teacher("gfn-ff").get_property("energy", PHOSPHANE) == energy
    assert np.isfinite(make_teacher("gfn2-xtb@xtb").get_property("energy", PHOSPHANE))
    assert sorted(os.listdir()) == before
    out, err = capfd.readouterr()
    assert out + err == ""


def test_tblite_and_xtb_python_serve_one_process() -> None:
    pytest.importorskip("tblite")
    atoms = rattled("CH3CH2OH")
    ours, other = make_teacher("gfn2-xtb@xtb"), make_teacher("gfn2-xtb")
    first = [c.single_point(atoms, ("forces",))["forces"] for c in (other, ours)]
    for _ in range(3):
        for calculator, forces in zip((ours, other), first[::-1], strict=True):
            assert np.array_equal(calculator.single_point(atoms, ("forces",))["forces"], forces)


@pytest.mark.parametrize(
    ("name", "atoms", "says"),
    [
        ("gfn2-xtb@xtb?max_iterations=2", molecule("CH3CH2OH"), "did not converge"),
        ("gfn2-xtb@xtb", Atoms("Fm2", [[0, 0, 0], [0, 0, 2]]), "no parameters for Fm"),
        ("gfn-ff", Atoms("Fm2", [[0, 0, 0], [0, 0, 2]]), "no parameters for Fm"),
        ("gfn-ff", Atoms("H2", [[0, 0, 0], [0, 0, np.nan]]), "NaN"),
        ("gfn2-xtb@xtb", Atoms("H2", [[0, 0, 0], [0, 0, 0]]), "Could not generate molecular structure"),
        ("gfn-ff", Atoms(), "no atoms"),
        ("gfn1-xtb@xtb", bulk("C", cubic=True), "computes molecules"),
        ("gfn-ff", molecule("OH"), "cannot have multiplicity 1"),
        ("gfn-ff", Atoms("COHF", [[0, 0, 0], [0, 0, 1.13], [0, 0, 3.1], [0, 0, 4.0]]), "free CO or NO"),
    ],
)
def test_failures_are_reasons_and_the_calculator_survives(name: str, atoms: Atoms, says: str) -> None:
    calculator = make_teacher(name)
    with pytest.raises(TeacherError, match=says):
        calculator.get_property("energy", atoms)
    good = molecule("H2O") if "max" not in name else Atoms("He")
    assert calculator.get_property("energy", good) == make_teacher(name).get_property("energy", good)


def test_what_ends_the_library_ends_no_more_than_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    calculator = make_teacher("gfn1-xtb@xtb")
    energy = calculator.get_property("energy", molecule("H2O"))
    monkeypatch.setattr(xtb_python, "_LAST_ELEMENT", 118)  # xtb: "no basis found", error stop
    with pytest.raises(TeacherError, match="the library ended its process"):
        calculator.get_property("energy", Atoms("Fm2", [[0, 0, 0], [0, 0, 2]]))
    assert calculator.get_property("energy", molecule("H2O")) == energy
    process = xtb_python._SERVER._process
    process.send_signal(signal.SIGKILL)
    process.wait()
    calculator.reset()
    assert calculator.get_property("energy", molecule("H2O")) == energy


def test_charge_reaches_gfnff() -> None:
    bond = 1.03 / 3**0.5
    ammonium = Atoms("NH4", bond * np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]))
    assert np.abs(make_teacher("gfn-ff", charge=1).get_property("forces", ammonium)).max() < 1.0
    with pytest.raises(TeacherError, match="11 electrons"):
        make_teacher("gfn-ff").get_property("energy", ammonium)
    with pytest.raises(TeacherError, match="closed shells"):
        make_teacher("gfn-ff", multiplicity=3)


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    water = molecule("H2O")
    calculator = make_teacher(name)
    energy = calculator.get_property("energy", water)
    water.positions[0, 2] += 0.01
    fresh = make_teacher(name).get_property("energy", water)
    for twin in (copy.deepcopy(calculator), pickle.loads(pickle.dumps(calculator))):
        assert twin.get_property("energy", water) == fresh != energy
        assert twin.check_state(water) == []


@pytest.mark.parametrize(("name", "scale"), [("gfn2-xtb@xtb?accuracy=1e-4", 10.0), ("gfn-ff", 1.0)])
def test_the_contract_holds(name: str, scale: float) -> None:
    check_calculator(make_teacher(name), molecule("CH3OH"), tolerance_scale=scale, raise_on_failure=True)


def test_names_settings_and_version() -> None:
    spec = parse_teacher("gfn2-xtb@xtb?solvent=h2o")
    assert (spec.name, spec.builtin, spec.options) == ("gfn2-xtb@xtb", True, {"solvent": "h2o"})
    assert teacher_settings("gfn-ff") == {"solvent": None, "topology": "each"}
    assert teacher_settings("gfn1-xtb@xtb")["accuracy"] == 0.1
    assert teacher_version("gfn-ff").startswith("xtb ")


def test_dynamics_for_geometries_keeps_the_bonds_it_began_with() -> None:
    from distillase.datasets.sampling.surface import surface_name

    assert surface_name("teacher", "gfn-ff", dynamics=True) == "gfn-ff?topology='first'"
    assert surface_name("teacher", "gfn-ff?topology=each", dynamics=True) == "gfn-ff?topology='each'"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gfn2-xtb@xtb?guess=warm", "no option `guess`"),
        ("gfn2-xtb@xtb?solvent=water", "'h2o'"),
        ("gfn2-xtb@xtb?accuracy=-1", "above 0"),
        ("gfn-ff?topology=last", "'each' and 'first'"),
        ("gfn-ff?topologie=each", "did you mean `topology`"),
        ("gfnff", "did you mean `gfn-ff`"),
    ],
)
def test_wrong_names_and_options_are_refused(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make_teacher(name)


def test_without_library_the_reason_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xtb", None)
    monkeypatch.setattr(xtb_python, "_LAST_PYTHON", (3, 11))
    monkeypatch.setattr(xtb_python.sys, "version_info", (3, 11, 7))
    with pytest.raises(MissingDependency, match=r'pip install "distillase\[xtb-python\]"'):
        make_teacher("gfn-ff")
    monkeypatch.setattr(xtb_python.sys, "version_info", (3, 13, 0))
    with pytest.raises(MissingDependency, match=r"wheels for Python up to 3\.11, and this is Python 3\.13"):
        make_teacher("gfn2-xtb@xtb")


def test_labelling_gives_the_teachers_labels(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    from distillase.datasets.labelling import LabelConfig, label_structures
    from distillase.datasets.store import Dataset
    from distillase.datasets.structure import Structure

    frames = [rattled("CH3CH2OH", 0.05, seed) for seed in range(4)]
    structures = [Structure(frame.numbers, frame.positions, group="ethanol") for frame in frames]
    with pytest.raises(InputError, match="bonds of the first structure"):
        label_structures(structures, tmp_path, teacher="gfn-ff?topology=first")
    result = label_structures(structures, tmp_path, teacher="gfn-ff", config=LabelConfig(workers=1))
    assert result.refused == []
    with Dataset(result.dataset) as dataset:
        for k, frame in enumerate(frames):
            assert dataset.labels(k).energy == make_teacher("gfn-ff").get_property("energy", frame)
