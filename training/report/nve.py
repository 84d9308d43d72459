"""Energy drift of the student in NVE, through ASE as a user runs it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.data import atomic_masses
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from ...ase_calcs.calculator import PotentialCalculator
from ...ase_calcs.progress import ProgressTask
from ...datasets.structure import Structure

BLOCKS = 25  # of the energy, for the error of the slope
RELAX_STEPS = 100


@dataclass(frozen=True)
class NVERun:
    """One run.

    Attributes
    ----------
    dtype
        ``"float32"`` or ``"float64"``.
    times
        (T,) fs.
    energies
        (T,) total energy, eV.
    temperature_K
        Mean of the second half, over the degrees of freedom that move.
    drift, drift_error
        Slope of the straight line through the total energy and its standard error, meV/atom/ps.
    fluctuation
        Standard deviation about that line, meV/atom.
    stopped
        "" or why it ended early.
    failed
        True where the energy became infinite or the calculator raised.
    """

    dtype: str
    times: np.ndarray
    energies: np.ndarray
    temperature_K: float
    drift: float
    drift_error: float
    fluctuation: float
    stopped: str = ""
    failed: bool = False


def fit_drift(times_fs: np.ndarray, energies: np.ndarray, n_atoms: int) -> tuple[float, float, float]:
    """Least-squares line through the total energy.

    The error of the slope comes from the scatter of block means about the line, since neighbouring energies of a
    trajectory are not independent.

    Parameters
    ----------
    times_fs, energies
        (T,) fs and eV.
    n_atoms
        Number of atoms.

    Returns
    -------
    drift, error
        meV/atom/ps; NaN with fewer than three points.
    fluctuation
        Standard deviation about the line, meV/atom.
    """
    if len(times_fs) < 3:
        return float("nan"), float("nan"), float("nan")
    t = (np.asarray(times_fs) - times_fs[0]) / 1000  # ps
    e = (np.asarray(energies) - energies[0]) * 1000 / n_atoms  # meV/atom
    slope, intercept = np.polyfit(t, e, 1)
    residual = e - (slope * t + intercept)
    blocks = min(BLOCKS, len(t))
    block_t = np.array([part.mean() for part in np.array_split(t, blocks)])
    block_r = np.array([part.mean() for part in np.array_split(residual, blocks)])
    spread = ((block_t - block_t.mean()) ** 2).sum()
    error = np.sqrt((block_r**2).sum() / max(blocks - 2, 1) / spread)
    return float(slope), float(error), float(residual.std())


def run_nve(
    calculator: PotentialCalculator,
    start: Structure,
    *,
    picoseconds: float,
    timestep_fs: float,
    temperature_K: float,
    seed: int,
    budget_s: float,
    task: ProgressTask,
) -> NVERun:
    """Relax, give velocities, and follow the total energy with `ase.md.verlet.VelocityVerlet`.

    After relaxation the velocities are drawn at twice the temperature, half of which goes into the potential energy.
    """
    atoms = start.to_atoms()
    atoms.calc = calculator
    began = time.perf_counter()
    times: list[float] = []
    rows: list[tuple[float, float]] = []
    stopped, failed = "", False
    steps = max(1, round(1000 * picoseconds / timestep_fs))
    every = max(1, steps // 2000)
    degrees = degrees_of_freedom(atoms)
    try:
        LBFGS(atoms, logfile=None).run(fmax=0.05, steps=RELAX_STEPS)  # type: ignore[arg-type]
        thermalise(atoms, 2 * temperature_K, np.random.default_rng(seed))
        dynamics = VelocityVerlet(atoms, timestep=timestep_fs * units.fs)
        for done in range(0, steps + 1, every):
            if done:
                dynamics.run(every)
                task.advance(every / steps)
            total = float(atoms.get_potential_energy()) + float(atoms.get_kinetic_energy())
            if not np.isfinite(total):
                stopped, failed = "the energy became infinite", True
                break
            times.append(done * timestep_fs)
            rows.append((total, float(atoms.get_kinetic_energy()) / (0.5 * units.kB * degrees)))
            if time.perf_counter() - began > budget_s and done < steps:
                stopped = f"the time budget of {budget_s:.0f} s was used up"
                break
    except Exception as error:  # whatever the calculator raises belongs into the report
        stopped, failed = f"{type(error).__name__}: {error}", True
    values = np.array(rows).reshape(-1, 2)
    drift = fit_drift(np.array(times), values[:, 0], len(atoms))
    mean = float(values[len(values) // 2 :, 1].mean()) if len(values) else float("nan")
    dtype = str(calculator.dtype).removeprefix("torch.")
    return NVERun(dtype, np.array(times), values[:, 0], mean, *drift, stopped=stopped, failed=failed)


def degrees_of_freedom(atoms: Atoms) -> int:
    """Of the motion that `thermalise` leaves: without net momentum, and for molecules without net rotation."""
    if len(atoms) == 1:
        return 3
    if atoms.pbc.any():
        return 3 * len(atoms) - 3
    return 3 * len(atoms) - (5 if len(atoms) == 2 else 6)


def thermalise(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Maxwell–Boltzmann velocities without net momentum, and for molecules without net rotation."""
    mass = atomic_masses[atoms.numbers][:, None]
    atoms.set_momenta(np.sqrt(mass * units.kB * temperature_K) * rng.standard_normal((len(atoms), 3)))
    if len(atoms) > 1:
        Stationary(atoms)
        if not atoms.pbc.any():
            ZeroRotation(atoms)
