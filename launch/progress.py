"""What the command line shows of long work: bars with ETA in a terminal, one plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars

from ..ase_calcs.progress import Progress, ProgressTask, SilentProgress

INTERRUPTED = 130  # exit code after Ctrl-C


def is_first_process() -> bool:
    """False in all processes that torchrun has started but the first, which alone writes files and talks to people."""
    return int(os.environ.get("RANK", "0")) == 0


def make_progress(stream: TextIO | None = None) -> Progress:
    """Bars if the stream (default: standard output) is a terminal, plain lines if it is not; nothing in torchrun's
    further processes.
    """
    if not is_first_process():
        return SilentProgress()
    stream = stream or sys.stdout
    return RichProgress(stream) if stream.isatty() else PlainProgress(stream)


def clock(seconds: float) -> str:
    """A duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.1f}"


class _RichTask:
    def __init__(self, bars: RichBars, task_id: int) -> None:
        self._bars, self._id = bars, task_id

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        fields = {"note": note} if note else {}
        self._bars.update(self._id, advance=amount, **fields)  # type: ignore[arg-type]


class RichProgress:
    """Bars with elapsed and remaining time, drawn by `rich`."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._bars: RichBars | None = None
        self._open = 0

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[ProgressTask]:
        """Draw one bar; a bar opened inside another is drawn below it."""
        if self._bars is None:
            self._bars = RichBars(
                TextColumn("{task.description:<22}", markup=False),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
            )
            self._bars.start()
        self._open += 1
        task_id = self._bars.add_task(description, total=total, note="")
        try:
            yield _RichTask(self._bars, task_id)
        finally:
            self._open -= 1
            if self._open == 0:
                self._bars.stop()
                self._bars = None

    def say(self, message: str) -> None:
        """Print above the bars."""
        self._console.print(message, markup=False, soft_wrap=True)


class _PlainTask:
    def __init__(self, stream: TextIO, description: str, total: float | None, every: float) -> None:
        self._stream, self._description, self._total, self._every = stream, description, total, every
        self._done, self._note = 0.0, ""
        self._start = time.monotonic()
        self._last = self._start

    def advance(self, amount: float = 1.0, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        if time.monotonic() - self._last >= self._every:
            self._last = time.monotonic()
            self.write()

    def write(self, closing: str = "") -> None:
        elapsed = time.monotonic() - self._start
        parts = [f"{self._description}: {_number(self._done)}"]
        if self._total:
            parts[0] += f" of {_number(self._total)} ({100 * self._done / self._total:.0f} %)"
        parts.append(f"{clock(elapsed)} so far")
        if closing:
            parts[-1] = f"{closing} after {clock(elapsed)}"
        elif self._total and self._done > 0:
            parts.append(f"ETA {clock(elapsed * max(self._total - self._done, 0.0) / self._done)}")
        if self._note:
            parts.append(self._note)
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()


class PlainProgress:
    """One line every few seconds, for log files and pipes.

    Parameters
    ----------
    stream
        Where the lines go.
    every
        Seconds between two lines of one bar.
    """

    def __init__(self, stream: TextIO, every: float = 5.0) -> None:
        self._stream, self._every = stream, every

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[ProgressTask]:
        """Report on one piece of work, and once more when it ends."""
        task = _PlainTask(self._stream, description, total, self._every)
        closing = "stopped"
        try:
            yield task
            closing = "done"
        finally:
            task.write(closing)

    def say(self, message: str) -> None:
        """Print one line."""
        self._stream.write(message + "\n")
        self._stream.flush()
