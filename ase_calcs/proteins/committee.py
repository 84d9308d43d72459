"""Several force fields of the same data as one, whose disagreement says where the data do not reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import InputError
from ..evaluation import one_thread
from ..potential import Potential
from .chains import Chains
from .model import BeadOutput, BeadTopology, CoarseGrainedModel, Part
from .prior import Prior

_AT_ONCE = 500  # configurations


class Committee:
    """Networks that differ by the seed they were trained with, on one prior.

    To `ReplicaLangevin` it is a force field: the mean of its members. The prior and the neighbours are found once for
    all of them.

    Parameters
    ----------
    members
        Two or more, trained with the same recipe on the same prior.

    Raises
    ------
    InputError
        There are fewer, one is a prior alone, or they differ by more than their weights.
    """

    def __init__(self, members: Sequence[CoarseGrainedModel]) -> None:
        networks = [one.network for one in members if one.network is not None]
        if len(members) < 2 or len(networks) < len(members):
            raise InputError(
                f"A committee has two or more members, each with a network; given are {len(members)}, and "
                f"{len(networks)} with a network."
            )
        self.first, self.networks = members[0], networks
        if any(_settings(one) != _settings(self.first) for one in members) or not all(
            torch.equal(a, b)
            for one in members
            for a, b in zip(one.prior.state_dict().values(), self.prior.state_dict().values(), strict=True)
        ):
            raise InputError(
                "The members of a committee have one prior, temperature, cutoff and set of residues. Train them with "
                "the same recipe and different seeds."
            )

    @property
    def prior(self) -> Prior:
        """That of every member."""
        return self.first.prior

    @property
    def device(self) -> torch.device:
        """Where the members live."""
        return self.first.device

    @property
    def knows_temperature(self) -> bool:
        """See `CoarseGrainedModel.knows_temperature`."""
        return self.first.knows_temperature

    def bind(self, chains: Chains) -> BeadTopology:
        """See `CoarseGrainedModel.bind`."""
        return self.first.bind(chains)

    def __call__(
        self,
        positions: Tensor,
        topology: BeadTopology,
        part: Part = "hybrid",
        temperature: float | Tensor | None = None,
    ) -> BeadOutput:
        """The mean of the members; see `CoarseGrainedModel.forward`."""
        known = self.first(positions, topology, "prior") if part != "network" else None
        energies = dict(known.energies) if known is not None else {}
        forces = known.forces if known is not None else torch.zeros_like(positions)
        if part != "prior":
            learned = self._networks(positions, topology, temperature)
            energies["network"] = torch.stack([one.energies["network"] for one in learned]).mean(0)
            forces = forces + torch.stack([one.forces for one in learned]).mean(0)
        return BeadOutput(energies, forces)

    def forces(
        self, positions: Tensor, topology: BeadTopology, temperature: float | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and disagreement, some hundred configurations at a time.

        Parameters
        ----------
        positions
            (R, N, 3) Å, float64.
        topology
            From `bind`.
        temperature
            K; None: that of the members.

        Returns
        -------
        forces, deviation
            (R, N, 3) eV/Å, and (R, N) eV/Å: the standard deviation of the members' forces on each bead, as
            `CoarseGrainedCalculator` gives it as ``forces_std``.
        """
        means, deviations = [], []
        with torch.no_grad(), one_thread():
            for x in positions.split(_AT_ONCE):
                each = torch.stack([one.forces for one in self._networks(x, topology, temperature)])
                mean = each.mean(0)
                means.append(self.first(x, topology, "prior").forces + mean)
                deviations.append((each - mean).square().sum(-1).mean(0).sqrt())
        return torch.cat(means), torch.cat(deviations)

    def _networks(
        self, positions: Tensor, topology: BeadTopology, temperature: float | Tensor | None
    ) -> list[BeadOutput]:
        graph = self.first.graph(positions, topology, temperature)
        found = []
        for network in self.networks:
            learned = network(graph)
            found.append(BeadOutput({"network": learned.energy}, learned.forces.to(positions.dtype).view_as(positions)))
        return found


def _settings(model: CoarseGrainedModel) -> tuple[object, ...]:
    """What members share."""
    network: Potential | None = model.network
    shared = (model.elements, model.temperature, model.knows_temperature, model.prior.hyperparameters, model.dtype)
    return (*shared, None if network is None else network.cutoff)
