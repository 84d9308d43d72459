"""Figures about errors on held-out frames and about training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bonding import angle_between
from .evaluate import Evaluation
from .figure import GUIDE, NEUTRAL, STUDENT, TRAIN, VALIDATION, draw, matplotlib, plain

MANY = 3000  # points above which a density is drawn instead of dots
_DENSITY = ("#9db8e8", "#3f83f8", "#8a5cf0", "#e0407b", "#ffab2e")


def _parity(axis: Any, reference: np.ndarray, predicted: np.ndarray, title: str, unit: str) -> None:
    """Predicted against reference, dots or density, with the diagonal."""
    mpl = matplotlib()
    low = float(min(reference.min(), predicted.min()))
    high = float(max(reference.max(), predicted.max()))
    margin = 0.04 * (high - low) + 1e-9
    limits = (low - margin, high + margin)
    axis.plot(limits, limits, color=GUIDE, linewidth=1.0, zorder=1)
    if len(reference) > MANY:
        colours = mpl.colors.LinearSegmentedColormap.from_list("density", _DENSITY)
        shown = axis.hexbin(
            reference, predicted, gridsize=70, extent=(*limits, *limits), mincnt=1, bins="log", cmap=colours,
            linewidths=0.1, rasterized=True, zorder=2,
        )  # fmt: skip
        bar = axis.figure.colorbar(shown, ax=axis, shrink=0.75, aspect=26, pad=0.02)
        bar.set_label("values per cell")
        bar.outline.set_visible(False)
    else:
        size = float(np.clip(2500 / max(len(reference), 1), 4, 18))
        axis.scatter(reference, predicted, s=size, color=NEUTRAL, alpha=0.5, linewidths=0, rasterized=True, zorder=2)
    axis.set(xlim=limits, ylim=limits, aspect="equal", title=title)
    axis.set(xlabel=f"teacher, {unit}", ylabel=f"student, {unit}")
    axis.locator_params(nbins=5)


def parity_energy(evaluation: Evaluation) -> str:
    """Energy per atom, each molecule relative to its own mean over the frames."""
    known = np.isfinite(evaluation.energy)
    _, code = np.unique(evaluation.group[known].astype(str), return_inverse=True)
    sizes = evaluation.sizes[known]
    mean = np.bincount(code, evaluation.energy[known]) / np.bincount(code)
    reference = 1000 * (evaluation.energy[known] - mean[code]) / sizes
    predicted = 1000 * (evaluation.energy_predicted[known] - mean[code]) / sizes
    return draw(
        lambda axes: _parity(axes[0, 0], reference, predicted, "Energy", "meV/atom"), 4.9, 4.4, name="parity-energy"
    )


def parity_forces(evaluation: Evaluation) -> str:
    """All Cartesian force components."""
    return draw(
        lambda axes: _parity(
            axes[0, 0], evaluation.forces.ravel(), evaluation.forces_predicted.ravel(), "Forces", "eV/Å"
        ),
        4.9, 4.4, name="parity-forces",
    )  # fmt: skip


def parity_stress(evaluation: Evaluation) -> str:
    """The six stress components."""
    labels, values = np.asarray(evaluation.stress), np.asarray(evaluation.stress_predicted)
    known = np.isfinite(labels).all(axis=1)
    reference, predicted = 1000 * labels[known].ravel(), 1000 * values[known].ravel()
    return draw(
        lambda axes: _parity(axes[0, 0], reference, predicted, "Stress", "meV/Å³"), 4.9, 4.4, name="parity-stress"
    )


def angle_histogram(evaluation: Evaluation, threshold: float) -> str:
    """Share of atoms below an angle, and the angle against the strength of the force."""
    strength = np.linalg.norm(evaluation.forces, axis=1)
    strong = strength >= threshold
    angles = angle_between(evaluation.forces[strong], evaluation.forces_predicted[strong])

    def paint(axes: Any) -> None:
        left, right = axes[0]
        ordered = np.sort(angles)
        share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        step = max(1, len(ordered) // 1500)
        left.plot(ordered[::step], share[::step], color=STUDENT)
        left.axvline(5, color=GUIDE, linewidth=1, linestyle="--")
        left.annotate("5°", (5, 4), xytext=(3, 0), textcoords="offset points")
        left.set_xscale("log")
        left.set(xlim=(max(0.05, ordered[0]), 180), ylim=(0, 101), title="How many atoms are better than …")
        left.set(xlabel="angle between the two forces, °", ylabel="share of atoms, %")
        left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        edges = np.geomspace(threshold or 1e-3, max(strength.max(), (threshold or 1e-3) * 1.01), 16)
        bins = np.clip(np.digitize(strength[strong], edges) - 1, 0, len(edges) - 2)
        centres = np.sqrt(edges[1:] * edges[:-1])
        filled = [b for b in range(len(centres)) if (bins == b).sum() >= 5]
        for percentile, style, label in ((95, ":", "95th percentile"), (50, "-", "median")):
            values = [max(np.percentile(angles[bins == b], percentile), 1e-4) for b in filled]
            right.plot(centres[filled], values, style, color=STUDENT, label=label, marker="o", markersize=3.5)
        right.set_xscale("log")
        right.set_yscale("log")
        right.set(title="Weak forces point less surely", xlabel="strength of the reference force, eV/Å")
        right.set(ylabel="angle, °")
        for axis in (right.xaxis, right.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        right.legend()

    return draw(paint, 9.6, 3.9, columns=2, name="angles")


def error_bars(rows: Sequence[Mapping[str, Any]], key: str, title: str, name: str) -> str:
    """Force MAE per class as horizontal bars, in meV/Å, with the number at each bar."""
    rows = [row for row in rows if row["mae"] is not None]

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        values = [1000 * row["mae"] for row in rows]
        places = np.arange(len(rows))[::-1]
        axis.barh(places, values, color=NEUTRAL, height=0.62)
        for place, value in zip(places, values, strict=True):
            axis.annotate(f"{value:.3g}", (value, place), xytext=(4, 0), textcoords="offset points", va="center")
        axis.set_yticks(places, [plain(row[key]) for row in rows])
        axis.set(xlim=(0, 1.15 * max(*values, 1e-6)), xlabel="force MAE, meV/Å", title=title)
        axis.grid(axis="y", visible=False)

    return draw(paint, 4.9, 1.3 + 0.42 * max(len(rows), 2), name=name) if rows else ""


def molecule_errors(rows: Sequence[Mapping[str, Any]]) -> str:
    """Histogram of the force MAE over molecules."""
    values = np.array([1000 * row["mae"] for row in rows])

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        axis.hist(values, bins=min(40, max(8, len(values) // 4)), color=NEUTRAL)
        axis.axvline(np.median(values), color=STUDENT, label=f"median {np.median(values):.3g} meV/Å")
        axis.set(xlabel="force MAE of a molecule, meV/Å", ylabel="molecules", title="Spread over molecules")
        axis.legend()

    return draw(paint, 6.4, 3.4, name="molecules")


def learning_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Errors on training and validation frames, and the learning rate, as training went on."""
    timed = all(_number(row.get("seconds")) for row in rows)
    x = [row["seconds"] / 60 if timed else row.get("step", k) for k, row in enumerate(rows)]
    label = "minutes of training" if timed else "steps"
    panels = [("force_mae", "Force MAE", "meV/Å", 1000.0), ("energy_mae_per_atom", "Energy MAE", "meV/atom", 1000.0)]
    if any(_number(row.get("validation", {}).get("angle_mean_deg")) for row in rows):
        panels.append(("angle_mean_deg", "Mean force angle", "°", 1.0))
    else:
        panels.append(("loss", "Loss", "", 1.0))

    def paint(axes: Any) -> None:
        for axis, (key, title, unit, factor) in zip(axes[0], panels, strict=True):
            for part, colour in (("train", TRAIN), ("validation", VALIDATION)):
                points = [(a, factor * row[part][key]) for a, row in zip(x, rows, strict=True) if _has(row, part, key)]
                if points:
                    marker = "o" if len(points) < 15 else None
                    axis.plot(*np.array(points).T, color=colour, label=part, marker=marker, markersize=3.5)
            axis.set_yscale("log")
            axis.set(title=title, xlabel=label, ylabel=unit or "loss")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.yaxis.set_minor_formatter(_sparse)
            axis.tick_params(which="minor", labelsize=9.5)
        handles, names = axes[0][0].get_legend_handles_labels()
        if handles:
            axes[0][0].legend(handles, names)

    return draw(paint, 11.4, 3.3, columns=3, name="learning")


def _sparse(value: float, _: int) -> str:
    """Labels at 2 and 5 of a decade only, so that short log axes have some and long ones are not crowded."""
    leading = value / 10 ** math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:g}" if any(abs(leading - x) < 1e-6 for x in (2, 5)) else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _has(row: Mapping[str, Any], part: str, key: str) -> bool:
    value = row.get(part, {}).get(key) if isinstance(row.get(part), Mapping) else None
    return value is not None and _number(value) and value > 0
