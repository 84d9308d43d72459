"""The validation report: its numbers against hand-made cases, its files against what they promise."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule

pytest.importorskip("h5py")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.modelfile import save_model
from distillase.ase_calcs.painn import PaiNN
from distillase.ase_calcs.potential import ModelHeader
from distillase.ase_calcs.progress import _SilentTask
from distillase.datasets.store import write_dataset
from distillase.datasets.structure import Labels, Structure
from distillase.training.report import ReportConfig, write_report
from distillase.training.report.bonding import bond_angles, bond_lengths, find_bonding, internal_coordinates
from distillase.training.report.compare import overlap
from distillase.training.report.md import langevin
from distillase.training.report.nve import fit_drift
from distillase.training.report.pymol import Case, pymol_script
from distillase.training.report.statistics import angle_statistics, force_errors
from distillase.training.report.structures import best_view, structure_svg
from distillase.training.report.verdict import CRITERIA, judge
from distillase.training.report.write import json_ready, read_metrics

NO_CELL = (np.zeros((3, 3)), np.zeros(3, dtype=bool))


# ---------------------------------------------------------------------------------------------------- statistics


def test_angles_by_hand():
    reference = np.array([[1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0], [1.0, 0, 0], [0.05, 0, 0]])
    predicted = np.array([[2.0, 0, 0], [2.0, 0, 0], [0, 0, -1.0], [1.0, 1.0, 0], [-1.0, 0, 0]])
    found = angle_statistics(reference, predicted, threshold=0.1)  # 0°, 90°, 180°, 45°; the last is masked
    assert found["n_atoms"] == 4
    assert found["masked_share"] == pytest.approx(0.2)
    assert found["mean"] == pytest.approx(78.75, abs=1e-10)
    assert found["max"] == pytest.approx(180, abs=1e-10)
    assert found["p95"] == pytest.approx(np.percentile([0, 45, 90, 180], 95), abs=1e-10)
    assert found["share_under_5deg"] == 0.25


def test_small_angles_are_not_lost_to_rounding():
    tilt = 1e-7
    found = angle_statistics(np.array([[1.0, 0, 0]]), np.array([[np.cos(tilt), np.sin(tilt), 0]]), 0.1)
    assert found["mean"] == pytest.approx(np.degrees(tilt), rel=1e-6)


def test_all_weak_forces_give_no_angle_rather_than_a_wrong_one():
    assert angle_statistics(np.full((3, 3), 1e-3), np.ones((3, 3)), 0.1)["mean"] is None


def test_force_errors_by_hand():
    found = force_errors(np.array([[3.0, 0, 0], [0, 0, 0]]), np.array([[3.0, 4.0, 0], [0, 0, -1.0]]))
    assert found["mae"] == pytest.approx(5 / 6)
    assert found["rmse"] == pytest.approx(np.sqrt(17 / 6))
    assert found["relative"] == pytest.approx(np.sqrt(17 / 9))
    assert found["max"] == pytest.approx(4)


def test_drift_of_a_line_under_an_oscillation():
    times = np.arange(0, 10_000, 0.5)  # fs
    wiggle = 1e-3 * np.sin(2 * np.pi * times / 10)  # eV
    drift, error, fluctuation = fit_drift(times, 5.0 + 9 * 0.25e-3 * times / 1000 + wiggle, n_atoms=9)
    assert drift == pytest.approx(0.25, abs=1e-3)  # meV/atom/ps
    assert error < 1e-3
    assert fluctuation == pytest.approx(1 / 9 / np.sqrt(2), rel=1e-3)


def test_error_of_the_drift_covers_noise_that_is_correlated():
    rng = np.random.default_rng(0)
    times = np.arange(4000) * 0.5
    slopes, errors = [], []
    for _ in range(200):
        noise = np.convolve(rng.normal(size=4100), np.ones(40) / 40, mode="valid")[:4000]  # 20 fs of memory
        drift, error, _ = fit_drift(times, 1e-3 * noise, 1)
        slopes.append(drift)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(slopes), rel=0.2)


def test_overlap_of_equal_half_shifted_and_disjoint_distributions():
    uniform = np.linspace(0, 1, 10_001)[:-1]
    assert overlap(uniform, uniform) == pytest.approx(1)
    assert overlap(uniform, uniform + 10) == pytest.approx(0)
    assert overlap(uniform, uniform + 0.5) == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------------------------------------------ bonding


def _water(origin, direction):
    """One water, its first O–H along `direction`, 0.96 Å and 104.5°."""
    d = np.asarray(direction, dtype=float)
    d /= np.linalg.norm(d)
    side = np.cross(d, [0.1, 0.2, 0.97])
    side /= np.linalg.norm(side)
    a = np.radians(104.5)
    return np.asarray(origin) + np.array([[0, 0, 0], 0.96 * d, 0.96 * (np.cos(a) * d + np.sin(a) * side)])


def _dimer(first, distance=2.9):
    """Donor at the origin with its first O–H along `first`; the acceptor at +x with its hydrogens away."""
    numbers = np.array([8, 1, 1, 8, 1, 1])
    return numbers, np.concatenate([_water([0, 0, 0], first), _water([distance, 0, 0], [1, 0, 0.7])])


def test_hydrogen_bond_of_a_water_dimer_and_none_when_turned_or_far():
    numbers, positions = _dimer([1, 0, 0])
    found = find_bonding(numbers, positions, *NO_CELL)
    assert found.hydrogen_bonds.tolist() == [[0, 1, 3]]
    assert found.partner.tolist() == [0, 8, 8, 0, 8, 8]
    assert sorted(map(tuple, np.sort(found.pairs, axis=1))) == [(0, 1), (0, 2), (3, 4), (3, 5)]
    for numbers, positions in (_dimer([-1, 0, 0]), _dimer([1, 0, 0], distance=3.6)):
        assert len(find_bonding(numbers, positions, *NO_CELL).hydrogen_bonds) == 0


def test_hydrogen_bond_and_bonds_across_a_periodic_boundary():
    numbers, positions = _dimer([1, 0, 0])
    cell, pbc = np.diag([12.0, 12.0, 12.0]), np.ones(3, dtype=bool)
    moved = (positions - [1.5, 0, 0]) % 12.0  # cuts the hydrogen bond, and O–H bonds by their y and z
    assert np.ptp(moved, axis=0).max() > 8
    found = find_bonding(numbers, moved, cell, pbc)
    assert found.hydrogen_bonds.tolist() == [[0, 1, 3]]
    assert found.partner.tolist() == [0, 8, 8, 0, 8, 8]
    inner = internal_coordinates(numbers, moved, cell, pbc)
    np.testing.assert_allclose(bond_lengths(moved[None], inner.bonds, cell, pbc), 0.96, atol=1e-12)
    np.testing.assert_allclose(bond_angles(moved[None], inner.angles, cell, pbc), 104.5, atol=1e-9)


def test_hydrogens_are_told_apart_by_their_partner():
    atoms = molecule("CH3CONH2")  # acetamide: three C–H, two N–H
    found = find_bonding(atoms.numbers, atoms.positions, *NO_CELL)
    assert sorted(found.partner[atoms.numbers == 1]) == [6, 6, 6, 7, 7]
    assert (found.partner[atoms.numbers != 1] == 0).all()
    assert len(found.hydrogen_bonds) == 0  # N–H…O of one amide is 1,3 and bent


def test_methane_has_four_bonds_and_six_tetrahedral_angles():
    atoms = molecule("CH4")
    inner = internal_coordinates(atoms.numbers, atoms.positions, *NO_CELL)
    assert inner.bond_types.tolist() == ["C–H"] * 4
    assert inner.angle_types.tolist() == ["H–C–H"] * 6
    values = bond_angles(atoms.positions[None], inner.angles, *NO_CELL)
    np.testing.assert_allclose(values, np.degrees(np.arccos(-1 / 3)), atol=0.01)


# ------------------------------------------------------------------------------------------------------ dynamics


def test_langevin_samples_the_boltzmann_distribution_of_a_harmonic_well():
    stiffness, kelvin = 5.0, 300.0  # eV/Å²
    start = Structure(np.full(600, 6), np.zeros((600, 3)))
    run = langevin(
        lambda x: -stiffness * x, [start], steps=1500, timestep_fs=1.0, temperature_K=kelvin, friction_per_fs=0.05,
        seed=1, budget_s=60, task=_SilentTask(),
    )  # fmt: skip
    assert not run.stopped
    assert run.picoseconds == pytest.approx(1.5)
    settled = run.positions[60:]
    # BAOAB has no error in the positions of a harmonic oscillator; 1 % is three times the statistical error.
    assert np.mean(settled**2) == pytest.approx(units.kB * kelvin / stiffness, rel=0.01)


def test_md_that_explodes_is_reported_and_not_raised():
    start = Structure(np.array([6, 6]), np.array([[0.0, 0, 0], [1.5, 0, 0]]))
    settings = {"steps": 50, "timestep_fs": 0.5, "temperature_K": 300.0, "friction_per_fs": 0.02, "seed": 0}
    run = langevin(lambda x: np.full_like(x, np.nan), [start], **settings, budget_s=60, task=_SilentTask())
    assert run.failed
    assert run.steps == 1

    def broken(x):
        raise RuntimeError("SCF not converged")

    run = langevin(broken, [start], **settings, budget_s=60, task=_SilentTask())
    assert run.failed
    assert "SCF not converged" in run.stopped


# ------------------------------------------------------------------------------------------------------- verdict


def _good_values():
    return {criterion.name: criterion.good for criterion in CRITERIA}


def test_verdict_is_the_worst_of_its_criteria():
    assert judge(_good_values()).level == "trust"
    for criterion in CRITERIA:
        if criterion.good < criterion.bad:
            assert judge(_good_values() | {criterion.name: 1.01 * criterion.good}).level == "care"
        verdict = judge(_good_values() | {criterion.name: criterion.bad + 0.01})
        assert verdict.level == "distrust"
        assert verdict.findings[0].criterion is criterion
        missing = judge(_good_values() | {criterion.name: None})
        assert missing.level == ("care" if criterion.required else "trust")


def test_infinite_and_undefined_numbers_are_not_trusted():
    assert judge(_good_values() | {"drift": float("inf")}).level == "distrust"
    assert judge(_good_values() | {"force_mae": float("nan")}).level == "distrust"


# ------------------------------------------------------------------------------------------------------ pictures


def test_every_atom_is_drawn_and_the_view_keeps_handedness():
    atoms = molecule("CH3CH2OH")
    svg = structure_svg(Structure(atoms.numbers, atoms.positions))
    assert svg.count("<title>H</title>") == 6
    assert svg.count("<title>C</title>") == 2
    assert svg.count("<title>O</title>") == 1
    assert svg.count("<line") == 8 * 2 * 2  # bonds × halves × (outline and fill)
    axes = best_view(atoms.positions)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)


def test_pymol_script_runs_and_its_arrows_are_the_forces():
    atoms = molecule("H2O")
    forces = np.array([[0, 0, 2.0], [1.0, 0, 0], [0, -0.5, 0]])
    script = pymol_script([Case(Structure(atoms.numbers, atoms.positions), forces, -forces, "a\nb")], scale=0.5)
    block = re.search(r"^python\n(.*?)^python end$", script, re.DOTALL | re.MULTILINE)
    assert block
    calls = {}

    class Recorder:
        def read_pdbstr(self, text, name):
            calls[name] = text

        def load_cgo(self, numbers, name):
            calls[name] = numbers

    exec(block.group(1).replace("from pymol import cmd", ""), {"cmd": Recorder()})
    records = [line for line in calls["worst_1"].splitlines() if line.startswith("HETATM")]
    read = np.array([[float(line[a : a + 8]) for a in (30, 38, 46)] for line in records])
    np.testing.assert_allclose(read, atoms.positions, atol=6e-4)
    assert [line[76:78].strip() for line in records] == ["O", "H", "H"]
    assert calls["worst_1"].count("CONECT") == 2
    for kind, sign in (("reference", 1), ("predicted", -1)):
        numbers = np.array(calls[f"worst_1_{kind}"]).reshape(3, 14 + 17)
        starts, tips = numbers[:, 1:4], numbers[:, 18:21]
        np.testing.assert_allclose(tips - starts, 0.5 * sign * forces, atol=2e-3)


# ---------------------------------------------------------------------------------------------------- whole page


def _small_model(path, elements, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = PaiNN(elements, features=8, layers=1, cutoff=4.0, n_basis=6, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    model.header = ModelHeader(teacher="itself", charges=(0,), multiplicities=(1,))
    return save_model(path, model.eval())


def _labelled(model, structures, error, *, stress=False):
    """Frames whose labels are the model's own values less a known error of the forces, eV/Å, on every component."""
    wanted = ("energy", "forces", "stress") if stress else ("energy", "forces")
    found = PotentialCalculator(model).calculate_many([s.to_atoms() for s in structures], wanted)
    return [
        (s, Labels(r["energy"] - 0.01 * len(s), r["forces"] - error, stress=r.get("stress")))
        for s, r in zip(structures, found, strict=True)
    ]


# A budget that no busy machine exhausts: what is tested must not depend on time.
FAST = ReportConfig(
    md_ps=0.05, teacher_md_ps=0.05, nve_ps=0.02, speed_seconds=0.01, n_structures=4, n_worst=2, n_starts=2,
    budget_seconds=1e6, max_frames=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A report on a model whose teacher is the model itself, with labels that are off by 20 meV/Å."""
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    structures = []
    for k in range(60):
        name = ("CH3CH2OH", "CH3CONH2")[k % 2]
        atoms = molecule(name)
        positions = atoms.positions + rng.normal(0, 0.05, atoms.positions.shape)
        group = "<script>CCO</script>" if k % 2 == 0 else "C$N$ & co"
        structures.append(Structure(atoms.numbers, positions, group=group, origin=f"md/{k}"))
    model = _small_model(folder / "model.safetensors", (1, 6, 7, 8))
    dataset = write_dataset(folder / "dataset.h5", _labelled(model, structures, 0.02), provenance={"seed": 7})
    rows = [
        {"step": s, "seconds": 2.0 * s, "train": {"force_mae": 1 / s}, "validation": {"force_mae": 2 / s}}
        for s in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "tr')
    splits = {"train": range(30), "validation": range(30, 35), "test": range(35, 60)}
    teacher = f"distillase.ase_calcs.calculator:PotentialCalculator?model='{model}'"
    page = write_report(folder, model=model, dataset=dataset, splits=splits, teacher=teacher, config=FAST)
    return folder, page, json.loads((folder / "report.json").read_text(encoding="utf-8")), structures


def test_page_has_all_sections_and_figures(finished):
    _, page, _, _ = finished
    html = page.read_text(encoding="utf-8")
    for section in ("verdict", "errors", "directions", "hydrogens", "dynamics", "drift", "speed", "worst",
                    "structures", "training", "provenance"):  # fmt: skip
        assert f'id="{section}"' in html
    for figure in ("parity-forces", "parity-energy", "angles", "elements", "hydrogens", "learning", "bonds",
                   "bond-angles", "pairs", "nve", "speed-0"):  # fmt: skip
        assert f'id="{figure}-figure_1"' in html
    assert html.count('class="molecule"') == 4 + 2


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.identifiers, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset", "data"):
                self.links.append(value)
            if name == "id":
                self.identifiers.append(value)


def test_page_refers_to_nothing_outside_itself(finished):
    _, page, _, _ = finished
    html = page.read_text(encoding="utf-8")
    parsed = _Page()
    parsed.feed(html)
    assert all(link.startswith(("#", "data:image/")) for link in parsed.links)
    assert not {"script", "link", "iframe", "img"} & set(parsed.tags)
    assert "http" not in html
    assert "@import" not in html
    assert len(parsed.identifiers) == len(set(parsed.identifiers))
    targets = re.findall(r"url\(#([^)]*)\)", html) + [link[1:] for link in parsed.links if link.startswith("#")]
    assert set(targets) <= set(parsed.identifiers)


def test_names_of_molecules_are_text_and_not_markup(finished):
    _, page, numbers, _ = finished
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;CCO" in html
    assert {row["molecule"] for row in numbers["per_molecule"]} == {"<script>CCO</script>", "C$N$ & co"}


def test_numbers_are_those_recomputed_from_the_labels(finished):
    _, _, numbers, structures = finished
    assert numbers["held_out_part"] == "test"
    held = numbers["held_out"]
    assert held["n_frames"] == 25
    assert held["forces"]["mae"] == pytest.approx(0.02, abs=1e-6)
    assert held["forces"]["rmse"] == pytest.approx(0.02, abs=1e-6)
    assert held["forces"]["max"] == pytest.approx(0.02 * np.sqrt(3), abs=1e-6)
    assert held["energy"]["mae_per_atom"] == pytest.approx(0.01, abs=1e-6)
    assert held["energy"]["mae_relative"] == pytest.approx(0.0, abs=1e-5)
    test = structures[35:]
    hydrogens = sum(int((s.numbers == 1).sum()) for s in test)
    assert numbers["hydrogen"]["n_hydrogens"] == hydrogens
    classes = {row["class"]: row["n_atoms"] for row in numbers["hydrogen"]["classes"]}
    amides = sum(7 in s.numbers for s in test)
    ethanols = len(test) - amides
    assert classes == {"C–H": 5 * ethanols + 3 * amides, "N–H": 2 * amides, "O–H": ethanols}
    assert numbers["composition"]["n_molecules"] == 2
    shares = {row["element"]: row["share"] for row in numbers["composition"]["rows"]}
    assert shares["N"] == pytest.approx(1 / 18)


def test_a_student_that_is_its_own_teacher_moves_exactly_like_it(finished):
    _, _, numbers, _ = finished
    md = numbers["md"]
    assert not md["teacher_stopped"]
    assert not md["student_stopped"]
    assert md["student_ps"] == pytest.approx(0.05)
    for row in md["bonds"] + md["angles"]:
        # One evaluates batches, the other single structures: rounding is all there is between them.
        assert abs(row["mean_difference"]) < 1e-6
        assert abs(row["std_difference"]) < 1e-6
        assert row["overlap"] > 0.999
    assert {row["name"] for row in md["bonds"]} >= {"C–H", "O–H", "N–H"}


def test_every_row_of_nve_and_speed_is_there(finished):
    _, _, numbers, _ = finished
    assert [run["dtype"] for run in numbers["nve"]["runs"]] == ["float32", "float64"]
    assert all(np.isfinite(run["drift"]) and not run["failed"] for run in numbers["nve"]["runs"])
    names = [row["name"] for row in numbers["speed"][0]["rows"]]
    assert names[:2] == ["student, float32", "student, float64"]
    assert names[2].startswith("teacher, ")
    assert all(row["times_faster"] > 0 for row in numbers["speed"][0]["rows"])


def test_provenance_names_model_data_and_seed(finished):
    _, page, numbers, _ = finished
    found = numbers["provenance"]
    html = page.read_text(encoding="utf-8")
    assert found["dataset_hash"] in html
    assert found["model_hash"] in html
    assert found["dataset_provenance"] == {"seed": 7}
    assert found["trained_on_this_dataset"] is False
    assert numbers["config"]["seed"] == 0


def test_worst_cases_are_written_for_pymol(finished):
    folder, _, numbers, _ = finished
    script = (folder / "worst_forces.pml").read_text(encoding="utf-8")
    assert script.count("read_pdbstr") == 2
    assert len(numbers["worst"]) == 2
    assert all(row["error"] == pytest.approx(0.02 * np.sqrt(3), abs=1e-6) for row in numbers["worst"])


def test_no_half_written_file_is_left_behind(finished):
    folder, _, _, _ = finished
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_periodic_data_without_teacher_history_or_test_frames(tmp_path):
    rng = np.random.default_rng(1)
    numbers, positions = _dimer([1, 0, 0])
    box = {"cell": np.diag([9.0, 9.5, 10.0]), "pbc": np.ones(3, dtype=bool), "group": "water"}
    structures = [Structure(numbers, positions + rng.normal(0, 0.03, positions.shape), **box) for _ in range(6)]
    model = _small_model(tmp_path / "m.safetensors", (1, 8))
    dataset = write_dataset(tmp_path / "d.h5", _labelled(model, structures, 0.01, stress=True), provenance={})
    config = ReportConfig(md_ps=0.02, nve_ps=0.02, speed_seconds=0.01, n_starts=1, max_frames=10, budget_seconds=1e6)
    page = write_report(tmp_path / "out", model=model, dataset=dataset, splits={"validation": range(6)}, config=config)
    found = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    assert found["held_out"]["stress"]["mae"] == pytest.approx(0, abs=1e-6)
    assert found["hydrogen"]["n_hydrogen_bonds"] >= 1
    texts = [finding["text"] for finding in found["verdict"]["findings"] if finding["level"] == "care"]
    assert any("no test frames" in text for text in texts)
    assert any("held-out frames" in text for text in texts)
    assert 'id="parity-stress-figure_1"' in page.read_text(encoding="utf-8")
    assert found["md"]["teacher_stopped"] == "no teacher was given"


def test_what_the_student_refuses_is_listed(tmp_path):
    water = molecule("H2O")
    good = [Structure(water.numbers, water.positions, group="water") for _ in range(3)]
    model = _small_model(tmp_path / "m.safetensors", (1, 8))
    rows = _labelled(model, good, 0.0)
    amine = molecule("NH3")
    rows.append((Structure(amine.numbers, amine.positions, group="ammonia"), Labels(0.0, np.zeros((4, 3)))))
    dataset = write_dataset(tmp_path / "d.h5", rows, provenance={})
    config = ReportConfig(md_ps=0, nve_ps=0, speed_seconds=0, n_structures=0, n_worst=0)
    page = write_report(tmp_path, model=model, dataset=dataset, splits={"test": range(4)}, config=config)
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["held_out"]["n_frames"] == 3
    assert [row[0] for row in found["refused"]] == [3]
    assert "N" in found["refused"][0][1]
    assert "refused 1" in page.read_text(encoding="utf-8")


def test_unusable_input_is_refused_with_a_sentence(tmp_path):
    water = molecule("H2O")
    structure = Structure(water.numbers, water.positions, group="water")
    model = _small_model(tmp_path / "m.safetensors", (1, 8))
    unlabelled = write_dataset(tmp_path / "u.h5", [(structure, None)], provenance={})
    with pytest.raises(DataError, match="forces are needed"):
        write_report(tmp_path, model=model, dataset=unlabelled, splits={"test": [0]})
    labelled = write_dataset(tmp_path / "l.h5", _labelled(model, [structure], 0.0), provenance={})
    with pytest.raises(DataError, match="frame 5"):
        write_report(tmp_path, model=model, dataset=labelled, splits={"test": [5]})
    with pytest.raises(DataError, match="No frames"):
        write_report(tmp_path, model=model, dataset=labelled, splits={"test": []})
    with pytest.raises(InputError, match=r"report\.temperature_K"):
        ReportConfig(temperature_K=0)


def test_metrics_of_a_resumed_run_are_in_order_and_not_doubled(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 4, "a": 1}\n{"step": 3, "a": 2}\n{"step": 4, "a": 2}\n{"st')
    assert [(row["step"], row["a"]) for row in read_metrics(path)] == [(2, 1), (3, 2), (4, 2)]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_json_has_no_infinities():
    value = json_ready({"a": np.float64("inf"), "b": [np.int64(3), float("nan")], "c": np.array([1.5])})
    assert value == {"a": None, "b": [3, None], "c": [1.5]}
