"""Workers that others start: those of a dask scheduler at some address, and jobs under SLURM."""

from __future__ import annotations

import gc
import math
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...ase_calcs.errors import DistillaseError, InputError, require
from .config import LabelConfig, TlsConfig
from .process import quiet_environment

_ANSWER_S = 30.0
_SUBMITTED_S = 60.0  # sbatch takes a second, and minutes where SLURM is busy
_LOOK_S = 30.0


def connect(config: LabelConfig) -> Any:
    """A client of the scheduler at that address.

    Raises
    ------
    InputError
        None answers.
    """
    from distributed import Client
    from distributed.security import Security

    tls = config.tls if config.scheduler.startswith("tls://") else TlsConfig()
    for name in ("ca", "cert", "key"):
        if tls.ca and not Path(getattr(tls, name)).is_file():
            raise InputError(f"`tls.{name}` is `{getattr(tls, name)}`, and there is no such file.")
    files = {"tls_ca_file": tls.ca, "tls_client_cert": tls.cert, "tls_client_key": tls.key} if tls.ca else {}
    security = Security(require_encryption=True, **files) if files else None
    failures = (OSError, TimeoutError, ValueError, TypeError, RuntimeError)  # the last two: tls:// and no certificate
    try:
        return Client(config.scheduler, timeout=_ANSWER_S, set_as_default=False, security=security)
    except failures as error:
        problem = str(error)
    # What is left of that client closes itself when it is collected. In the start of another thread, say, that is a
    # deadlock (distributed 2026.8): so now, and the error keeps nothing of it alive.
    gc.collect()
    raise InputError(
        f"No dask scheduler answers at {config.scheduler} ({problem}). Is `dask scheduler` running there, and does "
        "it speak the same protocol (tcp:// or tls://) with certificates of the same authority?"
    )


@contextmanager
def slurm_jobs(config: LabelConfig, folder: Path) -> Iterator[Any]:
    """A client of a scheduler in this process, for which jobs of workers wait in SLURM's queue. When the last of them
    has ended, as many are asked for again.

    Whoever reaches a scheduler can run code as its owner, and the nodes must reach this one: so it speaks TLS, with
    certificates of this run that only its owner can read.

    Parameters
    ----------
    config
        `workers` and `slurm`.
    folder
        That the nodes see; for the certificates, unless its name has a space: then they go into the home folder.
    """
    require("cryptography", extra="slurm", purpose="talk to workers in SLURM jobs")
    jobqueue = require("dask_jobqueue", extra="slurm", purpose="start workers as SLURM jobs")
    import dask
    from distributed import Client

    asked = dask.config.get("jobqueue.slurm", {}) | config.slurm
    cores = asked.get("cores")
    if not isinstance(cores, int) or config.slurm.get("processes", cores) != cores:
        raise InputError(
            f"`labelling.slurm` is {config.slurm!r}. Give the `cores` of a job, which runs as many workers of one "
            "thread each, and its `memory`; `processes` follows. Example: {cores: 32, memory: 64GB, queue: cpu}."
        )
    certificates = folder if shlex.quote(str(folder)) == str(folder) else Path(tempfile.mkdtemp(dir=Path.home()))
    prologue = [f"export {name}={value}" for name, value in quiet_environment().items()]
    # No dashboard. A worker's death is ours to judge, and a teacher may hold Python's lock for hours: no heartbeat.
    scheduler = {
        "dashboard": False, "dashboard_address": "127.0.0.1:0", "allowed_failures": 0, "worker_ttl": "1000 days",
    }  # fmt: skip
    # dask-jobqueue writes paths into its script as they are.
    python = {"python": shlex.quote(sys.executable)}
    options = {"security": True, "shared_temp_directory": str(certificates)} | python | config.slurm
    options["processes"] = cores
    options["scheduler_options"] = scheduler | dict(config.slurm.get("scheduler_options", {}))
    options["job_script_prologue"] = prologue + list(asked.get("job_script_prologue") or [])
    try:
        cluster = jobqueue.SLURMCluster(**options)
    except (TypeError, ValueError) as error:
        if certificates != folder:
            shutil.rmtree(certificates, ignore_errors=True)
        raise InputError(
            f"`labelling.slurm` is {config.slurm!r}, which dask_jobqueue.SLURMCluster does not take: {error}"
        ) from error
    jobs, done = math.ceil(config.workers / cores), threading.Event()
    try:
        cluster.scale(jobs=jobs)
        with Client(cluster, set_as_default=False) as client:
            _wait_for_submission(cluster)
            threading.Thread(target=_keep_jobs, args=(cluster, jobs, done), daemon=True).start()
            yield client
    finally:
        done.set()
        with suppress(Exception):  # what goes wrong while closing cannot hurt a label any more
            cluster.close(timeout=10)
        if certificates != folder:
            shutil.rmtree(certificates, ignore_errors=True)


def _wait_for_submission(cluster: Any) -> None:
    deadline = time.monotonic() + _SUBMITTED_S
    while not cluster.workers:
        if time.monotonic() > deadline:
            raise DistillaseError(
                f"No job of workers could be submitted within {_SUBMITTED_S:.0f} s. Try what sbatch has to say of "
                f"this script:\n{cluster.job_script()}"
            )
        time.sleep(0.1)


def _keep_jobs(cluster: Any, jobs: int, done: threading.Event) -> None:
    """Ask for jobs again when the last worker has gone: their time was over, or they were preempted."""
    were_there = False
    while not done.wait(_LOOK_S):
        there = bool(cluster.scheduler_info["workers"])
        if were_there and not there:
            cluster.scale(0)
            cluster.scale(jobs=jobs)
        were_there = there
