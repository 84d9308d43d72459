"""Figures: the reference in blue with the band its own runs span, the control dashed in grey, candidates in colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..report.figure import GUIDE, STUDENT, TEACHER, draw, plain
from . import metrics
from .compare import Row
from .features import Features
from .runs import CONTROL, RunSet, Section

CANDIDATES = (STUDENT, "#8a6df0", "#1aa37a", "#d42a68", "#b08a00", "#0f9fb5")
MOST_PANELS, COLUMNS = 12, 4
AXES = {"bonds": "length, Å", "angles": "angle, °", "dihedrals": "dihedral, °", "torsions": "dihedral, °"}


def colours(section: Section) -> dict[str, str]:
    """Name → colour of control and candidates."""
    found = {runs.name: colour for runs, colour in zip(section.candidates, CANDIDATES, strict=False)}
    return ({CONTROL: GUIDE} if section.control else {}) | found


def _style(name: str, colour: str) -> dict[str, Any]:
    return {"color": colour, "linestyle": (0, (4, 2)) if name == CONTROL else "-", "linewidth": 1.5}


def overview(rows: Sequence[Row], section: Section, name: str) -> str:
    """Every metric as a multiple of its noise floor, on one logarithmic axis."""
    shown = [row for row in rows if row["floor"] and any(cell["ratio"] is not None for cell in row["cells"].values())]
    if not shown:
        return ""
    colour_of = colours(section)

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        low, high = 0.1, 10.0
        for place, row in zip(range(len(shown))[::-1], shown, strict=True):
            floor = row["floor"]
            if floor["mean"] > 0:
                axis.barh(place, floor["limit"] / floor["mean"], left=1e-9, height=0.72, color=TEACHER, alpha=0.22)
            own = [_ratio_of_reference(row, k) for k in range(len(floor["values"]))]
            axis.plot(np.maximum(own, low), [place] * len(own), "|", color=TEACHER, markersize=11, markeredgewidth=1.6)
            spread = np.linspace(0.16, -0.16, len(colour_of)) if len(colour_of) > 1 else [0.0]
            for shift, (label, colour) in zip(spread, colour_of.items(), strict=True):
                times = row["cells"][label]["ratio"]
                if times is not None:
                    high = max(high, 1.6 * times)
                    marker = "D" if label == CONTROL else "o"
                    axis.plot(max(times, low), place + shift, marker, color=colour, markersize=7, clip_on=False)
        axis.axvline(1, color=TEACHER, linewidth=1)
        axis.set_xscale("log")
        axis.set(xlim=(low, high), ylim=(-0.6, len(shown) - 0.4), xlabel="multiples of the noise floor")
        axis.set_yticks(range(len(shown))[::-1], [plain(row["label"]) for row in shown])
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(axis="y", visible=False)

    return draw(paint, 10.5, 1.0 + 0.34 * len(shown), name=name)


def _ratio_of_reference(row: Row, k: int) -> float:
    """The k-th reference run against the others, in multiples of the floor."""
    floor = row["floor"]
    values = floor["values"]
    if floor["mean"] <= 0:
        return 0.0
    if row["kind"] == "mean":
        rest = [v for i, v in enumerate(values) if i != k]
        return abs(values[k] - float(np.mean(rest))) / floor["mean"]
    return values[k] / floor["mean"] if math.isfinite(values[k]) else 0.0


def distributions(section: Section, kind: str, rows: Sequence[Row], name: str) -> str:
    """Histograms in small panels, one per type or torsion, the most frequent types first."""
    ranked = sorted(rows, key=lambda row: -row["count"])[:MOST_PANELS] if kind != "torsions" else rows[:MOST_PANELS]
    names = [row["label"] for row in ranked]
    if not names:
        return ""

    def paint(axes: Any) -> None:
        for axis in axes.ravel()[len(names) :]:
            axis.set_visible(False)
        for axis, label in zip(axes.ravel(), names, strict=False):
            edges = section.coordinates.edges[kind, label]
            centres = 0.5 * (edges[1:] + edges[:-1])

            def curve(run: Features, label: str = label, edges: np.ndarray = edges) -> np.ndarray:
                return metrics.density(run.histograms[kind, label], edges)

            _curves(axis, section, lambda run, centres=centres, curve=curve: (centres, curve(run)))
            axis.set(title=plain(label), xlabel=AXES[kind], yticks=[], ylim=(0, None), xlim=(edges[0], edges[-1]))
            if kind in ("dihedrals", "torsions"):
                axis.set_xticks([-120, 0, 120])  # labels at ±180 run into the next panel's
            else:
                axis.locator_params(axis="x", nbins=4)
            axis.spines["left"].set_visible(False)
            axis.grid(visible=False)

    count = -(-len(names) // COLUMNS)
    return draw(paint, 11.4, 2.2 * count, rows=count, columns=COLUMNS, name=name)


def pairs(section: Section, name: str) -> str:
    """Distances of all pairs of atoms."""
    key = ("pairs", "all pairs")
    if key not in section.coordinates.edges:
        return ""
    edges = section.coordinates.edges[key]
    centres = 0.5 * (edges[1:] + edges[:-1])

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        _curves(axis, section, lambda run: (centres, metrics.density(run.histograms[key], edges)))
        axis.set(xlim=(0.6, edges[-1]), ylim=(0, None), xlabel="distance, Å", ylabel="density, 1/Å")

    return draw(paint, 11.4, 3.0, name=name)


def spectra(section: Section, name: str) -> str:
    """Velocity power spectra."""
    if section.reference.ensemble == "sampler":
        return ""

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        timed = [runs for runs in section.others if runs.ensemble != "sampler"]
        _curves(axis, section, lambda run: (run.wavenumbers, 1000 * run.spectrum), timed)
        highest = [runs.pooled.wavenumbers[-1] for runs in (section.reference, *timed) if runs.runs]
        axis.set(xlim=(0, min(max(highest), 4500)), ylim=(0, None), xlabel="wavenumber, cm⁻¹")
        axis.set_ylabel("density, 10⁻³ cm")

    return draw(paint, 11.4, 3.2, name=name)


def _curves(axis: Any, section: Section, curve: Any, others: Sequence[RunSet] | None = None) -> None:
    """The reference with its band, then the others; `curve` gives x and y of a `Features`."""
    x, mean = curve(section.reference.pooled)
    each = np.array([curve(run)[1] for run in section.reference.runs])
    axis.fill_between(x, each.min(axis=0), each.max(axis=0), color=TEACHER, alpha=0.4, linewidth=0)
    axis.plot(x, mean, color=TEACHER, linewidth=1.2)
    colour_of = colours(section)
    for runs in section.others if others is None else others:
        if runs.runs:
            axis.plot(*curve(runs.pooled), **_style(runs.name, colour_of[runs.name]))


def means(rows: Sequence[Row], section: Section, name: str) -> str:
    """Means with error bars and the band of the noise, one panel per row."""
    rows = [row for row in rows if row["floor"]][:MOST_PANELS]
    if not rows:
        return ""
    colour_of = colours(section)

    def paint(axes: Any) -> None:
        for axis in axes.ravel()[len(rows) :]:
            axis.set_visible(False)
        for axis, row in zip(axes.ravel(), rows, strict=False):
            values, limit = row["floor"]["values"], row["floor"]["limit"]
            if row["kind"] == "mean":
                axis.axhspan(row["reference"] - limit, row["reference"] + limit, color=TEACHER, alpha=0.18, linewidth=0)
                axis.axhline(row["reference"], color=TEACHER, linewidth=1)
            else:
                axis.axhspan(-limit, limit, color=TEACHER, alpha=0.18, linewidth=0)
            axis.plot(np.linspace(-0.25, 0.25, len(values)), values, "o", color=TEACHER, markersize=4.5)
            for place, (label, colour) in enumerate(colour_of.items(), start=1):
                cell = row["cells"][label]
                if cell["value"] is None:
                    continue
                marker = "D" if label == CONTROL else "o"
                shown = abs(cell["value"]) if row["kind"] == "size" else cell["value"]
                error = cell["error"] if cell["error"] is not None and math.isfinite(cell["error"]) else 0.0
                axis.errorbar(place, shown, error, fmt=marker, color=colour, markersize=6, capsize=3)
            axis.set(title=plain(row["label"].removeprefix("Temperature of ")), ylabel=row["unit"], xticks=[])
            axis.set_xlim(-0.7, len(colour_of) + 0.7)
            axis.locator_params(axis="y", nbins=5)
            if row["key"].startswith("flips"):
                axis.set_ylim(0, None)

    count = -(-len(rows) // COLUMNS)
    return draw(paint, 11.4, 2.3 * count, rows=count, columns=COLUMNS, name=name)


def energies(section: Section, name: str) -> str:
    """Total energy over time, one panel for each candidate, with the reference's in the same scale."""
    shown = [runs for runs in section.others if runs.runs and runs.ensemble == "constant energy"]
    shown = [runs for runs in shown if all(len(run.total) for run in runs.runs)]
    theirs = [run for run in section.reference.runs if len(run.total)]
    if section.reference.ensemble != "constant energy":
        theirs = []
    if not shown:
        return ""
    colour_of = colours(section)
    columns = min(3, len(shown))

    def paint(axes: Any) -> None:
        for axis in axes.ravel()[len(shown) :]:
            axis.set_visible(False)
        for axis, runs in zip(axes.ravel(), shown, strict=False):
            for run in theirs:
                _trace(axis, run, {"color": TEACHER})
            for run in runs.runs:
                _trace(axis, run, {"color": colour_of[runs.name]})
            axis.set(title=plain(runs.name), xlabel="time, ps")
        for first in axes[:, 0]:
            first.set_ylabel("total energy − mean,\nmeV/atom")

    count = -(-len(shown) // columns)
    return draw(paint, 11.4, 2.8 * count, rows=count, columns=columns, name=name)


def _trace(axis: Any, run: Features, style: dict[str, Any]) -> None:
    """The wider a trace, the further behind, so that none hides another."""
    # zorder below 2 keeps all of them behind labels.
    behind = 2.0 - float(np.ptp(run.total)) / (1.0 + float(np.ptp(run.total)))
    axis.plot(run.times / 1000, run.total, linewidth=0.8, rasterized=True, zorder=behind, **style)
