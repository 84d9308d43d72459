"""From trajectories, or labelled structures, to a jump network's file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...ase_calcs.errors import DataError
from ...ase_calcs.jumps import JumpNetwork
from ...ase_calcs.modelfile import DTYPES, build_jump, load_jump, model_hash, save_model
from ...ase_calcs.potential import ModelHeader
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.units import FS, KB
from ...datasets.trajectory import Trajectory
from ..checkpoint import remove_checkpoints
from ..engine import make_engine
from ..inherit import inherit
from ..loop import TrainLoop
from ..run import MODEL, keep_freed_memory
from ..world import World, join_world
from .config import JumpRecipe
from .tables import FlowTable, WindowTable
from .task import FlowTask, JumpTask


@dataclass(frozen=True)
class JumpResult:
    """What a training left behind: the file, its figures on held-out runs, and how long it took."""

    model: Path
    metrics: dict[str, dict[str, float]]
    epochs: int
    steps: int
    seconds: float


def train_jump(
    trajectories: Sequence[Trajectory],
    run_dir: str | Path,
    recipe: JumpRecipe | None = None,
    *,
    progress: Progress | None = None,
) -> JumpResult:
    """Train a jump network and write ``model.safetensors`` and ``metrics.jsonl`` into `run_dir`.

    Called again after an interruption, it goes on from the last checkpoint. Under torchrun every process calls it.

    Parameters
    ----------
    trajectories
        At least two runs, or molecules where `recipe.data.by` is ``group``: some are held out for validation. With
        ``source: flow`` frames with forces are enough (`distillase.datasets.trajectory.read_frames`).

    Raises
    ------
    DataError
        There is nothing to hold out, or the frames do not fit the jumps.
    InputError
        Something in the recipe is not allowed.
    """
    recipe, progress, run_dir = recipe or JumpRecipe(), progress or SilentProgress(), Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    keep_freed_memory()
    threads = torch.get_num_threads()
    if recipe.training.threads:
        torch.set_num_threads(recipe.training.threads)
    try:
        with join_world(recipe.training.engine.device) as world:
            return _train(trajectories, run_dir, recipe, world, progress, started)
    finally:
        torch.set_num_threads(threads)


def _train(
    trajectories: Sequence[Trajectory],
    run_dir: Path,
    recipe: JumpRecipe,
    world: World,
    progress: Progress,
    started: float,
) -> JumpResult:
    training, validation = hold_out(trajectories, recipe)
    network = prepare_jump(recipe, training).to(world.device(recipe.training.engine.device))
    kind = FlowTask if recipe.data.source == "flow" else JumpTask
    tables = [_table(recipe, runs) for runs in (training, validation)]
    example = tables[0].batch(np.arange(min(2, len(tables[0]))))
    engine = make_engine(kind(network, recipe.loss), recipe.training, example, world)
    loop = TrainLoop(
        engine, tables[0], tables[1], recipe.training, run_dir, seed=recipe.seed,
        fingerprint=_fingerprint(recipe, trajectories), progress=progress, spent=time.monotonic() - started,
    )  # fmt: skip
    state = loop.run()
    metrics = {"validation": state.best_figures}
    teachers = sorted({str(run.settings.get("teacher", "")) for run in trajectories})
    network.header = ModelHeader(
        teacher=", ".join(filter(None, teachers)),
        charges=tuple(sorted({run.charge for run in trajectories})),
        multiplicities=tuple(sorted({run.multiplicity for run in trajectories})),
        metrics=metrics,
    )
    if world.is_first:
        save_model(run_dir / MODEL, network)
        remove_checkpoints(run_dir)
    world.wait()
    return JumpResult(run_dir / MODEL, metrics, state.epoch, state.step, state.seconds)


def hold_out(trajectories: Sequence[Trajectory], recipe: JumpRecipe) -> tuple[list[Trajectory], list[Trajectory]]:
    """Training and validation runs; whole runs or whole molecules go one way."""
    by_group = recipe.data.by == "group"
    names = sorted({run.group if by_group else f"{run.group}\n{run.origin}" for run in trajectories})
    if len(names) < 2:
        raise DataError(
            f"There is one {'molecule' if by_group else 'trajectory'}, and nothing to hold out for validation. Make "
            "two or more with different seeds."
        )
    n = min(max(1, round(recipe.data.validation * len(names))), len(names) - 1)
    held = set(np.random.default_rng(recipe.seed).permutation(names)[:n].tolist())
    parts: tuple[list[Trajectory], list[Trajectory]] = ([], [])
    for run in trajectories:
        parts[(run.group if by_group else f"{run.group}\n{run.origin}") in held].append(run)
    return parts


def _table(recipe: JumpRecipe, runs: Sequence[Trajectory]) -> WindowTable | FlowTable:
    data, cutoff = recipe.data, recipe.model.cutoff
    dtype = DTYPES["float32"]
    if data.source == "flow":
        return FlowTable(
            runs, longest=data.longest, temperatures_K=data.temperatures_K, instant=data.instant, cutoff=cutoff,
            every=data.every, seed=recipe.seed, dtype=dtype,
        )  # fmt: skip
    return WindowTable(
        runs, spans=[k * data.timestep for k in data.k], every=data.every, cutoff=cutoff, rotations=data.rotations,
        seed=recipe.seed, dtype=dtype,
    )  # fmt: skip


def prepare_jump(recipe: JumpRecipe, runs: Sequence[Trajectory]) -> JumpNetwork:
    """A network with fresh or inherited weights, and the scales of the training runs."""
    elements = tuple(sorted({int(z) for run in runs for z in run.numbers}))
    model, data = recipe.model, recipe.data
    common = {
        "features": model.features, "layers": model.layers, "cutoff": model.cutoff, "n_basis": model.n_basis,
        "longest": data.t_max, "max_displacement": model.max_displacement, "force_head": model.force_head,
    }  # fmt: skip
    own = {
        "painn-jump": {"rank": model.rank},
        "egnn-jump": {"vectors": model.vectors},
        "transformer-jump": {"heads": model.heads, "vectors": model.vectors},
    }[model.architecture]
    # Initial weights come from torch's global generator; the user's is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = build_jump(model.architecture, elements, common | own, dtype=torch.float32)
    if model.start_from:
        inherit(network, load_jump(model.start_from), growing="readout")  # a new force head comes behind the others
        for name, parameter in network.named_parameters():
            parts = name.split(".")
            frozen = parts[0] in ("layers", "messages", "updates") and int(parts[1]) < model.freeze_layers
            parameter.requires_grad_(not frozen)
    for name, values in _scales(network, runs, recipe).items():
        getattr(network, name).copy_(values)
    return network


def _scales(network: JumpNetwork, runs: Sequence[Trajectory], recipe: JumpRecipe) -> dict[str, torch.Tensor]:
    """Root mean squares per element, over all three components, of what the network takes and gives."""
    t_max, flow = recipe.data.t_max, recipe.data.source == "flow"
    squares: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}

    def add(name: str, numbers: np.ndarray, values: np.ndarray) -> None:
        """Values (T, N, 3)."""
        species = np.searchsorted(network.elements, numbers)
        total = squares.setdefault(name, np.zeros(len(network.elements)))
        count = counts.setdefault(name, np.zeros(len(network.elements)))
        np.add.at(total, species, (values**2).mean(axis=(0, 2)) * len(values))
        np.add.at(count, species, len(values))

    for run in runs:
        masses = run.masses[:, None]
        if run.forces is not None:
            add("force_scale", run.numbers, run.forces)
        if flow and run.forces is not None:
            acceleration = run.forces / masses * FS**2
            add("acceleration_scale", run.numbers, acceleration)
            add("mean_velocity_scale", run.numbers, 0.5 * t_max * acceleration)
            thermal = KB * float(np.mean(recipe.data.temperatures_K)) / masses
            add("velocity_scale", run.numbers, np.broadcast_to(np.sqrt(thermal) * FS, run.positions[:1].shape))
            continue
        add("velocity_scale", run.numbers, run.velocities)
        for k in recipe.data.k:
            span = k * recipe.data.timestep
            n = round(span / run.interval)
            if n >= len(run):
                continue
            share = span / t_max
            drift = (run.positions[n:] - run.positions[:-n]) / span - run.velocities[:-n]
            add("mean_velocity_scale", run.numbers, drift / share)
            add("acceleration_scale", run.numbers, (run.velocities[n:] - run.velocities[:-n]) / span)
    found = {}
    for name, total in squares.items():
        values = np.sqrt(total / np.maximum(counts[name], 1))
        # An element that is not there, or did not move, gets the others' mean: nothing is divided by zero.
        found[name] = torch.from_numpy(np.where(values > 0, values, values[values > 0].mean() if values.any() else 1.0))
    return found


def _fingerprint(recipe: JumpRecipe, trajectories: Sequence[Trajectory]) -> str:
    settings = dataclasses.asdict(recipe)
    for name in ("checkpoint_seconds", "tensorboard", "wandb", "threads", "engine"):
        settings["training"].pop(name)
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    if recipe.model.start_from:
        digest.update(model_hash(recipe.model.start_from).encode())
    for run in trajectories:
        for array in (run.numbers, run.masses, run.positions, run.velocities, run.forces):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
