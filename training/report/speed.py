"""Speed of student and teacher in ASE MD, in turns in one run, so that a busy machine slows both alike."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import units
from ase.calculators.calculator import BaseCalculator
from ase.md.verlet import VelocityVerlet

from ...datasets.structure import Structure
from .nve import thermalise

ROUNDS = 5


def compare_speed(
    calculators: Mapping[str, BaseCalculator],
    start: Structure,
    *,
    seconds: float,
    timestep_fs: float,
    temperature_K: float,
    seed: int,
) -> list[dict[str, Any]]:
    """Seconds per step of each calculator inside `ase.md.verlet.VelocityVerlet`.

    Every calculator runs for about `seconds` in five turns; the median of the turns counts. The first steps, which fill
    caches, are not timed. A calculator that fails is listed with the reason.

    Returns
    -------
    list of dict
        ``name``, ``seconds_per_step``, ``steps_per_second``, ``ns_per_day``, ``steps`` (timed) and ``failed``.
    """
    runs: dict[str, tuple[VelocityVerlet, int]] = {}
    rows: dict[str, dict[str, Any]] = {name: {"name": name, "steps": 0, "failed": ""} for name in calculators}
    for name, calculator in calculators.items():
        atoms = start.to_atoms()
        atoms.calc = calculator
        thermalise(atoms, temperature_K, np.random.default_rng(seed))
        dynamics = VelocityVerlet(atoms, timestep=timestep_fs * units.fs)
        try:
            dynamics.run(2)
            began = time.perf_counter()
            dynamics.run(2)
            per_step = (time.perf_counter() - began) / 2
            runs[name] = dynamics, max(1, round(seconds / ROUNDS / max(per_step, 1e-9)))
        except Exception as error:  # one that fails must not take the other's timing along
            rows[name]["failed"] = f"{type(error).__name__}: {error}"
    blocks: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, (dynamics, steps) in runs.items():
            if rows[name]["failed"]:
                continue
            began = time.perf_counter()
            try:
                dynamics.run(steps)
            except Exception as error:  # as above
                rows[name]["failed"] = f"{type(error).__name__}: {error}"
                continue
            blocks[name].append((time.perf_counter() - began) / steps)
            rows[name]["steps"] += steps
    for name, values in blocks.items():
        if rows[name]["failed"]:
            continue
        per_step = float(np.median(values))
        rows[name] |= {
            "seconds_per_step": per_step,
            "steps_per_second": 1 / per_step,
            "ns_per_day": 86400 / per_step * timestep_fs * 1e-6,
        }
    return list(rows.values())


def machine() -> dict[str, Any]:
    """Name of the processor, cores, torch threads and how busy it was: without them a speed means nothing."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
