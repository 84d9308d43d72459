"""Two machines on one: network namespaces with an address and names of their own, joined by a virtual cable (root)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ADDRESSES = {"dsa": "10.77.31.1", "dsb": "10.77.31.2"}
LINK = "dsv"  # on both
needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and iproute2 for network namespaces"
)


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


def clear() -> None:
    for name in ADDRESSES:
        ip("netns", "del", name, check=False)
        shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)


def build() -> None:
    """The namespaces. Each knows the other by name, and itself by the machine's own name."""
    clear()
    for name in ADDRESSES:
        ip("netns", "add", name)
        hosts = [f"{address} {other}" for other, address in ADDRESSES.items()]
        own = f"127.0.0.1 localhost\n{ADDRESSES[name]} {os.uname().nodename}\n"
        folder = Path(f"/etc/netns/{name}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(own + "\n".join(hosts) + "\n")
    ip("link", "add", LINK, "netns", "dsa", "type", "veth", "peer", "name", LINK, "netns", "dsb")
    for name, address in ADDRESSES.items():
        ip("-n", name, "addr", "add", f"{address}/24", "dev", LINK)
        ip("-n", name, "link", "set", LINK, "up")
        ip("-n", name, "link", "set", "lo", "up")


def pids(name: str) -> list[int]:
    """Of everything that runs on a node."""
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
    return [int(pid) for pid in listed.stdout.split()]
