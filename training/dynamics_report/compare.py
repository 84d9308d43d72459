"""Rows of numbers: every metric with the reference, its noise floor, the control and the candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ..report.verdict import CRITERIA
from . import metrics
from .features import KINDS, Features
from .floor import Floor, distance_floor, level, mean_floor, ratio, size_floor
from .runs import RunSet, Section

Row = dict[str, Any]
GOOD_DRIFT = next(c.good for c in CRITERIA if c.name == "drift")  # meV/atom/ps
FEW_FLIPS = 10  # per reference run; the error of a count is its root
# What changes with the conformer: equivalent atoms do not make up for one another here.
CONFORMATIONAL = ("js_dihedrals", "rmse_dihedrals", "js_torsions", "rmse_bonds", "rmse_angles")
NO_MEAN = "no dihedral has a mean in the reference: all of them turn"
NO_ORDER = "the order of a sampler's states means nothing in time"
MEANS = {"bonds": "bond lengths", "angles": "bond angles", "dihedrals": "dihedrals"}


def headline_rows(section: Section) -> list[Row]:
    """The metrics that the verdict goes by, in the order of the page."""
    rows = [drift_row(section), *temperature_rows(section)]
    for kind, label in {**MEANS, "torsions": "rotatable torsions"}.items():
        if any(key[0] == kind for key in section.coordinates.edges):
            rows.append(distance_row(section, f"js_{kind}", f"Distribution of {label}", "bit", _mean_divergence(kind)))
        if kind in MEANS and len(section.reference.runs[0].means[kind]):
            none = "" if kind != "dihedrals" or section.coordinates.clear.any() else NO_MEAN
            rows.append(
                distance_row(
                    section, f"rmse_{kind}", f"RMSE of mean {label}", KINDS[kind], _rmse(section, kind),
                    lambda _, none=none: none,  # type: ignore[misc]
                )
            )  # fmt: skip
    if section.coordinates.wells:
        rows.append(flip_rows(section)[0])
    if ("pairs", "all pairs") in section.coordinates.edges:
        rows.append(
            distance_row(section, "js_pairs", "Distribution of pair distances", "bit", _mean_divergence("pairs"))
        )
    rows.append(spectrum_row(section))
    return rows


def type_rows(section: Section, kind: str) -> list[Row]:
    """One row per type of bond, angle or dihedral, or per torsion: the divergence of its distribution."""
    names = [name for of, name in section.coordinates.edges if of == kind]
    rows = [distance_row(section, f"js_{kind}:{name}", name, "bit", _divergence(kind, name)) for name in names]
    labels = section.coordinates.names[kind]
    for row, name in zip(rows, names, strict=True):
        row["count"] = int((labels == name).sum())
    return rows


def average_rows(section: Section, kind: str) -> list[Row]:
    """One row per type of bond or angle: its mean."""
    names = [name for of, name in section.coordinates.edges if of == kind]
    return [mean_row(section, f"mean_{kind}:{name}", name, KINDS[kind], _average(kind, name)) for name in names]


def _average(kind: str, name: str) -> Callable[[Features], tuple[float, float]]:
    return lambda run: run.averages[kind, name]


def _divergence(kind: str, name: str) -> Callable[[Features, Features], float]:
    return lambda a, b: metrics.jensen_shannon(a.histograms[kind, name], b.histograms[kind, name])


def _mean_divergence(kind: str) -> Callable[[Features, Features], float]:
    def mean(a: Features, b: Features) -> float:
        return float(
            np.mean([metrics.jensen_shannon(p, b.histograms[key]) for key, p in a.histograms.items() if key[0] == kind])
        )

    return mean


def _rmse(section: Section, kind: str) -> Callable[[Features, Features], float]:
    if kind == "dihedrals":
        return lambda a, b: metrics.circular_rmse(a.means[kind], b.means[kind], section.coordinates.clear)
    return lambda a, b: metrics.rmse(a.means[kind], b.means[kind])


def distance_row(
    section: Section,
    key: str,
    label: str,
    unit: str,
    distance: Callable[[Features, Features], float],
    refuse: Callable[[RunSet], str] = lambda _: "",
) -> Row:
    """A row of distances from the reference.

    Parameters
    ----------
    distance
        Of two `Features`.
    refuse
        Why a set of runs has no such distance; "" if it has.
    """
    most = 1.0 if unit == "bit" else math.inf  # no divergence is larger

    def of(runs: Sequence[Features], others: Sequence[Features]) -> float:
        return float(np.mean([[distance(run, other) for other in others] for run in runs]))

    def floor(runs: RunSet) -> Floor:
        pairs = zip(runs.references, runs.all_but_one, strict=True)
        return distance_floor([distance(own, others) for own, others in pairs], most)

    cells = {}
    for runs in section.others:
        reason = refuse(section.reference) or refuse(runs) or _too_short(runs)
        cells[runs.name] = (
            _empty(reason) if reason else _cell(of(runs.runs, runs.all_but_one), floor(runs), n_runs=len(runs.runs))
        )
    reason = refuse(section.reference)
    own = None if reason else floor(section.reference)
    return {"key": key, "label": label, "unit": unit, "kind": "distance", "reference": None, "reference_error": None,
            "reference_note": reason, "floor": _floor(own), "cells": cells}  # fmt: skip


def mean_row(
    section: Section,
    key: str,
    label: str,
    unit: str,
    value: Callable[[Features], tuple[float, float]],
    refuse: Callable[[RunSet], str] = lambda _: "",
) -> Row:
    """A row of means with standard errors: `value` gives both of one run."""
    reason = refuse(section.reference)
    cells = {}
    for runs in section.others:
        why = reason or refuse(runs) or _too_short(runs)
        if why:
            cells[runs.name] = _empty(why)
            continue
        own, theirs = [value(r) for r in runs.runs], [value(r) for r in runs.references]
        # Not the candidate's own error: one that heats up is unsteady, and would be excused by that.
        floor = mean_floor([v for v, _ in theirs], _rms_error(theirs), len(own))
        mean = float(np.mean([v for v, _ in own]))
        difference = mean - float(np.mean([v for v, _ in theirs]))
        error = _rms_error(own) / math.sqrt(len(own))
        cells[runs.name] = _cell(abs(difference), floor, n_runs=len(own)) | {
            "value": mean, "error": error, "difference": difference,
        }  # fmt: skip
    values = [] if reason else [value(r) for r in section.reference.runs]
    whole = mean_floor([v for v, _ in values], _rms_error(values)) if values else None
    return {"key": key, "label": label, "unit": unit, "kind": "mean",
            "reference": float(np.mean([v for v, _ in values])) if values else None,
            "reference_error": _error_of_all(values),
            "reference_note": reason, "floor": _floor(whole), "cells": cells}  # fmt: skip


def drift_row(section: Section) -> Row:
    """The slope of the total energy, where energy is meant to be conserved."""

    def refuse(runs: RunSet) -> str:
        if runs.ensemble == "thermostat":
            return "not meaningful: a thermostat exchanges energy"
        if runs.ensemble == "sampler":
            return f"not meaningful: {NO_ORDER}"
        if runs.ensemble != "constant energy":
            return "integrator not recorded" if not runs.ensemble else "runs of different ensembles"
        return "" if all(math.isfinite(r.drift_error) for r in runs.runs) else "energies not recorded"

    theirs = refuse(section.reference)
    cells = {}
    for runs in section.others:
        reason = refuse(runs) or _too_short(runs)
        if reason:
            cells[runs.name] = _empty(reason)
            continue
        own = [(r.drift, r.drift_error) for r in runs.runs]
        size = float(np.mean([abs(v) for v, _ in own]))
        floor = Floor(math.nan, None, math.nan, ())
        if not theirs:
            others = [(abs(r.drift), r.drift_error) for r in runs.references]
            floor = size_floor([v for v, _ in others], _rms_error(others), GOOD_DRIFT)
        cells[runs.name] = _cell(size, floor, n_runs=len(own)) | {
            "value": float(np.mean([v for v, _ in own])), "error": _rms_error(own) / math.sqrt(len(own)),
            "note": f"no floor; reference: {theirs}" if theirs else "",
        }  # fmt: skip
    values = [] if theirs else [(r.drift, r.drift_error) for r in section.reference.runs]
    floor_ = size_floor([abs(v) for v, _ in values], _rms_error(values), GOOD_DRIFT) if values else None
    return {"key": "drift", "label": "Energy drift", "unit": "meV/atom/ps", "kind": "size",
            "reference": float(np.mean([v for v, _ in values])) if values else None,
            "reference_error": _error_of_all(values),
            "reference_note": theirs, "floor": _floor(floor_), "cells": cells}  # fmt: skip


def temperature_rows(section: Section) -> list[Row]:
    """Kinetic temperature of every element, and of all atoms."""
    found = sorted(section.reference.runs[0].temperatures, key=lambda z: (z == 0, z))
    return [
        mean_row(section, f"temperature:{_symbol(z)}", f"Temperature of {_symbol(z)}", "K", _temperature(z))
        for z in found
    ]


def _temperature(z: int) -> Callable[[Features], tuple[float, float]]:
    return lambda run: run.temperatures[z]


def _symbol(z: int) -> str:
    return chemical_symbols[z] if z else "all atoms"


def flip_rows(section: Section) -> list[Row]:
    """Flips per ns of all rotatable torsions together, then of each."""
    names = list(section.coordinates.names["torsions"])
    rows = [mean_row(section, "flips", "Flips of all torsions", "1/ns", _flips(None), _needs_time)]
    rows += [
        mean_row(section, f"flips:{name}", str(name), "1/ns", _flips(k), _needs_time) for k, name in enumerate(names)
    ]
    return rows


def slow_torsions(section: Section) -> dict[str, float]:
    """Torsions with several wells that a reference run goes between fewer than `FEW_FLIPS` times → how often it does.

    Their distributions are those of a few jumps, in the reference as in a candidate.
    """
    if section.reference.ensemble == "sampler":
        return {}
    flips = np.mean([run.flips for run in section.reference.runs], axis=0)
    names, wells = section.coordinates.names["torsions"], section.coordinates.wells
    return {str(names[k]): float(flips[k]) for k in range(len(wells)) if len(wells[k]) > 1 and flips[k] < FEW_FLIPS}


def _flips(which: int | None) -> Callable[[Features], tuple[float, float]]:
    """Rate per ns with the error of a Poisson count; none seen is as uncertain as one."""

    def rate(run: Features) -> tuple[float, float]:
        count = int(run.flips.sum() if which is None else run.flips[which])
        nanoseconds = run.picoseconds / 1000
        return count / nanoseconds, math.sqrt(max(count, 1)) / nanoseconds

    return rate


def spectrum_row(section: Section) -> Row:
    """Divergence of the velocity spectra, taken as distributions over wavenumbers."""
    return distance_row(
        section, "js_spectrum", "Velocity spectrum", "bit",
        lambda a, b: metrics.jensen_shannon(a.spectrum, b.spectrum), _needs_time,
    )  # fmt: skip


def _needs_time(runs: RunSet) -> str:
    return NO_ORDER if runs.ensemble == "sampler" else ""


def _too_short(runs: RunSet) -> str:
    return "" if runs.runs else "too few frames"


def _rms_error(values: Sequence[tuple[float, float]]) -> float:
    return float(np.sqrt(np.mean([error**2 for _, error in values])))


def _error_of_all(values: Sequence[tuple[float, float]]) -> float | None:
    """Standard error of the mean of several runs: from their spread, or from their own errors if those are larger."""
    if not values:
        return None
    return max(_rms_error(values), float(np.std([v for v, _ in values], ddof=1))) / math.sqrt(len(values))


def _cell(value: float, floor: Floor, *, n_runs: int) -> Row:
    return {
        "value": value, "error": None, "difference": None, "size": value, "ratio": ratio(value, floor),
        "floor": _floor(floor), "level": level(value, floor), "note": "", "n_runs": n_runs,
    }  # fmt: skip


def _empty(reason: str) -> Row:
    return {"value": None, "error": None, "difference": None, "size": None, "ratio": None, "floor": None,
            "level": "unmeasured", "note": reason, "n_runs": 0}  # fmt: skip


def _floor(floor: Floor | None) -> Row | None:
    if floor is None or not math.isfinite(floor.mean):
        return None
    return {"mean": floor.mean, "spread": floor.spread, "limit": floor.limit, "values": list(floor.values)}
