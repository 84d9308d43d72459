"""Checkpoints of a training: atomic, with a checksum, and the previous one kept.

They are loaded with ``weights_only=True``: tensors and plain values, no code.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from ..ase_calcs.errors import InputError

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
_DIGEST = 32


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state; whatever happens meanwhile, a whole checkpoint is there afterwards."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path, temporary = folder / NAME, folder / f".{NAME}.tmp"
    with temporary.open("wb") as file:
        file.write(hashlib.blake2b(data, digest_size=_DIGEST).digest())
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        path.replace(folder / PREVIOUS)
    temporary.replace(path)


def load_checkpoint(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None if there is none.

    Raises
    ------
    InputError
        It belongs to another dataset, model or recipe.
    """
    for name in (NAME, PREVIOUS):
        state = _read(folder / name)
        if state is None:
            continue
        if state["fingerprint"] != fingerprint:
            raise InputError(
                f"{folder} holds the checkpoint of a training with another dataset, model, split or recipe. Train in "
                f"another folder, give the old settings, or remove {NAME} and {PREVIOUS} to start afresh."
            )
        return state
    return None


def remove_checkpoints(folder: Path) -> None:
    """After training is finished and its model written."""
    for name in (NAME, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """None where there is no file, or a torn one (its digest does not fit)."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    digest, body = data[:_DIGEST], data[_DIGEST:]
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != digest:
        return None
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
