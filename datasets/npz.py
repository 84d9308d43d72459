"""NPZ files of one molecule, in nm and kJ/mol as we write them, or in the units and under the names of others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, atomic_numbers, chemical_symbols

from ..ase_calcs import units
from ..ase_calcs.errors import DataError
from .foreign import ImportOptions, Seen
from .structure import Labels, Structure
from .writer import Frame

# What an array is called in NPZ files found in the wild; the first name of each is the one we write.
NPZ_NAMES = {
    "positions": ("positions", "coords", "coordinates", "R", "pos"),
    "energies": ("energies", "energy", "E"),
    "forces": ("forces", "F"),
    "numbers": ("atom_types", "nuclear_charges", "atomic_numbers", "numbers", "z", "Z"),
    "velocities": ("velocities",),
    "temperature": ("temperature",),
    "masses": ("masses",),
    "cell": ("cell",),
    "pbc": ("pbc",),
    "charge": ("charge",),
    "multiplicity": ("multiplicity",),
}


def read_npz(path: Path, options: ImportOptions, seen: Seen) -> Iterator[Frame]:
    """Frames of an NPZ file that holds one molecule: positions (F, N, 3), energies (F,), forces (F, N, 3), types (N,).

    The names of our own schema and of the MD17 and rMD17 files are known (`NPZ_NAMES`). Velocities are per picosecond
    (nm/ps in our schema). Masses that are not the natural ones (repartitioned hydrogens) are told of, and not kept.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} cannot be read as an NPZ file of plain arrays ({error}).") from error
    except Exception as error:  # zipfile.BadZipFile
        raise DataError(f"{path} is damaged or not an NPZ file ({error}).") from error
    seen.names |= {name for name, array in arrays.items() if array.dtype.kind == "f"}

    def find(kind: str, key: str | None = None) -> np.ndarray | None:
        return next((arrays[name] for name in ((key,) if key else NPZ_NAMES[kind]) if name in arrays), None)

    ours = "atom_types" in arrays
    length, energy_unit = options.factors("nm" if ours else None, "kJ/mol" if ours else None, path)
    positions, types = find("positions"), find("numbers")
    if positions is None or types is None or positions.ndim != 3 or positions.shape[2] != 3:
        raise DataError(
            f"{path.name} needs positions (F, N, 3) and atom types (N,); it has "
            f"{', '.join(f'{k} {v.shape}' for k, v in arrays.items())}. Known names: "
            f"{', '.join(NPZ_NAMES['positions'] + NPZ_NAMES['numbers'])}."
        )
    n_frames, n = positions.shape[:2]
    numbers = _types_to_numbers(types, find("masses"), n, path, seen)

    def per_frame(kind: str, shape: tuple[int, ...], key: str | None = None) -> np.ndarray | None:
        array = find(kind, key)
        if array is None:
            return None
        one = int(np.prod(shape, dtype=int))
        if array.size == n_frames * one:
            return np.asarray(array).reshape(n_frames, *shape)
        if array.size == one and kind not in ("energies", "forces", "velocities"):
            return np.broadcast_to(np.asarray(array).reshape(shape), (n_frames, *shape))
        raise DataError(
            f"{path.name}: `{kind}` has shape {array.shape}, which does not fit {n_frames} frames of {n} atoms."
        )

    energies, forces = per_frame("energies", (), options.energy_key), per_frame("forces", (n, 3), options.forces_key)
    velocities, temperature = per_frame("velocities", (n, 3)), per_frame("temperature", ())
    cell, pbc = per_frame("cell", (3, 3)), per_frame("pbc", (3,))
    charge, multiplicity = per_frame("charge", ()), per_frame("multiplicity", ())
    group = options.group or Atoms(numbers).get_chemical_formula()
    for i in range(n_frames):
        energy = _finite(energies, i, energy_unit)
        force = _finite(forces, i, energy_unit / length)
        extras = {"velocities": _finite(velocities, i, length / 1000.0), "temperature": _finite(temperature, i, 1.0)}
        periodic = np.zeros(3, bool) if pbc is None else np.array(pbc[i], dtype=bool)
        structure = Structure(
            numbers=numbers,
            positions=positions[i].astype(float) * length,
            cell=np.zeros((3, 3)) if cell is None or not periodic.any() else cell[i] * length,
            pbc=periodic,
            charge=int((options.charge or 0) if charge is None else charge[i]),
            multiplicity=int((options.multiplicity or 1) if multiplicity is None else multiplicity[i]),
            group=group,
            origin=path.name.split(".")[0],
        )
        labels = None
        if energy is not None or force is not None:
            labels = Labels(energy=None if energy is None else float(energy), forces=force)  # type: ignore[arg-type]
        yield structure, labels, {k: v for k, v in extras.items() if v is not None}


def _finite(array: np.ndarray | None, i: int, factor: float) -> np.ndarray | None:
    if array is None or not np.isfinite(array[i]).all():
        return None
    return np.asarray(array[i], dtype=float) * factor


def _types_to_numbers(types: np.ndarray, masses: np.ndarray | None, n: int, path: Path, seen: Seen) -> np.ndarray:
    """Atomic numbers from numbers or symbols, checked against masses if there are any."""
    types = types[0] if types.ndim == 2 else types
    if types.dtype.kind in "US":
        symbols = [t.decode() if isinstance(t, bytes) else str(t) for t in types]
        unknown = sorted({s for s in symbols if s not in atomic_numbers})
        if unknown:
            raise DataError(
                f"{path.name}: `{unknown[0]}` is no element symbol; atom types are symbols or atomic numbers."
            )
        numbers = np.array([atomic_numbers[s] for s in symbols])
    else:
        numbers = types.astype(np.int64)
    if numbers.shape != (n,) or numbers.min() < 1 or numbers.max() >= len(chemical_symbols):
        raise DataError(f"{path.name}: atom types must be {n} atomic numbers or symbols, got {types[:8]}…")
    if masses is not None:
        masses = np.asarray(masses, dtype=float).reshape(-1)[-n:]
        natural = atomic_masses[numbers]
        if np.abs(masses - natural).max() > 0.5:
            # Hydrogen mass repartitioning moves mass between atoms and keeps the sum.
            if abs(masses.sum() - natural.sum()) > 0.01 * natural.sum():
                raise DataError(
                    f"{path.name}: the masses do not belong to the atom types (types {numbers[:5]}…, "
                    f"masses {np.round(masses[:5], 2)}…). Atom types must be atomic numbers or symbols, not indices "
                    f"into a list of types."
                )
            seen.note("masses are repartitioned; natural masses are used from here on")
    return numbers


def write_npz(path: Path, frames: Iterable[Frame]) -> int:
    """Write the NPZ schema in nm, nm/ps, kJ/mol and kJ/mol/nm: one molecule, missing labels as NaN.

    Raises
    ------
    DataError
        If the frames are not all of the same atoms in the same order.
    """
    rows = [(frame[0], frame[1], frame[2] if len(frame) == 3 else {}) for frame in frames]
    if not rows:
        raise DataError("There are no frames to write.")
    numbers = rows[0][0].numbers
    if any(not np.array_equal(structure.numbers, numbers) for structure, _, _ in rows):
        groups = sorted({structure.group for structure, _, _ in rows})
        raise DataError(
            f"An NPZ file holds one molecule, and these frames are of several ({', '.join(groups[:5])}"
            f"{', …' if len(groups) > 5 else ''}). Export to extxyz or an ASE database, or split by group first."
        )

    def stack(values: list[Any], shape: tuple[int, ...], factor: float) -> np.ndarray | None:
        if all(v is None for v in values):
            return None
        return np.stack([np.full(shape, np.nan) if v is None else np.asarray(v, dtype=float) * factor for v in values])

    n = len(numbers)
    force_unit = units.KJ_PER_MOL / units.NM
    arrays: dict[str, np.ndarray | None] = {
        "positions": stack([s.positions for s, _, _ in rows], (n, 3), 1 / units.NM),
        "velocities": stack([e.get("velocities") for _, _, e in rows], (n, 3), 1000.0 / units.NM),
        "forces": stack([None if x is None else x.forces for _, x, _ in rows], (n, 3), 1 / force_unit),
        "energies": stack([None if x is None else x.energy for _, x, _ in rows], (), 1 / units.KJ_PER_MOL),
        "temperature": stack([e.get("temperature") for _, _, e in rows], (), 1.0),
        "atom_types": np.asarray(numbers, dtype=np.int64),
        "masses": atomic_masses[numbers],
        "charge": np.array([s.charge for s, _, _ in rows]),
        "multiplicity": np.array([s.multiplicity for s, _, _ in rows]),
    }
    if any(s.pbc.any() for s, _, _ in rows):
        arrays["cell"] = stack([s.cell for s, _, _ in rows], (3, 3), 1 / units.NM)
        arrays["pbc"] = np.stack([s.pbc for s, _, _ in rows])
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    return len(rows)
