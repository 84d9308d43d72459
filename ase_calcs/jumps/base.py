"""`JumpNetwork`: the contract of every jump network, and what is the same for all of them.

A network predicts, from positions x and velocities v, the mean velocity ū and the mean acceleration ā over the next
t femtoseconds:

    Δx = t ū,   ū = v + (t/t_max) s_x o_x          Δv = t ā,   ā = s_v o_v

with outputs o of order one and scales s per element from the training data. At t → 0 the mean velocity is the velocity
and the mean acceleration is force over mass, which is what *Hamiltonian flow maps* (arXiv 2601.22123) need to be
trained without trajectories. The centre of mass stays where it is, and so does the total momentum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ..errors import InputError, StructureError, check_positive
from ..layers import RadialBasis, polynomial_cutoff
from ..potential import MAX_Z, ModelHeader
from .graph import FAR, JumpGraph


@dataclass(frozen=True)
class Jump:
    """Predictions for N atoms.

    Attributes
    ----------
    displacement
        (N, 3) Å.
    velocity_change
        (N, 3) Å/fs.
    forces
        (N, 3) eV/Å at the start, from a network with a force head.
    """

    displacement: Tensor
    velocity_change: Tensor
    forces: Tensor | None = None


class JumpNetwork(nn.Module, ABC):
    """Base class: elements, scales, bounds, conservation. A subclass implements `outputs`.

    Parameters
    ----------
    elements
        Atomic numbers it can handle.
    features
        Width F.
    layers
        Of messages.
    cutoff
        Å.
    n_basis
        Radial functions.
    longest
        t_max, fs: the longest jump it is made for.
    max_displacement
        Å; a longer displacement of an atom is shortened to it, in its direction.
    force_head
        Also predict forces at the start.
    dtype
        Of parameters and arithmetic.

    Attributes
    ----------
    velocity_scale, mean_velocity_scale, acceleration_scale, force_scale
        (S,) per element: thermal speed (Å/fs), s_x (Å/fs), s_v (Å/fs²) and root mean square force (eV/Å).
    """

    architecture: ClassVar[str]
    species_of_number: Tensor
    velocity_scale: Tensor
    mean_velocity_scale: Tensor
    acceleration_scale: Tensor
    force_scale: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        *,
        features: int = 64,
        layers: int = 3,
        cutoff: float = 7.0,
        n_basis: int = 16,
        longest: float = 10.0,
        max_displacement: float = 2.5,
        force_head: bool = False,
        **more: Any,
    ) -> None:
        super().__init__()
        for name, value in (("cutoff", cutoff), ("longest", longest), ("max_displacement", max_displacement)):
            check_positive(name, value)
        self.elements = tuple(sorted({int(z) for z in elements}))
        self.cutoff, self.longest, self.max_displacement = float(cutoff), float(longest), float(max_displacement)
        self.force_head = bool(force_head)
        self.header = ModelHeader()
        self._hyperparameters = {
            "features": features, "layers": layers, "cutoff": self.cutoff, "n_basis": n_basis, "longest": self.longest,
            "max_displacement": self.max_displacement, "force_head": self.force_head,
        } | more  # fmt: skip
        index = torch.full((MAX_Z,), -1, dtype=torch.int64)
        index[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("species_of_number", index, persistent=False)
        for name in ("velocity_scale", "mean_velocity_scale", "acceleration_scale", "force_scale"):
            self.register_buffer(name, torch.ones(len(self.elements), dtype=torch.float64))
        self.radial = RadialBasis(n_basis, self.cutoff)
        self.embedding = nn.Embedding(len(self.elements), features)
        self.hop_embedding = nn.Embedding(FAR + 1, n_basis)
        # How far to jump enters as t/t_max and its square: smooth, and defined at t = 0.
        self.duration = nn.Linear(2, features)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments of the constructor besides ``elements``."""
        return dict(self._hyperparameters)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network."""
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.embedding.weight.device

    @property
    def n_outputs(self) -> int:
        """Vectors per atom: of the mean velocity, the mean acceleration and, with a head for it, the force."""
        return 3 if self.force_head else 2

    @abstractmethod
    def outputs(self, s: Tensor, velocities: Tensor, directions: Tensor, basis: Tensor, edges: Tensor) -> Tensor:
        """The network.

        Parameters
        ----------
        s
            (N, F) embedded elements and duration.
        velocities
            (N, 3), in units of the thermal speed of each element.
        directions
            (E, 3) unit vectors from centre to neighbour.
        basis
            (E, 2K) radial functions and encoded bond-graph distances; all vanish smoothly at the cutoff.
        edges
            (2, E) centre and neighbour.

        Returns
        -------
        Tensor
            (N, n_outputs, 3), of order one, turning with the input.
        """

    def species(self, numbers: Tensor) -> Tensor:
        """(N,) atomic numbers → index into `elements`. Raises StructureError for one it was not trained on."""
        species = self.species_of_number[numbers]
        if bool((species < 0).any()):
            unknown = sorted({chemical_symbols[int(z)] for z in numbers[species < 0]})
            known = ", ".join(chemical_symbols[z] for z in self.elements)
            raise StructureError(f"This jump network has not been trained on {', '.join(unknown)}; it knows {known}.")
        return species

    def rates(self, graph: JumpGraph) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean velocity (N, 3) Å/fs, mean acceleration (N, 3) Å/fs², force (N, 3) eV/Å; momentum is conserved."""
        species = self.species_of_number[graph.numbers]
        centre, neighbour = graph.edges[0], graph.edges[1]
        vectors = graph.positions[neighbour] - graph.positions[centre]
        distances = torch.sqrt((vectors * vectors).sum(dim=-1))
        envelope = polynomial_cutoff(distances / self.cutoff)[:, None]
        basis = torch.cat([self.radial(distances), self.hop_embedding(graph.hops) * envelope], dim=-1)
        share = (graph.interval / self.longest)[graph.system][:, None]
        s = self.embedding(species) + self.duration(torch.cat([share, share * share], dim=-1))
        speeds = self.velocity_scale.to(s.dtype)[species][:, None]
        out = self.outputs(s, graph.velocities / speeds, vectors / distances[:, None], basis, graph.edges)
        scale = self.mean_velocity_scale.to(s.dtype)[species][:, None]
        velocity = graph.velocities + share * scale * out[:, 0]
        acceleration = self.acceleration_scale.to(s.dtype)[species][:, None] * out[:, 1]
        forces = self.force_scale.to(s.dtype)[species][:, None] * out[:, 2] if self.force_head else None
        return without_momentum(velocity, graph), without_momentum(acceleration, graph), forces

    def forward(self, graph: JumpGraph) -> Jump:
        """The jump. Bounds act on the length of a vector, never on its components, so that the jump turns with it."""
        velocity, acceleration, forces = self.rates(graph)
        time = graph.interval[graph.system][:, None]
        displacement = time * velocity
        length = torch.sqrt((displacement * displacement).sum(dim=-1, keepdim=True) + 1e-20)
        displacement = displacement * (self.max_displacement / length).clamp(max=1.0)
        return Jump(without_momentum(displacement, graph), time * acceleration, forces)


def without_momentum(vectors: Tensor, graph: JumpGraph) -> Tensor:
    """(N, 3) minus their mean over the mass of each molecule."""
    masses = graph.masses[:, None]
    n = graph.interval.shape[0]
    total = vectors.new_zeros((n, 3)).index_add(0, graph.system, masses * vectors)
    mass = vectors.new_zeros((n, 1)).index_add(0, graph.system, masses)
    return vectors - (total / mass)[graph.system]


def bounded(vectors: Tensor, *, channels: int, components: int) -> Tensor:
    """Vectors (or tensors) of an atom, divided by √(1 + their mean square norm): short ones stay, none grows.

    Products of features with features, layer after layer, are polynomials of high degree in the velocities: without a
    bound a fast atom alone makes them overflow. The factor is one for all channels of an atom, and turns nothing.

    Parameters
    ----------
    channels, components
        Dimensions of the channels and of the vectors' components.
    """
    square = (vectors * vectors).sum(dim=components, keepdim=True).mean(dim=channels, keepdim=True)
    return vectors * torch.rsqrt(1.0 + square)


def check_width(features: int, heads: int) -> None:
    """Refuse a width that heads cannot share."""
    if features % heads:
        raise InputError(f"`features` is {features} and `heads` {heads}; the width must be a multiple of the heads.")
