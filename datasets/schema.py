"""What a dataset file holds: names, shapes, types and units of its arrays, the format's version and its upgrades.

One HDF5 file, flat arrays, nothing padded. With F frames and A atoms in all::

    offsets (F+1,)          atoms of frame i are rows offsets[i] … offsets[i+1]-1 of every per-atom array
    numbers (A,)  positions (A,3)                                            always there
    cell (F,3,3)  pbc (F,3)  charge (F,)  multiplicity (F,)                  always there
    group, origin, smiles (F,)   codes into group_names, origin_names, smiles_names    always there
    energy (F,)  forces (A,3)  stress (F,6)  dipole (F,3)  charges (A,)  energies (A,)     labels, optional
    velocities (A,3)  temperature (F,)                                       optional
    hessian_rows, hessian_row_index, hessian_row_offsets                     optional, see `HESSIAN_FIELDS`

A label that some frames lack (a stress, where only part of the frames is periodic) is a row of NaN. Every array has an
attribute ``unit``; the file has ``format``, ``version``, ``provenance`` (JSON) and ``content_hash``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..ase_calcs.errors import DataError
from ..ase_calcs.units import FIELD_UNITS

FORMAT_NAME = "distillase-dataset"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class FieldSpec:
    """One array of the file.

    Attributes
    ----------
    per
        What one row belongs to.
    tail
        Shape of one row.
    dtype
        Type in the file, little-endian.
    required
        Whether every file has it.
    """

    per: Literal["atom", "frame"]
    tail: tuple[int, ...]
    dtype: str
    required: bool

    def rows(self, n_frames: int, n_atoms: int) -> int:
        """How many rows the array must have."""
        return n_atoms if self.per == "atom" else n_frames


FIELDS: dict[str, FieldSpec] = {
    "numbers": FieldSpec("atom", (), "<u1", required=True),
    "positions": FieldSpec("atom", (3,), "<f8", required=True),
    "cell": FieldSpec("frame", (3, 3), "<f8", required=True),
    "pbc": FieldSpec("frame", (3,), "?", required=True),
    "charge": FieldSpec("frame", (), "<i4", required=True),
    "multiplicity": FieldSpec("frame", (), "<i4", required=True),
    "group": FieldSpec("frame", (), "<i4", required=True),
    "origin": FieldSpec("frame", (), "<i4", required=True),
    "smiles": FieldSpec("frame", (), "<i4", required=True),
    "energy": FieldSpec("frame", (), "<f8", required=False),
    "forces": FieldSpec("atom", (3,), "<f8", required=False),
    "stress": FieldSpec("frame", (6,), "<f8", required=False),
    "dipole": FieldSpec("frame", (3,), "<f8", required=False),
    "charges": FieldSpec("atom", (), "<f8", required=False),
    "energies": FieldSpec("atom", (), "<f8", required=False),
    "velocities": FieldSpec("atom", (3,), "<f8", required=False),
    "temperature": FieldSpec("frame", (), "<f8", required=False),
}

# Text is kept once and pointed at: a million frames of one molecule hold its SMILES one time.
TEXT_FIELDS = ("group", "origin", "smiles")

# Rows of the Hessian, as many or as few per frame as were computed. Frame i has rows
# hessian_row_offsets[i] … hessian_row_offsets[i+1]-1 of `hessian_row_index` (3 × atom + direction); `hessian_rows` is
# flat, 3 N_i values per row.
HESSIAN_FIELDS: dict[str, str] = {
    "hessian_rows": "<f8",
    "hessian_row_index": "<i4",
    "hessian_row_offsets": "<i8",
}

KNOWN_ARRAYS = {*FIELDS, *HESSIAN_FIELDS, "offsets", *(f"{name}_names" for name in TEXT_FIELDS)}

LABEL_FIELDS = ("energy", "forces", "stress", "charges", "dipole", "energies")
EXTRA_FIELDS = ("velocities", "temperature")


def unit_of(name: str) -> str:
    """Unit string of an array; ``"1"`` for counts, codes and text."""
    return FIELD_UNITS.get(name, "1")


@dataclass
class RawFile:
    """A file as it was found, before checks: what the upgrade functions work on.

    Attributes
    ----------
    attributes
        Attributes of the file.
    arrays
        Name → h5py dataset (or NumPy array put there by an upgrade).
    units
        Name → unit attribute of the array, None where there is none.
    """

    attributes: dict[str, Any]
    arrays: dict[str, Any]
    units: dict[str, str | None]


# UPGRADES[n] turns a file of version n into one of version n + 1, in memory; files on disk are never changed.
UPGRADES: dict[int, Callable[[RawFile], RawFile]] = {}


def upgrade(raw: RawFile, path: str) -> RawFile:
    """Bring a file of any older version to `FORMAT_VERSION`.

    Raises
    ------
    DataError
        If it is no dataset file of ours, or of a newer version than this distillase knows.
    """
    if raw.attributes.get("format") != FORMAT_NAME:
        raise DataError(
            f"{path} is an HDF5 file but not a distillase dataset (its attribute `format` is "
            f"{raw.attributes.get('format')!r}, not {FORMAT_NAME!r}). Other formats come in through "
            f"`distillase dataset convert`."
        )
    try:
        version = int(raw.attributes["version"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path} does not say which version of the dataset format it has; it is damaged.") from None
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path} has version {version} of the dataset format; this distillase reads versions up to "
            f"{FORMAT_VERSION}. Update distillase, or write the file again with this version."
        )
    while version < FORMAT_VERSION:
        if version not in UPGRADES:
            raise DataError(f"{path} claims version {version} of the dataset format, which never was; it is damaged.")
        raw = UPGRADES[version](raw)
        version += 1
    return raw


def check_layout(raw: RawFile, path: str) -> tuple[int, int]:
    """Check names, shapes, types and units of every array; return the numbers of frames and atoms.

    Raises
    ------
    DataError
        Naming the array and what is wrong with it.
    """
    required = [name for name, spec in FIELDS.items() if spec.required]
    required += ["offsets", *(f"{name}_names" for name in TEXT_FIELDS)]
    missing = [name for name in required if name not in raw.arrays]
    if missing:
        raise DataError(
            f"{path} lacks the array(s) {', '.join(missing)}; it is damaged or was not written by distillase."
        )
    for name, array in raw.arrays.items():
        if name in KNOWN_ARRAYS and raw.units.get(name) != unit_of(name):
            raise DataError(
                f"{path}: the array `{name}` has the unit {raw.units.get(name)!r}, and must have {unit_of(name)!r}. "
                f"Nothing is converted silently: write the file again in eV, Å, fs, e and K."
            )
        if name in FIELDS and np.dtype(array.dtype).kind != np.dtype(FIELDS[name].dtype).kind:
            raise DataError(f"{path}: the array `{name}` holds {array.dtype}, and must hold {FIELDS[name].dtype}.")
    if raw.arrays["offsets"].ndim != 1 or raw.arrays["offsets"].shape[0] < 2:
        raise DataError(
            f"{path}: `offsets` has shape {raw.arrays['offsets'].shape}; it must have one entry more than frames."
        )
    n_frames, n_atoms = int(raw.arrays["offsets"].shape[0]) - 1, int(raw.arrays["numbers"].shape[0])
    for name, spec in FIELDS.items():
        if name not in raw.arrays:
            continue
        expected = (spec.rows(n_frames, n_atoms), *spec.tail)
        if tuple(raw.arrays[name].shape) != expected:
            raise DataError(
                f"{path}: the array `{name}` has shape {tuple(raw.arrays[name].shape)}, but {n_frames} frames with "
                f"{n_atoms} atoms need {expected}. The file is damaged or was put together by hand; write it again."
            )
    return n_frames, n_atoms


def check_offsets(offsets: np.ndarray, n_atoms: int, path: str) -> None:
    """Offsets must start at 0, rise, and end at the number of atoms."""
    if offsets[0] != 0 or offsets[-1] != n_atoms or np.any(np.diff(offsets) <= 0):
        raise DataError(
            f"{path}: `offsets` must rise from 0 to the number of atoms ({n_atoms}), at least one atom a frame, but "
            f"run from {offsets[0]} to {offsets[-1]}. The file is damaged; write it again."
        )
