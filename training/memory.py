"""How much memory a step takes, and how much there is."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ase_calcs.progress import Progress
from .task import Task, TaskTable
from .world import World

# Highest memory of a step over what a forward pass keeps for the backward pass, after some steps. Measured with PaiNN
# of 32 to 128 features on batches of 2 000 to 40 000 edges: 1.66 to 1.89, and 0.45 to 0.48 for the compiled step, which
# fuses most of it.
PEAK = 1.8
PEAK_COMPILED = 0.5
_SPARE = 0.8  # of the free memory: other things need some, and so does the estimate


def kept_bytes(task: Task, batch: Any) -> int:
    """Bytes of all tensors that a forward pass keeps for the backward pass, each counted once."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    kept: Sequence[Any]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        counts = task.counts(batch).to(task.network.device)
        kept = task(batch.to(task.network.device).tensors(), counts)
    del kept
    for p in task.parameters():
        seen.pop(p.untyped_storage().data_ptr(), None)
    return sum(seen.values())


def step_bytes(task: Task, batch: Any, *, compiled: bool) -> float:
    """About the memory that a step of this batch takes beyond weights and optimizer."""
    return kept_bytes(task, batch) * (PEAK_COMPILED if compiled else PEAK)


def used_bytes() -> int:
    """Memory of this process, its libraries included; 0 where that is not known."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * resource.getpagesize() if path.is_file() else 0


def free_bytes(device: torch.device) -> float:
    """Memory that this process may still use; infinite where that is not known.

    Processes of this world on the same machine share what is free there.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_free_here() / sharing, _free_of_group() / sharing, _free_of_limit())


def _free_here() -> float:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return np.inf
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024.0 * float(lines["MemAvailable"].split()[0])


def _free_of_group() -> float:
    """Of the control groups (of either version) that a scheduler or a container has put this process into."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return np.inf
    free = np.inf
    for line in lines:
        _, kind, name = line.split(":", 2)
        if kind not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / kind
        names = ("memory.max", "memory.current") if not kind else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        inner = Path(name.lstrip("/"))
        for folder in (root / part for part in (inner, *inner.parents)):
            free = min(free, _free_of_one_group(folder, *names))
    return free


def _free_of_one_group(folder: Path, limit_name: str, used_name: str) -> float:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = float((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return np.inf
    # Files that were read are given back when memory is needed.
    used -= float(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return np.inf if limit == "max" else float(limit) - used


def _free_of_limit() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or not Path("/proc/self/statm").is_file():
        return np.inf
    return float(limit) - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def fitting_edges(
    task: Task,
    table: TaskTable,
    batch_edges: int,
    batch_frames: int,
    world: World,
    progress: Progress,
    *,
    compiled: bool,
) -> int:
    """Say what the largest batch will need. Edges that a batch may have so that it fits into free memory; 0 if all do.

    On a CPU nobody may raise an error when memory runs out: the kernel ends the process.
    """
    edges = np.asarray(table.edge_counts)
    some = [int(np.argsort(edges)[len(edges) // 2])]  # a middling structure: what is kept grows with edges
    per_edge = step_bytes(task, table.batch(np.array(some)), compiled=compiled) / max(int(edges[some].sum()), 1)
    largest = max(min(batch_edges, int(np.sort(edges)[-batch_frames:].sum())), int(edges.max()))
    free = -world.largest(-free_bytes(task.network.device))
    need = per_edge * largest
    if not np.isfinite(free):
        progress.say(f"batches of up to {largest} edges take about {need / 1e6:.0f} MB")
        return 0
    progress.say(f"batches of up to {largest} edges take about {need / 1e6:.0f} MB; {free / 1e6:.0f} MB are free")
    if need <= _SPARE * free:
        return 0
    fitting = max(int(_SPARE * free / per_edge), int(edges.max()))
    progress.say(f"they are made of {fitting} edges, so that they fit; the steps, and the model, stay the same")
    return fitting
