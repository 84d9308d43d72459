"""The command line as its user meets it: help that teaches, errors of one paragraph, runs that go on."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.io import read, write

from distillase.ase_calcs.bench import energy_drift, time_md
from distillase.launch import commands, pipeline
from distillase.launch.cli import main
from distillase.launch.config import load_recipe

COMMANDS = (
    "distill", "prepare", "label", "train", "validate", "md", "bench", "trajectories", "train-jump",
    "evaluate-dynamics", "dataset",
)  # fmt: skip


def run(*arguments: str) -> int:
    return main([str(argument) for argument in arguments])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"distillase {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["distill", "CCO", "--set", "model.cutof=5"], "unknown key `cutof` in `model`; did you mean `cutoff`?"),
        (["distill", "CCO", "--recipe", "etanol"], "did you mean `ethanol`?"),
        (["distill", "CCO", "--teacher", "gfn2-xtbb"], "did you mean `gfn2-xtb`?"),
        (["distill", "CCO", "--restart-from", "trian"], "did you mean `train`?"),
        (["distill"], "no molecules to work on"),
        (["distill", "nowhere.sdf"], "nowhere.sdf"),
        (["label", "nowhere.h5"], "no dataset file nowhere.h5"),
        (["train", "nowhere.h5"], "no dataset file nowhere.h5"),
    ],
)
def test_a_user_error_is_one_paragraph_and_exit_code_2(
    arguments: list[str], answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--out", tmp_path / "run") == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: ")
    assert answer in message
    assert "Traceback" not in message
    assert "\n\n" not in message.strip()


def test_an_unforeseen_error_leaves_its_traceback_in_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(pipeline, "distill", bug)
    assert run("distill", "CCO", "--out", tmp_path) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert str(tmp_path / "error.log") in message
    assert "ZeroDivisionError: secret" in (tmp_path / "error.log").read_text()


def test_ctrl_c_says_that_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "distill", interrupt)
    assert run("distill", "CCO", "--out", tmp_path) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def test_print_config_is_a_complete_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["CCO", "--teacher", "mmff94", "--seed", "7", "--workers", "3", "--set", "sampling.conformers=2"]
    assert run("distill", *arguments, "--out", tmp_path / "run", "--print-config") == 0
    text = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "printed.yaml")
    assert (recipe.molecules, recipe.teacher, recipe.seed) == (("CCO",), "mmff94", 7)
    assert (recipe.labelling.workers, recipe.sampling.conformers) == (3, 2)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------- a whole, small run

SMALL = (
    "--teacher", "mmff94", "--workers", "1",
    "--set", "sampling.conformers=1", "--set", "sampling.rattled=24", "--set", "sampling.normal_modes=0",
    "--set", "sampling.md.n_frames=0", "--set", "split.by=frame",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Geometries of methanol and of a record that is refused, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("a run")
    (folder / "in.smi").write_text("CO methanol\nnotasmiles bad\n")
    assert run("prepare", folder / "in.smi", "--out", folder / "run", *SMALL) == 0
    return folder


def test_prepare_says_what_it_refused_and_why(prepared: Path) -> None:
    intake = json.loads((prepared / "run" / "intake.json").read_text())
    assert [refusal["name"] for refusal in intake["refusals"]] == ["bad"]
    assert intake["refusals"][0]["reason"]


def test_the_same_command_passes_over_what_is_done(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (prepared / "run" / "geometries.h5").stat().st_mtime_ns
    assert run("prepare", prepared / "in.smi", "--out", prepared / "run", *SMALL) == 0
    assert capsys.readouterr().out.count("done already") == 2
    assert (prepared / "run" / "geometries.h5").stat().st_mtime_ns == before


def test_changed_settings_and_changed_files_are_refused(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (prepared / "run" / "config.yaml").read_text()
    assert run("prepare", prepared / "in.smi", "--out", prepared / "run", *SMALL, "--set", "sampling.rattled=25") == 2
    assert "sampling.rattled: 24 there, 25 now" in capsys.readouterr().err
    other = prepared / "other" / "in.smi"
    other.parent.mkdir(exist_ok=True)
    other.write_text("CO methanol\n")
    assert run("prepare", other, "--out", prepared / "run", *SMALL) == 2
    assert "molecules: " in capsys.readouterr().err
    assert (prepared / "run" / "config.yaml").read_text() == config, "a refused command must not touch the folder"


def test_config_yaml_runs_again_from_anywhere(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("prepare", "--recipe", prepared / "run" / "config.yaml", "--out", tmp_path / "again") == 0
    from distillase.datasets.store import Dataset

    with Dataset(prepared / "run" / "geometries.h5") as old, Dataset(tmp_path / "again" / "geometries.h5") as new:
        assert old.content_hash == new.content_hash


def test_a_stage_of_a_begun_folder_takes_the_recipe_of_the_folder(prepared: Path) -> None:
    recipe = commands._recipe("", prepared / "run", None)
    assert recipe.teacher == "mmff94"
    assert recipe.sampling.rattled == 24
    assert yaml.safe_load((prepared / "run" / "config.yaml").read_text())["molecules"] == [str(prepared / "in.smi")]


# ------------------------------------------------------------------------------------------------------ md and bench


@pytest.fixture
def water(tmp_path: Path) -> Path:
    write(tmp_path / "water.xyz", molecule("CH3OH"))
    return tmp_path / "water.xyz"


def test_md_prints_the_drift_and_writes_a_trajectory(water: Path, tmp_path: Path, capsys) -> None:
    code = run("md", "mmff94", water, "--ensemble", "nve", "--relax", "--steps", 40, "--interval", 20,
               "--timestep", 0.2, "--trajectory", tmp_path / "t.extxyz")  # fmt: skip
    assert code == 0
    text = capsys.readouterr().out
    drift = float(re.search(r"NVE drift ([+-][\d.]+) meV/atom/ps", text).group(1))
    assert abs(drift) < 50  # 8 fs of velocity Verlet: only a blunder shows
    frames = read(tmp_path / "t.extxyz", index=":")
    assert len(frames) == 3
    assert np.isfinite([frame.get_potential_energy() for frame in frames]).all()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["mmff94", "CO", "--ensemble", "nvt"], "Unknown ensemble `nvt`"),
        (["mmff9", "CO"], "did you mean `mmff94`?"),
        (["gone.safetensors", "CO"], "no model file gone.safetensors"),
        (["mmff94", "gone.xyz"], "gone.xyz"),
        (["mmff94", "CO", "--timestep", "0"], "must be positive"),
        (["mmff94", "CO", "--trajectory", "t.pdb"], ".extxyz"),
    ],
)
def test_md_answers_mistakes(arguments: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("md", *arguments) == 2
    assert answer in capsys.readouterr().err


def test_drift_is_the_slope_per_atom_and_picosecond() -> None:
    times = np.arange(0.0, 2000.0, 10.0)  # fs
    energies = -310.0 + 3e-6 * times + 1e-3 * np.sin(2 * np.pi * times / 100.0)  # 3 meV/ps
    assert energy_drift(times, energies, 6) == pytest.approx(0.5, abs=0.05)


def test_the_shares_of_a_timed_run_sum_to_one() -> None:
    from ase.calculators.emt import EMT

    atoms = molecule("CH3OH")
    positions = atoms.positions.copy()
    calculator = EMT()
    speed = time_md(calculator, atoms, steps=10, name="EMT")
    assert sum(speed.shares.values()) == pytest.approx(1.0)
    assert speed.shares["calculator"] > 0
    assert speed.ns_per_day(0.5) == pytest.approx(86400 / speed.seconds_per_step * 0.5e-6)
    assert "get_property" not in vars(calculator), "the clocks must be taken away"
    np.testing.assert_array_equal(atoms.positions, positions)


def test_the_module_runs_like_the_script(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distillase.launch", "distill", "--out", "x", "--recipe", "nope"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Unknown recipe `nope`")


# ------------------------------------------------------------------------------------------- from labels to the report

TRAINING = (
    "--set", "training.max_epochs=2", "--set", "training.compile=off", "--set", "model.features=8",
    "--set", "training.tensorboard=false", "--set", "split.validation=0.2", "--set", "split.test=0.2",
    "--set", "report.md_ps=0", "--set", "report.teacher_md_ps=0", "--set", "report.nve_ps=0.01",
    "--set", "report.speed_seconds=0.05", "--set", "report.n_structures=2", "--set", "report.n_worst=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def labelled(prepared: Path) -> Path:
    out = prepared / "run"
    assert run("label", out / "geometries.h5", "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def trained(labelled: Path) -> Path:
    """A copy of the model, which stays when the run folder is worked on."""
    assert run("train", labelled / "dataset.h5", "--out", labelled, *TRAINING) == 0
    return Path(shutil.copy(labelled / "model.safetensors", labelled.parent / "model.safetensors"))


def test_one_by_one_and_in_one_go_are_the_same_run(
    prepared: Path, labelled: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`prepare`, `label`, `train`, `validate` in one folder leave nothing to do for `distill`."""
    out = labelled
    splits = json.loads((out / "splits.json").read_text())
    assert sorted(splits) == ["test", "train", "validation"]
    assert run("validate", out / "model.safetensors", out / "dataset.h5", "--out", out) == 0
    assert "held out in" in capsys.readouterr().out
    made = {path.name: path.stat().st_mtime_ns for path in out.iterdir() if path.suffix in (".h5", ".safetensors")}
    assert run("distill", prepared / "in.smi", "--out", out, *SMALL, *TRAINING) == 0
    text = capsys.readouterr().out
    assert text.count("done already") == 5
    for name in ("report.html", "model.safetensors", "dataset.h5", "config.yaml", "metrics.jsonl"):
        assert (out / name).is_file()
        assert re.search(rf"── {re.escape(name)} +[\d.]+ [kM]?B  \w+", text), f"{name} is not in the tree"
    assert made == {name: (out / name).stat().st_mtime_ns for name in made}


def test_a_stage_done_again_keeps_its_predecessor_and_the_labels(
    labelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = labelled
    arguments = ("label", out / "geometries.h5", "--out", out, "--set", "labelling.max_force=99")
    assert run(*arguments) == 2
    assert "labelling.max_force: 100.0 there, 99.0 now" in capsys.readouterr().err
    assert run(*arguments, "--restart-from", "label") == 0
    assert "(0 now, " in capsys.readouterr().out
    assert (out / "old-1" / "dataset.h5").is_file()
    assert (out / "labels").is_dir()


def test_bench_tells_network_neighbour_list_and_ase_apart(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", trained, "CO", "--steps", 20, "--teacher", "mmff94") == 0
    text = capsys.readouterr().out
    for part in ("network", "neighbour list", "ASE"):
        assert re.search(rf"{part} \d+ %", text)
    assert "ns/day" in text
    assert "teacher mmff94" in text
