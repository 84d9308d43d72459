"""Pieces of sampling work: each a function of its own fields, done in any process, kept in a cache when finished."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...ase_calcs.errors import TeacherError
from ...ase_calcs.progress import Progress
from ..structure import Structure
from .config import SamplingConfig
from .conformers import embed_conformers
from .displacements import boltzmann_factor, displace_along_modes, hessian, rattle, relax
from .dynamics import run_trajectory
from .guards import Guard
from .processes import in_processes
from .surface import make_surface, surface_identity, surface_name

_FORMAT = 1  # counted up when the same job would give another result


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes
    ----------
    kind
        What to do.
    origin
        Written into the geometries it makes.
    molecule
        The reference: bonds, charge, SMILES.
    bases
        (K, N, 3), Å, where to start from.
    count
        Geometries wanted.
    seed
        Entropy of its generator, of its own.
    config
        The whole configuration; a job uses what concerns it.
    teacher
        Registry name.
    temperature_K
        Of a trajectory.
    """

    kind: Literal["conformer", "rattle", "mode", "md"]
    origin: str
    molecule: Structure
    bases: np.ndarray
    count: int
    seed: int
    config: SamplingConfig
    teacher: str
    temperature_K: float = 0.0

    @property
    def cost(self) -> float:
        """Force evaluations, roughly; what the progress bar counts."""
        if self.kind == "md":
            return self.config.md.equilibration + self.count * self.config.md.stride
        return 6.0 * len(self.molecule) + 50.0 if self.kind == "mode" else 1.0

    @property
    def surface(self) -> str:
        """Registry name of the surface it needs, or ``""``."""
        if self.kind == "md":
            return surface_name(self.config.md.surface, self.teacher, dynamics=True)
        if self.kind == "mode":
            return surface_name(self.config.mode_surface, self.teacher, dynamics=False)
        return ""

    def key(self) -> str:
        """Hash of everything the result depends on."""
        config = asdict(self.config)
        md = config.pop("md")
        for unused in ("dedup_rmsd", "select"):
            del config[unused]
        used = {
            "conformer": {"conformer_rmsd"},
            "rattle": {"rattle_sigma"},
            "mode": {"mode_temperatures_K", "mode_floor"},
            "md": set(),
        }[self.kind] | {"min_distance"}
        settings = {name: value for name, value in config.items() if name in used}
        if self.kind == "md":
            own = ("stride", "timestep", "friction", "equilibration", "max_force")
            settings |= {name: md[name] for name in own} | {"temperature_K": self.temperature_K}
        surface = surface_identity(self.surface) if self.surface else ""
        text = json.dumps([_FORMAT, self.kind, self.count, str(self.seed), self.molecule.smiles, settings, surface])
        digest = hashlib.blake2b(digest_size=16)
        for part in (text.encode(), self.molecule.key().encode(), np.ascontiguousarray(self.bases).tobytes()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()


@dataclass(frozen=True)
class Result:
    """Positions (M, N, 3), Å, and notes for the user."""

    positions: np.ndarray
    notes: list[str]


def perform(job: Job, advance: Callable[[float], None]) -> Result:
    """Do a job. A structure that a surface refuses gives a note, not an exception."""
    rng = np.random.default_rng(job.seed)
    molecule, config = job.molecule, job.config
    if job.kind == "conformer":
        found = embed_conformers(
            molecule, job.count, rmsd=config.conformer_rmsd, min_distance=config.min_distance, rng=rng
        )
        return Result(*found)
    guard = Guard.of(
        molecule.numbers, molecule.positions, molecule.cell, molecule.pbc, min_distance=config.min_distance
    )
    if job.kind == "rattle":
        return Result(*rattle(job.bases, job.count, sigma=config.rattle_sigma, guard=guard, rng=rng))
    try:
        if job.kind == "mode":
            return _modes(job, guard, rng, advance)
        return _trajectory(job, guard, rng, advance)
    except TeacherError as error:
        return Result(np.empty((0, len(molecule), 3)), [f"nothing sampled: {error}"])


def _modes(job: Job, guard: Guard, rng: np.random.Generator, advance: Callable[[float], None]) -> Result:
    calculator = make_surface(job.surface, job.molecule)
    atoms = job.molecule.to_atoms()
    atoms.positions = job.bases[0]
    atoms.positions, converged = relax(atoms, calculator)
    advance(50.0)
    nothing = np.empty((0, len(atoms), 3))
    fault = guard.fault(atoms.positions)
    if fault:
        return Result(nothing, [f"no normal modes: in the relaxation, {fault}"])
    notes = [] if converged else ["the relaxation for normal modes did not converge"]
    factor = boltzmann_factor(atoms, hessian(atoms, calculator, advance), floor=job.config.mode_floor)
    positions, more = displace_along_modes(
        atoms, factor, job.count, temperatures_K=job.config.mode_temperatures_K, guard=guard, rng=rng
    )
    return Result(positions, notes + more)


def _trajectory(job: Job, guard: Guard, rng: np.random.Generator, advance: Callable[[float], None]) -> Result:
    atoms = job.molecule.to_atoms()
    atoms.positions = job.bases[0]
    positions, reason = run_trajectory(
        atoms,
        make_surface(job.surface, job.molecule),
        n_frames=job.count,
        temperature_K=job.temperature_K,
        config=job.config.md,
        guard=guard,
        rng=rng,
        advance=advance,
    )
    return Result(positions, [f"cut after {len(positions)} of {job.count} frames: {reason}"] if reason else [])


# --- cache ---------------------------------------------------------------------------------------------------------


def load_result(path: Path) -> Result | None:
    """A cached result, or None where there is none that is whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Result(stored["positions"], [str(note) for note in stored["notes"]])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def save_result(path: Path, result: Result) -> None:
    """Write a result so that the file is either whole or absent, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        np.savez(file, positions=result.positions, notes=np.array(result.notes, dtype=np.str_))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


# --- processes -----------------------------------------------------------------------------------------------------


def run_jobs(
    jobs: Sequence[Job], *, workers: int, cache_dir: Path | None, description: str, progress: Progress
) -> list[Result]:
    """Results in the order of the jobs, the same ones whatever the number of workers.

    One worker works in this process; more are spawned, each on one thread, and none outlives this process.
    """
    paths = [cache_dir / f"{job.origin.replace('/', '-')}-{job.key()}.npz" if cache_dir else None for job in jobs]
    results: list[Result | None] = [load_result(path) if path else None for path in paths]
    todo = [k for k, result in enumerate(results) if result is None]
    with progress.task(description, sum(job.cost for job in jobs)) as task:
        done = sum(job.cost for job, result in zip(jobs, results, strict=True) if result is not None)
        if done:
            task.advance(done, "from an earlier run")
        if workers <= 1 or len(todo) <= 1:
            for k in todo:
                results[k] = _perform_and_save(jobs[k], paths[k], task.advance)
        else:
            todo.sort(key=lambda k: -jobs[k].cost)  # the longest first, so that none is left over at the end
            for k, result in in_processes(_work, {k: (jobs[k], paths[k]) for k in todo}, workers, task):
                results[k] = result
    return [result for result in results if result is not None]


def _perform_and_save(job: Job, path: Path | None, advance: Callable[[float], None]) -> Result:
    reported = 0.0

    def report(amount: float) -> None:
        nonlocal reported
        reported += amount
        advance(amount)

    result = perform(job, report)
    advance(job.cost - reported)  # what was planned and not needed
    if path is not None:
        save_result(path, result)
    return result


def _work(item: tuple[Job, Path | None], advance: Callable[[float], None]) -> Result:
    return _perform_and_save(*item, advance)
