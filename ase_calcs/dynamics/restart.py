"""Restart files of dynamics: arrays and a JSON state in one .npz, written whole or not at all, read without pickle."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, InputError


class RestartFile:
    """Where a dynamics keeps what it needs to go on."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Replace the file; a kill in between leaves the old one."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, state=np.array(json.dumps(state)), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def read(
        self, numbers: np.ndarray, settings: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and state, or None where there is no file yet.

        Raises
        ------
        DataError
            The file cannot be read.
        InputError
            It belongs to other atoms or to a run with other settings.
        """
        if not self.path.exists():
            return None
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name != "state"}
                state = json.loads(str(file["state"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(
                f"The restart file {self.path} cannot be read ({error}). Remove it to start anew."
            ) from error
        if not np.array_equal(arrays["numbers"], numbers):
            raise InputError(f"The restart file {self.path} is of other atoms. Name another file, or remove it.")
        other = [key for key in settings if state["settings"].get(key) != settings[key]]
        if other:
            was = ", ".join(f"{key} = {state['settings'].get(key)}" for key in other)
            now = ", ".join(f"{key} = {settings[key]}" for key in other)
            raise InputError(
                f"The restart file {self.path} belongs to a run with {was}; this one has {now}. Name another file to "
                "begin anew from these atoms."
            )
        return arrays, state
