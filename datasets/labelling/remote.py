"""Workers that others start: those of a dask scheduler at some address, and jobs under SLURM."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...ase_calcs.errors import InputError, require
from .config import LabelConfig
from .process import quiet_environment

_ANSWER_S = 30.0


def connect(config: LabelConfig) -> Any:
    """A client of the scheduler at that address.

    Raises
    ------
    InputError
        None answers.
    """
    from distributed import Client
    from distributed.security import Security

    tls = config.tls
    files = {"tls_ca_file": tls.ca, "tls_client_cert": tls.cert, "tls_client_key": tls.key} if tls.ca else {}
    security = Security(require_encryption=True, **files) if files else None
    failures = (OSError, TimeoutError, ValueError, TypeError, RuntimeError)  # the last two: tls:// and no certificate
    try:
        return Client(config.scheduler, timeout=_ANSWER_S, set_as_default=False, security=security)
    except failures as error:
        raise InputError(
            f"No dask scheduler answers at {config.scheduler} ({error}). Is `dask scheduler` running there, and does "
            "it speak the same protocol (tcp:// or tls://) with certificates of the same authority?"
        ) from error


@contextmanager
def slurm_jobs(config: LabelConfig, folder: Path) -> Iterator[Any]:
    """A client of a scheduler in this process, for which jobs of workers wait in SLURM's queue until the block ends.

    Whoever reaches a scheduler can run code as its owner, and the nodes must reach this one: so it speaks TLS, with
    certificates of this run that only its owner can read.

    Parameters
    ----------
    config
        `workers` and `slurm`.
    folder
        That the nodes see; for the certificates.
    """
    require("cryptography", extra="slurm", purpose="talk to workers in SLURM jobs")
    jobqueue = require("dask_jobqueue", extra="slurm", purpose="start workers as SLURM jobs")
    from distributed import Client

    given: dict[str, Any] = {"cores": 1, "memory": "2GB"} | config.slurm
    processes = int(given.setdefault("processes", given["cores"]))
    prologue = [f"export {name}={value}" for name, value in quiet_environment().items()]
    options = {
        "security": True,
        "shared_temp_directory": str(folder),
        # No dashboard. A worker's death is ours to judge, and a teacher may hold Python's lock for hours: no heartbeat.
        "scheduler_options": {
            "dashboard": False, "dashboard_address": "127.0.0.1:0", "allowed_failures": 0, "worker_ttl": "1000 days",
        },
        **given,
        "job_script_prologue": prologue + list(given.get("job_script_prologue", [])),
    }  # fmt: skip
    try:
        cluster = jobqueue.SLURMCluster(**options)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`labelling.slurm` is {config.slurm!r}, which dask_jobqueue.SLURMCluster does not take: {error}"
        ) from error
    try:
        cluster.scale(jobs=math.ceil(config.workers / processes))
        with Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        with suppress(Exception):  # what goes wrong while closing cannot hurt a label any more
            cluster.close(timeout=10)
