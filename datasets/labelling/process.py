"""The process of one local worker: a dask worker with one thread that ends when its parent does.

Started as a program of its own rather than through multiprocessing: its environment is set before Python starts (BLAS
and OpenMP read theirs while they load), the parent's environment stays as it is, and the parent's main script is not
imported a second time, so that a script needs no ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import threading
from typing import Any

# One thread per process: two OpenMP threads per tblite process on two busy cores are 3 to 60 times slower than one.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OMP_MAX_ACTIVE_LEVELS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "BLIS_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}

# `python -c` with this; everything else is in the JSON argument. `module` is this one, under its installed name.
BOOTSTRAP = (
    "import importlib, json, sys; a = json.loads(sys.argv[1]); "
    "sys.path.extend(p for p in a['path'] if p not in sys.path); importlib.import_module(a['module']).main(a)"
)

# What dask does for interactive use and we do not need. Together it is 2 % of a core in every process: the event loop's
# clock alone ticks 50 times a second, the sampling profiler 100 times.
QUIET_DASK = {
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "60s",
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.client.scheduler-info-interval": "30s",
    "distributed.comm.compression": False,
    "distributed.diagnostics.nvml": False,
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.scheduler.work-stealing-interval": "10s",
    "distributed.worker.profile.enabled": False,
    "distributed.worker.use-file-locking": False,
}


def quiet_environment() -> dict[str, str]:
    """`QUIET_DASK` as variables that dask reads when it starts, and one thread for everything."""
    names = {key: "DASK_" + key.upper().replace("-", "_").replace(".", "__") for key in QUIET_DASK}
    return SINGLE_THREADED | {names[key]: str(value) for key, value in QUIET_DASK.items()}


def main(arguments: dict[str, Any]) -> None:
    """Run a worker until its parent or its scheduler is gone.

    Parameters
    ----------
    arguments
        ``scheduler`` (address), ``name``, ``scratch`` (folder), ``preload`` (modules to import).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import dask

    with dask.config.set(QUIET_DASK):
        import distributed

        for module in arguments["preload"]:
            importlib.import_module(module)
        asyncio.run(_serve(distributed.Worker, arguments))


def _end_with_parent() -> None:
    # The parent holds the other end of our standard input, and never writes: the read returns when it is dead.
    sys.stdin.buffer.read()
    os._exit(0)


async def _serve(worker_class: Any, arguments: dict[str, Any]) -> None:
    worker = await worker_class(
        arguments["scheduler"],
        nthreads=1,
        name=arguments["name"],
        host="127.0.0.1",
        dashboard=False,
        memory_limit=0,
        local_directory=arguments["scratch"],
        heartbeat_interval="5s",
    )
    await worker.finished()
