"""What a training will need of each process: memory, messages, time, from a few steps of one process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.splits import split_indices
from ..datasets.store import Dataset
from .batches import EdgeBudgetSampler, FrameTable, share
from .config import ModelConfig, SplitConfig, TrainConfig
from .engine import TorchEngine
from .memory import step_bytes, used_bytes
from .run import prepare_potential
from .task import PotentialTask
from .world import World

SAMPLE = 512  # frames whose neighbours are counted; the rest is taken to be like them
TIMED = 12  # steps
BANDWIDTH = 1e9  # bytes/s, of a modest network


@dataclass(frozen=True)
class Measured:
    """Of one process with the whole step.

    Attributes
    ----------
    weights
        Numbers that are trained.
    optimizer
        Numbers that the optimizer keeps.
    bytes_per_number
        Of both.
    program
        Bytes of the process itself, with its libraries; 0 on a GPU.
    activations
        Bytes that a step of the largest batch takes beyond the rest.
    table
        Bytes of all training frames with their neighbours. Several processes prepare a part each, and map the others'.
    frames
        In the training set.
    edges
        (F,) of the frames that were looked at.
    seconds_per_edge
        Of a step.
    compiled
        Whether that was the compiled step.
    """

    weights: int
    optimizer: int
    bytes_per_number: int
    program: int
    activations: int
    table: int
    frames: int
    edges: np.ndarray
    seconds_per_edge: float
    compiled: bool


@dataclass(frozen=True)
class Need:
    """Of each process, at one stage of ZeRO; bytes and seconds."""

    zero: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    program: int
    activations: int
    table: int
    message: int
    frames: float
    edges: float
    imbalance: float
    epoch: float

    @property
    def memory(self) -> int:
        """Together."""
        kept = self.weights + self.gradients + self.optimizer + self.average + self.table
        return self.program + kept + self.activations


def measure(
    dataset: str | Path, model: ModelConfig, training: TrainConfig, split: SplitConfig, *, seed: int = 0
) -> Measured:
    """Take a few steps on some frames."""
    program = used_bytes()
    with Dataset(dataset) as data:
        fractions = {
            "train": 1.0 - split.validation - split.test, "validation": split.validation, "test": split.test,
        }  # fmt: skip
        frames = split_indices(data, by=split.by, fractions=fractions, seed=seed)["train"]
        some = np.sort(np.random.default_rng(seed).permutation(frames)[:SAMPLE])
        labels = tuple(name for name in ("stress", "charges", "dipole") if getattr(training.loss, name) > 0)
        dtype = getattr(torch, model.dtype)
        table = FrameTable(data, some, cutoff=model.cutoff, labels=labels, dtype=dtype)
        elements = tuple(sorted({int(z) for z in np.unique(data.numbers)}))
    world = World()
    potential = prepare_potential(model, elements, table, seed=seed).to(world.device(training.engine.device))
    task = PotentialTask(potential, training.loss, precision=training.precision)
    engine = TorchEngine(task, training, table.batch(np.arange(min(2, len(table)))), world)
    sampler = EdgeBudgetSampler(
        table.edge_counts, batch_edges=training.batch_edges, batch_frames=training.batch_frames, seed=seed
    )
    batches = sampler.epoch(0)
    largest = max(batches, key=lambda chosen: int(table.edge_counts[chosen].sum()))
    activations = round(step_bytes(task, table.batch(largest), compiled=engine.compiled))
    timed, seconds, edges = (batches * TIMED)[: TIMED + 2], 0.0, 0
    for number, chosen in enumerate(timed):
        began = time.perf_counter()
        engine.step([table.batch(chosen)], 0.0)
        if number >= 2:  # the first ones warm up
            seconds += time.perf_counter() - began
            edges += int(table.edge_counts[chosen].sum())
    trained = [p for p in task.parameters() if p.requires_grad]
    return Measured(
        weights=sum(p.numel() for p in trained),
        optimizer=optimizer_numbers(engine.optimizer),
        bytes_per_number=trained[0].element_size(),
        program=program if engine.device.type == "cpu" else 0,
        activations=activations,
        table=round(table.nbytes * len(frames) / max(len(some), 1)),
        frames=len(frames),
        edges=table.edge_counts,
        seconds_per_edge=seconds / max(edges, 1),
        compiled=engine.compiled,
    )


def plan(measured: Measured, training: TrainConfig, processes: int) -> list[Need]:
    """For ZeRO 0, 1 and 2.

    ZeRO divides the optimizer's numbers and keeps a copy of the weights beside them; stage 2 divides gradients too. The
    sum of the gradients over W processes sends 2 (W − 1)/W times their size, and ZeRO as much: gradients out, weights
    back.
    """
    m, w = measured, processes
    size = m.weights * m.bytes_per_number
    sampler = EdgeBudgetSampler(
        m.edges, batch_edges=training.batch_edges, batch_frames=training.batch_frames, seed=0
    )  # fmt: skip
    steps = [np.concatenate(batches) for batches in sampler.steps(0, training.accumulate)]
    loads = np.array([[m.edges[part].sum() for part in share(step, m.edges, w)] for step in steps])
    busiest, mean = loads.max(axis=1).mean(), float(loads.mean())
    frames = len(m.edges) / len(steps)
    message = round(2 * (w - 1) / w * size)
    epoch = m.frames / frames * (busiest * m.seconds_per_edge + message / BANDWIDTH)
    divided = -(-m.optimizer * m.bytes_per_number // w) + -(-size // w)
    return [
        Need(
            zero=zero, weights=size, gradients=-(-size // w) if zero == 2 else size,
            optimizer=divided if zero else m.optimizer * m.bytes_per_number, average=size if training.ema else 0,
            program=m.program, activations=m.activations, table=-(-m.table // w), message=message, frames=frames,
            edges=mean, imbalance=float(busiest / mean), epoch=float(epoch),
        )
        for zero in ((0, 1, 2) if w > 1 else (0,))
    ]  # fmt: skip


def optimizer_numbers(optimizer: Any) -> int:
    """How many numbers an optimizer keeps on this process, its count of steps aside."""
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() for value in kept if torch.is_tensor(value) and value.ndim > 0)
