"""`distillase launch`: the script for SLURM, run with stand-ins for its commands."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
from test_training import frames

from distillase.ase_calcs.errors import InputError
from distillase.datasets.store import write_dataset
from distillase.launch.cli import main
from distillase.launch.cluster_cli import checked, run_folder
from distillase.launch.train import arguments

STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >>"$QUEUE"; fi',
    "srun": 'shift; exec "$@"',
}


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


@pytest.mark.nodes
def test_a_job_whose_time_is_over_goes_back_into_the_queue_and_ends(script: Path, tmp_path: Path) -> None:
    """As SLURM would: the signal before the limit, then the same job again."""
    for name, body in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    queue, folder = tmp_path / "queue", script.parent
    known = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "QUEUE": str(queue), "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(["bash", str(script)], env=known, stdout=log, stderr=log)
        limit, rows = time.monotonic() + 120, folder / "metrics.jsonl"
        while not rows.is_file() or len(rows.read_text().splitlines()) < 3:
            assert job.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < limit, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(90) == 0, (tmp_path / "log").read_text()[-3000:]
        assert queue.read_text() == "requeue 4711\n"
        assert (folder / "checkpoint.pt").is_file()
        assert not (folder / "model.safetensors").exists()
        again = subprocess.run(["bash", str(script)], env=known, stdout=log, stderr=log, timeout=180, check=False)
    assert again.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert "goes on at epoch" in (tmp_path / "log").read_text()
    assert (folder / "model.safetensors").is_file()


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
