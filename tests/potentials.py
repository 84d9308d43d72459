"""Small analytic potentials for tests; a network with random weights has neither minima nor a known pressure."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.layers import polynomial_cutoff, sum_over_neighbours
from distillase.ase_calcs.potential import AtomicTerms, Potential


class MorsePotential(Potential):
    """Morse bonds at the sum of the covalent radii for every pair; deeper with charge and multiplicity."""

    architecture: ClassVar[str] = "morse"

    def __init__(self, elements, *, cutoff: float = 4.0, depth: float = 1.0) -> None:
        super().__init__(elements, cutoff)
        self.depth = depth
        radii = torch.from_numpy(np.array([covalent_radii[z] for z in self.elements]))
        self.register_buffer("bond", radii[:, None] + radii[None, :], persistent=False)
        self.double()
        self.atomic_energies.copy_(-torch.tensor(self.elements, dtype=torch.float64))

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {"cutoff": self.cutoff, "depth": self.depth}

    def atomic_terms(
        self, species: Tensor, edges: Tensor, vectors: Tensor, charge: Tensor, multiplicity: Tensor
    ) -> AtomicTerms:
        distances = torch.sqrt((vectors * vectors).sum(dim=-1))
        stretch = 1 - torch.exp(-3.0 * (distances - self.bond[species[edges[0]], species[edges[1]]]))
        pair = 0.5 * self.depth * (stretch * stretch - 1) * polynomial_cutoff(distances / self.cutoff)
        state = 1 + 0.1 * charge + 0.03 * (multiplicity - 1)
        return AtomicTerms(state * sum_over_neighbours(pair, edges[0], species))


class RepulsivePotential(Potential):
    """Every pair repels, exp(−2r) eV: pressure is positive whatever the structure."""

    architecture: ClassVar[str] = "repulsive"

    def __init__(self, elements, *, cutoff: float = 4.0) -> None:
        super().__init__(elements, cutoff)
        self.double()

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return {"cutoff": self.cutoff}

    def atomic_terms(
        self, species: Tensor, edges: Tensor, vectors: Tensor, charge: Tensor, multiplicity: Tensor
    ) -> AtomicTerms:
        distances = torch.sqrt((vectors * vectors).sum(dim=-1))
        pair = 10.0 * torch.exp(-2 * distances) * polynomial_cutoff(distances / self.cutoff)
        return AtomicTerms(sum_over_neighbours(pair, edges[0], species))


class Counting(PotentialCalculator):
    """Writes down what the network was asked for."""

    def _evaluate(self, graph, properties):
        self.calls = [*getattr(self, "calls", []), set(properties)]
        vectors = graph.positions.numpy().tobytes() + graph.cell.numpy().tobytes()
        self.geometries = getattr(self, "geometries", set()) | {vectors}
        return super()._evaluate(graph, properties)
