"""The commands of `distillase` and what `--help` says of them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
import typer.core

from ..ase_calcs.errors import InputError
from .config import Recipe, dump_recipe, load_recipe
from .progress import INTERRUPTED, is_first_process, make_progress


class Commands(typer.core.TyperGroup):
    """Says what Ctrl-C means here; typer alone says "Aborted!"."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            kept = (
                ""
                if ctx.invoked_subcommand in ("md", "bench", "evaluate-dynamics")
                else " The same command goes on where it stopped."
            )
            sys.stderr.write(f"\nInterrupted.{kept}\n")
            raise SystemExit(INTERRUPTED) from None


app = typer.Typer(
    name="distillase",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Distil an expensive teacher (GFN2-xTB, any ASE calculator) into a fast ASE calculator.

Start with one molecule and one command:

    distillase distill CCO --teacher gfn2-xtb --out runs/ethanol

It samples geometries, labels them with the teacher, trains a network, and writes `runs/ethanol/report.html`, which
says whether to trust the result. Interrupted, the same command goes on where it stopped. Then, in ASE:

    from distillase.ase_calcs import PotentialCalculator
    atoms.calc = PotentialCalculator("runs/ethanol/model.safetensors")
""",
)

Molecules = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
    typer.Argument(
        metavar="[MOLECULES]...",
        help="Files (.smi .sdf .sdf.gz .mol .xyz .extxyz .db .pdb .h5) or SMILES. Default: those of the recipe.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is written.", show_default=False)]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        help="`quickstart`, `ethanol`, `aspirin`, `default`, or a YAML file. Default: the recipe that the folder was "
        "begun with, else `default`.",
        show_default=False,
    ),
]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="Change a key of the recipe, e.g. `--set model.cutoff=6`; repeatable.",
    ),
]
Teacher = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--teacher",
        "-t",
        help="`gfn2-xtb`, `gfn1-xtb`, `gfn-ff`, `mmff94`, `pyscf:METHOD/BASIS`, `openmm:amber14`, "
        "`openmm:PATH/TO/system.xml`, with options as in `gfn2-xtb?accuracy=0.01`, or any ASE calculator as "
        "`module:Class?key=value`. Default: that of the recipe.",
        show_default=False,
    ),
]
Seed = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--seed", help="One seed for sampling, splits and training.", show_default=False),
]
Workers = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        "--workers", "-w", min=0, help="Processes that sample and label; 0: one per core.", show_default=False
    ),
]
Scheduler = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Label with the workers of this dask scheduler (`tcp://host:8786`), or with `slurm` jobs.",
        show_default=False,
    ),
]
NoHydrogen = Annotated[
    bool, typer.Option("--allow-no-hydrogen", help="Accept a set of molecules without a single hydrogen.")
]
RestartFrom = Annotated[
    str,
    typer.Option(
        "--restart-from",
        metavar="STAGE",
        help="Do this stage (`read`, `sample`, `label`, `train`, `report`) and those after it again; what was there is "
        "moved aside, not deleted.",
        show_default=False,
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the complete recipe, every key with its value, and stop.")
]


Compile = Annotated[str, typer.Option(help="The student: `on`, `off`, or `auto`: compiled if it was compiled before.")]


def _recipe(name: str, folder: Path, settings: list[str] | None, **changes: Any) -> Recipe:
    """The recipe with what was said on the command line laid over it."""
    if not name:
        begun = folder / "config.yaml"
        name = str(begun) if begun.is_file() else "default"
    said = {key: changes.pop(key, None) for key in ("workers", "scheduler")}
    labelling = [f"labelling.{key}={value}" for key, value in said.items() if value is not None]
    recipe = load_recipe(name, [*(settings or []), *labelling])
    given = {key: value for key, value in changes.items() if value not in (None, False, ())}
    return replace(recipe, **given)


def _finish(folder: Path) -> None:
    from .summary import tree

    typer.echo("\n" + tree(folder))


@app.command()
def distill(
    out: Out,
    molecules: Molecules = None,
    teacher: Teacher = None,
    recipe: RecipeName = "",
    settings: Settings = None,
    seed: Seed = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    allow_no_hydrogen: NoHydrogen = False,
    restart_from: RestartFrom = "",
    print_config: PrintConfig = False,
) -> None:
    """Molecules in, a fast ASE calculator and its report out: all stages in one go.

    Examples:

        distillase distill CCO --out runs/ethanol

        distillase distill ligands.sdf --teacher gfn2-xtb --out runs/ligands

        distillase distill --recipe aspirin --out runs/aspirin --set training.minutes=60

        distillase distill --recipe runs/aspirin/config.yaml --out runs/again

    Interrupt it at any moment; the same command goes on where it stopped. Labels are never computed twice.
    """
    from . import pipeline

    if molecules:
        recipe = recipe or "default"  # a run named anew: what the folder holds must agree with it
    chosen = _recipe(
        recipe, out, settings, molecules=tuple(molecules or ()), teacher=teacher, seed=seed, workers=workers,
        scheduler=scheduler,
        allow_no_hydrogen=allow_no_hydrogen,
    )  # fmt: skip
    if print_config:
        typer.echo(dump_recipe(chosen), nl=False)
        return
    run = pipeline.begin(pipeline.Run(out, chosen, make_progress()), pipeline.STAGES, restart_from)
    pipeline.distill(run)
    _finish(out)


@app.command()
def prepare(
    out: Out,
    molecules: Molecules = None,
    teacher: Teacher = None,
    recipe: RecipeName = "",
    settings: Settings = None,
    seed: Seed = None,
    workers: Workers = None,
    allow_no_hydrogen: NoHydrogen = False,
    restart_from: RestartFrom = "",
) -> None:
    """Read molecules and sample geometries, without labels.

    Examples:

        distillase prepare ligands.sdf --out runs/ligands

        distillase prepare CCO --out runs/ethanol --set sampling.conformers=20
    """
    from . import pipeline

    chosen = _recipe(
        recipe, out, settings, molecules=tuple(molecules or ()), teacher=teacher, seed=seed, workers=workers,
        allow_no_hydrogen=allow_no_hydrogen,
    )  # fmt: skip
    stages = (pipeline.READ, pipeline.SAMPLE)
    pipeline.prepare(pipeline.begin(pipeline.Run(out, chosen, make_progress()), stages, restart_from))
    _finish(out)


@app.command()
def label(
    geometries: Annotated[Path, typer.Argument(help="A dataset file; labels in it are ignored.")],
    out: Out,
    teacher: Teacher = None,
    recipe: RecipeName = "",
    settings: Settings = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    restart_from: RestartFrom = "",
) -> None:
    """Label geometries with a teacher, in parallel, losing nothing when killed.

    Examples:

        distillase label runs/ethanol/geometries.h5 --teacher gfn2-xtb --out runs/ethanol

        distillase label water.h5 --teacher "ase.calculators.emt:EMT" --out runs/emt --workers 4

        distillase label drugs.h5 --out runs/drugs --scheduler slurm --workers 64 \\
            --set "labelling.slurm={cores: 32, memory: 64GB, walltime: '04:00:00'}"

    Other formats come in through `distillase dataset convert`.
    """
    from . import pipeline

    chosen = _recipe(recipe, out, settings, teacher=teacher, workers=workers, scheduler=scheduler)
    run = pipeline.begin(pipeline.Run(out, chosen, make_progress()), (pipeline.LABEL,), restart_from)
    pipeline.label(run, geometries)
    _finish(out)


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="A labelled dataset file.")],
    out: Out,
    recipe: RecipeName = "",
    settings: Settings = None,
    seed: Seed = None,
    restart_from: RestartFrom = "",
) -> None:
    """Train a student on a labelled dataset.

    Examples:

        distillase train runs/ethanol/dataset.h5 --out runs/ethanol

        distillase train dft.h5 --out runs/wide --set model.features=128 --set training.minutes=60

        torchrun --nproc-per-node=8 -m distillase.launch train dft.h5 --out runs/wide
    """
    from . import pipeline

    chosen = _recipe(recipe, out, settings, seed=seed)
    run = pipeline.Run(out, chosen, make_progress())
    if any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")):
        restart_from = ""  # that was for the first time; started again, the job goes on from its checkpoint
    if not is_first_process():
        pipeline.train_student(run, dataset)
        return
    pipeline.train_student(pipeline.begin(run, (pipeline.TRAIN,), restart_from), dataset)
    _finish(out)


@app.command()
def validate(
    model: Annotated[Path, typer.Argument(help="A model file.")],
    dataset: Annotated[Path, typer.Argument(help="A labelled dataset file.")],
    out: Out,
    teacher: Teacher = None,
    recipe: RecipeName = "",
    settings: Settings = None,
    restart_from: RestartFrom = "",
) -> None:
    """Write the report on a model against a labelled dataset.

    If `splits.json` of the run that made the model lies in the folder, errors are those of its held-out frames; else
    every frame counts as held out, which is right only for frames that the model has never seen.

    Examples:

        distillase validate runs/ethanol/model.safetensors runs/ethanol/dataset.h5 --out runs/ethanol

        distillase validate runs/ethanol/model.safetensors other.h5 --out runs/transfer
    """
    from . import pipeline

    chosen = _recipe(recipe, out, settings, teacher=teacher)
    run = pipeline.begin(pipeline.Run(out, chosen, make_progress()), (pipeline.REPORT,), restart_from)
    pipeline.validate(run, model, dataset, pipeline.splits_for(run, model, dataset))
    _finish(out)


@app.command()
def md(
    model: Annotated[str, typer.Argument(help="A model file, or a teacher's name to run the teacher instead.")],
    structure: Annotated[str, typer.Argument(help="A structure file (its first structure) or a SMILES.")],
    ensemble: Annotated[str, typer.Option(help="`nve` (velocity Verlet) or `langevin`.")] = "langevin",
    temperature: Annotated[
        float,
        typer.Option(min=0.0, help="K; of thermostat and first velocities (twice that with `nve` and `--relax`)."),
    ] = 300.0,
    steps: Annotated[int, typer.Option(min=1, help="Number of steps.")] = 1000,
    timestep: Annotated[float, typer.Option(min=0.0, help="fs.")] = 0.5,
    friction: Annotated[float, typer.Option(min=0.0, help="1/fs; Langevin only.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of velocities, noise and embedding.")] = 0,
    interval: Annotated[int, typer.Option(min=1, help="Steps between two lines and two frames.")] = 100,
    trajectory: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Frames with energies and forces (.traj or .extxyz).", show_default=False),
    ] = None,
    dtype: Annotated[str, typer.Option(help="`float32` or `float64`.")] = "float32",
    compile: Compile = "auto",
    relax: Annotated[bool, typer.Option("--relax", help="Minimise (LBFGS, 0.05 eV/Å) before the first step.")] = False,
) -> None:
    """Molecular dynamics with a student (or a teacher) through ASE; prints the drift of the conserved energy.

    Examples:

        distillase md runs/ethanol/model.safetensors CCO --steps 2000

        distillase md runs/ethanol/model.safetensors CCO --ensemble nve --dtype float64 --steps 40000

        distillase md gfn2-xtb CCO --ensemble nve --steps 200
    """
    from .md import MDSettings, run_md

    options = MDSettings(
        ensemble=ensemble, temperature_K=temperature, steps=steps, timestep_fs=timestep, friction_per_fs=friction,
        seed=seed, interval=interval, trajectory=trajectory, relax=relax,
    )  # fmt: skip
    run_md(model, structure, options, dtype=dtype, compile=compile, progress=make_progress())


@app.command()
def bench(
    model: Annotated[str, typer.Argument(help="A model file.")],
    structure: Annotated[str, typer.Argument(help="A structure file (its first structure) or a SMILES.")],
    teacher: Teacher = None,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of the student.")] = 500,
    timestep: Annotated[float, typer.Option(min=0.0, help="fs, for ns/day.")] = 0.5,
    temperature: Annotated[float, typer.Option(min=0.0, help="K.")] = 300.0,
    seed: Annotated[int, typer.Option(help="Of velocities and embedding.")] = 0,
    dtype: Annotated[str, typer.Option(help="`float32` or `float64`.")] = "float32",
    compile: Compile = "auto",
) -> None:
    """Steps per second and ns per day inside a real velocity-Verlet run, with the share of each part.

    With `--teacher` the teacher is timed in the same run, so that the ratio means something.

    Examples:

        distillase bench runs/ethanol/model.safetensors CCO --teacher gfn2-xtb

        distillase bench runs/ethanol/model.safetensors ethanol.xyz --dtype float64 --steps 2000
    """
    from .md import run_bench

    run_bench(
        model, structure, teacher=teacher or "", steps=steps, timestep_fs=timestep, temperature_K=temperature,
        seed=seed, dtype=dtype, compile=compile, progress=make_progress(),
    )  # fmt: skip


def _mount_other_commands() -> None:
    from . import trajectory_cli  # noqa: F401 (adds its command to `app`)
    from .cg_cli import cg_app
    from .cluster_cli import launch_app
    from .dataset_cli import app as dataset_app
    from .dynamics_cli import TakesLists, evaluate_dynamics
    from .ensemble_cli import ensemble_app
    from .jump_cli import train_jump

    app.command("train-jump")(train_jump)
    app.command("evaluate-dynamics", cls=TakesLists)(evaluate_dynamics)
    app.add_typer(dataset_app, name="dataset")
    app.add_typer(launch_app, name="launch")
    app.add_typer(cg_app, name="cg")
    app.add_typer(ensemble_app, name="ensemble")


_mount_other_commands()

__all__ = ["InputError", "app"]
