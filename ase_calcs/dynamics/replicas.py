"""Self-learning hybrid Monte Carlo of many replicas at once, at one temperature or at several with exchanges.

All replicas advance in one batch of the student; the teacher's energies decide, replica by replica, as in
`SelfLearningHMC`. Between the moves neighbouring temperatures may exchange their states.

Source of the exchanges: Hukushima and Nemoto, *Exchange Monte Carlo method and application to spin glass simulations*,
J. Phys. Soc. Jpn. 65, 1604 (1996). With momenta scaled by √(T′/T) only the potential energies enter:
a pair is exchanged with probability min(1, exp[(β_i − β_j)(U_i − U_j)]).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units

from ..errors import InputError, check_positive
from .hmc import energy_or_infinity
from .restart import RestartFile, set_random_state

_KEPT = ("energies", "accepted", "tried", "exchanged")  # arrays of a restart file, beside the positions


class ReplicaExchangeHMC:
    """Canonical ensembles of the teacher at a ladder of temperatures.

    >>> sampler = ReplicaExchangeHMC(
    ...     [atoms] * 4, 0.5 * units.fs, teacher=teacher, student=calc, length=100, temperatures_K=[300, 380, 480, 600]
    ... )
    >>> for _ in sampler.irun(1000):
    ...     torsion.append(sampler.replicas[0].get_dihedral(0, 1, 2, 3))

    Parameters
    ----------
    replicas
        One structure for each temperature, of the same atoms; they are copied.
    timestep
        Of the student, in ASE's units of time.
    teacher
        ASE calculator; one energy for each replica and move.
    student
        ASE calculator. With a method ``calculate_many(list_of_atoms, ["forces"])``, as `PotentialCalculator` has, all
        replicas are one batch; else they are computed one after the other.
    length
        Student steps per move.
    temperatures_K
        K, one for each replica, in any order of your liking; neighbours in the list exchange. Equal ones are plain
        replicas.
    exchange_every
        Moves between two rounds of exchanges; 0: none.
    fixcm
        Centres of mass stay at rest.
    rng
        Generator or seed.
    restart, restart_interval
        Restart file (.npz): read where it exists, written every so many moves and at the end of a run. A resumed run
        goes on as the undisturbed one would have.

    Attributes
    ----------
    replicas
        The structures; number i is always the one at ``temperatures_K[i]``.
    energies
        (R,) of the teacher, eV.
    moves, accepted
        Number of moves, and (R,) of those that were taken.
    tried, exchanged
        (R − 1,) exchanges of each pair of neighbours.
    teacher_calls
        Energies computed.
    """

    def __init__(
        self,
        replicas: Sequence[Atoms],
        timestep: float,
        *,
        teacher: Any,
        student: Any,
        length: int,
        temperatures_K: Sequence[float],
        exchange_every: int = 1,
        fixcm: bool = True,
        rng: np.random.Generator | int | None = None,
        restart: str | Path | None = None,
        restart_interval: int = 10,
    ) -> None:
        check_positive("timestep", timestep)
        if isinstance(length, bool) or not isinstance(length, (int, np.integer)) or length < 1:
            raise InputError(f"`length` is {length!r}; it counts student steps, 1 or more.")
        if len(replicas) != len(temperatures_K) or not len(replicas):
            raise InputError(
                f"There are {len(replicas)} replicas and {len(temperatures_K)} temperatures; every replica needs one."
            )
        for temperature in temperatures_K:
            check_positive("temperatures_K", temperature)
        first = replicas[0]
        if any(not np.array_equal(a.numbers, first.numbers) for a in replicas):
            raise InputError("The replicas must consist of the same atoms in the same order.")
        if any(a.constraints for a in replicas):
            raise InputError("Constraints are not possible here; remove them.")
        self.replicas = [a.copy() for a in replicas]
        self.dt = float(timestep)
        self.teacher = teacher
        self.student = student
        self.length = int(length)
        self.temperatures_K = np.array(temperatures_K, dtype=float)
        self.exchange_every = int(exchange_every)
        self.fixcm = fixcm
        self.rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
        self.teacher_calls = 0
        self.moves = 0
        self.accepted = np.zeros(len(replicas), dtype=int)
        self.tried = np.zeros(max(len(replicas) - 1, 0), dtype=int)
        self.exchanged = np.zeros_like(self.tried)
        self._kT = units.kB * self.temperatures_K
        self._masses = first.get_masses()[:, None]
        self.restart_interval = int(restart_interval)
        self._restart = None if restart is None else RestartFile(restart)
        if not self._resumed():
            self.energies = np.array([self._teacher_energy(a) for a in self.replicas])

    @property
    def acceptance(self) -> np.ndarray:
        """(R,) share of moves taken."""
        return self.accepted / max(self.moves, 1)

    @property
    def exchange_rate(self) -> np.ndarray:
        """(R − 1,) share of exchanges done, of every pair of neighbours."""
        return self.exchanged / np.maximum(self.tried, 1)

    def run(self, moves: int, observer: Callable[[], None] | None = None) -> None:
        """So many moves of every replica; `observer` is called after each."""
        for _ in self.irun(moves):
            if observer is not None:
                observer()

    def irun(self, moves: int) -> Iterator[int]:
        """As `run`, as a generator of the number of moves done."""
        for _ in range(moves):
            self.step()
            if self._restart is not None and self.moves % self.restart_interval == 0:
                self.save_restart()
            yield self.moves
        if self._restart is not None:
            self.save_restart()

    def save_restart(self) -> None:
        """Write the restart file now."""
        if self._restart is None:
            raise InputError('There is no restart file: give `restart="run.npz"` when the sampler is made.')
        arrays = {name: getattr(self, name) for name in _KEPT}
        arrays |= {
            "numbers": self.replicas[0].numbers,
            "positions": np.array([replica.positions for replica in self.replicas]),
        }
        state = {"moves": self.moves, "teacher_calls": self.teacher_calls, "random": self.rng.bit_generator.state}
        self._restart.write(arrays, state | {"settings": self._settings()})

    def _resumed(self) -> bool:
        """Go on from the restart file, if there is one."""
        found = None if self._restart is None else self._restart.read(self.replicas[0].numbers, self._settings())
        if found is None:
            return False
        arrays, state = found
        for name in _KEPT:
            setattr(self, name, arrays[name])
        for replica, positions in zip(self.replicas, arrays["positions"], strict=True):
            replica.positions = positions
        self.moves, self.teacher_calls = int(state["moves"]), int(state["teacher_calls"])
        set_random_state(self.rng, state["random"])
        return True

    def _settings(self) -> dict[str, Any]:
        names = ("dt", "length", "exchange_every", "fixcm")
        return {"temperatures_K": self.temperatures_K.tolist()} | {name: getattr(self, name) for name in names}

    def step(self) -> None:
        """One move of every replica, and a round of exchanges when it is due."""
        shape = (len(self.replicas), len(self._masses), 3)
        momenta = self.rng.standard_normal(shape) * np.sqrt(self._masses * self._kT[:, None, None])
        if self.fixcm:
            momenta -= self._masses / self._masses.sum() * momenta.sum(axis=1, keepdims=True)
        walkers = [a.copy() for a in self.replicas]
        before = self.energies + self._kinetic(momenta)
        positions, momenta = self._trajectories(walkers, momenta)
        for walker, x in zip(walkers, positions, strict=True):
            walker.positions = x
        self.teacher_calls += len(walkers)
        proposed = np.array([energy_or_infinity(self.teacher, walker) for walker in walkers])
        difference = (proposed + self._kinetic(momenta) - before) / self._kT
        taken = np.log(1.0 - self.rng.random(len(difference))) < -np.where(np.isfinite(difference), difference, np.inf)
        for i in np.flatnonzero(taken):
            self.replicas[i].positions = positions[i]
            self.energies[i] = proposed[i]
        self.accepted += taken
        self.moves += 1
        if self.exchange_every and self.moves % self.exchange_every == 0:
            self._exchange(first=(self.moves // self.exchange_every) % 2)

    def _trajectories(self, walkers: list[Atoms], momenta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(R, N, 3) positions and momenta after the student's steps."""
        x = np.array([walker.positions for walker in walkers])
        forces = self._student_forces(walkers)
        for _ in range(self.length):
            momenta = momenta + 0.5 * self.dt * forces
            x = x + self.dt * momenta / self._masses
            for walker, new in zip(walkers, x, strict=True):
                walker.positions = new
            forces = self._student_forces(walkers)
            momenta = momenta + 0.5 * self.dt * forces
        return x, momenta

    def _student_forces(self, walkers: list[Atoms]) -> np.ndarray:
        if hasattr(self.student, "calculate_many"):
            return np.array([result["forces"] for result in self.student.calculate_many(walkers, ["forces"])])
        return np.array([self.student.get_forces(walker) for walker in walkers])

    def _exchange(self, first: int) -> None:
        """Try the pairs (first, first + 1), (first + 2, first + 3), …"""
        beta = 1.0 / self._kT
        for i in range(first, len(self.replicas) - 1, 2):
            self.tried[i] += 1
            weight = (beta[i] - beta[i + 1]) * (self.energies[i] - self.energies[i + 1])
            if math.log(1.0 - self.rng.random()) < weight:
                self.exchanged[i] += 1
                a, b = self.replicas[i], self.replicas[i + 1]
                a.positions, b.positions = b.positions.copy(), a.positions.copy()
                self.energies[[i, i + 1]] = self.energies[[i + 1, i]]

    def _kinetic(self, momenta: np.ndarray) -> np.ndarray:
        return 0.5 * (momenta**2 / self._masses).sum(axis=(1, 2))

    def _teacher_energy(self, atoms: Atoms) -> float:
        self.teacher_calls += 1
        return float(self.teacher.get_property("energy", atoms))
