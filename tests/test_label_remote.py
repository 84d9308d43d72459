"""Labelling with workers of somebody else's scheduler: deaths on either side lose nothing and repeat nothing."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client
from distributed.security import Security
from test_labelling import CALCULATORS, arrays, calls, ethanol, first_atom, springs

from distillase.ase_calcs.errors import DataError, InputError
from distillase.datasets.labelling import LabelConfig, LabelResult, label_structures
from distillase.datasets.labelling.blocks import pack
from distillase.datasets.labelling.config import TeacherStamp, TlsConfig
from distillase.datasets.labelling.parts import Ledger
from distillase.datasets.labelling.remote import connect, slurm_jobs
from distillase.datasets.labelling.worker import Job, _check_place, begun, label_block, marker_path


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Cluster:
    """dask's own command line, on this machine."""

    def __init__(self, folder: Path, calculators: Path, *words: str, protocol: str = "tcp") -> None:
        self.folder, self.words = folder, words
        self.port = free_port()
        self.address = f"{protocol}://127.0.0.1:{self.port}"
        self.known = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(calculators), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{words[0]}-{len(self.processes)}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *words, *self.words], env=self.known, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[bytes]:
        protocol = self.address.split(":")[0]
        return self.start(
            "scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--protocol", protocol, "--no-dashboard"
        )

    def workers(self, n: int, threads: int = 1) -> subprocess.Popen[bytes]:
        return self.start(
            "worker", self.address, "--nworkers", str(n), "--nthreads", str(threads), "--no-dashboard",
            "--local-directory", str(self.folder), "--death-timeout", "60",
        )  # fmt: skip

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def calculators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("calculators")
    (folder / "springs_for_labelling.py").write_text(CALCULATORS)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@contextmanager
def cluster(folder: Path, calculators: Path, *words: str, protocol: str = "tcp") -> Iterator[Cluster]:
    made = Cluster(folder, calculators, *words, protocol=protocol)
    try:
        yield made
    finally:
        made.stop()


class Labelling(threading.Thread):
    """`label_structures`, while the test does something else."""

    def __init__(self, run: Callable[[], LabelResult]) -> None:
        super().__init__(daemon=True)
        self._run_it = run
        self.result: LabelResult | BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._run_it()
        except BaseException as error:
            self.result = error

    def end(self, seconds: float = 90) -> LabelResult:
        self.join(seconds)
        assert isinstance(self.result, LabelResult), self.result
        return self.result


def wait_for_calls(log: Path, n: int) -> None:
    limit = time.monotonic() + 60
    while calls(log).total() < n:
        assert time.monotonic() < limit, f"{calls(log).total()} calls in a minute"
        time.sleep(0.01)


def test_deaths_of_workers_and_schedulers(tmp_path: Path, calculators: Path) -> None:
    """A worker is killed in mid-task: what it had not written is done again, and nothing else. The scheduler is killed
    and comes back: nothing at all is done twice.
    """
    structures, log = ethanol(400), tmp_path / "log"
    with cluster(tmp_path, calculators) as dask:
        dask.scheduler()
        dask.workers(2)
        config = LabelConfig(scheduler=dask.address, batch_seconds=0.2)
        teacher = springs(log, seconds=0.02)
        labelling = Labelling(lambda: label_structures(structures, tmp_path / "out", teacher=teacher, config=config))

        wait_for_calls(log, 40)
        victim = log.read_text().split()[0]
        os.kill(int(victim), signal.SIGKILL)
        durable = Ledger.scan(tmp_path / "out" / "labels", TeacherStamp.of(teacher)).known()
        names = {first_atom(s): bytes.fromhex(s.key()) for s in structures}
        asked = [line.split() for line in log.read_text().splitlines()]
        lost = {name for pid, _, name in asked if pid == victim and names[name] not in durable}
        assert len(lost) <= 0.2 / 0.02 + 1  # a batch

        wait_for_calls(log, calls(log).total() + 40)
        os.killpg(dask.processes[0].pid, signal.SIGKILL)
        time.sleep(1.0)
        dask.scheduler()
        if dask.processes[1].poll() is None:
            time.sleep(1.0)
        dask.workers(2)
        result = labelling.end()
    assert result.n_labelled == len(structures)
    assert set(calls(log)) == set(names)
    assert {name for name, n in calls(log).items() if n > 1} <= lost
    reference = label_structures(structures, tmp_path / "reference", teacher=teacher, config=LabelConfig(workers=2))
    assert arrays(result.dataset) == arrays(reference.dataset)


def test_a_scheduler_that_wants_certificates(tmp_path: Path, calculators: Path) -> None:
    made = Security.temporary()
    files = {}
    for name, text in (("ca", made.tls_ca_file), ("cert", made.tls_client_cert), ("key", made.tls_client_key)):
        path = tmp_path / f"{name}.pem"
        path.write_text(text)
        files[name] = str(path)
    words = ("--tls-ca-file", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"])
    with cluster(tmp_path, calculators, *words, protocol="tls") as dask:
        dask.scheduler()
        dask.workers(1)
        config = LabelConfig(scheduler=dask.address, tls=TlsConfig(**files))
        result = label_structures(ethanol(12), tmp_path / "out", teacher=springs(), config=config)
        assert result.n_labelled == 12
        with pytest.raises(InputError, match="certificates") as refused:
            label_structures(
                ethanol(12, seed=1), tmp_path / "other", teacher=springs(), config=LabelConfig(scheduler=dask.address)
            )
        # A client that has failed and still lives would close itself at any later time, and may lock up then.
        del refused
        assert not [c for c in gc.get_objects() if type(c) is Client and c.status not in ("closed", "running")]


def test_workers_that_cannot_be_used_are_refused(tmp_path: Path, calculators: Path) -> None:
    with cluster(tmp_path, calculators) as dask:
        dask.scheduler()
        dask.workers(1, threads=2)
        with pytest.raises(InputError, match="runs 2 threads"):
            label_structures(ethanol(2), tmp_path, teacher=springs(), config=LabelConfig(scheduler=dask.address))


def test_a_worker_that_comes_later_is_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not seen by `hello`: another version of the teacher, a folder it does not see."""
    stamp = TeacherStamp.of("gfn2-xtb")
    (tmp_path / "tmp").mkdir()
    _check_place(tmp_path, stamp)
    with pytest.raises(DataError, match=r"tblite 0\.0\.1.*Install the same version"):
        _check_place(tmp_path, replace(stamp, version="tblite 0.0.1"))
    with pytest.raises(DataError, match="common file system"):
        _check_place(tmp_path / "elsewhere", stamp)
    threaded = type("Worker", (), {"state": type("State", (), {"nthreads": 2})})
    monkeypatch.setattr("distributed.get_worker", lambda: threaded)
    _check_place.cache_clear()
    with pytest.raises(InputError, match="runs 2 threads"):
        _check_place(tmp_path, stamp)


def test_settings_that_do_not_go_together() -> None:
    for settings, message in (
        ({"scheduler": "pbs"}, "`local`, `slurm` or an address"),
        ({"scheduler": "slurm"}, "how many `workers`"),
    ):
        with pytest.raises(InputError, match=message):
            LabelConfig(**settings)
    with pytest.raises(InputError, match="`tls` has ca only"):
        TlsConfig(ca=__file__)
    with pytest.raises(InputError, match="no such file"):
        connect(LabelConfig(scheduler="tls://x:1", tls=TlsConfig(ca="x", cert="y", key="z")))
    with (
        pytest.raises(InputError, match="Give the `cores`"),
        slurm_jobs(LabelConfig(scheduler="slurm", workers=2), Path()),
    ):
        pass


def test_a_block_is_begun_once(tmp_path: Path) -> None:
    """Whatever becomes of the scheduler and of the report: claimed, at work, done."""
    stamp = TeacherStamp.of("gfn2-xtb")
    job = Job(tmp_path, stamp, LabelConfig())
    (tmp_path / "tmp").mkdir()
    structures = ethanol(2)
    block = pack(structures, [bytes.fromhex(s.key()) for s in structures])
    assert begun(tmp_path, "claimed") == "no"
    assert label_block(job, "claimed", block).status == "died"
    with marker_path(tmp_path, "locked").open("w") as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        assert begun(tmp_path, "locked") == "at work"
    assert begun(tmp_path, "locked") == "left"
    assert label_block(job, "locked", block).status == "died"
    assert label_block(job, "done", block).labelled == 2
    assert label_block(job, "done", block).status == "died"
    assert begun(tmp_path, "done") == "left"
    assert len(Ledger.scan(tmp_path, stamp, pattern="done-*.npz").labelled) == 2
    assert len(list(tmp_path.glob("*.npz"))) == 1
