"""An equivariant transformer as a jump network: attention between atoms, and between structure and velocities.

Every atom has structure features s (where its neighbours are) and velocity features g (how it moves), both invariant,
and several vectors. In each layer s attends to the s and the g of the neighbours, g attends to their s, and the weights
found also move the vectors, along the edges and along the neighbours' vectors. What an edge adds to a weight comes from
its length, from the learned encoding of its bond-graph distance and from products of vectors; nothing depends on how
atoms are numbered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..layers import sum_over_neighbours
from .base import JumpNetwork, bounded, check_width

STEEPEST = 5.0  # weights are at most e⁵ times each other: they need no maximum over neighbours to be finite


class TransformerJump(JumpNetwork):
    """Transformer-EGNN with `heads` heads and `vectors` vectors per atom."""

    architecture: ClassVar[str] = "transformer-jump"

    def __init__(
        self,
        elements: Sequence[int],
        *,
        heads: int = 4,
        vectors: int = 8,
        dtype: torch.dtype = torch.float32,
        **common: Any,
    ):
        super().__init__(elements, **common, heads=heads, vectors=vectors)
        width, layers = self._hyperparameters["features"], self._hyperparameters["layers"]
        check_width(width, heads)
        self.vectors = vectors
        self.start = nn.Linear(width, vectors)
        self.of_speed = nn.Linear(1 + width, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, heads, 2 * self._hyperparameters["n_basis"], vectors) for _ in range(layers)
        )
        self.readout = nn.Linear(2 * width, self.n_outputs * vectors)
        self.to(dtype)

    def outputs(self, s: Tensor, velocities: Tensor, directions: Tensor, basis: Tensor, edges: Tensor) -> Tensor:
        """See `JumpNetwork.outputs`."""
        u = self.start(s)[:, :, None] * velocities[:, None]  # (N, C, 3)
        # Speeds, and not their squares, which one fast atom would fill the network with.
        speeds = torch.sqrt((velocities * velocities).sum(dim=-1, keepdim=True) + 1.0) - 1.0
        g = self.of_speed(torch.cat([speeds, s], dim=-1))
        for layer in self.layers:
            s, g, u = layer(s, g, u, directions, basis, edges)
        weights = self.readout(torch.cat([s, g], dim=-1)).view(-1, self.n_outputs, self.vectors)
        return weights @ u


class Attention(nn.Module):
    """Multi-head attention of atoms to their neighbours' features.

    The weight of a neighbour is w e^b / (1 + Σ w e^b) with the smooth cutoff w: it fades out at the cutoff, and an atom
    may attend to nobody.
    """

    def __init__(self, features: int, heads: int, n_edge: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(features, features)
        self.key = nn.Linear(features, features, bias=False)
        self.value = nn.Linear(features, features, bias=False)
        self.bias = nn.Sequential(nn.Linear(n_edge, features), nn.SiLU(), nn.Linear(features, heads))
        self.out = nn.Linear(features, features, bias=False)

    def forward(
        self, target: Tensor, source: Tensor, edge: Tensor, envelope: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What atoms gather (N, F), and what each edge brings (E, F)."""
        centre, neighbour = edges[0], edges[1]
        n, heads = target.shape[0], self.heads
        q = self.query(target).view(n, heads, -1).index_select(0, centre)
        k = self.key(source).view(n, heads, -1).index_select(0, neighbour)
        v = self.value(source).view(n, heads, -1).index_select(0, neighbour)  # (E, H, F/H)
        logits = (q * k).sum(dim=-1) / q.shape[-1] ** 0.5 + self.bias(edge)
        weights = envelope * torch.exp(STEEPEST * torch.tanh(logits / STEEPEST))  # (E, H)
        total = 1.0 + sum_over_neighbours(weights, centre, target)
        weights = weights / total.index_select(0, centre)
        brought = (weights[:, :, None] * v).flatten(1)
        return self.out(sum_over_neighbours(brought, centre, target)), brought


class TransformerLayer(nn.Module):
    """Structure to structure, structure to velocities, velocities to structure; then the vectors."""

    def __init__(self, features: int, heads: int, n_edge: int, vectors: int) -> None:
        super().__init__()
        self.vectors = vectors
        n_bias = n_edge + 4 * vectors
        self.norm_s, self.norm_g = nn.LayerNorm(features), nn.LayerNorm(features)
        self.self_attention = Attention(features, heads, n_bias)
        self.cross_to_velocities = Attention(features, heads, n_bias)
        self.cross_to_structure = Attention(features, heads, n_bias)
        self.mlp_s = nn.Sequential(nn.Linear(features + vectors, features), nn.SiLU(), nn.Linear(features, features))
        self.mlp_g = nn.Sequential(nn.Linear(features + vectors, features), nn.SiLU(), nn.Linear(features, features))
        self.to_vectors = nn.Linear(3 * features, 2 * vectors, bias=False)
        self.gate = nn.Linear(2 * features, vectors)

    def forward(
        self, s: Tensor, g: Tensor, u: Tensor, directions: Tensor, basis: Tensor, edges: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N, F) structure, (N, F) velocity features and (N, C, 3) vectors → new ones."""
        centre, neighbour = edges[0], edges[1]
        u = bounded(u, channels=1, components=2)
        mine, theirs = u.index_select(0, centre), u.index_select(0, neighbour)
        along = directions[:, None]
        pairs = ((mine, along), (theirs, along), (mine, theirs), (theirs, theirs))
        products = [(a * b).sum(dim=-1) for a, b in pairs]
        edge = torch.cat([basis, *products], dim=-1)
        # The first radial function is positive within the cutoff, and carries its smooth end.
        envelope = basis[:, :1]
        a, b = self.norm_s(s), self.norm_g(g)
        from_s, brought_1 = self.self_attention(a, a, edge, envelope, edges)
        from_g, brought_2 = self.cross_to_velocities(a, b, edge, envelope, edges)
        to_g, brought_3 = self.cross_to_structure(b, a, edge, envelope, edges)
        along_edges, along_theirs = self.to_vectors(torch.cat([brought_1, brought_2, brought_3], dim=-1))[
            :, :, None
        ].split(self.vectors, dim=1)
        moved = sum_over_neighbours(along * along_edges + theirs * along_theirs, centre, s)
        u = u * (1.0 + self.gate(torch.cat([a, b], dim=-1))[:, :, None]) + moved
        bound = bounded(u, channels=1, components=2)
        lengths = (bound * bound).sum(dim=-1)
        s, g = s + from_s + from_g, g + to_g
        s = s + self.mlp_s(torch.cat([s, lengths], dim=-1))
        g = g + self.mlp_g(torch.cat([g, lengths], dim=-1))
        return s, g, u
