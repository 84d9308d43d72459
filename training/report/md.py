"""Langevin MD of student and teacher from the same starts with the same noise, on flat arrays.

One integrator for both, so that what differs between two trajectories is the forces. Several replicas advance together:
the student evaluates them as one batch, which costs little more than one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.data import atomic_masses

from ...ase_calcs.calculator import PotentialCalculator
from ...ase_calcs.progress import ProgressTask
from ...datasets.structure import Structure

SAVE_FS = 5.0  # a frame is kept this often; bond vibrations have periods from 9 fs
FEWEST_STEPS = 100  # a run cut shorter than this says nothing


class Forces(Protocol):
    """Forces of all replicas."""

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """(A, 3) Å of all replicas → (A, 3) eV/Å."""


@dataclass(frozen=True)
class Trajectory:
    """What `langevin` returns.

    Attributes
    ----------
    positions
        (T, A, 3) Å, replicas one after another along the atoms.
    steps
        Steps done.
    picoseconds
        Length of each replica, ps.
    seconds
        Wall-clock time.
    stopped
        "" if it ran to its end, else why not.
    failed
        True where it stopped because forces were not finite or the calculator failed.
    """

    positions: np.ndarray
    steps: int
    picoseconds: float
    seconds: float
    stopped: str = ""
    failed: bool = False


def student_forces(calculator: PotentialCalculator, starts: Sequence[Structure]) -> Forces:
    """Forces of all replicas in one batch."""
    replicas = [structure.to_atoms() for structure in starts]
    slices = _slices(starts)

    def forces(positions: np.ndarray) -> np.ndarray:
        for atoms, rows in zip(replicas, slices, strict=True):
            atoms.positions = positions[rows]
        return np.concatenate([result["forces"] for result in calculator.calculate_many(replicas, ("forces",))])

    return forces


def teacher_forces(make: Callable[[Structure], BaseCalculator], starts: Sequence[Structure]) -> Forces:
    """Forces of the replicas one after another, each with a teacher of its own."""
    replicas: list[Atoms] = []
    for structure in starts:
        atoms = structure.to_atoms()
        atoms.calc = make(structure)
        replicas.append(atoms)
    slices = _slices(starts)

    def forces(positions: np.ndarray) -> np.ndarray:
        found = []
        for atoms, rows in zip(replicas, slices, strict=True):
            atoms.positions = positions[rows]
            found.append(atoms.get_forces())
        return np.concatenate(found)

    return forces


def _slices(starts: Sequence[Structure]) -> list[slice]:
    bounds = np.concatenate([[0], np.cumsum([len(s) for s in starts])])
    return [slice(int(a), int(b)) for a, b in pairwise(bounds)]


def langevin(
    forces: Forces,
    starts: Sequence[Structure],
    *,
    steps: int,
    timestep_fs: float,
    temperature_K: float,
    friction_per_fs: float,
    seed: int,
    budget_s: float,
    task: ProgressTask,
) -> Trajectory:
    """Langevin dynamics by the BAOAB splitting (Leimkuhler & Matthews 2013, 10.1093/amrx/abs010).

    With the same starts and seed the velocities and the noise are the same whatever the forces, so differences between
    student and teacher are not drowned in different random numbers.

    Parameters
    ----------
    forces
        From `student_forces` or `teacher_forces`.
    starts
        First geometries.
    steps, timestep_fs, temperature_K, friction_per_fs, seed
        Of the run.
    budget_s
        The run stops when it has taken this long, s.
    task
        Moved on by one in all.
    """
    rng = np.random.default_rng(seed)
    x = np.concatenate([s.positions for s in starts]).astype(float)
    mass = np.concatenate([atomic_masses[s.numbers] for s in starts])[:, None]
    kT, dt = units.kB * temperature_K, timestep_fs * units.fs
    thermal = np.sqrt(kT / mass)
    v = thermal * rng.standard_normal(x.shape)
    keep = np.exp(-friction_per_fs * timestep_fs)
    kick = thermal * np.sqrt(1 - keep**2)
    every = max(1, round(SAVE_FS / timestep_fs))
    frames, done, stopped, failed = [], 0, "", False
    began = time.perf_counter()
    try:
        f = forces(x)
        one = time.perf_counter() - began
        if one * min(FEWEST_STEPS, steps) > budget_s:
            # The first call may have set things up; the second is what the others will take.
            forces(x)
            one = time.perf_counter() - began - one
        if one * min(FEWEST_STEPS, steps) > budget_s:
            stopped = f"one step takes {one:.2g} s, too long for {FEWEST_STEPS} steps in a budget of {budget_s:.0f} s"
        while done < steps and not stopped:
            v += 0.5 * dt * f / mass
            x = x + 0.5 * dt * v
            v = keep * v + kick * rng.standard_normal(x.shape)
            x = x + 0.5 * dt * v
            f = forces(x)
            v += 0.5 * dt * f / mass
            done += 1
            if not np.isfinite(f).all():
                stopped, failed = "the forces became infinite", True
            if done % every == 0:
                frames.append(x)
                task.advance(every / steps)
            if done < steps and time.perf_counter() - began > budget_s:
                stopped = f"the time budget of {budget_s:.0f} s was used up"
    except Exception as error:  # a calculator may raise anything; the report goes on without this part
        stopped, failed = f"{type(error).__name__}: {error}", True
    positions = np.array(frames).reshape(len(frames), len(x), 3)
    seconds = time.perf_counter() - began
    return Trajectory(positions, done, done * timestep_fs / 1000, seconds, stopped, failed)
