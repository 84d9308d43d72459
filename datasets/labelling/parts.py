"""Part files and the ledger: how labels outlive the process that made them.

A part is an immutable ``.npz`` with some labels and refusals. It is written under a temporary name, flushed to the
disk, then renamed, and its name ends in the hash of its content, so that a damaged one is seen. The ledger is nothing
but what the parts say, keyed by structure hash; there is no second file that could disagree with them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ...ase_calcs.errors import DataError
from ..lock import locked
from ..structure import Labels
from .config import TeacherStamp

FORMAT = 1
PER_ATOM = ("charges", "energies")
PER_FRAME = {"dipole": 3, "stress": 6}
_CACHED_PARTS = 32


@dataclass(frozen=True)
class Refusal:
    """A teacher's refusal of one structure.

    Attributes
    ----------
    kind
        ``"teacher"`` (it said why), ``"non-finite"``, ``"time-out"``, ``"crash"`` or ``"error"`` (an unexpected
        exception).
    reason
        For people.
    limit_s
        For a time-out: how long the teacher was given, s.
    """

    kind: str
    reason: str
    limit_s: float = 0.0


def work_dir(labels_dir: Path) -> Path:
    """Where files live that a crash may leave behind; emptied when a run starts."""
    return labels_dir / "tmp"


def write_part(
    labels_dir: Path, name: str, stamp: TeacherStamp, arrays: Mapping[str, np.ndarray], refused: Mapping[bytes, Refusal]
) -> Path:
    """Write one part: temporary name, fsync, rename, fsync of the folder. When it returns, the labels are durable.

    Parameters
    ----------
    labels_dir
        Folder of the parts.
    name
        Unique start of the file's name.
    stamp
        The teacher.
    arrays
        Labelled structures: keys (F, 16) uint8, sizes (F,), energy (F,) eV, forces (A, 3) eV/Å, longest_force (F,)
        eV/Å, and what else the teacher gives; NaN where it does not.
    refused
        Refused structures by key.
    """
    header = {
        "format": FORMAT,
        "teacher": stamp.to_json(),
        "refused": [[key.hex(), r.kind, r.reason, r.limit_s] for key, r in refused.items()],
    }
    buffer = io.BytesIO()
    members: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays}
    np.savez(buffer, **members)
    content = buffer.getbuffer()
    path = labels_dir / f"{name}.{_digest(content)}.npz"
    temporary = work_dir(labels_dir) / path.name
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
    _sync_folder(labels_dir)
    return path


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_part(path: Path, *, only: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Header and arrays (or `only` some of them) of a part; None if its content is not what was once written."""
    content = path.read_bytes()
    if _digest(content) != path.name.split(".")[-2]:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            names = [name for name in archive.files if name in only] if only else archive.files
            arrays = {name: archive[name] for name in names if name != "header"}
    except (BadZipFile, KeyError, ValueError, OSError) as error:
        raise DataError(f"{path} has the right checksum but cannot be read ({error}); is it a label part?") from error
    if header["format"] > FORMAT:
        raise DataError(f"{path} is of label format {header['format']}, newer than {FORMAT}: update distillase.")
    return header, arrays


@dataclass
class Ledger:
    """What is known of every structure in a folder of parts.

    Attributes
    ----------
    labels_dir
        The folder.
    labelled
        key → (index of the part, row in it).
    refused
        key → the teacher's refusal.
    damaged
        Parts that were set aside because their content has changed.
    """

    labels_dir: Path
    labelled: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    refused: dict[bytes, Refusal] = field(default_factory=dict)
    damaged: list[Path] = field(default_factory=list)
    _paths: list[Path] = field(default_factory=list)
    _longest: list[np.ndarray] = field(default_factory=list)
    _cache: OrderedDict[int, _Rows] = field(default_factory=OrderedDict)

    @classmethod
    def scan(cls, labels_dir: Path, stamp: TeacherStamp, *, pattern: str = "*.npz") -> Ledger:
        """Read every part. Damaged ones are renamed ``*.damaged``, and their structures are labelled again.

        Raises
        ------
        DataError
            The folder holds labels of another teacher, of another version of it, or of a newer format.
        """
        ledger = cls(labels_dir)
        for path in sorted(labels_dir.glob(pattern)):
            content = read_part(path, only=("keys", "longest_force"))
            if content is None:
                ledger.damaged.append(path.rename(path.with_name(path.name + ".damaged")))
                continue
            header, arrays = content
            if header["teacher"] != stamp.to_json():
                other = TeacherStamp(**header["teacher"])
                raise DataError(
                    f"{labels_dir} holds labels from {other.describe()} with settings {other.settings}, and this run "
                    f"asks for {stamp.describe()} with settings {stamp.settings}. Labels of two teachers are never "
                    "mixed: choose another output folder, or delete this one if its labels are not needed."
                )
            for row, key in enumerate(_keys(arrays)):
                ledger.labelled.setdefault(key, (len(ledger._paths), row))
            for key, kind, reason, limit_s in header["refused"]:
                ledger._refuse(bytes.fromhex(key), Refusal(kind, reason, limit_s))
            ledger._paths.append(path)
            ledger._longest.append(arrays.get("longest_force", np.zeros(0)))
        for key in ledger.labelled:
            ledger.refused.pop(key, None)  # it was refused once, and then retried with success
        return ledger

    def _refuse(self, key: bytes, refusal: Refusal) -> None:
        known = self.refused.get(key)
        if known is None or refusal.limit_s > known.limit_s:
            self.refused[key] = refusal

    def known(self) -> set[bytes]:
        """Keys of all structures with a label or a refusal."""
        return {*self.labelled, *self.refused}

    def labels(self, key: bytes) -> Labels:
        """The label of one structure. Consecutive structures are cheap: parts are kept while they are in use."""
        part, row = self.labelled[key]
        return self._rows(part).labels(row)

    def columns(self, keys: Sequence[bytes], offsets: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of many structures, joined, in a hundredth of the time that `labels` takes for each.

        Parameters
        ----------
        keys
            F structures with labels.
        offsets
            (F + 1,) int; structure f has atoms ``offsets[f]:offsets[f + 1]`` of the arrays that are returned.

        Returns
        -------
        dict
            energy (F,) eV, forces (A, 3) eV/Å, and what else any of them has, NaN for structures that do not have it.
        """
        part_of, row_of = np.array([self.labelled[key] for key in keys]).T
        n_frames, n_atoms = len(keys), int(offsets[-1])
        joined: dict[str, np.ndarray] = {}
        for part in np.unique(part_of).tolist():
            frames = np.flatnonzero(part_of == part)
            atoms = _ranges(offsets, frames)
            for name, values in self._rows(part).take(row_of[frames]).items():
                per_atom = name in ("forces", *PER_ATOM)
                if name not in joined:
                    joined[name] = np.full((n_atoms if per_atom else n_frames, *values.shape[1:]), np.nan)
                joined[name][atoms if per_atom else frames] = values
        return joined

    def longest_force(self, key: bytes) -> float:
        """Of the label of one structure, eV/Å."""
        part, row = self.labelled[key]
        return float(self._longest[part][row])

    def _rows(self, part: int) -> _Rows:
        if part not in self._cache:
            content = read_part(self._paths[part])
            if content is None:
                raise DataError(f"{self._paths[part]} was changed while it was read. Run the same command again.")
            self._cache[part] = _Rows(content[1])
            while len(self._cache) > _CACHED_PARTS:
                self._cache.popitem(last=False)
        return self._cache[part]


def _keys(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    if "keys" in arrays:
        flat = arrays["keys"].tobytes()
        yield from (flat[i : i + 16] for i in range(0, len(flat), 16))


def _ranges(offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """``offsets[r]:offsets[r + 1]`` of every row r, one after another."""
    sizes = offsets[rows + 1] - offsets[rows]
    ends = np.cumsum(sizes)
    return np.repeat(offsets[rows] - (ends - sizes), sizes) + np.arange(ends[-1])


class _Rows:
    """Rows of one part as `Labels`, or many of them joined."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays
        self._offsets = np.concatenate([[0], np.cumsum(arrays["sizes"])])

    def labels(self, row: int) -> Labels:
        atoms = slice(self._offsets[row], self._offsets[row + 1])
        optional: dict[str, np.ndarray] = {}
        for name in (*PER_ATOM, *PER_FRAME):
            if name in self._arrays:
                value = self._arrays[name][atoms if name in PER_ATOM else row]
                if np.isfinite(value).all():
                    optional[name] = value
        return Labels(float(self._arrays["energy"][row]), self._arrays["forces"][atoms], **optional)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of some rows, joined by field; a field that is not finite throughout a structure is NaN for it."""
        atoms = _ranges(self._offsets, rows)
        taken = {"energy": self._arrays["energy"][rows], "forces": self._arrays["forces"][atoms]}
        sizes = self._arrays["sizes"][rows]
        for name in (*PER_ATOM, *PER_FRAME):
            if name not in self._arrays:
                continue
            values = self._arrays[name][atoms if name in PER_ATOM else rows]
            if not np.isfinite(values).all():
                if name in PER_ATOM:
                    whole = np.repeat(np.logical_and.reduceat(np.isfinite(values), np.cumsum(sizes) - sizes), sizes)
                else:
                    whole = np.isfinite(values).all(axis=1)
                values[~whole] = np.nan
            taken[name] = values
        return taken


@contextmanager
def exclusive(labels_dir: Path) -> Iterator[None]:
    """Make the folder, keep other runs out of it, and sweep out what a killed run left half written.

    Raises
    ------
    DataError
        Another run is at work in the folder.
    """
    with locked(labels_dir, "labelling"):
        shutil.rmtree(work_dir(labels_dir), ignore_errors=True)
        work_dir(labels_dir).mkdir(exist_ok=True)
        try:
            yield
        finally:
            shutil.rmtree(work_dir(labels_dir), ignore_errors=True)
