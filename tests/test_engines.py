"""Engines: any number of processes take the same steps."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import CASES, MODEL, follow, learn
from test_training import frames

from distillase.ase_calcs.errors import InputError
from distillase.datasets.store import Dataset, write_dataset
from distillase.training.batches import share
from distillase.training.config import EngineConfig, SplitConfig, TrainConfig
from distillase.training.engine import make_engine
from distillase.training.loggers import read_metrics
from distillase.training.plan import measure, plan
from distillase.training.task import PotentialTask
from distillase.training.world import World

HERE = Path(__file__).parent


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def command(processes: int) -> list[str]:
    """torchrun, with so many processes on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "emt.h5", frames(20), provenance={"teacher": "emt"})


@pytest.fixture(scope="module")
def two_ranks(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have after every case on every engine."""
    out = tmp_path_factory.mktemp("ranks")
    for zero in (0, 1, 2):
        learn(dataset, out / f"one-then-two-{zero}", World(), 0, stop=5)
    words = [*command(2), str(HERE / "ranks.py"), str(dataset), str(out)]
    run = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return out


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(name: str, zero: int, dataset: Path, two_ranks: Path) -> None:
    """Weights, their average, the norms of the gradients and the validation, after 50 steps with uneven batches."""
    torch.set_num_threads(1)
    alone = follow(dataset, World(), name, 0, two_ranks)
    ranks = [np.load(two_ranks / f"{name}-zero{zero}-rank{rank}.npz") for rank in range(2)]
    # Products of bfloat16 have eight bits: the order of a sum may move the last of them.
    tolerance = 2**-8 if name == "bf16" else 1e-10 if CASES[name][0] == "float64" else 1e-5
    alone.pop("optimizer numbers")
    for key, expected in alone.items():
        np.testing.assert_array_equal(ranks[0][key], ranks[1][key])
        close = max(tolerance, 1e-6) if key == "norms" and zero else tolerance  # DeepSpeed sums norms in float32
        np.testing.assert_allclose(ranks[0][key], expected, rtol=close, atol=close, err_msg=key)
    assert np.abs(alone["norms"]).max() > 0.02  # so that clipping at 0.02 does something
    assert np.ptp(alone["weights"] - alone["average"]) > 1e-6


def test_what_stops_one_process_stops_all(two_ranks: Path) -> None:
    for rank in range(2):
        assert np.load(two_ranks / f"together-rank{rank}.npy").tolist() == ["OutOfMemory", "NonFiniteLoss", "kept"]


def test_no_thread_of_a_group_outlives_the_world(two_ranks: Path) -> None:
    """One that drops its last tensor while Python ends would abort the process, and torchrun call the run failed."""
    for rank in range(2):
        names = (two_ranks / f"threads-rank{rank}").read_text().split("\n")
        assert "python" in names
        assert not [name for name in names if "gloo" in name]


def test_no_process_reads_the_whole_dataset(dataset: Path, two_ranks: Path) -> None:
    with Dataset(dataset) as data:
        atoms = data.n_atoms
    read = [int(np.load(two_ranks / f"rows-rank{rank}.npy")) for rank in range(2)]
    assert sum(read) == atoms
    assert max(read) < 0.6 * atoms


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_training_goes_on_with_more_or_fewer_processes(
    zero: int, dataset: Path, two_ranks: Path, tmp_path: Path
) -> None:
    """From the checkpoint of one process to two, and back; ZeRO's divided optimizer is put together for it."""
    torch.set_num_threads(1)
    undisturbed = learn(dataset, tmp_path / "whole", World(), 0)
    for rank in range(2):
        resumed = np.load(two_ranks / f"one-then-two-{zero}-rank{rank}.npy")
        np.testing.assert_allclose(resumed, undisturbed, rtol=1e-9, atol=1e-9)
    resumed = learn(dataset, two_ranks / f"two-then-one-{zero}", World(), 0)
    np.testing.assert_allclose(resumed, undisturbed, rtol=1e-9, atol=1e-9)


def test_a_scheduler_that_asks_to_stop_gets_a_checkpoint(dataset: Path, tmp_path: Path) -> None:
    """SIGTERM to torchrun: both processes finish the step, one writes, and the same command goes on from there."""
    words = ["-m", "distillase.launch", "train", str(dataset), "--out", str(tmp_path / "run")]
    settings = {
        "model.features": 8, "training.max_epochs": 100_000, "training.compile": "off", "training.tensorboard": "false",
        "training.checkpoint_seconds": 10_000, "training.validate_every": 1, "split.by": "frame",
    }  # fmt: skip
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(2) + words, env=ENVIRONMENT, stdout=log, stderr=log)
        limit = time.monotonic() + 120
        while (
            not (tmp_path / "run" / "metrics.jsonl").is_file() or len(read_metrics(tmp_path / "run/metrics.jsonl")) < 3
        ):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            assert time.monotonic() < limit
            time.sleep(0.05)
        process.terminate()
        assert process.wait(60) != 0
    saved = torch.load(io.BytesIO((tmp_path / "run" / "checkpoint.pt").read_bytes()[32:]), weights_only=True)
    assert saved["loop"]["step"] >= read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_batches_are_halved_when_memory_runs_out(
    error: Exception, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps, and so the weights, stay what they are; what a single structure needs must be there."""
    undisturbed = learn(dataset, tmp_path / "enough", World(), 0)
    forward, limit, refused = PotentialTask.forward, 12, []

    def scarce(self: PotentialTask, tensors: dict[str, torch.Tensor], counts: torch.Tensor) -> Any:
        if len(tensors["vectors"]) > (limit if self.training else 4 * limit - 20):
            refused.append(len(tensors["vectors"]))
            raise error
        return forward(self, tensors, counts)

    monkeypatch.setattr(PotentialTask, "forward", scarce)
    np.testing.assert_allclose(learn(dataset, tmp_path / "scarce", World(), 0), undisturbed, rtol=1e-9, atol=1e-9)
    assert 0 < len(refused) < 4  # the budget is halved once for all
    limit = 4
    with pytest.raises(InputError, match=r"a single structure \(6 edges\) does not fit into memory"):
        learn(dataset, tmp_path / "none", World(), 0)


def test_the_plan_is_what_engines_then_keep(dataset: Path, two_ranks: Path) -> None:
    """The optimizer's numbers, at one process and at two, whole and divided; ZeRO pads to a few more."""
    config = CASES["adamw"][1]
    measured = measure(dataset, replace(MODEL, dtype="float64"), config, SplitConfig(by="frame"))
    alone = follow(dataset, World(), "adamw", 0, two_ranks)
    assert measured.optimizer == int(alone["optimizer numbers"]) == 2 * measured.weights == 2 * len(alone["weights"])
    assert measured.frames == 17
    for need in plan(measured, config, 2):
        kept = int(np.load(two_ranks / f"adamw-zero{need.zero}-rank0.npz")["optimizer numbers"])
        planned = need.optimizer // 8 - (measured.weights // 2 if need.zero else 0)  # without the copy of the weights
        assert kept == pytest.approx(planned, abs=8)
    one, two = plan(measured, config, 1)[0], plan(measured, config, 2)[0]
    assert two.memory == one.memory - one.table + two.table
    assert two.table == pytest.approx(one.table / 2, abs=1)
    assert one.message == 0
    assert two.message == 8 * measured.weights
    assert two.edges == pytest.approx(one.edges / 2)
    assert 1.0 <= two.imbalance < 1.5


def test_zero_3_and_muon_with_zero_are_refused() -> None:
    with pytest.raises(InputError, match="gathered weights fails"):
        EngineConfig(zero=3)
    with pytest.raises(InputError, match="it is 0, 1 or 2"):
        EngineConfig(zero=4)
    task = torch.nn.Module()
    config = TrainConfig(optimizer="muon", engine=EngineConfig(zero=1))
    with pytest.raises(InputError, match="ZeRO divides them among processes"):
        make_engine(task, config, None, World(size=2))  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_the_frames_of_a_step_are_shared_by_their_edges(ranks: int) -> None:
    rng = np.random.default_rng(0)
    edges = rng.integers(20, 3000, 20_000)
    chosen = rng.permutation(len(edges))[: 16 * ranks]
    parts = share(chosen, edges, ranks)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.sort(chosen))
    load = np.array([edges[part].sum() for part in parts])
    assert load.max() < 1.05 * load.mean()
    assert [len(p) for p in share(np.array([4, 2]), edges, 3)].count(0) == 1
