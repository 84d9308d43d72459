"""Jump networks as tasks of the common loop."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from ...ase_calcs.jumps import JumpNetwork
from ..losses import TINY
from ..metrics import mean
from ..task import Task
from .config import JumpLossConfig
from .tables import JumpBatch
from .topology import angle_vectors, dihedral_vectors, lengths

SUMS = (
    "structures",
    "atoms",
    "force_atoms",
    "bonds",
    "angles",
    "dihedrals",
    "loss",
    "displacement_sq",  # Σ |Δx error|², Å²
    "velocity_sq",  # Σ |Δv error|², Å²/fs²
    "free_displacement_sq",  # the same for atoms that go on at their velocity: what a network has to beat
    "free_velocity_sq",
    "bond_abs",  # Å
    "force_abs",  # Σ over components, eV/Å
)
# Penalties on the structure after the jump: unit (Å; radians, for small differences) and how it is computed.
TERMS = {"bonds": (0.02, lengths), "angles": (0.05, angle_vectors), "dihedrals": (0.1, dihedral_vectors)}
INDEX = {name: k for k, name in enumerate(SUMS)}


class JumpTask(Task):
    """Learn displacements and velocity changes of windows.

    Terms are means over atoms (bonds, …) of all batches of a step, in units of the spread of the training set.
    """

    sum_names = SUMS

    def __init__(self, jump: JumpNetwork, loss: JumpLossConfig) -> None:
        super().__init__()
        self.jump = jump
        self.loss = loss

    @property
    def network(self) -> JumpNetwork:
        """See `Task`."""
        return self.jump

    def counts(self, batch: JumpBatch) -> Tensor:
        """See `Task`."""
        found = torch.zeros(len(SUMS), dtype=torch.float64)
        found[INDEX["structures"]] = batch.interval.shape[0]
        found[INDEX["atoms"]] = batch.numbers.shape[0]
        found[INDEX["force_atoms"]] = float(torch.isfinite(batch.forces[:, 0]).sum())
        for name in ("bonds", "angles", "dihedrals"):
            found[INDEX[name]] = getattr(batch, name).shape[1]
        return found

    def forward(self, tensors: dict[str, Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        batch = JumpBatch(**tensors)
        network, time = self.jump, batch.interval[batch.system][:, None]
        predicted = network(batch.graph)
        species = network.species_of_number[batch.numbers]
        dx = predicted.displacement - batch.displacement
        dv = predicted.velocity_change - batch.velocity_change
        share = time / network.longest
        x_unit = time * share * network.mean_velocity_scale.to(dx.dtype)[species][:, None]
        v_unit = time * network.acceleration_scale.to(dx.dtype)[species][:, None]
        total = self.loss.displacement * self._mean(dx / x_unit, counts, "atoms")
        total = total + self.loss.velocity * self._mean(dv / v_unit, counts, "atoms")
        sums: dict[str, Tensor] = {
            "displacement_sq": (dx * dx).sum(),
            "velocity_sq": (dv * dv).sum(),
            "free_displacement_sq": ((batch.displacement - time * batch.velocities) ** 2).sum(),
            "free_velocity_sq": (batch.velocity_change**2).sum(),
        }
        total, sums["bond_abs"] = self._structure(total, batch, predicted.displacement, counts)
        if predicted.forces is not None:
            known = torch.isfinite(batch.forces)
            error = torch.where(known, predicted.forces - batch.forces, torch.zeros_like(dx))
            scale = network.force_scale.to(dx.dtype)[species][:, None]
            total = total + self.loss.forces * self._mean((error / scale)[known[:, 0]], counts, "force_atoms")
            sums["force_abs"] = error.abs().sum()
        return total, self._pack(sums | {"loss": total}, batch)

    def _structure(
        self, total: Tensor, batch: JumpBatch, displacement: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        after, true = batch.positions + displacement, batch.positions + batch.displacement
        bond = lengths(after, batch.bonds) - lengths(true, batch.bonds)
        for name, (unit, values) in TERMS.items():
            weight, indices = getattr(self.loss, name), getattr(batch, name)
            if weight > 0:
                error = (values(after, indices) - values(true, indices)) / unit
                total = total + weight * self._mean(error, counts, name)
        return total, bond.abs().sum()

    def _mean(self, error: Tensor, counts: Tensor, name: str) -> Tensor:
        squared = (error * error).sum(dim=-1)
        values = squared if self.loss.kind == "mse" else torch.sqrt(squared + TINY)
        return values.sum() / counts[INDEX[name]].clamp(min=1).to(values.dtype)

    def _pack(self, sums: dict[str, Tensor], batch: JumpBatch) -> Tensor:
        packed = self.counts(batch).to(batch.positions.device)
        for name, value in sums.items():
            packed[INDEX[name]] = value.detach().double()
        return packed

    def figures(self, sums: Tensor) -> dict[str, float]:
        """Root mean square errors in Å and Å/fs, and as shares of what free flight leaves unexplained."""
        s = dict(zip(SUMS, sums.tolist(), strict=True))
        found = {
            "displacement_rmse": math.sqrt(mean(s["displacement_sq"], 3 * s["atoms"])),
            "velocity_rmse": math.sqrt(mean(s["velocity_sq"], 3 * s["atoms"])),
            "displacement_share": math.sqrt(mean(s["displacement_sq"], s["free_displacement_sq"])),
            "velocity_share": math.sqrt(mean(s["velocity_sq"], s["free_velocity_sq"])),
            "bond_mae": mean(s["bond_abs"], s["bonds"]),
        }
        if self.jump.force_head and s["force_atoms"]:
            found["force_mae"] = s["force_abs"] / (3 * s["force_atoms"])
        return found

    def headline(self, found: dict[str, float]) -> str:
        """See `Task`."""
        return f"Δx {1e3 * found['displacement_rmse']:.2f} mÅ, Δv {100 * found['velocity_share']:.0f} % unexplained"


class FlowTask(JumpTask):
    """Mean-flow consistency: learn jumps from positions and forces, without trajectories.

    Source: *Hamiltonian flow maps*, arXiv 2601.22123. With the end of a jump held fixed, its displacement t·ū(x, v, t)
    shrinks by v dt as the start moves along the flow, so

        ū = v + t dū/dt,   ā = F/m + t dā/dt,   d/dt = v·∂_x + (F/m)·∂_v − ∂_t.

    The right side, with the derivative from forward-mode differentiation and no gradient of its own, is the target.
    Figures are what the two sides differ by, and no errors against a trajectory.
    """

    def headline(self, found: dict[str, float]) -> str:
        """See `Task`."""
        return f"flow identity off by {100 * found['velocity_share']:.0f} % of the accelerations"

    def forward(self, tensors: dict[str, Tensor], counts: Tensor) -> tuple[Tensor, Tensor]:
        """See `Task`."""
        batch = JumpBatch(**tensors)
        network, graph = self.jump, batch.graph
        time = batch.interval[batch.system][:, None]
        acceleration = batch.velocity_change

        def rates(x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            moved = type(graph)(**graph.tensors() | {"positions": x, "velocities": v, "interval": t})
            velocity, acceleration, _ = network.rates(moved)
            return velocity, acceleration

        start = (batch.positions, batch.velocities, batch.interval)
        with torch.no_grad():
            tangents = (batch.velocities, acceleration, -torch.ones_like(batch.interval))
            derivatives: tuple[Tensor, Tensor] = jvp(rates, start, tangents)[1]
            du, da = derivatives
        velocity, mean_acceleration, forces = network.rates(graph)
        u_error = velocity - (batch.velocities + time * du)
        a_error = mean_acceleration - (acceleration + time * da)
        species = network.species_of_number[batch.numbers]
        u_unit = network.mean_velocity_scale.to(u_error.dtype)[species][:, None]
        a_unit = network.acceleration_scale.to(u_error.dtype)[species][:, None]
        total = self.loss.displacement * self._mean(u_error / u_unit, counts, "atoms")
        total = total + self.loss.velocity * self._mean(a_error / a_unit, counts, "atoms")
        sums: dict[str, Any] = {
            "displacement_sq": ((time * u_error) ** 2).sum(),
            "velocity_sq": (a_error**2).sum(),
            "free_displacement_sq": (time * time * u_unit**2).sum() * 3.0,
            "free_velocity_sq": (acceleration**2).sum(),
        }
        if forces is not None:
            error = forces - batch.forces
            scale = network.force_scale.to(error.dtype)[species][:, None]
            total = total + self.loss.forces * self._mean(error / scale, counts, "force_atoms")
            sums["force_abs"] = error.abs().sum()
        return total, self._pack(sums | {"loss": total}, batch)
