"""A training under a real SLURM of two nodes: submitted, preempted, out of time, resumed, done. `make test-slurm`.

Needs root and Debian's slurm-wlm and munge. Controller and nodes run in the network namespaces of `namespaces.py`, with
a configuration, a key and sockets of their own; nothing of a SLURM that the machine may belong to is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from namespaces import ADDRESSES, needs_namespaces, pids
from safetensors.torch import load_file
from test_training import frames

from distillase.datasets.store import Dataset, write_dataset
from distillase.launch.cli import main

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
pytestmark = [
    pytest.mark.slurm,
    needs_namespaces,
    pytest.mark.skipif(any(shutil.which(name) is None for name in DAEMONS), reason="needs slurm-wlm and munge"),
]

# Two partitions of the same nodes: jobs of the second one send those of the first back into the queue.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=dsa({controller})
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=20
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=1,sched_interval=2
NodeName=dsa NodeAddr={controller} CPUs=2 RealMemory=1000
NodeName=dsb NodeAddr={other} CPUs=2 RealMemory=1000
PartitionName=low Nodes=dsa,dsb Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30 OverSubscribe=NO
PartitionName=high Nodes=dsa,dsb PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""


def on_node(node: str, *words: str) -> list[str]:
    """A command on a node, which has a name of its own, too."""
    return ["ip", "netns", "exec", node, "unshare", "--uts", "sh", "-c", 'hostname "$0"; exec "$@"', node, *words]


class Slurm:
    """Its commands, on the first node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def start(self, node: str, *words: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{words[0]}-{node}.out").open("w")
        return subprocess.Popen(on_node(node, *words), env=self.known, stdout=log, stderr=log)

    def __call__(self, *words: str, seconds: float = 60) -> str:
        done = subprocess.run(
            on_node("dsa", *words), env=self.known, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def submit(self, *words: str) -> str:
        """The number of the job."""
        return self("sbatch", "--parsable", *words)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        shown = self("scontrol", "--oneliner", "show", "job", number)
        return dict(part.split("=", 1) for part in shown.split() if "=" in part)

    def start_again(self, number: str) -> None:
        """Let a job that SLURM has put back begin soon, and not after its two minutes; at once it is refused."""
        self.wait("the queue", lambda: self.job(number)["JobState"] == "PENDING")
        self("scontrol", "update", f"JobId={number}", "StartTime=now+4seconds")

    def wait_for_end(self, number: str) -> None:
        """Until a job is done, and not failed."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
        self.wait(f"job {number}", lambda: self.job(number)["JobState"] in ended)
        assert self.job(number)["JobState"] == "COMPLETED", self.logs()

    def logs(self) -> str:
        """The ends of all logs, for a test that fails."""
        found = [*self.folder.glob("*.log"), *self.folder.glob("*.out"), *self.folder.parent.glob("*/slurm-*.log")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in found)

    def wait(self, what: str, fulfilled: Callable[[], bool], seconds: float = 120) -> None:
        limit = time.monotonic() + seconds
        while not fulfilled():
            assert time.monotonic() < limit, f"waited {seconds} s for {what}\n{self('squeue')}\n{self.logs()}"
            time.sleep(0.1)


@pytest.fixture
def slurm(nodes: None, tmp_path: Path) -> Iterator[Slurm]:
    """A cluster of two nodes, up and idle."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool-dsa", "spool-dsb"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(controller=ADDRESSES["dsa"], other=ADDRESSES["dsb"], folder=folder)
    )
    # The default looks for cgroups even where nothing uses them.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    folder.chmod(0o755)
    cluster = Slurm(folder)
    files = [f"--{kind}-file={folder}/munged.{kind}" for kind in ("pid", "log", "seed")]
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}", *files]
    started = [cluster.start("dsa", *munged)]
    cluster.wait("munged", lambda: (folder / "munge.socket").exists(), 20)
    started += [cluster.start("dsa", "slurmctld", "-D", "-i", "-f", f"{folder}/slurm.conf")]
    started += [cluster.start(name, "slurmd", "-D", "-N", name, "-f", f"{folder}/slurm.conf") for name in ADDRESSES]
    try:
        limit = time.monotonic() + 60
        while subprocess.run(
            on_node("dsa", "sinfo", "--noheader", "--states=idle", "--format=%D", "--partition=low"),
            env=cluster.known, capture_output=True, text=True, check=False,
        ).stdout.strip() != "2":  # fmt: skip
            assert time.monotonic() < limit, cluster.logs()
            time.sleep(0.2)
        yield cluster
    finally:
        for name in ADDRESSES:
            for pid in pids(name):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait()


def script(dataset: Path, folder: Path, epochs: int, *options: str) -> Path:
    """Written by `distillase launch slurm`, for a training on both nodes."""
    words = ["train", str(dataset), "--out", str(folder)]
    settings = {
        "model.features": 8, "model.layers": 1, "training.max_epochs": epochs, "training.batch_frames": 4,
        "training.accumulate": 2, "training.compile": "off", "training.tensorboard": "false", "training.threads": 1,
        "training.checkpoint_seconds": 10_000, "training.validate_every": 10, "split.by": "frame",
    }  # fmt: skip
    for key, value in settings.items():
        words += ["--set", f"{key}={value}"]
    chosen = [word for option in options for word in ("--option", option)]
    assert main(["launch", "slurm", "--nodes", "2", "--cpus", "2", *chosen, "--", *words]) == 0
    return folder / "train.sbatch"


def rows(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_interruptions_change_nothing(slurm: Slurm, tmp_path: Path) -> None:
    """A job that is preempted, and then comes to the end of its time, goes on each time and ends with the weights, to
    the last bit, of one that was left alone.
    """
    dataset = write_dataset(tmp_path / "emt.h5", frames(20), provenance={"teacher": "emt"})
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"

    job = slurm.submit(str(script(dataset, undisturbed, 300, "partition=low")))
    slurm.wait_for_end(job)

    job = slurm.submit(str(script(dataset, disturbed, 300, "partition=low")))
    slurm.wait("its rows", lambda: rows(disturbed) >= 3)
    urgent = slurm.submit(
        "--partition=high", "--nodes=2", "--cpus-per-task=2", f"--output={tmp_path}/urgent.log", "--wrap", "sleep 1"
    )
    slurm.wait_for_end(urgent)
    before = rows(disturbed)
    assert (disturbed / "checkpoint.pt").is_file(), slurm.logs()
    assert not (disturbed / "model.safetensors").exists()
    assert slurm.job(job)["Restarts"] == "1"

    slurm.start_again(job)
    slurm.wait("the job to go on", lambda: rows(disturbed) > before)
    # As SLURM does two minutes before the end of the time; it looks only twice a minute whether it is there.
    slurm("scancel", "--batch", "--signal=USR1", job)
    slurm.wait("the signal", lambda: slurm.job(job)["Restarts"] == "2")
    assert not (disturbed / "model.safetensors").exists()

    slurm.start_again(job)
    slurm.wait_for_end(job)
    expected, found = (load_file(folder / "model.safetensors") for folder in (undisturbed, disturbed))
    assert all((found[name] == expected[name]).all() for name in expected)
    # It went on where it had been stopped, and not at the checkpoint before.
    log = (disturbed / f"slurm-{job}.log").read_text()
    went_on = [int(epoch) for epoch in re.findall(r"goes on at epoch (\d+)", log)]
    assert len(went_on) == 2, log
    assert 10 * before <= went_on[0] < went_on[1], log


def test_a_job_that_is_cancelled_stays_away(slurm: Slurm, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "emt.h5", frames(20), provenance={"teacher": "emt"})
    job = slurm.submit(str(script(dataset, tmp_path / "run", 100_000, "partition=low")))
    slurm.wait("its rows", lambda: rows(tmp_path / "run") >= 3)
    slurm("scancel", job)
    slurm.wait("its end", lambda: slurm.job(job)["JobState"] == "CANCELLED" and not slurm("squeue", "--noheader"))
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    time.sleep(3)
    assert slurm.job(job)["JobState"] == "CANCELLED"


def test_labelling_asks_slurm_for_workers(slurm: Slurm, tmp_path: Path) -> None:
    """One on each node; what they label is what workers on this machine label."""
    dataset, teacher = write_dataset(tmp_path / "geometries.h5", frames(40), provenance={}), "ase.calculators.emt:EMT"
    options = f"queue: low, cores: 2, memory: 900MB, walltime: '00:10:00', log_directory: {tmp_path}"
    command = [sys.executable, "-m", "distillase.launch", "label", str(dataset), "--teacher", teacher]
    settings = ["scheduler=slurm", "workers=4", f"slurm={{{options}}}"]
    chosen = [word for setting in settings for word in ("--set", f"labelling.{setting}")]
    said = slurm(*command, "--out", str(tmp_path / "a cluster"), *chosen, seconds=120)
    assert "40 of 40 (100 %)" in said
    assert {slurm.job(number)["BatchHost"] for number in ("1", "2")} == set(ADDRESSES)
    slurm.wait("their end", lambda: not slurm("squeue", "--noheader"))  # they do not stay behind

    assert main([*command[3:], "--out", str(tmp_path / "here"), "--workers", "1"]) == 0
    with Dataset(tmp_path / "a cluster" / "dataset.h5") as ours, Dataset(tmp_path / "here" / "dataset.h5") as expected:
        assert np.array_equal(ours.energy, expected.energy)
        assert np.array_equal(ours.forces, expected.forces)
