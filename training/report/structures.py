"""Ball-and-stick pictures of structures as SVG: every atom that is there is drawn, hydrogens included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors

from ...datasets.structure import Structure
from .bonding import find_bonding

MOST_ATOMS = 300  # of a larger structure the atoms nearest to its middle are drawn
BALL = 0.42  # radius of a ball over the covalent radius
SMALLEST_BALL = 0.19  # Å, hydrogen
STICK = 0.15  # Å, width of a bond


@dataclass(frozen=True)
class Arrow:
    """An arrow on an atom.

    Attributes
    ----------
    atom
        Index.
    vector
        (3,) Å as drawn.
    kind
        Class in the page's style sheet: ``"reference"``, ``"predicted"`` or ``"error"``.
    """

    atom: int
    vector: np.ndarray
    kind: str


def best_view(positions: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) that lays the two widest directions into the plane and keeps handedness; rows are the axes."""
    centred = positions - positions.mean(axis=0)
    if len(positions) < 3:
        # Principal axes of one or two atoms are not unique; add a faint triad so that they are.
        centred = np.concatenate([centred, 1e-3 * np.diag([3.0, 2.0, 1.0])])
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    # A slight turn shows atoms that eclipse each other along the view.
    tilt = np.array([[1, 0, 0], [0, np.cos(0.35), -np.sin(0.35)], [0, np.sin(0.35), np.cos(0.35)]])
    axes = tilt @ axes
    axes[2] *= np.sign(np.linalg.det(axes))
    return axes


def structure_svg(
    structure: Structure, *, arrows: Sequence[Arrow] = (), highlight: int | None = None, width: int = 240
) -> str:
    """Picture of one geometry.

    Parameters
    ----------
    structure
        With coordinates; of a periodic one only bonds inside the cell are drawn.
    arrows
        Drawn above the atoms.
    highlight
        Atom with a ring around it.
    width
        Pixels; height follows from the shape.
    """
    kept = _nearest(structure.positions)
    view = (structure.positions[kept] - structure.positions[kept].mean(axis=0)) @ best_view(structure.positions[kept]).T
    view[:, 1] *= -1  # SVG's y points down
    axes = best_view(structure.positions[kept])
    number_of = {int(a): k for k, a in enumerate(kept)}
    radii = np.maximum(BALL * covalent_radii[structure.numbers[kept]], SMALLEST_BALL)
    tips = [view[number_of[a.atom], :2] + (axes @ a.vector)[:2] * [1, -1] for a in arrows if a.atom in number_of]
    box, scale = _frame(np.concatenate([view[:, :2] - 0.6, view[:, :2] + 0.6, *[t[None] for t in tips]]), width)
    parts = _bonds_and_atoms(structure, kept, number_of, view, radii, highlight)
    for arrow in arrows:
        if arrow.atom in number_of:
            start = view[number_of[arrow.atom], :2]
            parts.append(_arrow(start, start + (axes @ arrow.vector)[:2] * [1, -1], arrow.kind))
    label = f"{len(structure)} atoms"
    return (
        f'<svg class="molecule" role="img" aria-label="{label}" width="{width}" height="{scale:.0f}" '
        f'viewBox="{box}">{"".join(parts)}</svg>'
    )


def _nearest(positions: np.ndarray) -> np.ndarray:
    if len(positions) <= MOST_ATOMS:
        return np.arange(len(positions))
    distance = np.linalg.norm(positions - positions.mean(axis=0), axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:MOST_ATOMS])


def _frame(points: np.ndarray, width: int) -> tuple[str, float]:
    low, high = points.min(axis=0), points.max(axis=0)
    span = high - low
    # Never flatter than 3:5, so that pictures in a row have similar heights.
    missing = max(0.0, 0.6 * span[0] - span[1]) / 2
    low[1] -= missing
    span = np.array([span[0], span[1] + 2 * missing])
    return f"{low[0]:.2f} {low[1]:.2f} {span[0]:.2f} {span[1]:.2f}", width * span[1] / max(span[0], 1e-6)


def _bonds_and_atoms(
    structure: Structure,
    kept: np.ndarray,
    number_of: dict[int, int],
    view: np.ndarray,
    radii: np.ndarray,
    highlight: int | None,
) -> list[str]:
    """SVG elements from back to front."""
    numbers = structure.numbers[kept]
    items: list[tuple[float, str]] = []
    bonding = find_bonding(structure.numbers, structure.positions, structure.cell, structure.pbc)
    for (a, b), shift in zip(bonding.pairs, bonding.shifts, strict=True):
        if shift.any() or int(a) not in number_of or int(b) not in number_of:
            continue
        i, j = number_of[int(a)], number_of[int(b)]
        middle = (view[i] + view[j]) / 2
        for k in (i, j):
            # A half bond lies just behind its own atom.
            depth = (view[k, 2] + middle[2]) / 2 - 0.01
            items.append((depth, _line(view[k], middle, _colour(numbers[k]))))
    depth_range = max(float(np.ptp(view[:, 2])), 1e-6)
    for k, number in enumerate(numbers):
        nearness = (view[k, 2] - view[:, 2].min()) / depth_range
        ring = kept[k] == highlight
        items.append((view[k, 2], _ball(view[k], radii[k] * (0.92 + 0.16 * nearness), int(number), ring)))
    return [text for _, text in sorted(items, key=lambda item: item[0])]


def _colour(number: int) -> str:
    if number == 1:
        return "#f4f4f4"
    if number == 6:
        return "#6b7078"
    return "#" + "".join(f"{round(255 * c):02x}" for c in jmol_colors[number])


def _line(a: np.ndarray, b: np.ndarray, colour: str) -> str:
    ends = f'x1="{a[0]:.2f}" y1="{a[1]:.2f}" x2="{b[0]:.2f}" y2="{b[1]:.2f}"'
    return (
        f'<line {ends} stroke="#3c4046" stroke-width="{STICK + 0.06:.2f}" stroke-linecap="round"/>'
        f'<line {ends} stroke="{colour}" stroke-width="{STICK:.2f}" stroke-linecap="round"/>'
    )


def _ball(at: np.ndarray, radius: float, number: int, ring: bool) -> str:
    shine = radius * 0.32
    halo = f'<circle class="halo" cx="{at[0]:.2f}" cy="{at[1]:.2f}" r="{radius + 0.16:.2f}"/>' if ring else ""
    return (
        f'{halo}<circle cx="{at[0]:.2f}" cy="{at[1]:.2f}" r="{radius:.2f}" fill="{_colour(number)}" stroke="#3c4046" '
        f'stroke-width="0.04"><title>{chemical_symbols[number]}</title></circle>'
        f'<circle cx="{at[0] - shine:.2f}" cy="{at[1] - shine:.2f}" r="{radius * 0.3:.2f}" fill="#fff" '
        f'fill-opacity="0.45"/>'
    )


def _arrow(start: np.ndarray, end: np.ndarray, kind: str) -> str:
    """A line with a head; too short ones (pointing at the viewer) become a dot."""
    vector = end - start
    length = float(np.linalg.norm(vector))
    if length < 0.1:
        dot = 0.12 if kind == "reference" else 0.07
        return f'<circle class="arrow-head {kind}" cx="{start[0]:.2f}" cy="{start[1]:.2f}" r="{dot}"/>'
    along = vector / length
    across = np.array([-along[1], along[0]])
    size = {"reference": 0.3, "predicted": 0.2, "error": 0.24}[kind] * min(1.0, 0.5 + length)
    neck = end - size * along
    corners = [end, neck + 0.5 * size * across, neck - 0.5 * size * across]
    points = " ".join(f"{p[0]:.2f},{p[1]:.2f}" for p in corners)
    return (
        f'<line class="arrow {kind}" x1="{start[0]:.2f}" y1="{start[1]:.2f}" x2="{neck[0]:.2f}" y2="{neck[1]:.2f}"/>'
        f'<polygon class="arrow-head {kind}" points="{points}"/>'
    )
