"""The processes of a training, and the few things they tell each other.

Started alone, a process is a world of its own and tells nobody anything. Under torchrun it joins the others: gloo
carries tensors on the CPU, NCCL those on GPUs.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Before there is a group, or the default arguments of its functions keep that group, and its threads, to the end.
import torch.distributed.nn.functional
from torch import Tensor

from ..ase_calcs.errors import DistillaseError

TIMEOUT = timedelta(minutes=10)  # compiling a training step takes two, and no rank waits longer for the others


class ProcessLost(DistillaseError, ConnectionError):
    """Another process of the world cannot be reached any more."""


@dataclass(frozen=True)
class World:
    """Who this process is.

    Attributes
    ----------
    rank, size
        Its number among all processes, and how many there are.
    local_rank
        Its number on this machine: that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes files and talks to people."""
        return self.rank == 0

    def device(self, kind: str) -> str:
        """``cuda`` becomes this process's own GPU, and ``auto`` that or the CPU."""
        return f"cuda:{self.local_rank}" if _on_gpus(kind) else kind.replace("auto", "cpu")

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; the same to the last bit on each of them."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_together(self, *tensors: Tensor) -> None:
        """As `sum`, for tensors of any types that are under way at the same time: a message costs its latency."""
        if self.size > 1:
            for message in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                message.wait()

    def largest(self, value: float) -> float:
        """The largest value that any process has."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor)

    def smallest(self, tensor: Tensor) -> Tensor:
        """The smallest value of all processes, element by element, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tensor

    def of_first(self, value: float) -> float:
        """The value of the first process: clocks differ, decisions must not."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(tensor, src=0)
        return float(tensor)

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The first process's clock, and whether any process has been asked to stop."""
        if self.size == 1:
            return seconds, stop
        tensor = torch.tensor([seconds if self.is_first else 0.0, float(stop)], dtype=torch.float64)
        dist.all_reduce(tensor)
        return float(tensor[0]), bool(tensor[1] > 0)

    def share_state(self, tensors: Sequence[Tensor]) -> None:
        """Give everybody the first process's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def share_object(self, value: Any) -> Any:
        """What the first process has: tensors, numbers, text, and lists and dictionaries of them."""
        if self.size == 1:
            return value
        buffer = io.BytesIO()
        if self.is_first:
            torch.save(value, buffer)
        length = int(self.of_first(float(buffer.getbuffer().nbytes)))
        data = torch.zeros(length, dtype=torch.uint8)
        if self.is_first:
            data.copy_(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
        dist.broadcast(data, src=0)
        return value if self.is_first else torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str = "cpu") -> Iterator[World]:
    """The world that torchrun's environment describes, for as long as the block lasts.

    A group that exists already is used, and left as it is. `device` is ``cpu``, ``cuda`` or ``auto``.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    mine = not dist.is_initialized()
    if mine:
        dist.init_process_group("cpu:gloo,cuda:nccl" if _on_gpus(device) else "gloo", timeout=TIMEOUT)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ProcessLost(
                f"The connection to another process of this training broke ({str(error).splitlines()[0]}). Look into "
                "its log for what ended it. torchrun starts all processes again as often as `--max-restarts` says, and "
                "they go on from the last checkpoint; so does the same command."
            ) from error
        raise
    finally:
        if mine:
            _leave()


def _leave() -> None:
    """End the group, and see that its threads end with it.

    A thread of gloo that lives on lets go of the last tensors some time after their message has arrived. If Python is
    ending by then it aborts the process ("terminate called without an active exception"), and torchrun takes a training
    that is over for one that failed. The threads are joined when nothing refers to the group any more.
    """
    gc.collect()  # DeepSpeed's engines are cycles and refer to groups
    comm = sys.modules.get("deepspeed.comm")
    if comm is not None and comm.is_initialized():
        comm.destroy_process_group()  # DeepSpeed's groups too
    else:
        dist.destroy_process_group()


def _on_gpus(kind: str) -> bool:
    return kind == "cuda" or (kind == "auto" and torch.cuda.is_available())
