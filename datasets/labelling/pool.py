"""Workers: single-threaded processes on this machine, or those of `remote.py`."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...ase_calcs.errors import DataError, DistillaseError, InputError, require
from .config import LabelConfig
from .process import BOOTSTRAP, QUIET_DASK, SINGLE_THREADED
from .remote import connect, slurm_jobs
from .worker import refuse_threads

_START_TIMEOUT_S = 120.0
_GONE_S = 600.0  # a scheduler may take that long to come back
_GIVE_UP_AFTER = 4  # deaths in a row before a worker ever answered


@dataclass
class WorkerPool:
    """Running workers; made by `worker_pool`.

    Attributes
    ----------
    client
        `distributed.Client`.
    startup_seconds
        Until all workers had answered, s.
    again
        Makes another client of the same scheduler, where that is somebody else's.
    """

    client: Any
    startup_seconds: float
    local: _LocalWorkers | None = None
    again: Callable[[], Any] | None = None

    @property
    def size(self) -> int:
        """Workers that are there now.

        Raises
        ------
        OSError
            The scheduler is gone.
        """
        if self.client.status != "running":
            raise OSError("the scheduler is gone")
        return len(self.client.nthreads())

    def check_health(self) -> None:
        """Raise if the workers cannot be kept alive."""
        if self.local is not None:
            self.local.check()

    def reconnect(self) -> None:
        """After the scheduler is gone: wait for one to answer at its address, minutes if need be.

        Raises
        ------
        DistillaseError
            There is none.
        """
        with suppress(Exception):
            self.client.close(timeout=1)
        deadline = time.monotonic() + _GONE_S
        while self.again is not None and time.monotonic() < deadline:
            try:
                self.client = self.again()
            except InputError:
                time.sleep(1.0)
            else:
                gc.collect()  # the old one, see `connect`
                _wait_for_workers(self.client, 1, None, _GONE_S)
                return
        raise DistillaseError(
            "The scheduler of the workers is gone. Every label that had been written is kept: start a scheduler and "
            "workers, and repeat the command."
        )

    def exit_text(self, pid: int) -> str:
        """How a worker process ended, where this process can know: "killed by signal 9"."""
        code = self.local.exit_codes.get(pid) if self.local is not None else None
        if code is None or code == 1:
            return ""
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


@contextmanager
def worker_pool(
    config: LabelConfig, *, preload: tuple[str, ...] = (), scratch: Path | None = None
) -> Iterator[WorkerPool]:
    """Start workers (or connect to those of a scheduler) and stop them at the end.

    `label_structures` does this by itself; give it a pool to label several sets without starting workers each time.

    Parameters
    ----------
    config
        `workers` and `scheduler` are used.
    preload
        Modules that local workers import before they report for work.
    scratch
        Folder for the workers' logs and dask's own files; by default the system's temporary folder.

    Raises
    ------
    MissingDependency
        `distributed` is not installed.
    DistillaseError
        Workers die as they start, or none comes in time.
    """
    require("distributed", extra="dask", purpose="label structures on several cores")
    start = time.perf_counter()
    if config.scheduler == "slurm":
        with slurm_jobs(config, scratch or Path.cwd()) as client:
            _wait_for_workers(client, 1, None, math.inf)  # there is a queue
            yield WorkerPool(client, time.perf_counter() - start)
        return
    if config.scheduler != "local":
        pool = WorkerPool(connect(config), 0.0, again=lambda: connect(config))
        try:
            _wait_for_workers(pool.client, 1, None)
            for worker, threads in pool.client.nthreads().items():
                refuse_threads(f"Worker {worker}", threads)
            pool.startup_seconds = time.perf_counter() - start
            yield pool
        finally:
            pool.client.close(timeout=5)
        return
    n_workers = config.workers or _usable_cores()
    with (
        tempfile.TemporaryDirectory(prefix="distillase-", dir=scratch, ignore_cleanup_errors=True) as folder,
        _local_scheduler() as (address, client),
    ):
        workers = _LocalWorkers(address, n_workers, Path(folder), preload)
        try:
            workers.start()
            _wait_for_workers(client, n_workers, workers)
            yield WorkerPool(client, time.perf_counter() - start, workers)
        finally:
            workers.stop()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _local_scheduler() -> Iterator[tuple[str, Any]]:
    """A scheduler inside this process, on the loopback interface, with no dashboard."""
    import dask
    from distributed import Client, LocalCluster

    # A worker that ends while a message is under way is worth a traceback to dask ("info", after the cluster is closed
    # and its silence over); to whoever labels it is how every run ends.
    logging.getLogger("distributed.batched").setLevel(logging.WARNING)
    with dask.config.set(QUIET_DASK):  # read while these are made, and put back afterwards
        cluster = LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            scheduler_kwargs={
                # A worker's death is ours to judge, and a teacher may hold Python's lock for hours: no heartbeat.
                "allowed_failures": 0,
                "worker_ttl": "1000 days",
                # Without a dashboard dask still opens a port: by default 8787, with a warning where that is taken.
                "dashboard": False,
                "dashboard_address": "127.0.0.1:0",
            },
        )
    try:
        with dask.config.set(QUIET_DASK):
            client = Client(cluster, set_as_default=False)
        try:
            yield cluster.scheduler_address, client
        finally:
            with suppress(Exception):  # what goes wrong while closing cannot hurt a label any more
                client.close(timeout=5)
    finally:
        with suppress(Exception):
            cluster.close(timeout=5)


def _wait_for_workers(
    client: Any, n_workers: int, local: _LocalWorkers | None, seconds: float = _START_TIMEOUT_S
) -> None:
    deadline = time.monotonic() + seconds
    while len(client.nthreads()) < n_workers:
        if local is not None:
            local.check()
        if time.monotonic() > deadline:
            raise DistillaseError(
                f"{len(client.nthreads())} of {n_workers} workers had reported after {seconds:.0f} s. "
                + (local.last_words() if local is not None else "Start workers for this scheduler, then go on.")
            )
        time.sleep(0.02)


@dataclass
class _LocalWorkers:
    """Worker processes on this machine, each started again when it dies."""

    scheduler: str
    n_workers: int
    scratch: Path
    preload: tuple[str, ...]
    exit_codes: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._stopping = False
        self._failures = 0

    def start(self) -> None:
        for index in range(self.n_workers):
            self._spawn(index)
            thread = threading.Thread(target=self._keep, args=(index,), daemon=True, name=f"labelling worker {index}")
            thread.start()
            self._threads.append(thread)

    def _spawn(self, index: int) -> None:
        arguments = {
            "module": process_module(),
            "path": [path or os.getcwd() for path in sys.path],
            "preload": self.preload,
            "scheduler": self.scheduler,
            "name": f"{index}-{time.monotonic_ns()}",
            "scratch": str(self.scratch),
        }
        with self._lock, open(self._log(index), "wb") as log:
            if not self._stopping:
                self._processes[index] = subprocess.Popen(
                    [sys.executable, "-c", BOOTSTRAP, json.dumps(arguments)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **SINGLE_THREADED},
                )

    def _log(self, index: int) -> Path:
        return self.scratch / f"worker-{index}.log"

    def _keep(self, index: int) -> None:
        while True:
            process = self._processes[index]
            started = time.monotonic()
            code = process.wait()
            self.exit_codes[process.pid] = code
            if self._stopping:
                return
            early = time.monotonic() - started < 2.0
            self._failures = self._failures + 1 if early else 0
            if self._failures >= _GIVE_UP_AFTER * self.n_workers:
                return
            if early:
                time.sleep(0.5)
            self._spawn(index)

    def check(self) -> None:
        if self._failures >= _GIVE_UP_AFTER * self.n_workers:
            raise DataError("Labelling workers die as soon as they start. " + self.last_words())

    def last_words(self) -> str:
        for index in range(self.n_workers):
            text = self._log(index).read_text(errors="replace").strip() if self._log(index).exists() else ""
            if text:
                return "The last a worker said: " + text.splitlines()[-1]
        return "The workers said nothing."

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
        for process in self._processes.values():
            process.kill()  # labels are on the disk already; there is nothing to be tidy about
        for thread in self._threads:
            thread.join(timeout=10)
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()


def process_module() -> str:
    """Installed name of the module that a local worker runs."""
    return f"{__package__}.process"
