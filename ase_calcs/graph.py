"""`AtomGraph`: a batch of structures as flat tensors, the one input of every network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class AtomGraph:
    """A batch of B structures with N atoms and E directed edges in all; one structure is a batch of one.

    An edge (i, j, S) says that atom j, shifted by the lattice vector ``S @ cell``, lies within the cutoff of atom i.
    Both directions of every pair are present and edges are sorted by i.

    Attributes
    ----------
    numbers
        (N,) int64, atomic numbers.
    positions
        (N, 3), Å.
    cell
        (B, 3, 3), Å, rows are lattice vectors, zeros where there are none.
    pbc
        (B, 3), bool.
    system
        (N,) int64, which structure an atom belongs to, ascending.
    edges
        (2, E) int64, rows are the centre i and the neighbour j.
    edge_shifts
        (E, 3), lattice translations S in units of the cell vectors, of the dtype of ``positions``.
    charge
        (B,) total charge in e, of the dtype of ``positions``.
    multiplicity
        (B,) spin multiplicity 2S+1, of the dtype of ``positions``.
    """

    numbers: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    system: Tensor
    edges: Tensor
    edge_shifts: Tensor
    charge: Tensor
    multiplicity: Tensor

    @property
    def n_systems(self) -> int:
        """Number of structures B."""
        return self.charge.shape[0]

    def edge_vectors(self) -> Tensor:
        """Vectors r_ij = x_j + S·cell − x_i, shape (E, 3), Å."""
        centre, neighbour = self.edges[0], self.edges[1]
        vectors = self.positions[neighbour] - self.positions[centre]
        cell = self.cell[self.system[centre]]  # (E, 3, 3)
        return vectors + torch.einsum("es,esc->ec", self.edge_shifts, cell)

    def volumes(self) -> Tensor:
        """Cell volumes (B,), Å³; zero where there is no cell."""
        return torch.linalg.det(self.cell).abs()

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AtomGraph:
        """A copy on another device, its floating-point fields in another dtype."""
        changed = {}
        for field in fields(self):
            tensor: Tensor = getattr(self, field.name)
            changed[field.name] = tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
        return replace(self, **changed)


def batch_graphs(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """Join graphs into one; atoms, edges and structures keep their order. Raises ValueError for an empty list."""
    if not graphs:
        raise ValueError("batch_graphs needs at least one graph.")
    if len(graphs) == 1:
        return graphs[0]
    atom_offset = system_offset = 0
    system, edges = [], []
    for graph in graphs:
        system.append(graph.system + system_offset)
        edges.append(graph.edges + atom_offset)
        atom_offset += graph.numbers.shape[0]
        system_offset += graph.n_systems
    joined = {
        name: torch.cat([getattr(graph, name) for graph in graphs])
        for name in ("numbers", "positions", "cell", "pbc", "edge_shifts", "charge", "multiplicity")
    }
    return AtomGraph(system=torch.cat(system), edges=torch.cat(edges, dim=1), **joined)
