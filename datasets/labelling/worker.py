"""What runs in a worker: label a block of structures, and put the labels on the disk before anyone is told.

A worker can be killed at any moment, by a power cut, by the watchdog below, or by a teacher that crashes. So it notes
in a small file, the marker, which structure it is at. The marker outlives the process and is removed when the client
knows that the block is done; whoever finds one knows that the block was begun, and where it ended.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    CalculationFailed,
    CalculatorError,
    PropertyNotImplementedError,
)

from ...ase_calcs.errors import DataError, InputError, MissingDependency, TeacherError
from ...ase_calcs.teachers import make_teacher, parse_teacher
from ...ase_calcs.teachers.base import TeacherCalculator
from .blocks import Block
from .config import LabelConfig, TeacherStamp
from .parts import PER_ATOM, PER_FRAME, Refusal, work_dir, write_part

_TEXT_AT = 32  # marker: position in the block (8 bytes), process id (8), then what the watchdog or a crash wrote
_REARM = 0.25  # the watchdog is set anew after this fraction of the time-out: doing so costs 50 µs


@dataclass(frozen=True)
class Job:
    """What is the same for every block of one run."""

    labels_dir: Path
    stamp: TeacherStamp
    config: LabelConfig


@dataclass(frozen=True)
class BlockReport:
    """What a worker tells the client of one block.

    Attributes
    ----------
    status
        ``"done"``, or ``"died"`` if an earlier attempt at the block killed its worker.
    labelled, refused
        Structures that are now durable.
    seconds
        Time spent, s.
    """

    status: Literal["done", "died"]
    labelled: int = 0
    refused: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Marker:
    """Where a worker was when it died.

    Attributes
    ----------
    position
        Structure in the block; −1 if it had not begun the first.
    pid
        Its process id.
    text
        What the watchdog (``Timeout …``) or Python's fault handler (``Fatal Python error: …``) had to say.
    """

    position: int
    pid: int
    text: str


def marker_path(labels_dir: Path, name: str) -> Path:
    """Marker of the block of that name."""
    return work_dir(labels_dir) / f"{name}.marker"


def read_marker(labels_dir: Path, name: str) -> Marker | None:
    """The marker a dead worker left, or None if the block was never begun (or is done)."""
    try:
        content = marker_path(labels_dir, name).read_bytes()
    except FileNotFoundError:
        return None
    position, pid = np.frombuffer(content[:16].ljust(16, b"\xff"), dtype=np.int64)
    return Marker(int(position), int(pid), content[_TEXT_AT:].decode(errors="replace").strip())


def begun(labels_dir: Path, name: str) -> Literal["no", "at work", "left"]:
    """How far a block has come whose worker cannot be asked any more.

    ``"no"``: nobody has begun it, and from now on nobody does. ``"at work"``: its worker lives. ``"left"``: it is done,
    or its worker is dead; the parts tell.
    """
    try:
        os.close(os.open(marker_path(labels_dir, name), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
        return "no"
    except FileExistsError:
        pass
    with open(marker_path(labels_dir, name), "r+b") as marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "at work"
        except OSError:  # a file system without locks: a structure may be labelled twice there, which does no harm
            return "left"
        if not marker.read(1):  # its worker has made the marker and not yet locked it: it shall not begin
            marker.write(np.array([-1], dtype=np.int64).tobytes())
        return "left"


def label_block(job: Job, name: str, block: Block) -> BlockReport:
    """Label the structures of a block and write them as part files at least every `batch_seconds`.

    Parameters
    ----------
    job
        Folder, teacher, configuration.
    name
        Unique name of the block; its parts are called ``<name>-<count>.<hash>.npz``.
    block
        The structures.
    """
    start = time.perf_counter()
    _check_place(job.labels_dir, job.stamp)
    try:
        marker = os.open(marker_path(job.labels_dir, name), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError:
        return BlockReport("died")
    with suppress(OSError):  # a file system without locks
        fcntl.flock(marker, fcntl.LOCK_EX)
    if os.fstat(marker).st_size:  # see `begun`
        os.close(marker)
        return BlockReport("died")
    with os.fdopen(marker, "r+b", buffering=0) as file, _watched(file, job.config.timeout_s) as rearm:
        os.pwrite(marker, np.array([-1, os.getpid()], dtype=np.int64).tobytes(), 0)
        batch = _Batch(job, name, block)  # makes the teacher: a large model's loading is not a structure's time
        for frame in range(len(block)):
            os.pwrite(marker, frame.to_bytes(8, "little"), 0)
            rearm(batch.last)
            batch.add(frame)
        batch.write()
    # The marker stays until the client has heard of it: should the report get lost, the block is not done again.
    return BlockReport("done", batch.total_labelled, batch.total_refused, time.perf_counter() - start)


@lru_cache(maxsize=16)
def _check_place(labels_dir: Path, stamp: TeacherStamp) -> None:
    """Once in every process: a worker may have come after those that `hello` was said to.

    Raises
    ------
    DataError
        It does not see the folder, or has another version of the teacher.
    InputError
        It runs blocks in several threads.
    """
    where = f"The worker on {os.uname().nodename}"
    if not work_dir(labels_dir).is_dir():
        raise DataError(f"{where} does not see {labels_dir}. Workers need a common file system.")
    found = TeacherStamp.of(stamp.name)
    if found != stamp:
        raise DataError(
            f"{where} has {found.describe()}, the run {stamp.describe()}. Install the same version everywhere."
        )
    from distributed import get_worker

    try:
        worker = get_worker()
    except ValueError:  # not in a dask worker
        return
    refuse_threads(where, worker.state.nthreads)


def refuse_threads(worker: str, threads: int) -> None:
    """Raise `InputError` where a worker would run several blocks in one process."""
    if threads != 1:
        raise InputError(
            f"{worker} runs {threads} threads. Teachers and the watchdog need a process each: start workers with "
            "`dask worker ADDRESS --nthreads 1 --nworkers CORES`."
        )


@contextmanager
def _watched(marker: Any, timeout_s: float) -> Iterator[Any]:
    """A watchdog that ends the process from a C thread, so that it works when the teacher hangs in compiled code.

    Yields a function to be called before every structure, with the time (`time.perf_counter`). Crashes (SIGSEGV and the
    like) are described in the marker.
    """
    armed_at = -np.inf
    was_enabled = faulthandler.is_enabled()

    def rearm(now: float) -> None:
        nonlocal armed_at
        if now - armed_at > _REARM * timeout_s:
            faulthandler.dump_traceback_later((1 + _REARM) * timeout_s, exit=True, file=marker)
            armed_at = now

    os.lseek(marker.fileno(), _TEXT_AT, os.SEEK_SET)
    faulthandler.enable(file=marker, all_threads=False)
    try:
        yield rearm
    finally:
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
        if was_enabled:
            faulthandler.enable()


class _Batch:
    """Labels that are not on the disk yet.

    Between two structures as little is done as can be. What the teacher leaves of the processor's caches is not our
    code, so there a line of Python takes three times as long as in `write`, which does the rest for many at once.
    """

    def __init__(self, job: Job, name: str, block: Block):
        self.job, self.name, self.block = job, name, block
        self.teacher = _Teacher(job, block)
        self.results: list[dict[str, Any] | Refusal] = []
        self.first = 0  # frame of the first of them
        self.total_labelled = self.total_refused = self.parts = 0
        self._clock()

    def _clock(self) -> None:
        self.since = self.last = time.perf_counter()
        self.slowest = 0.0

    def add(self, frame: int) -> None:
        """Label the next frame."""
        self.results.append(self.teacher.label(frame))
        now = time.perf_counter()
        self.slowest = max(self.slowest, now - self.last)
        self.last = now
        if now - self.since + self.slowest > self.job.config.batch_seconds:
            self.write()

    def write(self) -> None:
        """Check what there is and make it durable."""
        sizes = np.diff(self.block.offsets[self.first : self.first + len(self.results) + 1]).tolist()
        keys = self.block.keys[self.first : self.first + len(self.results)]
        outcomes = [r if isinstance(r, Refusal) else _kept(r, n) for r, n in zip(self.results, sizes, strict=True)]
        refused = {k.tobytes(): o for k, o in zip(keys, outcomes, strict=True) if isinstance(o, Refusal)}
        good = [frame for frame, outcome in enumerate(outcomes) if not isinstance(outcome, Refusal)]
        if outcomes:
            arrays = _stack(keys[good], [o for o in outcomes if not isinstance(o, Refusal)]) if good else {}
            write_part(self.job.labels_dir, f"{self.name}-{self.parts:04d}", self.job.stamp, arrays, refused)
            self.parts += 1
            self.total_labelled += len(good)
            self.total_refused += len(refused)
        self.first += len(self.results)
        self.results = []
        self._clock()


def _stack(keys: np.ndarray, labels: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    sizes = np.array([len(label["forces"]) for label in labels], dtype=np.int64)
    forces = np.concatenate([label["forces"] for label in labels])
    first_atoms = np.cumsum(sizes) - sizes
    arrays: dict[str, np.ndarray] = {
        "keys": keys,
        "sizes": sizes,
        "energy": np.array([label["energy"] for label in labels], dtype=np.float64),
        "forces": forces,
        "longest_force": np.sqrt(np.maximum.reduceat((forces**2).sum(axis=1), first_atoms)),
    }
    for name in (*PER_ATOM, *PER_FRAME):
        rows = [label.get(name) for label in labels]
        if all(row is None for row in rows):
            continue
        shapes = [(n,) for n in sizes] if name in PER_ATOM else [(PER_FRAME[name],)] * len(rows)
        filled = [np.full(shape, np.nan) if row is None else row for row, shape in zip(rows, shapes, strict=True)]
        arrays[name] = np.concatenate(filled).reshape((-1,) if name in PER_ATOM else (-1, PER_FRAME[name]))
    return arrays


class _Teacher:
    """A teacher's calculators, one for each charge, multiplicity and molecule, and how they are asked."""

    def __init__(self, job: Job, block: Block):
        self._name = job.stamp.name
        self._builtin = parse_teacher(self._name).builtin
        self._fresh = job.config.calculator == "fresh"
        self._made: tuple[tuple[int, int, str], BaseCalculator] | None = None
        self._atoms: Atoms | None = None
        self._numbers = b""  # of `_atoms`
        self._block = block
        # Plain Python values: to take one out of an array costs as much as a line of code.
        self._offsets: list[int] = block.offsets.tolist()
        self._states: list[list[int]] = block.states.tolist()
        self._periodic: list[bool] = np.asarray(block.cells.any(axis=(1, 2)) | block.pbc.any(axis=1)).tolist()
        with suppress(Exception):  # `label` will say what is wrong
            charge, multiplicity = self._states[0]
            self._calculator(charge, multiplicity, block.smiles_of(0))

    def label(self, frame: int) -> dict[str, Any] | Refusal:
        """Results by name, or why there are none. What is wrong with the teacher itself is raised."""
        charge, multiplicity = self._states[frame]
        atoms = self._atoms_of(frame)
        atoms.info["charge"], atoms.info["multiplicity"] = charge, multiplicity
        try:
            calculator = self._calculator(charge, multiplicity, self._block.smiles_of(frame))
            if isinstance(calculator, TeacherCalculator):
                return calculator.single_point(atoms, ("energy", "forces"))
            return _ask(calculator, atoms)
        except MissingDependency:
            raise
        except (TeacherError, CalculationFailed, CalculatorError) as error:
            return Refusal("teacher", _text(error))
        except Exception as error:  # whatever a foreign calculator raises must not end the run
            self._made = None
            return Refusal("error", f"{type(error).__name__}: {_text(error)}")

    def _atoms_of(self, frame: int) -> Atoms:
        block, own = self._block, slice(self._offsets[frame], self._offsets[frame + 1])
        if not self._builtin or self._periodic[frame]:
            # Foreign calculators may keep the object they are given and compare it with the next: always a new one.
            return Atoms(block.numbers[own], block.positions[own], cell=block.cells[frame], pbc=block.pbc[frame])
        numbers = block.numbers[own].tobytes()
        if self._atoms is None or self._numbers != numbers:
            self._atoms, self._numbers = Atoms(block.numbers[own], block.positions[own]), numbers
        else:
            self._atoms.positions[:] = block.positions[own]  # a new Atoms costs 2 % of a small GFN2 label
        return self._atoms

    def _calculator(self, charge: int, multiplicity: int, smiles: str) -> BaseCalculator:
        wanted = (charge, multiplicity, smiles)
        if self._made is None or self._made[0] != wanted or self._fresh:
            self._made = (wanted, make_teacher(self._name, charge, multiplicity, smiles=smiles))
        elif not self._builtin and hasattr(self._made[1], "reset"):
            self._made[1].reset()
        return self._made[1]


def _ask(calculator: BaseCalculator, atoms: Atoms) -> dict[str, Any]:
    """What a foreign calculator gives, copied: it may use its arrays again."""
    results: dict[str, Any] = {}
    implemented = calculator.implemented_properties
    # Forces first: codes that compute on demand (PySCF) would otherwise run the SCF twice.
    for name in ("forces", "energy", *PER_ATOM, *PER_FRAME):
        required = name in ("forces", "energy")
        if name in implemented or required:
            if name == "stress" and not atoms.pbc.all():
                continue
            try:
                value = calculator.get_property(name, atoms)
            except PropertyNotImplementedError:
                if required:
                    raise
            else:
                if value is not None:
                    results[name] = float(value) if name == "energy" else np.array(value, dtype=float)
    return results


def _kept(results: dict[str, Any], n_atoms: int) -> dict[str, Any] | Refusal:
    """What labels have a place for; a refusal of an energy or forces that are not finite.

    Other fields that are not finite count as not given when they are read; to check each here takes 8 µs.
    """
    energy, forces = results.get("energy"), results.get("forces")
    if energy is None or forces is None:
        return Refusal("teacher", "the teacher gave no energy or no forces")
    kept: dict[str, Any] = {"energy": float(energy), "forces": forces}
    if forces.shape != (n_atoms, 3):
        return Refusal("teacher", f"forces of shape {forces.shape} for {n_atoms} atoms")
    # A sum is finite unless something in it is not, or it is beyond 1e308: then look at each.
    if not (isfinite(energy) and isfinite(forces.sum())) and not (isfinite(energy) and np.isfinite(forces).all()):
        return Refusal("non-finite", "energy or forces are not finite")
    for name in (*PER_ATOM, *PER_FRAME):
        value = results.get(name)
        if value is not None and value.shape == ((n_atoms,) if name in PER_ATOM else (PER_FRAME[name],)):
            kept[name] = value
    return kept


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class Greeting:
    """A worker's answer to `hello`: what it takes the teacher for, whether it sees the folder, what it has loaded."""

    stamp: TeacherStamp
    sees_folder: bool
    modules: tuple[str, ...]


def hello(job: Job, probe: Path, charge: int, multiplicity: int, smiles: str) -> Greeting:
    """Runs in every worker before the first block: import and make the teacher, look for a file in the folder.

    Raises
    ------
    InputError
        The teacher cannot be made with these options.
    MissingDependency
        Its package is not installed where the worker runs.
    """
    with suppress(TeacherError):  # a matter of this structure's charge, not of the teacher
        make_teacher(job.stamp.name, charge, multiplicity, smiles=smiles)
    modules = tuple(sorted({module.partition(".")[0] for module in sys.modules}))
    return Greeting(TeacherStamp.of(job.stamp.name), probe.exists(), modules)
