"""Self-learning hybrid Monte Carlo: the student moves, the teacher's energy decides.

Sources: Duane et al., *Hybrid Monte Carlo*, Phys. Lett. B 195, 216 (1987); Horowitz, *A generalized guided Monte Carlo
algorithm*, Phys. Lett. B 268, 247 (1991), for momenta that are refreshed in part; Nagai et al., *Self-learning hybrid
Monte Carlo*, Phys. Rev. B 102, 041124 (2020), for a surrogate's trajectory under the true energy.

A structure that the teacher cannot compute has an infinite energy: the move is refused.

One move, with the teacher's potential U, kinetic energy K and β = 1/(k_B T):

    p ← c p + √(1 − c²) √(m k_B T) ξ             momenta, refreshed in part (c = 0: wholly)
    (x′, p′) ← L velocity-Verlet steps on the student's forces
    accept with probability min(1, exp(−β [U(x′) + K(p′) − U(x) − K(p)])), else stay at x with −p

The student's map is reversible and keeps volumes, whatever its forces are, so the moves leave the teacher's canonical
distribution as it is: a bad student costs acceptance and never correctness.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, CalculatorError
from ase.constraints import FixAtoms

from ..errors import InputError, TeacherError, check_positive
from .remember import Remembering
from .restart import RestartableDynamics


class SelfLearningHMC(RestartableDynamics):
    """The teacher's canonical ensemble, one teacher energy per trajectory of the student.

    >>> atoms.calc = make_teacher("gfn2-xtb")
    >>> sampler = SelfLearningHMC(atoms, 0.5 * units.fs, student=calc, length=100, temperature_K=300, rng=1)
    >>> sampler.burn_in(50)
    >>> sampler.run(1000)
    >>> sampler.acceptance, sampler.teacher_calls

    Parameters
    ----------
    atoms
        With the teacher as their calculator, of which only energies are asked. It is replaced by one around it that
        remembers the last two states, so that a rejected move costs nothing more.
    timestep
        Of the student, in ASE's units of time.
    student
        Its calculator: forces must be a function of positions alone.
    length
        Student steps L per move.
    temperature_K
        K.
    persistence
        c above, 0 ≤ c < 1. Near one the moves of a chain go on in the same direction.
    fixcm
        The centre of mass stays at rest: the ensemble is that of 3N − 3 momenta.
    rng
        Generator or seed.
    restart, restart_interval
        Restart file (.npz): read where it exists, written every so many moves and at the end of a run.
    **kwargs
        Of `ase.md.md.MolecularDynamics`. A step of `run`, a line of a logger and a frame of a trajectory are one move.

    Attributes
    ----------
    moves, accepted
        Since the burn-in.
    differences
        β ΔH of every move since the burn-in: the mean of exp(−β ΔH) is 1 if everything is right.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        *,
        student: Any,
        length: int,
        temperature_K: float,
        persistence: float = 0.0,
        fixcm: bool = True,
        rng: np.random.Generator | int | None = None,
        restart: str | Path | None = None,
        restart_interval: int = 10,
        **kwargs: Any,
    ) -> None:
        check_positive("timestep", timestep)
        check_positive("temperature_K", temperature_K)
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 1:
            raise InputError(f"`length` is {length!r}; it counts student steps, 1 or more.")
        if not 0 <= persistence < 1:
            raise InputError(f"`persistence` is {persistence!r}; it must be at least 0 and below 1.")
        if atoms.calc is None:
            raise InputError("The atoms have no calculator: attach the teacher (`atoms.calc = …`) before the sampler.")
        if not hasattr(student, "get_forces"):
            raise InputError(
                f"`student` is a {type(student).__name__}, and no calculator that gives forces. The jump of a jump "
                "network is neither reversible nor does it keep volumes, so a Metropolis test on it would sample "
                "another ensemble; `JumpForces(network)` makes shears of it, which do both."
            )
        other = [type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)]
        if other:
            raise InputError(
                f"SelfLearningHMC takes FixAtoms, and no {', '.join(other)}: its moves would not be reversible. Use "
                "MTSLangevin, or remove the constraint."
            )
        self.student = student
        self.length = int(length)
        self.temperature_K = float(temperature_K)
        self.persistence = float(persistence)
        self.rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
        self.teacher = atoms.calc if isinstance(atoms.calc, Remembering) else Remembering(atoms.calc)
        atoms.calc = self.teacher
        self._free = np.ones(len(atoms), dtype=bool)
        for constraint in atoms.constraints:
            self._free[constraint.get_indices()] = False
        if not self._free.any():
            raise InputError("Every atom is fixed: there is nothing to sample.")
        self.fixcm = fixcm and bool(self._free.all())
        self.time = 0.0
        self.reset_statistics()
        super().__init__(atoms, timestep, **kwargs)
        self._kT = units.kB * self.temperature_K
        self._masses = atoms.get_masses()[:, None]
        if np.any(self._masses[self._free] <= 0):
            raise InputError("An atom has no mass; give every atom one.")
        self._refuse_forgetful_student()
        self._use_restart_file(restart, restart_interval)

    # -- what is on record --------------------------------------------------------------------------------------------

    def reset_statistics(self) -> None:
        """Forget acceptance and energy differences."""
        self.moves = 0
        self.accepted = 0
        self.differences: list[float] = []

    @property
    def acceptance(self) -> float:
        """Share of moves accepted since the burn-in; NaN before the first."""
        return self.accepted / self.moves if self.moves else math.nan

    @property
    def teacher_calls(self) -> int:
        """Energies (and forces, if a logger asked for them) that the teacher has computed."""
        return self.teacher.calls

    def get_time(self) -> float:
        """Length of all student trajectories, in ASE's units. It orders the states; it is no physical time."""
        return self.time

    def todict(self) -> dict[str, Any]:
        """What a trajectory says of the run."""
        return super().todict() | {
            "length": self.length, "temperature_K": self.temperature_K, "persistence": self.persistence,
            "student": type(self.student).__name__,
        }  # fmt: skip

    # -- the moves ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """One move."""
        atoms = self.atoms
        momenta = self._refreshed(atoms.get_momenta())
        before = atoms.get_potential_energy() + self._kinetic(momenta)
        positions, moved = self._trajectory(momenta)
        proposal = atoms.copy()
        proposal.set_constraint()
        proposal.positions = positions
        after = energy_or_infinity(self.teacher, proposal) + self._kinetic(moved)
        difference = (after - before) / self._kT
        if not math.isfinite(difference):
            difference = math.inf  # the student left the region where the teacher has an energy
        accept = math.log(1.0 - self.rng.random()) < -difference
        self.moves += 1
        self.differences.append(difference)
        self.time += self.length * self.dt
        if accept:
            self.accepted += 1
            atoms.positions = positions
            atoms.set_momenta(moved, apply_constraint=False)
        else:
            # Turning back keeps partially refreshed momenta canonical: without it the chain would have a drift.
            atoms.set_momenta(-momenta, apply_constraint=False)

    def burn_in(self, moves: int, *, acceptance: float = 0.9, longest: int = 1000) -> None:
        """Moves that find the length and the step of the trajectories, and are not counted.

        Length grows while more than `acceptance` of the moves are taken and shrinks while fewer are; the step shrinks
        while the student's own energy, which an exact integrator would keep, wanders by more than a tenth of k_B T.
        Afterwards both are fixed, as a chain that adapts for ever samples nothing.

        Parameters
        ----------
        moves
            Number of them.
        acceptance
            Wanted.
        longest
            Largest length allowed.
        """
        if self.nsteps and self._restart is not None:
            return  # a resumed run has it behind it
        log_length = math.log(self.length)
        for k in range(moves):
            wandered = self._student_energy_error()
            self.step()
            rate = min(1.0, math.exp(-max(self.differences[-1], 0.0)))
            log_length = min(log_length + (rate - acceptance) / math.sqrt(k + 1), math.log(longest))
            self.length = max(1, round(math.exp(log_length)))
            if wandered > 0.1:
                self.dt *= 0.9
        self.reset_statistics()

    def _refuse_forgetful_student(self) -> None:
        """The student's forces must not depend on where it was asked before."""
        here, there = self.atoms.copy(), self.atoms.copy()
        here.set_constraint()
        there.set_constraint()
        there.positions = there.positions + 0.05 * np.random.default_rng(0).standard_normal((len(there), 3))
        first = np.array(self.student.get_forces(here))
        self.student.get_forces(there)
        again = np.array(self.student.get_forces(here))
        worst = float(np.abs(first - again).max())
        if worst > 1e-4:
            raise InputError(
                f"The student's forces changed by {worst:.2g} eV/Å between two calls for the same positions. Moves "
                "would not be reversible; a student with memory (a warm SCF guess, dropout) cannot propose them."
            )

    def _refreshed(self, momenta: np.ndarray) -> np.ndarray:
        noise = self.rng.standard_normal(momenta.shape) * np.sqrt(self._masses * self._kT)
        fresh = self.persistence * momenta + math.sqrt(1.0 - self.persistence**2) * noise
        fresh[~self._free] = 0.0
        if self.fixcm:
            fresh -= self._masses / self._masses.sum() * fresh.sum(axis=0)
        return fresh

    def _kinetic(self, momenta: np.ndarray) -> float:
        return 0.5 * float((momenta**2 / self._masses)[self._free].sum())

    def _trajectory(self, momenta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) positions and momenta after L student steps."""
        walker = self.atoms.copy()
        walker.set_constraint()
        x, p = walker.get_positions(), momenta.copy()
        mobile = self._free[:, None]
        forces = self._student_forces(walker) * mobile
        for _ in range(self.length):
            p += 0.5 * self.dt * forces
            x = x + self.dt * p / self._masses
            walker.positions = x
            forces = self._student_forces(walker) * mobile
            p += 0.5 * self.dt * forces
        return x, p

    def _student_forces(self, walker: Atoms) -> np.ndarray:
        return np.asarray(self.student.get_forces(walker), dtype=float)

    def _student_energy_error(self) -> float:
        """|ΔH| of the student along one trajectory from here, in units of k_B T."""
        walker = self.atoms.copy()
        walker.set_constraint()
        momenta = self._refreshed(self.atoms.get_momenta())
        start = self.student.get_potential_energy(walker) + self._kinetic(momenta)
        walker.positions, moved = self._trajectory(momenta)
        end = self.student.get_potential_energy(walker) + self._kinetic(moved)
        return abs(end - start) / self._kT

    def _refresh_properties(self) -> None:
        """ASE would ask for forces after every step; energies are all that is needed."""
        self.atoms.get_potential_energy()

    # -- restarts -----------------------------------------------------------------------------------------------------

    def _snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        names = ("length", "dt", "time", "moves", "accepted")
        return {"differences": np.array(self.differences)}, {name: getattr(self, name) for name in names}

    def _restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        self.differences = arrays["differences"].tolist()
        self.length, self.moves, self.accepted = (int(state[name]) for name in ("length", "moves", "accepted"))
        self.dt, self.time = float(state["dt"]), float(state["time"])

    def _settings(self) -> dict[str, Any]:
        # Length and step may have been found in a burn-in; they come from the file.
        names = ("temperature_K", "persistence", "fixcm")
        return super()._settings() | {name: getattr(self, name) for name in names}


def energy_or_infinity(teacher: Any, atoms: Atoms) -> float:
    """eV; infinite where the teacher has no answer (an SCF that does not converge), so that the move is refused."""
    try:
        return float(teacher.get_property("energy", atoms))
    except (TeacherError, CalculationFailed, CalculatorError):
        return math.inf


def effective_sample_size(values: np.ndarray) -> float:
    """How many independent draws a chain (M,) of correlated ones is worth.

    Source: Geyer, *Practical Markov chain Monte Carlo*, Statist. Sci. 7, 473 (1992): autocorrelations are summed in
    pairs as long as the pairs are positive.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    centred = values - values.mean()
    variance = float(centred @ centred) / n
    if n < 4 or variance == 0:
        return float(n)
    padded = np.fft.rfft(centred, 2 * n)
    correlation = np.fft.irfft(padded * padded.conj())[:n] / (n * variance)
    pairs = correlation[: n // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    kept = pairs[: negative[0]] if len(negative) else pairs
    return float(min(n, n / max(2.0 * kept.sum() - 1.0, 1.0 / n)))
