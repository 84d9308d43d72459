"""What `distillase trajectories --help` says."""

from __future__ import annotations

from typing import Annotated

import typer

from ..datasets.sampling import TrajectoryConfig
from .commands import Molecules, NoHydrogen, Out, Seed, Teacher, Workers, _finish, app
from .progress import make_progress

DEFAULT = TrajectoryConfig()


@app.command()
def trajectories(
    out: Out,
    molecules: Molecules = None,
    teacher: Teacher = None,
    integrator: Annotated[
        str, typer.Option(help="`langevin` (BAOAB, constant temperature) or `verlet` (constant energy).")
    ] = DEFAULT.integrator,
    temperature: Annotated[float, typer.Option(help="K.")] = DEFAULT.temperature_K,
    timestep: Annotated[float, typer.Option(help="fs.")] = DEFAULT.timestep,
    picoseconds: Annotated[float, typer.Option(help="ps from the first frame to the last.")] = DEFAULT.picoseconds,
    interval: Annotated[
        float, typer.Option(help="fs between two frames; a multiple of the time step.")
    ] = DEFAULT.interval,
    friction: Annotated[
        float, typer.Option(help="1/fs (0.01 is 10/ps), of the thermostat; with `verlet` before the first frame only.")
    ] = DEFAULT.friction,
    trajectories: Annotated[
        int, typer.Option("--trajectories", "-n", help="For each molecule, each with a seed of its own.")
    ] = DEFAULT.trajectories,
    equilibrate: Annotated[
        float, typer.Option(help="ps with the thermostat before the first frame, for `verlet` too.")
    ] = DEFAULT.equilibrate,
    conformers: Annotated[
        int, typer.Option(help="Conformers to start from, after the geometries that were read; 0 for these alone.")
    ] = DEFAULT.conformers,
    max_force: Annotated[
        float, typer.Option(help="eV/Å; a trajectory with a larger force has blown up, and ends.")
    ] = DEFAULT.max_force,
    seed: Seed = None,
    workers: Workers = None,
    allow_no_hydrogen: NoHydrogen = False,
) -> None:
    """Dynamics of a teacher from every molecule: positions, velocities, forces, energies and temperature.

    Examples:

        distillase trajectories CCO --teacher mmff94 --picoseconds 2 --out runs/ethanol-md

        distillase trajectories ligands.sdf --teacher gfn2-xtb --integrator verlet -n 4 --out runs/traj

        distillase trajectories water.xyz --teacher pyscf:PBE/def2-SVP --picoseconds 1 --out runs/dft

    Interrupt it at any moment; the same command goes on where it stopped, bit by bit. With more `--trajectories` or
    `--picoseconds` it adds to what is there. Exit code 2 if a trajectory ended before its time.
    """
    from .trajectories import Order, make_trajectories

    config = TrajectoryConfig(
        integrator=integrator,  # type: ignore[arg-type]  # checked there
        temperature_K=temperature,
        timestep=timestep,
        picoseconds=picoseconds,
        interval=interval,
        friction=friction,
        equilibrate=equilibrate,
        trajectories=trajectories,
        conformers=conformers,
        max_force=max_force,
    )
    order = Order(tuple(molecules or ()), teacher or "gfn2-xtb", config, seed or 0, allow_no_hydrogen)
    make_trajectories(order, out, workers=workers or 0, progress=make_progress())
    _finish(out)
