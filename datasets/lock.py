"""One run in a folder at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..ase_calcs.errors import DataError


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Make the folder and keep other runs out of it; `doing` completes "Another run is …".

    Raises
    ------
    DataError
        Another run is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:  # the lock goes with the process, however it ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"Another run is {doing} in {folder}: wait for it, or stop it.") from error
        yield
