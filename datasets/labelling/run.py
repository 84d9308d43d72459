"""`label_structures`: from structures to a labelled dataset, whatever happens on the way."""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ...ase_calcs.errors import DataError, InputError
from ...ase_calcs.progress import Progress, SilentProgress
from ..structure import Structure
from ..writer import FRAMES_PER_FLUSH, FrameTable, write_dataset
from .blocks import pack
from .config import LabelConfig, LabelResult, TeacherStamp
from .dispatch import Dispatcher
from .guards import check_structures, force_reason
from .parts import Ledger, Refusal, exclusive, work_dir
from .pool import WorkerPool, worker_pool
from .worker import Job, hello

_ROUNDS = 3  # rounds of labelling before it is said that labels do not stay where they are put


def label_structures(
    structures: Sequence[Structure],
    out_dir: Path,
    *,
    teacher: str,
    config: LabelConfig | None = None,
    progress: Progress | None = None,
    provenance: Mapping[str, Any] | None = None,
    pool: WorkerPool | None = None,
) -> LabelResult:
    """Label structures with a teacher on all cores and assemble the dataset.

    Labels are durable as they arrive (``out_dir/labels``). Interrupted at any moment, the same call again keeps every
    durable label, labels what is missing, and ends with the same dataset.

    Parameters
    ----------
    structures
        What to label; equal ones are labelled once. The dataset keeps their order.
    out_dir
        Gets ``labels/`` (part files), ``dataset.h5`` and ``refused.csv``.
    teacher
        See `distillase.ase_calcs.teachers`.
    config
        Limits, workers, time-outs.
    progress
        Where to report to.
    provenance
        Stored in the dataset beside the teacher, its version and its settings.
    pool
        Running workers to use, from `worker_pool`; else they are started and stopped here.

    Raises
    ------
    DataError
        The folder holds labels of another teacher, is in use, or no structure could be labelled.
    InputError
        Unknown teacher or option.
    MissingDependency
        The teacher's package, or dask, is not installed.
    """
    config = config or LabelConfig()
    progress = progress or SilentProgress()
    out_dir = Path(out_dir).absolute()
    structures = list(structures)
    if not structures:
        raise InputError("There are no structures to label.")
    job = Job(out_dir / "labels", TeacherStamp.of(teacher), config)
    with exclusive(job.labels_dir):
        return _label(structures, out_dir, job, progress, dict(provenance or {}), pool)


def _label(
    structures: list[Structure],
    out_dir: Path,
    job: Job,
    progress: Progress,
    provenance: dict[str, Any],
    pool: WorkerPool | None,
) -> LabelResult:
    start = time.perf_counter()
    keys = [bytes.fromhex(structure.key()) for structure in structures]
    reasons = check_structures(structures, job.config)
    wanted = {key: s for key, s, reason in zip(keys, structures, reasons, strict=True) if not reason}
    ledger = Ledger.scan(job.labels_dir, job.stamp)
    if ledger.damaged:
        progress.say(f"{len(ledger.damaged)} damaged part file(s) set aside; what they held is labelled again.")
    settled = {*ledger.labelled, *(k for k, refusal in ledger.refused.items() if not _ask_again(refusal, job.config))}
    todo = {key: s for key, s in wanted.items() if key not in settled}
    n_reused = sum(key in ledger.labelled for key in wanted)
    if n_reused:
        progress.say(f"{n_reused} of {len(wanted)} structures have their label already.")
    startup, n_labelled = 0.0, 0
    if todo:
        startup, n_labelled, ledger = _label_missing(todo, job, progress, pool)
    refused = _refusals(keys, reasons, ledger, job.config)
    assembly_start = time.perf_counter()
    dataset = _assemble(structures, keys, refused, ledger, out_dir, job, provenance)
    end = time.perf_counter()
    return LabelResult(dataset, refused, n_labelled, n_reused, end - start - startup, startup, end - assembly_start)


def _ask_again(refusal: Refusal, config: LabelConfig) -> bool:
    """Whether an earlier refusal is to be tried again: a slip in a calculator may be mended, a limit raised."""
    if refusal.kind == "time-out" and config.timeout_s > refusal.limit_s:
        return True
    return config.retry_refused or refusal.kind == "error"


def _label_missing(
    todo: Mapping[bytes, Structure], job: Job, progress: Progress, pool: WorkerPool | None
) -> tuple[float, int, Ledger]:
    """Label until nothing is missing; seconds of start-up, number of new labels, the ledger afterwards."""
    start = time.perf_counter()
    preload = (__package__ + ".worker",)
    n_labelled = 0
    try:
        own = worker_pool(job.config, preload=preload, scratch=work_dir(job.labels_dir))
        with nullcontext(pool) if pool else own as workers:
            _greet(workers, job, next(iter(todo.values())))
            startup = 0.0 if pool else time.perf_counter() - start
            description = f"Labelling with {job.stamp.name} on {workers.size} workers"
            with progress.task(description, float(len(todo))) as task:
                for _ in range(_ROUNDS):
                    dispatcher = Dispatcher(workers, job, todo, task)
                    dispatcher.run()
                    n_labelled += dispatcher.n_labelled
                    ledger = Ledger.scan(job.labels_dir, job.stamp)
                    known = ledger.known()
                    todo = {key: structure for key, structure in todo.items() if key not in known}
                    if not todo:
                        return startup, n_labelled, ledger
    except KeyboardInterrupt:
        progress.say(f"Stopped. What is labelled is kept in {job.labels_dir}; the same command goes on from there.")
        raise
    raise DataError(f"Labels written to {job.labels_dir} cannot be found again. Is the file system of all workers one?")


def _greet(pool: WorkerPool, job: Job, first: Structure) -> None:
    """Let every worker import and make the teacher, and see that all of them mean the same by it."""
    probe = work_dir(job.labels_dir) / "probe"
    probe.touch()
    answers = pool.client.run(hello, job, probe, first.charge, first.multiplicity, first.smiles)
    for worker, answer in answers.items():
        if not answer.sees_folder:
            raise DataError(f"Worker {worker} does not see {job.labels_dir}. Workers need a common file system.")
        if answer.stamp != job.stamp:
            raise DataError(
                f"Worker {worker} has {answer.stamp.describe()}, this process {job.stamp.describe()}. "
                "Install the same version everywhere."
            )


def _refusals(
    keys: Sequence[bytes], reasons: Sequence[str], ledger: Ledger, config: LabelConfig
) -> list[tuple[int, str, str]]:
    refused = []
    for index, (key, reason) in enumerate(zip(keys, reasons, strict=True)):
        if not reason:
            if key not in ledger.labelled:
                reason = ledger.refused[key].reason
            elif ledger.longest_force(key) > config.max_force:
                reason = force_reason(ledger.labels(key), config.max_force)
        if reason:
            refused.append((index, key.hex(), reason))
    return refused


def _assemble(
    structures: Sequence[Structure],
    keys: Sequence[bytes],
    refused: Sequence[tuple[int, str, str]],
    ledger: Ledger,
    out_dir: Path,
    job: Job,
    provenance: dict[str, Any],
) -> Path:
    """Write ``refused.csv`` and ``dataset.h5``, each in one step."""
    _write_refused(out_dir / "refused.csv", structures, refused)
    if len(refused) == len(structures):
        counts = Counter(reason for _, _, reason in refused).most_common(3)
        listed = "; ".join(f"{n}× {reason}" for reason, n in counts)
        raise DataError(f"None of {len(structures)} structures could be labelled. {listed}. See {out_dir}/refused.csv.")
    skipped = {index for index, _, _ in refused}
    kept = [index for index in range(len(structures)) if index not in skipped]

    def tables() -> Iterator[FrameTable]:
        for first in range(0, len(kept), FRAMES_PER_FLUSH):
            indices = kept[first : first + FRAMES_PER_FLUSH]
            yield _table([structures[i] for i in indices], [keys[i] for i in indices], ledger)

    provenance = {
        **provenance,
        "teacher": job.stamp.name,
        "teacher_version": job.stamp.version,
        "teacher_settings": job.stamp.settings,
        "max_force": job.config.max_force,
        "min_distance": job.config.min_distance,
        "refused": len(refused),
    }
    return write_dataset(out_dir / "dataset.h5", tables(), provenance=provenance)


def _table(structures: Sequence[Structure], keys: Sequence[bytes], ledger: Ledger) -> FrameTable:
    block = pack(structures, keys)
    columns = {
        "numbers": block.numbers,
        "positions": block.positions,
        "cell": block.cells,
        "pbc": block.pbc,
        "charge": block.states[:, 0],
        "multiplicity": block.states[:, 1],
        "group": [structure.group for structure in structures],
        "origin": [structure.origin for structure in structures],
        "smiles": [structure.smiles for structure in structures],
    }
    return FrameTable(np.diff(block.offsets), columns | ledger.columns(keys, block.offsets))


def _write_refused(path: Path, structures: Sequence[Structure], refused: Sequence[tuple[int, str, str]]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "group", "origin", "key", "reason"])
        for index, key, reason in refused:
            writer.writerow([index, structures[index].group, structures[index].origin, key, reason])
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
