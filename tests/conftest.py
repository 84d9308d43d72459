"""What several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import namespaces
import pytest
import torch

from distillase.ase_calcs.compiled import CompiledPotential, find_compiler
from distillase.ase_calcs.modelfile import load_model, save_model
from distillase.ase_calcs.painn import PaiNN


@pytest.fixture(scope="session")
def compiled_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file (float64, with charges) with its compiled package beside it; made once, for it takes a while."""
    if find_compiler() is None:
        pytest.skip("needs a C++ compiler (c++, g++ or clang++), and none was found")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        potential = PaiNN(
            (1, 6, 8), features=8, layers=2, cutoff=3.5, n_basis=6, rank=2, charges=True, dtype=torch.float64
        )
    folder = tmp_path_factory.mktemp("compiled") / "a folder"  # with a space, as users have them
    folder.mkdir()
    path = save_model(folder / "model.safetensors", potential)
    CompiledPotential(load_model(path), path)
    return path


@pytest.fixture
def nodes() -> Iterator[None]:
    """Two machines on one, see `namespaces.py`."""
    namespaces.build()
    yield
    namespaces.clear()
