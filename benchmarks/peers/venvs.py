"""Virtual environments for the programs that distillase is measured against, one each.

Peers pin each other's dependencies, so none of them shares an environment with another or with distillase. torch goes
in first, of the version distillase is tested with; the peer follows with ``--no-deps``, and then what it truly imports:
left to pip, schnetpack 2.1.1 (``sympy<=1.12``) would pull torch back to 2.4 with gigabytes of CUDA.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Peer:
    """Package of a peer, installed without its dependencies, and those of its dependencies that it imports."""

    package: str
    needs: tuple[str, ...]


PEERS = {
    "schnetpack": Peer(
        "schnetpack==2.1.1",
        (
            *("numpy>=2", "ase", "matscipy", "h5py", "pyyaml", "omegaconf", "hydra-core", "fasteners", "dirsync"),
            *("tqdm", "rich", "torch-ema", "pytorch-lightning>=2", "torchmetrics"),
        ),
    ),
    "torchani": Peer("torchani==2.9.0", ("numpy", "ase", "h5py", "tqdm", "typer", "rich", "huggingface_hub")),
}


def default_folder() -> Path:
    """In the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "distillase" / "benchmark-venvs"


def peer_python(name: str, folder: Path, torch: str = TORCH) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there or was made otherwise.

    Parameters
    ----------
    name
        Key of `PEERS`.
    folder
        Where the environments lie.
    torch
        What pip is asked for, e.g. ``"torch==2.13.0 --index-url <the index of that build>"``.
    """
    peer, home = PEERS[name], folder / name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    recipe = hashlib.sha256(repr((peer, torch, sys.version_info[:2])).encode()).hexdigest()
    marker = home / "distillase-recipe"
    if marker.is_file() and marker.read_text() == recipe:
        return python
    print(f"Making the environment of {name} in {home} (minutes, once) …", file=sys.stderr, flush=True)
    venv.create(home, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, *shlex.split(torch)], check=True)
    installed = subprocess.run(
        [str(python), "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True, text=True
    ).stdout.strip()
    subprocess.run([*pip, "--no-deps", peer.package], check=True)
    # Named once more and exactly, so that no dependency can bring another torch. pip then lists what else the peer
    # declares and does not import.
    subprocess.run([*pip, *peer.needs, f"torch=={installed}"], check=True, stderr=subprocess.DEVNULL)
    marker.write_text(recipe)
    return python
