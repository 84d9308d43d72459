"""The entry point of `distillase`: errors become one paragraph, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from ..ase_calcs.errors import DistillaseError, require

USER_ERROR = 2
BUG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        What follows the program's name; None takes them from the process.

    Returns
    -------
    int
        0, or 2 for an error that the user can mend, 1 for a bug, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        for module in ("typer", "rich", "pydantic", "yaml"):
            require(module, extra="train", purpose="run the command line")
        from .commands import app

        # Usage errors and --help leave through SystemExit with typer's own message.
        app(args=arguments, prog_name="distillase")
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except DistillaseError as error:
        sys.stderr.write(f"Error: {error}\n")
        return USER_ERROR
    except Exception as error:
        where = _write_traceback(_run_folder(arguments))
        sys.stderr.write(
            f"Error: something went wrong that distillase did not foresee ({type(error).__name__}: {error}). "
            f"The traceback is in {where}; please report it. The same command goes on where it stopped.\n"
        )
        return BUG
    return 0


def _run_folder(arguments: Sequence[str]) -> Path:
    """The folder named by --out if it exists, else the current one."""
    for number, argument in enumerate(arguments):
        value = ""
        if argument in ("--out", "-o") and number + 1 < len(arguments):
            value = arguments[number + 1]
        elif argument.startswith("--out="):
            value = argument.removeprefix("--out=")
        if value and Path(value).is_dir():
            return Path(value)
    return Path()


def _write_traceback(folder: Path) -> str:
    path = folder / "error.log"
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError as error:
        return f"what follows, as {path} could not be written ({error}):\n{traceback.format_exc()}"
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
