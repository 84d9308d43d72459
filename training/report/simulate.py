"""The parts of the report that need new calculations: MD beside the teacher, NVE, speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import BaseCalculator

from ...ase_calcs.calculator import PotentialCalculator
from ...ase_calcs.progress import Progress
from ...ase_calcs.teachers import make_teacher
from ...datasets.store import Dataset
from ...datasets.structure import Structure
from .compare import (
    EQUILIBRATION,
    PAIR_REACH,
    Distribution,
    broken_bonds,
    compare,
    distributions,
    pair_distances,
)
from .config import ReportConfig
from .evaluate import Evaluation
from .md import FEWEST_STEPS, Trajectory, langevin, student_forces, teacher_forces
from .nve import NVERun, run_nve
from .speed import compare_speed

# Shares of `ReportConfig.budget_seconds`.
STUDENT_SHARE, TEACHER_SHARE, NVE_SHARE = 0.25, 0.35, 0.2


@dataclass(frozen=True)
class Simulation:
    """Numbers for ``report.json``, and arrays for the figures."""

    numbers: dict[str, Any] | None
    distributions: list[Distribution] = field(default_factory=list)
    pair_edges: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pair_student: np.ndarray = field(default_factory=lambda: np.zeros(0))
    pair_teacher: np.ndarray | None = None
    pair_quantity: str = ""
    runs: tuple[NVERun, ...] = ()
    n_atoms: int = 0


def pick_starts(evaluation: Evaluation, dataset: Dataset, n: int, rng: np.random.Generator) -> list[Structure]:
    """Held-out frames from as many different molecules as there are, at random."""
    groups = rng.permutation(sorted(set(map(str, evaluation.group))))
    frames = []
    for k in range(n):
        of_group = evaluation.frames[evaluation.group.astype(str) == groups[k % len(groups)]]
        frames.append(int(rng.choice(of_group)))
    return [dataset.structure(i) for i in frames]


def _teacher_of(name: str) -> Callable[[Structure], BaseCalculator]:
    return lambda s: make_teacher(name, s.charge, s.multiplicity, smiles=s.smiles)


def compare_md(
    student: PotentialCalculator,
    teacher: str | None,
    starts: Sequence[Structure],
    config: ReportConfig,
    progress: Progress,
) -> Simulation:
    """Thermostatted MD with both and what came out; without a teacher the student alone."""
    if config.md_ps <= 0:
        return Simulation(None)
    settings: dict[str, Any] = {
        "timestep_fs": config.timestep_fs,
        "temperature_K": config.temperature_K,
        "friction_per_fs": config.friction_per_fs,
        "seed": config.seed,
    }
    with progress.task("MD with the student", 1.0) as task:
        mine = langevin(
            student_forces(student, starts), starts, steps=round(1000 * config.md_ps / config.timestep_fs),
            budget_s=STUDENT_SHARE * config.budget_seconds, task=task, **settings,
        )  # fmt: skip
    theirs: Trajectory | None = None
    no_teacher = "no teacher was given" if teacher is None else ""
    if teacher is not None and config.teacher_md_ps > 0:
        try:
            forces = teacher_forces(_teacher_of(teacher), starts)
        except Exception as error:  # not installed, or it does not take these structures: said in the report
            no_teacher = f"{type(error).__name__}: {error}"
        else:
            with progress.task("MD with the teacher", 1.0) as task:
                theirs = langevin(
                    forces, starts, steps=round(1000 * config.teacher_md_ps / config.timestep_fs),
                    budget_s=TEACHER_SHARE * config.budget_seconds, task=task, **settings,
                )  # fmt: skip
    return _md_numbers(mine, theirs, no_teacher, starts, settings)


def _md_numbers(
    mine: Trajectory,
    theirs: Trajectory | None,
    no_teacher: str,
    starts: Sequence[Structure],
    settings: dict[str, Any],
) -> Simulation:
    usable = theirs if theirs is not None and len(theirs.positions) >= FEWEST_STEPS // 10 else None
    kinds = distributions(mine, usable, starts) if len(mine.positions) else []
    rows = [compare(kind) for kind in kinds]
    numbers: dict[str, Any] = {
        **settings,
        "thermostat": "Langevin (BAOAB)",
        "molecules": [s.group for s in starts],
        "n_replicas": len(starts),
        "discarded_share": EQUILIBRATION,
        "student_ps": mine.picoseconds,
        "student_seconds": mine.seconds,
        "student_stopped": mine.stopped,
        "student_failed": mine.failed,
        "student_broken": broken_bonds(mine, starts),
        "teacher_ps": theirs.picoseconds if theirs else None,
        "teacher_seconds": theirs.seconds if theirs else None,
        "teacher_stopped": theirs.stopped if theirs else no_teacher,
        "teacher_failed": theirs.failed if theirs else None,
        "teacher_broken": broken_bonds(theirs, starts) if theirs else None,
        "bonds": [row for row in rows if row["unit"] == "Å"],
        "angles": [row for row in rows if row["unit"] == "°"],
    }
    if not len(mine.positions) or mine.failed:
        return Simulation(numbers, kinds)
    edges = np.linspace(0.5, _reach(starts), 181)
    pairs, quantity = pair_distances(mine, starts, edges)
    reference = pair_distances(usable, starts, edges)[0] if usable else None
    if reference is not None:
        weight = np.diff(edges)
        total = max(float((pairs * weight).sum()), 1e-300)
        numbers["pair_overlap"] = float((np.minimum(pairs, reference) * weight).sum() / total)
    return Simulation(numbers, kinds, edges, pairs, reference, quantity)


def _reach(starts: Sequence[Structure]) -> float:
    """Å: across the largest molecule, at most `PAIR_REACH`."""
    if any(np.any(s.pbc) for s in starts):
        return PAIR_REACH
    spans = [float(np.linalg.norm(np.ptp(s.positions, axis=0))) for s in starts]
    return min(PAIR_REACH, max(2.0, *spans) + 1.0)


def run_drift(model: Path, start: Structure, config: ReportConfig, progress: Progress) -> Simulation:
    """NVE in float32 and float64 from the same start."""
    if config.nve_ps <= 0:
        return Simulation(None)
    runs = []
    for dtype in ("float32", "float64"):
        calculator = _student(model, dtype, start, config)
        with progress.task(f"NVE in {dtype}", 1.0) as task:
            runs.append(
                run_nve(
                    calculator, start, picoseconds=config.nve_ps, timestep_fs=config.timestep_fs,
                    temperature_K=config.temperature_K, seed=config.seed,
                    budget_s=NVE_SHARE * config.budget_seconds, task=task,
                )
            )  # fmt: skip
    numbers = {
        "molecule": start.group,
        "n_atoms": len(start),
        "timestep_fs": config.timestep_fs,
        "temperature_K": config.temperature_K,
        "runs": [
            {
                "dtype": run.dtype,
                "ps": float(run.times[-1]) / 1000 if len(run.times) else 0.0,
                "drift": run.drift,
                "drift_error": run.drift_error,
                "fluctuation": run.fluctuation,
                "temperature_K": run.temperature_K,
                "stopped": run.stopped,
                "failed": run.failed,
            }
            for run in runs
        ],
    }
    return Simulation(numbers, runs=tuple(runs), n_atoms=len(start))


def time_all(
    model: Path, teacher: str | None, evaluation: Evaluation, dataset: Dataset, config: ReportConfig, progress: Progress
) -> list[dict[str, Any]]:
    """Speed on a structure of median size and, where sizes differ much, on the largest; one entry per structure."""
    if config.speed_seconds <= 0:
        return []
    by_size = np.argsort(evaluation.sizes, kind="stable")
    places = [int(by_size[len(by_size) // 2])]
    if evaluation.sizes[by_size[-1]] > 1.5 * evaluation.sizes[places[0]]:
        places.append(int(by_size[-1]))
    found = []
    with progress.task("Timing student and teacher", len(places)) as task:
        for place in places:
            start = dataset.structure(int(evaluation.frames[place]))
            calculators: dict[str, BaseCalculator] = {}
            for dtype in ("float32", "float64"):
                student = _student(model, dtype, start, config)
                calculators[f"student, {dtype}{', compiled' if student.compiled else ''}"] = student
            failed = ""
            if teacher is not None:
                try:
                    calculators[_label(teacher)] = _teacher_of(teacher)(start)
                except Exception as error:  # as above
                    failed = f"{type(error).__name__}: {error}"
            rows = compare_speed(
                calculators, start, seconds=config.speed_seconds, timestep_fs=config.timestep_fs,
                temperature_K=config.temperature_K, seed=config.seed,
            )  # fmt: skip
            if failed and teacher is not None:
                rows.append({"name": _label(teacher), "steps": 0, "failed": failed})
            found.append({"molecule": start.group, "n_atoms": len(start), "rows": _ratios(rows)})
            task.advance()
    return found


def _student(model: Path, dtype: str, start: Structure, config: ReportConfig) -> PotentialCalculator:
    return PotentialCalculator(
        model, dtype=dtype, charge=start.charge, multiplicity=start.multiplicity, compile=config.compile
    )


def _label(teacher: str) -> str:
    """Short enough for a figure: without options, and of ``module:Class`` the class."""
    return "teacher, " + teacher.split("?")[0].rsplit(":")[-1]


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add how many times faster than the teacher each row is."""
    slow = next((r for r in rows if r["name"].startswith("teacher") and not r["failed"]), None)
    for row in rows:
        row["times_faster"] = (
            None if slow is None or row["failed"] else (slow["seconds_per_step"] / row["seconds_per_step"])
        )
    return rows
