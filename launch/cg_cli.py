"""`distillase cg`: proteins with one bead per residue."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..ase_calcs.errors import InputError
from .progress import INTERRUPTED, make_progress

cg_app = typer.Typer(
    name="cg",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Proteins with one bead per residue: from a sequence or a PDB file to a force field that runs.

    distillase cg reference 1uao.pdb --exchange --temperatures 300 --nanoseconds 2 --out runs/chignolin/reference

    distillase cg map runs/chignolin/reference --temperatures 300 --out runs/chignolin/beads.h5

    distillase cg train runs/chignolin/beads.h5 --out runs/chignolin

    distillase cg simulate runs/chignolin/model.safetensors 1uao.pdb --out runs/chignolin/simulation

    distillase cg refine runs/chignolin/beads.h5 --reference runs/chignolin/reference --out runs/chignolin/refined
""",
)

Out = Annotated[Path, typer.Option("--out", "-o", help="What is written.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.")]


def numbers(text: str, what: str) -> tuple[float, ...]:
    """Temperatures with commas between them."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"`{what}` is {text!r}; give numbers with commas between them, in K.") from None


@cg_app.command()
def reference(
    protein: Annotated[
        str, typer.Argument(help="A PDB or mmCIF file, or a sequence of one-letter codes.", show_default=False)
    ],
    out: Out,
    nanoseconds: Annotated[float, typer.Option(help="Of every start at every temperature.")] = 1.0,
    temperatures: Annotated[str, typer.Option(help="K, with commas between them.")] = "300,350,400",
    starts: Annotated[
        Optional[str],  # noqa: UP045 (typer reads the annotation at run time)
        typer.Option(
            help="`folded`, `extended`, `unfolded`, `pulled`, with commas between them. Default: all of them for a "
            "file, `extended,unfolded` for a sequence.",
            show_default=False,
        ),
    ] = None,
    exchange: Annotated[
        bool, typer.Option("--exchange", help="Temperatures exchange configurations, on a ladder up to 500 K.")
    ] = False,
    interval: Annotated[float, typer.Option(help="ps between frames.")] = 1.0,
    timestep: Annotated[float, typer.Option(help="fs.")] = 4.0,
    water: Annotated[str, typer.Option(help="`obc2` (implicit) or `tip3p` (explicit).")] = "obc2",
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Processes; 0: one per core.")] = 0,
    seed: Seed = 0,
) -> None:
    """All-atom dynamics (amber14 in OpenMM) with forces, from several starts and temperatures.

    Interrupt it at any moment; the same command goes on where it stopped, bit by bit. With more `--nanoseconds` it adds
    to what is there.
    """
    from ..datasets.proteins import ReferenceConfig, SystemConfig
    from .proteins import make_reference

    chosen = tuple(part.strip() for part in starts.split(",")) if starts else ("extended",)
    config = ReferenceConfig(
        nanoseconds=nanoseconds,
        temperatures=numbers(temperatures, "--temperatures"),
        starts=chosen,  # type: ignore[arg-type]  # checked there
        exchange=exchange,
        interval=interval,
        timestep=timestep,
        system=SystemConfig(water=water),  # type: ignore[arg-type]
    )
    make_reference(
        protein, out, config, default_starts=not starts, seed=seed, workers=workers, progress=make_progress()
    )


@cg_app.command("map")
def map_command(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder of `cg reference`; or the PDB file of a trajectory's atoms, with --trajectory and --forces; "
            "or an .npz file with R, F, species and mask.",
            show_default=False,
        ),
    ],
    out: Out,
    kind: Annotated[
        str, typer.Option("--map", help="`optimal`, `basic` or `raw`: which atomic forces are added up.")
    ] = "optimal",
    temperatures: Annotated[
        str, typer.Option(help="K: take these of the reference (default: all); of a trajectory, its own.")
    ] = "",
    name: Annotated[str, typer.Option(help="Of the protein. Default: that of the folder or file.")] = "",
    trajectory: Annotated[str, typer.Option(help="A DCD, XTC or TRR file.")] = "",
    forces: Annotated[str, typer.Option(help="An .npy file with the forces (T, N, 3) on all atoms.")] = "",
    unit: Annotated[str, typer.Option(help="Of these forces: `eV/A`, `kcal/mol/A` or `kJ/mol/nm`.")] = "eV/A",
    npz: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write a small .npz file (float32: R, F, species, mask).", show_default=False),
    ] = None,
) -> None:
    """Forces of all atoms onto one bead per residue, at its Cα: a dataset to learn from."""
    from .proteins import map_onto_beads

    map_onto_beads(
        source, out, kind=kind, name=name, temperatures=numbers(temperatures, "--temperatures"),  # type: ignore[arg-type]
        trajectory=trajectory, forces=forces, unit=unit, npz=npz, progress=make_progress(),
    )  # fmt: skip


@cg_app.command()
def merge(
    datasets: Annotated[
        list[Path], typer.Argument(help="Datasets of beads or .npz files, of different proteins.", show_default=False)
    ],
    out: Out,
) -> None:
    """Datasets of several proteins in one, to learn a force field for all of them."""
    from .proteins import merge_beads

    merge_beads(datasets, out, progress=make_progress())


@cg_app.command("mean-force")
def mean_force(
    reference: Annotated[
        Path, typer.Argument(help="A folder of `cg reference`, in implicit water.", show_default=False)
    ],
    out: Out,
    configurations: Annotated[int, typer.Option(min=1, help="Frames, at equal intervals.")] = 100,
    temperature: Annotated[float, typer.Option(help="K, of the frames and of the atoms that move.")] = 300.0,
    last: Annotated[
        float, typer.Option(help="Share of every run to take them from, at its end; training validates on 0.1.")
    ] = 1.0,
    picoseconds: Annotated[float, typer.Option(help="Of averaging for each, all its runs together.")] = 8.0,
    replicates: Annotated[int, typer.Option(min=2, help="Runs of each, begun in different frames.")] = 2,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Processes; 0: one per core.")] = 0,
    judge: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="A force field whose error is printed; repeatable.", show_default=False),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Average the forces on beads that are held still, and compare force fields with these: errors without noise."""
    from ..datasets.proteins.mean_force import MeanForceConfig
    from .proteins import make_mean_forces

    config = MeanForceConfig(
        configurations=configurations, last=last, temperature=temperature, picoseconds=picoseconds,
        replicates=replicates,
    )  # fmt: skip
    make_mean_forces(reference, out, config, judge=judge or [], seed=seed, workers=workers, progress=make_progress())


@cg_app.command()
def prior(
    dataset: Annotated[Path, typer.Argument(help="A dataset of beads, from `cg map`.", show_default=False)],
    out: Out,
    temperature: Annotated[float, typer.Option(help="K, of the frames to fit to.")] = 300.0,
    repulsion: Annotated[str, typer.Option(help="Between beads six or more apart: `power4` or `lj12-6`.")] = "power4",
    picoseconds: Annotated[float, typer.Option(help="Of the simulation that it must stand.")] = 100.0,
    seed: Seed = 0,
) -> None:
    """Fit bonds, angles, dihedrals and repulsion, and simulate with them alone; what is not stable is refused."""
    from ..training.proteins.prior_fit import PriorConfig
    from .proteins import make_prior

    progress = make_progress()
    path = make_prior(
        dataset, out, PriorConfig(repulsion=repulsion), temperature=temperature,  # type: ignore[arg-type]
        picoseconds=picoseconds, seed=seed, progress=progress,
    )  # fmt: skip
    progress.say(f"\n{path}: CoarseGrainedCalculator({str(path)!r})")


@cg_app.command()
def train(
    dataset: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="A dataset of beads, from `cg map`.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything that is written.")] = Path("cg"),
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="`default`, `large`, or a YAML file.")] = "default",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
    ] = None,
    mean_forces: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Learn from mean forces too, a folder of `cg mean-force` or an .npz file; repeatable.",
            show_default=False,
        ),
    ] = None,
    picoseconds: Annotated[float, typer.Option(help="Of the simulations that prior and hybrid must stand.")] = 100.0,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the complete recipe, every key with its value, and stop.")
    ] = False,
) -> None:
    """A prior, a network for what it leaves, and simulations of both. Interrupted, the same command goes on."""
    from .config import dump_recipe, load_bead_recipe
    from .proteins import make_hybrid

    chosen = load_bead_recipe(recipe, settings or ())
    if print_config:
        typer.echo(dump_recipe(chosen), nl=False)
        return
    if dataset is None:
        raise InputError("There is nothing to learn from: name a dataset of beads (`distillase cg map` makes one).")
    progress = make_progress()
    path = make_hybrid(dataset, out, chosen, means=mean_forces or (), picoseconds=picoseconds, progress=progress)
    progress.say(f"\n{path}: CoarseGrainedCalculator({str(path)!r})")


@cg_app.command()
def report(
    model: Annotated[Path, typer.Argument(help="A coarse-grained force field.", show_default=False)],
    dataset: Annotated[
        Path, typer.Argument(help="A dataset of beads, or an .npz file: the reference.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for report.html and report.json.")],
    native: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="[NAME=]PDB", help="The native structure of a protein; repeatable.", show_default=False),
    ] = None,
    mean_forces: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="[NAME=]FOLDER", help="Mean forces of `cg mean-force`; repeatable.", show_default=False),
    ] = None,
    compare: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=MODEL", help="Another force field; repeatable.", show_default=False),
    ] = None,
    parts: Annotated[bool, typer.Option(help="Judge the prior and the network alone too.")] = True,
    replicas: Annotated[int, typer.Option(min=2, help="Of each protein and force field.")] = 16,
    picoseconds: Annotated[float, typer.Option(help="Of each replica.")] = 1000.0,
    seed: Seed = 0,
) -> None:
    """Forces, distributions, folding and stability beside the reference and its noise: a page to look at."""
    from ..training.proteins.judge import JudgeConfig
    from .cg_report import report as run

    config = JudgeConfig(replicas=replicas, picoseconds=picoseconds, seed=seed)
    run(
        model, dataset, out, config, natives=native or (), means=mean_forces or (), others=compare or (),
        parts=parts, progress=make_progress(),
    )  # fmt: skip


@cg_app.command()
def refine(
    dataset: Annotated[Path, typer.Argument(help="A dataset of beads, from `cg map`.", show_default=False)],
    reference: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Of `cg reference`, in implicit water: where all-atom frames to label with come from; repeatable.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for everything that is written.", show_default=False)
    ],
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="`default`, `large`, or a YAML file.")] = "default",
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable."),
    ] = None,
    mean_forces: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="[NAME=]FOLDER",
            help="Learn from the mean forces of `cg mean-force` from the beginning; repeatable.",
            show_default=False,
        ),
    ] = None,
    members: Annotated[int, typer.Option(help="Networks of the committee, with seeds one after the other.")] = 3,
    rounds: Annotated[int, typer.Option(help="Of exploring, labelling and training again.")] = 1,
    budget: Annotated[int, typer.Option(help="Configurations of each protein labelled in a round, at most.")] = 30,
    picoseconds: Annotated[float, typer.Option(help="Of each replica that explores; the prior must stand it.")] = 100.0,
    replicas: Annotated[int, typer.Option(help="Of each protein, advanced together.")] = 32,
    interval: Annotated[float, typer.Option(help="ps between the frames that are looked at.")] = 1.0,
    threshold: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="eV/Å, of the committee's deviation on a bead, above which a frame is flagged. Default: the 90th "
            "percentile of what it is on training frames.",
            show_default=False,
        ),
    ] = None,
    mean_force_picoseconds: Annotated[
        float, typer.Option(help="Of averaging for each configuration, all its runs together.")
    ] = 8.0,
    replicates: Annotated[int, typer.Option(help="Runs of each, begun in different frames.")] = 2,
    workers: Annotated[int, typer.Option("--workers", "-w", min=0, help="Processes; 0: one per core.")] = 0,
) -> None:
    """Label the frames on which a committee disagrees with mean forces at frozen Cα atoms, and train again.

    Interrupt it at any moment; the same command goes on where it stopped. With more `--rounds` it adds to what is
    there.
    """
    from ..datasets.proteins.mean_force import MeanForceConfig
    from ..training.proteins.refine import RefineConfig
    from .cg_refine import refine_beads
    from .config import load_bead_recipe

    chosen = load_bead_recipe(recipe, settings or ())
    labels = MeanForceConfig(temperature=chosen.temperature, picoseconds=mean_force_picoseconds, replicates=replicates)
    config = RefineConfig(
        members=members, rounds=rounds, budget=budget, picoseconds=picoseconds, replicas=replicas, interval=interval,
        threshold=threshold, labels=labels,
    )  # fmt: skip
    progress = make_progress()
    paths = refine_beads(
        dataset, out, chosen, config, references=reference, means=mean_forces or (), workers=workers, progress=progress
    )
    progress.say(f"\nCoarseGrainedCalculator([{', '.join(repr(str(path)) for path in paths)}])")


@cg_app.command()
def lammps(
    model: Annotated[Path, typer.Argument(help="A coarse-grained force field.", show_default=False)],
    start: Annotated[str, typer.Argument(help="A PDB file, or a sequence (an extended chain).", show_default=False)],
    out: Out,
    temperature: Annotated[float, typer.Option(help="K, of Langevin dynamics; 0 runs at constant energy.")] = 300.0,
    timestep: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="fs. Default: a twelfth of the fastest bond's period.", show_default=False),
    ] = None,
    friction: Annotated[float, typer.Option(help="1/fs (0.001 is 1/ps).")] = 0.001,
    seed: Seed = 1,
    pair_allegro: Annotated[
        bool, typer.Option("--pair-allegro", help="Compile the network for a LAMMPS that has this pair style.")
    ] = False,
) -> None:
    """Write a folder that LAMMPS runs: bonds and dihedrals in its own styles, the rest through `fix external`."""
    from .cg_simulate import write_for_lammps

    write_for_lammps(
        model,
        start,
        out,
        temperature=temperature,
        timestep=timestep,
        friction=friction,
        seed=seed,
        pair_allegro=pair_allegro,
        progress=make_progress(),
    )


@cg_app.command()
def simulate(
    model: Annotated[Path, typer.Argument(help="A coarse-grained force field.", show_default=False)],
    start: Annotated[str, typer.Argument(help="A PDB file, or a sequence (an extended chain).", show_default=False)],
    out: Out,
    picoseconds: Annotated[float, typer.Option(help="Of each replica.")] = 1000.0,
    replicas: Annotated[int, typer.Option(min=1, help="Advanced together; with --exchange, at each temperature.")] = 8,
    temperature: Annotated[float, typer.Option(help="K; with --exchange and --hottest, the coldest.")] = 300.0,
    exchange: Annotated[
        bool, typer.Option("--exchange", help="Neighbouring temperatures swap configurations.")
    ] = False,
    temperatures: Annotated[
        str, typer.Option(help="K, of an exchange, with commas between them.", show_default=False)
    ] = "",
    hottest: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="K: a ladder from --temperature up to here, so that about three swaps in ten succeed. Default, where "
            "no --temperatures are named: 1.5 times the coldest.",
            show_default=False,
        ),
    ] = None,
    swap_every: Annotated[float, typer.Option(help="ps between attempts to swap.")] = 0.5,
    timestep: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="fs. Default: a twelfth of the fastest bond's period.", show_default=False),
    ] = None,
    friction: Annotated[float, typer.Option(help="1/fs (0.001 is 1/ps).")] = 0.001,
    interval: Annotated[float, typer.Option(help="ps between frames.")] = 1.0,
    part: Annotated[str, typer.Option(help="`hybrid`, `prior` or `network`.")] = "hybrid",
    seed: Seed = 0,
) -> None:
    """Langevin dynamics of many replicas at once. A replica that goes wrong ends, and the exit code is 2.

    Frames are written while it runs: interrupted, it leaves those that there are.
    """
    from ..ase_calcs.proteins.simulate import SimulationConfig
    from .cg_simulate import ExchangeSettings
    from .cg_simulate import simulate as run

    rungs = numbers(temperatures, "--temperatures")
    if (rungs or hottest is not None) and not exchange:
        raise InputError("`--temperatures` and `--hottest` are of a replica exchange: add `--exchange`.")
    if rungs and hottest is not None:
        raise InputError("`--temperatures` names all rungs and `--hottest` has them made: give one of the two.")
    settings = None
    if exchange:
        temperature = rungs[0] if rungs else temperature
        top = None if rungs else hottest or 1.5 * temperature
        settings = ExchangeSettings(temperatures=rungs, hottest=top, every=swap_every)
    config = SimulationConfig(
        picoseconds=picoseconds, temperature_K=temperature, timestep=timestep, friction=friction, interval=interval
    )
    try:
        run(
            model, start, out, config, replicas=replicas, seed=seed, part=part,  # type: ignore[arg-type]  # checked there
            exchange=settings, progress=make_progress(),
        )  # fmt: skip
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted. The same command begins anew.\n")
        raise SystemExit(INTERRUPTED) from None
