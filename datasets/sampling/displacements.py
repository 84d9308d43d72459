"""Geometries around a minimum: rattling, and classical Boltzmann displacements along normal modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.optimize import BFGS

from ...ase_calcs.units import FS, KB
from .guards import Guard

ATTEMPTS = 20  # tries per geometry before it is given up
_HESSIAN_STEP = 0.005  # Å
_RELAX_FMAX = 0.01  # eV/Å
_RELAX_STEPS = 500
# The last digits of what LAPACK gives depend on the number of BLAS threads; rounded to this many decimals (Å), one seed
# still gives the same bytes.
_DECIMALS = 9
_OMEGA_PER_CM1 = 2.0 * np.pi * 2997.92458e-8 / FS  # 2πc in Å/fs (exact) times 1e-8 cm/Å, in ASE's inverse time


def rattle(
    bases: np.ndarray, count: int, *, sigma: float, guard: Guard, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Gaussian displacements of every coordinate.

    Parameters
    ----------
    bases
        (K, N, 3), Å, displaced in turn.
    count
        How many geometries.
    sigma
        Standard deviation, Å.
    guard
        A geometry it finds fault with is drawn again, up to 20 times.

    Returns
    -------
    Positions (M, N, 3), Å, M ≤ count, and notes.
    """
    kept = []
    for k in range(count):
        base = bases[k % len(bases)]
        for _ in range(ATTEMPTS):
            geometry = base + rng.normal(0.0, sigma, base.shape)
            if not guard.fault(geometry):
                kept.append(geometry)
                break
    return _stack(kept, bases), _missing(len(kept), count, "rattled geometries", f"sigma {sigma} Å is too much")


def relax(atoms: Atoms, calculator: BaseCalculator) -> tuple[np.ndarray, bool]:
    """Positions (N, 3), Å, of the nearest minimum, and whether forces fell below 0.01 eV/Å within 500 steps."""
    relaxed = atoms.copy()
    relaxed.calc = calculator
    converged = BFGS(relaxed, logfile=None, maxstep=0.1).run(fmax=_RELAX_FMAX, steps=_RELAX_STEPS)
    return np.round(relaxed.positions, _DECIMALS), bool(converged)


def hessian(atoms: Atoms, calculator: BaseCalculator, advance: Callable[[float], None] = lambda _: None) -> np.ndarray:
    """Second derivatives (3N, 3N), eV/Å², by central differences of forces with a step of 0.005 Å, symmetrised."""
    displaced = atoms.copy()
    displaced.calc = calculator
    rows = np.empty((3 * len(atoms), 3 * len(atoms)))
    for k in range(len(rows)):
        forces = []
        for sign in (1.0, -1.0):
            displaced.positions = atoms.positions
            displaced.positions[k // 3, k % 3] += sign * _HESSIAN_STEP
            forces.append(displaced.get_forces().ravel())
        rows[k] = (forces[1] - forces[0]) / (2.0 * _HESSIAN_STEP)
        advance(2.0)
    return 0.5 * (rows + rows.T)


def rigid_motions(atoms: Atoms) -> np.ndarray:
    """Orthonormal mass-weighted translations, and rotations of a molecule, as rows (R, 3N); R is 3, 5 or 6."""
    root_mass = np.sqrt(atoms.get_masses())
    axes = np.eye(3)
    motions = [np.outer(root_mass, axis).ravel() for axis in axes]
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        motions += [(root_mass[:, None] * np.cross(axis, arms)).ravel() for axis in axes]
    _, singular, rows = np.linalg.svd(np.array(motions), full_matrices=False)
    return rows[singular > 1e-6 * singular[0]]


def boltzmann_factor(atoms: Atoms, second_derivatives: np.ndarray, *, floor: float) -> np.ndarray:
    """The matrix A (3N, 3N) in Å/eV^½: x = sqrt(k_B T)·A z, z ~ N(0, 1), is a classical harmonic Boltzmann sample.

    A = M^(−1/2) V |Λ|^(−1/2) Vᵀ with the mass-weighted Hessian V Λ Vᵀ, rigid motions projected out. It does not depend
    on the signs of eigenvectors, nor on the basis of degenerate ones.

    Parameters
    ----------
    second_derivatives
        (3N, 3N), eV/Å².
    floor
        cm⁻¹; softer and imaginary modes count as this stiff.
    """
    inverse_root = 1.0 / np.sqrt(np.repeat(atoms.get_masses(), 3))
    rigid = rigid_motions(atoms)
    internal = np.eye(len(inverse_root)) - rigid.T @ rigid
    weighted = internal @ (inverse_root[:, None] * second_derivatives * inverse_root[None, :]) @ internal
    squares, modes = np.linalg.eigh(0.5 * (weighted + weighted.T))
    omega = np.maximum(np.sqrt(np.abs(squares)), floor * _OMEGA_PER_CM1)
    # Rigid motions have λ = 0 and would get the floor's amplitude: project them out again.
    return inverse_root[:, None] * (internal @ (modes / omega) @ modes.T @ internal)


def displace_along_modes(
    atoms: Atoms,
    factor: np.ndarray,
    count: int,
    *,
    temperatures_K: Sequence[float],
    guard: Guard,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[str]]:
    """Boltzmann samples of the harmonic surface around a minimum.

    Parameters
    ----------
    atoms
        The minimum.
    factor
        (3N, 3N), from `boltzmann_factor`.
    temperatures_K
        K, taken in turn.
    guard
        A geometry it finds fault with is drawn again, up to 20 times.

    Returns
    -------
    Positions (M, N, 3), Å, M ≤ count, and notes.
    """
    kept = []
    for k in range(count):
        scale = np.sqrt(KB * temperatures_K[k % len(temperatures_K)])
        for _ in range(ATTEMPTS):
            step = scale * np.einsum("ij,j->i", factor, rng.standard_normal(len(factor)))
            geometry = np.round(atoms.positions + step.reshape(-1, 3), _DECIMALS)
            if not guard.fault(geometry):
                kept.append(geometry)
                break
    notes = _missing(len(kept), count, "normal-mode geometries", "the temperature is too high for harmonic steps")
    return _stack(kept, atoms.positions[None]), notes


def _stack(kept: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.array(kept) if kept else np.empty((0, *like.shape[1:]))


def _missing(found: int, wanted: int, what: str, why: str) -> list[str]:
    if found == wanted:
        return []
    return [f"{wanted - found} of {wanted} {what} were given up after {ATTEMPTS} tries each: {why}"]
