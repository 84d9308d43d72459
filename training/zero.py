"""DeepSpeed's ZeRO, stages 1 and 2, as an engine: optimizer state, and gradients, divided among the processes.

Forces are computed inside the wrapped module's forward, without which ZeRO fails. What DeepSpeed would do by itself is
switched off: its default clipping at 1.0, its fused communication on CPUs (which compiles C++ on first use and, killed
meanwhile, leaves a lock that hangs the next run for ever), and its averages over processes, since the loss is
normalised over all of them already.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from ..ase_calcs.errors import InputError, require
from .config import TrainConfig
from .engine import evaluate, global_counts, refuse_non_finite, wants_compilation
from .optimizers import make_optimizer
from .task import Task, TaskBatch
from .world import World


class ZeroEngine:
    """ZeRO stage 1 or 2.

    Parameters
    ----------
    task
        Moved to the device already.
    config
        With `engine.zero` 1 or 2.
    example
        A batch of the training set; a process that has none in a step goes through this one, with weight zero, because
        stage 2 exchanges gradients in every backward pass.
    world
        Of two processes or more.
    """

    def __init__(self, task: Task, config: TrainConfig, example: TaskBatch, world: World) -> None:
        if config.optimizer == "muon":
            raise InputError(
                "`training.optimizer: muon` turns whole matrices, and ZeRO divides them among processes. Take "
                "`training.optimizer: adamw` with `engine.zero`, or `engine.zero: 0`, which keeps muon."
            )
        wants_compilation(config, compilable=False)  # refuses `compile: on`
        self.task, self.config, self.world, self.device = task, config, world, task.network.device
        self._example = example.to(self.device)
        world.share_state([*task.parameters(), *task.buffers()])
        if self.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed takes any GPU that it finds
        deepspeed: Any = require("deepspeed", extra="deepspeed", purpose="train with `engine.zero`")
        _forget_groups()
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": config.clip,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": config.engine.zero,
                "overlap_comm": False,
                "reduce_scatter": False,
                # The default is a buffer of half a milliard numbers.
                "reduce_bucket_size": sum(p.numel() for p in task.parameters() if p.requires_grad),
            },
        }
        with _over_gloo(deepspeed), _in_double(task.network.dtype == torch.float64):
            self._engine, self.optimizer, *_ = deepspeed.initialize(
                model=task, optimizer=make_optimizer(config, task.network), config=settings, dist_init_required=False
            )
        # Its hooks on the gradients hold it from C++, where Python's collector does not see them.
        weakref.finalize(self, self._engine.destroy).atexit = False

    def step(self, batches: Sequence[TaskBatch], lr: float, counts: Tensor | None = None) -> tuple[Tensor, float]:
        """See `Engine.step`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._engine.train()
        counts = (global_counts(self.task, batches, self.world) if counts is None else counts).to(self.device)
        total = torch.zeros_like(counts)
        for k in range(int(self.world.largest(len(batches)))):
            batch = batches[k].to(self.device) if k < len(batches) else self._example
            loss, sums = self._engine(batch.tensors(), counts)
            weight = float(self.world.size) if k < len(batches) else 0.0  # DeepSpeed divides by the processes
            self._engine.backward(loss * weight)
            if k < len(batches):
                total += sums
        self.world.sum(total)
        refuse_non_finite(float(total[self.task.sum_names.index("loss")]), 0.0)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        refuse_non_finite(float(total[self.task.sum_names.index("loss")]), norm)
        return total, norm

    def evaluate(self, batches: Sequence[TaskBatch]) -> Tensor:
        """See `Engine.evaluate`."""
        return evaluate(self.task, batches, self.device, self.world)

    def state_dict(self) -> dict[str, Any]:
        """See `Engine.state_dict`: the parts of all processes, put together as if one process had them."""
        return {"task": self.task.state_dict(), "optimizer": self._whole_optimizer()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Engine.load_state_dict`."""
        self.task.load_state_dict(state["task"])
        self.optimizer.refresh_fp32_params()
        self._divide_optimizer(state["optimizer"])

    # ZeRO lays the parameters of a group one behind the other, pads them, and gives each process a stretch. A
    # checkpoint holds what torch's own optimizer would have: a state for every parameter.

    def _groups(self) -> Iterator[tuple[list[torch.nn.Parameter], Tensor]]:
        """Parameters of each group, and this process's stretch of them."""
        yield from zip(self.optimizer.bit16_groups, self.optimizer.single_partition_of_fp32_groups, strict=True)

    def _whole_optimizer(self) -> dict[str, Any]:
        inner, groups, number = self.optimizer.optimizer, [], 0
        state: dict[int, dict[str, Any]] = {}
        for (parameters, stretch), group in zip(self._groups(), inner.param_groups, strict=True):
            numbers = list(range(number, number + len(parameters)))
            number += len(parameters)
            groups.append({key: value for key, value in group.items() if key != "params"} | {"params": numbers})
            for name, value in inner.state.get(stretch, {}).items():
                if not torch.is_tensor(value) or value.numel() != stretch.numel():
                    parts = [value] * len(parameters)  # the number of steps
                else:
                    sizes = [p.numel() for p in parameters]
                    parts = self._gathered(value)[: sum(sizes)].split(sizes)  # padding lies behind
                    parts = [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]
                for k, part in zip(numbers, parts, strict=True):
                    state.setdefault(k, {})[name] = part.clone() if torch.is_tensor(part) else part
        return {"state": state, "param_groups": groups}

    def _gathered(self, stretch: Tensor) -> Tensor:
        flat = stretch.new_zeros(self.world.size * stretch.numel())
        flat[self.world.rank * stretch.numel() : (self.world.rank + 1) * stretch.numel()] = stretch.view(-1)
        self.world.sum(flat)
        return flat

    def _divide_optimizer(self, whole: dict[str, Any]) -> None:
        inner = self.optimizer.optimizer
        groups = zip(self._groups(), inner.param_groups, whole["param_groups"], strict=True)
        for (parameters, stretch), group, saved in groups:
            group.update({key: value for key, value in saved.items() if key != "params"})
            states = [whole["state"].get(k, {}) for k in saved["params"]]
            mine: dict[str, Any] = {}
            for name in states[0] if states else ():
                values = [state[name] for state in states]
                if not all(v.shape == p.shape for v, p in zip(values, parameters, strict=True) if torch.is_tensor(v)):
                    mine[name] = values[0].to(stretch.device, copy=True) if torch.is_tensor(values[0]) else values[0]
                    continue
                flat = torch.cat([v.reshape(-1) for v in values]).to(stretch)
                padded = flat.new_zeros(self.world.size * stretch.numel())
                padded[: flat.numel()] = flat
                first = self.world.rank * stretch.numel()
                mine[name] = padded[first : first + stretch.numel()].clone().view_as(stretch)
            inner.state[stretch] = mine


def _forget_groups() -> None:
    """Replace groups among default arguments, which would keep them and their threads to the end, by None: the same."""
    from deepspeed.comm.torch import TorchBackend

    for function in vars(TorchBackend).values():
        defaults = getattr(function, "__defaults__", None) or ()
        if any(isinstance(value, ProcessGroup) for value in defaults):
            function.__defaults__ = tuple(None if isinstance(value, ProcessGroup) else value for value in defaults)


@contextmanager
def _over_gloo(deepspeed: Any) -> Iterator[None]:
    """Without DeepSpeed's fused communication on CPUs."""
    operations = deepspeed.ops.__compatible_ops__
    before = operations.get("deepspeed_shm_comm")
    operations["deepspeed_shm_comm"] = False
    try:
        yield
    finally:
        operations["deepspeed_shm_comm"] = before


@contextmanager
def _in_double(wanted: bool) -> Iterator[None]:
    """ZeRO keeps the weights that it updates, and sends gradients, in float32 at most: float64 ones would be rounded.

    Its settings know no float64, so its optimizer is told while it is made.
    """
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Zero

    init, master = Zero.__init__, Zero._configure_master_weights

    def in_double(self: Any, *args: Any, **kwargs: Any) -> None:
        double = {"communication_data_type": torch.float64, "gradient_accumulation_dtype": torch.float64}
        init(self, *args, **kwargs | double)

    if wanted:
        Zero.__init__, Zero._configure_master_weights = in_double, lambda *_, **__: torch.float64
    try:
        yield
    finally:
        Zero.__init__, Zero._configure_master_weights = init, master
