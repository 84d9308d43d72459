"""`distillase cg report`: a coarse-grained force field against the dynamics it was made from, on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..ase_calcs.errors import DataError, InputError
from ..ase_calcs.progress import Progress
from ..datasets.proteins.beads import TOLERANCE, BeadFrames, load_npz, read_beads
from ..datasets.proteins.mean_force import load_mean_forces
from ..datasets.store import Dataset


def report(
    model_file: Path,
    dataset: Path,
    folder: Path,
    config: Any,
    *,
    natives: Sequence[str],
    means: Sequence[str],
    others: Sequence[str],
    parts: bool,
    progress: Progress,
) -> Path:
    """Measure, write, and say where."""
    from ..ase_calcs.modelfile import load_coarse_grained, model_hash
    from ..ase_calcs.proteins.chains import read_beads_pdb
    from ..training.proteins.judge import Candidate, Reference, candidates_of, judge
    from ..training.proteins.judge_page import write_report

    model = load_coarse_grained(model_file)
    frames, content = _frames(dataset)
    here = [known for p in frames if len((known := p.at(model.temperature)).positions) > 1]
    if not here:
        raise DataError(f"{dataset} has no frames at {model.temperature:g} K, the temperature of {model_file.name}.")
    native = {name: read_beads_pdb(file).positions for name, file in _by_protein(natives, here, "--native").items()}
    for p in here:
        if p.name in native and native[p.name].shape != p.positions.shape[1:]:
            raise InputError(
                f"The native structure of {p.name} has {len(native[p.name])} residues, its frames "
                f"{p.positions.shape[1]}."
            )
    averaged = {name: load_mean_forces(file) for name, file in _by_protein(means, here, "--mean-forces").items()}
    compared = {name: load_coarse_grained(file) for name, file in _named(others).items()}
    for name, other in compared.items():
        if abs(other.temperature - model.temperature) > TOLERANCE:
            raise InputError(
                f"{name} holds at {other.temperature:g} K, {model_file.name} at {model.temperature:g} K: they cannot "
                "be judged by one reference."
            )
    references = [Reference(p, native.get(p.name), averaged.get(p.name)) for p in here]
    candidates = (
        candidates_of(model, compared)
        if parts
        else [Candidate("hybrid" if model.network is not None else "prior", model)]
        + [Candidate(name, other) for name, other in compared.items()]
    )
    judged = judge(references, candidates, config, progress=progress)
    learned = model.header.metrics.get("trained_on")
    for one in judged:
        sequence = one.numbers["sequence"]
        one.numbers["seen"] = None if learned is None else sequence in learned
        one.numbers["means_learned"] = int(model.header.metrics.get("mean_forces", {}).get(sequence, 0))
    provenance = {
        "model": model_file.name, "model_hash": model_hash(model_file), "dataset": dataset.name,
        "dataset_hash": content, "others": {name: Path(file).name for name, file in _named(others).items()},
    }  # fmt: skip
    page = write_report(folder, judged, config, provenance)
    for one in judged:
        progress.say(f"\n{one.numbers['name']}")
        for finding in _findings(one):
            progress.say(f"  {finding}")
    progress.say(f"\n{page}")
    return page


def _findings(one: Any) -> list[str]:
    from ..training.proteins.judge_page import findings

    mark = {"trust": "ok  ", "care": "care", "distrust": "bad ", "unmeasured": "-   "}
    return [f"{mark[finding['level']]} {finding['text']}" for finding in findings(one)]


def _frames(path: Path) -> tuple[list[BeadFrames], str]:
    """Of a dataset or of an NPZ file, and a hash of what is in it."""
    if path.suffix == ".npz":
        from hashlib import blake2b

        return load_npz(path), blake2b(path.read_bytes(), digest_size=16).hexdigest()
    with Dataset(path) as data:
        content = data.content_hash
    return read_beads(path), content


def _named(texts: Sequence[str]) -> dict[str, str]:
    """``NAME=FILE``; a file alone is named after its folder."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        name = name or Path(file).resolve().parent.name
        if name in found:
            raise InputError(f"Two force fields are called {name}. Write NAME=FILE, with another name for each.")
        found[name] = file
    return found


def _by_protein(texts: Sequence[str], proteins: Sequence[BeadFrames], option: str) -> dict[str, str]:
    """``NAME=FILE``, where the name goes without saying if there is one protein."""
    names = [p.name for p in proteins]
    found = {}
    for text in texts:
        name, _, file = text.rpartition("=")
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            raise InputError(
                f"`{option} {text}` names no protein of the dataset. Write NAME=FILE, with {', '.join(names)}."
            )
        found[name] = file
    return found
