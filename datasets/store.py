"""The dataset file: one HDF5, written whole or not at all, read lazily and with suspicion.

`write_dataset` streams frames into a temporary file beside the target and renames it, so a reader never sees half a
file. `Dataset` checks format, version, units and lengths when it opens, refuses anything that would make HDF5 read
another file (external links, external storage, virtual datasets), opens once per process, and can be pickled.
The layout is in `schema`, the writing in `writer`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..ase_calcs.errors import DataError
from .schema import (
    EXTRA_FIELDS,
    FIELDS,
    HESSIAN_FIELDS,
    KNOWN_ARRAYS,
    LABEL_FIELDS,
    TEXT_FIELDS,
    RawFile,
    check_layout,
    check_offsets,
    upgrade,
)
from .structure import Labels, Structure
from .writer import Frame, content_hash, h5py_module, write_dataset

__all__ = ["Dataset", "Frame", "content_hash", "write_dataset"]


def _field(name: str, doc: str) -> Any:
    return property(lambda self: self.array(name), doc=doc)


class Dataset:
    """A dataset file, open for reading.

    Arrays are read on first use and kept (those above `keep_bytes` are read frame by frame instead); treat them as
    read-only. The file is opened once per process: after a fork, or when unpickled in a worker, it is opened again and
    must still have the same content.

    Parameters
    ----------
    path
        The file.
    keep_bytes
        Largest array that `structure`, `labels` and iteration hold in memory whole.

    Raises
    ------
    DataError
        No such file, damaged, not a dataset, a newer format, wrong units or lengths, or a link out of the file.
    """

    numbers = _field("numbers", "(A,) atomic numbers of all frames.")
    positions = _field("positions", "(A, 3) Å.")
    cell = _field("cell", "(F, 3, 3) Å; zeros for molecules.")
    pbc = _field("pbc", "(F, 3) bool.")
    charge = _field("charge", "(F,) total charge, e.")
    multiplicity = _field("multiplicity", "(F,) 2S+1.")
    group = _field("group", "(F,) str: molecule, protein or material.")
    origin = _field("origin", "(F,) str: how the geometry was made; one origin of one group is one trajectory.")
    smiles = _field("smiles", "(F,) str, empty where not known.")
    energy = _field("energy", "(F,) eV; NaN where a frame has none.")
    forces = _field("forces", "(A, 3) eV/Å; NaN where a frame has none.")
    stress = _field("stress", "(F, 6) eV/Å³, Voigt in ASE's order and sign; NaN where a frame has none.")
    dipole = _field("dipole", "(F, 3) e·Å; NaN where a frame has none.")
    charges = _field("charges", "(A,) partial charges, e; NaN where a frame has none.")
    energies = _field("energies", "(A,) atomic energies, eV; NaN where a frame has none.")
    velocities = _field("velocities", "(A, 3) Å/fs; NaN where a frame has none.")
    temperature = _field("temperature", "(F,) K; NaN where a frame has none.")

    def __init__(self, path: str | Path, *, keep_bytes: int = 1 << 30) -> None:
        self.path = Path(path)
        self.keep_bytes = keep_bytes
        self._hash: str | None = None
        self._forget()
        self._raw()

    def _forget(self) -> None:
        self._pid = -1
        self._file: Any = None
        self._opened: RawFile | None = None
        self._cache: dict[str, np.ndarray] = {}

    # ------------------------------------------------------------------------------------------ opening

    def _raw(self) -> RawFile:
        """The open file of this process."""
        if self._opened is None or self._pid != os.getpid():
            self._forget()
            self._open()
        assert self._opened is not None
        return self._opened

    def _open(self) -> None:
        if not self.path.is_file():
            raise DataError(f"There is no dataset file {self.path}.")
        try:
            # Files are replaced whole and never changed, so no lock is needed; locks fail on many network file systems.
            file = h5py_module().File(self.path, "r", locking=False)
        except OSError as error:
            raise DataError(
                f"{self.path} is not a readable HDF5 file: truncated, damaged or another format ({error})."
            ) from error
        try:
            raw = upgrade(_read_raw(file, str(self.path)), str(self.path))
            n_frames, n_atoms = check_layout(raw, str(self.path))
            offsets = np.asarray(raw.arrays["offsets"][:])
            check_offsets(offsets, n_atoms, str(self.path))
            found = str(raw.attributes.get("content_hash", ""))
            if self._hash is not None and found != self._hash:
                raise DataError(f"{self.path} has been replaced by another dataset while it was in use; open it again.")
            provenance = json.loads(raw.attributes.get("provenance", "{}"))
        except DataError:
            file.close()
            raise
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            file.close()
            raise DataError(f"{self.path} is damaged: {error}") from error
        self._pid, self._file, self._opened, self._hash = os.getpid(), file, raw, found
        self.n_frames, self.n_atoms, self.offsets = n_frames, n_atoms, offsets
        self.provenance: dict[str, Any] = provenance

    def close(self) -> None:
        """Close the file and free the arrays; any later use opens it again."""
        if self._file is not None and self._pid == os.getpid():
            self._file.close()
        self._forget()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "keep_bytes": self.keep_bytes, "_hash": self._hash}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
        self._raw()

    # ------------------------------------------------------------------------------------------ arrays

    @property
    def content_hash(self) -> str:
        """Hash of the arrays as it was when they were written; `recompute_hash` reads them all."""
        return cast(str, self._hash)

    def recompute_hash(self) -> str:
        """Hash of the arrays as they are now; other than `content_hash` if someone changed the file."""
        try:
            return content_hash({name: array for name, array in self._raw().arrays.items() if name in KNOWN_ARRAYS})
        except OSError as error:
            raise DataError(f"{self.path} is damaged: {error}. Write it again from its sources.") from error

    @property
    def fields(self) -> set[str]:
        """Names of the arrays that this file has."""
        return {name for name in self._raw().arrays if name in FIELDS or name in HESSIAN_FIELDS}

    @property
    def unknown_arrays(self) -> tuple[str, ...]:
        """Names of arrays in the file that the format does not know and nothing reads."""
        return tuple(sorted(set(self._raw().arrays) - KNOWN_ARRAYS))

    def array(self, name: str) -> np.ndarray:
        """A whole array by name, in memory; `group`, `origin` and `smiles` as arrays of str.

        Raises
        ------
        DataError
            If this file does not have it, or it cannot be read.
        """
        raw = self._raw()
        if name not in self._cache:
            if name not in raw.arrays:
                raise DataError(
                    f"{self.path} has no `{name}`; it has {', '.join(sorted(self.fields))}. "
                    f"{'Label it first (`distillase label`).' if name in ('energy', 'forces') else ''}".strip()
                )
            values = self._read(name, slice(None))
            # Small integers are an accident of storage: torch would take uint8 numbers for a mask.
            self._cache[name] = values.astype(np.int64) if values.dtype.kind in "iu" else values
            if name in TEXT_FIELDS:
                names = np.array([text.decode() for text in self._read(f"{name}_names", slice(None))], dtype=object)
                codes = self._cache[name]
                if codes.size and (codes.min() < 0 or codes.max() >= len(names)):
                    raise DataError(f"{self.path}: `{name}` points outside `{name}_names`; the file is damaged.")
                self._cache[name] = names[codes]
        return self._cache[name]

    def rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Some rows of an array in any order, as `array` gives them. Where that is not in memory already, only what
        lies between the first and the last of them is read, and not kept, unless that is nearly all there is.

        Raises
        ------
        DataError
            As `array`.
        """
        raw = self._raw().arrays
        first, last = (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 0)
        if name not in raw or name in self._cache or name in TEXT_FIELDS or last - first > 0.9 * raw[name].shape[0]:
            return self.array(name)[rows]
        values = self._read(name, slice(first, last))[rows - first]
        return values.astype(np.int64) if values.dtype.kind in "iu" else values

    def _read(self, name: str, rows: slice) -> np.ndarray:
        try:
            return np.asarray(self._raw().arrays[name][rows])
        except OSError as error:
            raise DataError(f"{self.path}: `{name}` cannot be read, the file is damaged ({error}).") from error

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A copy of some rows, from memory if the array is small enough to be kept."""
        array = self._raw().arrays[name]
        if name in self._cache or name in TEXT_FIELDS or array.size * array.dtype.itemsize <= self.keep_bytes:
            return self.array(name)[start:stop].copy()
        return self._read(name, slice(start, stop))

    def _frame(self, name: str, i: int) -> Any:
        """The value of one frame; None if the file has none or it is NaN."""
        if name not in self._raw().arrays:
            return None
        if FIELDS[name].per == "atom":
            value = self._rows(name, int(self.offsets[i]), int(self.offsets[i + 1]))
        else:
            value = self._rows(name, i, i + 1)[0]
        return None if value.dtype.kind == "f" and np.isnan(value).any() else value

    # ------------------------------------------------------------------------------------------ frames

    def __len__(self) -> int:
        return self.n_frames

    def _index(self, i: int) -> int:
        if not -self.n_frames <= i < self.n_frames:
            raise IndexError(f"frame {i} of a dataset of {self.n_frames}")
        return int(i) % self.n_frames

    def structure(self, i: int) -> Structure:
        """Geometry and electronic state of frame i."""
        i = self._index(i)
        text = {name: str(self.array(name)[i]) for name in TEXT_FIELDS}
        return Structure(
            numbers=self._frame("numbers", i).astype(np.int64),
            positions=self._frame("positions", i),
            cell=self._frame("cell", i),
            pbc=self._frame("pbc", i),
            charge=int(self.charge[i]),
            multiplicity=int(self.multiplicity[i]),
            **text,
        )

    def labels(self, i: int) -> Labels | None:
        """Labels of frame i; None if it has neither energy nor forces. A single one that is missing is None in it."""
        i = self._index(i)
        values = {name: self._frame(name, i) for name in LABEL_FIELDS}
        if values["energy"] is None and values["forces"] is None:
            return None
        if values["energy"] is not None:
            values["energy"] = float(values["energy"])
        return Labels(**values)

    def extras(self, i: int) -> dict[str, np.ndarray]:
        """Velocities, temperature and Hessian rows of frame i, those that it has; shapes as in `write_dataset`."""
        i = self._index(i)
        found = {name: np.asarray(value) for name in EXTRA_FIELDS if (value := self._frame(name, i)) is not None}
        if "hessian_row_offsets" in self._raw().arrays:
            rows = self.array("hessian_row_offsets")
            width = 3 * np.diff(self.offsets)
            if rows[i + 1] > rows[i]:
                if "hessian_start" not in self._cache:
                    self._cache["hessian_start"] = np.concatenate([[0], np.cumsum(np.diff(rows) * width)])
                start, stop = self._cache["hessian_start"][i : i + 2]
                found["hessian_row_index"] = self._rows("hessian_row_index", int(rows[i]), int(rows[i + 1]))
                found["hessian_rows"] = self._rows("hessian_rows", int(start), int(stop)).reshape(-1, int(width[i]))
        return found

    def frames(
        self, indices: Iterable[int] | None = None
    ) -> Iterator[tuple[Structure, Labels | None, dict[str, np.ndarray]]]:
        """Frames with everything they have, ready for `write_dataset`; in the order of `indices`, default all."""
        for i in range(self.n_frames) if indices is None else indices:
            yield self.structure(int(i)), self.labels(int(i)), self.extras(int(i))

    def __iter__(self) -> Iterator[tuple[Structure, Labels | None]]:
        for i in range(self.n_frames):
            yield self.structure(i), self.labels(i)

    def __repr__(self) -> str:
        return f"Dataset({str(self.path)!r}: {self.n_frames} frames, {self.n_atoms} atoms, {self.content_hash[:8]})"


def _read_raw(file: Any, path: str) -> RawFile:
    """Names, arrays and units of a file, none of which may lead out of it."""
    h5py = h5py_module()
    arrays: dict[str, Any] = {}
    units: dict[str, str | None] = {}
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise DataError(
                f"{path}: `{name}` is a link ({type(link).__name__}) and not an array. Dataset files stand alone: "
                f"links are never followed. Write the arrays themselves into the file."
            )
        item = file[name]
        if not isinstance(item, h5py.Dataset):
            continue
        if item.external is not None or item.is_virtual:
            raise DataError(
                f"{path}: the values of `{name}` lie in another file (external storage or a virtual dataset), which is "
                f"never read. Write the arrays themselves into the file."
            )
        arrays[name] = item
        unit = item.attrs.get("unit")
        units[name] = unit.decode() if isinstance(unit, bytes) else None if unit is None else str(unit)
    return RawFile(attributes=dict(file.attrs), arrays=arrays, units=units)
