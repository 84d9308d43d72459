"""Errors as exact global sums and counts, and the figures people read made from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Order of the entries in the vectors of sums that a task returns.
SUMS = (
    "structures",
    "atoms",
    "angle_atoms",
    "loss",
    "energy_abs",  # Σ |ΔE|, eV
    "energy_per_atom_abs",  # Σ |ΔE|/n
    "energy_per_atom_sq",
    "force_abs",  # Σ |ΔF| over components
    "force_sq",
    "angle_deg",  # Σ θ over atoms above the threshold
    "stress_structures",
    "stress_abs",  # Σ |Δσ| over nine components
    "charge_abs",
    "dipole_abs",  # Σ |Δμ| over components
)
INDEX = {name: k for k, name in enumerate(SUMS)}


def pack(values: dict[str, Tensor]) -> Tensor:
    """Named sums → (len(SUMS),) float64, zeros for those not given."""
    some = next(iter(values.values()))
    zero = torch.zeros((), dtype=torch.float64, device=some.device)
    return torch.stack([values[name].detach().double() if name in values else zero for name in SUMS])


def figures(sums: Tensor) -> dict[str, float]:
    """Mean errors in eV and Å from a vector of sums over a whole set; the loss is left to the caller."""
    s = dict(zip(SUMS, sums.tolist(), strict=True))
    result = {
        "energy_mae": mean(s["energy_abs"], s["structures"]),
        "energy_mae_per_atom": mean(s["energy_per_atom_abs"], s["structures"]),
        "energy_rmse_per_atom": math.sqrt(mean(s["energy_per_atom_sq"], s["structures"])),
        "force_mae": mean(s["force_abs"], 3 * s["atoms"]),
        "force_rmse": math.sqrt(mean(s["force_sq"], 3 * s["atoms"])),
    }
    if s["angle_atoms"]:
        result["angle_mean_deg"] = s["angle_deg"] / s["angle_atoms"]
    if s["stress_structures"]:
        result["stress_mae"] = s["stress_abs"] / (9 * s["stress_structures"])
    if s["charge_abs"]:
        result["charge_mae"] = mean(s["charge_abs"], s["atoms"])
    if s["dipole_abs"]:
        result["dipole_mae"] = mean(s["dipole_abs"], 3 * s["structures"])
    return result


def mean(total: float, count: float) -> float:
    """total / count; NaN for none."""
    return total / count if count else math.nan
