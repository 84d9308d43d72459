"""What the commands `distillase cg …` do."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ase_calcs.errors import DataError, InputError
from ..ase_calcs.progress import Progress
from ..ase_calcs.units import KCAL_PER_MOL
from ..datasets.proteins.beads import TOLERANCE, BeadFrames, load_npz, read_beads, save_npz, write_beads, write_mapped
from ..datasets.proteins.build import AllAtom, build_sequence, read_protein
from ..datasets.proteins.frames import Piece, dynamics_pieces, open_dynamics, open_reference, reference_pieces
from ..datasets.proteins.mapping import MapKind
from ..datasets.proteins.reference import RECORD, ReferenceConfig, Start, has_atoms_of, run_reference
from .config import dump_recipe, to_plain
from .pipeline import available_cores
from .progress import is_first_process
from .stages import write_text
from .summary import plain_table, render

if TYPE_CHECKING:
    from ..ase_calcs.proteins.model import CoarseGrainedModel
    from ..datasets.proteins.mean_force import MeanForceConfig
    from ..training.proteins.config import BeadRecipe
    from ..training.proteins.prior_fit import PriorConfig


def load_protein(text: str) -> tuple[AllAtom, bool]:
    """A PDB or mmCIF file, or a sequence; and whether it is a file, whose structure counts as folded."""
    if is_file(text):
        return read_protein(text), True
    return build_sequence(text), False


def make_reference(
    protein: str,
    folder: Path,
    config: ReferenceConfig,
    *,
    default_starts: bool,
    seed: int,
    workers: int,
    progress: Progress,
) -> None:
    """`distillase cg reference`."""
    made, folded = load_protein(protein)
    for note in made.notes:
        progress.say(f"  {note}")
    if default_starts:
        config = dataclasses.replace(config, starts=_possible_starts(made, folded, config, progress))
    elif not folded and {"folded", "pulled"} & set(config.starts):
        raise InputError("`folded` and `pulled` start from a structure, and a sequence is none: give a PDB file.")
    progress.say(
        f"{made.sequence}: {len(made.positions)} atoms, {config.nanoseconds:g} ns from each of {config.starts}"
    )
    run_reference(made, folder, config, seed=seed, workers=workers or available_cores(), progress=progress)
    progress.say("\n" + _reference_table(folder))


def _possible_starts(made: AllAtom, folded: bool, config: ReferenceConfig, progress: Progress) -> tuple[Start, ...]:
    """All starts that this protein can have."""
    starts: list[Start] = ["folded"] if folded else []
    if ":" in made.sequence:
        progress.say("  several chains: they start from the given structure only")
    elif folded and not has_atoms_of(made, build_sequence(made.sequence)):
        progress.say("  other protons or bonds than a chain built from the sequence: no extended or unfolded start")
    else:
        starts += ["extended", "unfolded"]
    if folded and ":" not in made.sequence and config.system.water == "obc2":
        starts.append("pulled")
    return tuple(starts)


def _reference_table(folder: Path) -> str:
    record = json.loads((folder / RECORD).read_text())
    table = plain_table({"start": "left", "K": "left", "frames": "right", "exchanged": "right", "core-hours": "right"})
    for job in sorted((folder / "frames").iterdir()):
        files = sorted(job.glob("[0-9]*.npz"))
        with np.load(files[-1]) as last:
            exchanges, seconds = last["state_exchanges"], float(last["state_seconds"])
            frames = len(last["energies"][0]) * (len(files) - 1) if len(files) > 1 else 0
        rungs = record["ladder"] if record["exchange"] else [job.name.rsplit("-", 1)[1].rstrip("K")]
        share = f"{exchanges[:, 1].sum() / exchanges[:, 0].sum():.0%}" if len(exchanges) and exchanges.sum() else ""
        kelvins = " ".join(f"{float(t):.0f}" for t in rungs)
        table.add_row(job.name.rsplit("-", 1)[0], kelvins, f"{len(rungs)} × {frames}", share, f"{seconds / 3600:.2f}")
    return render(table)


def map_onto_beads(
    source: str,
    out: Path,
    *,
    kind: MapKind,
    name: str,
    temperatures: tuple[float, ...],
    trajectory: str,
    forces: str,
    unit: str,
    npz: Path | None,
    progress: Progress,
) -> None:
    """`distillase cg map`."""
    pieces: Callable[[], Iterable[Piece]]
    if source.endswith(".npz"):
        if temperatures or trajectory or forces:
            raise InputError(
                "An NPZ file is mapped already: `--temperatures`, `--trajectory` and `--forces` say nothing there."
            )
        proteins = load_npz(source, name=name, force_unit=unit)
        write_beads(out, proteins, {"source": {"npz": Path(source).name}})
        for protein in proteins:
            progress.say(f"{protein.name} ({protein.sequence}): {len(protein.positions)} frames")
    else:
        if trajectory:
            if not forces or len(temperatures) != 1:
                raise InputError(
                    "Frames of a trajectory need the forces on all atoms (`--forces F.npy`, one (T, N, 3) array) and "
                    "one `--temperatures`, at which they were sampled."
                )
            described = open_dynamics(source, name)
            pieces = lambda: dynamics_pieces(source, trajectory, forces, unit, temperatures[0])  # noqa: E731
        else:
            described = open_reference(source, name)
            pieces = lambda: reference_pieces(source, temperatures)  # noqa: E731
        result = write_mapped(out, described, pieces, kind)
        progress.say(
            f"{described.name} ({described.sequence}): {result.frames} frames, map `{kind}`, {result.constraints} "
            "rigid distances\n"
        )
        table = plain_table(
            {"force map": "left", "RMS, first half": "right", "second half": "right", "kcal/mol/Å": "left"}
        )
        for label, (first, second) in result.rms.items():
            table.add_row(label, f"{first / KCAL_PER_MOL:.2f}", f"{second / KCAL_PER_MOL:.2f}", "")
        progress.say(render(table))
    if npz is not None:
        save_npz(npz, read_beads(out), note=f"made by `distillase cg map` from {Path(source).name}")
        progress.say(f"{npz}: {npz.stat().st_size / 1e6:.2f} MB")


def merge_beads(datasets: Sequence[Path], out: Path, *, progress: Progress) -> None:
    """`distillase cg merge`."""
    proteins: list[BeadFrames] = []
    for path in datasets:
        if path.resolve() == out.resolve():
            raise InputError(f"{out} is one of the datasets to merge. Name another file with --out.")
        for protein in load_npz(path) if path.suffix == ".npz" else read_beads(path):
            if any(protein.name == other.name for other in proteins):
                raise InputError(
                    f"Two datasets have a protein called {protein.name}. Map one of them again with another `--name`."
                )
            proteins.append(protein)
    write_beads(out, proteins, {"sources": [path.name for path in datasets]})
    table = plain_table({"protein": "left", "residues": "right", "frames": "right", "temperatures, K": "left"})
    for protein in proteins:
        kelvins = ", ".join(f"{t:.0f}" for t in np.unique(protein.temperatures[~np.isnan(protein.temperatures)]))
        table.add_row(protein.name, str(len(protein.types)), str(len(protein.positions)), kelvins)
    progress.say(render(table))


def make_mean_forces(
    reference: Path,
    folder: Path,
    config: MeanForceConfig,
    *,
    judge: Sequence[Path],
    seed: int,
    workers: int,
    progress: Progress,
) -> None:
    """`distillase cg mean-force`."""
    from ..ase_calcs.modelfile import load_coarse_grained
    from ..ase_calcs.proteins.calculator import CoarseGrainedCalculator
    from ..ase_calcs.proteins.chains import coarse_grained_atoms
    from ..datasets.proteins.mean_force import force_error, mean_forces

    found = mean_forces(reference, folder, config, seed=seed, workers=workers or available_cores(), progress=progress)
    sequence = open_reference(reference).sequence
    structures = [coarse_grained_atoms(sequence, x) for x in found.positions]
    table = plain_table({"mean forces, kcal/mol/Å per component": "left", "RMS": "right", "±": "right"})

    def rms(values: np.ndarray) -> str:
        return f"{np.sqrt(np.mean(values**2)) / KCAL_PER_MOL:.3f}"

    missing = config.configurations - len(structures)
    if missing:
        progress.say(f"{missing} of {config.configurations} configurations are left out: too strained for all atoms")
    table.add_row(f"of {len(structures)} configurations", rms(found.forces), "")
    table.add_row("their standard error", rms(found.errors), "")
    table.add_row("their standard error without control variates", rms(found.raw_errors), "")
    for path in judge:
        model = load_coarse_grained(path)
        for part in ("prior", "hybrid") if model.network is not None else ("prior",):
            results = CoarseGrainedCalculator(model, part=part).calculate_many(structures)  # type: ignore[arg-type]
            error, spread = force_error(np.stack([r["forces"] for r in results]), found)
            table.add_row(
                f"error of {path.name}, {part}", f"{error / KCAL_PER_MOL:.3f}", f"{spread / KCAL_PER_MOL:.3f}"
            )
    progress.say(render(table))


def frames_at(path: Path, temperature: float) -> list[BeadFrames]:
    """Frames of a dataset at one temperature (those of unknown temperature are taken to be of it)."""
    found = [known for protein in read_beads(path) if len((known := protein.at(temperature)).positions)]
    if not found:
        raise DataError(f"{path} has no frames within {TOLERANCE:g} K of {temperature:g} K.")
    return found


def make_prior(
    dataset: Path,
    folder: Path,
    config: PriorConfig,
    *,
    temperature: float,
    picoseconds: float,
    seed: int,
    progress: Progress,
) -> Path:
    """`distillase cg prior`: fit, simulate, and refuse what is not stable."""
    from ..ase_calcs.modelfile import save_model

    proteins = frames_at(dataset, temperature)
    model = _stable_prior(proteins, config, temperature, picoseconds, seed, progress)
    model.header = dataclasses.replace(model.header, dataset_hash=content_hash(dataset))
    folder.mkdir(parents=True, exist_ok=True)
    return save_model(folder / "prior.safetensors", model)


def content_hash(dataset: Path) -> str:
    """Of the frames in a dataset."""
    from ..datasets.store import Dataset

    with Dataset(dataset) as data:
        return data.content_hash


def _stable_prior(
    proteins: Sequence[BeadFrames],
    config: PriorConfig,
    temperature: float,
    picoseconds: float,
    seed: int,
    progress: Progress,
) -> CoarseGrainedModel:
    """A prior alone, as a force field, that has been simulated."""
    from ..ase_calcs.potential import ModelHeader
    from ..ase_calcs.proteins.simulate import SimulationConfig
    from ..training.proteins.prior_fit import fit_prior
    from ..training.proteins.run import assemble
    from ..training.proteins.stability import require_stable, simulate_proteins

    fit = fit_prior(proteins, temperature, config, progress=progress, seed=seed)
    table = plain_table({"forces, kcal/mol/Å per component": "left", "RMS": "right"})
    for label, key in (
        ("as mapped (a model of zero has this error)", "total"),
        ("less a prior from Boltzmann inversion", "inversion"),
        (f"less a prior from force matching ({fit.steps} steps of L-BFGS)", "matching"),
    ):
        table.add_row(label, f"{fit.rms_force[key] / KCAL_PER_MOL:.3f}")
    progress.say(render(table) + "\n")
    elements = tuple(sorted({int(t) + 1 for p in proteins for t in p.types}))
    model = assemble(fit.prior, None, elements, temperature)
    model.header = ModelHeader(teacher="all-atom dynamics", metrics={"rms_force": fit.rms_force})
    found = simulate_proteins(
        model, proteins, SimulationConfig(picoseconds=picoseconds, temperature_K=temperature), seed=seed, part="prior",
        progress=progress,
    )  # fmt: skip
    progress.say(stability_table(found))
    require_stable(found, temperature)
    return model


def make_hybrid(
    dataset: Path, folder: Path, recipe: BeadRecipe, *, means: Sequence[str], picoseconds: float, progress: Progress
) -> Path:
    """`distillase cg train`: a stable prior, a network on top of it, and a look at both together."""
    from ..ase_calcs.modelfile import load_coarse_grained
    from ..ase_calcs.proteins.simulate import SimulationConfig
    from ..training.proteins.run import split_frames, train_beads
    from ..training.proteins.stability import simulate_proteins

    proteins = frames_at(dataset, recipe.temperature)
    training, _, held = split_frames(proteins, recipe.hold_out, recipe.validation)
    known = [mean_frames(text, proteins, recipe.temperature) for text in means]
    for frames in known:
        progress.say(f"{len(frames.positions)} mean forces of {frames.name}")
    folder.mkdir(parents=True, exist_ok=True)
    prior = prior_for(dataset, folder, recipe, training, picoseconds, progress)
    if is_first_process():
        write_text(folder / "config.yaml", dump_recipe(recipe, f"distillase cg train {dataset}"))
    everything = read_beads(dataset) if recipe.network.energy_entropy else proteins
    result = train_beads(
        everything, prior.prior, folder, recipe, means=known, dataset_hash=content_hash(dataset), progress=progress
    )
    if not is_first_process():
        return result.path
    table = plain_table({"forces, kcal/mol/Å": "left", "zero": "right", "network": "right", "explained": "right"})
    for name, found in result.metrics.items():
        if "force_rmse" not in found:
            continue
        rmse, zero = (f"{found[key] / KCAL_PER_MOL:.3f}" for key in ("force_rmse", "zero_rmse"))
        table.add_row(name.replace("_", " "), zero, rmse, f"{100 * found['explained']:.2f} %")
    progress.say(
        render(table)
        + "\nof what the prior leaves. Nearly all of that is thermal noise of the atoms that were averaged out: judge "
        "the force field by what it samples.\n"
    )
    model = load_coarse_grained(result.path)
    config = SimulationConfig(picoseconds=picoseconds, temperature_K=recipe.temperature)
    stability = simulate_proteins(model, [*training, *held], config, seed=recipe.seed, progress=progress)
    progress.say(stability_table(stability))
    bad = [one.name for one in stability if not one.stable]
    if bad:
        raise DataError(
            f"The force field in {result.path} is not stable for {', '.join(bad)}, though its prior is: the network "
            "pulls chains to where it has no data. More decoys (`loss.decoys`) help, a weight on `loss.magnitude`, or "
            "frames from more starts and hotter temperatures."
        )
    return result.path


def prior_for(
    dataset: Path,
    folder: Path,
    recipe: BeadRecipe,
    training: Sequence[BeadFrames],
    picoseconds: float,
    progress: Progress,
) -> CoarseGrainedModel:
    """The prior in a folder if it is of these data and settings, else a new one, which stays there."""
    from ..ase_calcs.modelfile import load_coarse_grained, save_model

    path, made_from = folder / "prior.safetensors", folder / "prior.json"
    key = {
        "dataset": content_hash(dataset), "prior": to_plain(recipe.prior), "temperature": recipe.temperature,
        "hold_out": list(recipe.hold_out), "validation": recipe.validation, "seed": recipe.seed,
    }  # fmt: skip
    if path.is_file() and made_from.is_file() and json.loads(made_from.read_text()) == key:
        progress.say(f"the prior in {path} is of these data and settings already")
        return load_coarse_grained(path)
    prior = _stable_prior(training, recipe.prior, recipe.temperature, picoseconds, recipe.seed, progress)
    if is_first_process():
        save_model(path, prior)
        write_text(made_from, json.dumps(key))
    return prior


def named_folder(text: str, names: Iterable[str], option: str) -> tuple[str, Path]:
    """``NAME=FOLDER``; the name goes without saying if there is but one."""
    names = list(names)
    name, _, folder = text.rpartition("=")
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        raise InputError(
            f"`{option} {text}` names no protein of the dataset. Write NAME=FOLDER, with {', '.join(names)}."
        )
    return name, Path(folder)


def mean_frames(text: str, proteins: Sequence[BeadFrames], temperature: float) -> BeadFrames:
    """``NAME=FOLDER``: the mean forces in a folder, or an NPZ file, of the protein of that name."""
    from ..datasets.proteins.mean_force import as_frames, load_mean_forces

    by_name = {p.name: p for p in proteins}
    name, folder = named_folder(text, by_name, "--mean-forces")
    settings = folder / "mean_forces.json"
    if settings.is_file():
        found = json.loads(settings.read_text())
        other = by_name[name].sequence
        if found["sequence"] != other or abs(found["temperature"] - temperature) > TOLERANCE:
            raise InputError(
                f"The mean forces in {folder} are of {found['sequence']} at {found['temperature']:g} K, and {name} is "
                f"{other} at {temperature:g} K."
            )
    known = load_mean_forces(folder)
    if known.positions.shape[1] != len(by_name[name].types):
        raise InputError(
            f"The mean forces in {folder} are of {known.positions.shape[1]} beads, and {name} has "
            f"{len(by_name[name].types)}."
        )
    return as_frames(known, name, by_name[name].sequence, temperature)


def stability_table(found: Iterable[Any]) -> str:
    """One line for each protein that was simulated."""
    table = plain_table(
        {
            "protein": "left",
            "replicas": "right",
            "ps": "right",
            "survived": "right",
            "K": "right",
            "shortest, Å": "right",
            "ns/day": "right",
        }
    )
    for one in found:
        result = one.result
        each = result.steps.max() * result.timestep / 1000
        speed = result.steps.sum() * result.timestep * 1e-6 / max(result.seconds, 1e-9) * 86400
        table.add_row(
            one.name, str(result.positions.shape[1]), f"{each:g}", f"{result.survivors:.0%}",
            f"{result.temperatures.mean():.1f}", f"{np.min(result.shortest):.2f}", f"{speed:.0f}",
        )  # fmt: skip
    return render(table)


def is_file(text: str) -> bool:
    """Whether it names a structure, and no sequence.

    Raises
    ------
    InputError
        It looks like the name of a file, and there is none.
    """
    path = Path(text)
    named = path.suffix.lower() in (".pdb", ".ent", ".cif", ".mmcif")
    try:
        there = path.is_file()
    except OSError:  # a sequence that is too long for a name
        there = False
    if named and not there:
        raise InputError(f"There is no file `{text}`.")
    return there
