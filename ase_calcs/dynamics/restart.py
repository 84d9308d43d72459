"""Restart files of dynamics: arrays and a JSON state in one .npz, written whole or not at all, read without pickle."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase.md.md import MolecularDynamics

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


def set_random_state(rng: np.random.Generator, state: Any) -> None:
    """Put a generator where it was. Raises InputError for one of another kind."""
    if state["bit_generator"] != type(rng.bit_generator).__name__:
        raise InputError(
            f"The restart file was written with the generator {state['bit_generator']}, this run has "
            f"{type(rng.bit_generator).__name__}. Give `rng` the same kind."
        )
    rng.bit_generator.state = state


class RestartableDynamics(MolecularDynamics):
    """A dynamics that can be stopped at any moment and goes on as if it had not been.

    A class below says in `_settings` what must be the same, and in `_snapshot` and `_restore` what it needs besides
    atoms, number of steps and generator (its attribute ``rng``, if it has one).
    """

    _restart: RestartFile | None = None

    def _use_restart_file(self, path: str | Path | None, interval: int) -> None:
        """Last thing in a constructor: go on from the file if it exists, and write it from now on."""
        if path is None:
            return
        self._restart = RestartFile(path)
        found = self._restart.read(self.atoms.numbers, self._settings())
        if found is not None:
            arrays, state = found
            rng = getattr(self, "rng", None)
            if rng is not None:
                set_random_state(rng, state["random"])
            self.atoms.set_cell(arrays["cell"])
            self.atoms.positions[:] = arrays["positions"]
            self.atoms.set_momenta(arrays["momenta"], apply_constraint=False)
            self.nsteps = int(state["nsteps"])
            self._restore(arrays, state)
        self.attach(self.save_restart, interval=interval)

    def irun(self, steps: int = 50) -> Iterator[bool]:
        """As `MolecularDynamics.irun`; a run that comes to its end leaves its restart file up to date."""
        yield from super().irun(steps)
        if self._restart is not None:
            self.save_restart()

    def save_restart(self) -> None:
        """Write the restart file now."""
        if self._restart is None:
            raise InputError('There is no restart file: give `restart="run.npz"` when the dynamics is made.')
        arrays, state = self._snapshot()
        arrays |= {
            "numbers": self.atoms.numbers,
            "positions": self.atoms.positions,
            "momenta": self.atoms.get_momenta(),
            "cell": self.atoms.cell.array,
        }
        rng = getattr(self, "rng", None)
        random = None if rng is None else rng.bit_generator.state
        state |= {"nsteps": self.nsteps, "settings": self._settings(), "random": random}
        self._restart.write(arrays, state)

    def _settings(self) -> dict[str, Any]:
        return {"class": type(self).__name__}

    def _snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        return {}, {}

    def _restore(self, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        pass
