"""What `distillase cg refine` does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..ase_calcs.errors import InputError
from ..ase_calcs.progress import Progress
from ..ase_calcs.units import KCAL_PER_MOL
from ..datasets.proteins.beads import read_beads
from .config import dump_recipe
from .pipeline import available_cores
from .proteins import content_hash, frames_at, mean_frames, named_folder, prior_for
from .stages import write_text
from .summary import plain_table, render

if TYPE_CHECKING:
    from ..training.proteins.config import BeadRecipe
    from ..training.proteins.refine import RefineConfig, Refined


def refine_beads(
    dataset: Path,
    out: Path,
    recipe: BeadRecipe,
    config: RefineConfig,
    *,
    references: Sequence[str],
    means: Sequence[str],
    workers: int,
    progress: Progress,
) -> list[Path]:
    """`distillase cg refine`; the models of the last committee."""
    from ..training.proteins.refine import check_references, refine
    from ..training.proteins.run import split_frames

    proteins = frames_at(dataset, recipe.temperature)
    training, _, _ = split_frames(proteins, recipe.hold_out, recipe.validation)
    folders: dict[str, Path] = {}
    for text in references:
        name, folder = named_folder(text, [p.name for p in proteins], "--reference")
        if name in folders:
            raise InputError(f"`--reference` names two folders for {name}: {folders[name]} and {folder}. Give one.")
        folders[name] = folder
    check_references(proteins, folders, recipe)  # before anything that takes long
    known = [mean_frames(text, proteins, recipe.temperature) for text in means]
    out.mkdir(parents=True, exist_ok=True)
    prior = prior_for(dataset, out, recipe, training, config.picoseconds, progress)
    write_text(out / "config.yaml", dump_recipe(recipe, f"distillase cg refine {dataset}"))
    everything = read_beads(dataset) if recipe.network.energy_entropy else proteins
    rounds = refine(
        everything, prior.prior, folders, out, recipe, config, means=known, dataset_hash=content_hash(dataset),
        workers=workers or available_cores(), progress=progress,
    )  # fmt: skip
    for number, found in enumerate(rounds):
        progress.say(f"\nround {number}, from the committee before to the one after\n" + round_table(found) + "\n")
    return [out / f"model-{k}.safetensors" for k in range(config.members)]


def round_table(found: Sequence[Refined]) -> str:
    """One line for each protein that was explored."""
    table = plain_table(
        {
            "protein": "left",
            "frames": "right",
            "flagged": "right",
            "labelled": "right",
            "deviation, eV/Å": "right",
            "error, kcal/mol/Å per component": "right",
        }
    )
    for one in found:
        before, after = one.deviations
        errors = "" if one.errors is None else " → ".join(_with_spread(*error) for error in one.errors)
        table.add_row(
            one.name, str(one.visited), str(one.flagged), str(one.labelled), f"{before:.3f} → {after:.3f}", errors
        )
    return render(table)


def _with_spread(error: float, spread: float) -> str:
    text = f"{error / KCAL_PER_MOL:.2f}"
    return text if math.isnan(spread) else f"{text} ± {spread / KCAL_PER_MOL:.2f}"
