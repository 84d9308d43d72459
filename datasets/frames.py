"""From an `ase.Atoms` frame (xyz, extxyz, ASE db, PDB) to a `Structure`: geometry kept, charge and spin as it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

from ..ase_calcs.errors import StructureError
from .charges import as_integer, check_parity, electron_count, lowest_multiplicity
from .hydrogens import COLLISION_RATIO, check_collisions
from .molecules import Prepared
from .structure import Structure

CHARGE_KEYS = ("charge", "total_charge", "net_charge")
MULTIPLICITY_KEYS = ("multiplicity", "spin_multiplicity")
UNPAIRED_KEYS = ("spin", "total_spin", "unpaired_electrons", "uhf")
NAME_KEYS = ("group", "name", "molecule", "smiles")


def prepare_frame(atoms: Atoms, *, given: Mapping[str, Any] | None = None) -> Prepared:
    """Check one frame and read its electronic state.

    Charge: ``info`` (``charge``, ``total_charge``, ``net_charge``), else the sum of the initial charges, else 0 with a
    note. Multiplicity: ``info`` (``multiplicity``, ``spin_multiplicity``), else ``spin`` (see `_spin`), else the sum of
    the initial magnetic moments + 1, else the lowest that the electrons allow. Two sources that disagree are refused,
    and so is an odd number of electrons of which the file says nothing (an ion that lost its charge looks exactly so).

    Parameters
    ----------
    atoms
        The frame; not changed.
    given
        Further keys beside ``atoms.info``, e.g. the key-value pairs of an ASE db row.

    Raises
    ------
    StructureError
        The reason of the refusal.
    """
    info = {**dict(given or {}), **atoms.info}
    notes: list[str] = []
    numbers = np.array(atoms.numbers, dtype=np.int64)
    positions = np.array(atoms.positions, dtype=np.float64)
    cell, pbc = _cell(atoms)
    _check_geometry(numbers, positions, cell, pbc)
    charge = _charge(atoms, info)
    multiplicity = _multiplicity(atoms, info, numbers, charge or 0, notes)
    if charge is None:
        charge = 0
        if electron_count(numbers, 0) % 2 and multiplicity is None:
            raise StructureError(
                f"{electron_count(numbers, 0)} electrons at charge 0, an odd number, and the file gives neither charge "
                "nor multiplicity: an ion or a radical? Write charge= and multiplicity= into the comment line (info)."
            )
        notes.append("no charge given; taken as 0")
    if multiplicity is None:
        multiplicity = lowest_multiplicity(numbers, charge)
    check_parity(numbers, charge, multiplicity)
    if not pbc.any() and (numbers == 6).sum() > 1 and not (numbers == 1).any():
        notes.append("no hydrogens; if they are missing, complete the molecule first (an SDF is completed here)")
    if abs(charge) >= 2:
        notes.append(f"suspicious charge: total {charge:+d} e; check the file")
    group = next((str(info[key]) for key in NAME_KEYS if info.get(key)), formula_group(numbers, charge))
    structure = Structure(numbers, positions, cell, pbc, charge, multiplicity, group=group, origin="input")
    return Prepared(structure, tuple(notes))


def formula_group(numbers: np.ndarray, charge: int) -> str:
    """Hill formula with its charge, e.g. ``C2H6O`` or ``H4N+1``: the same for every frame of one molecule."""
    from ase.formula import Formula

    symbols = Atoms(numbers).get_chemical_formula(mode="hill")
    return str(Formula(symbols)) + (f"{charge:+d}" if charge else "")


def _cell(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    pbc = np.array(atoms.pbc, dtype=bool)
    if not pbc.any():  # a box around a molecule means nothing
        return np.zeros((3, 3)), pbc
    cell = np.array(atoms.cell, dtype=np.float64)
    if not np.isfinite(cell).all():
        raise StructureError("the cell holds numbers that are not finite")
    lengths = np.linalg.norm(cell[pbc], axis=1)
    if (lengths < 1e-3).any() or np.linalg.matrix_rank(cell[pbc], tol=1e-6) < pbc.sum():
        raise StructureError("periodic along an axis whose cell vector is zero or not independent; give the Lattice")
    return cell, pbc


def _check_geometry(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    if len(numbers) == 0:
        raise StructureError("no atoms")
    if (numbers < 1).any() or (numbers > 118).any():
        raise StructureError(f"atom {int(np.flatnonzero((numbers < 1) | (numbers > 118))[0]) + 1} has no known element")
    if not np.isfinite(positions).all():
        bad = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise StructureError(f"the coordinates of atom {bad + 1} are not finite numbers")
    if pbc.any():
        _check_periodic_collisions(numbers, positions, cell, pbc)
        return
    if len(numbers) == 1:
        what = "a single hydrogen atom" if numbers[0] == 1 else "a single atom"
        raise StructureError(f"{what}: its forces are always zero, so there is nothing to learn from it")
    check_collisions(numbers, positions)


def _check_periodic_collisions(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> None:
    from ase.data import chemical_symbols, covalent_radii
    from ase.neighborlist import primitive_neighbor_list

    reach = COLLISION_RATIO * 2 * float(covalent_radii[numbers].max())
    # ASE wants three independent vectors even where only some are periodic.
    i, j, d = primitive_neighbor_list("ijd", list(pbc), Atoms(cell=cell).cell.complete(), positions, reach)
    ratio = d / (covalent_radii[numbers[i]] + covalent_radii[numbers[j]])
    if len(d) and ratio.min() < COLLISION_RATIO:
        k = int(np.argmin(ratio))
        raise StructureError(
            f"clash: {chemical_symbols[numbers[i[k]]]}{i[k] + 1} and {chemical_symbols[numbers[j[k]]]}{j[k] + 1} are "
            f"{d[k]:.2f} Å apart (periodic images counted). Relax or rebuild the geometry."
        )


def _agreeing(values: Mapping[str, int], what: str) -> int | None:
    """The one value that all sources give, None without sources."""
    if len(set(values.values())) > 1:
        said = ", ".join(f"{key} says {value}" for key, value in values.items())
        raise StructureError(f"the file contradicts itself about the {what}: {said}. Keep one.")
    return next(iter(values.values()), None)


def _charge(atoms: Atoms, info: Mapping[str, Any]) -> int | None:
    values = {key: as_integer(info[key], f"info[{key!r}]") for key in CHARGE_KEYS if info.get(key) is not None}
    if atoms.has("initial_charges"):
        total = float(atoms.get_initial_charges().sum())
        if not np.isfinite(total) or abs(total - round(total)) > 0.05:
            raise StructureError(f"the initial charges sum to {total:.3f} e, which is not a whole number")
        if np.any(atoms.get_initial_charges()):
            values["initial_charges"] = round(total)
    return _agreeing(values, "charge")


def _spin(value: int, electrons: int) -> int:
    """Multiplicity from a ``spin`` key, which some programs use for 2S+1 and others for 2S: parity decides.

    An even number of electrons has even 2S and odd 2S+1, an odd number the reverse, so only one reading can be right.
    """
    return value + 1 if (value - electrons) % 2 == 0 else value


def _multiplicity(
    atoms: Atoms, info: Mapping[str, Any], numbers: np.ndarray, charge: int, notes: list[str]
) -> int | None:
    values = {key: as_integer(info[key], f"info[{key!r}]") for key in MULTIPLICITY_KEYS if info.get(key) is not None}
    for key in UNPAIRED_KEYS:
        if info.get(key) is not None:
            spin = as_integer(info[key], f"info[{key!r}]")
            values[key] = _spin(spin, electron_count(numbers, charge))
            notes.append(f"{key}={spin} read as multiplicity {values[key]}")
    if atoms.has("initial_magmoms") and np.any(atoms.get_initial_magnetic_moments()):
        moments = np.asarray(atoms.get_initial_magnetic_moments(), dtype=float)
        if moments.ndim == 1:
            values["initial_magmoms"] = abs(as_integer(moments.sum(), "the sum of the initial magnetic moments")) + 1
    return _agreeing(values, "multiplicity")
