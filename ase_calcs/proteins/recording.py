"""Frames of a simulation on disk while it goes on, so that Ctrl-C, a crash or a full queue leaves what there was."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from ..errors import DataError, InputError

_SECONDS = 30.0  # what a killed process loses at most


class FrameRecorder:
    """Writes frames in pieces, ``FOLDER/00000.npz`` and on, each whole or not at all.

    Parameters
    ----------
    folder
        For the pieces; it must hold none.
    frames
        Of a piece; a piece is also written when the last one is half a minute old.

    Raises
    ------
    InputError
        There are frames already: those of a simulation that was killed.
    """

    def __init__(self, folder: str | Path, *, frames: int = 1000) -> None:
        self.folder = Path(folder)
        if _pieces(self.folder):
            raise InputError(
                f"{self.folder} holds the frames of a simulation that was killed. Keep them "
                f"(`distillase.ase_calcs.proteins.recording.read_frames({str(self.folder)!r})` reads them), delete the "
                "folder, or write elsewhere."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.frames = frames
        self._waiting: list[dict[str, np.ndarray]] = []
        self._number = 0
        self._written = time.monotonic()

    def add(self, **arrays: np.ndarray) -> None:
        """One frame: the same names and shapes every time."""
        self._waiting.append({name: np.array(values) for name, values in arrays.items()})
        if len(self._waiting) >= self.frames or time.monotonic() - self._written > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if self._waiting:
            whole = {name: np.stack([frame[name] for frame in self._waiting]) for name in self._waiting[0]}
            path = self.folder / f"{self._number:05d}.npz"
            part = path.with_suffix(f".{os.getpid()}.part")
            with part.open("wb") as file:
                np.savez(file, **whole)  # type: ignore[arg-type]
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            self._number += 1
            self._waiting = []
        self._written = time.monotonic()

    def clear(self) -> None:
        """Remove the pieces: what they held is somewhere else now."""
        for path in (*_pieces(self.folder), *self.folder.glob("*.part")):
            path.unlink()
        self.folder.rmdir()


def read_frames(folder: str | Path) -> dict[str, np.ndarray]:
    """All frames of a folder, name → (T, …): ``positions`` (Å, float32), ``energies`` (eV) and what else there was.

    Raises
    ------
    DataError
        There are none.
    """
    pieces = _pieces(Path(folder))
    if not pieces:
        raise DataError(f"{folder} holds no frames.")
    found: dict[str, list[np.ndarray]] = {}
    for path in pieces:
        with np.load(path) as piece:
            for name in piece.files:
                found.setdefault(name, []).append(piece[name])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _pieces(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npz") if path.stem.isdigit())
