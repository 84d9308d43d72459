"""Speed and energy drift of a calculator inside ASE's own molecular dynamics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from .calculator import PotentialCalculator

SECONDS_PER_DAY = 86400.0


@dataclass(frozen=True)
class MDSpeed:
    """What one calculator costs in an MD run.

    Attributes
    ----------
    name
        As given to `time_md`.
    n_atoms
        Size of the system.
    steps
        Number of steps that were timed.
    seconds_per_step
        Median over blocks of steps, s.
    shares
        Part of the run → share of its time, summing to 1. ``ASE`` is the integrator and `Atoms`, ``calculator`` is what
        happens inside the calculator; of a `PotentialCalculator` the ``network`` and the ``neighbour list`` are taken
        out of that, and what remains are its cache check and conversions.
    """

    name: str
    n_atoms: int
    steps: int
    seconds_per_step: float
    shares: Mapping[str, float] = field(default_factory=dict)

    def ns_per_day(self, timestep_fs: float) -> float:
        """Nanoseconds of simulation in a day at this time step."""
        return SECONDS_PER_DAY / self.seconds_per_step * timestep_fs * 1e-6


class _Stopwatch:
    """Sums the time spent in wrapped functions; a function called inside another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    def wrap(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        self.seconds[part] = 0.0

        def timed(*args: Any, **kwargs: Any) -> Any:
            outer, self._inner = self._inner, 0.0
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                self.seconds[part] += elapsed - self._inner
                self._inner = outer + elapsed

        return timed


def energy_drift(times_fs: np.ndarray, energies: np.ndarray, n_atoms: int) -> float:
    """Slope of the straight line through the total energy, meV per atom per ps.

    Parameters
    ----------
    times_fs
        (T,) fs.
    energies
        (T,) total (potential + kinetic) energy, eV.
    n_atoms
        Number of atoms.
    """
    if len(times_fs) < 2:
        return 0.0
    slope = np.polyfit(np.asarray(times_fs) - times_fs[0], np.asarray(energies) - energies[0], 1)[0]  # eV/fs
    return float(slope * 1e6 / n_atoms)


def time_md(
    calculator: BaseCalculator,
    atoms: Atoms,
    *,
    name: str = "",
    steps: int = 500,
    timestep_fs: float = 0.5,
    temperature_K: float = 300.0,
    seed: int = 0,
    warmup: int | None = None,
) -> MDSpeed:
    """Time a calculator inside `ase.md.verlet.VelocityVerlet`.

    Two runs from the same start: one untouched, for the speed, and one with clocks around the parts, for the shares.

    Parameters
    ----------
    calculator
        Any ASE calculator; of a `PotentialCalculator` the network and the neighbour list are told apart.
    atoms
        Start; not changed.
    steps
        Steps that are timed, in each run.
    timestep_fs, temperature_K, seed
        Of the run and its first velocities.
    warmup
        Untimed steps before (compilation, caches); default a tenth of `steps`, at least 3.

    Returns
    -------
    MDSpeed
    """
    warmup = max(3, steps // 10) if warmup is None else warmup
    settings = (steps, timestep_fs, temperature_K, seed, warmup)
    blocks, _ = _run(calculator, atoms, *settings)
    watch = _Stopwatch()
    with _clocks(calculator, watch):
        _, total = _run(calculator, atoms, *settings, watch=watch)
    shares = {part: seconds / total for part, seconds in watch.seconds.items()}
    shares["ASE"] = max(0.0, 1.0 - sum(shares.values()))
    return MDSpeed(name, len(atoms), steps, float(np.median(blocks)), shares)


@contextmanager
def _clocks(calculator: BaseCalculator, watch: _Stopwatch) -> Iterator[None]:
    """Clocks around the parts of a calculator, taken away at the end."""
    places: list[tuple[str, Any, str]] = []
    if isinstance(calculator, PotentialCalculator):
        places = [("network", calculator, "_evaluate"), ("neighbour list", calculator.neighbors, "update")]
    places.append(("calculator", calculator, "get_property"))
    for part, owner, method in places:
        setattr(owner, method, watch.wrap(part, getattr(owner, method)))
    try:
        yield
    finally:
        for _, owner, method in places:
            delattr(owner, method)


def _run(
    calculator: BaseCalculator,
    atoms: Atoms,
    steps: int,
    timestep_fs: float,
    temperature_K: float,
    seed: int,
    warmup: int,
    watch: _Stopwatch | None = None,
) -> tuple[list[float], float]:
    """Seconds per step of each block, and seconds in all."""
    atoms = atoms.copy()
    atoms.calc = calculator
    thermalize_momenta(atoms, temperature_K=temperature_K, rng=np.random.default_rng(seed))
    dynamics = VelocityVerlet(atoms, timestep=timestep_fs * units.fs)
    dynamics.run(warmup)
    if watch is not None:
        watch.seconds = dict.fromkeys(watch.seconds, 0.0)
    blocks, total = [], 0.0
    for block in np.array_split(np.arange(steps), min(10, steps)):
        start = time.perf_counter()
        dynamics.run(len(block))
        elapsed = time.perf_counter() - start
        total += elapsed
        blocks.append(elapsed / len(block))
    return blocks, total
