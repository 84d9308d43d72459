"""Will an outer step resonate? The answer before the run, from the Hessians of teacher and student.

Near a minimum both surfaces are springs, and one outer step of `MTSVelocityVerlet` is a linear map of mass-weighted
positions and momenta:

    M = K(Δt/2) · V(δt)^k · K(Δt/2),   K: p −= Δt/2 (D_T − D_S) q,   V: velocity Verlet on D_S,

with D = m^(−1/2) H m^(−1/2). Where all eigenvalues of M lie on the unit circle an oscillation keeps its amplitude; one
outside it multiplies the amplitude by its modulus at every outer step. That happens where the outer step is near a
multiple of half a vibration's period, in a window as wide as the student's relative error in that stiffness.

Source: Ma, Izaguirre, Skeel, *Verlet-I/r-RESPA/impulse is limited by nonlinear instability*, SIAM J. Sci. Comput. 24,
1951 (2003).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from ase import Atoms, units
from ase.optimize import LBFGS

from ..errors import InputError, check_positive

# Growth per picosecond that is no longer rounding.
GROWS = 0.05
# Vibrations of a warm molecule are not those of its minimum, and wander: so far on either side of the step is looked.
MARGIN = 0.12
N_LOOKED_AT = 97


@dataclass(frozen=True)
class Resonance:
    """What `resonance` found.

    Attributes
    ----------
    verdict
        ``"stable"``; ``"risky"``: a resonance lies within `MARGIN` of the step; ``"unstable"``: it resonates itself.
    timestep
        Outer step, fs.
    k
        Inner steps.
    growth
        Rate, 1/ps, at which the fastest-growing oscillation grows at this step; 0 if none does.
    growth_nearby
        The largest such rate within the margin.
    wavenumber
        cm⁻¹, of the teacher's vibration that grows fastest there; NaN if none does.
    half_period
        fs, of that vibration.
    moving
        Indices of the atoms that move most in it.
    why
        All of this in a sentence.
    """

    verdict: Literal["stable", "risky", "unstable"]
    timestep: float
    k: int
    growth: float
    growth_nearby: float
    wavenumber: float
    half_period: float
    moving: tuple[int, ...]
    why: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.why}"


@dataclass(frozen=True)
class Springs:
    """Hessians of teacher and student at one geometry, mass-weighted, without translations and rotations.

    Attributes
    ----------
    atoms
        The geometry.
    basis
        (3N, V): orthonormal mass-weighted internal displacements.
    teacher, student
        (V, V), in inverse ASE time squared.
    """

    atoms: Atoms
    basis: np.ndarray
    teacher: np.ndarray
    student: np.ndarray

    def step_map(self, timestep: float, k: int) -> np.ndarray:
        """(2V, 2V): the linear map of one outer step of `timestep` (ASE units) with `k` inner steps."""
        n = len(self.teacher)
        one, zero = np.eye(n), np.zeros((n, n))
        dt = timestep / k
        kick = np.block([[one, zero], [-0.5 * timestep * (self.teacher - self.student), one]])
        half = np.block([[one, zero], [-0.5 * dt * self.student, one]])
        drift = np.block([[one, dt * one], [zero, one]])
        return kick @ np.linalg.matrix_power(half @ drift @ half, k) @ kick

    def growth(self, timestep: float, k: int) -> tuple[float, np.ndarray]:
        """Growth per outer step, ln |λ|, of the fastest-growing oscillation, and its positions (V,), complex."""
        values, vectors = np.linalg.eig(self.step_map(timestep, k))
        worst = int(np.argmax(np.abs(values)))
        return float(np.log(np.abs(values[worst]))), vectors[: len(self.teacher), worst]


def springs(
    atoms: Atoms,
    *,
    teacher: Any,
    student: Any,
    stiff_modes: int | None = None,
    relax: bool = True,
    delta: float = 0.005,
) -> Springs:
    """Hessians by central differences of forces.

    Parameters
    ----------
    atoms
        Left as they are; constraints are not looked at.
    teacher, student
        ASE calculators.
    stiff_modes
        Ask the teacher only about the so many stiffest vibrations of the student (two calls each) and take its word for
        the others: for DFT, where 6N calls are too many. None: about all.
    relax
        Go to the student's minimum first (0.01 eV/Å). Elsewhere there are directions of negative curvature, in which
        everything grows.
    delta
        Displacement, Å.

    Raises
    ------
    InputError
        `stiff_modes` is no number of vibrations.
    """
    check_positive("delta", delta)
    atoms = atoms.copy()
    atoms.set_constraint()
    if relax:
        atoms.calc = student
        LBFGS(atoms, logfile=None).run(fmax=0.01, steps=500)  # type: ignore[arg-type]  # ASE takes None
    root = np.sqrt(np.repeat(atoms.get_masses(), 3))
    basis = _internal_basis(atoms, root)
    inner = _curvatures(atoms, student, basis, root, delta)
    if stiff_modes is None:
        return Springs(atoms, basis, _curvatures(atoms, teacher, basis, root, delta), inner)
    if not 1 <= stiff_modes <= len(inner):
        raise InputError(f"`stiff_modes` is {stiff_modes}; this structure has {len(inner)} vibrations.")
    _, vectors = np.linalg.eigh(inner)
    stiff = vectors[:, -stiff_modes:]
    asked = _curvatures(atoms, teacher, basis @ stiff, root, delta)
    outer = inner + stiff @ (asked - stiff.T @ inner @ stiff) @ stiff.T
    return Springs(atoms, basis, outer, inner)


def resonance(
    atoms: Atoms,
    timestep: float,
    *,
    teacher: Any,
    student: Any,
    k: int,
    stiff_modes: int | None = None,
    relax: bool = True,
) -> Resonance:
    """Say before a run whether `MTSVelocityVerlet(atoms, timestep, inner=student, k=k)` would resonate.

    Parameters
    ----------
    timestep
        The outer step in ASE's units, as the dynamics takes it.
    atoms, teacher, student, stiff_modes, relax
        See `springs`, which makes 6N calls of the teacher, or two for each of the `stiff_modes`.
    k
        Inner steps.
    """
    check_positive("timestep", timestep)
    return judge(springs(atoms, teacher=teacher, student=student, stiff_modes=stiff_modes, relax=relax), timestep, k)


def judge(at: Springs, timestep: float, k: int) -> Resonance:
    """The verdict on one outer step (ASE units); the Hessians serve for as many as one likes."""
    ps = 1000.0 * units.fs
    here, shape = at.growth(timestep, k)
    looked_at = timestep * np.linspace(1.0 - MARGIN, 1.0 + MARGIN, N_LOOKED_AT)
    rates = [at.growth(t, k) for t in looked_at]
    worst = int(np.argmax([rate / t for (rate, _), t in zip(rates, looked_at, strict=True)]))
    growth, nearby = max(here, 0.0) / timestep * ps, max(rates[worst][0], 0.0) / looked_at[worst] * ps
    fs = timestep / units.fs
    if nearby < GROWS and growth < GROWS:
        why = f"nothing grows between {looked_at[0] / units.fs:.2f} and {looked_at[-1] / units.fs:.2f} fs."
        return Resonance("stable", fs, k, growth, nearby, np.nan, np.nan, (), why)
    verdict: Literal["risky", "unstable"] = "unstable" if growth >= GROWS else "risky"
    omega, moving = _vibration(at, shape if growth >= GROWS else rates[worst][1])
    half = np.pi / omega / units.fs
    wavenumber = omega * units.s / (2.0 * np.pi * units._c * 100.0)
    names = " ".join(f"{at.atoms.symbols[i]}{i}" for i in moving)
    what = f"the vibration of {names} at {wavenumber:.0f} cm⁻¹, half a period of {half:.2f} fs"
    if verdict == "unstable":
        why = f"at {fs:g} fs an amplitude grows by a factor e in {1.0 / growth:.3g} ps, that of {what}."
    else:
        why = (
            f"{fs:g} fs is free of resonance at the minimum, but at {looked_at[worst] / units.fs:.2f} fs, within reach "
            f"of a warm molecule, an amplitude grows by a factor e in {1.0 / nearby:.3g} ps, that of {what}."
        )
    return Resonance(verdict, fs, k, growth, nearby, float(wavenumber), float(half), moving, why)


def _vibration(at: Springs, shape: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """Frequency (inverse ASE time) of the teacher's vibration most like `shape` (V,), and the atoms that carry it."""
    values, vectors = np.linalg.eigh(at.teacher)
    stiff = values > 0
    overlap = np.where(stiff, np.abs(vectors.T @ shape), 0.0)
    mode = int(np.argmax(overlap))
    moved = (at.basis @ vectors[:, mode]).reshape(-1, 3) / np.sqrt(at.atoms.get_masses())[:, None]
    weight = (moved**2).sum(axis=1)
    order = np.argsort(weight)[::-1]
    n_shown = int(np.searchsorted(np.cumsum(weight[order]), 0.9 * weight.sum())) + 1
    return float(np.sqrt(max(values[mode], 1e-12))), tuple(int(i) for i in order[: max(n_shown, 2)])


def _curvatures(atoms: Atoms, calculator: Any, directions: np.ndarray, root: np.ndarray, delta: float) -> np.ndarray:
    """(V, V) second derivatives along mass-weighted `directions` (3N, V), in inverse ASE time squared."""
    moved = atoms.copy()
    moved.calc = calculator
    columns = []
    for direction in directions.T:
        displacement = direction / root
        scale = delta / np.abs(displacement).max()
        forces = []
        for sign in (1.0, -1.0):
            moved.positions = atoms.positions + sign * scale * displacement.reshape(-1, 3)
            forces.append(moved.get_forces(apply_constraint=False).ravel())
        columns.append((forces[1] - forces[0]) / (2.0 * scale) / root)
    matrix = directions.T @ np.array(columns).T
    return 0.5 * (matrix + matrix.T)


def _internal_basis(atoms: Atoms, root: np.ndarray) -> np.ndarray:
    """(3N, V) orthonormal mass-weighted displacements orthogonal to translations, and to rotations of a molecule."""
    rigid = [(root.reshape(-1, 3) * axis).ravel() for axis in np.eye(3)]
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        rigid += [(root.reshape(-1, 3) * np.cross(axis, arms)).ravel() for axis in np.eye(3)]
    u, sizes, _ = np.linalg.svd(np.array(rigid).T, full_matrices=True)
    rank = int((sizes > 1e-6 * sizes[0]).sum())  # a linear molecule has two rotations, one atom none
    return u[:, rank:]
