"""From molecules to the set of geometries that a teacher shall label."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...ase_calcs.errors import InputError
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.teachers import parse_teacher
from ..structure import Structure
from .config import SamplingConfig
from .guards import Guard
from .jobs import Job, run_jobs
from .selection import descriptors, drop_duplicates, farthest_points


@dataclass(frozen=True)
class Sample:
    """What sampling gave: geometries, and notes on what went otherwise than asked, each naming its molecule."""

    structures: list[Structure]
    notes: list[str]


@dataclass(frozen=True)
class Molecule:
    """Input geometries of one molecule: the same group, atoms in the same order, electronic state and cell."""

    reference: Structure
    inputs: list[Structure]
    identity: str  # what its seeds are derived from

    def seed(self, seed: int, *what: object) -> int:
        """A seed for one piece of work on this molecule, derived from the one seed of the run."""
        text = "\x1f".join(str(part) for part in (seed, self.identity, *what))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def sample_geometries(
    molecules: Sequence[Structure],
    config: SamplingConfig,
    *,
    teacher: str,
    seed: int,
    workers: int = 1,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> list[Structure]:
    """The geometries alone; see `sample_with_notes`. Notes go to ``progress.say``."""
    return sample_with_notes(
        molecules, config, teacher=teacher, seed=seed, workers=workers, progress=progress, cache_dir=cache_dir
    ).structures


def sample_with_notes(
    molecules: Sequence[Structure],
    config: SamplingConfig,
    *,
    teacher: str,
    seed: int,
    workers: int = 1,
    progress: Progress | None = None,
    cache_dir: Path | None = None,
) -> Sample:
    """Conformers, rattled geometries, normal-mode displacements and MD frames of every molecule.

    Structures of one ``group`` with the same atoms, charge, multiplicity and cell are taken as geometries of one
    molecule: the counts of the configuration are per molecule. What one molecule gets does not depend on the others.

    Parameters
    ----------
    molecules
        Starting geometries, hydrogens included.
    config
        What to make.
    teacher
        Registry name; the surface where the configuration says ``teacher``.
    seed
        The same seed gives the same bytes, whatever the number of workers.
    workers
        Processes. More than one are spawned: a script must then have its ``if __name__ == "__main__":``.
    progress
        Where to report.
    cache_dir
        Finished pieces (a trajectory, a Hessian) are kept here and found again, so that an interrupted run goes on.

    Returns
    -------
    The set, by molecule in the order of the input: the input geometries, then what was made of them. ``origin`` names
    the piece, e.g. ``"md-500K/003"``: one name for each trajectory.

    Raises
    ------
    InputError
        No molecules, or a wrong teacher.
    """
    progress = progress or SilentProgress()
    if not molecules:
        raise InputError("There are no molecules to sample.")
    parse_teacher(teacher)
    known = gather(molecules)
    embedding = [conformer_job(m, config, teacher, seed) for m in known]
    found = run_jobs(embedding, workers=workers, cache_dir=cache_dir, description="conformers", progress=progress)
    notes = [_note(job, note) for job, result in zip(embedding, found, strict=True) for note in result.notes]

    numbering: Counter[tuple[str, str]] = Counter()
    jobs: list[list[Job]] = []
    for molecule, conformers in zip(known, found, strict=True):
        starts = np.concatenate([conformers.positions, [s.positions for s in molecule.inputs]])
        jobs.append(_jobs(molecule, starts, config, teacher, seed, numbering))
    flat = [job for own in jobs for job in own]
    results = iter(run_jobs(flat, workers=workers, cache_dir=cache_dir, description="geometries", progress=progress))
    structures: list[Structure] = []
    for molecule, job, conformers, own in zip(known, embedding, found, jobs, strict=True):
        pieces = list(molecule.inputs)
        pieces += [
            replace(molecule.reference, positions=p, origin=f"conformer/{k:03d}")
            for k, p in enumerate(conformers.positions, start=numbering[molecule.reference.group, "conformer"])
        ]
        numbering[molecule.reference.group, "conformer"] += len(conformers.positions)
        for job in own:
            result = next(results)
            notes += [_note(job, note) for note in result.notes]
            pieces += [replace(molecule.reference, positions=p, origin=job.origin) for p in result.positions]
        structures += _thin(molecule, pieces, config, notes)
    for note in notes:
        progress.say(note)
    return Sample(structures, notes)


def gather(molecules: Sequence[Structure]) -> list[Molecule]:
    """Structures by molecule, in the order of the input."""
    gathered: dict[tuple[str, str], list[Structure]] = {}
    for structure in molecules:
        # What the structure's own hash covers, but for the positions.
        same = replace(structure, positions=np.zeros_like(structure.positions)).key()
        gathered.setdefault((structure.group, same), []).append(structure)
    known = []
    for (group, _), inputs in gathered.items():
        identity = hashlib.blake2b("".join([group, *(s.key() for s in inputs)]).encode(), digest_size=16).hexdigest()
        named = [replace(s, origin=s.origin or "input") for s in inputs]
        known.append(Molecule(named[0], named, identity))
    return known


def conformer_job(molecule: Molecule, config: SamplingConfig, teacher: str, seed: int) -> Job:
    """The embedding of as many conformers as the configuration asks for; none of a periodic structure."""
    reference = molecule.reference
    count = 0 if np.any(reference.pbc) else config.conformers  # RDKit knows no periodic boundary conditions
    return Job(
        kind="conformer",
        origin="conformer",
        molecule=reference,
        bases=np.empty((0, len(reference), 3)),
        count=count,
        seed=molecule.seed(seed, "conformer"),
        config=config,
        teacher=teacher,
    )


def _jobs(
    molecule: Molecule,
    starts: np.ndarray,
    config: SamplingConfig,
    teacher: str,
    seed: int,
    numbering: Counter[tuple[str, str]],
) -> list[Job]:
    """Rattling, normal modes and trajectories of one molecule; `starts` (K, N, 3), Å, are taken in turn."""
    group = molecule.reference.group

    def job(kind: str, name: str, bases: np.ndarray, count: int, temperature: float, *what: object) -> Job:
        number = numbering[group, name]
        numbering[group, name] += 1
        return Job(
            kind=kind,  # type: ignore[arg-type]
            origin=f"{name}/{number:03d}",
            molecule=molecule.reference,
            bases=bases,
            count=count,
            seed=molecule.seed(seed, kind, *what),
            config=config,
            teacher=teacher,
            temperature_K=temperature,
        )

    jobs = []
    if config.rattled:
        jobs.append(job("rattle", "rattle", starts, config.rattled, 0.0))
    if config.normal_modes:
        jobs.append(job("mode", "mode", starts[:1], config.normal_modes, 0.0))
    trajectories = [(t, r) for r in range(config.md.replicas) for t in config.md.temperatures_K]
    for k, (temperature, replica) in enumerate(trajectories):
        count = config.md.n_frames // len(trajectories) + (k < config.md.n_frames % len(trajectories))
        if count:
            start = starts[k % len(starts)][None]
            jobs.append(job("md", f"md-{temperature:g}K", start, count, temperature, temperature, replica))
    return jobs


def _thin(molecule: Molecule, pieces: list[Structure], config: SamplingConfig, notes: list[str]) -> list[Structure]:
    """Drop clashes and duplicates, then select; the order is kept."""
    reference = molecule.reference
    guard = Guard.of(
        reference.numbers, reference.positions, reference.cell, reference.pbc, min_distance=config.min_distance
    )
    faults = [guard.fault(piece.positions) for piece in pieces]
    # What was made here has passed its guard; an input may clash, but its bonds are its own.
    notes += [
        f"{p.group or 'molecule'}, {p.origin}: left out, {f}"
        for p, f in zip(pieces, faults, strict=True)
        if "clash" in f
    ]
    pieces = [piece for piece, fault in zip(pieces, faults, strict=True) if "clash" not in fault]
    if len(pieces) < 2:
        return pieces
    rows = descriptors(
        reference.numbers, np.array([p.positions for p in pieces]), cell=reference.cell, pbc=reference.pbc
    )
    kept = drop_duplicates(rows, config.dedup_rmsd)
    chosen = np.sort(kept[farthest_points(1.0 / rows[kept], config.select)])
    return [pieces[k] for k in chosen]


def _note(job: Job, note: str) -> str:
    return f"{job.molecule.group or 'molecule'}, {job.origin}: {note}"
