"""Langevin trajectories that stop where they stop making sense."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculationFailed
from ase.md.langevin import Langevin

from ...ase_calcs.errors import TeacherError
from ...ase_calcs.units import FS, KB
from .config import MDConfig
from .guards import Guard

_HOTTEST = 5.0  # a trajectory at this many times its temperature has exploded
_FEWEST_DEGREES = 30  # below this many degrees of freedom the temperature fluctuates too much to judge by that factor


def run_trajectory(
    atoms: Atoms,
    calculator: BaseCalculator,
    *,
    n_frames: int,
    temperature_K: float,
    config: MDConfig,
    guard: Guard,
    rng: np.random.Generator,
    advance: Callable[[float], None] = lambda _: None,
) -> tuple[np.ndarray, str]:
    """Frames of one trajectory in the canonical ensemble.

    ASE's `Langevin` with ``fixcm=False``: with the centre of mass held, ASE's integrator does not sample the canonical
    ensemble. The centre of mass diffuses instead, and a molecule's frames are moved back to where it started.
    Velocities begin at twice the temperature, because from a minimum half of the kinetic energy soon becomes potential.

    Parameters
    ----------
    atoms
        Start, not changed.
    n_frames
        Frames wanted.
    temperature_K
        K.
    config
        Time step, friction, stride, equilibration, force ceiling.
    guard
        Looks at every frame; the first fault ends the trajectory.
    rng
        Velocities and noise.
    advance
        Told the number of steps done.

    Returns
    -------
    Positions (M, N, 3), Å, M ≤ n_frames, and ``""`` or the reason of the cut.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    masses = atoms.get_masses()[:, None]
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * np.sqrt(2.0 * KB * temperature_K * masses))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ASE tells that fixcm will go; we do not use it
        dynamics = Langevin(
            atoms,
            config.timestep * FS,
            temperature_K=temperature_K,
            friction=config.friction / FS,
            fixcm=False,
            rng=rng,
        )
    home = atoms.get_center_of_mass()
    frames: list[np.ndarray] = []
    # The guard looks during equilibration too: a molecule that fell apart there must not be sampled.
    steps = [config.stride] * (config.equilibration // config.stride)
    if config.equilibration % config.stride:
        steps.insert(0, config.equilibration % config.stride)
    reason = ""
    for k, chunk in enumerate([*steps, *[config.stride] * n_frames]):
        reason = _advance(dynamics, atoms, chunk) or _fault(atoms, guard, temperature_K, config.max_force)
        if reason:
            break
        advance(chunk)
        if k >= len(steps):
            drift = np.zeros(3) if atoms.pbc.any() else atoms.get_center_of_mass() - home
            frames.append(atoms.positions - drift)
    return np.array(frames) if frames else np.empty((0, len(atoms), 3)), reason


def _advance(dynamics: Langevin, atoms: Atoms, steps: int) -> str:
    try:
        dynamics.run(steps)
    except (TeacherError, CalculationFailed) as error:
        return str(error)
    return ""


def _fault(atoms: Atoms, guard: Guard, temperature_K: float, max_force: float) -> str:
    return guard.fault(atoms.positions) or pulled(atoms, max_force) or overheated(atoms, temperature_K)


def pulled(atoms: Atoms, max_force: float) -> str:
    """What is said of a force above `max_force`, eV/Å, or one that is not finite; else ``""``."""
    force = float(np.sqrt((atoms.get_forces() ** 2).sum(axis=1)).max())
    return "" if force <= max_force else f"a force of {force:.0f} eV/Å"


def overheated(atoms: Atoms, temperature_K: float) -> str:
    """What is said of atoms so hot that they must have exploded, or of momenta that are not finite; else ``""``."""
    kinetic = atoms.get_kinetic_energy() / (1.5 * KB * max(len(atoms), _FEWEST_DEGREES / 3))
    return "" if kinetic <= _HOTTEST * temperature_K else f"it heated up to {kinetic:.0f} K"
