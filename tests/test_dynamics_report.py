"""The dynamics report: every metric against a case known by hand, the noise floor against what it promises."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from scipy.spatial.transform import Rotation

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from distillase.ase_calcs.dynamics import element_temperatures
from distillase.ase_calcs.errors import DataError, InputError
from distillase.datasets import trajectory as trajectory_module
from distillase.datasets.trajectory import Trajectory
from distillase.launch.cli import main
from distillase.launch.dynamics_cli import named_files, repeat_options
from distillase.training.dynamics_report import metrics, torsions, write_dynamics_report
from distillase.training.dynamics_report.compare import drift_row, headline_rows, slow_torsions, temperature_rows
from distillase.training.dynamics_report.features import find_coordinates
from distillase.training.dynamics_report.floor import distance_floor, level, mean_floor
from distillase.training.dynamics_report.runs import CONTROL, make_sections
from distillase.training.dynamics_report.verdict import overall

ETHANOL = molecule("CH3CH2OH")
LANGEVIN = {"integrator": "Langevin", "temperature_K": 300.0, "friction": 0.01, "teacher": "gfn2-xtb"}
VERLET = {"integrator": "VelocityVerlet", "teacher": "gfn2-xtb"}


def made(
    seed: int, frames: int = 1500, *, hot: float = 1.0, stretch: float = 1.0, settings: dict | None = None
) -> Trajectory:
    """Ethanol shaken at random: independent frames, Maxwell velocities at 300 K, hydrogens at `hot` times that."""
    rng = np.random.default_rng(seed)
    masses, numbers = ETHANOL.get_masses(), ETHANOL.numbers
    kelvin = np.where(numbers == 1, 300.0 * hot, 300.0)
    thermal = np.sqrt(units.kB * kelvin / masses)[:, None] * units.fs
    return Trajectory(
        numbers=numbers,
        masses=masses,
        positions=stretch * ETHANOL.positions + 0.03 * rng.standard_normal((frames, 9, 3)),
        velocities=thermal * rng.standard_normal((frames, 9, 3)),
        interval=2.0,
        energies=0.01 * rng.standard_normal(frames),
        group="ethanol",
        origin=f"seed {seed}",
        smiles="CCO",
        settings=LANGEVIN if settings is None else settings,
    )


def section_of(reference: Sequence[Trajectory], /, control: Sequence[Trajectory] = (), **candidates: Trajectory):
    return make_sections(reference, {name: [run] for name, run in candidates.items()}, control, 0.0)[0]


# ----------------------------------------------------------------------------------------------------- distributions


def test_divergence_is_0_for_equal_histograms_1_bit_for_disjoint_ones_and_right_in_between():
    p, q = np.array([3.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.0, 5.0])
    assert metrics.jensen_shannon(p, 7 * p) == pytest.approx(0.0, abs=1e-15)
    assert metrics.jensen_shannon(p, q) == pytest.approx(1.0, abs=1e-12)
    half = np.array([1.0, 1.0])
    by_hand = 0.5 * np.log2(1 / 0.75) + 0.5 * (0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25))
    assert metrics.jensen_shannon(np.array([1.0, 0.0]), half) == pytest.approx(by_hand, abs=1e-12)
    assert metrics.jensen_shannon(half, np.array([1.0, 0.0])) == pytest.approx(by_hand, abs=1e-12)


def test_divergence_of_samples_through_the_bins_of_one_of_them():
    a = np.random.default_rng(0).normal(1.1, 0.02, 4000)
    edges = metrics.bin_edges(a)
    counts = metrics.histogram(a, edges)
    assert counts.sum() == 4000
    assert metrics.jensen_shannon(counts, metrics.histogram(a[::-1], edges)) == 0.0
    assert metrics.jensen_shannon(counts, metrics.histogram(a + 1.0, edges)) > 0.99  # all of it above the last edge


def test_circular_means_across_180_degrees():
    a, b = metrics.mean_direction(np.array([[179.0], [181.0]])), metrics.mean_direction(np.array([[-178.0], [-176.0]]))
    assert metrics.circular_rmse(a, b, np.array([True])) == pytest.approx(3.0, abs=1e-9)
    assert abs(metrics.mean_direction(np.array([[0.0], [120.0], [-120.0]]))[0]) == pytest.approx(0.0, abs=1e-12)
    assert np.isnan(metrics.circular_rmse(a, b, np.array([False])))


# ---------------------------------------------------------------------------------------------------------- torsions


def test_dihedrals_are_those_of_ase():
    atoms = ETHANOL.copy()
    atoms.rattle(0.2, seed=1)
    chains = torsions.proper_dihedrals(find_coordinates([made(0), made(1)]).bonds, ETHANOL.positions)
    assert len(chains) == 12  # 3 · 3 about C–C and 3 · 1 about C–O
    found = torsions.dihedral_angles(atoms.positions[None], chains)[0]
    by_ase = np.array([atoms.get_dihedral(*chain) for chain in chains])
    np.testing.assert_allclose(torsions.wrap(found - by_ase), 0.0, atol=1e-9)


def test_rotatable_are_bonds_outside_rings_that_are_not_in_line():
    def names(name: str) -> list[tuple[int, int]]:
        atoms = molecule(name)
        run = replace(made(0), numbers=atoms.numbers, positions=atoms.positions[None])
        bonds = find_coordinates([run]).bonds
        found = torsions.rotatable_dihedrals(atoms.numbers, bonds, atoms.positions)
        return ["".join(sorted(atoms.symbols[chain[1:3]])) for chain in found]

    assert sorted(names("CH3CH2OH")) == ["CC", "CO"]
    assert names("C6H6") == []
    assert names("CH3CN") == []  # C–C≡N is straight
    assert names("H2O") == []


def test_flips_of_a_two_state_torsion_are_those_it_was_made_with():
    rng = np.random.default_rng(0)
    states = np.repeat(rng.permuted(np.tile([60.0, -60.0], 40)), 25)
    made_flips = int(np.count_nonzero(np.diff(states)))
    degrees = torsions.wrap(states + 12 * rng.standard_normal(len(states)))
    wells = torsions.find_wells(degrees)
    np.testing.assert_allclose(wells, [-60, 60], atol=5)
    assert torsions.count_flips(degrees, wells) == made_flips


def test_a_crossing_that_falls_back_is_no_flip():
    over = np.concatenate([np.linspace(60, -15, 20), np.linspace(-15, 60, 20)])  # over the barrier at 0, not into −60
    assert torsions.count_flips(over, np.array([-60.0, 60.0])) == 0
    assert (
        torsions.count_flips(np.linspace(170, 190, 21), np.array([180.0])) == 0
    )  # the seam of the circle is no barrier
    assert torsions.count_flips(np.array([0.0, 60, 120, 180, 120, 60, 0]), np.array([0.0])) == 2  # a well of its own


# ------------------------------------------------------------------------------------- spectrum, temperature, energy


def test_spectrum_of_an_oscillator_peaks_at_its_frequency():
    wavenumber, interval = 1650.0, 1.0
    t = interval * np.arange(8192)
    velocities = np.zeros((len(t), 2, 3))
    velocities[:, 1, 2] = np.cos(2 * np.pi * wavenumber * metrics.LIGHT * t)
    found, density = metrics.power_spectrum(velocities, np.array([12.0, 1.0]), interval, 4000.0)
    resolution = found[1] - found[0]
    assert resolution == pytest.approx(1 / (4000 * metrics.LIGHT))
    assert abs(found[density.argmax()] - wavenumber) <= 0.5 * resolution
    assert density.sum() * resolution == pytest.approx(1.0, abs=1e-12)
    assert found[-1] == pytest.approx(metrics.nyquist(interval)) == pytest.approx(16678.2, abs=0.1)


def test_spectrum_weighs_by_mass():
    t = np.arange(4096.0)
    velocities = np.zeros((len(t), 2, 3))
    velocities[:, 0, 0] = np.cos(2 * np.pi * 500 * metrics.LIGHT * t)
    velocities[:, 1, 0] = np.cos(2 * np.pi * 3000 * metrics.LIGHT * t)
    found, density = metrics.power_spectrum(velocities, np.array([16.0, 1.0]), 1.0, 4096.0)
    slow = density[found < 1500].sum() / density.sum()
    assert slow == pytest.approx(16 / 17, abs=1e-3)


def test_temperatures_of_maxwell_velocities_within_their_own_error():
    run = made(3, frames=6000)
    found = metrics.temperatures(run.velocities, run.masses, run.numbers)
    assert set(found) == {0, 1, 6, 8}
    for z, series in found.items():
        mean, error = metrics.mean_with_error(series)
        n = len(run.numbers) if z == 0 else int((run.numbers == z).sum())
        assert abs(mean - 300.0) < 4 * error
        assert error == pytest.approx(300 * np.sqrt(2 / (3 * n * len(run))), rel=0.15)  # what independent frames give


def test_temperatures_are_read_by_the_thermometer_of_the_dynamics():
    run, atoms = made(4, frames=1), ETHANOL.copy()
    atoms.set_velocities(run.velocities[0] / units.fs)
    found = metrics.temperatures(run.velocities, run.masses, run.numbers)
    for z, kelvin in element_temperatures(atoms).items():
        assert found[z][0] == pytest.approx(kelvin, rel=1e-12)


def test_error_of_a_mean_knows_that_frames_are_correlated():
    rng, memory = np.random.default_rng(5), 0.98
    means, errors = [], []
    for _ in range(40):
        noise, x = rng.standard_normal(4000), np.zeros(4000)
        for k in range(1, 4000):
            x[k] = memory * x[k - 1] + noise[k]
        mean, error = metrics.mean_with_error(x)
        means.append(mean)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.35)


def drifting(slope: float, seed: int, settings: dict = VERLET) -> Trajectory:
    """Total energy rising by `slope` meV/atom/ps on a straight line; kinetic energy that the potential takes back."""
    run = made(seed, settings=settings)
    total = slope / 1000 * 9 * 2.0 * np.arange(len(run)) / 1000
    kinetic = metrics.kinetic_energies(run.velocities, run.masses).sum(axis=1)
    return replace(run, energies=total - kinetic)


def test_drift_of_a_line_is_exact():
    row = drift_row(section_of([drifting(0.2, 0), drifting(-0.3, 1)], steep=drifting(4.0, 2), flat=drifting(0.05, 3)))
    assert row["reference"] == pytest.approx(-0.05, abs=1e-9)
    assert row["floor"]["mean"] == pytest.approx(0.25, abs=1e-9)
    assert row["cells"]["steep"]["value"] == pytest.approx(4.0, abs=1e-9)
    assert row["cells"]["steep"]["ratio"] == pytest.approx(16.0, abs=1e-6)
    assert row["cells"]["steep"]["level"] != "trust"
    assert row["cells"]["flat"]["level"] == "trust"  # better than the reference is not worse


def test_drift_means_nothing_with_a_thermostat():
    row = drift_row(
        section_of([made(0), made(1)], langevin=made(2), verlet=drifting(1.0, 3), unknown=made(4, settings={}))
    )
    assert "thermostat" in row["cells"]["langevin"]["note"]
    assert "thermostat" in row["reference_note"]
    assert row["cells"]["verlet"]["value"] == pytest.approx(1.0, abs=1e-9)
    assert row["cells"]["verlet"]["ratio"] is None
    assert row["cells"]["unknown"]["note"] == "integrator not recorded"


# ------------------------------------------------------------------------------------------------------- noise floor


def test_limit_of_distances_covers_a_further_one_in_95_of_100():
    rng = np.random.default_rng(6)
    for n in (3, 4, 6):
        floors = [distance_floor(rng.normal(1.0, 0.3, n)) for _ in range(3000)]
        covered = np.mean([rng.normal(1.0, 0.3) <= floor.limit for floor in floors])
        assert 0.94 < covered < 0.985  # the least margin of 25 % adds a little


def test_limit_of_means_covers_a_further_one_whether_runs_differ_by_seed_or_by_their_own_noise():
    rng = np.random.default_rng(7)
    for between, within in ((2.0, 0.1), (0.0, 1.0), (1.0, 1.0)):
        inside = []
        for _ in range(3000):
            values = rng.normal(0.0, np.hypot(between, within), 5)
            floor = mean_floor(values[:4], within)
            inside.append(level(abs(values[4] - values[:4].mean()), floor) == "trust")
        assert np.mean(inside) > 0.93


def test_a_further_run_of_the_same_generator_is_within_the_noise_most_of_the_time():
    references = [made(seed, 400) for seed in range(4)]
    levels = []
    for batch in range(5):
        runs = {f"run {k}": made(100 + 6 * batch + k, 400) for k in range(6)}
        rows = headline_rows(section_of(references, **runs))
        levels += [cell["level"] for row in rows for cell in row["cells"].values()]
    measured = [found for found in levels if found != "unmeasured"]
    assert len(measured) > 300
    assert np.mean([found == "trust" for found in measured]) > 0.85
    assert np.mean([found == "distrust" for found in measured]) < 0.02


def test_hydrogens_that_are_5_percent_too_hot_are_flagged_and_only_they():
    section = section_of([made(seed, 4000) for seed in range(4)], hot=made(10, 4000, hot=1.05), right=made(11, 4000))
    rows = {row["label"]: row["cells"] for row in temperature_rows(section)}
    assert rows["Temperature of H"]["hot"]["level"] != "trust"
    assert rows["Temperature of H"]["hot"]["difference"] == pytest.approx(15.0, abs=4.0)
    assert rows["Temperature of H"]["right"]["level"] == "trust"
    assert all(rows[f"Temperature of {element}"]["hot"]["level"] == "trust" for element in "CO")


def test_a_stretched_molecule_is_unlike_the_reference():
    rows = headline_rows(section_of([made(seed, 400) for seed in range(3)], wide=made(9, 400, stretch=1.05)))
    cells = {row["key"]: row["cells"]["wide"] for row in rows}
    assert cells["rmse_bonds"]["level"] == cells["js_pairs"]["level"] == "distrust"
    lengths = np.linalg.norm(ETHANOL.positions[0] - ETHANOL.positions[1])
    assert cells["rmse_bonds"]["value"] == pytest.approx(0.05 * lengths, rel=0.4)
    assert cells["rmse_angles"]["level"] == "trust"


def test_a_shorter_and_coarser_run_is_put_against_a_floor_of_its_own():
    whole = made(8)
    short = replace(
        whole, positions=whole.positions[:600:2], velocities=whole.velocities[:600:2], energies=None, interval=4.0
    )
    section = section_of([made(seed) for seed in range(3)], short=short, whole=whole)
    row = next(row for row in headline_rows(section) if row["key"] == "js_bonds")
    assert row["cells"]["whole"]["floor"]["mean"] == pytest.approx(row["floor"]["mean"])
    assert row["cells"]["short"]["floor"]["mean"] > 3 * row["floor"]["mean"]  # a fifth of the frames
    assert row["cells"]["short"]["level"] == "trust"
    (one,) = (runs for runs in section.candidates if runs.name == "short")
    assert one.references[0].picoseconds == pytest.approx(one.runs[0].picoseconds)
    assert any("shortest run" in note for note in one.notes)


def test_rare_flips_leave_undecided_what_hangs_on_conformers_and_nothing_else():
    def word(levels: dict[str, str], slow: Sequence[str]) -> str:
        rows = [{"key": key, "label": key, "cells": {"mts": {"level": level}}} for key, level in levels.items()]
        return overall(SimpleNamespace(name="mts", failed=False), rows, slow)["title"]

    torsions_alone = {"js_torsions": "distrust", "rmse_angles": "distrust", "js_bonds": "trust"}
    assert word(torsions_alone, ["H–C–C–O"]) == "Not decided"
    assert word(torsions_alone, []) == "Unlike the reference"
    assert word(torsions_alone | {"js_bonds": "distrust"}, ["H–C–C–O"]) == "Unlike the reference"
    assert word({"js_bonds": "care", "js_angles": "trust"}, []) == "Like the reference"  # one is chance
    assert word({"js_bonds": "care", "js_angles": "care"}, []) == "Close to the reference"


def test_a_torsion_that_seldom_flips_is_named():
    def turning(seed: int, flips: int) -> Trajectory:
        run = made(seed, 400)
        c, o, h = 1, 2, 3  # turning H about C–O changes C–C–O–H and no bond or angle
        axis = ETHANOL.positions[o] - ETHANOL.positions[c]
        turns = 120.0 * (np.arange(400) * (flips + 1) // 400 % 2)
        arm = run.positions[:, h] - ETHANOL.positions[o]
        turned = np.array(
            [Rotation.from_rotvec(np.radians(a) * axis / np.linalg.norm(axis)).as_matrix() for a in turns]
        )
        positions = run.positions.copy()
        positions[:, h] = ETHANOL.positions[o] + np.einsum("tij,tj->ti", turned, arm)
        return replace(run, positions=positions)

    few = slow_torsions(section_of([turning(0, 3), turning(1, 5)], same=turning(2, 4)))
    assert few == {"C0–C1–O2–H3": 4.0}
    assert slow_torsions(section_of([turning(0, 30), turning(1, 31)], same=turning(2, 30))) == {}


# ------------------------------------------------------------------------------------------------------ what is refused


def test_what_does_not_fit_together_is_refused_in_a_sentence():
    one, other = made(0), made(1)
    with pytest.raises(DataError, match="only one reference trajectory"):
        section_of([one], candidate=other)
    with pytest.raises(DataError, match="are of one run"):
        section_of([one, replace(other, origin="seed 0")], candidate=other)
    with pytest.raises(DataError, match="are of one run"):
        section_of([one, replace(one, origin="a copy")], candidate=other)
    named_alike = replace(other, origin="seed 0", settings=LANGEVIN | {"seed": 1})
    assert section_of([one, named_alike], candidate=other).reference.runs
    with pytest.raises(DataError, match="another molecule"):
        section_of([one, other], candidate=replace(other, numbers=other.numbers[::-1]))
    with pytest.raises(DataError, match="not of one molecule"):
        section_of([one, replace(other, charge=1)], candidate=other)
    with pytest.raises(DataError, match="not finite"):
        section_of([one, replace(other, positions=np.full_like(other.positions, np.nan))], candidate=one)
    with pytest.raises(DataError, match="has 5 frames"):
        section_of([one, made(1, 5)], candidate=other)
    with pytest.raises(InputError, match="no candidate"):
        section_of([one, other])
    with pytest.raises(InputError, match="cannot be called 'reference'"):
        section_of([one, other], reference=one)
    methane = replace(one, group="methane")
    with pytest.raises(DataError, match="no reference, only of ethanol, methane"):
        section_of(
            [one, other, methane, replace(other, group="methane")], candidate=replace(one, group="propane")
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("report")
    cost = {"teacher_gradients": 6000, "teacher_energies": 0, "seconds": 30.0}
    references = [made(seed, settings=LANGEVIN | cost | {"seed": seed}) for seed in range(3)]
    cheap = made(5, settings=LANGEVIN | {"integrator": "MTSLangevin", "teacher_gradients": 750})
    broken = made(6)
    broken.positions[100:] = np.inf
    numbers = write_dynamics_report(
        folder, references, {"cheap": [cheap], "broken": [broken]}, control=[made(7, hot=1.3)],
        files={"reference": ["a.h5"]},
    )  # fmt: skip
    return folder, numbers


def test_page_is_self_contained_and_whole(report: tuple[Path, dict]):
    page = (report[0] / "dynamics.html").read_text()
    assert not re.search(r"https?:|src=|@import|url\((?!#)|<link|<script", page)
    for heading in (
        "Metric by metric",
        "Is energy conserved?",
        "Bond lengths",
        "Flips per nanosecond",
        "What did it cost?",
    ):
        assert heading in page
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert page.count("<svg") >= 8
    assert "nan" not in re.findall(r">\s*(nan|None)\s*<", page)


def test_every_table_of_metrics_has_floor_control_and_candidates(report: tuple[Path, dict]):
    page = (report[0] / "dynamics.html").read_text()
    tables = re.findall(r"<table>.*?</table>", page, flags=re.DOTALL)
    with_columns = [table for table in tables if "<th>cheap</th>" in table]
    assert len(with_columns) >= 8
    assert all(f"<th>{CONTROL}</th>" in table and "<th>broken</th>" in table for table in with_columns)
    assert all("<th>reference</th>" in table and "<th>noise floor</th>" in table for table in with_columns)


def test_missing_numbers_say_so(report: tuple[Path, dict]):
    page = (report[0] / "dynamics.html").read_text()
    cost = page[page.index("What did it cost?") :]
    assert "not recorded" in cost
    rows = {row["key"]: row for row in report[1]["sections"][0]["cost"]}
    assert rows["seconds"]["cells"]["cheap"]["value"] is None
    assert rows["teacher_gradients"]["cells"]["cheap"]["times"] == pytest.approx(8.0)
    assert rows["calls"]["cells"]["cheap"]["times"] == pytest.approx(8.0)
    assert rows["seconds"]["reference"] == pytest.approx(30 / 2.998)


def test_numbers_and_verdicts(report: tuple[Path, dict]):
    numbers = json.loads((report[0] / "metrics.json").read_text())
    section = numbers["sections"][0]
    words = {verdict["name"]: verdict for verdict in section["verdicts"]}
    assert words["cheap"]["level"] in ("trust", "care")
    assert words["broken"]["level"] == "distrust"
    assert any("Broke down after 0.2 ps" in remark["text"] for remark in section["remarks"])
    assert section["control_verdict"]["level"] == "distrust"
    assert "Temperature of H" in section["control_verdict"]["far"]
    assert len(section["findings"]) == len(section["metrics"])
    assert all(row["floor"] is None or len(row["floor"]["values"]) == 3 for row in section["metrics"])
    assert section["runs"][0]["nyquist"] == pytest.approx(metrics.nyquist(2.0))
    assert str(round(metrics.nyquist(2.0))) in (report[0] / "dynamics.html").read_text()


def test_two_molecules_are_two_sections_and_a_missing_control_is_said(tmp_path: Path):
    def water(seed: int) -> Trajectory:
        run, atoms = made(seed, 200), molecule("H2O")
        return replace(
            run, numbers=atoms.numbers, masses=atoms.get_masses(), group="water", smiles="O",
            positions=atoms.positions + 0.02 * np.random.default_rng(seed).standard_normal((200, 3, 3)),
            velocities=run.velocities[:, :3],
        )  # fmt: skip

    references = [made(0, 200), made(1, 200), water(2), water(3)]
    numbers = write_dynamics_report(tmp_path, references, {"same": [made(4, 200), water(5)]})
    assert [section["group"] for section in numbers["sections"]] == ["ethanol", "water"]
    assert all(any("No control" in remark["text"] for remark in s["remarks"]) for s in numbers["sections"])
    assert "This molecule has no dihedral" in (tmp_path / "dynamics.html").read_text()


# --------------------------------------------------------------------------------------------------- the command line


def test_lists_on_the_command_line():
    words = ["--reference", "a", "b", "--candidate", "x=1", "2", "--candidate=y=3", "4", "--out", "o", "--discard", "1"]
    assert repeat_options(words) == [
        "--reference", "a", "--reference", "b", "--candidate", "x=1", "--candidate", "2", "--candidate=y=3",
        "--candidate", "4", "--out", "o", "--discard", "1",
    ]  # fmt: skip
    assert named_files(["x=1", "2", "y=3", "x=4"]) == {"x": ["1", "2", "4"], "y": ["3"]}
    with pytest.raises(InputError, match="NAME=FILE"):
        named_files(["mts.h5"])


def test_command_writes_the_report_and_prints_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    runs = {"a": made(0, 300), "b": made(1, 300), "c": made(2, 300), "m": made(3, 300), "n": made(4, 300, hot=1.5)}
    monkeypatch.setattr(trajectory_module, "read_trajectories", lambda path: [runs[path]], raising=False)
    out = tmp_path / "report"
    code = main(
        ["evaluate-dynamics", "--reference", "a", "b", "c", "--candidate", "mts=m", "--control", "n", "--out", str(out)]
    )
    said = "".join(capsys.readouterr())
    assert code == 0, said
    assert (out / "dynamics.html").is_file()
    assert "Temperature of H" in said
    assert "mts" in said
    assert main(["evaluate-dynamics", "--reference", "a", "--candidate", "mts=m", "--out", str(out)]) == 2
    assert "only one reference trajectory" in capsys.readouterr().err
