"""Tasks: what a batch means. A task is a module whose forward returns a loss; the loop and the engines know no more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..ase_calcs.graph import AtomGraph
from ..ase_calcs.potential import Potential, conserve_charge, edge_forces, edge_stress, molecular_dipole
from .batches import Batch, FrameTable, SharedTable
from .config import LossConfig
from .losses import angle_mask, cosine, penalty
from .metrics import INDEX, SUMS, figures, pack


class TaskBatch(Protocol):
    """A batch of whatever a task learns from."""

    def tensors(self) -> dict[str, Tensor]:
        """Its fields, in a fixed order."""
        ...

    def to(self, device: torch.device | str) -> TaskBatch:
        """A copy on another device."""
        ...


class TaskTable(Protocol):
    """Examples in memory."""

    @property
    def edge_counts(self) -> Any:
        """(F,) edges of each."""
        ...

    def __len__(self) -> int: ...

    def begin_epoch(self, epoch: int) -> None:
        """For examples that are drawn at random: these are those of another epoch."""
        ...

    def batch(self, chosen: Any) -> TaskBatch:
        """Collate some of them."""
        ...


class Task(nn.Module, ABC):
    """What the loop and the engines know of a task.

    `forward(tensors, counts)` returns the loss, to be differentiated, and the sums of a batch, detached.
    """

    sum_names: ClassVar[tuple[str, ...]]  # order of the sums; one is "loss"
    compilable: ClassVar[bool] = False  # whether `compiled.CompiledStep` can trace it

    @property
    @abstractmethod
    def network(self) -> Any:
        """What is trained; has a ``device``."""

    @abstractmethod
    def counts(self, batch: Any) -> Tensor:
        """(len(sum_names),) float64: over how many examples the terms of the loss are means."""

    def counts_of_frames(self, table: Any) -> Tensor | None:
        """(F, len(sum_names)) float64: `counts` of every frame of a table, or None where they change from time to time.

        With them no process need ask the others before a step.
        """
        return None

    @abstractmethod
    def figures(self, sums: Tensor) -> dict[str, float]:
        """Errors that people read, from sums over a whole set."""

    @abstractmethod
    def headline(self, found: dict[str, float]) -> str:
        """The figure beside the progress bar."""


class PotentialTask(Task):
    """Learn energies and forces (and stress, charges, dipoles) of labelled structures.

    Forces are computed inside `forward`, which is what DDP and DeepSpeed wrap.
    """

    sum_names = SUMS
    compilable = True

    def __init__(self, potential: Potential, loss: LossConfig, *, precision: str = "full") -> None:
        super().__init__()
        self.potential = potential
        self.loss = loss
        self.precision = precision

    @property
    def network(self) -> Potential:
        """See `Task`."""
        return self.potential

    def figures(self, sums: Tensor) -> dict[str, float]:
        """See `metrics.figures`."""
        return figures(sums)

    def headline(self, found: dict[str, float]) -> str:
        """See `Task`."""
        return f"forces {1e3 * found['force_mae']:.1f} meV/Å"

    def labels(self) -> tuple[str, ...]:
        """Labels a batch must carry besides energies and forces."""
        return tuple(name for name in ("stress", "charges", "dipole") if getattr(self.loss, name) > 0)

    def counts(self, batch: Batch) -> Tensor:
        """(len(SUMS),) float64: how many structures, atoms, … the terms of the loss are means over."""
        values = {
            "structures": torch.tensor(float(batch.energy.shape[0])),
            "atoms": torch.tensor(float(batch.numbers.shape[0])),
            "angle_atoms": angle_mask(batch.forces, self.loss.angle_threshold).sum(),
        }
        if batch.stress is not None:
            values["stress_structures"] = torch.isfinite(batch.stress).all(dim=(1, 2)).sum()
        return pack(values)

    def counts_of_frames(self, table: FrameTable | SharedTable) -> Tensor:
        """See `Task`."""

        def per_frame(batch: Batch) -> Tensor:
            atoms = torch.stack(
                [torch.ones(len(batch.numbers)), angle_mask(batch.forces, self.loss.angle_threshold).float()]
            )
            by_frame = torch.zeros(2, len(batch.energy)).index_add(1, batch.system, atoms)
            values = {"structures": torch.ones(len(batch.energy)), "atoms": by_frame[0], "angle_atoms": by_frame[1]}
            if batch.stress is not None:
                values["stress_structures"] = torch.isfinite(batch.stress).all(dim=(1, 2))
            found = torch.zeros(len(batch.energy), len(SUMS), dtype=torch.float64)
            for name, value in values.items():
                found[:, INDEX[name]] = value.double()
            return found

        return table.over_frames(per_frame, len(SUMS))

    def forward(self, tensors: dict[str, Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and sums of one batch.

        Parameters
        ----------
        tensors
            `Batch.tensors()`.
        counts
            `counts` summed over all batches of the step; the loss of a step is the sum over its batches.

        Returns
        -------
        loss
            Scalar, to be differentiated.
        sums
            (len(SUMS),) float64, detached: see `metrics.SUMS`.
        """
        batch = Batch(**tensors)
        species = self.potential.species_of_number[batch.numbers]
        with torch.enable_grad():
            vectors = batch.vectors.detach().requires_grad_()
            with torch.autocast(vectors.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                terms, gradient = self.potential.predict(
                    species, batch.system, batch.edges, vectors, batch.charge, batch.multiplicity,
                    derivatives=True, create_graph=self.training,
                )  # fmt: skip
            if gradient is None:
                raise RuntimeError("a potential that has no derivatives cannot be trained on forces")
            return self._terms(batch, vectors, terms, gradient, counts)

    def _terms(
        self, batch: Batch, vectors: Tensor, terms: Any, gradient: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, sums = self.loss, {}
        n_atoms = torch.zeros_like(batch.charge).index_add(0, batch.system, torch.ones_like(batch.positions[:, 0]))
        energy = torch.zeros_like(batch.energy).index_add(0, batch.system, terms.energies)
        forces = edge_forces(gradient, batch.edges, batch.positions)
        # The difference of two large numbers is taken in float64; what is left fits into the network's precision.
        energy_error = (energy - batch.energy).to(forces.dtype)
        force_error = forces - batch.forces
        per_atom = energy_error / n_atoms

        def mean(values: Tensor, count: str) -> Tensor:
            return values.sum() / counts[INDEX[count]].clamp(min=1).to(values.dtype)

        total = loss.forces * mean(penalty(force_error, loss), "atoms")
        total = total + loss.energy * mean(penalty(per_atom[:, None], loss), "structures")
        mask = angle_mask(batch.forces, loss.angle_threshold)
        cos = cosine(forces, batch.forces)
        if loss.angle > 0:
            total = total + loss.angle * mean(mask * (1.0 - cos), "angle_atoms")
        if batch.stress is not None:
            extra, sums["stress_structures"], sums["stress_abs"] = self._stress(batch, vectors, gradient, mean)
            total = total + loss.stress * extra
        if terms.charges is not None and (batch.charges is not None or batch.dipole is not None):
            extra, found = self._charges(batch, terms, mean)
            total = total + extra
            sums |= found
        sums |= {
            "structures": torch.ones_like(batch.charge).sum(),
            "atoms": n_atoms.sum(),
            "angle_atoms": mask.sum(),
            "loss": total,
            "energy_abs": energy_error.abs().sum(),
            "energy_per_atom_abs": per_atom.abs().sum(),
            "energy_per_atom_sq": (per_atom * per_atom).sum(),
            "force_abs": force_error.abs().sum(),
            "force_sq": (force_error * force_error).sum(),
            "angle_deg": (mask * torch.rad2deg(torch.acos(cos.detach().clamp(-1.0, 1.0)))).sum(),
        }
        return total, pack(sums)

    def _stress(self, batch: Batch, vectors: Tensor, gradient: Tensor, mean: Any) -> tuple[Tensor, Tensor, Tensor]:
        if batch.stress is None:
            raise RuntimeError("no stress labels")
        labelled = torch.isfinite(batch.stress).all(dim=(1, 2))[:, None, None]
        error = edge_stress(gradient, vectors, _graph(batch), volumes=batch.volume) - batch.stress
        # Molecules among periodic frames have neither a volume nor a label.
        error = torch.where(labelled, error, torch.zeros_like(error))
        penalties = penalty(error.flatten(1), self.loss) * labelled[:, 0, 0]
        return mean(penalties, "stress_structures"), labelled.sum(), error.abs().sum()

    def _charges(self, batch: Batch, terms: Any, mean: Any) -> tuple[Tensor, dict[str, Tensor]]:
        graph = _graph(batch)
        charges = conserve_charge(terms.charges, graph)
        total = charges.new_zeros(())
        sums: dict[str, Tensor] = {}
        if batch.charges is not None:
            error = charges - batch.charges
            total = total + self.loss.charges * mean(penalty(error[:, None], self.loss), "atoms")
            sums["charge_abs"] = error.abs().sum()
        if batch.dipole is not None:
            error = molecular_dipole(charges, terms.dipoles, graph) - batch.dipole
            total = total + self.loss.dipole * mean(penalty(error, self.loss), "structures")
            sums["dipole_abs"] = error.abs().sum()
        return total, sums


def _graph(batch: Batch) -> AtomGraph:
    """The part of a graph that charges and stress need; shifts are in the vectors already."""
    empty = batch.vectors.new_zeros((0, 3))
    return AtomGraph(
        numbers=batch.numbers,
        positions=batch.positions,
        cell=empty,
        pbc=empty,
        system=batch.system,
        edges=batch.edges,
        edge_shifts=empty,
        charge=batch.charge,
        multiplicity=batch.multiplicity,
    )
