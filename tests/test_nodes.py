"""Two nodes, each with an address of its own, one of which dies in mid-epoch. Root only: `make test-nodes`.

The nodes are network namespaces on this machine, joined by a virtual cable; torchrun meets by host name.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from namespaces import ADDRESSES, LINK, needs_namespaces, pids
from safetensors.torch import load_file
from test_training import frames

from distillase.datasets.store import write_dataset

pytestmark = [pytest.mark.nodes, needs_namespaces]


class Node:
    """torchrun on one node."""

    def __init__(self, name: str, dataset: Path, folder: Path) -> None:
        self.name = name
        self.log = folder.parent / f"{folder.name}-{name}.log"
        command = [
            "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
            "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-endpoint=dsa:29431",
            "--rdzv-id=test", f"--local-addr={name}", "-m", "distillase.launch",
            "train", str(dataset), "--out", str(folder),
        ]  # fmt: skip
        settings = {
            "model.features": 8, "model.layers": 1, "training.max_epochs": 300, "training.batch_frames": 4,
            "training.accumulate": 2, "training.compile": "off", "training.tensorboard": "false",
            "training.checkpoint_seconds": 0, "training.validate_every": 10, "split.by": "frame",
            "training.threads": 1,
        }  # fmt: skip
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        known = os.environ | {
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": LINK,
            # With a store that outlives the first rendezvous, torch 2.13 never tells a new node where the first one is.
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, env=known, stdout=log, stderr=log)

    def kill(self) -> None:
        """As if the power had gone: everything that runs on the node, at once."""
        for pid in pids(self.name):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def end(self, seconds: float = 120) -> int:
        """Its exit status."""
        return self.process.wait(seconds)


def wait_for_rows(folder: Path, rows: int, nodes: list[Node]) -> None:
    """Until the training has come so far."""
    path, limit = folder / "metrics.jsonl", time.monotonic() + 120
    while not path.is_file() or len(path.read_text().splitlines()) < rows:
        assert time.monotonic() < limit, nodes[0].log.read_text()[-3000:]
        assert all(node.process.poll() is None for node in nodes), nodes[0].log.read_text()[-3000:]
        time.sleep(0.05)


def test_a_node_that_dies_changes_nothing(nodes: None, tmp_path: Path) -> None:
    """(a) a worker node is killed and started again; (b) the one that hosts the rendezvous is, and the job started
    again. The weights are those of an undisturbed run, to the last bit.
    """
    dataset = write_dataset(tmp_path / "emt.h5", frames(20), provenance={"teacher": "emt"})
    undisturbed = tmp_path / "undisturbed"
    pair = [Node(name, dataset, undisturbed) for name in ADDRESSES]
    assert [node.end() for node in pair] == [0, 0], pair[0].log.read_text()[-3000:]
    expected = load_file(undisturbed / "model.safetensors")

    worker = tmp_path / "worker"
    pair = [Node(name, dataset, worker) for name in ADDRESSES]
    wait_for_rows(worker, 5, pair)
    pair[1].kill()
    assert not (worker / "model.safetensors").exists()
    pair[1] = Node("dsb", dataset, worker)
    assert [node.end() for node in pair] == [0, 0], pair[0].log.read_text()[-3000:]

    host = tmp_path / "host"
    pair = [Node(name, dataset, host) for name in ADDRESSES]
    wait_for_rows(host, 5, pair)
    pair[0].kill()
    assert not (host / "model.safetensors").exists()
    assert pair[1].end() != 0  # nobody is left to meet: the scheduler starts the job again
    pair = [Node(name, dataset, host) for name in ADDRESSES]
    assert [node.end() for node in pair] == [0, 0], pair[0].log.read_text()[-3000:]

    for folder in (worker, host):
        found = load_file(folder / "model.safetensors")
        assert all((found[name] == expected[name]).all() for name in expected), folder.name
        assert "goes on at epoch" in (tmp_path / f"{folder.name}-dsa.log").read_text()
