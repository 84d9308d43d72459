"""What runs in a worker: label a block of structures, and put the labels on the disk before anyone is told.

A worker can be killed at any moment, by a power cut, by the watchdog below, or by a teacher that crashes. So it notes
in a small file, the marker, which structure it is at. The marker outlives the process and is removed when the block is
done; whoever finds one knows that the block was begun, and where it ended.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    CalculationFailed,
    Calculator,
    CalculatorError,
    PropertyNotImplementedError,
    all_changes,
)

from ...ase_calcs.errors import MissingDependency, TeacherError
from ...ase_calcs.teachers import make_teacher, parse_teacher
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
    try:
        marker = os.open(marker_path(job.labels_dir, name), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    except FileExistsError:
        return BlockReport("died")
    with os.fdopen(marker, "r+b", buffering=0) as file, _watched(file, job.config.timeout_s) as rearm:
        os.pwrite(marker, np.array([-1, os.getpid()], dtype=np.int64).tobytes(), 0)
        batch = _Batch(job, name)
        batch.teacher.prepare(block)  # to load a large model is not part of what one structure may take
        for frame in range(len(block)):
            os.pwrite(marker, frame.to_bytes(8, "little"), 0)
            rearm()
            batch.add(block, frame)
        batch.write()
    marker_path(job.labels_dir, name).unlink()
    return BlockReport("done", batch.total_labelled, batch.total_refused, time.perf_counter() - start)


@contextmanager
def _watched(marker: Any, timeout_s: float) -> Iterator[Any]:
    """A watchdog that ends the process from a C thread, so that it works when the teacher hangs in compiled code.

    Yields a function to be called before every structure. Crashes (SIGSEGV and the like) are described in the marker.
    """
    armed_at = -np.inf
    was_enabled = faulthandler.is_enabled()

    def rearm() -> None:
        nonlocal armed_at
        now = time.monotonic()
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


@dataclass
class _Batch:
    """Labels that are not on the disk yet."""

    job: Job
    name: str
    labels: list[dict[str, Any]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    refused: dict[bytes, Refusal] = field(default_factory=dict)
    total_labelled: int = 0
    total_refused: int = 0
    parts: int = 0

    def __post_init__(self) -> None:
        self.teacher = _Teacher(self.job)
        self.since = self.last = time.perf_counter()
        self.slowest = 0.0

    def add(self, block: Block, frame: int) -> None:
        key = block.keys[frame].tobytes()
        outcome = self.teacher.label(block, frame)
        if isinstance(outcome, Refusal):
            self.refused[key] = outcome
        else:
            self.keys.append(key)
            self.labels.append(outcome)
        now = time.perf_counter()
        self.slowest = max(self.slowest, now - self.last)
        self.last = now
        if now - self.since + self.slowest > self.job.config.batch_seconds:
            self.write()

    def write(self) -> None:
        if self.labels or self.refused:
            arrays = _stack(self.keys, self.labels) if self.labels else {}
            write_part(self.job.labels_dir, f"{self.name}-{self.parts:04d}", self.job.stamp, arrays, self.refused)
            self.parts += 1
            self.total_labelled += len(self.labels)
            self.total_refused += len(self.refused)
        self.keys, self.labels, self.refused = [], [], {}
        self.since = self.last = time.perf_counter()
        self.slowest = 0.0


def _stack(keys: Sequence[bytes], labels: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    sizes = np.array([len(label["forces"]) for label in labels], dtype=np.int64)
    forces = np.concatenate([label["forces"] for label in labels])
    first_atoms = np.cumsum(sizes) - sizes
    arrays: dict[str, np.ndarray] = {
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16),
        "sizes": sizes,
        "energy": np.array([label["energy"] for label in labels], dtype=np.float64),
        "forces": forces,
        "longest_force": np.sqrt(np.maximum.reduceat((forces**2).sum(axis=1), first_atoms)),
    }
    for name in (*PER_ATOM, *PER_FRAME):
        if not any(name in label for label in labels):
            continue
        if name in PER_ATOM:
            rows = [label.get(name, np.full(n, np.nan)) for label, n in zip(labels, sizes, strict=True)]
            arrays[name] = np.concatenate(rows).astype(np.float64, copy=False)
        else:
            missing = np.full(PER_FRAME[name], np.nan)
            arrays[name] = np.array([label.get(name, missing) for label in labels], dtype=np.float64)
    return arrays


class _Teacher:
    """A teacher's calculators, one for each charge, multiplicity and molecule, and how they are asked."""

    def __init__(self, job: Job):
        self._name = job.stamp.name
        self._builtin = parse_teacher(self._name).builtin
        self._fresh = job.config.calculator == "fresh"
        self._made: tuple[tuple[int, int, str], BaseCalculator] | None = None
        self._atoms: Atoms | None = None

    def prepare(self, block: Block) -> None:
        """Make the calculator for the first structure; if that fails, its `label` will say why."""
        with suppress(Exception):
            charge, multiplicity = (int(value) for value in block.states[0])
            self._calculator(charge, multiplicity, block.smiles_of(0))

    def label(self, block: Block, frame: int) -> dict[str, Any] | Refusal:
        """Results by name, or why there are none. What is wrong with the teacher itself is raised."""
        charge, multiplicity = (int(value) for value in block.states[frame])
        atoms = self._atoms_of(block, frame)
        atoms.info["charge"], atoms.info["multiplicity"] = charge, multiplicity
        try:
            calculator = self._calculator(charge, multiplicity, block.smiles_of(frame))
            results = self._ask(calculator, atoms)
            return _collect(results, len(atoms))
        except MissingDependency:
            raise
        except (TeacherError, CalculationFailed, CalculatorError) as error:
            return Refusal("teacher", _text(error))
        except Exception as error:  # whatever a foreign calculator raises must not end the run
            self._made = None
            return Refusal("error", f"{type(error).__name__}: {_text(error)}")

    def _atoms_of(self, block: Block, frame: int) -> Atoms:
        own = slice(block.offsets[frame], block.offsets[frame + 1])
        numbers, positions, cell, pbc = block.numbers[own], block.positions[own], block.cells[frame], block.pbc[frame]
        if not self._builtin or cell.any() or pbc.any():
            # Foreign calculators may keep the object they are given and compare it with the next: always a new one.
            return Atoms(numbers, positions, cell=cell, pbc=pbc)
        if self._atoms is None or not np.array_equal(self._atoms.numbers, numbers):
            self._atoms = Atoms(numbers, positions)
        else:
            self._atoms.positions[:] = positions  # a new Atoms costs 2 % of a small GFN2 label
        return self._atoms

    def _calculator(self, charge: int, multiplicity: int, smiles: str) -> BaseCalculator:
        wanted = (charge, multiplicity, smiles)
        if self._made is None or self._made[0] != wanted or self._fresh:
            self._made = (wanted, make_teacher(self._name, charge, multiplicity, smiles=smiles))
        elif not self._builtin and hasattr(self._made[1], "reset"):
            self._made[1].reset()
        return self._made[1]

    def _ask(self, calculator: BaseCalculator, atoms: Atoms) -> dict[str, Any]:
        if self._builtin and isinstance(calculator, Calculator):
            # Everything comes in one call, and ASE's comparison with the last structure (30 µs) is not needed.
            calculator.calculate(atoms, ["energy", "forces"], all_changes)
            return calculator.results
        results: dict[str, Any] = {}
        implemented = calculator.implemented_properties
        # Forces first: codes that compute on demand (PySCF) would otherwise run the SCF twice.
        for name in ("forces", "energy", *PER_ATOM, *PER_FRAME):
            required = name in ("forces", "energy")
            if name in implemented or required:
                if name == "stress" and not atoms.pbc.all():
                    continue
                try:
                    results[name] = calculator.get_property(name, atoms)
                except PropertyNotImplementedError:
                    if required:
                        raise
        return results


def _collect(results: dict[str, Any], n_atoms: int) -> dict[str, Any] | Refusal:
    """Keep what labels have a place for, and refuse an energy or forces that are not finite.

    Other fields that are not finite count as not given when they are read; to check each here takes 8 µs.
    """
    energy, forces = results.get("energy"), results.get("forces")
    if energy is None or forces is None:
        return Refusal("teacher", "the teacher gave no energy or no forces")
    kept: dict[str, Any] = {"energy": float(energy), "forces": np.array(forces, dtype=float)}
    if kept["forces"].shape != (n_atoms, 3):
        return Refusal("teacher", f"forces of shape {kept['forces'].shape} for {n_atoms} atoms")
    if not np.isfinite(kept["energy"]) or not np.isfinite(kept["forces"]).all():
        return Refusal("non-finite", "energy or forces are not finite")
    for name in (*PER_ATOM, *PER_FRAME):
        if results.get(name) is not None:
            value = np.array(results[name], dtype=float)
            expected = (n_atoms,) if name in PER_ATOM else (PER_FRAME[name],)
            if value.shape == expected:
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
