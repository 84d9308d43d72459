"""Writing a dataset file: streamed into a temporary file, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from ..ase_calcs.errors import DataError, require
from .schema import (
    EXTRA_FIELDS,
    FIELDS,
    FORMAT_NAME,
    FORMAT_VERSION,
    HESSIAN_FIELDS,
    LABEL_FIELDS,
    TEXT_FIELDS,
    unit_of,
)
from .structure import Labels, Structure

CHUNK_BYTES = 1 << 18
FRAMES_PER_FLUSH = 4096
HASH_ROWS = 1 << 18
GEOMETRY_FIELDS = ("numbers", "positions", "cell", "pbc", "charge", "multiplicity")

# Structure, its labels if it has any, and further arrays of the frame if there are any.
Frame = tuple[Structure, Labels | None] | tuple[Structure, Labels | None, Mapping[str, Any]]


@dataclass(frozen=True)
class FrameTable:
    """Many frames, each field joined: takes a tenth of the time of as many `Frame`.

    Attributes
    ----------
    counts
        (F,) int, atoms of each frame, at least one.
    columns
        Every required field and what labels there are, with the shapes of `distillase.datasets.schema` (F frames, A
        atoms); ``group``, ``origin`` and ``smiles`` as F strings. A label that a frame lacks is NaN throughout.
    """

    counts: np.ndarray
    columns: Mapping[str, Any]


def h5py_module() -> Any:
    """The h5py module, or one sentence on how to install it."""
    return require("h5py", extra="train", purpose="read and write dataset files")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success fsync it and rename it to `path`, on failure remove it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}"
    try:
        yield temporary
        with open(temporary, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def content_hash(arrays: Mapping[str, Any]) -> str:
    """Hash of names, types, shapes and values of arrays (32 hex digits), whatever the container and its compression."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {np.dtype(array.dtype).str} {tuple(array.shape)}\n".encode())
        for start in range(0, len(array), HASH_ROWS):
            digest.update(np.ascontiguousarray(array[start : start + HASH_ROWS]).tobytes())
    return digest.hexdigest()


def write_dataset(
    path: str | Path,
    frames: Iterable[Frame | FrameTable],
    *,
    provenance: Mapping[str, Any],
) -> Path:
    """Write a dataset file; equal frames give byte-equal arrays.

    Parameters
    ----------
    path
        Target; replaced in one step if it exists.
    frames
        (structure, labels) pairs, labels None where there are none. A third member may hold further arrays of the
        frame: ``velocities`` (N, 3) Å/fs, ``temperature`` () K, and ``hessian_rows`` (k, 3N) eV/Å² together with
        ``hessian_row_index`` (k,), where row 3a + d is the derivative of the gradient with respect to direction d of
        atom a. Labels that are None are stored as rows of NaN if other frames have them, else not at all. A
        `FrameTable` may stand for many pairs.
    provenance
        Teacher, version, settings, seed, hash of the source file, …: anything that JSON can hold.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    DataError
        No frames, an array of the wrong shape, or a value that is not finite.
    """
    path = Path(path)
    try:
        provenance_json = json.dumps(dict(provenance), ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"The provenance of {path} cannot be written as JSON: {error}.") from error
    with atomic_write(path) as temporary, h5py_module().File(temporary, "w") as file:
        writer = _Writer(file)
        for frame in frames:
            if isinstance(frame, FrameTable):
                writer.add_table(frame)
                continue
            structure, labels, extras = frame if len(frame) == 3 else (*frame, {})
            writer.add(structure, labels, extras)
        if writer.n_frames == 0:
            raise DataError(f"There are no frames to write to {path}; a dataset has at least one.")
        writer.finish()
        file.attrs["format"] = FORMAT_NAME
        file.attrs["version"] = FORMAT_VERSION
        file.attrs["provenance"] = provenance_json
        file.attrs["content_hash"] = content_hash(file)
    return path


class _Writer:
    """Collects frames, checks them and appends them to the file in large pieces."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.n_frames = 0
        self.n_atoms = 0
        self.text: dict[str, dict[str, int]] = {name: {} for name in TEXT_FIELDS}
        self.hessian_counts: list[int] = []
        self.sizes: list[int] = []
        self._clear()

    def _clear(self) -> None:
        self.first_frame, self.first_atom = self.n_frames, self.n_atoms
        self.rows: dict[str, list[Any]] = {name: [] for name in FIELDS}
        self.names: list[tuple[str, str]] = []  # group and origin, for messages
        self.others: list[dict[str, Any]] = []  # extras that are not fields: rows of the Hessian
        self.hessian: dict[str, list[np.ndarray]] = {"hessian_rows": [], "hessian_row_index": []}

    def add(self, structure: Structure, labels: Labels | None, extras: Mapping[str, Any]) -> None:
        """Take one frame into the buffers. It is checked when they are written, with many others at once."""
        rows = self.rows
        for name in GEOMETRY_FIELDS:
            rows[name].append(_copied(getattr(structure, name)))
        for name in TEXT_FIELDS:
            table = self.text[name]
            rows[name].append(table.setdefault(str(getattr(structure, name)), len(table)))
        for name in LABEL_FIELDS:
            rows[name].append(None if labels is None else _copied(getattr(labels, name)))
        for name in EXTRA_FIELDS:
            rows[name].append(_copied(extras.get(name)))
        self.others.append({name: _copied(value) for name, value in extras.items() if name not in EXTRA_FIELDS})
        self.names.append((structure.group, structure.origin))
        self._count([len(structure.numbers)])
        if self.n_frames - self.first_frame >= FRAMES_PER_FLUSH:
            self.flush()

    def add_table(self, table: FrameTable) -> None:
        """Check many frames and append them to the file."""
        self.flush()
        columns = _checked_columns(table, self.n_frames)
        for name in TEXT_FIELDS:
            codes = self.text[name]
            columns[name] = np.array([codes.setdefault(str(text), len(codes)) for text in table.columns[name]])
        counts = np.asarray(table.counts).tolist()
        self._count(counts)
        self.hessian_counts += [0] * len(counts)
        self._append(columns)
        self._clear()

    def _count(self, counts: Sequence[int]) -> None:
        self.sizes += counts
        self.n_frames += len(counts)
        self.n_atoms += sum(counts)

    def flush(self) -> None:
        """Check the buffers and append them to the file."""
        if self.n_frames == self.first_frame:
            return
        counts = self.sizes[self.first_frame :]
        columns = _columns(self.rows, counts)
        if columns is None or any(self.others):
            # Something does not fit, or there are rows of a Hessian: frame by frame, to say which frame and what.
            columns = _columns(self._checked_one_by_one(counts), counts)
        else:
            self.hessian_counts += [0] * len(counts)
        assert columns is not None
        self._append(columns)
        for name, parts in self.hessian.items():
            if parts:
                array = self._array(name, HESSIAN_FIELDS[name], ())
                values = np.concatenate(parts)
                array.resize(array.shape[0] + len(values), axis=0)
                array[-len(values) :] = values
        self._clear()

    def _append(self, columns: Mapping[str, np.ndarray]) -> None:
        """Write the rows from `first_frame` and `first_atom` on."""
        for name, column in columns.items():
            spec = FIELDS[name]  # rows that are never written read as the fill value, NaN
            start, stop = (self.first_atom, self.n_atoms) if spec.per == "atom" else (self.first_frame, self.n_frames)
            array = self._array(name, spec.dtype, spec.tail)
            array.resize(stop, axis=0)
            array[start:stop] = column

    def _checked_one_by_one(self, counts: Sequence[int]) -> dict[str, list[Any]]:
        """The rows with the types of the file; DataError for the first frame that does not fit."""
        checked: dict[str, list[Any]] = {name: [] for name in FIELDS}
        for k, n in enumerate(counts):
            group, origin = self.names[k]
            where = f"Frame {self.first_frame + k} ({group or 'no group'}, {origin or 'no origin'})"
            if n == 0:
                raise DataError(f"{where} has no atoms.")
            unknown = sorted(set(self.others[k]) - set(HESSIAN_FIELDS))
            if unknown:
                raise DataError(f"{where} has arrays that the dataset format does not know: {', '.join(unknown)}.")
            for name, rows in self.rows.items():
                checked[name].append(None if rows[k] is None else _checked_row(rows[k], name, n, where))
            self._add_hessian(self.others[k], n, where)
        return checked

    def _add_hessian(self, extras: Mapping[str, Any], n: int, where: str) -> None:
        if ("hessian_rows" in extras) != ("hessian_row_index" in extras):
            raise DataError(f"{where}: `hessian_rows` and `hessian_row_index` go together.")
        if "hessian_rows" not in extras:
            self.hessian_counts.append(0)
            return
        rows, index = (
            np.asarray(extras["hessian_rows"], dtype="<f8"),
            np.asarray(extras["hessian_row_index"], dtype="<i4"),
        )
        if index.ndim != 1 or rows.shape != (len(index), 3 * n) or not np.isfinite(rows).all():
            raise DataError(
                f"{where}: `hessian_rows` must be finite with shape ({len(index)}, {3 * n}), got {rows.shape}."
            )
        if np.any(index < 0) or np.any(index >= 3 * n):
            raise DataError(f"{where}: `hessian_row_index` must lie between 0 and {3 * n - 1}.")
        self.hessian["hessian_rows"].append(rows.ravel())
        self.hessian["hessian_row_index"].append(index)
        self.hessian_counts.append(len(index))

    def _array(self, name: str, dtype: str, tail: tuple[int, ...]) -> Any:
        """The growing array in the file, made on first use."""
        if name in self.file:
            return self.file[name]
        kind = np.dtype(dtype)
        rows = max(1, CHUNK_BYTES // (kind.itemsize * int(np.prod(tail, dtype=int))))
        array = self.file.create_dataset(
            name,
            shape=(0, *tail),
            maxshape=(None, *tail),
            chunks=(rows, *tail),
            dtype=kind,
            fillvalue=np.nan if kind.kind == "f" else None,
            shuffle=True,
            compression="gzip",
            compression_opts=4,
            fletcher32=True,
            track_times=False,
        )
        array.attrs["unit"] = unit_of(name)
        return array

    def _fixed(self, name: str, values: np.ndarray) -> None:
        array = self.file.create_dataset(
            name, data=values, compression="gzip", shuffle=True, fletcher32=True, track_times=False, chunks=True
        )
        array.attrs["unit"] = unit_of(name)

    def finish(self) -> None:
        """Write what is known only at the end."""
        self.flush()
        for name, spec in FIELDS.items():
            if name in self.file:
                self.file[name].resize(spec.rows(self.n_frames, self.n_atoms), axis=0)
        self._fixed("offsets", np.concatenate([[0], np.cumsum(self.sizes)]).astype("<i8"))
        for name, table in self.text.items():
            # Fixed-length UTF-8: unlike HDF5's variable-length strings it is compressed and checksummed.
            self._fixed(f"{name}_names", np.array([text.encode() for text in table], dtype=bytes))
        if "hessian_rows" in self.file:
            self._fixed("hessian_row_offsets", np.concatenate([[0], np.cumsum(self.hessian_counts)]).astype("<i8"))


def _copied(value: Any) -> Any:
    """A copy, for the array may be used again for the next frame; None and numbers as they are."""
    return value if value is None or isinstance(value, int | float | np.generic) else np.array(value)


def _columns(rows: Mapping[str, Sequence[Any]], counts: Sequence[int]) -> dict[str, np.ndarray] | None:
    """Every field that any frame has, joined; None if anything does not fit."""
    if 0 in counts:
        return None
    columns: dict[str, np.ndarray] = {}
    for name, values in rows.items():
        if any(row is not None for row in values):
            column = _joined(name, values, counts)
            if column is None:
                return None
            columns[name] = column
    return columns


def _joined(name: str, rows: Sequence[Any], counts: Sequence[int]) -> np.ndarray | None:
    """One field of many frames with the type of the file, NaN where a frame has none; None if anything does not fit.

    Says the same as `_checked_row` for each of them, in a tenth of the time, but not which one is wrong.
    """
    spec = FIELDS[name]
    has = [row is not None for row in rows]
    present = list(compress(rows, has))
    per_atom = spec.per == "atom"
    if per_atom or spec.tail:
        shapes = [(n, *spec.tail) for n in compress(counts, has)] if per_atom else [spec.tail] * len(present)
        if [getattr(row, "shape", ()) for row in present] != shapes or len({row.dtype for row in present}) > 1:
            return None
        values = np.concatenate(present).reshape(-1, *spec.tail)
    else:
        try:
            values = np.array(present)
        except ValueError:
            return None
        if values.shape != (len(present),):
            return None
    if values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        return None
    stored = values.astype(spec.dtype)
    if stored.dtype.kind in "iu" and not np.array_equal(stored, values):
        return None
    if len(present) < len(rows):
        where = np.repeat(has, counts) if per_atom else np.array(has)
        filled = np.full((len(where), *spec.tail), np.nan)
        filled[where] = stored
        return filled
    return stored


def _checked_columns(table: FrameTable, first_frame: int) -> dict[str, np.ndarray]:
    """Columns with the types of the file, without the text and without labels that no frame has.

    Raises
    ------
    DataError
        A field is missing or unknown, has the wrong shape or type, or is not finite in part of a frame.
    """
    counts = np.asarray(table.counts)
    required = {name for name, spec in FIELDS.items() if spec.required}
    if missing := sorted(required - set(table.columns)):
        raise DataError(f"A table of frames has no {', '.join(missing)}.")
    if unknown := sorted(set(table.columns) - set(FIELDS)):
        raise DataError(f"A table of frames has columns that the dataset format does not know: {', '.join(unknown)}.")
    if len(counts) == 0 or counts.min() < 1:
        raise DataError("A table of frames needs at least one frame, and at least one atom in each.")
    checked = {}
    for name, column in table.columns.items():
        spec = FIELDS[name]
        rows = spec.rows(len(counts), int(counts.sum()))
        if name in TEXT_FIELDS:
            if len(column) != rows:
                raise DataError(f"`{name}` of a table has {len(column)} entries for {rows} frames.")
            continue
        values = np.asarray(column)
        if values.shape != (rows, *spec.tail) or values.dtype.kind not in "biuf":
            raise DataError(
                f"`{name}` of a table of frames is {values.dtype} of shape {values.shape}, and must be numbers of "
                f"shape {(rows, *spec.tail)}."
            )
        finite = np.isfinite(values).reshape(rows, -1)
        if not finite.all():
            starts = np.cumsum(counts) - counts if spec.per == "atom" else np.arange(rows)
            whole = np.logical_and.reduceat(finite.all(axis=1), starts)
            if spec.required or not np.array_equal(whole, np.logical_or.reduceat(finite.any(axis=1), starts)):
                frame = first_frame + int(np.flatnonzero(~whole)[0])
                raise DataError(f"Frame {frame}: `{name}` is not finite. A failed label has no place in a dataset.")
            if not whole.any():
                continue
        stored = values.astype(spec.dtype, copy=False)
        if stored.dtype.kind in "iu" and not np.array_equal(stored, values):
            raise DataError(f"`{name}` of a table must be whole numbers within the range of {stored.dtype.name}.")
        checked[name] = stored
    return checked


def _checked_row(value: Any, name: str, n: int, where: str) -> np.ndarray:
    """One frame's value with the type of the file, or a DataError if its shape or its numbers do not fit."""
    spec = FIELDS[name]
    shape = (n, *spec.tail) if spec.per == "atom" else spec.tail
    row = np.asarray(value)
    if row.shape != shape:
        raise DataError(f"{where}: `{name}` has shape {row.shape}, and must have {shape}.")
    if not np.isfinite(row).all():
        raise DataError(
            f"{where}: `{name}` is not finite. A failed label has no place in a dataset; leave the frame out, or give "
            f"the label as None."
        )
    stored = row.astype(spec.dtype)
    if stored.dtype.kind in "iu" and not np.array_equal(stored, row):
        raise DataError(f"{where}: `{name}` must be whole numbers within the range of {stored.dtype.name}, got {row}.")
    return stored
