"""`distillase train-jump`: a jump network from trajectories, or from a labelled dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Optional

import typer

from .config import dump_recipe, load_jump_recipe
from .progress import is_first_process, make_progress
from .stages import write_text


def train_jump(
    data: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
        typer.Argument(
            metavar="[FILES]...",
            help="Trajectories (`distillase trajectories`, or NPZ); for `data.source=flow` any labelled dataset.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is written.")] = Path("jump"),
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="`default`, `mm`, `qm`, or a YAML file.")] = "default",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Change a key of the recipe, e.g. `--set data.k=[4,8]`; repeatable.",
        ),
    ] = None,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Of split, weights and order.")] = None,  # noqa: UP045
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the complete recipe, every key with its value, and stop.")
    ] = False,
) -> None:
    """Train a network that jumps over k steps of dynamics, for `LearnedJump`.

    Examples:

        distillase train-jump runs/traj/trajectories.h5 --set data.k=[8] --out runs/jump

        distillase train-jump runs/ethanol/dataset.h5 --set data.source=flow --set data.longest=4 --out runs/jump

    Read `docs/dynamics.md` first: jumps are corrected and guarded, and still only `MTSVelocityVerlet`, `MTSLangevin`
    and `SelfLearningHMC` come with guarantees.
    """
    from ..ase_calcs.errors import InputError
    from ..datasets.trajectory import read_frames, read_trajectories
    from ..training.jumps.run import train_jump as train

    chosen = load_jump_recipe(recipe, settings or ())
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    if print_config:
        typer.echo(dump_recipe(chosen), nl=False)
        return
    if not data:
        raise InputError("There is nothing to learn from: name one or more files of trajectories.")
    progress = make_progress()
    read = read_frames if chosen.data.source == "flow" else read_trajectories
    trajectories = [run for path in data for run in read(path)]
    out.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        write_text(out / "config.yaml", dump_recipe(chosen, f"distillase train-jump {' '.join(data)}"))
    result = train(trajectories, out, chosen, progress=progress)
    found = result.metrics["validation"]
    if chosen.data.source == "flow":
        progress.say(
            f"{result.steps} steps in {result.seconds:.0f} s. On held-out frames both sides of the flow "
            f"identity differ by {100 * found['velocity_share']:.0f} % of the accelerations. Network: {result.model}"
        )
        return
    progress.say(
        f"{result.steps} steps in {result.seconds:.0f} s. On held-out runs: Δx {1e3 * found['displacement_rmse']:.2f} "
        f"mÅ ({100 * found['displacement_share']:.0f} % of what free flight leaves), Δv "
        f"{100 * found['velocity_share']:.0f} % of its change unexplained. Network: {result.model}"
    )
