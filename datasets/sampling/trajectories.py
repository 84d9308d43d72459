"""Baseline trajectories of a teacher, many side by side, in one file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...ase_calcs.errors import DataError, InputError, TeacherError
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.teachers import make_teacher, parse_teacher, teacher_settings, teacher_version
from ..lock import locked
from ..store import Dataset
from ..structure import Structure
from ..trajectory import FILE_NAME, Trajectory, write_trajectories
from .config import SamplingConfig, TrajectoryConfig
from .jobs import run_jobs
from .processes import in_processes
from .sample import Molecule, conformer_job, gather
from .surface import labelling_surface
from .trajectory_job import Outcome, TrajectoryJob, degrees_of_freedom, known_outcome, perform, read_frames

WORK = "trajectories"  # folder with what an interrupted run goes on from


@dataclass(frozen=True)
class TrajectoryResult:
    """What became of the trajectories.

    Attributes
    ----------
    path
        The dataset file.
    records
        One for each trajectory, in the order of the file: what `Trajectory.settings` holds, with ``group``, ``origin``,
        ``frames``, ``interval`` (fs), ``mean_temperature_K`` and, for Verlet, ``energy_drift`` (meV/atom/ps).
    """

    path: Path
    records: list[dict[str, Any]]

    @property
    def stopped(self) -> list[dict[str, Any]]:
        """Records of those that ended before their time."""
        return [record for record in self.records if "stopped" in record]


def run_trajectories(
    molecules: Sequence[Structure],
    out_dir: str | Path,
    *,
    teacher: str,
    config: TrajectoryConfig | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> TrajectoryResult:
    """Run a teacher's dynamics from every molecule and keep all of it (``out_dir/trajectories.h5``).

    Positions, velocities, forces and energy of a frame belong to one instant. First velocities are those of the
    temperature, without net momentum and rotation; before the first frame the thermostat acts for
    ``config.equilibrate``, and for Verlet the rotation that it brought is then taken away.

    Interrupted or killed at any moment, the same call goes on and ends with the same frames, bit by bit if the
    teacher's answer depends on the structure alone (as those of the built-in teachers do, unless ``guess=warm``). With
    more ``trajectories`` or ``picoseconds`` it adds to what is there.

    Parameters
    ----------
    molecules
        First geometries, hydrogens included. Those of one ``group`` with the same atoms are geometries of one molecule.
    out_dir
        Gets `FILE_NAME` and, in the folder `WORK`, what an interrupted run goes on from.
    teacher
        Registry name.
    config
        How to run.
    seed
        The same seed gives the same frames, whatever the number of workers.
    workers
        Processes, each on one thread. More than one are spawned: a script must then have its
        ``if __name__ == "__main__":``.
    progress
        Where to report to; its unit is the step.

    Raises
    ------
    InputError
        No molecules, or a wrong teacher.
    DataError
        Another run is at work in the folder, files in it are damaged, or no trajectory has a single frame.
    """
    config, progress, out_dir = config or TrajectoryConfig(), progress or SilentProgress(), Path(out_dir)
    if not molecules:
        raise InputError("There are no molecules to run.")
    parse_teacher(teacher)
    with suppress(TeacherError):  # a wrong option or a package that lacks ends the run; a refused molecule does not
        make_teacher(teacher, molecules[0].charge, molecules[0].multiplicity, smiles=molecules[0].smiles)
    work = out_dir / WORK
    with locked(work, "computing trajectories"):
        for left in work.glob(".*.tmp"):
            left.unlink()
        jobs = _jobs(molecules, config, labelling_surface(teacher), seed, workers, work, progress)
        request = hashlib.blake2b("".join(job.key() for job in jobs).encode(), digest_size=16).hexdigest()
        request += f"-{config.n_frames}"
        done = _finished(out_dir / FILE_NAME, request)
        if done is not None:
            progress.say(f"All {len(jobs)} trajectories are finished already.")
            return done
        outcomes = _run(jobs, work, workers, progress)
        trajectories = [_trajectory(job, work, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]
        provenance = {
            "teacher": teacher,
            "teacher_version": teacher_version(teacher),
            "teacher_settings": teacher_settings(teacher),
            "seed": seed,
            "request": request if all(outcome.final for outcome in outcomes) else "",
        }
        if not any(outcome.frames for outcome in outcomes):
            reasons = Counter(outcome.stopped for outcome in outcomes).most_common(3)
            listed = "; ".join(f"{count}× {reason}" for reason, count in reasons)
            raise DataError(f"None of {len(jobs)} trajectories came to its first frame: {listed.rstrip('.')}.")
        path = write_trajectories(out_dir / FILE_NAME, trajectories, provenance=provenance)
    return TrajectoryResult(path, Dataset(path).provenance["trajectories"])


def _finished(path: Path, request: str) -> TrajectoryResult | None:
    """What a file holds, if it is what is asked for now."""
    if not path.is_file():
        return None
    with Dataset(path) as dataset:
        provenance = dataset.provenance
    return TrajectoryResult(path, provenance["trajectories"]) if provenance.get("request") == request else None


def _jobs(
    molecules: Sequence[Structure],
    config: TrajectoryConfig,
    teacher: str,
    seed: int,
    workers: int,
    work: Path,
    progress: Progress,
) -> list[TrajectoryJob]:
    known = gather(molecules)
    starts = _starts(known, config, teacher, seed, workers, work, progress)
    numbering: Counter[str] = Counter()
    jobs = []
    for molecule, own in zip(known, starts, strict=True):
        for k in range(config.trajectories):
            group = molecule.reference.group
            origin = f"{config.integrator}-{config.temperature_K:g}K/{numbering[group]:03d}"
            numbering[group] += 1
            start = replace(molecule.reference, positions=own[k % len(own)], origin=origin)
            jobs.append(TrajectoryJob(start, teacher, config, molecule.seed(seed, "trajectory", k)))
    return jobs


def _starts(
    known: Sequence[Molecule],
    config: TrajectoryConfig,
    teacher: str,
    seed: int,
    workers: int,
    work: Path,
    progress: Progress,
) -> list[np.ndarray]:
    """(K, N, 3) Å for each molecule: its input geometries, then conformers if there are more trajectories than those.

    The number of conformers does not depend on that of trajectories, which may grow.
    """
    wanted = SamplingConfig(conformers=config.conformers)
    short = [m for m in known if len(m.inputs) < config.trajectories] if config.conformers else []
    embedding = [conformer_job(molecule, wanted, teacher, seed) for molecule in short]
    found = run_jobs(embedding, workers=workers, cache_dir=work, description="conformers", progress=progress)
    for molecule, result in zip(short, found, strict=True):
        for note in result.notes:
            progress.say(f"{molecule.reference.group or 'molecule'}: {note}")
    embedded = {id(molecule): result.positions for molecule, result in zip(short, found, strict=True)}
    inputs = [np.array([structure.positions for structure in molecule.inputs]) for molecule in known]
    return [np.concatenate([own, embedded.get(id(m), own[:0])]) for m, own in zip(known, inputs, strict=True)]


def _run(jobs: Sequence[TrajectoryJob], work: Path, workers: int, progress: Progress) -> list[Outcome]:
    """Outcomes in the order of the jobs."""
    outcomes = [known_outcome(job, work) for job in jobs]
    todo = [k for k, outcome in enumerate(outcomes) if outcome is None or not outcome.final]
    with progress.task("trajectories", float(sum(job.config.steps for job in jobs))) as task:
        done = sum(
            job.config.steps if outcome.final else outcome.steps
            for job, outcome in zip(jobs, outcomes, strict=True)
            if outcome is not None
        )
        if done:
            task.advance(done, "from an earlier run")
        if workers <= 1 or len(todo) <= 1:
            for k in todo:
                outcomes[k] = perform((jobs[k], work), task.advance)
        else:
            # The largest first, so that none is left over at the end.
            todo.sort(key=lambda k: -len(jobs[k].start))
            for k, outcome in in_processes(perform, {k: (jobs[k], work) for k in todo}, workers, task):
                outcomes[k] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def _trajectory(job: TrajectoryJob, work: Path, outcome: Outcome) -> Trajectory:
    """The frames of a job, still on the disk, and what is to be said of them."""
    from ...ase_calcs.bench import energy_drift  # here, because it brings torch, which workers need not load

    config, start = job.config, job.start
    masses = start.to_atoms().get_masses()
    frames = read_frames(job, work, min(outcome.frames, config.n_frames))
    settings: dict[str, Any] = {
        "teacher": job.teacher,
        "integrator": config.integrator,
        "timestep": config.timestep,
        "temperature_K": config.temperature_K,
        "friction": config.friction if config.integrator == "langevin" else 0.0,
        "equilibration": {"picoseconds": config.equilibrate, "friction": config.friction},
        "seed": job.seed,
        # As many as an undisturbed run asks for; an energy comes with each.
        "teacher_gradients": outcome.steps + 1,
        "teacher_energies": 0,
        "seconds": round(outcome.seconds, 3),
    }
    if outcome.stopped:
        settings["stopped"] = outcome.stopped
    trajectory = Trajectory(
        numbers=start.numbers,
        masses=masses,
        interval=config.interval,
        group=start.group,
        origin=start.origin,
        charge=start.charge,
        multiplicity=start.multiplicity,
        smiles=start.smiles,
        settings=settings,
        cell=start.cell,
        pbc=start.pbc,
        **frames,
    )
    if len(trajectory):
        settings["degrees_of_freedom"] = degrees_of_freedom(config, trajectory.positions[0], masses, start.pbc)
        settings["mean_temperature_K"] = float(trajectory.temperatures.mean())
        if config.integrator == "verlet":
            total = trajectory.kinetic_energies + frames["energies"]
            settings["energy_drift"] = energy_drift(trajectory.times, total, len(masses))
    return trajectory
