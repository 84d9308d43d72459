"""Langevin dynamics of many replicas of the same chains at once, which looks after itself.

One evaluation of the force field serves all replicas: a step of 32 costs little more than a step of one, and nothing
like 32 steps through ASE. What no force field should do (beads that overlap, forces without bounds, NaN, a temperature
that drifts) is looked for on the way; a replica that does it stops, with the frames before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, check_positive
from ..evaluation import one_thread
from ..units import FS, KB
from .chains import Chains
from .model import BeadOutput, BeadTopology, Part
from .prior import Prior
from .recording import FrameRecorder

_SPARE = 12.0  # steps in a period of the fastest bond


class BeadForceField(Protocol):
    """What dynamics need of a force field: a `CoarseGrainedModel`, or a `Committee` of several."""

    @property
    def prior(self) -> Prior:
        """Whose bonds decide the time step."""

    @property
    def device(self) -> torch.device:
        """Where it lives."""

    @property
    def knows_temperature(self) -> bool:
        """Whether its forces depend on the temperature they are asked at."""

    def bind(self, chains: Chains) -> BeadTopology:
        """See `CoarseGrainedModel.bind`."""
        ...

    def __call__(
        self, positions: Tensor, topology: BeadTopology, part: Part, temperature: float | Tensor | None, /
    ) -> BeadOutput:
        """See `CoarseGrainedModel.forward`."""
        ...


@dataclass(frozen=True)
class SimulationConfig:
    """How to run.

    Attributes
    ----------
    picoseconds
        Of each replica.
    temperature_K
        Of the thermostat.
    timestep
        fs; None takes `recommended_timestep`.
    friction
        1/fs (0.001 is 1/ps).
    interval
        ps between frames that are kept.
    least_distance
        Å; beads of a replica that come closer end it.
    largest_force
        eV/Å on a bead; more ends the replica.
    """

    picoseconds: float = 100.0
    temperature_K: float = 300.0
    timestep: float | None = None
    friction: float = 0.001
    interval: float = 1.0
    least_distance: float = 2.5
    largest_force: float = 50.0

    def __post_init__(self) -> None:
        for name in ("picoseconds", "temperature_K", "interval", "least_distance", "largest_force"):
            check_positive(name, getattr(self, name))
        if self.friction < 0:
            raise InputError(f"`friction` is {self.friction!r}; it must be 0 or more, in 1/fs.")
        if self.timestep is not None:
            check_positive("timestep", self.timestep)


@dataclass(frozen=True)
class Trouble:
    """Why a replica ended: which, when (ps), and what happened."""

    replica: int
    picoseconds: float
    reason: str


@dataclass
class SimulationResult:
    """What became of a simulation of R replicas of N beads.

    Attributes
    ----------
    positions
        (T, R, N, 3) Å; NaN after the end of a replica that ended early.
    energies
        (T, R) eV.
    temperatures
        (R,) K, mean over all steps that a replica lived.
    shortest
        (R,) Å, the shortest distance between two beads in any kept frame, and at any check.
    timestep
        fs.
    interval
        ps between frames: the nearest whole number of steps to what was asked for.
    steps
        That each replica lived.
    troubles
        Of replicas that ended early.
    seconds
        Of computing.
    observables
        Name → (T, R), what else is kept of every frame: the walkers of an exchange, the variable of an umbrella. Fewer
        frames if all replicas ended early.
    """

    positions: np.ndarray
    energies: np.ndarray
    temperatures: np.ndarray
    shortest: np.ndarray
    timestep: float
    interval: float
    steps: np.ndarray
    troubles: list[Trouble] = field(default_factory=list)
    seconds: float = 0.0
    observables: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def survivors(self) -> float:
        """Share of the replicas that reached the end."""
        return 1.0 - len(self.troubles) / self.positions.shape[1]


def recommended_timestep(model: BeadForceField, chains: Chains) -> float:
    """A twelfth of the period of the fastest bond, fs, rounded down to a whole one."""
    if not len(chains.bonds):
        return 10.0
    i, j = chains.bonds.T
    kinds = model.prior.bond_kinds(torch.as_tensor(chains.types[i]), torch.as_tensor(chains.types[j]))
    stiffness = model.prior.stiffness.detach().cpu()[kinds.cpu()].numpy()  # eV/Å²
    masses = chains.masses
    reduced = masses[i] * masses[j] / (masses[i] + masses[j])
    # A bead between two stiff bonds swings up to √2 faster than either.
    period = 2 * np.pi * np.sqrt(reduced / (2 * stiffness)) / FS
    return float(max(1.0, np.floor(period.min() * np.sqrt(2) / _SPARE)))


class ReplicaLangevin:
    """R replicas under BAOAB Langevin dynamics (10.1093/amrx/abs010).

    Parameters
    ----------
    model
        The force field.
    chains
        Of every replica.
    positions
        (R, N, 3) Å.
    config
        How to run.
    seed
        Of velocities and noise.
    part
        Of the model.
    temperatures_K
        (R,) K, of the thermostat of each replica; None: that of `config` for all. A model that knows temperatures
        gives each replica the forces of its own.
    """

    def __init__(
        self,
        model: BeadForceField,
        chains: Chains,
        positions: np.ndarray,
        config: SimulationConfig | None = None,
        *,
        seed: int = 0,
        part: Part = "hybrid",
        temperatures_K: np.ndarray | None = None,
    ) -> None:
        self.config = config or SimulationConfig()
        self.model, self.chains, self.part = model, chains, part
        device = model.device
        self.topology = model.bind(chains)
        self.timestep = self.config.timestep or recommended_timestep(model, chains)
        self.x = torch.as_tensor(np.array(positions, dtype=float), device=device)
        if self.x.ndim != 3 or self.x.shape[1:] != (len(chains), 3):
            raise InputError(f"`positions` has shape {tuple(self.x.shape)}; needed is (replicas, {len(chains)}, 3).")
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.masses = torch.as_tensor(chains.masses, device=device)[:, None]
        self.kelvin: float | Tensor = self.config.temperature_K
        self.kt: float | Tensor = KB * self.config.temperature_K  # eV, or (R, 1, 1)
        if temperatures_K is not None:
            self.kelvin = torch.as_tensor(self._checked(temperatures_K), device=device)
            self.kt = KB * self.kelvin[:, None, None]
        self.v = self._noise() * (self.kt / self.masses).sqrt()
        self.middle = self.v  # of the last half step
        self.alive = torch.ones(len(self.x), dtype=torch.bool, device=device)
        self.output = self.evaluate(self.x)

    def _checked(self, temperatures: np.ndarray) -> np.ndarray:
        kelvin = np.array(temperatures, dtype=float)
        if kelvin.shape != (len(self.x),) or not (np.isfinite(kelvin).all() and (kelvin > 0).all()):
            raise InputError(
                f"`temperatures_K` is {np.array2string(kelvin, threshold=8)}; needed is one number above 0 for each of "
                f"the {len(self.x)} replicas."
            )
        return kelvin

    def evaluate(self, positions: Tensor) -> BeadOutput:
        """The force field, without gradients of its own."""
        with torch.no_grad():
            return self.model(positions, self.topology, self.part, self.kelvin)

    @property
    def frame_interval(self) -> float:
        """ps between frames that are kept: a whole number of steps."""
        return self._per_frame * self.timestep / 1000

    @property
    def _per_frame(self) -> int:
        return max(1, round(self.config.interval * 1000 / self.timestep))

    def observables(self) -> dict[str, np.ndarray]:
        """Name → (R,), what is kept of every frame beside positions and energies."""
        return {}

    def _noise(self) -> Tensor:
        return torch.randn(self.x.shape, generator=self.generator, dtype=torch.float64, device=self.x.device)

    def step(self) -> None:
        """One time step of all replicas that live."""
        dt = self.timestep * FS
        decay = float(np.exp(-self.config.friction / FS * dt))
        half = 0.5 * dt / self.masses
        v = self.v + half * self.output.forces
        x = self.x + 0.5 * dt * v
        v = decay * v + (1 - decay**2) ** 0.5 * (self.kt / self.masses).sqrt() * self._noise()
        self.middle = v
        x = x + 0.5 * dt * v
        living = self.alive[:, None, None]
        x = torch.where(living, x, self.x)
        self.output = self.evaluate(x)
        self.x = x
        self.v = torch.where(living, v + half * self.output.forces, self.v)

    def temperatures(self) -> Tensor:
        """(R,) K, of the velocities in the middle of the last step; all 3N momenta are thermal.

        At the end of a step the velocity of a harmonic bond is too cold by (ω Δt)²/4, 7 % with the recommended step, in
        the middle it is exact (10.1021/acs.jpca.9b02771).
        """
        return (self.masses * self.middle**2).sum((1, 2)) / (self.v[0].numel() * KB)

    def shortest(self) -> Tensor:
        """(R,) Å, the shortest distance between two beads."""
        i, j = self.topology.pairs
        if not len(i):
            return torch.full_like(self.x[:, 0, 0], torch.inf)
        return (self.x[:, i] - self.x[:, j]).norm(dim=-1).amin(-1)

    def run(
        self,
        advance: Callable[[float], None] | None = None,
        *,
        check_every: int = 10,
        recorder: FrameRecorder | None = None,
    ) -> SimulationResult:
        """The whole simulation; `advance` is told picoseconds of all replicas together.

        Every `check_every` steps distances and forces are looked at. A `recorder` has the frames written while the
        simulation goes on; what ends it, Ctrl-C or an error, leaves them complete. torch has one thread meanwhile: what
        a few beads have to do is too short to share, and waiting for a second thread on a busy machine takes many times
        as long.
        """
        try:
            with one_thread():
                return self._run(advance, check_every, recorder)
        finally:
            if recorder is not None:
                recorder.flush()

    def _run(
        self, advance: Callable[[float], None] | None, check_every: int, recorder: FrameRecorder | None
    ) -> SimulationResult:
        begun, config = time.monotonic(), self.config
        per_frame = self._per_frame
        n_frames = max(1, int(config.picoseconds * 1000 / self.timestep) // per_frame)
        kept = np.full((n_frames, *self.x.shape), np.nan)
        energies = np.full((n_frames, len(self.x)), np.nan)
        lived = np.zeros(len(self.x), dtype=int)
        heat = torch.zeros(len(self.x), dtype=torch.float64, device=self.x.device)
        shortest = self.shortest()
        troubles: list[Trouble] = []
        others: dict[str, list[np.ndarray]] = {}
        for number in range(1, n_frames * per_frame + 1):
            if not bool(self.alive.any()):
                break
            self.step()
            heat += torch.where(self.alive, self.temperatures(), 0.0)
            lived += self.alive.cpu().numpy()
            if number % check_every == 0 or number % per_frame == 0:
                distance = self.shortest()
                shortest = torch.where(self.alive, torch.minimum(shortest, distance), shortest)
                self._look(distance, number, troubles)
            if number % per_frame == 0:
                frame = number // per_frame - 1
                living = self.alive.cpu().numpy()
                kept[frame, living] = self.x[self.alive].cpu().numpy()
                energies[frame, living] = self.output.energy[self.alive].cpu().numpy()
                seen = self.observables()
                for name, values in seen.items():
                    others.setdefault(name, []).append(values)
                if recorder is not None:
                    recorder.add(positions=kept[frame].astype(np.float32), energies=energies[frame], **seen)
                if advance is not None:
                    advance(per_frame * self.timestep / 1000 * len(self.x))
        return SimulationResult(
            kept, energies, (heat.cpu().numpy() / np.maximum(lived, 1)), shortest.cpu().numpy(), self.timestep,
            self.frame_interval, lived,
            troubles, time.monotonic() - begun, {name: np.stack(values) for name, values in others.items()},
        )  # fmt: skip

    def wrong(self, distance: Tensor | None = None) -> Tensor:
        """(R,) whether a replica is where none should be: beads too close, forces too large, or not finite."""
        distance = self.shortest() if distance is None else distance
        force, finite = self._finite(distance)
        return ~finite | (distance < self.config.least_distance) | (force > self.config.largest_force)

    def place(self, replica: int, positions: np.ndarray) -> None:
        """Put one replica somewhere (N, 3), with new velocities."""
        self.x, self.v = self.x.clone(), self.v.clone()
        self.x[replica] = torch.as_tensor(np.asarray(positions, dtype=float))
        self.v[replica] = (self._noise() * (self.kt / self.masses).sqrt())[replica]
        self.output = self.evaluate(self.x)

    def _finite(self, distance: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) largest force, and whether everything is a number."""
        force = self.output.forces.abs().amax((1, 2))
        return force, torch.isfinite(force) & ~torch.isnan(distance) & torch.isfinite(self.output.energy)

    def _look(self, distance: Tensor, number: int, troubles: list[Trouble]) -> None:
        """End replicas that went wrong."""
        force, finite = self._finite(distance)
        wrong = self.wrong(distance)
        for k in (wrong & self.alive).nonzero().flatten().tolist():
            if not bool(finite[k]):
                reason = "energy, forces or positions are not finite"
            elif float(distance[k]) < self.config.least_distance:
                reason = f"two beads came within {float(distance[k]):.2f} Å"
            else:
                reason = f"a force of {float(force[k]):.1f} eV/Å"
            troubles.append(Trouble(k, number * self.timestep / 1000, reason))
            self.alive[k] = False
