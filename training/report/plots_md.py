"""Figures about dynamics and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .compare import Distribution
from .figure import GUIDE, NEUTRAL, STUDENT, TEACHER, draw, plain
from .nve import NVERun

MOST_PANELS = 8


def distribution_panels(distributions: Sequence[Distribution], name: str) -> str:
    """Histograms of student and teacher in small panels, one per kind."""
    shown = list(distributions)[:MOST_PANELS]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)

    def paint(axes: Any) -> None:
        for axis in axes.ravel()[len(shown) :]:
            axis.set_visible(False)
        for axis, entry in zip(axes.ravel(), shown, strict=False):
            student = np.concatenate([v.ravel() for v in entry.student])
            teacher = np.concatenate([v.ravel() for v in entry.teacher]) if entry.teacher else np.zeros(0)
            both = np.concatenate([student, teacher])
            frames = sum(len(v) for v in entry.student)  # values of one frame are not independent
            low, high = np.percentile(both, [0.05, 99.95])
            edges = np.linspace(low, high, int(np.clip(1.5 * np.sqrt(frames), 12, 40)) + 1)
            if len(teacher):
                axis.hist(teacher, edges, density=True, color=TEACHER, alpha=0.35, label="teacher")
            axis.hist(student, edges, density=True, histtype="step", color=STUDENT, linewidth=1.8, label="student")
            axis.set(title=plain(entry.name), xlabel="length, Å" if entry.unit == "Å" else "angle, °", yticks=[])
            axis.spines["left"].set_visible(False)
            axis.locator_params(axis="x", nbins=4)
            axis.grid(visible=False)
        axes.ravel()[0].legend(loc="upper right", handlelength=1.0, borderaxespad=0)

    return draw(paint, 2.85 * columns, 2.25 * rows, rows=rows, columns=columns, name=name)


def pair_distance_plot(edges: np.ndarray, student: np.ndarray, teacher: np.ndarray | None, quantity: str) -> str:
    """Distances of all pairs of atoms."""
    centres = 0.5 * (edges[1:] + edges[:-1])

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        if teacher is not None:
            axis.fill_between(centres, teacher, color=TEACHER, alpha=0.35, linewidth=0, label="teacher")
        axis.plot(centres, student, color=STUDENT, linewidth=1.4, label="student")
        seen = np.flatnonzero(student > 0)
        right = centres[seen[-1]] + 0.3 if len(seen) else centres[-1]
        axis.set(xlim=(0.6, right), ylim=(0, None), xlabel="distance, Å", ylabel=quantity)
        axis.set_title("Distances of all pairs of atoms")
        axis.legend()

    return draw(paint, 11.4, 3.0, name="pairs")


def nve_plot(runs: Sequence[NVERun], n_atoms: int) -> str:
    """Total energy per atom over time, with the fitted lines."""
    runs = [run for run in runs if len(run.times) > 2]

    def paint(axes: Any) -> None:
        largest = max(float(np.abs(1000 * (run.energies - run.energies[0]) / n_atoms).max()) for run in runs)
        for axis in axes[0][len(runs) :]:
            axis.set_visible(False)
        for axis, run, colour in zip(axes[0], runs, (STUDENT, NEUTRAL), strict=False):
            t = run.times / 1000
            e = 1000 * (run.energies - run.energies.mean()) / n_atoms
            axis.plot(t, e, color=colour, linewidth=0.7, alpha=0.75, rasterized=True)
            axis.plot(t, run.drift * (t - t.mean()), color=GUIDE, linewidth=1.6)
            axis.set(title=f"{run.dtype}: {run.drift:+.3f} ± {run.drift_error:.3f} meV/atom/ps", xlabel="time, ps")
            axis.set(ylim=(-1.05 * largest - 1e-9, 1.05 * largest + 1e-9))
        axes[0][0].set_ylabel("total energy − mean, meV/atom")

    return draw(paint, 11.4, 3.2, columns=2, name="nve", sharey=True) if runs else ""


def speed_bars(rows: Sequence[Mapping[str, Any]], title: str, name: str) -> str:
    """Milliseconds per MD step."""
    rows = [row for row in rows if not row["failed"]]

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        values = [1000 * row["seconds_per_step"] for row in rows]
        places = np.arange(len(rows))[::-1]
        colours = [TEACHER if row["name"].startswith("teacher") else STUDENT for row in rows]
        axis.barh(places, values, color=colours, height=0.6)
        for place, value in zip(places, values, strict=True):
            axis.annotate(
                f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms",
                (value, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        axis.set_yticks(places, [plain(row["name"]) for row in rows])
        axis.set(xlim=(0, 1.18 * max(values)), xlabel="milliseconds per MD step (shorter is faster)", title=title)
        axis.grid(axis="y", visible=False)

    return draw(paint, 7.2, 1.2 + 0.45 * len(rows), name=name) if rows else ""
