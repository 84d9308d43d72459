"""A coarse-grained force field: a prior, and a network for what the prior leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import InputError, StructureError
from ..graph import AtomGraph
from ..potential import ModelHeader, Potential
from .chains import Chains
from .prior import BoundPrior, Prior, PriorTopology
from .residues import CODES
from .split import EnergyEntropy

Part = Literal["hybrid", "prior", "network"]


@dataclass(frozen=True)
class BeadTopology:
    """What stays the same while beads move: terms of the prior, and pairs and types for the network."""

    prior: PriorTopology | BoundPrior
    pairs: Tensor  # (2, P) int64, all ordered pairs of beads
    numbers: Tensor  # (N,) int64, 1 + residue types

    @classmethod
    def of(cls, chains: Chains, device: torch.device | str = "cpu") -> BeadTopology:
        """Of chains of beads."""
        n = len(chains)
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n)).reshape(-1, 2)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]].T.contiguous()
        terms = PriorTopology.of(chains, device)
        return cls(terms, pairs.to(device), terms.types + 1)


@dataclass(frozen=True)
class BeadOutput:
    """Of R configurations of N beads.

    Attributes
    ----------
    energies
        Name of a component (the terms of the prior, ``network``) → (R,) eV.
    forces
        (R, N, 3) eV/Å.
    """

    energies: dict[str, Tensor]
    forces: Tensor

    @property
    def energy(self) -> Tensor:
        """(R,) eV."""
        return torch.stack(list(self.energies.values())).sum(0)


class CoarseGrainedModel(nn.Module):
    """Prior and network, added up.

    Parameters
    ----------
    elements
        1 + the place in `CODES` of every residue it was trained on.
    prior
        Keyword arguments of `Prior`.
    network
        ``{"architecture": …, "hyperparameters": …}`` of a `Potential` whose elements are residues, or None: the prior
        alone.
    temperature
        K, at which its forces are mean forces; a potential of mean force holds at one temperature, unless its network
        is an `EnergyEntropy`.
    dtype
        Of both parts. The prior is kept in float64.
    """

    architecture = "coarse-grained"

    def __init__(
        self,
        elements: Sequence[int],
        *,
        prior: dict[str, Any] | None = None,
        network: dict[str, Any] | None = None,
        temperature: float = 300.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.elements = tuple(sorted({int(z) for z in elements}))
        self.temperature = float(temperature)
        self.header = ModelHeader()
        self.prior = Prior(**(prior or {}), dtype=torch.float64)
        self.network: Potential | None = None
        self._dtype = dtype
        if network is not None:
            from ..modelfile import build_potential

            self.network = build_potential(
                network["architecture"], self.elements, network["hyperparameters"], dtype=dtype
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CoarseGrainedModel:
        # `.to(float32)` is for the network: bonds are stiff, and their energies small differences.
        super()._apply(fn, recurse)
        self.prior.double()
        return self

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments (JSON types) that build this model again, besides ``elements``."""
        network = None
        if self.network is not None:
            network = {"architecture": self.network.architecture, "hyperparameters": self.network.hyperparameters}
        return {"prior": self.prior.hyperparameters, "network": network, "temperature": self.temperature}

    @property
    def cutoff(self) -> float:
        """Å, of the network, or of the prior's repulsion."""
        return self.network.cutoff if self.network is not None else self.prior.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network."""
        return self._dtype if self.network is None else self.network.dtype

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.prior.length.device

    def check(self, chains: Chains) -> None:
        """Refuse residues that were not in the training data.

        Raises
        ------
        StructureError
            Naming them.
        """
        unknown = sorted({CODES[t] for t in chains.types if t + 1 not in self.elements})
        if unknown:
            raise StructureError(
                f"This model has not been trained on the residues {', '.join(unknown)}. It knows "
                f"{', '.join(CODES[z - 1] for z in self.elements)}."
            )

    @property
    def knows_temperature(self) -> bool:
        """Whether its forces are mean forces at other temperatures too."""
        return isinstance(self.network, EnergyEntropy)

    def bind(self, chains: Chains) -> BeadTopology:
        """The topology of chains with the parameters of this prior looked up, for a model that does not change.

        Raises
        ------
        StructureError
            Residues that were not in the training data.
        """
        self.check(chains)
        topology = BeadTopology.of(chains, self.device)
        with torch.no_grad():
            return replace(topology, prior=self.prior.bind(topology.prior))  # type: ignore[arg-type]

    def forward(
        self,
        positions: Tensor,
        topology: BeadTopology,
        part: Part = "hybrid",
        temperature: float | Tensor | None = None,
    ) -> BeadOutput:
        """Energies of every component, and forces.

        Parameters
        ----------
        positions
            (R, N, 3) Å, float64.
        topology
            Of the chains; what `bind` gives saves time.
        part
            Both, or one of the two.
        temperature
            K, one or (R,); None: its own. A model that does not know others gives the same forces at all of them.
        """
        if part not in get_args(Part):
            raise InputError(f"part is {part!r}; allowed are {', '.join(map(repr, get_args(Part)))}.")
        energies: dict[str, Tensor] = {}
        forces = torch.zeros_like(positions)
        if part != "network":
            known = self.prior(positions, topology.prior)
            energies |= known.energies
            forces = forces + known.forces
        if part != "prior" and self.network is not None:
            learned = self.network(self.graph(positions, topology, temperature))
            energies["network"] = learned.energy
            forces = forces + learned.forces.to(forces.dtype).view_as(forces)
        if not energies:
            raise StructureError("This model has no network; only its prior can be evaluated.")
        return BeadOutput(energies, forces)

    def graph(self, positions: Tensor, topology: BeadTopology, temperature: float | Tensor | None = None) -> AtomGraph:
        """What the network takes; see `forward`."""
        ratio: float | Tensor = 0.0
        if temperature is not None and self.knows_temperature:
            ratio = temperature / self.temperature - 1
        return bead_graph(positions, topology, self.cutoff, self.dtype, ratio)


def bead_graph(
    positions: Tensor, topology: BeadTopology, cutoff: float, dtype: torch.dtype, ratio: float | Tensor = 0.0
) -> AtomGraph:
    """R configurations (R, N, 3) as a batch of R structures, by looking at every pair of beads.

    `ratio`, T/T₀ − 1, one or (R,), stands in the place of the charge, as `EnergyEntropy` takes it.
    """
    n_configurations, n = positions.shape[:2]
    device = positions.device
    i, j = topology.pairs
    vectors = positions[:, j] - positions[:, i]
    which, pair = (vectors.square().sum(-1) < cutoff**2).nonzero(as_tuple=True)
    edges = torch.stack([i[pair] + which * n, j[pair] + which * n])
    # Relative to each configuration's first bead: far from the origin, float32 loses digits of distances.
    local = (positions - positions[:, :1]).reshape(-1, 3).to(dtype)
    return AtomGraph(
        numbers=topology.numbers.repeat(n_configurations),
        positions=local,
        cell=torch.zeros(n_configurations, 3, 3, dtype=dtype, device=device),
        pbc=torch.zeros(n_configurations, 3, dtype=torch.bool, device=device),
        system=torch.arange(n_configurations, device=device).repeat_interleave(n),
        edges=edges,
        edge_shifts=torch.zeros(edges.shape[1], 3, dtype=dtype, device=device),
        charge=torch.as_tensor(ratio, dtype=dtype, device=device).expand(n_configurations),
        multiplicity=torch.ones(n_configurations, dtype=dtype, device=device),
    )
