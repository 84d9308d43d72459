"""Around one evaluation of a calculator: the state its results depend on, and ASE's results dictionary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from torch import Tensor

from .errors import StructureError
from .potential import PotentialOutput

StateKey = tuple[bytes, bytes, bytes, bytes, int, int]
_VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx, yy, zz, yz, xz, xy


class State(NamedTuple):
    """What results depend on, copied from the atoms they were calculated for.

    `key` holds the same as bytes: comparing bytes is exact and several times cheaper than comparing small arrays.
    (A zero whose sign changed counts as a change.)
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    charge: int
    multiplicity: int
    key: StateKey

    def centred(self) -> np.ndarray:
        """Positions relative to the first atom: far from the origin, float32 would lose digits of the distances."""
        return self.positions - self.positions[0]


def state_key(atoms: Atoms, electronic: tuple[int, int]) -> StateKey:
    """Positions first, then what changes rarely."""
    arrays = atoms.arrays
    return (
        arrays["positions"].tobytes(),
        arrays["numbers"].tobytes(),
        atoms.cell.array.tobytes(),
        atoms.pbc.tobytes(),
        *electronic,
    )


def state_of(atoms: Atoms, electronic: tuple[int, int]) -> State:
    """A copy of what matters; `electronic` is charge and multiplicity."""
    arrays = atoms.arrays
    return State(
        arrays["numbers"].copy(),
        np.array(arrays["positions"], dtype=np.float64),
        atoms.cell.array.copy(),
        atoms.pbc.copy(),
        *electronic,
        state_key(atoms, electronic),
    )


def possible_properties(wanted: AbstractSet[str], asked: AbstractSet[str], state: State) -> AbstractSet[str]:
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


def as_results(output: PotentialOutput, state: State, wanted: AbstractSet[str]) -> dict[str, Any]:
    """ASE's results of a batch of one: floats, and float64 arrays of their own."""
    energy = output.energy.item()
    results: dict[str, Any] = {"energy": energy, "free_energy": energy, "energies": _numpy(output.energies)}
    checksum = energy
    if output.forces is not None:
        results["forces"] = forces = _numpy(output.forces)
        checksum += np.add.reduce(forces, axis=None)
    if not math.isfinite(checksum):
        raise StructureError(
            "The model's energy or forces are not finite. Two atoms are probably on top of each other; look at the "
            "structure."
        )
    if output.stress is not None and "stress" in wanted:
        results["stress"] = _numpy(output.stress)[0][_VOIGT]
    if output.charges is not None and output.dipole is not None:
        results["charges"] = _numpy(output.charges)
        if not state.pbc.any():
            # `State.centred` moved the origin, on which the dipole of an ion depends.
            results["dipole"] = _numpy(output.dipole)[0] + state.charge * state.positions[0]
    return results


def one_of_batch(output: PotentialOutput, number: int, atoms: slice) -> PotentialOutput:
    """Structure `number` of a batch, whose atoms are `atoms`, as a batch of one."""
    one = slice(number, number + 1)

    def cut(tensor: torch.Tensor | None, part: slice) -> torch.Tensor | None:
        return None if tensor is None else tensor[part]

    return PotentialOutput(
        output.energy[one],
        output.energies[atoms],
        cut(output.forces, atoms),
        cut(output.stress, one),
        cut(output.charges, atoms),
        cut(output.dipole, one),
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy(force=True).astype(np.float64)


SMALL = 2000  # edges; what a molecule of some tens of atoms has


@contextmanager
def few_threads(edges: Tensor) -> Iterator[None]:
    """`one_thread` for a small graph, (2, E) edges, on the CPU.

    Its loops are too short to share. A second thread gains nothing on an idle machine, and on a busy one each loop
    waits for a thread that is not running: a step of ethanol then takes a hundred times as long.
    """
    if edges.device.type != "cpu" or edges.shape[1] > SMALL:
        yield
        return
    with one_thread():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread; the caller's number is put back afterwards."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
