"""Imports point one way, `import distillase.ase_calcs` is light, and importing changes nothing outside."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What may come with torch, numpy, ase, vesin and safetensors is not ours to say; these must not come with ase_calcs.
HEAVY = (
    "rdkit", "tblite", "xtb", "dask", "distributed", "h5py", "pydantic", "typer", "rich", "matplotlib", "jinja2",
    "tensorboard", "pytorch_optimizer", "openmm", "pyscf", "deepspeed", "wandb", "matscipy", "schnetpack",
    "biotite", "yaml",
)  # fmt: skip


def in_a_new_process(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def import_checker():
    spec = importlib.util.spec_from_file_location("import_direction", ROOT / ".ci" / "imports.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imports_point_one_way() -> None:
    assert import_checker().check(ROOT) == []


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("ase_calcs", "from ..datasets import structure"),
        ("datasets", "def f():\n    from ..training.run import train"),
        ("training", "from .. import launch"),
        ("launch", "from distillase.ase_calcs import units"),
        ("datasets", "import distillase.ase_calcs"),
    ],
)
def test_the_check_sees_a_wrong_import(tmp_path: Path, folder: str, line: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "module.py").write_text(line + "\n")
    assert len(import_checker().check(tmp_path)) == 1


def test_ase_calcs_is_light() -> None:
    code = """
import json, sys
import torch, numpy, ase, vesin, safetensors, safetensors.torch
import ase.calculators.calculator, ase.md.md, ase.md.velocitydistribution, ase.md.verlet, ase.stress
before = set(sys.modules)
import distillase.ase_calcs
print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))
"""
    brought = in_a_new_process(code)
    assert not set(brought) & set(HEAVY), f"ase_calcs imports {sorted(set(brought) & set(HEAVY))}"


def test_importing_changes_no_global_state() -> None:
    code = """
import json, logging, os, random
import numpy as np, torch
import rich.style  # draws a number when imported; not ours
def state():
    root = logging.getLogger()
    return [str(torch.get_default_dtype()), torch.get_num_threads(), torch.initial_seed(), len(root.handlers),
            root.level, hash(str(np.random.get_state())), hash(random.getstate()), dict(os.environ)]
before = state()
import distillase.ase_calcs, distillase.datasets, distillase.training, distillase.launch.commands
after = state()
print(json.dumps([a == b for a, b in zip(before, after)]))
"""
    assert all(in_a_new_process(code))


def test_a_missing_extra_is_one_sentence_with_the_pip_line() -> None:
    code = """
import json, sys
sys.modules['typer'] = None
from distillase.launch.cli import main
import contextlib, io
err = io.StringIO()
with contextlib.redirect_stderr(err):
    code = main(['--help'])
print(json.dumps([code, err.getvalue()]))
"""
    code_, message = in_a_new_process(code)
    assert code_ == 2
    assert 'pip install "distillase[train]"' in message
    assert "Traceback" not in message
