"""`LearnedJump`: a network jumps over k small steps, one true step of the teacher corrects.

A jump is neither reversible nor does it keep volumes, so it conserves nothing that the teacher conserves. What keeps a
run in bounds are the teacher's step after each jump, a thermostat, and guards; averages are not the teacher's canonical
ones. Where they must be, use `SelfLearningHMC`; for trajectories, `MTSVelocityVerlet` or `MTSLangevin`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed, Calculator, CalculatorError, all_changes

from ..errors import InputError, TeacherError, check_positive
from ..evaluation import few_threads
from ..jumps import JumpNetwork, bond_hops, jump_graph
from ..modelfile import load_jump
from .restart import RestartableDynamics

_NO_ANSWER = (TeacherError, CalculationFailed, CalculatorError)  # what a teacher says that cannot compute


@dataclass
class JumpCounts:
    """What happened, and what it cost.

    Attributes
    ----------
    jumps
        That were taken, at full or reduced length.
    reduced
        Of these, at reduced length.
    refused
        Attempts that a guard refused.
    fallbacks
        Times that teacher steps were taken instead.
    teacher_gradients
        Energies with forces that the teacher computed, those of refused attempts too.
    network_calls
        Of the jump network.
    bonds, energy, temperature
        What the refused attempts were refused for.
    """

    jumps: int = 0
    reduced: int = 0
    refused: int = 0
    fallbacks: int = 0
    teacher_gradients: int = 0
    network_calls: int = 0
    bonds: int = 0
    energy: int = 0
    temperature: int = 0


class LearnedJump(RestartableDynamics):
    """Jumps of k small steps, each followed by one step of the teacher, which asks it for one gradient.

    >>> atoms.calc = make_teacher("gfn2-xtb")
    >>> dyn = LearnedJump(atoms, 0.5 * units.fs, jump="runs/jump/model.safetensors", k=8, temperature_K=300,
    ...                   friction=0.01 / units.fs, rng=1)
    >>> dyn.run(1000)  # 1 000 × 9 steps of 0.5 fs
    >>> dyn.counts

    The corrector is one step of position Verlet, A(δt/2) B(δt) A(δt/2), with the thermostat O in the middle of B where
    there is one: half a drift, the teacher's force there, half a drift. It needs a single gradient.

    Parameters
    ----------
    atoms
        A molecule without constraints, the teacher as its calculator.
    timestep
        The **small** step δt, in ASE's units.
    jump
        A jump network or its file; None jumps nowhere: the control that every comparison needs, with the same corrector
        and the same number of gradients.
    k
        Small steps in a jump. One step of `run` takes (k + 1) δt, and `get_time` says so.
    temperature_K, friction
        Of the thermostat in the corrector and in fall-back steps, friction in inverse ASE time; None leaves it out. The
        noise of a corrector step is that of the whole (k + 1) δt.
    delta_scale
        Every jump is multiplied by this.
    max_attempts
        A jump that a guard refuses is halved and tried again, this many times in all; then k + 1 teacher steps follow.
    max_strain
        Largest relative change of a bond from its length at the start.
    max_energy_rise
        eV, of the teacher's potential energy from one step to the next; None: six standard deviations of a harmonic
        molecule's, 6 k_B T √(3N/2).
    max_heating
        Largest kinetic temperature, relative to `temperature_K` or, without it, to that of the start.
    dtype
        Of the network's arithmetic.
    rng
        Generator or seed.
    restart, restart_interval
        Restart file (.npz), written every so many steps and at the end of a run.

    Attributes
    ----------
    counts
        `JumpCounts`. A logger or trajectory that asks for the energy of a step costs one calculation more, which is not
        among them: the teacher was asked in the middle of the step.

    Raises
    ------
    TeacherError
        While running: the teacher has no answer in a fall-back step. The atoms are where the step began.
    """

    def __init__(
        self,
        atoms: Atoms,
        timestep: float,
        *,
        jump: JumpNetwork | str | Path | None,
        k: int,
        temperature_K: float | None = None,
        friction: float | None = None,
        delta_scale: float = 1.0,
        max_attempts: int = 5,
        max_strain: float = 0.4,
        max_energy_rise: float | None = None,
        max_heating: float = 3.0,
        dtype: str | None = None,
        rng: np.random.Generator | int | None = None,
        restart: str | Path | None = None,
        restart_interval: int = 10,
        **kwargs: Any,
    ) -> None:
        for name, value in (
            ("timestep", timestep),
            ("delta_scale", delta_scale),
            ("max_strain", max_strain),
            ("max_heating", max_heating),
            ("temperature_K", 1.0 if temperature_K is None else temperature_K),
            ("friction", 1.0 if friction is None else friction),
            ("max_energy_rise", 1.0 if max_energy_rise is None else max_energy_rise),
        ):
            check_positive(name, value)
        for name, number in (("k", k), ("max_attempts", max_attempts)):
            if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
                raise InputError(f"`{name}` is {number!r}; it must be a whole number, 1 or more.")
        if (temperature_K is None) != (friction is None):
            raise InputError("`temperature_K` and `friction` belong together: give both, or neither for no thermostat.")
        if atoms.calc is None:
            raise InputError("The atoms have no calculator: attach the teacher (`atoms.calc = …`) before the dynamics.")
        if atoms.constraints or atoms.pbc.any():
            raise InputError(
                "LearnedJump moves free molecules: no constraints and no periodic boundaries. Use MTSLangevin."
            )
        self.jump = load_jump(jump, dtype=dtype) if isinstance(jump, str | Path) else jump
        self.small = float(timestep)
        self.k = int(k)
        self.temperature_K, self.friction = temperature_K, friction
        self.delta_scale, self.max_attempts = float(delta_scale), int(max_attempts)
        self.max_strain, self.max_heating = float(max_strain), float(max_heating)
        self.rng = rng if isinstance(rng, np.random.Generator) else np.random.default_rng(rng)
        self.counts = JumpCounts()
        super().__init__(atoms, (self.k + 1) * self.small, **kwargs)
        self._masses = atoms.get_masses()[:, None]
        self._check_jump()
        self._hops = bond_hops(atoms.numbers, atoms.positions)
        self._bonds = np.argwhere(np.triu(self._hops == 1)).T
        self._lengths = self._bond_lengths(atoms.positions)
        reference = temperature_K if temperature_K is not None else max(self._temperature(atoms.get_momenta()), 1.0)
        self._hottest = self.max_heating * reference
        self.max_energy_rise = max_energy_rise
        rise = 6.0 * units.kB * reference * math.sqrt(1.5 * len(atoms))
        self._rise = rise if max_energy_rise is None else float(max_energy_rise)
        self._energy: float | None = None  # the teacher's, at the last gradient
        self._use_restart_file(restart, restart_interval)

    def _check_jump(self) -> None:
        if self.jump is None:
            return
        if not isinstance(self.jump, JumpNetwork):
            raise InputError(f"`jump` is a {type(self.jump).__name__}; give a jump network, its file, or None.")
        span = self.k * self.small / units.fs
        if span > self.jump.longest * (1 + 1e-9):
            raise InputError(
                f"A jump of k = {self.k} steps is {span:g} fs, and this network was trained for up to "
                f"{self.jump.longest:g} fs. Take a smaller k, or train it on longer jumps."
            )
        self.jump.species(torch.as_tensor(self.atoms.numbers))

    def todict(self) -> dict[str, Any]:
        """What a trajectory says of the run."""
        names = ("k", "temperature_K", "friction", "delta_scale")
        kind = "none" if self.jump is None else self.jump.architecture
        return super().todict() | {"jump": kind} | {name: getattr(self, name) for name in names}

    # -- one step -----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """A jump and a teacher step, or, if no jump is good enough, k + 1 teacher steps."""
        atoms = self.atoms
        x, p = atoms.get_positions(), atoms.get_momenta()
        dx, dp = self._jump(x, p)
        for attempt in range(self.max_attempts):
            scale = self.delta_scale * 0.5**attempt
            reason = self._attempt(x + scale * dx, p + scale * dp)
            if not reason:
                self.counts.jumps += 1
                self.counts.reduced += attempt > 0
                return
            self.counts.refused += 1
            setattr(self.counts, reason, getattr(self.counts, reason) + 1)
        self.counts.fallbacks += 1
        start = x, p
        try:
            for _ in range(self.k + 1):
                x, p, self._energy = self._teacher_step(x, p, self.small)
        except _NO_ANSWER:
            self._put(*start)  # where the run stood; without the teacher there is nothing left to fall back on
            raise
        self._put(x, p)

    def _jump(self, x: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Displacements and changes of momentum (N, 3)."""
        if self.jump is None:
            return np.zeros_like(x), np.zeros_like(p)
        self.counts.network_calls += 1
        velocities = p / self._masses
        drift = p.sum(axis=0) / self._masses.sum()
        span = self.k * self.small
        graph = jump_graph(
            self.atoms.numbers, self._masses[:, 0], x, (velocities - drift) * units.fs, span / units.fs,
            cutoff=self.jump.cutoff, hops=self._hops, dtype=self.jump.dtype,
        )  # fmt: skip
        with torch.no_grad(), few_threads(graph.edges):
            out = self.jump(graph)
        change = out.velocity_change.double().numpy() / units.fs
        # The centre of mass goes on as it was.
        return out.displacement.double().numpy() + drift * span, self._masses * change

    def _attempt(self, x: np.ndarray, p: np.ndarray) -> str:
        """Correct a jump and keep it; or say which guard refuses it."""
        if not (np.isfinite(x).all() and np.isfinite(p).all()):
            return "bonds"
        if self._strain(x) > self.max_strain:
            return "bonds"
        if self._energy is None:
            self._energy = self._gradient(self.atoms.get_positions())[0]
        try:
            x, p, energy = self._teacher_step(x, p, (self.k + 1) * self.small)
        except _NO_ANSWER:
            return "energy"
        if energy - self._energy > self._rise:
            return "energy"
        if self._strain(x) > self.max_strain:
            return "bonds"
        if self._temperature(p) > self._hottest:
            return "temperature"
        self._energy = energy
        self._put(x, p)
        return ""

    def _teacher_step(self, x: np.ndarray, p: np.ndarray, thermal_time: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Position Verlet with one gradient; positions, momenta, and the energy at the middle of the step."""
        middle = x + 0.5 * self.small * p / self._masses
        energy, forces = self._gradient(middle)
        p = p + 0.5 * self.small * forces
        if self.temperature_K is not None and self.friction is not None:
            kept = math.exp(-self.friction * thermal_time)
            noise = self.rng.standard_normal(p.shape) * np.sqrt(self._masses * units.kB * self.temperature_K)
            noise -= self._masses / self._masses.sum() * noise.sum(axis=0)
            p = kept * p + math.sqrt(1.0 - kept**2) * noise
        p = p + 0.5 * self.small * forces
        return middle + 0.5 * self.small * p / self._masses, p, energy

    def _gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The teacher's energy, eV, and forces (N, 3), eV/Å."""
        self.counts.teacher_gradients += 1
        self.atoms.positions[:] = x
        forces = self.atoms.get_forces()
        energy = float(self.atoms.get_potential_energy())
        if not (math.isfinite(energy) and np.isfinite(forces).all()):
            raise TeacherError("The teacher returned an energy or forces that are not finite.")
        return energy, forces

    def _put(self, x: np.ndarray, p: np.ndarray) -> None:
        self.atoms.positions[:] = x
        self.atoms.set_momenta(p)

    def _bond_lengths(self, x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[self._bonds[0]] - x[self._bonds[1]], axis=1)

    def _strain(self, x: np.ndarray) -> float:
        return float(np.abs(self._bond_lengths(x) / self._lengths - 1.0).max(initial=0.0))

    def _temperature(self, p: np.ndarray) -> float:
        """K, of 3N − 3 degrees of freedom at a resting centre of mass."""
        p = p - self._masses / self._masses.sum() * p.sum(axis=0)
        return float((p**2 / self._masses).sum()) / (units.kB * max(3 * len(p) - 3, 1))

    def _refresh_properties(self) -> None:
        """ASE would ask for forces after every step, a gradient that nothing uses."""

    # -- restarts -----------------------------------------------------------------------------------------------------

    def _snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        held = {"lengths": self._lengths, "hops": self._hops}
        return held, {
            "counts": asdict(self.counts),
            "energy": self._energy,
            "hottest": self._hottest,
            "rise": self._rise,
        }

    def _restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        self._lengths, self._hops = arrays["lengths"], arrays["hops"]
        self._bonds = np.argwhere(np.triu(self._hops == 1)).T
        self.counts = JumpCounts(**state["counts"])
        self._energy, self._hottest, self._rise = state["energy"], float(state["hottest"]), float(state["rise"])

    def _settings(self) -> dict[str, Any]:
        names = ("k", "small", "temperature_K", "friction", "delta_scale", "max_attempts")
        return super()._settings() | {name: getattr(self, name) for name in names}


class JumpForces(Calculator):
    """The shear in a jump network, as a student for `SelfLearningHMC`: forces that depend on positions alone.

    A jump that mixes positions and velocities as it likes is neither reversible nor does it keep volumes, and cannot be
    a Metropolis proposal without the determinant of its Jacobian. Its mean acceleration from rest, ā(x, 0, t), can: a
    kick p += m ā δt changes p by something that depends on x alone, a drift x += p/m δt changes x by something that
    depends on p alone, both keep volumes, and drift–kick–drift read backwards is the same. The sampler turns momenta
    round after a refusal. The forces need be no gradient of anything.

    Parameters
    ----------
    jump
        A jump network or its file.
    interval
        t, fs: 0 for the acceleration itself, or the step of the sampler for its mean over that step.
    """

    implemented_properties = ["forces"]  # noqa: RUF012 (ASE's own spelling)

    def __init__(self, jump: JumpNetwork | str | Path, *, interval: float = 0.0, dtype: str | None = "float64") -> None:
        super().__init__()
        self.jump = load_jump(jump, dtype=dtype) if isinstance(jump, str | Path) else jump
        self.interval = float(interval)
        if not 0 <= self.interval <= self.jump.longest:
            raise InputError(f"`interval` is {interval!r}; this network knows 0 to {self.jump.longest:g} fs.")
        self._hops: np.ndarray | None = None
        self._of = b""

    def calculate(
        self, atoms: Atoms | None = None, properties: Any = ("forces",), system_changes: Any = all_changes
    ) -> None:
        """(N, 3) eV/Å. Bonds are those of the first geometry that is seen of a molecule."""
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        assert atoms is not None  # set by the base class
        if self._hops is None or self._of != atoms.numbers.tobytes():
            self._hops, self._of = bond_hops(atoms.numbers, atoms.positions), atoms.numbers.tobytes()
        self.jump.species(torch.as_tensor(atoms.numbers))
        graph = jump_graph(
            atoms.numbers, atoms.get_masses(), atoms.positions, np.zeros_like(atoms.positions), self.interval,
            cutoff=self.jump.cutoff, hops=self._hops, dtype=self.jump.dtype,
        )  # fmt: skip
        with torch.no_grad(), few_threads(graph.edges):
            acceleration = self.jump.rates(graph)[1].double().numpy()
        self.results = {"forces": acceleration * atoms.get_masses()[:, None] / units.fs**2}
