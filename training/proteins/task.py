"""The task of a network on beads: the forces that the prior leaves.

Edges are found when a batch is made: a frame of N beads has N² pairs, which are cheaper to look at again than to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ase_calcs.potential import Potential, edge_forces
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.prior import Prior, PriorTopology
from ...datasets.proteins.beads import TOLERANCE, BeadFrames
from ..task import Task
from .config import BeadLossConfig

SUMS = ("frames", "weight", "loss", "square", "target_square", "product", "network_square", "components")
INDEX = {name: k for k, name in enumerate(SUMS)}
_AT_ONCE = 500
_PRESSED = 0.3  # of the shortest distance, at most, that decoys go below it
_NEAR_PAIRS = 10  # that two beads to press together are drawn from
_STEP = 0.1  # Å, root mean square displacement on a coordinate by which smoothness is measured
_UNIFORM = 12**-0.5  # standard deviation of numbers spread evenly over one
_GOLDEN = 1e3 * 0.6180339887


@dataclass(frozen=True)
class BeadBatch:
    """B configurations with N beads and E edges in all.

    Attributes
    ----------
    numbers, system, edges
        As in `AtomGraph`.
    positions
        (N, 3) Å.
    forces
        (N, 3) eV/Å, what the network shall give: the mapped forces less the prior's.
    weight
        (N,) of each bead's error.
    real
        (N,) 1 for a frame, 0 for a decoy.
    ratio
        (B,) T/T₀ − 1 of the frame's temperature.
    n_frames
        () how many configurations.
    """

    numbers: Tensor
    system: Tensor
    edges: Tensor
    positions: Tensor
    forces: Tensor
    weight: Tensor
    real: Tensor
    ratio: Tensor
    n_frames: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> BeadBatch:
        """A copy on another device."""
        return BeadBatch(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


def closest(positions: np.ndarray) -> float:
    """Å, the shortest distance in (T, B, 3) between beads that are not bonded."""
    i, j = np.triu_indices(positions.shape[1], 2)
    if not len(i) or not len(positions):
        return np.inf
    return float(
        min(
            np.linalg.norm(x[:, i] - x[:, j], axis=-1).min()
            for x in np.array_split(positions, 1 + len(positions) // _AT_ONCE)
        )
    )


def pressed_together(positions: np.ndarray, least: float, rng: np.random.Generator) -> np.ndarray:
    """(T, B, 3) with two beads of each, one of the nearer pairs, moved along the line between them until they are
    closer than any frame has them: less than `least` (Å) apart, by up to `_PRESSED`.

    Nothing else tells a network that its forces may not pull beads together that the data keep apart.
    """
    made = positions.copy()
    i, j = np.triu_indices(positions.shape[1], 2)
    if not len(i):
        return made
    for x in made:
        distance = np.linalg.norm(x[i] - x[j], axis=-1)
        near = rng.choice(np.argsort(distance)[:_NEAR_PAIRS])
        a, b = i[near], j[near]
        step = 0.5 * (1 - least * (1 - _PRESSED * rng.random()) / distance[near]) * (x[b] - x[a])
        x[a], x[b] = x[a] + step, x[b] - step
    return made


def leftover(prior: Prior, protein: BeadFrames) -> np.ndarray:
    """(T, B, 3) eV/Å: the mapped forces less those of the prior."""
    topology = PriorTopology.of(Chains.from_sequence(protein.sequence))
    found = [protein.forces[:0]]
    with torch.no_grad():
        for first in range(0, len(protein.positions), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            known = prior(torch.as_tensor(protein.positions[part]), topology).forces.numpy()
            found.append(protein.forces[part] - known)
    return np.concatenate(found)


def mean_force_weights(errors: np.ndarray, loss: BeadLossConfig) -> np.ndarray:
    """How many single frames a mean force is worth, by the variances of both.

    A mean of 40 ps has not seen what turns more slowly than that, so none counts for more than `most_frames`.
    """
    return np.minimum((loss.frame_noise / np.maximum(errors, 1e-9)) ** 2, loss.most_frames)


class BeadTable:
    """Frames and decoys in memory.

    Parameters
    ----------
    prior
        Whose forces are taken off.
    proteins
        Frames.
    cutoff
        Å.
    loss
        How many decoys, and how they count.
    dtype
        Of positions and forces.
    seed
        Of the decoys.
    temperature
        K, T₀. Frames of another temperature T count T₀/T as much: so much larger is the variance of their noise.
    """

    def __init__(
        self,
        prior: Prior,
        proteins: Sequence[BeadFrames],
        *,
        cutoff: float,
        loss: BeadLossConfig,
        dtype: torch.dtype,
        seed: int,
        temperature: float = 300.0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.cutoff, self.dtype = cutoff, dtype
        self._numbers = [torch.as_tensor(p.types + 1) for p in proteins]
        self._positions, self._forces, self._weights, self._real = [], [], [], []
        self._ratios = []
        protein_of, row_of = [], []
        for k, p in enumerate(proteins):
            n = len(p.positions)
            chosen = rng.choice(n, round(loss.decoys * n), replace=False)
            half = len(chosen) // 2
            moved = p.positions[chosen] + rng.normal(0, loss.decoy_noise, p.positions[chosen].shape)
            moved[:half] = pressed_together(p.positions[chosen[:half]], closest(p.positions), rng)
            positions = np.concatenate([p.positions, moved])
            forces = np.concatenate([leftover(prior, p), np.zeros_like(moved)])
            kelvin = np.where(np.isnan(p.temperatures), temperature, p.temperatures)
            kelvin = np.where(np.abs(kelvin - temperature) < TOLERANCE, temperature, kelvin)
            weight = temperature / kelvin
            ratio = np.concatenate([kelvin, kelvin[chosen]]) / temperature - 1
            self._ratios.append(torch.as_tensor(ratio).to(dtype))
            if p.errors is not None:
                weight = weight * mean_force_weights(p.errors, loss)
            self._positions.append(torch.as_tensor(positions).to(dtype))
            self._forces.append(torch.as_tensor(forces).to(dtype))
            decoys = np.full(len(chosen), loss.decoy_weight)
            self._weights.append(torch.as_tensor(np.concatenate([weight, decoys])).to(dtype))
            self._real.append(torch.arange(len(positions)) < n)
            protein_of.append(np.full(len(positions), k))
            row_of.append(np.arange(len(positions)))
        self._protein, self._row = np.concatenate(protein_of), np.concatenate(row_of)
        self.edge_counts = np.concatenate([self._counts(x) for x in self._positions])

    def __len__(self) -> int:
        return len(self._protein)

    def begin_epoch(self, epoch: int) -> None:
        """Frames are the same in all."""

    def mean_neighbors(self) -> float:
        """Neighbours of a bead within the cutoff, over all configurations."""
        beads = np.array([x.shape[1] for x in self._positions])[self._protein]
        return float(self.edge_counts.sum() / beads.sum())

    def force_scale(self) -> float:
        """Root mean square of the forces of frames, eV/Å per component."""
        parts = [f[r].double().square() for f, r in zip(self._forces, self._real, strict=True)]
        return float(np.sqrt(sum(float(p.sum()) for p in parts) / sum(p.numel() for p in parts)))

    def _near(self, x: Tensor) -> Tensor:
        """(T, N, N) whether two beads are neighbours."""
        near = torch.cdist(x.double(), x.double()) < self.cutoff
        near.diagonal(dim1=1, dim2=2).fill_(False)
        return near

    def _counts(self, x: Tensor) -> np.ndarray:
        return np.concatenate([self._near(part).sum((1, 2)).numpy() for part in x.split(_AT_ONCE)])

    def batch(self, chosen: Sequence[int] | np.ndarray) -> BeadBatch:
        """Collate some of them, those of one protein together."""
        chosen = np.asarray(chosen)
        columns: dict[str, list[Tensor]] = {field.name: [] for field in fields(BeadBatch)}
        first_bead = first_system = 0
        for k in np.unique(self._protein[chosen]):
            rows = torch.as_tensor(self._row[chosen[self._protein[chosen] == k]])
            x = self._positions[k][rows]
            n_frames, n = x.shape[:2]
            which, i, j = self._near(x).nonzero(as_tuple=True)
            start = first_bead + which * n
            columns["edges"].append(torch.stack([start + i, start + j]))
            columns["numbers"].append(self._numbers[k].repeat(n_frames))
            columns["system"].append(first_system + torch.arange(n_frames).repeat_interleave(n))
            columns["positions"].append(x.reshape(-1, 3))
            columns["forces"].append(self._forces[k][rows].reshape(-1, 3))
            columns["weight"].append(self._weights[k][rows].repeat_interleave(n))
            columns["real"].append(self._real[k][rows].to(self.dtype).repeat_interleave(n))
            columns["ratio"].append(self._ratios[k][rows])
            first_bead, first_system = first_bead + n_frames * n, first_system + n_frames
        joined = {name: torch.cat(parts, dim=-1 if name == "edges" else 0) for name, parts in columns.items() if parts}
        return BeadBatch(**joined, n_frames=torch.tensor(float(first_system)))


def displacements(positions: Tensor) -> Tensor:
    """(N, 3) Å, spread evenly about zero with a standard deviation of `_STEP`.

    They follow from the positions, so that a training that is resumed has the same ones: the digits of golden-ratio
    multiples of the coordinates.
    """
    return (torch.frac((positions * _GOLDEN).abs()) - 0.5) * (_STEP / _UNIFORM)


class BeadTask(Task):
    """Weighted force matching."""

    sum_names = SUMS

    def __init__(self, potential: Potential, loss: BeadLossConfig) -> None:
        super().__init__()
        self.potential = potential
        self.loss = loss

    @property
    def network(self) -> Potential:
        """See `Task`."""
        return self.potential

    def counts(self, batch: BeadBatch) -> Tensor:
        """See `Task`."""
        found = torch.zeros(len(SUMS), dtype=torch.float64)
        found[INDEX["weight"]] = batch.weight.double().sum()
        found[INDEX["frames"]] = batch.n_frames.double()
        return found

    def forward(self, tensors: dict[str, Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and sums of one batch; see `PotentialTask.forward`."""
        batch = BeadBatch(**tensors)
        species = self.potential.species_of_number[batch.numbers]
        with torch.enable_grad():
            forces = self._forces(batch, species, batch.positions)
            error = (forces - batch.forces).square().sum(-1)
            own = forces.square().sum(-1)
            total = (batch.weight * (error + self.loss.magnitude * own)).sum()
            if self.training and self.loss.smoothness:
                total = total + self.loss.smoothness * self._roughness(batch, species, forces)
            total = total / counts[INDEX["weight"]].clamp(min=1e-12).to(total.dtype)
        found = forces.detach()
        values = {
            "frames": batch.n_frames,
            "weight": batch.weight.sum(),
            "loss": total,
            "square": (batch.real * error).sum(),
            "target_square": (batch.real[:, None] * batch.forces.square()).sum(),
            "product": (batch.real[:, None] * batch.forces * found).sum(),
            "network_square": (batch.real[:, None] * found.square()).sum(),
            "components": 3 * batch.real.sum(),
        }
        return total, torch.stack([values[name].detach().double() for name in SUMS])

    def _forces(self, batch: BeadBatch, species: Tensor, positions: Tensor) -> Tensor:
        """(N, 3) of the network, on the edges of the batch."""
        vectors = positions[batch.edges[1]] - positions[batch.edges[0]]
        vectors = vectors.detach().requires_grad_()
        _, gradient = self.potential.predict(
            species, batch.system, batch.edges, vectors, batch.ratio, torch.ones_like(batch.ratio),
            derivatives=True, create_graph=self.training,
        )  # fmt: skip
        if gradient is None:
            raise RuntimeError("a potential that has no derivatives cannot be trained on forces")
        return edge_forces(gradient, batch.edges, positions)

    def _roughness(self, batch: BeadBatch, species: Tensor, forces: Tensor) -> Tensor:
        """Σ over beads of weight · |F(x + δ) − F(x)|²/δ², eV²/Å⁴."""
        moved = self._forces(batch, species, batch.positions + displacements(batch.positions))
        return (batch.weight * (moved - forces).square().sum(-1)).sum() / (3 * _STEP**2)

    def figures(self, sums: Tensor) -> dict[str, float]:
        """Of frames, not of decoys: errors in eV/Å per component beside those of a network of zero."""
        s = dict(zip(SUMS, sums.tolist(), strict=True))
        n = max(s["components"], 1.0)
        return {
            "force_rmse": float(np.sqrt(s["square"] / n)),
            "zero_rmse": float(np.sqrt(s["target_square"] / n)),
            "explained": 1 - s["square"] / max(s["target_square"], 1e-300),
            "network_rms": float(np.sqrt(s["network_square"] / n)),
            # 1 where the network's forces are as large as the data support.
            "slope": s["product"] / max(s["network_square"], 1e-300),
        }

    def headline(self, found: dict[str, Any]) -> str:
        """See `Task`."""
        return f"{100 * found['explained']:.2f} % of what the prior leaves"
