"""The client's side of a run: cut the work into blocks, keep every worker busy, judge deaths."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from ...ase_calcs.errors import DistillaseError
from ...ase_calcs.progress import ProgressTask
from ..structure import Structure
from .blocks import pack
from .parts import Ledger, Refusal, write_part
from .pool import WorkerPool
from .worker import BlockReport, Job, Marker, begun, label_block, marker_path, read_marker

# One block in work and one waiting, so that no worker waits for the client. Where one structure takes longer than a
# batch, a wait of 10 ms is nothing, and a structure queued behind a long one would be the last to end.
_QUEUED_PER_WORKER = 2
_BATCHES_PER_BLOCK = 3.0  # a block costs dask 8 ms in all; the worker writes a part after each batch of it anyway
_UNEXPLAINED_PER_WORKER = 20  # deaths in a row, none of them with a structure in work, before the run gives up
_GROWTH = 16.0  # blocks grow at most this much at a time while the teacher's speed is being learnt
_LOOK_S = 0.5  # between two looks at what workers of a lost scheduler do
_LEAST_SHARE = 0.1  # of a batch: towards the end blocks get smaller, so that all workers end together


@dataclass(frozen=True)
class _Submitted:
    name: str
    keys: tuple[bytes, ...]
    weight: float


class Dispatcher:
    """Labels structures on a pool until each of them has a durable label or refusal.

    Parameters
    ----------
    pool
        The workers.
    job
        Folder, teacher, configuration.
    structures
        What is to be labelled, by key.
    task
        Advanced by one for every structure.
    """

    def __init__(self, pool: WorkerPool, job: Job, structures: Mapping[bytes, Structure], task: ProgressTask):
        from distributed.client import ClosedClientError, FutureCancelledError

        self._closed, self._cancelled = ClosedClientError, FutureCancelledError
        self.pool, self.job, self.structures, self.task = pool, job, structures, task
        self.n_labelled = 0
        self.n_refused = 0
        self._waiting: deque[bytes] = deque(structures)
        self._weight_waiting = sum(_weight(s) for s in structures.values())
        self._alone: deque[bytes] = deque()  # their worker died: tried again one by one
        self._attempts: dict[bytes, int] = {}
        self._submitted: dict[str, _Submitted] = {}  # by the future's key
        self._orphans: list[_Submitted] = []  # their scheduler is gone; their workers may be at work
        self._completed: SimpleQueue[Any] = SimpleQueue()
        self._run = secrets.token_hex(4)
        self._count = 0
        self._seconds_per_weight: float | None = None
        self._largest = 0.0  # weight of the largest block that has come back
        self._unexplained = 0

    def run(self) -> None:
        """Work until nothing is left."""
        while self._waiting or self._alone or self._submitted or self._orphans:
            try:
                self._fill()
            except (OSError, self._closed):
                self._reconnect()
                continue
            try:
                future = self._completed.get(timeout=_LOOK_S)
            except Empty:
                self._settle_orphans()
                continue
            block = self._submitted.get(future.key)
            if block is None:
                continue  # of a scheduler that is gone
            if future.status == "lost":  # its worker died with the report
                self._orphans.append(self._submitted.pop(future.key))
                continue
            try:
                if future.status == "cancelled":
                    raise OSError("no scheduler")
                failed = future.exception() if future.status == "error" else None
                report = BlockReport("died") if failed else future.result()
            except (OSError, self._closed, self._cancelled):
                self._reconnect()
                continue
            if failed and type(failed).__name__ != "KilledWorker":
                raise failed
            del self._submitted[future.key]
            future.release()
            if report.status == "done":
                self._done(block, report)
            else:
                self._died(block)

    def _reconnect(self) -> None:
        """The scheduler is gone, and with it what it knew of the blocks; the labels are on the disk."""
        self._orphans += self._submitted.values()
        self._submitted.clear()
        self.task.advance(0.0, "the scheduler is gone: waiting for one at its address")
        self.pool.reconnect()

    def _settle_orphans(self) -> None:
        """Take up what workers of a lost scheduler have left. What one of them is still at is not begun again."""
        waiting = []
        for block in self._orphans:
            if begun(self.job.labels_dir, block.name) == "at work":
                waiting.append(block)
            else:
                self._put_back(self._left_of(block))
        self._orphans = waiting

    def _fill(self) -> None:
        while (self._waiting or self._alone) and len(self._submitted) < self._places():
            self._submit([self._alone.popleft()] if self._alone else self._next_block())

    def _places(self) -> int:
        workers = max(1, self.pool.size)
        if self._waiting and self._seconds_per_weight is not None:
            seconds = self._seconds_per_weight * _weight(self.structures[self._waiting[0]])
            if seconds > self.job.config.batch_seconds:
                return workers
        return _QUEUED_PER_WORKER * workers

    def _next_block(self) -> list[bytes]:
        """As many structures as take a few batches of work, fewer at the beginning and towards the end."""
        workers = max(1, self.pool.size)
        if self._seconds_per_weight is None:
            aim = 0.0  # one structure: the first may take a microsecond or an hour
        else:
            batch = self.job.config.batch_seconds
            share = self._weight_waiting * self._seconds_per_weight / (_QUEUED_PER_WORKER * workers)
            seconds = min(_BATCHES_PER_BLOCK * batch, max(share, _LEAST_SHARE * batch))
            aim = min(seconds / self._seconds_per_weight, _GROWTH * self._largest)
        keys: list[bytes] = []
        weight = 0.0
        while self._waiting:
            next_weight = _weight(self.structures[self._waiting[0]])
            if keys and weight + next_weight > aim:
                break
            keys.append(self._waiting.popleft())
            weight += next_weight
        self._weight_waiting -= weight
        return keys

    def _submit(self, keys: Sequence[bytes]) -> None:
        self._count += 1
        name = f"{self._run}-{self._count:06d}"
        structures = [self.structures[key] for key in keys]
        try:
            future = self.pool.client.submit(
                label_block, self.job, name, pack(structures, keys), key=f"label-{name}", pure=False
            )
        except Exception:
            self._put_back(keys)
            raise
        self._submitted[future.key] = _Submitted(name, tuple(keys), sum(_weight(s) for s in structures))
        future.add_done_callback(self._completed.put)

    def _done(self, block: _Submitted, report: BlockReport) -> None:
        marker_path(self.job.labels_dir, block.name).unlink(missing_ok=True)
        rate = max(report.seconds, 1e-6) / block.weight
        old = self._seconds_per_weight
        self._seconds_per_weight = rate if old is None else 0.5 * (old + rate)
        self._largest = max(self._largest, block.weight)
        self._unexplained = 0
        self._count_up(report.labelled, report.refused)

    def _count_up(self, labelled: int, refused: int) -> None:
        self.n_labelled += labelled
        self.n_refused += refused
        note = f"{self.n_refused} refused" if self.n_refused else ""
        self.task.advance(labelled + refused, note)

    def _died(self, block: _Submitted) -> None:
        """A worker died with this block: keep what it had written, single out the structure it was at."""
        self.pool.check_health()
        marker = read_marker(self.job.labels_dir, block.name)
        left = self._left_of(block)
        marker_path(self.job.labels_dir, block.name).unlink(missing_ok=True)
        if marker is None or marker.position < 0:
            # Not begun: it was queued behind another block of the worker that died.
            self._unexplained += 1
            if self._unexplained > _UNEXPLAINED_PER_WORKER * max(1, self.pool.size):
                raise DistillaseError("Workers die again and again before they begin to label. " + _ADVICE)
        elif (suspect := block.keys[marker.position]) in left:
            left.remove(suspect)
            self._judge(suspect, marker)
        self._put_back(left)

    def _left_of(self, block: _Submitted) -> list[bytes]:
        """Count what its worker had written, and return the rest."""
        written = Ledger.scan(self.job.labels_dir, self.job.stamp, pattern=f"{block.name}-*.npz")
        self._count_up(len(written.labelled), len(written.refused))
        return [key for key in block.keys if key not in written.known()]

    def _put_back(self, keys: Sequence[bytes]) -> None:
        self._waiting.extendleft(reversed(keys))
        self._weight_waiting += sum(_weight(self.structures[key]) for key in keys)

    def _judge(self, key: bytes, marker: Marker) -> None:
        self._unexplained = 0
        timeout_s = self.job.config.timeout_s
        if marker.text.startswith("Timeout"):
            self._refuse(key, Refusal("time-out", f"time-out: no answer within {timeout_s:g} s", timeout_s))
            return
        self._attempts[key] = self._attempts.get(key, 0) + 1
        if self._attempts[key] <= self.job.config.crash_retries:
            self._alone.append(key)
            return
        how = marker.text.splitlines()[0] if marker.text else self.pool.exit_text(marker.pid)
        how = how.removeprefix("Fatal Python error: ") or "no message; out of memory?"
        self._refuse(key, Refusal("crash", f"the worker process died {self._attempts[key]} times on it ({how})"))

    def _refuse(self, key: bytes, refusal: Refusal) -> None:
        self._count += 1
        write_part(self.job.labels_dir, f"{self._run}-{self._count:06d}", self.job.stamp, {}, {key: refusal})
        self._count_up(0, 1)


_ADVICE = "Look at the workers' log, or run with `workers: 1`, then repeat the command: nothing written is lost."


def _weight(structure: Structure) -> float:
    """Relative cost; between the N of a force field and the N³ of a large SCF, and learnt anew with every block."""
    return float(max(1, len(structure))) ** 2
