"""`distillase launch`: trainings in many processes, on this machine or under SLURM."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..ase_calcs.errors import InputError
from .stages import write_text

launch_app = typer.Typer(no_args_is_help=True, help="Train in many processes: on this machine, or under SLURM.")

COMMANDS = ("train", "train-jump")
REST = {"allow_extra_args": True, "ignore_unknown_options": True}
# With a store that outlives the first rendezvous torch 2.13 never tells a node that joins later where the first one is.
SEPARATE_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


@launch_app.command(context_settings=REST)
def torchrun(
    context: typer.Context,
    processes: Annotated[int, typer.Option("--processes", "-n", min=1, help="One for each GPU, or a few cores each.")],
    restarts: Annotated[int, typer.Option(help="How often all start again when one of them dies.")] = 3,
) -> None:
    """Run a training in several processes on this machine.

    Example:

        distillase launch torchrun -n 8 -- train runs/x/dataset.h5 --out runs/x
    """
    words = checked(context.args)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        f"--max-restarts={restarts}", "-m", "distillase.launch", *words,
    ]  # fmt: skip
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ.setdefault(SEPARATE_STORE, "1")
    sys.stdout.flush()
    os.execv(sys.executable, command)


@launch_app.command(context_settings=REST)
def slurm(
    context: typer.Context,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a node, a process each; 0 for none.")] = 0,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a node.")] = 8,
    processes: Annotated[int, typer.Option(min=0, help="Processes on a node; 0: one for each GPU, or one.")] = 0,
    time: Annotated[
        str, typer.Option(help="Limit, as SLURM writes it; the job comes back until it is done.")
    ] = "24:00:00",
    option: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads the annotation at run time)
        typer.Option("--option", help="A line for SLURM, e.g. `partition=gpu`; repeatable."),
    ] = None,
) -> None:
    """Write a readable sbatch script for a training, to be looked at and submitted.

    Two minutes before its time is over the job writes a checkpoint and goes back into the queue; it then goes on from
    there. If SLURM puts it back after a preemption, it goes on from its last checkpoint.

    Example:

        distillase launch slurm --nodes 4 --gpus 8 --option partition=gpu -- train runs/x/dataset.h5 --out runs/x
    """
    words = checked(context.args)
    folder = run_folder(words)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "train.sbatch"
    write_text(path, sbatch(words, folder, nodes, gpus, cpus, processes or max(gpus, 1), time, option or []))
    typer.echo(f"{path}\nRead it, then: sbatch {shlex.quote(str(path))}")


@launch_app.command()
def plan(
    dataset: Annotated[Path, typer.Argument(help="A labelled dataset file.")],
    processes: Annotated[int, typer.Option("--world-size", "-n", min=1, help="Processes in all.")] = 8,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="As for `distillase train`.")] = "default",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
    ] = None,
) -> None:
    """Say what a training will need of each process, from a few steps on this machine.

    Example:

        distillase launch plan runs/x/dataset.h5 --recipe runs/x/config.yaml --world-size 64
    """
    from rich.console import Console
    from rich.table import Table

    from ..training.plan import BANDWIDTH, measure
    from ..training.plan import plan as needs
    from .config import load_recipe

    chosen = load_recipe(recipe, settings or [])
    measured = measure(dataset, chosen.model, chosen.training, chosen.split, seed=chosen.seed)
    found = needs(measured, chosen.training, processes)
    table = Table(title=f"Memory of each of {processes} processes, MB")
    columns = "ZeRO weights gradients optimizer average program activations dataset together"
    for name in columns.split():
        table.add_column(name, justify="right")
    for need in found:
        parts = (
            need.weights, need.gradients, need.optimizer, need.average, need.program, need.activations, need.table,
            need.memory,
        )  # fmt: skip
        table.add_row(str(need.zero), *(f"{part / 1e6:.2f}" for part in parts))
    Console(width=max(100, Console().width)).print(table)
    first = found[0]
    typer.echo(
        f"{measured.weights} weights, {measured.optimizer} numbers of the optimizer. A step takes {first.frames:.1f} "
        f"structures: {first.edges:.0f} edges for each process, {first.imbalance:.2f} times that for the busiest, and "
        f"{first.message / 1e6:.2f} MB sent by each.\nAn epoch of {measured.frames} structures takes about "
        f"{first.epoch:.0f} s at {1e9 * measured.seconds_per_edge:.0f} ns for each edge, measured here in one process "
        f"({'compiled' if measured.compiled else 'not compiled'}), and {BANDWIDTH / 1e9:g} GB/s between them."
    )
    if first.frames < processes:
        typer.echo("A step has fewer structures than there are processes: some would idle. Raise training.accumulate.")


def checked(words: list[str]) -> list[str]:
    """The command after ``--``, if it is one that several processes can share."""
    words = words[1:] if words[:1] == ["--"] else words
    if not words or words[0] not in COMMANDS:
        raise InputError(
            f"What several processes shall run comes after `--` and is {' or '.join(COMMANDS)}, for example `-- train "
            f"runs/x/dataset.h5 --out runs/x`; got `{' '.join(words)}`. Everything else runs in one process."
        )
    return words


def run_folder(words: list[str]) -> Path:
    """What the command gives as --out."""
    for number, word in enumerate(words):
        if word in ("--out", "-o") and number + 1 < len(words):
            return Path(words[number + 1])
        if word.startswith("--out="):
            return Path(word.removeprefix("--out="))
    raise InputError(f"`{' '.join(words)}` names no folder; add --out FOLDER.")


def sbatch(
    words: list[str], folder: Path, nodes: int, gpus: int, cpus: int, processes: int, time: str, options: list[str]
) -> str:
    """The script."""
    absolute = folder.resolve()
    lines = [
        f'--job-name="{absolute.name}"', f"--nodes={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={cpus}",
        *([f"--gpus-per-node={gpus}"] if gpus else []), f"--time={time}", f'--output="{absolute}/slurm-%j.log"',
        "--open-mode=append", "--requeue", "--signal=B:USR1@120", *(f"--{o.removeprefix('--')}" for o in options),
    ]  # fmt: skip
    header = "\n".join(f"#SBATCH {line}" for line in lines)
    return f"""#!/bin/bash
# Written by `distillase launch slurm`: read it, change it, submit it.
{header}

cd {shlex.quote(str(Path.cwd()))} || exit 1
export OMP_NUM_THREADS={max(1, cpus // processes)}
export SRUN_CPUS_PER_TASK={cpus}  # srun does not take it over from above since SLURM 22.05
export {SEPARATE_STORE}=1  # or a node that joins later never learns where the first one is (torch 2.13)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export RENDEZVOUS="$first:$((20000 + SLURM_JOB_ID % 20000))"

# The job goes back into the queue; one that somebody cancelled stays away. Meanwhile the processes write a checkpoint.
again() {{
    trap "" USR1 TERM
    wait "$training"
    for attempt in 1 2 3 4 5; do
        state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) && [[ -n $state ]] && break
        sleep 5
    done
    [[ $state == RUNNING ]] || exit 1
    scontrol requeue "$SLURM_JOB_ID"
    exit
}}
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; again' USR1 # the time is nearly over (see --signal): tell the processes
trap again TERM                                          # SLURM ends the job, and has told them

# One torchrun on each node meets the others at the first one, and starts {processes} process{"es" * (processes > 1)}.
srun --kill-on-bad-exit=1 bash -c 'exec "$0" -m torch.distributed.run --nnodes={nodes} --nproc-per-node={processes} \\
    --rdzv-backend=c10d --rdzv-endpoint="$RENDEZVOUS" --rdzv-id="$SLURM_JOB_ID" --max-restarts=3 \\
    --shutdown-timeout=100 --local-addr="$(hostname)" -m distillase.launch "$@"' \\
    {shlex.join([sys.executable, *words])} &
training=$!
wait "$training"
status=$?
# A more important job wants the nodes: where SLURM grants a grace, it tells the processes alone.
preempted() {{
    scontrol --oneliner show job "$SLURM_JOB_ID" | tr " " "\\n" |
        awk -F= '$1 == "StartTime" {{s = $2}} $1 == "PreemptTime" {{p = $2}} END {{exit !(p ~ /^[0-9]/ && p >= s)}}'
}}
((status == 0)) || ! preempted || again
exit "$status"
"""
