"""Prior, network, and one model file: from a dataset of beads to a coarse-grained force field."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...ase_calcs.errors import DataError, InputError
from ...ase_calcs.modelfile import DTYPES, build_potential, save_model
from ...ase_calcs.potential import ModelHeader, Potential
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.proteins.model import CoarseGrainedModel
from ...ase_calcs.proteins.prior import Prior
from ...ase_calcs.proteins.split import EnergyEntropy
from ...datasets.proteins.alike import squared_differences
from ...datasets.proteins.beads import BeadFrames
from ..checkpoint import remove_checkpoints
from ..engine import make_engine
from ..loop import TrainLoop, evaluate_table
from ..run import keep_freed_memory
from ..world import World, join_world
from .config import BeadRecipe
from .relative_entropy import minimise_relative_entropy
from .smoothing import smoothed
from .task import BeadTable, BeadTask

MODEL = "model.safetensors"
FINISHED = "trained.json"
ENTROPY_STAGE = "relative-entropy"


@dataclass(frozen=True)
class BeadResult:
    """What training gave.

    Attributes
    ----------
    path
        The model file.
    metrics
        Figures of `BeadTask.figures` for ``validation`` and, where proteins were held out, ``held_out``;
        ``forces_alone``, of validation before the relative entropy was minimised; ``trained_on`` and ``mean_forces``,
        how many frames and mean forces of each sequence were learned from.
    """

    path: Path
    metrics: dict[str, dict[str, float]]


def split_frames(
    proteins: Sequence[BeadFrames], hold_out: Sequence[str], validation: float
) -> tuple[list[BeadFrames], list[BeadFrames], list[BeadFrames]]:
    """Training, validation and held-out frames: whole proteins are held out, and the last frames of runs validate.

    Raises
    ------
    InputError
        A name that no protein has, residues that only held-out proteins have, or nothing left to train on.
    """
    unknown = sorted(set(hold_out) - {p.name for p in proteins})
    if unknown:
        raise InputError(
            f"`hold_out` names {', '.join(unknown)}; the dataset has {', '.join(p.name for p in proteins)}."
        )
    training, validating = [], []
    for p in proteins:
        if p.name in hold_out:
            continue
        last = np.zeros(len(p.positions), dtype=bool)
        runs = np.array([f"{origin} {kelvin:g}" for origin, kelvin in zip(p.origins, p.temperatures, strict=True)])
        for run in np.unique(runs):
            rows = np.flatnonzero(runs == run)
            last[rows[len(rows) - max(1, round(validation * len(rows))) :]] = True
        training.append(p.select(~last))
        validating.append(p.select(last))
    if not training or not sum(len(p.positions) for p in training):
        raise InputError("Nothing is left to train on: every protein is held out, or has one frame.")
    held = [p for p in proteins if p.name in hold_out]
    known = {t for p in training for t in p.types.tolist()}
    strange = [p.name for p in held if not set(p.types.tolist()) <= known]
    if strange:
        raise InputError(
            f"The held-out proteins {', '.join(strange)} have residues that no training protein has. Train on proteins "
            "that have them, or hold out others."
        )
    few = [p.name for p in training if not len(p.positions)]
    if few:
        raise InputError(f"{', '.join(few)} has too few frames to keep some for validation. Leave it out.")
    return training, validating, held


def train_beads(
    proteins: Sequence[BeadFrames],
    prior: Prior,
    run_dir: str | Path,
    recipe: BeadRecipe | None = None,
    *,
    means: Sequence[BeadFrames] = (),
    dataset_hash: str = "",
    progress: Progress | None = None,
) -> BeadResult:
    """Train a network on what the prior leaves.

    Parameters
    ----------
    proteins
        Frames of the recipe's temperature; with `network.energy_entropy` those of others too.
    prior
        Fitted to the training proteins, and stable.
    run_dir
        Gets the model file, and a folder for each stage of training, from which an interrupted run goes on.
    recipe
        How.
    means
        Mean forces to learn from as well; those of proteins that are held out are left out, and those on
        configurations among the validation frames.
    dataset_hash
        Of the data, for the model's header.

    Raises
    ------
    DataError
        Forces without a finite value.
    InputError
        Something in the recipe is not allowed.
    """
    recipe, progress, run_dir = recipe or BeadRecipe(), progress or SilentProgress(), Path(run_dir)
    if not all(np.isfinite(p.forces).all() and np.isfinite(p.positions).all() for p in proteins):
        raise DataError("Some frames have forces or positions that are not finite. Leave them out.")
    run_dir.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.first.threads or threads)
    try:
        with join_world(recipe.engine.device) as world:
            return _train(proteins, means, prior, run_dir, recipe, dataset_hash, progress, world)
    finally:
        torch.set_num_threads(threads)


def _train(
    proteins: Sequence[BeadFrames],
    means: Sequence[BeadFrames],
    prior: Prior,
    run_dir: Path,
    recipe: BeadRecipe,
    dataset_hash: str,
    progress: Progress,
    world: World,
) -> BeadResult:
    if recipe.relative_entropy.steps and world.size > 1:
        raise InputError(
            f"The relative entropy is minimised by one process, and there are {world.size}. Train on several with "
            "`relative_entropy.steps=0`; one process then goes on from there."
        )
    by_forces = fingerprint_of([*proteins, *means], prior, recipe, entropy=False)
    fingerprint = fingerprint_of([*proteins, *means], prior, recipe)
    done = _finished(run_dir, fingerprint)
    if done is not None:
        return done
    parts = split_frames(proteins, recipe.hold_out, recipe.validation)
    dtype = DTYPES[recipe.network.dtype]

    def table(frames: Sequence[BeadFrames], decoys: float) -> BeadTable:
        loss = dataclasses.replace(recipe.loss, decoys=decoys)
        return BeadTable(prior, frames, cutoff=recipe.network.cutoff, loss=loss, dtype=dtype, seed=recipe.seed,
            temperature=recipe.temperature,
        )  # fmt: skip

    learned = [*parts[0], *(known for p in means if (known := without_validated(p, parts)) is not None)]
    metrics: dict[str, dict[str, float]] = {"trained_on": {p.sequence: float(len(p.positions)) for p in parts[0]}}
    if means:
        metrics["mean_forces"] = {p.sequence: float(len(p.positions)) for p in learned if p.errors is not None}
    if recipe.loss.smooth_functions:
        labels = [p for p in learned if p.errors is not None]
        learned, metrics["smooth_forces"] = smoothed(
            prior, parts[0], labels, recipe.loss, temperature=recipe.temperature, progress=progress
        )
    training, validation = table(learned, recipe.loss.decoys), table(parts[1], 0.0)
    elements = tuple(sorted({int(t) + 1 for p in parts[0] for t in p.types}))
    potential = fresh_network(recipe, elements, training).to(world.device(recipe.engine.device))
    task = BeadTask(potential, recipe.loss)
    for number, stage in enumerate(recipe.stages):
        stage = dataclasses.replace(stage, engine=recipe.engine)
        folder = run_dir / f"stage-{number + 1}"
        folder.mkdir(exist_ok=True)
        engine = make_engine(task, stage, training.batch(np.arange(min(2, len(training)))), world)
        loop = TrainLoop(
            engine, training, validation, stage, folder, seed=recipe.seed + number,
            fingerprint=f"{by_forces}-{number}", progress=progress,
        )  # fmt: skip
        metrics["validation"] = loop.run().best_figures
    if recipe.relative_entropy.steps:
        metrics["forces_alone"] = metrics["validation"]
        here = [known for p in parts[0] if len((known := p.at(recipe.temperature)).positions)]
        folder = run_dir / ENTROPY_STAGE
        minimise_relative_entropy(
            prior, potential, here, training, recipe, folder, fingerprint=fingerprint, progress=progress
        )
        metrics["validation"] = task.figures(evaluate_table(engine, validation, recipe.stages[-1])[0])
    if parts[2]:
        sums, _ = evaluate_table(engine, table(parts[2], 0.0), recipe.stages[-1])
        metrics["held_out"] = task.figures(sums)
    model = assemble(prior, potential, elements, recipe.temperature)
    model.header = ModelHeader(teacher="all-atom dynamics", dataset_hash=dataset_hash, metrics=metrics)
    if world.is_first:
        save_model(run_dir / MODEL, model)
        (run_dir / FINISHED).write_text(json.dumps({"fingerprint": fingerprint, "metrics": metrics}))
        for number in range(len(recipe.stages)):
            remove_checkpoints(run_dir / f"stage-{number + 1}")
        if recipe.relative_entropy.steps:
            remove_checkpoints(run_dir / ENTROPY_STAGE)
    world.wait()
    return BeadResult(run_dir / MODEL, metrics)


def without_validated(
    means: BeadFrames, parts: tuple[list[BeadFrames], list[BeadFrames], list[BeadFrames]]
) -> BeadFrames | None:
    """Mean forces on configurations that are, or lie nearest to, training frames; None if there are none.

    Others would tell the network about the very frames it is judged by: side chains turn slowly, and a mean over tens
    of picoseconds is that of one of their states.
    """
    here = [[p for p in part if p.name == means.name] for part in parts[:2]]
    if not here[0]:
        return None
    kept = nearer_to(here[0][0].positions, here[1][0].positions, means.positions)
    return means.select(kept) if kept.any() else None


def nearer_to(one: np.ndarray, other: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """(M,) whether configurations (M, B, 3) lie as near to one set of frames (T, B, 3) as to another, or nearer."""
    first, second = (squared_differences(positions, frames).min(1) for frames in (one, other))
    return np.asarray(first <= second)


def _finished(run_dir: Path, fingerprint: str) -> BeadResult | None:
    """What an earlier call has trained with the same data and settings."""
    try:
        found = json.loads((run_dir / FINISHED).read_text())
    except (OSError, json.JSONDecodeError):
        return None
    if found.get("fingerprint") != fingerprint or not (run_dir / MODEL).is_file():
        return None
    return BeadResult(run_dir / MODEL, found["metrics"])


def fresh_network(recipe: BeadRecipe, elements: tuple[int, ...], table: BeadTable) -> Potential:
    """With initial weights from the recipe's seed; torch's global generator is put back."""
    options: dict[str, Any] = {"cutoff": recipe.network.cutoff, **recipe.network.options}
    if recipe.network.architecture == "allegro":
        options.setdefault("mean_neighbors", table.mean_neighbors())
        # Chains of amino acids are handed, and one layer cannot tell.
        options.setdefault("layers", 2)
        options.setdefault("handed", options["layers"] > 1)
    architecture = recipe.network.architecture
    if recipe.network.energy_entropy:
        architecture, options = EnergyEntropy.architecture, {"base": architecture, "options": options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        potential = build_potential(architecture, elements, options, dtype=DTYPES[recipe.network.dtype])
    # Most of what the prior leaves is noise: the mean forces are several times smaller.
    potential.energy_scale.fill_(max(0.2 * table.force_scale(), 1e-3))
    return potential


def assemble(
    prior: Prior, potential: Potential | None, elements: tuple[int, ...], temperature: float
) -> CoarseGrainedModel:
    """One force field of both parts."""
    network = None
    if potential is not None:
        network = {"architecture": potential.architecture, "hyperparameters": potential.hyperparameters}
    dtype = torch.float32 if potential is None else potential.dtype
    model = CoarseGrainedModel(
        elements, prior=prior.hyperparameters, network=network, temperature=temperature, dtype=dtype
    )
    model.prior.load_state_dict(prior.state_dict())
    if potential is not None and model.network is not None:
        model.network.load_state_dict(potential.state_dict())
    return model.eval().requires_grad_(False)


def fingerprint_of(proteins: Sequence[BeadFrames], prior: Prior, recipe: BeadRecipe, *, entropy: bool = True) -> str:
    """Of everything that a checkpoint depends on: frames, mean forces among them, prior and settings; those of the
    relative entropy matter to its own stage alone."""
    digest = hashlib.blake2b(digest_size=16)
    settings = dataclasses.asdict(recipe)
    settings.pop("engine")
    settings["relative_entropy"].pop("checkpoint_seconds")
    if not entropy:
        settings.pop("relative_entropy")
    for stage in (settings["first"], settings["second"]):
        for name in ("checkpoint_seconds", "tensorboard", "wandb", "threads", "engine"):
            stage.pop(name)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for p in proteins:
        digest.update(f"{p.name} {p.sequence}".encode())
        for values in (p.positions, p.forces, p.temperatures, p.errors):
            digest.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
        digest.update("\n".join(p.origins.tolist()).encode())
    for tensor in prior.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
