"""The examples run as they stand, and the script in the README is one of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distillase.ase_calcs.modelfile import save_model
from distillase.ase_calcs.painn import PaiNN

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where ``runs/quickstart/model.safetensors`` is an untrained network for H, C and O."""
    path = tmp_path_factory.mktemp("clone")
    (path / "runs" / "quickstart").mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PaiNN(elements=(1, 6, 8), cutoff=4.0, features=8, layers=1)
    save_model(path / "runs" / "quickstart" / "model.safetensors", model)
    return path


def run(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_of_the_readme_is_the_example() -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    example = (ROOT / "examples" / "ethanol_md.py").read_text(encoding="utf-8").split('"""', 2)[2]
    assert block.split() == example.split()
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


def test_the_script_of_the_readme_runs(folder: Path) -> None:
    output = run(folder, str(ROOT / "examples" / "ethanol_md.py"))
    assert len(re.findall(r"-?[\d.]+ eV +\d+ K", output)) == 6


def test_md_with_student_runs(folder: Path) -> None:
    output = run(
        folder, str(ROOT / "examples" / "md_with_student.py"), "runs/quickstart/model.safetensors", "--steps", "40"
    )
    assert "steps/s" in output
    assert re.search(r"drifts by [+-][\d.]+ meV/atom/ps", output)
