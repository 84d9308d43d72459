"""Bonds, angles and pair distances along MD: student against teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase.data import covalent_radii

from ...ase_calcs.neighbors import neighbor_list
from ...datasets.structure import Structure
from .bonding import InternalCoordinates, bond_angles, bond_lengths, internal_coordinates
from .md import Trajectory

EQUILIBRATION = 0.2  # share of every trajectory that is left out
BROKEN = 1.6  # a bond longer than this times the sum of covalent radii is broken
BINS = 40
PAIR_REACH = 8.0  # Å
PAIR_FRAMES = 200  # frames used for pair distances


@dataclass(frozen=True)
class Distribution:
    """Values of one kind of bond or angle along both runs.

    Attributes
    ----------
    name
        ``"C–H"`` or ``"H–C–H"``.
    unit
        ``"Å"`` or ``"°"``.
    student, teacher
        Lists of (T, n) arrays, one per replica.
    """

    name: str
    unit: str
    student: list[np.ndarray]
    teacher: list[np.ndarray]


def distributions(student: Trajectory, teacher: Trajectory | None, starts: Sequence[Structure]) -> list[Distribution]:
    """Bonds and angles by type, bonds first, the most frequent first; `teacher` may be None."""
    found: dict[tuple[str, str], Distribution] = {}
    bounds = np.concatenate([[0], np.cumsum([len(s) for s in starts])])
    for start, a, b in zip(starts, bounds[:-1], bounds[1:], strict=True):
        inner = internal_coordinates(start.numbers, start.positions, start.cell, start.pbc)
        for side, trajectory in (("student", student), ("teacher", teacher)):
            if trajectory is None:
                continue
            positions = settled(trajectory)[:, a:b]
            for name, unit, values in _values(inner, positions, start):
                entry = found.setdefault((unit, name), Distribution(name, unit, [], []))
                getattr(entry, side).append(values)
    ordered = sorted(found.values(), key=lambda d: (d.unit != "Å", -sum(v.shape[1] for v in d.student), d.name))
    return [d for d in ordered if d.student and all(len(v) for v in d.student)]


def settled(trajectory: Trajectory) -> np.ndarray:
    """Positions without the first part, in which the run forgets its start."""
    return trajectory.positions[int(EQUILIBRATION * len(trajectory.positions)) :]


def _values(inner: InternalCoordinates, positions: np.ndarray, start: Structure) -> list[tuple[str, str, np.ndarray]]:
    lengths = bond_lengths(positions, inner.bonds, start.cell, start.pbc)
    angles = bond_angles(positions, inner.angles, start.cell, start.pbc)
    rows = [(name, "Å", lengths[:, inner.bond_types == name]) for name in sorted(set(inner.bond_types))]
    return rows + [(name, "°", angles[:, inner.angle_types == name]) for name in sorted(set(inner.angle_types))]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two histograms on common bins, ∫ min(p, q): 1 for the same distribution, 0 for disjoint ones."""
    low, high = min(a.min(), b.min()), max(a.max(), b.max())
    if high <= low:
        return 1.0
    p, q = (np.histogram(x, bins=BINS, range=(low, high))[0] / len(x) for x in (a, b))
    return float(np.minimum(p, q).sum())


def compare(distribution: Distribution) -> dict[str, Any]:
    """One row: mean and standard deviation of both, their differences, the overlap and what noise alone would give.

    ``difference_error`` is the standard error of the difference of the means, from the scatter of the means of 20 time
    blocks. ``overlap_noise`` is the overlap of the teacher's first half with its second.
    """
    student = np.concatenate([v.ravel() for v in distribution.student])
    row: dict[str, Any] = {
        "name": distribution.name,
        "unit": distribution.unit,
        "n": int(sum(v.shape[1] for v in distribution.student)),
        "student_mean": float(student.mean()),
        "student_std": float(student.std()),
    }
    if not distribution.teacher or not all(len(v) >= 2 for v in distribution.teacher):
        return row
    teacher = np.concatenate([v.ravel() for v in distribution.teacher])
    first = np.concatenate([v[: len(v) // 2].ravel() for v in distribution.teacher])
    second = np.concatenate([v[len(v) // 2 :].ravel() for v in distribution.teacher])
    error = np.hypot(_standard_error(distribution.student), _standard_error(distribution.teacher))
    return row | {
        "teacher_mean": float(teacher.mean()),
        "teacher_std": float(teacher.std()),
        "mean_difference": float(student.mean() - teacher.mean()),
        "difference_error": float(error),
        "std_difference": float(student.std() - teacher.std()),
        "overlap": overlap(student, teacher),
        "overlap_noise": overlap(first, second),
    }


def _standard_error(replicas: list[np.ndarray], blocks: int = 20) -> float:
    per_replica = max(2, blocks // len(replicas))
    means = [block.mean() for v in replicas for block in np.array_split(v, min(per_replica, len(v)))]
    return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")


def broken_bonds(trajectory: Trajectory, starts: Sequence[Structure]) -> int:
    """Bonds of the starts that were broken at the end of the run."""
    if not len(trajectory.positions):
        return 0
    count, begin = 0, 0
    for start in starts:
        inner = internal_coordinates(start.numbers, start.positions, start.cell, start.pbc)
        last = trajectory.positions[-1:, begin : begin + len(start)]
        begin += len(start)
        lengths = bond_lengths(last, inner.bonds, start.cell, start.pbc)[0]
        limit = BROKEN * covalent_radii[start.numbers[inner.bonds]].sum(axis=1)
        count += int((lengths > limit).sum())
    return count


def pair_distances(trajectory: Trajectory, starts: Sequence[Structure], edges: np.ndarray) -> tuple[np.ndarray, str]:
    """Distribution of the distances of all pairs of atoms.

    Returns
    -------
    density
        (len(edges) − 1,). Molecules: probability density per Å of a pair closer than the last edge. All starts fully
        periodic: the radial distribution function g(r).
    quantity
        What it is, for the axis.
    """
    positions = settled(trajectory)
    positions = positions[:: max(1, len(positions) // PAIR_FRAMES)]
    periodic = all(np.all(s.pbc) for s in starts)
    counts, norm, begin = np.zeros(len(edges) - 1), 0.0, 0
    for start in starts:
        for frame in positions[:, begin : begin + len(start)]:
            i, j, shift = (np.asarray(a) for a in neighbor_list(frame, start.cell, start.pbc, float(edges[-1]))[:3])
            lengths = np.linalg.norm(frame[j] + shift @ start.cell - frame[i], axis=1)
            counts += np.histogram(lengths, bins=edges)[0]
            if periodic:
                norm += len(start) ** 2 / abs(float(np.linalg.det(start.cell)))
        begin += len(start)
    if periodic:
        shells = 4 / 3 * np.pi * (edges[1:] ** 3 - edges[:-1] ** 3)
        return counts / (shells * max(norm, 1e-300)), "g(r)"
    return counts / max(counts.sum(), 1.0) / np.diff(edges), "density, 1/Å"
