"""Around one evaluation of a calculator: the state its results depend on, and ASE's results dictionary."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.calculators.calculator import PropertyNotImplementedError

from .errors import StructureError
from .potential import PotentialOutput

_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx, yy, zz, yz, xz, xy


class State(NamedTuple):
    """What results depend on, copied from the atoms they were calculated for."""

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    charge: int
    multiplicity: int


def possible_properties(wanted: set[str], asked: set[str], state: State) -> set[str]:
    """`wanted` without what this structure cannot have; an error if just that was asked for."""
    if "stress" in wanted and not np.linalg.det(state.cell):
        if "stress" in asked:
            raise PropertyNotImplementedError(
                "Stress needs a volume: three cell vectors, which these atoms do not have."
            )
        wanted = wanted - {"stress"}
    if "dipole" in asked and state.pbc.any():
        raise PropertyNotImplementedError("A periodic structure has no dipole moment that does not depend on the cell.")
    return wanted


def same_but_positions(old: State, new: State) -> bool:
    """Whether two states differ at most in their positions."""
    return (
        old.charge == new.charge
        and old.multiplicity == new.multiplicity
        and old.numbers.shape == new.numbers.shape
        and bool((old.numbers == new.numbers).all())
        and bool((old.cell == new.cell).all())
        and bool((old.pbc == new.pbc).all())
    )


def as_results(output: PotentialOutput, number: int, atoms: slice, state: State, wanted: set[str]) -> dict[str, Any]:
    """ASE's results of one structure of a batch: floats and float64 arrays of their own."""
    energy = float(output.energy[number])
    results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": _numpy(output.energies[atoms])}
    checksum = energy
    if output.forces is not None:
        results["forces"] = forces = _numpy(output.forces[atoms])
        checksum += float(forces.sum())
    if not math.isfinite(checksum):
        raise StructureError(
            "The model's energy or forces are not finite. Two atoms are probably on top of each other; look at the "
            "structure."
        )
    if output.stress is not None and "stress" in wanted:
        results["stress"] = _numpy(output.stress[number])[_VOIGT]
    if output.charges is not None and output.dipole is not None:
        results["charges"] = _numpy(output.charges[atoms])
        if not state.pbc.any():
            results["dipole"] = _numpy(output.dipole[number])
    return results


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float64)
