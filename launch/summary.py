"""Tables and trees that the command line prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..ase_calcs.progress import Progress

if TYPE_CHECKING:
    from ..datasets.composition import Composition
    from ..datasets.readers import Intake

ROWS_SHOWN = 20

# What each file in a run folder is, in the order in which a reader wants them.
FILES = {
    "report.html": "whether to trust the student; open it in a browser",
    "model.safetensors": 'the student: PotentialCalculator("…/model.safetensors")',
    "dataset.h5": "geometries with the teacher's labels",
    "trajectories.h5": "a teacher's dynamics: positions, velocities, forces, energies",
    "trajectories.yaml": "how the trajectories were made",
    "config.yaml": "the complete recipe; run it again with --recipe",
    "metrics.jsonl": "losses and errors during training, one JSON object a line",
    "splits.json": "which frames were trained on, validated on, tested on",
    "report.json": "every number in the report",
    "worst_forces.pml": "the worst cases with force arrows; open it in PyMOL",
    "geometries.h5": "geometries before labelling",
    "molecules.h5": "molecules as read, complete with hydrogens",
    "intake.json": "what was refused or changed on reading, with reasons",
    "labels": "every label as it arrived; never computed twice",
    "sampling": "finished trajectories, for an interrupted run; may be deleted",
    "trajectories": "for an interrupted run, and to add to trajectories.h5; may be deleted",
    "tensorboard": "tensorboard --logdir",
    "error.log": "the traceback of an unexpected error",
}


def render(table: Table) -> str:
    """A table as text, as wide as it needs to be up to 120 columns."""
    buffer = StringIO()
    Console(file=buffer, width=120, highlight=False, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def plain_table(columns: Mapping[str, str], title: str = "") -> Table:
    """A table with one rule under its head; `columns` maps headings to justification."""
    table = Table(box=None, title=title or None, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))
    for heading, justify in columns.items():
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    return table


def show_intake(intake: Intake, progress: Progress) -> None:
    """What was read and what was refused, with reasons."""
    table = plain_table({"molecule": "left", "atoms": "right", "charge": "right", "mult.": "right", "SMILES": "left"})
    for structure in intake.structures[:ROWS_SHOWN]:
        table.add_row(
            structure.group, str(len(structure)), f"{structure.charge:+d}" if structure.charge else "0",
            str(structure.multiplicity), structure.smiles,
        )  # fmt: skip
    progress.say(render(table))
    _say_rest(len(intake.structures), progress)
    for note in intake.notes[:ROWS_SHOWN]:
        progress.say(f"  note: {note}")
    _say_rest(len(intake.notes), progress)
    if intake.refusals:
        table = plain_table({"refused": "left", "record": "right", "name": "left", "reason": "left"})
        for refusal in intake.refusals[:ROWS_SHOWN]:
            table.add_row(Path(refusal.source).name, str(refusal.record), refusal.name, refusal.reason)
        progress.say(render(table))
        _say_rest(len(intake.refusals), progress)


def _say_rest(number: int, progress: Progress) -> None:
    if number > ROWS_SHOWN:
        progress.say(f"  … and {number - ROWS_SHOWN} more")


def show_composition(composition: Composition, progress: Progress) -> None:
    """Element counts and the share of hydrogen."""
    progress.say(composition.table())


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason was given, the commonest first."""
    return dict(Counter(reasons).most_common())


def size(path: Path) -> str:
    """Size of a file or folder in the unit that fits."""
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    number = float(sum(entry.stat().st_size for entry in files))
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def tree(folder: Path) -> str:
    """The files of a run folder, and what each is."""
    there = [name for name in FILES if (folder / name).exists()]
    width = max((len(name) for name in there), default=0) + 1
    lines = [f"{folder}/"]
    for number, name in enumerate(there):
        branch = "└──" if number == len(there) - 1 else "├──"
        slash = "/" if (folder / name).is_dir() else ""
        lines.append(f"{branch} {name + slash:<{width}}  {size(folder / name):>9}  {FILES[name]}")
    return "\n".join(lines)
