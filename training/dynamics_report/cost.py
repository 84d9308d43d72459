"""What the runs cost: teacher calls and wall-clock per picosecond, and how much of them a candidate saves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .runs import RunSet, Section

COSTS = {
    "teacher_gradients": ("Teacher gradients", "1/ps"),
    "teacher_energies": ("Teacher energies alone", "1/ps"),
    "calls": ("Teacher calls, both together", "1/ps"),
    "seconds": ("Wall-clock", "s/ps"),
}


def cost_rows(section: Section) -> list[dict[str, Any]]:
    """One row per kind of cost.

    Returns
    -------
    list of dict
        ``reference``: its mean per ps, ``spread``: standard deviation over its runs, and ``cells``: per control and
        candidate its ``value`` per ps (None: not recorded) and how many ``times`` less than the reference that is.
    """
    rows = []
    for key, (label, unit) in COSTS.items():
        theirs = per_picosecond(section.reference, key)
        mean = float(np.mean(theirs)) if theirs else None
        cells = {}
        for runs in section.others:
            own = per_picosecond(runs, key)
            value = float(np.mean(own)) if own else None
            times = mean / value if mean is not None and value else None
            cells[runs.name] = {"value": value, "times": times if times and math.isfinite(times) else None}
        spread = float(np.std(theirs, ddof=1)) if len(theirs) > 1 else None
        rows.append({"key": key, "label": label, "unit": unit, "reference": mean, "spread": spread, "cells": cells})
    return rows


def per_picosecond(runs: RunSet, key: str) -> list[float]:
    """The cost of every run over its length; empty where one of them does not record it.

    ``calls`` is gradients and energies together; where only gradients are recorded, those.
    """
    found = []
    for trajectory, picoseconds in zip(runs.trajectories, runs.picoseconds, strict=True):
        settings = trajectory.settings
        cost = settings.get("teacher_gradients" if key == "calls" else key)
        if not _number(cost) or picoseconds <= 0:
            return []
        total = float(cost)  # type: ignore[arg-type]
        if key == "calls" and _number(settings.get("teacher_energies")):
            total += float(settings["teacher_energies"])
        found.append(total / picoseconds)
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(float(value))
