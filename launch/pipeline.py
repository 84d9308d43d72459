"""The road from molecules to a model with its report, stage by stage; each command of the CLI is a stretch of it.

Commands given one folder in turn make the files that `distill` makes in one go, so a run may be begun with `prepare`
on a laptop and labelled and trained elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..ase_calcs.errors import DataError, InputError, did_you_mean
from ..ase_calcs.progress import Progress
from ..ase_calcs.teachers import parse_teacher
from ..datasets.store import Dataset, write_dataset
from ..datasets.structure import Structure
from .config import Recipe, dump_recipe, flatten, to_plain
from .stages import (
    Stage,
    check_inputs,
    file_hash,
    is_file,
    named_input,
    read_record,
    run_stage,
    set_aside,
    write_text,
)

READ = Stage("read", "Reading molecules", ("molecules.h5", "intake.json"))
SAMPLE = Stage("sample", "Sampling geometries", ("geometries.h5",), ("sampling",))
LABEL = Stage("label", "Labelling", ("dataset.h5",), ("labels",))
TRAIN = Stage(
    "train",
    "Training",
    ("model.safetensors", "metrics.jsonl", "splits.json"),
    ("checkpoint.pt", "checkpoint.previous.pt", "tensorboard"),
)
REPORT = Stage("report", "Writing the report", ("report.html", "report.json"), ("worst_forces.pml",))
STAGES = (READ, SAMPLE, LABEL, TRAIN, REPORT)

# Keys that say how the work is done and not what comes out; they may change between two calls.
HOW_NOT_WHAT = (
    "labelling.workers",
    "labelling.scheduler",
    "labelling.tls",
    "labelling.slurm",
    "labelling.batch_seconds",
    "labelling.crash_retries",
    "labelling.retry_refused",
    "training.checkpoint_seconds",
    "training.threads",
    "training.tensorboard",
    "training.wandb",
    "training.engine.zero",
    "training.engine.device",
)


@dataclass(frozen=True)
class Run:
    """One folder, one recipe.

    Attributes
    ----------
    folder
        Where everything is written.
    recipe
        The complete recipe.
    progress
        Where the stages report to.
    """

    folder: Path
    recipe: Recipe
    progress: Progress


def begin(run: Run, stages: Sequence[Stage], restart_from: str = "") -> Run:
    """Check that the folder and the recipe fit, and write ``config.yaml``.

    Parameters
    ----------
    stages
        The stages that the command will go through.
    restart_from
        Name of the stage that is done again, with those after it; "" for none.

    Returns
    -------
    Run
        With input files as absolute paths, so that its ``config.yaml`` can be run from anywhere.

    Raises
    ------
    InputError
        Unknown stage or teacher, or a folder made with other settings.
    """
    parse_teacher(run.recipe.teacher)
    run.folder.mkdir(parents=True, exist_ok=True)
    run = replace(run, recipe=replace(run.recipe, molecules=tuple(map(_absolute, run.recipe.molecules))))
    settings = stage_settings(run.recipe)
    if restart_from:
        _restart(run, stages, restart_from)
    for stage in stages:
        check_inputs(run.folder, stage, settings[stage.name], partial=True)
    header = (
        f"The complete recipe of this run. Again: distillase distill --recipe {run.folder.name}/config.yaml --out …"
    )
    write_text(run.folder / "config.yaml", dump_recipe(run.recipe, header))
    (run.folder / "error.log").unlink(missing_ok=True)  # of an earlier call
    return run


def stage_settings(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What each stage's outputs depend on, as flat recipe keys (files of earlier stages come on top)."""
    how = tuple(f"{key}." for key in HOW_NOT_WHAT)
    flat = {key: value for key, value in flatten(to_plain(recipe)).items() if not f"{key}.".startswith(how)}

    def part(*sections: str) -> dict[str, Any]:
        return {key: value for key, value in flat.items() if key.split(".")[0] in sections}

    return {
        READ.name: {**part("seed", "allow_no_hydrogen"), "molecules": [named_input(item) for item in recipe.molecules]},
        SAMPLE.name: part("seed", "sampling", "teacher"),
        LABEL.name: part("teacher", "labelling"),
        TRAIN.name: part("seed", "split", "model", "training"),
        REPORT.name: part("report", "teacher"),
    }


def distill(run: Run) -> Path:
    """All stages; returns the report."""
    dataset = label(run, prepare(run))
    model = train_student(run, dataset)
    _compile_student(run, model)
    return validate(run, model, dataset, read_splits(run.folder))


def _compile_student(run: Run, model: Path) -> None:
    """Leave the package beside the model that calculators find, where the training step was compiled too."""
    from ..ase_calcs.calculator import PotentialCalculator
    from ..training.engine import wants_compilation

    if not wants_compilation(run.recipe.training):
        return
    run.progress.say("compiling the student for MD (a minute or two; once for every model and processor)")
    PotentialCalculator(model, compile="on")


def prepare(run: Run) -> Path:
    """Molecules in, geometries out (``geometries.h5``, not labelled)."""
    return _sample(run, _read(run))


def _read(run: Run) -> Path:
    from ..datasets.composition import composition_check
    from ..datasets.readers import read_structures
    from .summary import show_composition, show_intake

    recipe, target = run.recipe, run.folder / "molecules.h5"
    if not recipe.molecules:
        raise InputError(
            "There are no molecules to work on: name files (.smi .sdf .xyz .extxyz .db .pdb .h5) or SMILES after the "
            "command, or a list `molecules:` in the recipe."
        )

    def work() -> Mapping[str, Any]:
        intake = read_structures(list(recipe.molecules), seed=recipe.seed, allow_no_hydrogen=recipe.allow_no_hydrogen)
        show_intake(intake, run.progress)
        refusals = to_plain(intake.refusals)
        write_text(
            run.folder / "intake.json",
            json.dumps({"refusals": refusals, "notes": intake.notes}, indent=1, ensure_ascii=False, default=str),
        )
        if not intake.structures:
            raise DataError(f"None of the molecules could be used; the reasons are in {run.folder / 'intake.json'}.")
        show_composition(composition_check(intake.structures, allow_no_hydrogen=recipe.allow_no_hydrogen), run.progress)
        provenance = {"sources": [named_input(item) for item in recipe.molecules], "seed": recipe.seed}
        write_dataset(target, ((s, None) for s in intake.structures), provenance=provenance)
        return {"accepted": len(intake.structures), "refused": len(refusals)}

    result = run_stage(run.folder, READ, stage_settings(recipe)[READ.name], work, run.progress)
    run.progress.say(f"  {result['accepted']} accepted, {result['refused']} refused")
    return target


def _sample(run: Run, molecules: Path) -> Path:
    from ..datasets.sampling import sample_geometries

    recipe, target = run.recipe, run.folder / "geometries.h5"
    source, structures = _load(molecules)

    def work() -> Mapping[str, Any]:
        geometries = sample_geometries(
            structures,
            recipe.sampling,
            teacher=recipe.teacher,
            seed=recipe.seed,
            workers=recipe.labelling.workers or available_cores(),
            progress=run.progress,
            cache_dir=run.folder / "sampling",
        )
        provenance = {"molecules": source, "seed": recipe.seed, "sampling": to_plain(recipe.sampling)}
        write_dataset(target, ((s, None) for s in geometries), provenance=provenance)
        return {"geometries": len(geometries)}

    inputs = {**stage_settings(recipe)[SAMPLE.name], "source.molecules": source}
    result = run_stage(run.folder, SAMPLE, inputs, work, run.progress)
    run.progress.say(f"  {result['geometries']} geometries of {len(structures)} molecules")
    return target


def label(run: Run, geometries: Path) -> Path:
    """Energy, forces, … of every geometry from the teacher (``dataset.h5``)."""
    from ..datasets.labelling import label_structures
    from .summary import count_reasons

    recipe = run.recipe
    source, structures = _load(geometries)

    def work() -> Mapping[str, Any]:
        result = label_structures(
            structures,
            run.folder,
            teacher=recipe.teacher,
            config=recipe.labelling,
            progress=run.progress,
            provenance={"geometries": source, "seed": recipe.seed},
        )
        with Dataset(result.dataset) as dataset:
            frames = len(dataset)
        return {
            "frames": frames,
            "labelled": result.n_labelled,
            "reused": result.n_reused,
            "refused": count_reasons(reason for _, _, reason in result.refused),
            "seconds": result.seconds,
            "startup_seconds": result.startup_seconds,
        }

    inputs = {**stage_settings(recipe)[LABEL.name], **_stamp(recipe), "source.geometries": source}
    result = run_stage(run.folder, LABEL, inputs, work, run.progress)
    run.progress.say(
        f"  {result['frames']} of {len(structures)} geometries labelled "
        f"({result['labelled']} now, {result['reused']} found from an earlier call)"
    )
    for reason, count in result["refused"].items():
        run.progress.say(f"  refused {count}: {reason}")
    return run.folder / "dataset.h5"


def train_student(run: Run, dataset: Path) -> Path:
    """A network on the dataset (``model.safetensors``, ``metrics.jsonl``, ``splits.json``).

    Under torchrun all processes call this. The first finds out whether anything is to be done, and tells the others.
    """
    from ..training.run import TrainResult, train
    from ..training.world import join_world

    recipe, model, begun = run.recipe, run.folder / "model.safetensors", False

    def learn() -> TrainResult:
        return train(
            dataset,
            run.folder,
            model=recipe.model,
            training=recipe.training,
            split=recipe.split,
            seed=recipe.seed,
            progress=run.progress,
        )

    def work() -> Mapping[str, Any]:
        nonlocal begun
        begun = bool(world.share_object(True))
        return {"metrics": to_plain(learn().metrics)}

    with join_world(recipe.training.engine.device) as world:
        if not world.is_first:
            if world.share_object(None):
                learn()
            return model
        inputs = {**stage_settings(recipe)[TRAIN.name], "source.dataset": _content_hash(dataset)}
        result = run_stage(run.folder, TRAIN, inputs, work, run.progress)
        if not begun:
            world.share_object(False)
    for part in ("test", "validation"):
        if (errors := result["metrics"].get(part)) and "force_mae" in errors:
            run.progress.say(
                f"  {part} frames: forces {1000 * errors['force_mae']:.1f} meV/Å, energy "
                f"{1000 * errors['energy_mae_per_atom']:.2f} meV/atom (mean absolute errors against the labels)"
            )
            break
    return model


def validate(run: Run, model: Path, dataset: Path, splits: Mapping[str, np.ndarray]) -> Path:
    """The report on a model against a labelled dataset (``report.html``)."""
    from ..training.report import write_report

    recipe = run.recipe

    def work() -> None:
        write_report(
            run.folder,
            model=model,
            dataset=dataset,
            splits={name: indices.tolist() for name, indices in splits.items()},
            teacher=recipe.teacher,
            config=recipe.report,
            progress=run.progress,
        )

    inputs = {
        **stage_settings(recipe)[REPORT.name],
        "source.model": file_hash(model),
        "source.dataset": _content_hash(dataset),
        "source.frames": {name: len(indices) for name, indices in splits.items()},
    }
    run_stage(run.folder, REPORT, inputs, work, run.progress)
    return run.folder / "report.html"


def read_splits(folder: Path) -> dict[str, np.ndarray]:
    """``splits.json`` of a run folder: frame indices of train, validation and test."""
    path = folder / "splits.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): np.asarray(indices, dtype=np.int64) for name, indices in tree.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path} could not be read ({error}); train again with --restart-from train.") from error


def splits_for(run: Run, model: Path, dataset: Path) -> dict[str, np.ndarray]:
    """The splits that a model was trained with if this is its dataset, else every frame as held out.

    Looked for as ``splits.json`` in the run folder and beside the model, with the record of the training that made it.
    """
    content = _content_hash(dataset)
    for folder in (run.folder, model.parent):
        record = read_record(folder, TRAIN)
        if record and record["inputs"].get("source.dataset") == content and (folder / "splits.json").is_file():
            run.progress.say(f"Errors are those of the frames held out in {folder / 'splits.json'}")
            return read_splits(folder)
    with Dataset(dataset) as frames:
        run.progress.say(
            f"All {len(frames)} frames count as held out: no record says that the model was trained on them"
        )
        return {"test": np.arange(len(frames))}


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _restart(run: Run, stages: Sequence[Stage], name: str) -> None:
    names = [stage.name for stage in stages]
    if name not in names:
        raise InputError(f"There is no stage `{name}` to restart from{did_you_mean(name, names)}")
    again = [stage for stage in STAGES if stage in stages or read_record(run.folder, stage) is not None]
    again = again[[stage.name for stage in again].index(name) :]
    # Labels are found again by the hash of their geometry, so those of the same teacher stay.
    old = read_record(run.folder, LABEL)
    same_teacher = old is not None and all(old["inputs"].get(k) == v for k, v in _stamp(run.recipe).items())
    keep = LABEL.leftovers if same_teacher else ()
    target = set_aside(run.folder, again, keep)
    if target:
        run.progress.say(f"What was there of {', '.join(stage.name for stage in again)} is now in {target}")


def _stamp(recipe: Recipe) -> dict[str, str]:
    """Whose labels they are: name, version and every setting of the teacher."""
    from ..datasets.labelling.config import TeacherStamp

    return {f"source.teacher.{key}": value for key, value in TeacherStamp.of(recipe.teacher).to_json().items()}


def _load(path: Path) -> tuple[str, list[Structure]]:
    """Content hash and structures of a dataset file, labelled or not."""
    with Dataset(path) as dataset:
        return dataset.content_hash, [dataset.structure(i) for i in range(len(dataset))]


def _content_hash(path: Path) -> str:
    with Dataset(path) as dataset:
        return dataset.content_hash


def _absolute(item: str) -> str:
    return str(Path(item).resolve()) if is_file(item) else item


__all__ = ["STAGES", "Run", "begin", "distill", "label", "prepare", "stage_settings", "train_student", "validate"]
