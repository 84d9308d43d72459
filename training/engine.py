"""Engines: how a step is carried out and sums are gathered. The loop talks to this seam and to nothing below it.

An engine owns the task, the optimizer and the gradient. `TorchEngine` is one process or, in a world of several, data
parallel; DeepSpeed's is in `zero.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..ase_calcs.compiled import find_compiler
from ..ase_calcs.errors import DistillaseError, InputError
from .compiled import CompiledStep
from .config import TrainConfig
from .optimizers import make_optimizer
from .task import Task, TaskBatch
from .world import World


class Engine(Protocol):
    """What the loop needs. In a world of several processes all of them call the same methods in the same order."""

    world: World
    task: Task

    def step(self, batches: Sequence[TaskBatch], lr: float, counts: Tensor | None = None) -> tuple[Tensor, float]:
        """One optimizer step over this process's batches (maybe none) and those of the others; the sums (see
        `Task.sum_names`) and the norm of the gradient, both over all of them.

        `counts` are those of the step on all processes, where they are known; else the processes add up theirs.
        """
        ...

    def evaluate(self, batches: Sequence[TaskBatch]) -> Tensor:
        """Sums over the batches of all processes with the weights as they are, without gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer, whole: any number of processes can go on from it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        ...


class NonFiniteLoss(DistillaseError, ArithmeticError):
    """The loss or its gradient became NaN or infinite."""


class OutOfMemory(DistillaseError, MemoryError):
    """A batch did not fit into the memory of some process. Nothing of the step was kept, on any of them."""


class TorchEngine:
    """One device for each process; the gradients of all processes are summed.

    The sum is one message after the backward pass, and not DistributedDataParallel's buckets during it: the gradient of
    a student is a fraction of a megabyte, a process may have several batches or none, a compiled step hands out all
    gradients at once, and a process that runs out of memory in the middle of a pass can still say so to the others.

    Parameters
    ----------
    task
        Moved to the device already.
    config
        Optimizer, clipping, compilation.
    example
        A batch of the training set, for compilation.
    world
        The processes.
    """

    def __init__(self, task: Task, config: TrainConfig, example: TaskBatch, world: World | None = None) -> None:
        self.task = task
        self.config = config
        self.world = world or World()
        self.world.share_state([*task.parameters(), *task.buffers()])
        self.optimizer = make_optimizer(config, task.network)
        self.device = task.network.device
        self.compiled = wants_compilation(config, compilable=task.compilable)
        task.train()
        self._forward: nn.Module = CompiledStep(task, example.to(self.device).tensors()) if self.compiled else task

    def step(self, batches: Sequence[TaskBatch], lr: float, counts: Tensor | None = None) -> tuple[Tensor, float]:
        """See `Engine.step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.task.train()
        self.optimizer.zero_grad(set_to_none=True)
        counts = (global_counts(self.task, batches, self.world) if counts is None else counts).to(self.device)
        total = torch.zeros_like(counts)
        trained = [p for p in self.task.parameters() if p.requires_grad]
        full = ""
        try:
            for batch in batches:
                loss, sums = self._forward(batch.to(self.device).tensors(), counts)
                # Forces are differentiated with respect to edge vectors. The loss need not be: it saves a part of it.
                loss.backward(inputs=trained)
                total += sums
        except (MemoryError, RuntimeError) as error:
            full = _told_to_be_full(error)
        total = self._gather(total, trained, full)
        parameters = [p for p in trained if p.grad is not None]
        largest = self.config.clip if self.config.clip > 0 else math.inf
        norm = float(nn.utils.clip_grad_norm_(parameters, largest))
        refuse_non_finite(float(total[self.task.sum_names.index("loss")]), norm)
        self.optimizer.step()
        return total, norm

    def _gather(self, total: Tensor, trained: list[nn.Parameter], full: str) -> Tensor:
        """Sum gradients and sums over all processes, in one go.

        Raises
        ------
        OutOfMemory
            On all of them if one has run out of it.
        """
        if self.world.size == 1:
            if full:
                raise OutOfMemory(full)
            return total
        if full:  # make room for the message
            self.optimizer.zero_grad(set_to_none=True)
        flat = torch.cat([torch.zeros_like(p).view(-1) if p.grad is None else p.grad.reshape(-1) for p in trained])
        report = torch.cat([total, total.new_tensor([float(bool(full))])])
        self.world.sum_together(flat, report)
        if report[-1] > 0:
            raise OutOfMemory(full or "out of memory on another process")
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p)
        return report[:-1]

    def evaluate(self, batches: Sequence[TaskBatch]) -> Tensor:
        """See `Engine.evaluate`."""
        return evaluate(self.task, batches, self.device, self.world)

    def state_dict(self) -> dict[str, Any]:
        """See `Engine.state_dict`."""
        return {"task": self.task.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Engine.load_state_dict`."""
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])


def _told_to_be_full(error: Exception) -> str:
    """What an error of torch or Python says of memory that has run out, on a GPU or on the CPU; raises any other."""
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
        raise error
    return str(error) or type(error).__name__


def refuse_full(full: str, world: World) -> None:
    """Raise `OutOfMemory` on all processes if any of them has an error to tell."""
    if world.largest(float(bool(full))):
        raise OutOfMemory(full or "out of memory on another process")


def make_engine(task: Task, config: TrainConfig, example: TaskBatch, world: World) -> Engine:
    """The engine that a recipe asks for; ZeRO in a world of one has nothing to divide, and is no other than stage 0."""
    if config.engine.zero == 0 or world.size == 1:
        return TorchEngine(task, config, example, world)
    from .zero import ZeroEngine

    return ZeroEngine(task, config, example, world)


def global_counts(task: Task, batches: Sequence[TaskBatch], world: World) -> Tensor:
    """(len(sum_names),) float64: over how many examples the terms of this step's loss are means."""
    counts = torch.zeros(len(task.sum_names), dtype=torch.float64)
    for batch in batches:
        counts += task.counts(batch).cpu()
    return world.sum(counts)


def evaluate(task: Task, batches: Sequence[TaskBatch], device: torch.device, world: World) -> Tensor:
    """See `Engine.evaluate`."""
    task.eval()
    counts = global_counts(task, batches, world).to(device)
    total, full = torch.zeros_like(counts), ""
    try:
        for batch in batches:
            total += task(batch.to(device).tensors(), counts)[1]
    except (MemoryError, RuntimeError) as error:
        full = _told_to_be_full(error)
    finally:
        task.train()
    refuse_full(full, world)
    return world.sum(total)


def refuse_non_finite(loss: float, norm: float) -> None:
    """Raise `NonFiniteLoss`; loss and norm are those of all processes, so that all raise together."""
    if not (math.isfinite(norm) and math.isfinite(loss)):
        raise NonFiniteLoss(
            f"The loss ({loss:g}) or its gradient ({norm:g}) is not finite. Nothing of this "
            "step was kept and the last checkpoint stands. Lower `training.lr`, set `training.clip`, and look "
            "for outliers with `distillase dataset validate`."
        )


def wants_compilation(config: TrainConfig, *, compilable: bool = True) -> bool:
    """Whether to compile: compilation takes a minute or two, so `auto` does it only where training takes many.

    Raises
    ------
    InputError
        For ``compile: on`` without a C++ compiler, with bfloat16, or for a task that cannot be compiled.
    """
    if not compilable:
        if config.compile == "on":
            raise InputError("`training.compile` is `on`, but the training step of this task cannot be compiled yet.")
        return False
    if config.compile == "off" or (config.compile == "auto" and config.precision == "bf16"):
        return False
    if config.compile == "on":
        if config.precision == "bf16":
            raise InputError("`training.compile: on` cannot be combined with `training.precision: bf16` yet.")
        if find_compiler() is None:
            raise InputError(
                "`training.compile` is `on`, but no C++ compiler was found (c++, g++, clang++). Install one, or say "
                "`auto` or `off`: training is then about three times slower."
            )
        return True
    long_enough = config.minutes is None or config.minutes >= 8
    return long_enough and find_compiler() is not None
