"""How long work says how far it is: a protocol, and a reporter that says nothing.

Library code takes a `Progress` and never prints. The command line passes one that draws bars with `rich`, or writes one
plain line every few seconds where the output is not a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class ProgressTask(Protocol):
    """One bar."""

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        """Move on by `amount` of the total; `note` is a short text shown beside the bar (a loss, a rate)."""


class Progress(Protocol):
    """Where long work reports to."""

    def task(self, description: str, total: float | None) -> AbstractContextManager[ProgressTask]:
        """Open a bar; `total` is None where it is not known."""
        ...

    def say(self, message: str) -> None:
        """Print one line above the bars."""


class _SilentTask:
    def advance(self, amount: float = 1.0, note: str = "") -> None:
        pass


class SilentProgress:
    """Reports nothing; the default everywhere."""

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[ProgressTask]:
        """A bar that is not drawn."""
        yield _SilentTask()

    def say(self, message: str) -> None:
        """Nothing is printed."""
