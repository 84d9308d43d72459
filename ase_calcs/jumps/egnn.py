"""An E(n)-equivariant graph network as a jump network.

Source: Satorras, Hoogeboom, Welling, *E(n) equivariant graph neural networks*, ICML 2021 (arXiv 2102.09844), with
several vectors per atom instead of one, which begin as multiples of the velocity. Messages see the vectors through
their products with each other and with the edge, which do not change under rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers import sum_over_neighbours
from .base import JumpNetwork, bounded


class EGNNJump(JumpNetwork):
    """EGNN; `vectors` is the number of vectors that every atom carries."""

    architecture: ClassVar[str] = "egnn-jump"

    def __init__(self, elements: Sequence[int], *, vectors: int = 8, dtype: torch.dtype = torch.float32, **common: Any):
        super().__init__(elements, **common, vectors=vectors)
        width, layers = self._hyperparameters["features"], self._hyperparameters["layers"]
        self.vectors = vectors
        self.start = nn.Linear(width, vectors)
        self.layers = nn.ModuleList(
            EGNNLayer(width, 2 * self._hyperparameters["n_basis"], vectors) for _ in range(layers)
        )
        self.readout = nn.Linear(width, self.n_outputs * vectors)
        self.to(dtype)

    def outputs(self, s: Tensor, velocities: Tensor, directions: Tensor, basis: Tensor, edges: Tensor) -> Tensor:
        """See `JumpNetwork.outputs`."""
        u = self.start(s)[:, :, None] * velocities[:, None]  # (N, C, 3)
        for layer in self.layers:
            s, u = layer(s, u, directions, basis, edges)
        weights = self.readout(s).view(-1, self.n_outputs, self.vectors)
        return weights @ u


class EGNNLayer(nn.Module):
    """One round of messages.

    m_ij = φ(s_i, s_j, basis_ij, products), s_i += ψ(s_i, Σ m_ij, |u_i|²),
    u_i = g(s_i) u_i + Σ_j r̂_ij a(m_ij) + u_j b(m_ij), of s normalised and u bounded beforehand.
    """

    def __init__(self, features: int, n_edge: int, vectors: int) -> None:
        super().__init__()
        self.vectors = vectors
        self.norm = nn.LayerNorm(features)
        self.of_centre = nn.Linear(features, features)
        self.of_neighbour = nn.Linear(features, features, bias=False)
        self.of_edge = nn.Linear(n_edge + 4 * vectors, features, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(features, features), nn.SiLU())
        self.filter = nn.Linear(n_edge, features, bias=False)  # vanishes at the cutoff, and the message with it
        self.to_vectors = nn.Linear(features, 2 * vectors, bias=False)
        self.update = nn.Sequential(
            nn.Linear(2 * features + vectors, features), nn.SiLU(), nn.Linear(features, features)
        )
        self.gate = nn.Linear(features, vectors)

    def forward(self, s: Tensor, u: Tensor, directions: Tensor, basis: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """(N, F) scalars and (N, C, 3) vectors → new ones."""
        centre, neighbour = edges[0], edges[1]
        s, u = self.norm(s), bounded(u, channels=1, components=2)
        mine, theirs = u.index_select(0, centre), u.index_select(0, neighbour)
        along = directions[:, None]  # (E, 1, 3)
        products = [(mine * along).sum(-1), (theirs * along).sum(-1), (mine * theirs).sum(-1), (mine * mine).sum(-1)]
        hidden = self.of_centre(s).index_select(0, centre) + self.of_neighbour(s).index_select(0, neighbour)
        hidden = hidden + self.of_edge(torch.cat([basis, *products], dim=-1))
        m = self.message(hidden) * self.filter(basis)  # (E, F)
        a, b = self.to_vectors(m)[:, :, None].split(self.vectors, dim=1)  # (E, C, 1)
        moved = sum_over_neighbours(along * a + theirs * b, centre, s)
        s = s + self.update(torch.cat([s, sum_over_neighbours(m, centre, s), (u * u).sum(-1)], dim=-1))
        return s, u * (1.0 + self.gate(s)[:, :, None]) + moved
