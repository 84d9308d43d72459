"""What every process of a world does in tests of engines: some steps of several trainings. Run by torchrun."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillase.ase_calcs.progress import SilentProgress
from distillase.datasets.store import Dataset
from distillase.training.batches import EdgeBudgetSampler, FrameTable, SharedTable
from distillase.training.config import EngineConfig, LossConfig, ModelConfig, TrainConfig
from distillase.training.engine import NonFiniteLoss, OutOfMemory, TorchEngine, make_engine
from distillase.training.loop import LoopState, TrainLoop
from distillase.training.optimizers import ExponentialAverage
from distillase.training.plan import optimizer_numbers
from distillase.training.run import prepare_potential
from distillase.training.task import PotentialTask
from distillase.training.world import World, join_world

MODEL = ModelConfig(features=8, layers=2, n_basis=6, cutoff=4.0)
STEPS = 50
BASE = TrainConfig(batch_frames=5, accumulate=2, compile="off", tensorboard=False, lr=1e-3, optimizer="sgd", clip=0.0)
CASES = {
    "plain": ("float64", BASE),
    "clipped": ("float64", replace(BASE, clip=0.02)),
    "single batches": ("float64", replace(BASE, accumulate=1, batch_frames=3)),
    "adamw": ("float64", replace(BASE, optimizer="adamw", lr=1e-4)),
    "float32": ("float32", BASE),
    "bf16": ("float32", replace(BASE, precision="bf16")),
}


def make_tables(path: Path, world: World, folder: Path, dtype: str) -> list[FrameTable | SharedTable]:
    """For training and validation; 13 frames of training make the last batches uneven."""
    with Dataset(path) as data:
        settings = {"cutoff": MODEL.cutoff, "dtype": getattr(torch, dtype)}
        parts = (np.arange(13), np.arange(13, 20))
        if world.size == 1:
            return [FrameTable(data, frames, **settings) for frames in parts]
        return [SharedTable(data, frames, world, folder / "frames", **settings) for frames in parts]


def follow(path: Path, world: World, name: str, zero: int, folder: Path) -> dict[str, np.ndarray]:
    """Weights, their average, validation sums and norms after some steps."""
    dtype, config = CASES[name]
    config = replace(config, engine=EngineConfig(zero=zero))
    model = replace(MODEL, dtype=dtype)
    tables = make_tables(path, world, folder, dtype)
    potential = prepare_potential(model, (1, 6, 8), tables[0], seed=world.rank)
    task = PotentialTask(potential, LossConfig(angle=1.0), precision=config.precision)
    engine = make_engine(task, config, tables[0].batch([0, 1]), world)
    average = ExponentialAverage(task, 0.9)
    sampler = EdgeBudgetSampler(tables[0].edge_counts, batch_edges=90, batch_frames=config.batch_frames, seed=3)
    norms, done, epoch = [], 0, 0
    while done < STEPS:
        for batches in sampler.steps(epoch, config.accumulate):
            mine = sampler.of_rank(batches, world)
            _, norm = engine.step([tables[0].batch(frames) for frames in mine], config.lr)
            average.update()
            norms.append(norm)
            done += 1
        epoch += 1
    every = EdgeBudgetSampler(tables[1].edge_counts, batch_edges=10**6, batch_frames=3, seed=0)
    mine = every.of_rank(every.in_order(), world)
    sums = engine.evaluate([tables[1].batch(frames) for frames in mine])
    return {
        "weights": torch.cat([p.detach().reshape(-1).double() for p in task.parameters()]).numpy(),
        "average": torch.cat([a.reshape(-1).double() for a in average.average]).numpy(),
        "validation": sums.numpy(),
        "norms": np.array(norms),
        "optimizer numbers": np.array(optimizer_numbers(getattr(engine.optimizer, "optimizer", engine.optimizer))),
    }


def act_together(path: Path, world: World, folder: Path) -> list[str]:
    """What every process raises, and whether weights move, when the last one runs out of memory, or into a NaN."""
    table = make_tables(path, world, folder, "float64")[0]
    potential = prepare_potential(replace(MODEL, dtype="float64"), (1, 6, 8), table, seed=0)
    task = PotentialTask(potential, LossConfig())
    engine = TorchEngine(task, BASE, table.batch([0, 1]), world)
    forward, found = engine._forward, []
    before = [p.detach().clone() for p in task.parameters()]

    def full(*_: object) -> None:
        raise MemoryError

    def not_a_number(*inputs: Any) -> Any:
        loss, sums = forward(*inputs)
        return loss * torch.nan, sums * torch.nan

    for broken in (full, not_a_number):
        if world.rank == world.size - 1:
            engine._forward = broken  # type: ignore[assignment]
        try:
            engine.step([table.batch([world.rank])], 1e-3)
        except (OutOfMemory, NonFiniteLoss) as error:
            found.append(type(error).__name__)
    same = all(torch.equal(p, old) for p, old in zip(task.parameters(), before, strict=True))
    return [*found, "kept" if same else "moved"]


class Killed(Exception):
    """Stands for the end of a process after some step."""


def learn(path: Path, folder: Path, world: World, zero: int, stop: int = 0) -> np.ndarray:
    """A short training to its end, or to step `stop`; a checkpoint after every step. Returns the best weights."""
    folder.mkdir(exist_ok=True)
    config = replace(
        CASES["adamw"][1], max_epochs=6, validate_every=1, checkpoint_seconds=0.0, ema=0.9,
        engine=EngineConfig(zero=zero),
    )  # fmt: skip
    tables = make_tables(path, world, folder, "float64")
    model = replace(MODEL, dtype="float64")
    task = PotentialTask(prepare_potential(model, (1, 6, 8), tables[0], seed=world.rank), LossConfig())
    engine = make_engine(task, config, tables[0].batch([0, 1]), world)
    loop = TrainLoop(
        engine, tables[0], tables[1], config, folder, seed=3, fingerprint="", progress=SilentProgress()
    )  # fmt: skip

    def stop_there(state: LoopState) -> None:
        if state.step == stop:
            loop._save()
            raise Killed

    with suppress(Killed):
        loop.run(stop_there)
    return torch.cat([p.detach().reshape(-1) for p in task.parameters()]).numpy()


def names_of_threads() -> list[str]:
    """Of this process, those of C++ among them."""
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))


def main(path: str, out: str) -> None:
    """Every case on every engine, and trainings that end or begin with another number of processes."""
    torch.set_num_threads(1)
    rows: list[int] = []
    whole = Dataset._read

    def counted(self: Dataset, name: str, part: slice) -> np.ndarray:
        values = whole(self, name, part)
        rows.append(len(values) if name == "forces" else 0)
        return values

    Dataset._read = counted  # type: ignore[method-assign]
    with join_world() as world:
        make_tables(Path(path), world, Path(out), "float32")
        np.save(Path(out) / f"rows-rank{world.rank}.npy", sum(rows))
        np.save(Path(out) / f"together-rank{world.rank}.npy", act_together(Path(path), world, Path(out)))
        for zero in (0, 1, 2):
            for name in CASES:
                found = follow(Path(path), world, name, zero, Path(out))
                np.savez(Path(out) / f"{name}-zero{zero}-rank{world.rank}.npz", **found)
            learn(Path(path), Path(out) / f"two-then-one-{zero}", world, zero, stop=5)
            weights = learn(Path(path), Path(out) / f"one-then-two-{zero}", world, zero)
            np.save(Path(out) / f"one-then-two-{zero}-rank{world.rank}.npy", weights)
    (Path(out) / f"threads-rank{world.rank}").write_text("\n".join(names_of_threads()))


if __name__ == "__main__":
    main(*sys.argv[1:])
