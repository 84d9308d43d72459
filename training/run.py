"""From a labelled dataset to a model file."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..ase_calcs.errors import DataError, InputError
from ..ase_calcs.layers import ShortRange
from ..ase_calcs.modelfile import DTYPES, build_potential, load_model, model_hash, save_model
from ..ase_calcs.potential import ModelHeader, Potential
from ..ase_calcs.progress import Progress, SilentProgress
from ..datasets.splits import split_indices
from ..datasets.store import Dataset
from .batches import Batch, FrameTable, SharedTable
from .checkpoint import remove_checkpoints
from .config import ModelConfig, SplitConfig, TrainConfig
from .engine import make_engine
from .inherit import inherit
from .loop import TrainLoop, evaluate_table
from .memory import fitting_edges
from .metrics import INDEX, figures
from .task import PotentialTask
from .world import World, join_world

MODEL = "model.safetensors"
SPLITS = "splits.json"
FRAMES = ".prepared"  # frames that several processes prepare for each other, while they train


@dataclass(frozen=True)
class TrainResult:
    """What a training left behind.

    Attributes
    ----------
    model
        Path of ``model.safetensors``.
    metrics
        ``{"validation": {...}, "test": {...}}`` in eV and Å, of the saved weights.
    splits
        Frame indices of train, validation and test.
    epochs, steps, seconds
        How long it took.
    """

    model: Path
    metrics: dict[str, dict[str, float]]
    splits: dict[str, np.ndarray]
    epochs: int
    steps: int
    seconds: float


def train(
    dataset: str | Path,
    run_dir: str | Path,
    *,
    model: ModelConfig | None = None,
    training: TrainConfig | None = None,
    split: SplitConfig | None = None,
    splits: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a student and write ``model.safetensors``, ``metrics.jsonl`` and ``splits.json`` into `run_dir`.

    Called again after an interruption, it goes on from the last checkpoint. Under torchrun every process calls it.

    Parameters
    ----------
    dataset
        HDF5 with energies and forces.
    splits
        Frame indices of ``train``, ``validation`` and ``test`` (may be absent), instead of a split by `split`.
    seed
        Of the split, the initial weights and the order of batches.

    Raises
    ------
    DataError
        The dataset does not hold what the loss needs, or cannot be split.
    InputError
        Something in the recipe is not allowed.
    """
    model, training, split = model or ModelConfig(), training or TrainConfig(), split or SplitConfig()
    progress = progress or SilentProgress()
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    threads = torch.get_num_threads()
    if training.threads:
        torch.set_num_threads(training.threads)
    try:
        with join_world(training.engine.device) as world, Dataset(dataset) as data:
            parts = _split(data, split, splits, seed)
            return _train(data, run_dir, model, training, parts, seed, progress, world)
    finally:
        torch.set_num_threads(threads)


def _train(
    data: Dataset,
    run_dir: Path,
    model: ModelConfig,
    training: TrainConfig,
    parts: dict[str, np.ndarray],
    seed: int,
    progress: Progress,
    world: World,
) -> TrainResult:
    if model.charges and training.loss.charges + training.loss.dipole == 0:
        raise InputError(
            "`model.charges` is on, but neither `training.loss.charges` nor `training.loss.dipole` has a weight: the "
            "charges would never be trained. Give one of them a weight."
        )
    if not model.charges and training.loss.charges + training.loss.dipole > 0:
        raise InputError(
            "`training.loss.charges` or `.dipole` has a weight, but `model.charges` is off: the student has no charges "
            "to train. Set `model.charges: true`."
        )
    started = time.monotonic()
    dtype = DTYPES[model.dtype]
    elements = _elements(data, world)
    labels = tuple(name for name in ("stress", "charges", "dipole") if getattr(training.loss, name) > 0)

    def table(part: str) -> FrameTable | SharedTable:
        settings: dict[str, Any] = {
            "cutoff": model.cutoff, "labels": labels, "dtype": dtype, "progress": progress,
        }  # fmt: skip
        if world.size == 1:
            return FrameTable(data, parts[part], **settings)
        return SharedTable(data, parts[part], world, run_dir / FRAMES, **settings)

    tables = {name: table(name) for name in ("train", "validation")}
    potential = prepare_potential(model, elements, tables["train"], seed=seed).to(world.device(training.engine.device))
    task = PotentialTask(potential, training.loss, precision=training.precision)
    fingerprint = _fingerprint(data.content_hash, parts, model, training, seed)
    if training.compile != "off":
        progress.say("preparing the training step (compiling it takes a minute or two where that pays)")
    engine = make_engine(task, training, tables["train"].batch(np.arange(min(2, len(tables["train"])))), world)
    fitting = fitting_edges(
        task, tables["train"], training.batch_edges, training.batch_frames, world, progress,
        compiled=getattr(engine, "compiled", False),
    )  # fmt: skip
    loop = TrainLoop(
        engine, tables["train"], tables["validation"], training, run_dir, largest_batch=fitting,
        seed=seed, fingerprint=fingerprint, progress=progress, spent=time.monotonic() - started,
    )  # fmt: skip
    state = loop.run()
    metrics = {"validation": state.best_figures}
    if len(parts.get("test", ())):
        sums, _ = evaluate_table(engine, table("test"), training, state.largest_evaluated, progress)
        metrics["test"] = figures(sums) | {"loss": float(sums[INDEX["loss"]])}
    potential.header = _header(data, metrics)
    path = run_dir / MODEL
    if world.is_first:
        save_model(path, potential)
        _write_json(run_dir / SPLITS, {name: indices.tolist() for name, indices in parts.items()})
        remove_checkpoints(run_dir)
        if world.size > 1:
            shutil.rmtree(run_dir / FRAMES, ignore_errors=True)
    world.wait()  # nobody goes on to use a file that is not there yet
    return TrainResult(path, metrics, parts, state.epoch, state.step, state.seconds)


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep what is freed for the next step; elsewhere nothing happens.

    Every step allocates the same tens of megabytes. Left alone, glibc hands them back to the kernel and takes them
    again, page by page: 2 000 page faults a step, and 10 to 20 % of its time on two cores of an EPYC.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mmap_threshold, trim_threshold, top_pad = -3, -1, -2  # malloc.h
        mallopt(mmap_threshold, 32 << 20)  # the largest value glibc takes
        mallopt(trim_threshold, 1 << 30)
        mallopt(top_pad, 64 << 20)


def _elements(data: Dataset, world: World) -> tuple[int, ...]:
    """Atomic numbers in the whole dataset; each process looks at a part."""
    there = torch.zeros(256, dtype=torch.float64)
    there[np.unique(data.rows("numbers", np.array_split(np.arange(data.n_atoms), world.size)[world.rank]))] = 1.0
    return tuple(world.sum(there).nonzero().flatten().tolist())


def prepare_potential(
    model: ModelConfig, elements: tuple[int, ...], table: FrameTable | SharedTable, *, seed: int
) -> Potential:
    """A network with fresh weights whose constants are fitted to the training frames.

    Atomic reference energies by least squares, the energy scale from the forces, and the closest distances of every
    pair of elements, where the short-range repulsion takes over. A network that starts from another keeps that one's
    scale and knowledge of close distances; its reference energies explain what the other leaves of the new energies.
    """
    potential = fresh_potential(model, elements, seed=seed)
    closest = table.closest_distances(elements)
    short_range = getattr(potential, "short_range", None)
    if model.start_from:
        inherit(potential, load_model(model.start_from, dtype=potential.dtype))
        potential.atomic_energies.zero_()
        potential.atomic_energies.copy_(reference_energies(table, elements, minus=_energies(potential, table)))
        if isinstance(short_range, ShortRange):
            closest = torch.minimum(closest, short_range.closest_distances().double())
    else:
        potential.atomic_energies.copy_(reference_energies(table, elements))
        potential.energy_scale.fill_(max(table.force_scale(), 1e-3))
    if isinstance(short_range, ShortRange):
        short_range.set_closest_distances(closest)
    return potential


def _energies(potential: Potential, table: FrameTable | SharedTable) -> torch.Tensor:
    """(F,) float64, eV: of every frame of a table, by the network as it stands."""

    def of(batch: Batch) -> torch.Tensor:
        species = potential.species_of_number[batch.numbers]
        terms, _ = potential.predict(
            species, batch.system, batch.edges, batch.vectors, batch.charge, batch.multiplicity,
            derivatives=False, create_graph=False,
        )  # fmt: skip
        return torch.zeros_like(batch.energy).index_add(0, batch.system, terms.energies)[:, None]

    with torch.no_grad():
        return table.over_frames(of, 1)[:, 0]


def fresh_potential(model: ModelConfig, elements: tuple[int, ...], *, seed: int) -> Potential:
    """The network that a recipe describes, before any data is seen."""
    hyperparameters: dict[str, Any] = {
        "features": model.features,
        "layers": model.layers,
        "cutoff": model.cutoff,
        "n_basis": model.n_basis,
        "rank": model.rank,
        "charges": model.charges,
    }
    # Initial weights come from torch's global generator; the user's is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_potential(model.architecture, elements, hyperparameters, dtype=DTYPES[model.dtype])


def reference_energies(
    table: FrameTable | SharedTable, elements: tuple[int, ...], *, minus: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """(S,) float64, eV: the atomic energies that explain the total energies, less `minus` (F,), best (minimum norm
    where they are free).
    """
    solution, *_ = np.linalg.lstsq(table.compositions(elements), (table.energy - minus).numpy(), rcond=None)
    return torch.from_numpy(solution)


def _split(
    data: Dataset, split: SplitConfig, given: Mapping[str, np.ndarray] | None, seed: int
) -> dict[str, np.ndarray]:
    if given is None:
        fractions = {
            "train": 1.0 - split.validation - split.test,
            "validation": split.validation,
            "test": split.test,
        }
        return split_indices(data, by=split.by, fractions=fractions, seed=seed)
    parts = {name: np.asarray(indices, dtype=np.int64) for name, indices in given.items()}
    for name in ("train", "validation"):
        if not len(parts.get(name, ())):
            raise DataError(f"The split has no `{name}` frames; training needs some.")
    for name, indices in parts.items():
        if indices.size and (indices.min() < 0 or indices.max() >= len(data)):
            raise DataError(f"The split `{name}` names frame {indices.max()}, but the dataset has {len(data)} frames.")
    together = np.concatenate(list(parts.values()))
    if len(np.unique(together)) != len(together):
        raise DataError("The split puts a frame into two parts (or into one twice); every frame belongs to one part.")
    return parts


def _header(data: Dataset, metrics: dict[str, dict[str, float]]) -> ModelHeader:
    provenance = data.provenance
    return ModelHeader(
        teacher=str(provenance.get("teacher", "")),
        teacher_version=str(provenance.get("teacher_version", "")),
        dataset_hash=data.content_hash,
        charges=tuple(sorted({int(q) for q in np.unique(data.charge)})),
        multiplicities=tuple(sorted({int(m) for m in np.unique(data.multiplicity)})),
        metrics=metrics,
    )


def _fingerprint(
    content_hash: str, parts: dict[str, np.ndarray], model: ModelConfig, training: TrainConfig, seed: int
) -> str:
    """Hash of everything a checkpoint depends on. How often it is saved or logged is not part of it."""
    settings = dataclasses.asdict(training)
    for name in ("checkpoint_seconds", "tensorboard", "wandb", "threads", "engine"):
        settings.pop(name)
    tree = {
        "dataset": content_hash,
        "splits": {name: indices.tolist() for name, indices in parts.items()},
        "model": dataclasses.asdict(model),
        "training": settings,
        "seed": seed,
    }
    if model.start_from:
        tree["start"] = model_hash(model.start_from)
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def _write_json(path: Path, tree: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(tree, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
