"""Memory: what is said beforehand is what a step takes, and a limit is kept to, on a CPU with a limit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from distillase.datasets.store import write_dataset
from distillase.datasets.structure import Labels, Structure

FRAMES = 48
SCRIPT = """
import resource, sys, threading, time
from pathlib import Path
import numpy as np, torch
from distillase.ase_calcs.progress import SilentProgress
from distillase.datasets.store import Dataset
from distillase.training.batches import FrameTable
from distillase.training.config import LossConfig, ModelConfig, SplitConfig, TrainConfig
from distillase.training.engine import TorchEngine
from distillase.training.loop import TrainLoop
from distillase.training.memory import step_bytes
from distillase.training.run import keep_freed_memory, prepare_potential, train
from distillase.training.task import PotentialTask

torch.set_num_threads(1)
what, dataset, folder, limit = sys.argv[1], sys.argv[2], Path(sys.argv[3]), 1e6 * float(sys.argv[4])

class Say(SilentProgress):
    def say(self, message): print(message, flush=True)

def in_use(): return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

def keep_to(limit):
    mapped = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (int(mapped + limit),) * 2)

model = ModelConfig(features=32)
config = TrainConfig(batch_edges=10**6, batch_frames=100, max_epochs=2, compile="off", tensorboard=False, clip=0.0)
if what == "train":
    keep_to(limit)
    split = SplitConfig(by="frame", validation=0.1, test=0.1)
    train(dataset, folder, model=model, training=config, split=split, progress=Say())
    sys.exit()
with Dataset(dataset) as data:
    tables = [FrameTable(data, np.arange(*part), cutoff=5.0) for part in ((0, 40), (40, 48))]
potential = prepare_potential(model, (18,), tables[0], seed=0)
task = PotentialTask(potential, LossConfig())
engine = TorchEngine(task, config, tables[0].batch([0, 1]))
engine.step([tables[0].batch([0])], 0.0)
keep_freed_memory()
if what == "loop":
    keep_to(limit)
    loop = TrainLoop(engine, *tables, config, folder, seed=0, fingerprint="", progress=Say())
    print("steps", loop.run().step)
else:
    batch, before, highest, done = tables[0].batch(np.arange(40)), in_use(), [0], threading.Event()

    def watch():
        while not done.is_set():
            highest[0] = max(highest[0], in_use())
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(5):
        engine.step([batch], 0.0)
    done.set()
    thread.join()
    one = tables[0].batch([20])  # what is said comes from one structure
    said = step_bytes(task, one, compiled=False) * batch.edges.shape[1] / one.edges.shape[1]
    print((highest[0] - before) / said)
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clusters of 64 atoms, some 2 000 edges each."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(4) * 2.2] * 3), axis=-1).reshape(-1, 3)
    frames = []
    for _ in range(FRAMES):
        atoms = Atoms("Ar64", grid + 0.1 * rng.normal(size=grid.shape))
        labels = Labels(energy=float(rng.normal()), forces=rng.normal(size=(64, 3)))
        frames.append((Structure(atoms.numbers, atoms.positions), labels))
    return write_dataset(tmp_path_factory.mktemp("data") / "clusters.h5", frames, provenance={})


def run(what: str, dataset: Path, folder: Path, megabytes: float) -> str:
    """What a process says that may use so much more memory than torch itself."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-c", SCRIPT, what, str(dataset), str(folder), str(megabytes)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_said_is_what_a_step_takes(dataset: Path, tmp_path: Path) -> None:
    assert 0.8 < float(run("measure", dataset, tmp_path, 0)) < 1.2


def test_a_limit_is_kept_to(dataset: Path, tmp_path: Path) -> None:
    """Known beforehand, batches are made smaller; met on the way, they are halved, and the step is done again."""
    said = run("train", dataset, tmp_path / "train", 700)
    assert "so that they fit" in said
    assert (tmp_path / "train" / "model.safetensors").is_file()
    said = run("loop", dataset, tmp_path / "loop", 700)
    assert "out of memory with batches of" in said
    assert "steps 2" in said
