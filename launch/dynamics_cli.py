"""`distillase evaluate-dynamics`: candidates against a reference, its noise floor and a control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
import typer.core

from ..ase_calcs.errors import InputError
from .progress import make_progress
from .summary import plain_table, render

LISTS = ("--reference", "--candidate", "--control")  # options that take all words up to the next option
MARKS = {"trust": " ", "care": "!", "distrust": "✗", "unmeasured": " "}


class TakesLists(typer.core.TyperCommand):
    """`--reference a.h5 b.h5` says what `--reference a.h5 --reference b.h5` says, so that a shell's * can be used."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before every further word."""
        return super().parse_args(ctx, repeat_options(args))


def repeat_options(words: Sequence[str]) -> list[str]:
    """``--reference a b`` → ``--reference a --reference b``, for the options in `LISTS`."""
    found: list[str] = []
    option, taken = "", 0
    for word in words:
        if word.startswith("-"):
            name = word.split("=", 1)[0]
            option, taken = (name, 1 if "=" in word else 0) if name in LISTS else ("", 0)
        elif option:
            if taken:
                found.append(option)
            taken += 1
        found.append(word)
    return found


def named_files(words: Sequence[str]) -> dict[str, list[str]]:
    """``["a=1.h5", "2.h5", "b=3.h5"]`` → name → files: a word without a name belongs to the one before it.

    Raises
    ------
    InputError
        The first word has no name, or a name or file is empty.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        given, equals, path = word.partition("=")
        if equals:
            name, word = given.strip(), path
        if not name or not word:
            raise InputError(
                f"A candidate is given as NAME=FILE, and {(given + equals + path)!r} is not; e.g. mts=mts.h5."
            )
        found.setdefault(name, []).append(word)
    return found


def evaluate_dynamics(
    reference: Annotated[
        list[str],
        typer.Option(
            help="Files of two or more independent runs, four better (seeds of one dynamics).", metavar="FILE..."
        ),
    ],
    candidate: Annotated[
        list[str],
        typer.Option(help="A candidate's name and its files; repeatable, at most 6.", metavar="NAME=FILE..."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for `dynamics.html` and `metrics.json`.")],
    control: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
        typer.Option(help="Files of the control: the same corrector without a model.", metavar="FILE..."),
    ] = None,
    discard: Annotated[float, typer.Option(min=0.0, help="ps left out at the beginning of every trajectory.")] = 0.0,
) -> None:
    """Does a candidate move like the reference? A report in multiples of the reference's own noise.

    Examples:

        distillase evaluate-dynamics --reference gfn2-seed*.h5 --candidate mts4=mts4.h5 --out runs/dynamics

        distillase evaluate-dynamics --reference nve-*.h5 --candidate jump=jump.h5 --candidate mts=mts.h5
        --control nojump.h5 --out runs/dynamics --discard 1

    All files hold trajectories of the same molecules. `docs/dynamics.md` says how to read the report.
    """
    # Lazily and by name: reading needs what only the `train` extra brings.
    from ..datasets.trajectory import read_trajectories
    from ..training.dynamics_report import write_dynamics_report
    from ..training.dynamics_report.runs import CONTROL, REFERENCE
    from ..training.dynamics_report.write import PAGE

    progress = make_progress()
    candidates = named_files(candidate)
    files = {REFERENCE: list(reference), **({CONTROL: control} if control else {}), **candidates}
    with progress.task("Reading trajectories", sum(len(paths) for paths in files.values())) as task:
        read: dict[str, list[Any]] = {}
        for name, paths in files.items():
            for path in paths:
                read.setdefault(name, []).extend(read_trajectories(path))
                task.advance()
    numbers = write_dynamics_report(
        out,
        read[REFERENCE],
        {name: read[name] for name in candidates},
        control=read.get(CONTROL, ()),
        discard_ps=discard,
        files={name: [Path(path).name for path in paths] for name, paths in files.items()},
    )
    for section in numbers["sections"]:
        progress.say(summary(section))
    progress.say(f"Report: {out / PAGE}")


def summary(section: dict[str, Any]) -> str:
    """The metrics of one molecule as a table of text."""
    columns = section["columns"]
    heads = {"metric": "left", "unit": "left", "noise floor": "right"} | dict.fromkeys(columns, "right")
    table = plain_table(heads, title=section["group"])
    for row in section["metrics"]:
        floor = f"{row['floor']['mean']:.3g}" if row["floor"] else "–"
        table.add_row(row["label"], row["unit"], floor, *[_short(row["cells"][name]) for name in columns])
    words = "; ".join(f"{verdict['name']}: {verdict['title'].lower()}" for verdict in section["verdicts"])
    return f"{render(table)}\n{words}. (× noise floor; ! just outside the noise, ✗ clearly outside)"


def _short(cell: dict[str, Any]) -> str:
    if cell["value"] is None:
        return "–"
    times = f" ({cell['ratio']:.2g}×)" if cell["ratio"] is not None else ""
    return f"{cell['value']:.3g}{times} {MARKS[cell['level']]}"
