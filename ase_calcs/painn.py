"""PaiNN: equivariant message passing with scalar and vector features.

Source: Schütt, Unke, Gastegger, *Equivariant message passing for the prediction of tensorial properties and molecular
spectra*, ICML 2021 (arXiv 2102.03150). Differences: Bessel functions with a C² cutoff; the first message has no vectors
to mix and the last update none to keep, so those filters do not exist; a short-range repulsion takes over where the
training data end; total charge and multiplicity enter the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .layers import RadialBasis, ShortRange, sum_over_neighbours
from .potential import AtomicTerms, Potential


class Message(nn.Module):
    """Equations 7 and 8 of the paper: Δs_i = Σ_j φ_s∘W_s, Δv_i = Σ_j v_j φ_vv∘W_vv + r̂_ij φ_vs∘W_vs."""

    def __init__(self, features: int, n_basis: int, *, first: bool) -> None:
        super().__init__()
        parts = 2 if first else 3
        self.features = features
        self.hidden = nn.Linear(features, features)
        self.phi = nn.Linear(features, parts * features)
        # No bias: the basis carries the cutoff, so that a filter without bias vanishes smoothly at it.
        self.filter = nn.Linear(n_basis, parts * features, bias=False)

    def forward(
        self, s: Tensor, v: Tensor | None, basis: Tensor, directions: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, F), vectors (N, 3, F) or None, basis (E, K), directions (E, 3) → new scalars and vectors."""
        centre, neighbour = edges[0], edges[1]
        phi = self.phi(silu(self.hidden(s)))  # (N, parts·F)
        message = phi[neighbour] * self.filter(basis)  # (E, parts·F)
        parts = message.split(self.features, dim=-1)
        dv = directions[:, :, None] * parts[1][:, None, :]  # (E, 3, F)
        if v is None:
            return s + sum_over_neighbours(parts[0], centre, s), sum_over_neighbours(dv, centre, s)
        dv = dv + v[neighbour] * parts[2][:, None, :]  # (E, 3, F)
        return s + sum_over_neighbours(parts[0], centre, s), v + sum_over_neighbours(dv, centre, s)


class Update(nn.Module):
    """Equations 9 and 10: mixes scalars and vectors of one atom through ⟨Uv, Vv⟩ and ‖Vv‖."""

    def __init__(self, features: int, *, last: bool) -> None:
        super().__init__()
        self.features = features
        self.last = last
        self.uv = nn.Linear(features, 2 * features, bias=False)
        self.hidden = nn.Linear(2 * features, features)
        self.gates = nn.Linear(features, (2 if last else 3) * features)

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) → new ones."""
        u_v, v_v = self.uv(v).split(self.features, dim=-1)  # (N, 3, F) each
        norm = torch.sqrt((v_v * v_v).sum(dim=1) + 1e-8)  # (N, F); smooth at zero
        gates = self.gates(silu(self.hidden(torch.cat([s, norm], dim=-1)))).split(self.features, dim=-1)
        s = s + gates[0] + gates[1] * (u_v * v_v).sum(dim=1)
        if self.last:
            return s, u_v
        return s, v + gates[2][:, None, :] * u_v


class PaiNN(Potential):
    """PaiNN as a `Potential`.

    Parameters
    ----------
    elements
        Atomic numbers.
    features
        Width F.
    layers
        Message–update pairs.
    cutoff
        Å.
    n_basis
        Radial functions.
    charges
        Also predict partial charges and dipoles (from charges and atomic dipole vectors).
    dtype
        Of parameters and arithmetic.
    """

    architecture: ClassVar[str] = "painn"

    def __init__(
        self,
        elements: Sequence[int],
        *,
        features: int = 32,
        layers: int = 3,
        cutoff: float = 5.0,
        n_basis: int = 16,
        charges: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(elements, cutoff)
        self._hyperparameters = {
            "features": features,
            "layers": layers,
            "cutoff": cutoff,
            "n_basis": n_basis,
            "charges": charges,
        }
        n_species = len(self.elements)
        self.embedding = nn.Embedding(n_species, features)
        # The state of the whole structure shifts the embedding of each element: linear in charge and in 2S.
        self.charge_embedding = nn.Embedding(n_species, features)
        self.spin_embedding = nn.Embedding(n_species, features)
        nn.init.zeros_(self.charge_embedding.weight)
        nn.init.zeros_(self.spin_embedding.weight)
        self.radial = RadialBasis(n_basis, self.cutoff)
        self.short_range = ShortRange(self.elements)
        self.messages = nn.ModuleList(Message(features, n_basis, first=k == 0) for k in range(layers))
        self.updates = nn.ModuleList(Update(features, last=k == layers - 1) for k in range(layers))
        self.readout = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 1))
        self.charge_readout = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 1))
        self.dipole_readout = nn.Linear(features, 1, bias=False)
        if not charges:
            del self.charge_readout, self.dipole_readout
        # Constants are computed in float64 and rounded once.
        self.to(dtype)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments of the constructor besides ``elements``."""
        return dict(self._hyperparameters)

    def atomic_terms(
        self, species: Tensor, edges: Tensor, vectors: Tensor, charge: Tensor, multiplicity: Tensor
    ) -> AtomicTerms:
        """See `Potential.atomic_terms`."""
        centre, neighbour = edges[0], edges[1]
        distances = torch.sqrt((vectors * vectors).sum(dim=-1))  # (E,)
        directions = vectors / distances[:, None]  # (E, 3)
        seen, repulsion = self.short_range(distances, (species[centre], species[neighbour]))
        basis = self.radial(seen)  # (E, K)

        s = self.embedding(species)  # (N, F)
        s = s + charge[:, None] * self.charge_embedding(species)
        s = s + (multiplicity[:, None] - 1.0) * self.spin_embedding(species)
        v: Tensor | None = None  # (N, 3, F)
        for message, update in zip(self.messages, self.updates, strict=True):
            s, v = message(s, v, basis, directions, edges)
            s, v = update(s, v)

        energies = self.readout(s).squeeze(-1)  # (N,)
        # The repulsion is in eV already; the base class multiplies by the energy scale.
        energies = energies + sum_over_neighbours(repulsion, centre, s) / self.energy_scale
        if not self._hyperparameters["charges"]:
            return AtomicTerms(energies)
        return AtomicTerms(
            energies, charges=self.charge_readout(s).squeeze(-1), dipoles=self.dipole_readout(v).squeeze(-1)
        )
