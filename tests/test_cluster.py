"""`distillase launch`: what it writes and what it refuses. `test_slurm.py` runs the script."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_training import frames

from distillase.ase_calcs.errors import InputError
from distillase.datasets.store import write_dataset
from distillase.launch.cli import main
from distillase.launch.cluster_cli import checked, run_folder
from distillase.launch.train import arguments


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Of a training that takes long, in a folder with a space."""
    folder = tmp_path / "a run"
    dataset = write_dataset(tmp_path / "emt.h5", frames(20), provenance={"teacher": "emt"})
    words = ["train", str(dataset), "--out", str(folder)]
    settings = {
        "model.features": 8, "training.max_epochs": 400, "training.compile": "off", "training.tensorboard": "false",
        "training.checkpoint_seconds": 10_000, "training.validate_every": 1, "split.by": "frame",
    }  # fmt: skip
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    assert main(["launch", "slurm", "--processes", "2", "--cpus", "2", "--option", "partition=x", "--", *words]) == 0
    assert "sbatch" in capsys.readouterr().out
    return folder / "train.sbatch"


def test_the_script_says_what_slurm_has_to_know(script: Path) -> None:
    text = script.read_text()
    for line in (
        "--nodes=1",
        "--cpus-per-task=2",
        "--requeue",
        "--signal=B:USR1@120",
        "--partition=x",
        "--time=24:00:00",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "--gpus" not in text
    assert "export OMP_NUM_THREADS=1\n" in text
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_a_recipe_alone_says_where_to_train() -> None:
    assert arguments(["runs/x/config.yaml", "--seed", "1"]) == [
        "train", "runs/x/dataset.h5", "--recipe", "runs/x/config.yaml", "--out", "runs/x", "--seed", "1",
    ]  # fmt: skip
    assert arguments([]) == ["train", "--help"]


def test_only_trainings_are_launched() -> None:
    with pytest.raises(InputError, match="is train or train-jump"):
        checked(["--", "label", "x.h5"])
    with pytest.raises(InputError, match="names no folder"):
        run_folder(["train", "x.h5"])
    assert run_folder(["train", "x.h5", "--out=y"]) == Path("y")
