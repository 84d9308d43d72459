"""NPZ files of one molecule, in nm and kJ/mol as we write them, or in the units and under the names of others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
    "group": ("group",),
    "origin": ("origin",),
    "smiles": ("smiles",),
    "interval": ("interval",),
    "provenance": ("provenance",),
}

PER_PS = 1000.0  # fs

# What an NPZ file keeps of a dataset's provenance; `trajectories` are those of its own frames.
KEPT = ("teacher", "teacher_version", "teacher_settings")


@dataclass(frozen=True)
class MoleculeFile:
    """An NPZ file in our units; what it does not have is None, and NaN in frames that lack it.

    Attributes
    ----------
    numbers, masses
        (N,) and (N,) u, as the file has them.
    positions, velocities, forces
        (F, N, 3) Å, Å/fs, eV/Å.
    energies, temperature
        (F,) eV and K.
    cell, pbc
        (F, 3, 3) Å and (F, 3) bool.
    charge, multiplicity, group, origin, smiles
        (F,).
    provenance
        Entries for a dataset's provenance: `KEPT`, and ``trajectories`` where the time between frames is known.
    """

    numbers: np.ndarray
    masses: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray | None
    forces: np.ndarray | None
    energies: np.ndarray | None
    temperature: np.ndarray | None
    cell: np.ndarray | None
    pbc: np.ndarray | None
    charge: np.ndarray
    multiplicity: np.ndarray
    group: np.ndarray
    origin: np.ndarray
    smiles: np.ndarray
    provenance: dict[str, Any]

    def frames(self) -> Iterator[Frame]:
        """Frames as `write_dataset` takes them."""
        for i, positions in enumerate(self.positions):
            energy, force = _finite(self.energies, i), _finite(self.forces, i)
            extras = {"velocities": _finite(self.velocities, i), "temperature": _finite(self.temperature, i)}
            periodic = np.zeros(3, bool) if self.pbc is None else np.array(self.pbc[i], dtype=bool)
            structure = Structure(
                numbers=self.numbers,
                positions=positions,
                cell=np.zeros((3, 3)) if self.cell is None or not periodic.any() else self.cell[i],
                pbc=periodic,
                charge=int(self.charge[i]),
                multiplicity=int(self.multiplicity[i]),
                group=str(self.group[i]),
                origin=str(self.origin[i]),
                smiles=str(self.smiles[i]),
            )
            labels = None
            if energy is not None or force is not None:
                labels = Labels(energy=None if energy is None else float(energy), forces=force)  # type: ignore[arg-type]
            yield structure, labels, {k: v for k, v in extras.items() if v is not None}


def _finite(array: np.ndarray | None, i: int) -> np.ndarray | None:
    return None if array is None or not np.isfinite(array[i]).all() else array[i]


def load_npz(path: Path, options: ImportOptions, seen: Seen) -> MoleculeFile:
    """An NPZ file that holds one molecule: positions (F, N, 3), energies (F,), forces (F, N, 3), types (N,).

    The names of our own schema and of the MD17 and rMD17 files are known (`NPZ_NAMES`). Velocities are per picosecond
    (nm/ps in our schema), `interval` is in ps. Masses that are not the natural ones (repartitioned hydrogens) are told
    of; they stay with trajectories, and structures have none.

    Raises
    ------
    DataError
        It is damaged, lacks positions or types, or its arrays do not fit together.
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
    numbers, masses = _types_and_masses(types, find("masses"), n, path, seen)

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

    def number(kind: str, shape: tuple[int, ...], factor: float, key: str | None = None) -> np.ndarray | None:
        array = per_frame(kind, shape, key)
        return None if array is None else np.asarray(array, dtype=float) * factor

    def said(kind: str, default: Any) -> np.ndarray:
        array = per_frame(kind, ())
        return np.full(n_frames, default) if array is None else array

    smiles = said("smiles", "")
    formula = Atoms(numbers).get_chemical_formula()
    group = said("group", "")
    group = np.where(group != "", group, options.group or np.where(smiles != "", smiles, formula))
    origin = said("origin", path.name.split(".")[0])
    return MoleculeFile(
        numbers=numbers,
        masses=masses,
        positions=np.asarray(positions, dtype=float) * length,
        velocities=number("velocities", (n, 3), length / PER_PS),
        forces=number("forces", (n, 3), energy_unit / length, options.forces_key),
        energies=number("energies", (), energy_unit, options.energy_key),
        temperature=number("temperature", (), 1.0),
        cell=number("cell", (3, 3), length),
        pbc=per_frame("pbc", (3,)),
        charge=said("charge", options.charge or 0),
        multiplicity=said("multiplicity", options.multiplicity or 1),
        group=group,
        origin=origin,
        smiles=smiles,
        provenance=_provenance(find("provenance"), find("interval"), options, path, (group, origin), masses, numbers),
    )


def _provenance(
    text: np.ndarray | None,
    interval: np.ndarray | None,
    options: ImportOptions,
    path: Path,
    names: tuple[np.ndarray, np.ndarray],
    masses: np.ndarray,
    numbers: np.ndarray,
) -> dict[str, Any]:
    """What the file says of itself; trajectories are recorded from `interval` where it comes from elsewhere."""
    found: Any = {}
    if text is not None:
        try:
            found = json.loads(str(text))
        except ValueError as error:
            raise DataError(f"{path.name}: `provenance` is not JSON ({error}); the file is damaged.") from error
    kept = {key: found[key] for key in (*KEPT, "trajectories") if key in found} if isinstance(found, dict) else {}
    between = float(interval) * PER_PS if interval is not None and np.size(interval) == 1 else options.interval
    if "trajectories" not in kept and between is not None:
        runs: dict[tuple[str, str], int] = {}
        for run in zip(names[0].astype(str).tolist(), names[1].astype(str).tolist(), strict=True):
            runs[run] = runs.get(run, 0) + 1
        own = {} if np.array_equal(masses, atomic_masses[numbers]) else {"masses": masses.tolist()}
        kept["trajectories"] = [
            {"group": group, "origin": origin, "frames": count, "interval": between, **own}
            for (group, origin), count in runs.items()
        ]
    return kept


def _types_and_masses(
    types: np.ndarray, masses: np.ndarray | None, n: int, path: Path, seen: Seen
) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers from numbers or symbols, checked against masses if there are any; and masses, u."""
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
    natural = atomic_masses[numbers]
    if masses is None:
        return numbers, natural
    masses = np.asarray(masses, dtype=float).reshape(-1)[-n:]
    if np.abs(masses - natural).max() > 0.5:
        # Hydrogen mass repartitioning moves mass between atoms and keeps the sum.
        if abs(masses.sum() - natural.sum()) > 0.01 * natural.sum():
            raise DataError(
                f"{path.name}: the masses do not belong to the atom types (types {numbers[:5]}…, "
                f"masses {np.round(masses[:5], 2)}…). Atom types must be atomic numbers or symbols, not indices "
                f"into a list of types."
            )
        seen.note("masses are repartitioned; they are kept with trajectories, and natural ones are used elsewhere")
    return numbers, masses


def write_npz(path: Path, frames: Iterable[Frame], provenance: Mapping[str, Any] | None = None) -> int:
    """Write the NPZ schema in nm, nm/ps, kJ/mol and kJ/mol/nm: one molecule, missing labels as NaN.

    Parameters
    ----------
    path
        The file.
    frames
        (structure, labels, extras) as `write_dataset` takes them.
    provenance
        Of the dataset they come from: gives the time between frames, masses and the teacher.

    Returns
    -------
    Number of frames.

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
            f"{', …' if len(groups) > 5 else ''}). Name a folder as the target for one file per molecule, or export to "
            f"extxyz or an ASE database."
        )

    def stack(values: list[Any], shape: tuple[int, ...], factor: float) -> np.ndarray | None:
        if all(v is None for v in values):
            return None
        return np.stack([np.full(shape, np.nan) if v is None else np.asarray(v, dtype=float) * factor for v in values])

    n = len(numbers)
    force_unit = units.KJ_PER_MOL / units.NM
    arrays: dict[str, np.ndarray | None] = {
        "positions": stack([s.positions for s, _, _ in rows], (n, 3), 1 / units.NM),
        "velocities": stack([e.get("velocities") for _, _, e in rows], (n, 3), PER_PS / units.NM),
        "forces": stack([None if x is None else x.forces for _, x, _ in rows], (n, 3), 1 / force_unit),
        "energies": stack([None if x is None else x.energy for _, x, _ in rows], (), 1 / units.KJ_PER_MOL),
        "temperature": stack([e.get("temperature") for _, _, e in rows], (), 1.0),
        "atom_types": np.asarray(numbers, dtype=np.int64),
        "masses": atomic_masses[numbers],
        "charge": np.array([s.charge for s, _, _ in rows]),
        "multiplicity": np.array([s.multiplicity for s, _, _ in rows]),
        **{name: np.array([getattr(s, name) for s, _, _ in rows]) for name in ("group", "origin", "smiles")},
    }
    if any(s.pbc.any() for s, _, _ in rows):
        arrays["cell"] = stack([s.cell for s, _, _ in rows], (3, 3), 1 / units.NM)
        arrays["pbc"] = np.stack([s.pbc for s, _, _ in rows])
    arrays |= _said_of(rows, provenance or {})
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})  # type: ignore[arg-type]
    return len(rows)


def _said_of(rows: list[tuple[Structure, Any, Any]], provenance: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`provenance`, and `interval` (ps) and `masses` where all trajectories among the frames have the same."""
    runs = {(structure.group, structure.origin) for structure, _, _ in rows}
    own = [record for record in provenance.get("trajectories", []) if (record["group"], record["origin"]) in runs]
    kept = {key: provenance[key] for key in KEPT if provenance.get(key)} | ({"trajectories": own} if own else {})
    said = {"provenance": np.array(json.dumps(kept, ensure_ascii=False))} if kept else {}
    intervals = {record["interval"] for record in own}
    if len(intervals) == 1:
        said["interval"] = np.array(intervals.pop() / PER_PS)
    if own and all(record.get("masses") == own[0].get("masses") is not None for record in own):
        said["masses"] = np.array(own[0]["masses"])
    return said
