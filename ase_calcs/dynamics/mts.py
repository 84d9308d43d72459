"""Multiple time stepping: the teacher's forces once per outer step, a student's in between.

Source: Tuckerman, Berne, Martyna, *Reversible multiple time scale molecular dynamics*, J. Chem. Phys. 97, 1990 (1992);
for the thermostat, Leimkuhler and Matthews, *Rational construction of stochastic numerical methods for molecular
sampling*, Appl. Math. Res. Express 2013, 34.

One outer step Δt of k inner steps δt = Δt/k, with teacher forces F and student forces f:

    p += Δt/2 (F − f)            the outer kick
    k times:  p += δt/2 f;  x += δt p/m;  p += δt/2 f
    p += Δt/2 (F − f)

Kicks at the same positions are one kick here, ½δt·(f + k(F − f)) = ½δt·(k F − (k − 1) f): for k = 1 nothing of the
student is left, and the step is ASE's velocity Verlet to the last bit. The map is symplectic and reversible, conserves
momentum exactly, and follows the teacher's surface: the student decides only how long the outer step may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from ..errors import InputError
from .restart import RestartableDynamics


class MultipleTimeStep(RestartableDynamics):
    """What `MTSVelocityVerlet` and `MTSLangevin` share: levels of forces, their due times, restarts."""

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        *,
        inner: Any,
        k: int | Sequence[int],
        restart: str | Path | None = None,
        restart_interval: int = 10,
        **kwargs: Any,
    ) -> None:
        students = list(inner) if isinstance(inner, (list, tuple)) else [inner]
        counts: list[Any] = list(k) if isinstance(k, (list, tuple)) else [k]
        if not students or len(students) != len(counts):
            raise InputError(
                f"`inner` holds {len(students)} calculators and `k` {len(counts)} numbers; give every calculator its k."
            )
        for count in counts:
            if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
                raise InputError(f"`k` is {k!r}; inner steps are counted in whole numbers, 1 or more.")
        if atoms.calc is None:
            raise InputError("The atoms have no calculator: attach the teacher (`atoms.calc = …`) before the dynamics.")
        if not (np.isfinite(timestep) and timestep > 0):
            raise InputError(f"`timestep` is {timestep!r}; it must be above zero, in ASE's units: 4.0 * units.fs.")
        self.students = students
        self.counts = [int(count) for count in counts]
        # Innermost steps between two calls of each level: the teacher, then the students in order.
        self.strides = [prod(self.counts[level:]) for level in range(len(counts) + 1)]
        self.teacher_calls = 0
        self.student_calls = [0 for _ in students]
        self._held: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        super().__init__(atoms, timestep, **kwargs)
        self._use_restart_file(restart, restart_interval)

    @property
    def inner_timestep(self) -> float:
        """Innermost step in ASE's units of time."""
        return self.dt / self.strides[0]

    def todict(self) -> dict[str, Any]:
        """What a trajectory says of the run."""
        return super().todict() | {"k": self.counts, "inner": [type(s).__name__ for s in self.students]}

    def forces_due(self, m: int) -> np.ndarray:
        """(N, 3), eV/Å: the force that moves the atoms around innermost step `m` of an outer step, 0 ≤ m ≤ strides[0].

        A level whose turn it is acts for all the innermost steps until its next turn, in place of the level below it.
        """
        weights = [0] * len(self.strides)
        for level, stride in enumerate(self.strides):
            if m % stride == 0:
                weights[level] += stride
                if level + 1 < len(weights):
                    weights[level + 1] -= stride
        total = None
        for level, weight in enumerate(weights):
            if weight == 0:
                continue
            forces = self._teacher_forces() if level == 0 else self._student_forces(level - 1)
            term = forces if weight == 1 else weight * forces
            total = term if total is None else total + term
        if total is None:
            raise RuntimeError("the innermost level is due at every step")
        return total

    def _teacher_forces(self) -> np.ndarray:
        self.teacher_calls += 1
        return self.atoms.get_forces(md=True)

    def _student_forces(self, number: int) -> np.ndarray:
        """As `Atoms.get_forces(md=True)` would give them were the student attached."""
        self.student_calls[number] += 1
        atoms = self.atoms
        forces = np.array(self.students[number].get_forces(atoms), dtype=float)
        for constraint in atoms.constraints:
            if hasattr(constraint, "redistribute_forces_md"):
                constraint.redistribute_forces_md(atoms, forces)
            if hasattr(constraint, "adjust_potential_energy"):
                constraint.adjust_forces(atoms, forces)
        return forces

    def _first_forces(self) -> np.ndarray:
        """Forces at the start of an outer step: those that ended the last one, unless the atoms were moved since."""
        if self._held is not None:
            positions, cell, forces = self._held
            if np.array_equal(positions, self.atoms.positions) and np.array_equal(cell, self.atoms.cell.array):
                return forces
        return self.forces_due(0)

    def _hold(self, forces: np.ndarray) -> None:
        self._held = (self.atoms.get_positions(), self.atoms.cell.array.copy(), forces)

    def _drift(self, momenta: np.ndarray, time: float) -> np.ndarray:
        """Move the atoms for `time`; momenta (N, 3) after constraints have had their say."""
        atoms = self.atoms
        masses = atoms.get_masses()[:, None]
        before = atoms.get_positions()
        atoms.set_positions(before + time * momenta / masses)
        if atoms.constraints:  # the first part of RATTLE
            return (atoms.get_positions() - before) * masses / time
        return momenta

    # What a restart file holds besides.

    def _snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return ({} if self._held is None else {"forces": self._held[2]}), {}

    def _restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        if "forces" in arrays:
            self._hold(arrays["forces"])

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"timestep": float(self.dt), "k": self.counts}


class MTSVelocityVerlet(MultipleTimeStep):
    """NVE on the teacher's surface with one teacher call per outer step (r-RESPA, impulse form).

    >>> atoms.calc = make_teacher("gfn2-xtb")
    >>> dyn = MTSVelocityVerlet(atoms, 4.0 * units.fs, inner=PotentialCalculator("model.safetensors"), k=8)
    >>> dyn.run(1000)

    Parameters
    ----------
    atoms
        With the teacher as their calculator.
    timestep
        The **outer** step, in ASE's units (``4.0 * units.fs``): what `run` counts and `MDLogger` prints.
    inner
        The student's calculator, or several, from the one called least often to the one called most often.
    k
        Inner steps per outer step; for several students one number each, from the outside inwards: with
        ``inner=[a, b], k=[2, 4]`` the teacher acts once, ``a`` twice and ``b`` eight times per outer step.
    restart
        Restart file (.npz): read where it exists, written every `restart_interval` outer steps. A resumed run goes on
        as the undisturbed one would have, bit by bit if the calculators give the same forces for the same positions.
    **kwargs
        Of `ase.md.md.MolecularDynamics`: ``trajectory``, ``logfile``, ``loginterval``, ….

    Outer steps just below half the period of a stiff vibration are in resonance (4.5 fs for O–H, 5.6 fs for C–H): ask
    `resonance` first.
    """

    def step(self) -> None:
        """One outer step."""
        atoms, dt = self.atoms, self.inner_timestep
        forces = self._first_forces()
        for m in range(1, self.strides[0] + 1):
            momenta = atoms.get_momenta()
            momenta += 0.5 * dt * forces
            momenta = self._drift(momenta, dt)
            atoms.set_momenta(momenta, apply_constraint=False)
            forces = self.forces_due(m)
            atoms.set_momenta(atoms.get_momenta() + 0.5 * dt * forces)  # with the second part of RATTLE
        self._hold(forces)


class MTSLangevin(MultipleTimeStep):
    """The canonical ensemble on the teacher's surface with one teacher call per outer step.

    Every innermost step is BAOAB (half a kick, half a drift, the thermostat, half a drift, half a kick), so that
    friction damps what the outer kicks excite while it happens.

    Parameters
    ----------
    atoms, timestep, inner, k, restart, **kwargs
        As `MTSVelocityVerlet` takes them.
    temperature_K
        K; a number, or one for every atom.
    friction
        Inverse ASE time, as `ase.md.langevin.Langevin` takes it: ``0.01 / units.fs``; a number, or one for every atom.
    fixcm
        The thermostat leaves the total momentum alone: its noise is that of the canonical ensemble at a fixed centre of
        mass, and 3N − 3 degrees of freedom are thermal.
    rng
        Generator or seed; a generator of its own by default. Its state is in the restart file. Without one a
        ``RandomState`` will do, as for ASE's Langevin.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        *,
        inner: Any,
        k: int | Sequence[int],
        temperature_K: float | np.ndarray,
        friction: float | np.ndarray,
        fixcm: bool = True,
        rng: Any = None,
        **kwargs: Any,
    ) -> None:
        for name, value in (("temperature_K", temperature_K), ("friction", friction)):
            if np.ndim(value) > 0 and np.shape(value) != (len(atoms),):
                raise InputError(f"`{name}` has the shape {np.shape(value)}; give a number, or one for each atom.")
            if not np.all(np.isfinite(value)) or np.any(np.asarray(value) < 0):
                raise InputError(f"`{name}` is {value!r}; it must be 0 or more.")
        # ASE's classes take whatever has this method, RandomState and the module numpy.random too.
        self.rng = rng if hasattr(rng, "standard_normal") else np.random.default_rng(rng)
        if kwargs.get("restart") is not None and not isinstance(self.rng, np.random.Generator):
            raise InputError("A restart file can save a numpy Generator only: give `rng=np.random.default_rng(seed)`.")
        self.fixcm = fixcm
        self.friction = friction
        self.temperature_K = temperature_K
        super().__init__(atoms, timestep, inner=inner, k=k, **kwargs)

    def todict(self) -> dict[str, Any]:
        """What a trajectory says of the run."""
        return super().todict() | {
            "temperature_K": self.temperature_K, "friction": self.friction, "fixcm": self.fixcm,
        }  # fmt: skip

    def step(self) -> None:
        """One outer step."""
        atoms, dt = self.atoms, self.inner_timestep
        forces = self._first_forces()
        for m in range(1, self.strides[0] + 1):
            momenta = self._drift(atoms.get_momenta() + 0.5 * dt * forces, 0.5 * dt)
            atoms.set_momenta(self._thermostat(momenta, dt))  # constraints take their part of the noise away
            momenta = self._drift(atoms.get_momenta(), 0.5 * dt)
            atoms.set_momenta(momenta, apply_constraint=False)
            forces = self.forces_due(m)
            atoms.set_momenta(atoms.get_momenta() + 0.5 * dt * forces)
        self._hold(forces)

    def _thermostat(self, momenta: np.ndarray, dt: float) -> np.ndarray:
        """The exact Ornstein–Uhlenbeck step on (N, 3) momenta."""
        masses = self.atoms.get_masses()[:, None]
        kept = np.exp(-np.broadcast_to(self.friction, len(momenta)) * dt)[:, None]
        kT = units.kB * np.broadcast_to(self.temperature_K, len(momenta))[:, None]
        noise = self.rng.standard_normal(momenta.shape) * np.sqrt((1.0 - kept**2) * masses * kT)
        if self.fixcm:
            noise -= masses / masses.sum() * noise.sum(axis=0)
        return kept * momenta + noise

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {
            "temperature_K": np.asarray(self.temperature_K, dtype=float).tolist(),
            "friction": np.asarray(self.friction, dtype=float).tolist(),
            "fixcm": self.fixcm,
        }
