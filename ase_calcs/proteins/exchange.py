"""Replica exchange of beads: all rungs of a temperature ladder, and all copies of it, in one batch.

A replica stays at its temperature and configurations move. Two neighbours with inverse temperatures β, β′ and
configurations x, x′ swap with the probability min(1, e^−Δ),

    Δ = β [W(x′, T) − W(x, T)] + β′ [W(x, T′) − W(x′, T′)],

which is (β − β′)(W(x′) − W(x)) if the energy W does not depend on temperature. A potential of mean force may, and then
each configuration is evaluated at its neighbour's temperature too.

Source: Sugita and Okamoto, Chem. Phys. Lett. 314, 141 (1999); Fukunishi, Watanabe and Takada, J. Chem. Phys. 116, 9058
(2002) for energies that differ between replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, InputError, check_positive
from ..units import KB
from .chains import Chains
from .model import BeadOutput, CoarseGrainedModel, Part
from .recording import FrameRecorder
from .simulate import ReplicaLangevin, SimulationConfig, SimulationResult

_WIDTH = 2.07  # erfc(2.07/√8) = 0.30


@dataclass
class ExchangeResult:
    """What became of C copies of a ladder of K temperatures.

    Attributes
    ----------
    temperatures_K
        (K,) K.
    simulation
        Of all K · C replicas: those of the first temperature, then those of the second, ….
    tried, accepted
        (K − 1,) swaps of each pair of neighbours.
    """

    temperatures_K: np.ndarray
    simulation: SimulationResult
    tried: np.ndarray
    accepted: np.ndarray

    def _by_rung(self, array: np.ndarray) -> np.ndarray:
        return array.reshape(len(array), len(self.temperatures_K), -1, *array.shape[2:])

    @property
    def positions(self) -> np.ndarray:
        """(T, K, C, N, 3) Å: ``positions[:, k]`` are the frames at temperature k."""
        return self._by_rung(self.simulation.positions)

    @property
    def energies(self) -> np.ndarray:
        """(T, K, C) eV, at the temperature of the rung."""
        return self._by_rung(self.simulation.energies)

    @property
    def walkers(self) -> np.ndarray:
        """(T, K, C) on which rung the configuration that is here began."""
        none = np.full(self.simulation.energies.shape, np.nan)
        return self._by_rung(self.simulation.observables.get("walkers", none))

    @property
    def acceptance(self) -> np.ndarray:
        """(K − 1,) share of the swaps of each pair of neighbours; NaN where none was tried."""
        return np.where(self.tried > 0, self.accepted / np.maximum(self.tried, 1), np.nan)


class ReplicaExchange(ReplicaLangevin):
    """Langevin dynamics of copies of a ladder, whose neighbours swap configurations.

    Parameters
    ----------
    model, chains, config, seed, part
        As `ReplicaLangevin` takes them; the temperature of `config` is not used.
    positions
        (C, N, 3) Å, where the copies begin: one configuration for all rungs of a copy.
    temperatures_K
        (K,) K, rising.
    every
        ps between attempts; pairs (1, 2), (3, 4), … and (2, 3), (4, 5), … take turns.

    Attributes
    ----------
    tried, accepted
        (K − 1,) swaps so far.
    """

    def __init__(
        self,
        model: CoarseGrainedModel,
        chains: Chains,
        positions: np.ndarray,
        temperatures_K: Sequence[float],
        config: SimulationConfig | None = None,
        *,
        every: float = 0.5,
        seed: int = 0,
        part: Part = "hybrid",
    ) -> None:
        self.ladder = np.array(temperatures_K, dtype=float)
        if self.ladder.ndim != 1 or len(self.ladder) < 2 or not (np.diff(self.ladder) > 0).all():
            raise InputError(
                f"The temperatures are {self.ladder.tolist()}; replica exchange needs two or more of them, rising."
            )
        check_positive("every", every)
        positions = np.asarray(positions, dtype=float)
        self.copies = len(positions)
        super().__init__(
            model, chains, np.tile(positions, (len(self.ladder), 1, 1)), config, seed=seed, part=part,
            temperatures_K=np.repeat(self.ladder, self.copies),
        )  # fmt: skip
        self.attempt_every = max(1, round(every * 1000 / self.timestep))
        self.tried, self.accepted = (np.zeros(len(self.ladder) - 1, dtype=int) for _ in range(2))
        self.walkers = torch.arange(len(self.ladder), device=self.x.device).repeat_interleave(self.copies)
        self._steps, self._attempts = 0, 0

    def step(self) -> None:
        """One time step of all replicas, and a round of swaps when it is due."""
        super().step()
        self._steps += 1
        if self._steps % self.attempt_every == 0:
            self.swap()

    def swap(self) -> None:
        """Let every second pair of neighbours swap, in all copies."""
        lower = np.arange(self._attempts % 2, len(self.ladder) - 1, 2)
        self._attempts += 1
        if not len(lower):
            return
        index = torch.arange(len(self.x), device=self.x.device).view(len(self.ladder), self.copies)
        low, high = index[lower].flatten(), index[lower + 1].flatten()
        partner = index.flatten().clone()
        partner[low], partner[high] = high, low
        crossed = self._crossed(partner)
        chance = torch.rand(len(low), generator=self.generator, dtype=torch.float64, device=self.x.device)
        with torch.no_grad():
            # NaN compares as false: a configuration that is no number stays where it is.
            taken = (torch.log1p(-chance) < -self.difference(crossed, low, high)) & self.alive[low] & self.alive[high]
        possible = (self.alive[low] & self.alive[high]).view(len(lower), -1).sum(1)
        self.tried[lower] += possible.cpu().numpy()
        self.accepted[lower] += taken.view(len(lower), -1).sum(1).cpu().numpy()
        order = index.flatten().clone()
        order[low], order[high] = torch.where(taken, high, low), torch.where(taken, low, high)
        self._move(order, crossed)

    def difference(self, crossed: BeadOutput, low: Tensor, high: Tensor) -> Tensor:
        """Δ of swaps between replicas `low` and `high`; `crossed` holds every configuration at the temperature of the
        other one of its pair."""
        beta = 1 / torch.as_tensor(self.kt).flatten()
        own, other = self.output.energy.double(), crossed.energy.double()
        return beta[low] * (other[high] - own[low]) + beta[high] * (other[low] - own[high])

    def _crossed(self, partner: Tensor) -> BeadOutput:
        """The energies of all configurations at the temperatures of their partners."""
        if not self.model.knows_temperature or self.part == "prior":
            return self.output
        kelvin = torch.as_tensor(self.kelvin)[partner]
        with torch.no_grad():
            return self.model(self.x, self.topology, self.part, kelvin)

    def _move(self, order: Tensor, crossed: BeadOutput) -> None:
        """Replica k gets the configuration of replica ``order[k]``, its velocities rescaled."""
        stays = order == torch.arange(len(order), device=order.device)
        kt = torch.as_tensor(self.kt)
        scale = (kt / kt[order]).sqrt()
        self.x, self.v, self.middle = self.x[order], scale * self.v[order], scale * self.middle[order]
        self.walkers = self.walkers[order]
        energies = {
            name: torch.where(stays, own, crossed.energies[name][order]) for name, own in self.output.energies.items()
        }
        forces = torch.where(stays[:, None, None], self.output.forces, crossed.forces[order])
        self.output = BeadOutput(energies, forces)

    def observables(self) -> dict[str, np.ndarray]:
        """On which rung the configurations began."""
        return {"walkers": self.walkers.cpu().numpy()}

    def exchange(
        self, advance: Callable[[float], None] | None = None, *, recorder: FrameRecorder | None = None
    ) -> ExchangeResult:
        """The whole simulation, as `run`, with its frames sorted by temperature."""
        result = self.run(advance, recorder=recorder)
        return ExchangeResult(self.ladder, result, self.tried.copy(), self.accepted.copy())


def temperature_ladder(
    model: CoarseGrainedModel,
    chains: Chains,
    positions: np.ndarray,
    coldest: float,
    hottest: float,
    *,
    config: SimulationConfig | None = None,
    picoseconds: float = 20.0,
    seed: int = 0,
    part: Part = "hybrid",
) -> np.ndarray:
    """Temperatures from the coldest to the hottest between which about three swaps in ten succeed.

    The width σ of the energy's distribution, from a short run at both ends, gives the number of harmonic degrees of
    freedom that would have it, f = 2 (σ/kT)²; neighbours with ΔT/T = 2.07/√f then swap with probability
    erfc(√(f/8) ΔT/T) = 0.3.

    Parameters
    ----------
    model, chains, config, seed, part
        As `ReplicaLangevin` takes them.
    positions
        (C, N, 3) Å, where the short runs begin; eight or more make a better ladder.
    coldest, hottest
        K.
    picoseconds
        Of the short runs; the first half is not looked at.

    Returns
    -------
    ndarray
        (K,) K, both ends among them.

    Raises
    ------
    DataError
        The short run went wrong.
    """
    if not 0 < coldest < hottest < np.inf:
        raise InputError(f"A ladder from {coldest:g} to {hottest:g} K does not rise: name a hottest temperature above.")
    ends = np.array([coldest, hottest])
    short = replace(config or SimulationConfig(), picoseconds=picoseconds, interval=picoseconds / 100)
    copies = len(positions)
    dynamics = ReplicaLangevin(
        model, chains, np.tile(positions, (2, 1, 1)), short, seed=seed, part=part,
        temperatures_K=np.repeat(ends, copies),
    )  # fmt: skip
    result = dynamics.run()
    if result.troubles:
        raise DataError(
            f"No ladder up to {hottest:g} K can be made: {len(result.troubles)} of {2 * copies} short runs ended early "
            f"({result.troubles[0].reason}). Name a lower hottest temperature, or a shorter time step."
        )
    half = result.positions[len(result.positions) // 2 :].reshape(-1, 2, copies, len(chains), 3)
    freedom = []
    for k, kelvin in enumerate(ends):
        energy = np.stack([_internal_energy(dynamics, frame, kelvin) for frame in half[:, k]])
        spread = energy.std(0)  # of each copy: not between folded and unfolded ones
        freedom.append(max(1.0, 2 * float(np.mean(spread**2)) / (KB * kelvin) ** 2))
    rungs = [coldest]
    while rungs[-1] < hottest:
        f = np.interp(rungs[-1], ends, freedom)
        rungs.append(rungs[-1] * (1 + _WIDTH / np.sqrt(f)))
    # The last rung overshoots; all of them move a little, and keep their ratios.
    logarithms = np.log(np.array(rungs) / coldest)
    return coldest * np.exp(logarithms * np.log(hottest / coldest) / logarithms[-1])


def _internal_energy(dynamics: ReplicaLangevin, positions: np.ndarray, kelvin: float) -> np.ndarray:
    """(C,) eV: U of a free energy W = U − T S; entropies cancel where W/kT is compared across temperatures."""
    x = torch.as_tensor(positions, device=dynamics.x.device)
    with torch.no_grad():
        free, warmer = (
            dynamics.model(x, dynamics.topology, dynamics.part, kelvin + d).energy.double() for d in (0.0, 10.0)
        )
    return (free - kelvin * (warmer - free) / 10.0).cpu().numpy()
