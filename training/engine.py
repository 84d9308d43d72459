"""Engines: how a step is carried out and sums are gathered. The loop talks to this seam and to nothing below it.

An engine owns the wrapped task, the optimizer and the gradient; DDP and DeepSpeed come as further engines.
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


class Engine(Protocol):
    """What the loop needs."""

    rank: int
    world_size: int
    task: Task

    def step(self, batches: Sequence[TaskBatch], lr: float) -> tuple[Tensor, float]:
        """One optimizer step over some batches; global sums (see `Task.sum_names`) and the norm of the gradient."""
        ...

    def evaluate(self, batches: Sequence[TaskBatch]) -> Tensor:
        """Global sums over some batches with the weights as they are, without gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizer."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        ...


class NonFiniteLoss(DistillaseError, ArithmeticError):
    """The loss or its gradient became NaN or infinite."""


class TorchEngine:
    """One process, one device.

    Parameters
    ----------
    task
        Moved to the device already.
    config
        Optimizer, clipping, compilation.
    example
        A batch of the training set, for compilation.
    """

    rank = 0
    world_size = 1

    def __init__(self, task: Task, config: TrainConfig, example: TaskBatch) -> None:
        self.task = task
        self.config = config
        self.optimizer = make_optimizer(config, task.network)
        self.device = task.network.device
        self.compiled = wants_compilation(config, compilable=task.compilable)
        task.train()
        self._forward: nn.Module = CompiledStep(task, example.to(self.device).tensors()) if self.compiled else task

    def step(self, batches: Sequence[TaskBatch], lr: float) -> tuple[Tensor, float]:
        """See `Engine.step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.task.train()
        self.optimizer.zero_grad(set_to_none=True)
        counts = torch.stack([self.task.counts(batch) for batch in batches]).sum(dim=0).to(self.device)
        total = torch.zeros_like(counts)
        trained = [p for p in self.task.parameters() if p.requires_grad]
        for batch in batches:
            loss, sums = self._forward(batch.to(self.device).tensors(), counts)
            # Forces are differentiated with respect to edge vectors. The loss need not be, which saves a part of it.
            loss.backward(inputs=trained)
            total += sums
        parameters = [p for p in trained if p.grad is not None]
        largest = self.config.clip if self.config.clip > 0 else math.inf
        norm = float(nn.utils.clip_grad_norm_(parameters, largest))
        loss_sum = float(total[self.task.sum_names.index("loss")])
        if not (math.isfinite(norm) and math.isfinite(loss_sum)):
            raise NonFiniteLoss(
                f"The loss ({loss_sum:g}) or its gradient ({norm:g}) is not finite. Nothing of this "
                "step was kept and the last checkpoint stands. Lower `training.lr`, set `training.clip`, and look "
                "for outliers with `distillase dataset validate`."
            )
        self.optimizer.step()
        return total, norm

    def evaluate(self, batches: Sequence[TaskBatch]) -> Tensor:
        """See `Engine.evaluate`."""
        self.task.eval()
        counts = torch.stack([self.task.counts(batch) for batch in batches]).sum(dim=0).to(self.device)
        total = torch.zeros_like(counts)
        for batch in batches:
            total += self.task(batch.to(self.device).tensors(), counts)[1]
        self.task.train()
        return total

    def state_dict(self) -> dict[str, Any]:
        """See `Engine.state_dict`."""
        return {"task": self.task.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Engine.load_state_dict`."""
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])


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
