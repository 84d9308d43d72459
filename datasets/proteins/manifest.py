"""Ensembles that others keep in HDF5, one file for each protein, listed in a CSV file.

Each file has ``coords_N coords_ca coords_C`` (T, L, 3) in Å, optionally ``coords_O coords_cb``, ``mask_ca`` (L,) or
(T, L), and ``torsion_phi_sincos torsion_psi_sincos torsion_omega_sincos`` (T, L, 2), which are compared with ours.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from ...ase_calcs.errors import DataError, InputError
from ...ase_calcs.proteins.backbone import ATOMS
from ...ase_calcs.proteins.residues import CODES
from ..writer import h5py_module
from .backbones import BackboneFrames, completed, with_gaps

_FILES = ("path", "file", "h5", "hdf5")  # columns of the manifest, the first of these that it has
_NAMES = ("name", "id", "protein")
_COORDINATES = dict(zip(ATOMS, ("coords_N", "coords_ca", "coords_C", "coords_O", "coords_cb"), strict=True))
_TORSIONS = ("torsion_phi_sincos", "torsion_psi_sincos", "torsion_omega_sincos")
_AGREES = 0.02  # of sines and cosines: a degree, float16 and rounding


def read_manifest(path: str | Path) -> list[BackboneFrames]:
    """Every protein that a manifest lists.

    Parameters
    ----------
    path
        A CSV file with a column ``path`` (relative to the manifest, or absolute), and where they are known ``name`` and
        ``sequence``; without the latter the files must have an attribute or a dataset ``sequence``.

    Raises
    ------
    InputError
        A file that cannot be read, or a manifest without paths.
    DataError
        Arrays that are missing or do not fit together, or torsions that are not those of the coordinates.
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"`{path}` cannot be read as a CSV file ({error}).") from error
    columns = {key.strip().lower(): key for key in (rows[0] if rows else {}) if key}
    where = next((columns[c] for c in _FILES if c in columns), None)
    if where is None:
        raise InputError(
            f"`{path}` lists no files: it needs a header with a column `path`, and a row for each protein."
        )
    label = next((columns[c] for c in _NAMES if c in columns), None)
    found = []
    for row in rows:
        file = path.parent / row[where].strip()
        name = (row[label] or "").strip() if label else ""
        found.append(read_ensemble(file, name or file.stem, (row.get(columns.get("sequence", ""), "") or "").strip()))
    return found


def read_ensemble(path: str | Path, name: str = "", sequence: str = "") -> BackboneFrames:
    """The protein of one HDF5 file; see the module.

    Parameters
    ----------
    path
        The file.
    name
        Of the protein; the file's by default.
    sequence
        One-letter codes of all residues, those too that the mask takes out. Default: what the file says.

    Raises
    ------
    InputError
        It cannot be read.
    DataError
        As `read_manifest`.
    """
    path = Path(path)
    try:
        with h5py_module().File(path, "r") as file:
            if not sequence:
                sequence = _text(file.attrs.get("sequence", file["sequence"][()] if "sequence" in file else ""))
            wanted = (*_COORDINATES.values(), "mask_ca", *_TORSIONS)
            arrays = {key: np.asarray(file[key][()], dtype=float) for key in wanted if key in file}
    except OSError as error:
        raise InputError(f"`{path}` cannot be read as HDF5 ({error}).") from error
    missing = [key for key in list(_COORDINATES.values())[:3] if key not in arrays]
    if missing:
        raise DataError(f"`{path}` has no {', '.join(missing)}; an ensemble needs N, Cα and C, (T, L, 3) in Å.")
    shape = arrays["coords_ca"].shape
    letters = sequence.replace(":", "").strip().upper()
    if len(shape) != 3 or shape[2] != 3 or len(letters) != shape[1] or set(letters) - set(CODES):
        raise DataError(
            f"`{path}`: coords_ca has shape {shape}, and the sequence `{letters}` has {len(letters)} residues. Needed "
            f"are (T, L, 3), and L of the one-letter codes {CODES}: give a column `sequence` in the manifest."
        )
    positions = np.full((*shape[:2], len(ATOMS), 3), np.nan)
    for k, key in enumerate(_COORDINATES.values()):
        if key in arrays:
            if arrays[key].shape != shape:
                raise DataError(f"`{path}`: {key} has shape {arrays[key].shape}, coords_ca {shape}.")
            positions[:, :, k] = arrays[key]
    mask = np.broadcast_to(arrays.get("mask_ca", np.ones(shape[1])) > 0.5, shape[:2]).all(axis=0)
    mask &= np.isfinite(positions[:, :, :3]).all(axis=(0, 2, 3))
    if not mask.any():
        raise DataError(f"`{path}` has no residue with N, Cα and C in every conformation.")
    # Where residues are missing the chain has a gap, whatever the distance is.
    part = np.cumsum(~mask)[mask]
    kept = positions[:, mask]
    whole_sequence = with_gaps("".join(np.array(list(letters))[mask]), part, kept)
    whole, built = completed(whole_sequence, kept)
    frames = BackboneFrames(
        name or path.stem, whole_sequence, whole, built, np.full(shape[0], np.nan), np.full(shape[0], path.stem)
    )
    _compare(path, frames, {key: arrays[key] for key in _TORSIONS if key in arrays}, mask)
    return frames


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "".join(_text(part) for part in value.ravel())
    return value.decode() if isinstance(value, bytes) else str(value)


def _compare(path: Path, frames: BackboneFrames, given: dict[str, np.ndarray], mask: np.ndarray) -> None:
    """Refuse torsions that are not those of the coordinates. An ω may be that of the bond to the last residue."""
    ours = frames.torsions()
    starts = frames.starts
    followed = np.append(~starts[1:], False)
    for k, (key, defined) in enumerate(zip(_TORSIONS, (~starts, followed, followed), strict=True)):
        if key not in given:
            continue
        theirs = given[key]
        if theirs.shape != (len(ours), len(mask), 2):
            raise DataError(f"`{path}`: {key} has shape {theirs.shape}; needed is {(len(ours), len(mask), 2)}.")
        theirs = theirs[:, mask]
        expected = np.stack([np.sin(ours[..., k]), np.cos(ours[..., k])], axis=-1)
        off = [_off(expected[:, defined], theirs[:, defined])]
        if k == 2:
            off.append(_off(expected[:, :-1][:, defined[:-1]], theirs[:, 1:][:, defined[:-1]]))
        if min(off) > _AGREES:
            raise DataError(
                f"`{path}`: {key} differs from the torsions of the coordinates by {min(off):.2f}. It must hold sine "
                "and cosine, in this order, with the sign of IUPAC, and coordinates must be in Å and complete."
            )


def _off(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max(initial=0.0))
