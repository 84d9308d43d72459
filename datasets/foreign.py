"""Other people's formats: extxyz and ASE databases (NPZ in `npz`), to and from frames in our units.

Readers yield (structure, labels, extras) as `write_dataset` takes them. A label that a frame lacks is None; nothing is
guessed from names that merely look like labels, but the error of `convert` lists what was seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.io.extxyz import key_val_str_to_dict
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from ..ase_calcs import units
from ..ase_calcs.errors import DataError, InputError, did_you_mean
from .structure import Labels, Structure
from .writer import Frame

LENGTHS = {"Å": 1.0, "angstrom": 1.0, "nm": units.NM, "bohr": units.BOHR}
ENERGIES = {"eV": 1.0, "kcal/mol": units.KCAL_PER_MOL, "kJ/mol": units.KJ_PER_MOL, "hartree": units.HARTREE}


@dataclass(frozen=True)
class ImportOptions:
    """How to read a foreign file.

    Attributes
    ----------
    energy_key, forces_key, stress_key
        Names of the labels in ``atoms.info``, ``atoms.arrays`` or an ASE database's data, e.g. ``"energy_xtb"``;
        None takes what ASE itself reads as energy, forces and stress.
    group_key, origin_key
        Names of entries that say which molecule and which trajectory a frame belongs to. Without them the frame's own
        ``group`` and ``origin``, then `group`, then the SMILES, then the chemical formula; and the file's name.
    group
        Group of every frame that names none.
    charge, multiplicity
        For frames that do not say; 0 and 1 if None.
    length_unit, energy_unit
        Units of the file; forces are energy/length, stresses energy/length³, dipoles e·length. None means Å and eV
        for extxyz and ASE databases, nm and kJ/mol for NPZ files with `atom_types`, and an error for other NPZ files.
    interval
        fs between two frames of a trajectory, for NPZ files that do not say.
    """

    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    group_key: str | None = None
    origin_key: str | None = None
    group: str | None = None
    charge: int | None = None
    multiplicity: int | None = None
    length_unit: str | None = None
    energy_unit: str | None = None
    interval: float | None = None

    def factors(self, length: str | None, energy: str | None, path: Path) -> tuple[float, float]:
        """Å and eV per unit of the file, given the format's own units."""
        found = []
        for kind, chosen, default, table in (
            ("length", self.length_unit, length, LENGTHS),
            ("energy", self.energy_unit, energy, ENERGIES),
        ):
            unit = chosen or default
            if unit is None:
                raise InputError(
                    f"{path.name} does not say its {kind} unit, and none was given. Name it; allowed are "
                    f"{', '.join(table)}."
                )
            known = {name.lower(): value for name, value in table.items()}
            if unit.lower() not in known:
                raise InputError(f"Unknown {kind} unit `{unit}`{did_you_mean(unit, table)}")
            found.append(known[unit.lower()])
        return found[0], found[1]


@dataclass
class Seen:
    """What a reader met: names that might be labels, and things worth telling."""

    names: set[str] = field(default_factory=set)
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Count one more frame for which something is worth telling."""
        self.notes[text] = self.notes.get(text, 0) + 1


# ------------------------------------------------------------------------------------------- extxyz and ASE databases


def read_extxyz(path: Path, options: ImportOptions, seen: Seen) -> Iterator[Frame]:
    """Frames of an extended XYZ file (a plain XYZ file has no labels)."""
    try:
        for atoms in ase.io.iread(str(path), index=":", format="extxyz"):
            yield _frame_from_atoms(atoms, {}, path, options, seen)
    except (OSError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, (DataError, InputError)):
            raise
        raise DataError(f"{path} cannot be read as extended XYZ ({type(error).__name__}: {error}).") from error


def read_ase_db(path: Path, options: ImportOptions, seen: Seen) -> Iterator[Frame]:
    """Frames of an ASE database, in the order of their ids; keys are looked up in its key-value pairs and data too."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        with ase.db.connect(str(path)) as database:
            for row in database.select(sort="id"):
                atoms = row.toatoms()
                data = {**row.key_value_pairs, **row.data}
                own = data.pop("distillase", {})
                if "velocities" in own:
                    atoms.arrays["velocities"] = own.pop("velocities")
                if "energies" in own and atoms.calc is not None:
                    atoms.calc.results["energies"] = own.pop("energies")
                atoms.info.update(own)
                yield _frame_from_atoms(atoms, data, path, options, seen)
    except (DataError, InputError):
        raise
    except Exception as error:  # sqlite3 and ase.db raise many kinds
        raise DataError(f"{path} cannot be read as an ASE database ({type(error).__name__}: {error}).") from error


def _frame_from_atoms(
    atoms: Atoms, data: Mapping[str, Any], path: Path, options: ImportOptions, seen: Seen
) -> tuple[Structure, Labels | None, dict[str, np.ndarray]]:
    length, energy_unit = options.factors("Å", "eV", path)
    # Straight from the results: `get_forces` would zero the forces of constrained atoms.
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    sources: list[Mapping[str, Any]] = [atoms.info, atoms.arrays, data, results]
    seen.names |= {str(k) for s in sources for k, v in s.items() if np.asarray(v).dtype.kind == "f"} - {"positions"}

    def label(name: str, key: str | None, shape: tuple[int, ...]) -> np.ndarray | None:
        value = results.get(name) if key is None else next((s[key] for s in sources if key in s), None)
        if value is None:
            return None
        array = np.asarray(value, dtype=float)
        if name == "stress" and array.size == 9:
            array = full_3x3_to_voigt_6_stress(array.reshape(3, 3))
        if array.size != int(np.prod(shape, dtype=int)):
            raise DataError(f"{path.name}: `{key or name}` has shape {array.shape} where {name} needs {shape}.")
        if not np.isfinite(array).all():
            seen.note(f"`{key or name}` not finite, taken as missing")
            return None
        return array.reshape(shape)

    n = len(atoms)
    energy = label("energy", options.energy_key, ())
    forces = label("forces", options.forces_key, (n, 3))
    labels = None
    if energy is not None or forces is not None:
        stress, dipole = label("stress", options.stress_key, (6,)), label("dipole", None, (3,))
        energies = label("energies", None, (n,))
        labels = Labels(
            energy=None if energy is None else float(energy) * energy_unit,  # type: ignore[arg-type]
            forces=None if forces is None else forces * (energy_unit / length),  # type: ignore[arg-type]
            stress=None if stress is None else stress * (energy_unit / length**3),
            charges=label("charges", None, (n,)),
            dipole=None if dipole is None else dipole * length,
            energies=None if energies is None else energies * energy_unit,
        )
    extras: dict[str, Any] = {}
    if "velocities" in atoms.arrays:
        extras["velocities"] = np.asarray(atoms.arrays["velocities"], dtype=float) * length
    elif atoms.has("momenta") and np.any(atoms.get_momenta()):
        extras["velocities"] = atoms.get_velocities() * units.FS
    if "temperature" in atoms.info:
        extras["temperature"] = np.float64(atoms.info["temperature"])
    return _structure_from_atoms(atoms, {**data, **atoms.info}, path, options, length), labels, extras


def _structure_from_atoms(
    atoms: Atoms, info: Mapping[str, Any], path: Path, options: ImportOptions, length: float
) -> Structure:
    def text(*candidates: Any) -> str:
        return next((str(c) for c in candidates if c is not None and np.size(c) and str(c)), "")

    for key in (options.group_key, options.origin_key):
        if key is not None and key not in info:
            raise DataError(f"{path.name}: a frame has no entry `{key}`; it has {', '.join(map(str, info)) or 'none'}.")
    smiles = text(info.get("smiles"))
    named_group = info[options.group_key] if options.group_key else info.get("group")
    named_origin = info[options.origin_key] if options.origin_key else info.get("origin")
    return Structure(
        numbers=np.asarray(atoms.numbers, dtype=np.int64),
        positions=atoms.positions * length,
        # A box without periodicity means nothing, and would tell apart frames that are the same.
        cell=np.array(atoms.cell) * length if atoms.pbc.any() else np.zeros((3, 3)),
        pbc=np.array(atoms.pbc),
        charge=_whole("charge", info.get("charge"), atoms.get_initial_charges().sum(), options.charge or 0, path),
        multiplicity=_whole(
            "multiplicity",
            info.get("multiplicity"),
            abs(atoms.get_initial_magnetic_moments().sum()) + 1,
            options.multiplicity or 1,
            path,
        ),
        group=text(named_group, options.group, smiles or None, atoms.get_chemical_formula()),
        origin=text(named_origin, path.name.split(".")[0]),
        smiles=smiles,
    )


def _whole(name: str, said: Any, from_atoms: float, default: int, path: Path) -> int:
    """Charge or multiplicity: what the frame says, else what its atoms' initial values add up to, else the default."""
    neutral = {"charge": 0.0, "multiplicity": 1.0}[name]
    value = said if said is not None else from_atoms if abs(from_atoms - neutral) > 1e-6 else default
    if np.size(value) != 1 or abs(float(value) - round(float(value))) > 1e-3:
        raise DataError(f"{path.name}: the {name} of a frame is {value}, and must be a whole number.")
    return round(float(value))


def write_extxyz(path: Path, frames: Iterable[Frame]) -> int:
    """Write extended XYZ with every digit (ASE's own writer keeps eight decimals); returns the number of frames."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for frame in frames:
            structure, labels = frame[0], frame[1]
            extras = frame[2] if len(frame) == 3 else {}
            columns = {"pos": structure.positions}
            info: list[str] = []
            if structure.pbc.any():
                info.append(f'Lattice="{_numbers(structure.cell)}"')
            if labels is not None:
                columns |= {
                    name: value
                    for name in ("forces", "charges", "energies")
                    if (value := getattr(labels, name)) is not None
                }
                if labels.energy is not None:
                    info.append(f"energy={float(labels.energy)!r}")
                if labels.stress is not None:
                    info.append(f'stress="{_numbers(voigt_6_to_full_3x3_stress(labels.stress))}"')
                if labels.dipole is not None:
                    info.append(f'dipole="{_numbers(labels.dipole)}"')
            if "velocities" in extras:
                columns["velocities"] = extras["velocities"]
            if "temperature" in extras:
                info.append(f"temperature={float(extras['temperature'])!r}")
            info += [f"charge={structure.charge}", f"multiplicity={structure.multiplicity}"]
            info += [_text_entry(k, v) for k in ("group", "origin", "smiles") if (v := getattr(structure, k))]
            info.append('pbc="' + " ".join("FT"[int(p)] for p in structure.pbc) + '"')
            tables = {k: np.asarray(v, dtype=float).reshape(len(structure), -1) for k, v in columns.items()}
            head = "".join(f":{name}:R:{table.shape[1]}" for name, table in tables.items())
            file.write(f"{len(structure)}\nProperties=species:S:1{head} {' '.join(info)}\n")
            for number, row in zip(structure.numbers, np.hstack(list(tables.values())), strict=True):
                file.write(f"{chemical_symbols[number]} {_numbers(row)}\n")
            count += 1
    return count


def _numbers(values: np.ndarray) -> str:
    return " ".join(repr(float(v)) for v in np.asarray(values).ravel())


def _text_entry(key: str, value: str) -> str:
    """One text entry of the comment line, in a form from which ASE's reader gives back the same text.

    The reader eats the backslashes of SMILES and turns ``12`` or ``T`` into a number or a truth value.
    """
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    entry = f'{key}="{escaped}"'
    if "\n" not in value and not value.startswith("_JSON"):
        read = key_val_str_to_dict(entry).get(key)
        if isinstance(read, str) and read == value:
            return entry
    escaped = json.dumps(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'{key}="_JSON {escaped}"'


def write_ase_db(path: Path, frames: Iterable[Frame]) -> int:
    """Write an ASE database; what ASE has no place for goes into ``data["distillase"]``.

    That is charge, multiplicity, group, origin, SMILES, temperature, atomic energies, and velocities in Å/fs (they
    stand there beside ASE's momenta, so that no digit is lost).
    """
    count = 0
    with ase.db.connect(str(path), append=False) as database:
        for frame in frames:
            structure, labels = frame[0], frame[1]
            extras = frame[2] if len(frame) == 3 else {}
            atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
            if labels is not None:
                given = {k: v for k, v in vars(labels).items() if v is not None}
                atoms.calc = SinglePointCalculator(atoms, **given)
            own: dict[str, Any] = {
                k: getattr(structure, k) for k in ("charge", "multiplicity", "group", "origin", "smiles")
            }
            if "velocities" in extras:
                atoms.set_velocities(extras["velocities"] / units.FS)
                own["velocities"] = np.asarray(extras["velocities"])
            if "temperature" in extras:
                own["temperature"] = float(extras["temperature"])
            if labels is not None and labels.energies is not None:
                own["energies"] = labels.energies
            database.write(atoms, data={"distillase": own})
            count += 1
    return count
