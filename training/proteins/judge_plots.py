"""Figures of a report on coarse-grained force fields: the reference in blue, candidates in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...ase_calcs.units import KB, KCAL_PER_MOL
from ..report.figure import GUIDE, STUDENT, TEACHER, draw, plain
from . import metrics
from .judge import FOLDED, Judged, tica_edges

COLOURS = (STUDENT, GUIDE, "#d42a68", "#8a6df0", "#1aa37a", "#b08a00", "#0f9fb5")
_BINS = 40
_MOST_PANELS, _COLUMNS = 12, 4


def colours(names: Sequence[str]) -> dict[str, str]:
    """Name of a candidate → colour."""
    return {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}


def figures(one: Judged, name: str) -> dict[str, str]:
    """SVG by name; "" where there is nothing to draw."""
    return {
        "divergence": divergence(one, f"{name}-divergence"),
        "survival": survival(one, f"{name}-survival"),
        "profile": profile(one, f"{name}-profile"),
        "size": size(one, f"{name}-size"),
        "tica": tica(one, f"{name}-tica"),
        "dihedrals": distributions(one, "dihedrals", f"{name}-dihedrals"),
        "angles": distributions(one, "angles", f"{name}-angles"),
        "distances": distances(one, f"{name}-distances"),
        "secondary": secondary(one, f"{name}-secondary"),
    }


def _known(one: Judged) -> dict[str, np.ndarray]:
    """Candidates that sampled anything."""
    return {name: x for name, x in one.sampled.items() if len(x) > 1}


def divergence(one: Judged, name: str) -> str:
    """Bars for every kind, and the reference against itself."""
    rows: Mapping[str, Any] = one.numbers["candidates"]
    known = {label: row["divergence"] for label, row in rows.items() if "divergence" in row}
    if not known:
        return ""
    colour_of = colours(list(rows))

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        width = 0.8 / len(known)
        for k, (label, values) in enumerate(known.items()):
            places = np.arange(len(metrics.KINDS)) + (k - (len(known) - 1) / 2) * width
            axis.bar(places, [values[kind] for kind in metrics.KINDS], 0.9 * width, color=colour_of[label], label=label)
        for k, kind in enumerate(metrics.KINDS):
            floor = one.numbers["floor"][kind]
            own = "the reference's own runs" if k == 0 else None
            axis.plot([k - 0.45, k + 0.45], [floor, floor], color=TEACHER, linewidth=2.2, label=own)
        axis.set_xticks(range(len(metrics.KINDS)), metrics.KINDS)
        axis.set(ylabel="divergence, bits")
        axis.set_yscale("log")
        axis.legend(ncols=2)

    return draw(paint, 7.0, 3.4, name=name)


def survival(one: Judged, name: str) -> str:
    """Share of the replicas that live, over time."""
    rows = one.numbers["candidates"]
    colour_of = colours(list(rows))

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        longest = max(max(row["lived_ps"]) for row in rows.values())
        ended = {round(row["survived"], 6): 0 for row in rows.values()}
        for label, row in rows.items():
            n, times = len(row["lived_ps"]), np.sort(row["lived_ps"])
            gone = times[: round((1 - row["survived"]) * n)]
            x = np.array([0.0, *gone, longest])
            y = np.array([1.0, *(1 - np.arange(1, len(gone) + 1) / n), 1 - len(gone) / n])
            shift = 0.008 * ended[round(row["survived"], 6)]  # lines on top of each other stay visible
            ended[round(row["survived"], 6)] += 1
            axis.step(x, y - shift, where="post", color=colour_of[label], label=label)
        axis.set(xlabel="time, ps", ylabel="replicas that live", ylim=(-0.05, 1.05), xlim=(0, longest))
        axis.legend()

    return draw(paint, 5.2, 3.4, name=name)


def profile(one: Judged, name: str) -> str:
    """Free energy along native contacts, or along the radius of gyration where there is no native structure."""
    native = one.reference.native
    kelvin = one.numbers["temperature_K"]
    contacts = native is not None and bool(np.isfinite(metrics.native_contacts(native[None], native)).all())

    def measured(x: np.ndarray) -> np.ndarray:
        return metrics.native_contacts(x, native) if contacts else metrics.radius_of_gyration(x)  # type: ignore[arg-type]

    def paint(axes: Any) -> None:
        axis = axes[0, 0]
        reference = measured(one.reference.frames.positions)
        edges = np.linspace(0, 1, 26) if contacts else np.linspace(reference.min() - 1, reference.max() + 2, 26)
        each = [_free_energy(measured(run), edges, kelvin) for run in one.reference.runs()]
        middle = 0.5 * (edges[1:] + edges[:-1])
        axis.fill_between(middle, np.fmin.reduce(each), np.fmax.reduce(each), color=TEACHER, alpha=0.25, linewidth=0)
        axis.plot(middle, _free_energy(reference, edges, kelvin), color=TEACHER, label="reference and its runs")
        for label, x in _known(one).items():
            axis.plot(
                middle, _free_energy(measured(x), edges, kelvin), color=colours(list(one.sampled))[label], label=label
            )
        if contacts:
            axis.axvline(FOLDED, color=GUIDE, linewidth=0.8)
        axis.set(xlabel="native contacts Q" if contacts else "radius of gyration, Å", ylabel="free energy, kcal/mol")
        axis.set_ylim(-0.2, 6)
        axis.legend()

    return draw(paint, 11.4, 3.2, name=name)


def _free_energy(values: np.ndarray, edges: np.ndarray, kelvin: float) -> np.ndarray:
    """kcal/mol above the lowest bin; NaN in empty ones."""
    counts = np.histogram(values, edges)[0].astype(float)
    with np.errstate(divide="ignore"):
        found = -KB * kelvin / KCAL_PER_MOL * np.log(counts / counts.max())
    found[~np.isfinite(found)] = np.nan
    return found


def size(one: Judged, name: str) -> str:
    """Radius of gyration, and RMSD where there is a native structure."""
    native = one.reference.native
    colour_of = colours(list(one.sampled))

    def paint(axes: Any) -> None:
        panels = [("radius of gyration, Å", metrics.radius_of_gyration)]
        if native is not None:
            panels.append(("RMSD to the native structure, Å", lambda x: metrics.rmsd(x, native)))
        for axis, (label, measure) in zip(axes[0], panels, strict=True):
            reference = measure(one.reference.frames.positions)
            others = {known: measure(x) for known, x in _known(one).items()}
            high = max([np.percentile(reference, 99.9), *(np.percentile(v, 99.5) for v in others.values())])
            edges = np.linspace(min(reference.min(), *(v.min() for v in others.values()), high), high, _BINS)
            axis.hist(reference, edges, density=True, color=TEACHER, alpha=0.35)
            for known, values in others.items():
                density, _ = np.histogram(values, edges, density=True)
                axis.stairs(density, edges, color=colour_of[known], linewidth=1.6)
            axis.set(xlabel=label, yticks=[], ylim=(0, None))
            axis.spines["left"].set_visible(False)
            axis.grid(visible=False)

    return draw(paint, 11.4, 2.8, columns=1 if native is None else 2, name=name)


def tica(one: Judged, name: str) -> str:
    """Free-energy surfaces over the two slowest coordinates of the reference."""
    if one.tica is None:
        return ""
    fitted = one.tica
    shown = {"reference": one.reference.frames.positions, **_known(one)}
    edges = tica_edges(fitted, one.reference.frames.positions)
    inner = [(e[0], e[-1]) for e in edges]

    def paint(axes: Any) -> None:
        flat = axes.ravel()
        for axis in flat[len(shown) :]:
            axis.set_visible(False)
        for axis, (label, x) in zip(flat, shown.items(), strict=False):
            grid = [np.linspace(*ends, 41) for ends in inner]
            counts = np.histogramdd(fitted.project(x), grid)[0]
            with np.errstate(divide="ignore"):
                surface = -np.log(counts / counts.max())
            surface[~np.isfinite(surface)] = np.nan
            axis.pcolormesh(*grid, surface.T, cmap="viridis", vmin=0, vmax=6, rasterized=True)
            axis.set(title=plain(label), xlabel="slowest", ylabel="second slowest" if axis is flat[0] else "")
            axis.grid(visible=False)

    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    return draw(paint, 11.4, 2.9 * rows, rows=rows, columns=columns, name=name)


def distributions(one: Judged, kind: str, name: str) -> str:
    """Histograms of angles or dihedrals, one panel for each, spread along the chain if there are many."""
    reference = metrics.coordinates(one.reference.frames.positions)[kind]
    n = reference.shape[1]
    if not n:
        return ""
    chosen = np.unique(np.linspace(0, n - 1, min(n, _MOST_PANELS)).astype(int))
    edges = np.degrees(metrics.edges_of(kind))
    others = {label: metrics.coordinates(x)[kind] for label, x in _known(one).items()}
    colour_of = colours(list(one.sampled))
    letters, span = one.reference.frames.sequence.replace(":", ""), 3 if kind == "angles" else 4

    def paint(axes: Any) -> None:
        flat = axes.ravel()
        for axis in flat[len(chosen) :]:
            axis.set_visible(False)
        for axis, k in zip(flat, chosen, strict=False):
            axis.hist(np.degrees(reference[:, k]), edges, density=True, color=TEACHER, alpha=0.35)
            for label, values in others.items():
                density, _ = np.histogram(np.degrees(values[:, k]), edges, density=True)
                axis.stairs(density, edges, color=colour_of[label], linewidth=1.4)
            axis.set(title=f"{letters[k : k + span]} {k + 1}–{k + span}", yticks=[], xlim=(edges[0], edges[-1]))
            axis.set_xticks([-120, 0, 120] if kind == "dihedrals" else [60, 90, 120, 150])
            axis.spines["left"].set_visible(False)
            axis.grid(visible=False)

    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    return draw(paint, 11.4, 1.9 * rows, rows=rows, columns=columns, name=name)


def distances(one: Judged, name: str) -> str:
    """Mean distances of all pairs: the reference above the diagonal, a candidate below; and their difference."""
    known = _known(one)
    if not known:
        return ""
    n = one.reference.frames.positions.shape[1]
    pairs = metrics.pairs_of(n)
    reference = metrics.pair_distances(one.reference.frames.positions).mean(0)

    def paint(axes: Any) -> None:
        for axis, (label, x) in zip(axes[0], known.items(), strict=False):
            difference = metrics.pair_distances(x).mean(0) - reference
            matrix = np.full((n, n), np.nan)
            matrix[pairs[1], pairs[0]] = matrix[pairs[0], pairs[1]] = difference
            largest = max(1.0, float(np.abs(difference).max()))
            image = axis.imshow(
                matrix, cmap="RdBu_r", vmin=-largest, vmax=largest, origin="lower", extent=(0.5, n + 0.5, 0.5, n + 0.5)
            )
            axis.figure.colorbar(image, ax=axis, shrink=0.8)
            axis.set(title=plain(label), xlabel="residue", ylabel="residue")
            axis.grid(visible=False)

    return draw(paint, 3.6 * len(known) + 0.4, 3.2, columns=len(known), name=name)


def secondary(one: Judged, name: str) -> str:
    """How often each residue is part of a helix or a strand."""
    if one.reference.frames.positions.shape[1] < 4:
        return ""
    shown = {"reference": one.reference.frames.positions, **_known(one)}
    colour_of = {"reference": TEACHER, **colours(list(one.sampled))}

    def paint(axes: Any) -> None:
        found = {label: metrics.secondary_structure(x) for label, x in shown.items()}
        for axis, kind in zip(axes[0], ("helix", "strand"), strict=True):
            for label, values in found.items():
                axis.plot(np.arange(1, len(values[kind]) + 1), values[kind], "o-", markersize=3, color=colour_of[label])
            axis.set(title=kind, xlabel="residue", ylim=(0, None), ylabel="share of configurations")

    return draw(paint, 11.4, 2.7, columns=2, name=name)
