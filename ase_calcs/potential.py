"""`Potential`: the contract of every network. It returns per-atom energies; everything else is derived here, once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from .errors import StructureError
from .graph import AtomGraph

MAX_Z = len(chemical_symbols)


@dataclass(frozen=True)
class AtomicTerms:
    """What a network returns: energies (N,) in eV; optionally charges (N,) in e and atomic dipoles (N, 3) in e·Å."""

    energies: Tensor
    charges: Tensor | None = None
    dipoles: Tensor | None = None


@dataclass(frozen=True)
class PotentialOutput:
    """Predictions for a batch of B structures with N atoms in all.

    Attributes
    ----------
    energy
        (B,) float64, eV, total energies on the teacher's scale.
    energies
        (N,) float64, eV, atomic energies; they sum to ``energy``.
    forces
        (N, 3), eV/Å.
    stress
        (B, 3, 3), eV/Å³, ASE's sign (dE/dε / V); NaN for a structure without a cell volume.
    charges
        (N,) e; they sum to the total charge.
    dipole
        (B, 3) e·Å, about the origin.
    """

    energy: Tensor
    energies: Tensor
    forces: Tensor | None = None
    stress: Tensor | None = None
    charges: Tensor | None = None
    dipole: Tensor | None = None


@dataclass(frozen=True)
class ModelHeader:
    """Where a model comes from; travels in the header of its file.

    Attributes
    ----------
    teacher, teacher_version
        Name in the teacher registry, and package and version.
    dataset_hash
        `Dataset.content_hash` of the labels it was trained on.
    charges, multiplicities
        Total charges and multiplicities seen in training; others are refused by the calculator.
    metrics
        Held-out errors, e.g. ``{"test": {"force_mae": …}}`` in eV and Å.
    license
        Of the weights.
    """

    teacher: str = ""
    teacher_version: str = ""
    dataset_hash: str = ""
    charges: tuple[int, ...] = ()
    multiplicities: tuple[int, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    license: str = "unspecified"


class Potential(nn.Module, ABC):
    """Base class of all networks.

    A subclass implements `atomic_terms`. Forces and stress follow from the gradient with respect to the edge vectors,
    taken inside `forward`: with DeepSpeed ZeRO 1–2 and FSDP2 a gradient taken outside the wrapped module fails or is
    silently wrong. Atomic reference energies and the sum over atoms are kept in float64.

    Parameters
    ----------
    elements
        Atomic numbers it can handle.
    cutoff
        Å.

    Attributes
    ----------
    atomic_energies
        (S,) float64, eV: reference energy per element.
    energy_scale
        eV; the network's output of order one is multiplied by it.
    """

    architecture: ClassVar[str]
    species_of_number: Tensor  # (MAX_Z,) index of each element; −1 for one it does not know
    atomic_energies: Tensor
    energy_scale: Tensor

    def __init__(self, elements: Sequence[int], cutoff: float) -> None:
        super().__init__()
        self.elements = tuple(sorted({int(z) for z in elements}))
        self.cutoff = float(cutoff)
        self.header = ModelHeader()
        index = torch.full((MAX_Z,), -1, dtype=torch.int64)
        index[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("species_of_number", index, persistent=False)
        self.register_buffer("atomic_energies", torch.zeros(len(self.elements), dtype=torch.float64))
        self.register_buffer("energy_scale", torch.ones(()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Potential:
        # `.to(float32)` must not round the reference energies: a total energy of 10⁴ eV would lose 1 meV.
        exact = self.atomic_energies
        super()._apply(fn, recurse)
        if self.atomic_energies.dtype != torch.float64:
            self.atomic_energies = exact.to(self.atomic_energies.device)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network."""
        return self.energy_scale.dtype

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.energy_scale.device

    @property
    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments (JSON types) that build this network again, besides ``elements``."""

    @abstractmethod
    def atomic_terms(
        self, species: Tensor, edges: Tensor, vectors: Tensor, charge: Tensor, multiplicity: Tensor
    ) -> AtomicTerms:
        """The network.

        Parameters
        ----------
        species
            (N,) int64, index into `elements`.
        edges
            (2, E) int64, centre and neighbour.
        vectors
            (E, 3), Å, from centre to neighbour.
        charge, multiplicity
            (N,), of the structure each atom belongs to.
        """

    def species(self, numbers: Tensor) -> Tensor:
        """(N,) atomic numbers → (N,) species index. Raises StructureError for an element it has not been trained on."""
        species = self.species_of_number[numbers]
        if bool((species < 0).any()):
            unknown = sorted({chemical_symbols[int(z)] for z in numbers[species < 0]})
            known = ", ".join(chemical_symbols[z] for z in self.elements)
            raise StructureError(
                f"This model has not been trained on {', '.join(unknown)}. It knows {known}. "
                "Train it on structures that contain the missing element, or use another model."
            )
        return species

    def forward(self, graph: AtomGraph, properties: Sequence[str] = ("energy", "forces")) -> PotentialOutput:
        """Predict.

        Parameters
        ----------
        graph
            On the device and of the dtype of the model.
        properties
            Any of ``energy forces stress charges dipole``; energy and atomic energies always come.

        Under `torch.no_grad` everything comes back detached; with gradients enabled the forces can be differentiated
        again (for a force loss, or for Hessians when ``graph.positions`` requires a gradient).
        """
        species = self.species(graph.numbers)
        differentiable = torch.is_grad_enabled()
        derivatives = "forces" in properties or "stress" in properties
        with torch.set_grad_enabled(differentiable or derivatives):
            vectors = graph.edge_vectors()
            if derivatives and not vectors.requires_grad:
                vectors.requires_grad_()
            output, gradient = self.predict(
                species,
                graph.system,
                graph.edges,
                vectors,
                graph.charge,
                graph.multiplicity,
                derivatives=derivatives,
                create_graph=differentiable,
            )
            forces = stress = charges = dipole = None
            if gradient is not None and "forces" in properties:
                forces = edge_forces(gradient, graph.edges, graph.positions)
            if gradient is not None and "stress" in properties:
                stress = edge_stress(gradient, vectors, graph)
            if output.charges is not None:
                charges = conserve_charge(output.charges, graph)
                dipole = molecular_dipole(charges, output.dipoles, graph)
        energies = output.energies
        energy = energies.new_zeros(graph.n_systems).index_add(0, graph.system, energies)
        result = PotentialOutput(energy, energies, forces, stress, charges, dipole)
        return result if differentiable else _detached(result)

    def predict(
        self,
        species: Tensor,
        system: Tensor,
        edges: Tensor,
        vectors: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
        *,
        derivatives: bool,
        create_graph: bool,
    ) -> tuple[AtomicTerms, Tensor | None]:
        """Atomic terms (energies in float64 with references) and dE/d(edge vectors) (E, 3) in eV/Å.

        Free of Python sizes, so that it can be traced with dynamic shapes.
        """
        terms = self.atomic_terms(species, edges, vectors, charge[system], multiplicity[system])
        scaled = terms.energies * self.energy_scale
        gradient = None
        if derivatives:
            (gradient,) = torch.autograd.grad(scaled.sum(), vectors, create_graph=create_graph)
        energies = scaled.double() + self.atomic_energies[species]
        return AtomicTerms(energies, terms.charges, terms.dipoles), gradient


def edge_forces(gradient: Tensor, edges: Tensor, positions: Tensor) -> Tensor:
    """Forces (N, 3) from dE/dr_ij (E, 3): r_ij = x_j − x_i pulls i along the gradient and j against it."""
    centre, neighbour = edges[0], edges[1]
    zeros = torch.zeros_like(positions)
    return zeros.index_add(0, centre, gradient).index_add(0, neighbour, -gradient)


def edge_stress(gradient: Tensor, vectors: Tensor, graph: AtomGraph, volumes: Tensor | None = None) -> Tensor:
    """Stress (B, 3, 3), eV/Å³: a homogeneous strain ε moves r_ij by ε·r_ij, so dE/dε = Σ r_ij ⊗ dE/dr_ij.

    `volumes` (B,) in Å³ are those of the cells unless given. The sum is symmetric for a rotation-invariant energy; it
    is symmetrised against rounding.
    """
    virial = vectors[:, :, None] * gradient[:, None, :]  # (E, 3, 3)
    system = graph.system[graph.edges[0]]
    total = virial.new_zeros(graph.n_systems, 3, 3).index_add(0, system, virial)
    total = 0.5 * (total + total.transpose(1, 2))
    volumes = graph.volumes() if volumes is None else volumes
    return total / torch.where(volumes > 0, volumes, torch.nan)[:, None, None]


def conserve_charge(charges: Tensor, graph: AtomGraph) -> Tensor:
    """Spread what is missing to the total charge evenly over the atoms of each structure."""
    total = charges.new_zeros(graph.n_systems).index_add(0, graph.system, charges)
    atoms = charges.new_zeros(graph.n_systems).index_add(0, graph.system, torch.ones_like(charges))
    return charges + ((graph.charge - total) / atoms)[graph.system]


def molecular_dipole(charges: Tensor, dipoles: Tensor | None, graph: AtomGraph) -> Tensor:
    """Dipole (B, 3), e·Å, about the origin: Σ q x plus atomic dipoles."""
    atomic = charges[:, None] * graph.positions
    if dipoles is not None:
        atomic = atomic + dipoles
    return atomic.new_zeros(graph.n_systems, 3).index_add(0, graph.system, atomic)


def _detached(output: PotentialOutput) -> PotentialOutput:
    optional = (output.forces, output.stress, output.charges, output.dipole)
    return PotentialOutput(
        output.energy.detach(), output.energies.detach(), *(None if t is None else t.detach() for t in optional)
    )
