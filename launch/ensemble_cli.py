"""`distillase ensemble`: conformational ensembles of proteins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .progress import make_progress

ensemble_app = typer.Typer(
    name="ensemble",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Conformational ensembles of proteins: their backbones in many conformations, and what is wrong with them.

    distillase ensemble prepare 1l2y.pdb runs/chignolin/reference --out runs/ensembles.h5
""",
)


@ensemble_app.callback()
def _several() -> None:
    """So that a single command keeps its name."""


@ensemble_app.command()
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]SOURCE...",
            help="PDB, mmCIF or binary mmCIF files with one model or more; folders of `cg reference`; CSV files that "
            "list ensembles in HDF5; datasets of this command.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The dataset file.", show_default=False)],
    trajectory: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
        typer.Option(
            metavar="[NAME=]FILE",
            help="DCD, XTC or TRR, of all atoms of the PDB file that is the source (of this name); repeatable.",
            show_default=False,
        ),
    ] = None,
    temperatures: Annotated[
        str, typer.Option(help="K, with commas between them: which of a reference's to take. Default: all.")
    ] = "",
    stride: Annotated[int, typer.Option(min=1, help="Take every which frame of a trajectory or reference.")] = 1,
) -> None:
    """Backbones of proteins in many conformations, in one dataset, and a table of what is wrong with them.

    Conformations of one name and sequence become one ensemble, wherever they are from.
    """
    from .cg_cli import numbers
    from .ensembles import prepare_ensembles

    prepare_ensembles(
        sources, out, trajectories=trajectory or [], temperatures=numbers(temperatures, "--temperatures"),
        stride=stride, progress=make_progress(),
    )  # fmt: skip
