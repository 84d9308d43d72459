"""Work spread over spawned processes, each on one thread, none of which outlives its parent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from ...ase_calcs.errors import TeacherError
from ...ase_calcs.progress import ProgressTask

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Advance = Callable[[float], None]


def in_processes(
    function: Callable[[Item, Advance], Answer], work: Mapping[int, Item], workers: int, task: ProgressTask
) -> Iterator[tuple[int, Answer]]:
    """Answers as they come, each with the number of its item.

    When the caller stops before the end (Ctrl-C), the workers are ended at once, in the midst of what they do: whatever
    `function` wants to keep it must have written.

    Parameters
    ----------
    function
        ``(item, advance) → answer``, importable by name; it tells `advance` what it has done.
    work
        Number → item, begun in this order.
    workers
        Processes.
    task
        Told the sum of what the workers say they have done.

    Raises
    ------
    TeacherError
        A worker died.
    """
    context = get_context("spawn")
    counter, leave = context.Value("d", 0.0), context.Event()
    reported = 0.0
    with _one_thread_each():
        pool = ProcessPoolExecutor(min(workers, len(work)), context, _start_worker, (counter, leave))
        pending: dict[Future[Answer], int] = {pool.submit(_work, function, item): k for k, item in work.items()}
    try:
        waiting = set(pending)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            amount = counter.value
            if amount > reported:
                task.advance(amount - reported)
                reported = amount
            for future in finished:
                yield pending[future], future.result()
    except BrokenProcessPool as error:
        raise TeacherError(
            "A worker process died: the memory did not suffice, it was killed, or a calculator crashed. What was "
            "finished is kept, and the same command goes on from there; with fewer workers each has more memory."
        ) from error
    except BaseException:
        leave.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Numerical libraries read these when a process loads them: they must be in the environment at its birth."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_counter: Any = None  # of a worker process


def _start_worker(counter: Any, leave: Any) -> None:
    global _counter
    _counter = counter
    # Ctrl-C reaches every process of a terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow_parent() -> None:
        # A worker whose parent was killed would wait for work for ever.
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    def leave_when_told() -> None:
        leave.wait()
        os._exit(1)

    for watch in (follow_parent, leave_when_told):
        threading.Thread(target=watch, daemon=True).start()


def _work(function: Callable[[Item, Advance], Answer], item: Item) -> Answer:
    def advance(amount: float) -> None:
        with _counter.get_lock():
            _counter.value += amount

    return function(item, advance)
