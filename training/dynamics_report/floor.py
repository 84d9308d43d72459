"""The noise floor: how far one more run of the reference would be from the others.

Two kinds of numbers are told apart.

*Distances* (a divergence, an RMSE) are never negative, and two runs of the same dynamics are never at distance zero.
The floor is the mean over the reference runs of the distance of one to all others (leave one out); a candidate's run is
put against the same sets of all but one, so that both are of the same size.

*Means* (a temperature, a rate) may lie on either side. The floor is the standard deviation of one run's difference from
the mean of the n others: the larger of the spread of the reference runs and the standard error within one, times
√(1 + 1/n).

The *limit* is what a further run of the reference stays below in 95 cases of 100: Student's prediction interval (Hahn
and Meeker, *Statistical Intervals* (1991), section 4.2) with the n − 1 degrees of freedom that n runs leave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST_MARGIN = 1.25  # times the floor: with few runs a spread may come out small by chance
TWO_RUNS = 3.0  # times the floor; the two distances of two runs are one number and have no spread
CLEARLY = 2.0  # times the limit


@dataclass(frozen=True)
class Floor:
    """What the reference does by itself.

    Attributes
    ----------
    mean
        The floor, in the unit of the metric.
    spread
        Standard deviation over the reference runs; None where there is none to be had.
    limit
        A further reference run stays below it in 95 cases of 100.
    values
        One per reference run.
    """

    mean: float
    spread: float | None
    limit: float
    values: tuple[float, ...]


def distance_floor(values: Sequence[float], most: float = math.inf) -> Floor:
    """From the distances of each of n ≥ 2 reference runs to the others; none can be larger than `most`."""
    found = np.array([v for v in values if math.isfinite(v)])
    if len(found) == 0:
        return Floor(math.nan, None, math.nan, tuple(values))
    mean = float(found.mean())
    if len(found) < 3:
        return Floor(mean, None, min(TWO_RUNS * mean, most), tuple(values))
    spread = float(found.std(ddof=1))
    limit = mean + _student(0.95, len(found) - 1) * spread * math.sqrt(1 + 1 / len(found))
    return Floor(mean, spread, min(max(limit, LEAST_MARGIN * mean), most), tuple(values))


def size_floor(values: Sequence[float], error: float, least: float = 0.0) -> Floor:
    """From the sizes |x| of n ≥ 2 reference runs, where none at all would be best: an energy drift.

    Parameters
    ----------
    values
        Sizes.
    error
        Standard error of one.
    least
        A limit below which nobody asks.
    """
    found = np.array(values)
    mean, spread = float(found.mean()), float(found.std(ddof=1))
    seeds = _student(0.95, len(found) - 1) * spread * math.sqrt(1 + 1 / len(found))
    limit = mean + max(seeds, 2 * _finite(error))
    return Floor(mean, spread, max(limit, LEAST_MARGIN * mean, least), tuple(values))


def mean_floor(values: Sequence[float], error: float, n_runs: int = 1) -> Floor:
    """From the means of n ≥ 2 reference runs; floor and limit are of the difference of `n_runs` more from their mean.

    Parameters
    ----------
    values
        Means.
    error
        Standard error of one, from within its run.
    n_runs
        Runs of the candidate whose means are averaged.
    """
    found = np.array(values)
    spread, within = float(found.std(ddof=1)), _finite(error)
    widen = math.sqrt(1 / n_runs + 1 / len(found))
    limit = max(_student(0.975, len(found) - 1) * spread, 2 * within) * widen
    return Floor(max(spread, within) * widen, spread, limit, tuple(values))


def level(value: float, floor: Floor) -> str:
    """``"trust"``: within the limit, ``"care"``: above it, ``"distrust"``: above twice the limit, ``"unmeasured"``."""
    if not math.isfinite(floor.limit) or math.isnan(value):
        return "unmeasured"
    if value <= floor.limit:
        return "trust"
    return "care" if value <= CLEARLY * floor.limit else "distrust"


def ratio(value: float, floor: Floor) -> float | None:
    """`value` over the floor; None where there is no floor to divide by."""
    if not (math.isfinite(value) and math.isfinite(floor.mean)) or floor.mean <= 0:
        return None
    return round(value / floor.mean, 9)  # two equal means differ by rounding


def _finite(error: float) -> float:
    return error if math.isfinite(error) else 0.0


def _student(probability: float, degrees: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit  # comes with ASE

    return float(stdtrit(degrees, probability))
