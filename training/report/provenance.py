"""Where the numbers come from, and what about the data limits how far they reach."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ...ase_calcs.modelfile import model_hash
from ...ase_calcs.teachers import teacher_version
from ...datasets.store import Dataset
from .config import ReportConfig
from .speed import machine
from .verdict import FEW_FRAMES, Finding

PACKAGES = ("distillase", "torch", "numpy", "ase", "rdkit", "tblite")


def provenance(
    model: Path, header: Mapping[str, Any], dataset: Dataset, teacher: str | None, config: ReportConfig
) -> dict[str, Any]:
    """Model, dataset, teacher, seed, versions, machine, date."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "model": model.name,
        "model_hash": model_hash(model),
        "model_header": dict(header),
        "dataset": dataset.path.name,
        "dataset_hash": dataset.content_hash,
        "dataset_frames": len(dataset),
        "dataset_provenance": dataset.provenance,
        "trained_on_this_dataset": header.get("dataset_hash") == dataset.content_hash,
        "teacher": teacher,
        "teacher_version": _version(teacher),
        "report_seed": config.seed,
        "versions": versions,
        "machine": machine(),
        "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(teacher: str | None) -> str | None:
    try:
        return None if teacher is None else teacher_version(teacher)
    except Exception as error:  # the teacher's package may be missing; the report does without
        return f"unknown ({error})"


def data_remarks(numbers: Mapping[str, Any], dataset: Dataset, parts: Mapping[str, np.ndarray]) -> tuple[Finding, ...]:
    """What about the held-out frames makes their numbers less telling."""
    found = []
    used = numbers["held_out_part"]
    held, train = parts[used], parts.get("train", np.zeros(0, dtype=int))
    n = numbers["held_out"]["n_frames"]
    if used == "validation":
        found.append(Finding("care", "There are no test frames; the validation frames chose the weights and flatter."))
    if used == "train":
        found.append(Finding("distrust", "There are no held-out frames; these are errors on training data."))
    if n < FEW_FRAMES:
        found.append(Finding("care", f"Only {n} held-out frames: the errors themselves are uncertain."))
    refused = numbers["held_out"]["n_refused"]
    if refused:
        found.append(Finding("care", f"The student refused {refused} of the held-out frames: see the list below."))
    if used != "train" and len(train):
        group, origin = np.asarray(dataset.group).astype(str), np.asarray(dataset.origin).astype(str)
        seen = set(zip(group[train], origin[train], strict=True))
        shared = float(np.mean([pair in seen for pair in zip(group[held], origin[held], strict=True)]))
        if shared > 0:
            found.append(
                Finding(
                    "care",
                    f"{100 * shared:.0f} % of the held-out frames come from trajectories that were trained on; frames "
                    "near in time resemble each other and flatter the student.",
                )
            )
        known = set(group[train])
        if all(name in known for name in set(group[held])):
            found.append(Finding("trust", "Held-out frames are of molecules seen in training; nothing here speaks "
                                          "of other molecules."))  # fmt: skip
    return tuple(found)


def composition(dataset: Dataset) -> dict[str, Any]:
    """Elements, charges and sizes of the whole dataset."""
    numbers, sizes = dataset.numbers, np.diff(dataset.offsets)
    rows = []
    for number in np.unique(numbers):
        per_frame = np.add.reduceat((numbers == number).astype(int), dataset.offsets[:-1])
        rows.append(
            {
                "element": chemical_symbols[int(number)],
                "atoms": int((numbers == number).sum()),
                "share": float((numbers == number).mean()),
                "frames": int((per_frame > 0).sum()),
                "per_frame": float(per_frame[per_frame > 0].mean()),
                "most": int(per_frame.max()),
            }
        )
    return {
        "rows": rows,
        "n_atoms": len(numbers),
        "n_frames": len(dataset),
        "n_molecules": len(set(map(str, dataset.group))),
        "atoms_per_frame": float(sizes.mean()),
        "most_atoms": int(sizes.max()),
        "hydrogen_share": float((numbers == 1).mean()),
        "charges": _counts(dataset.charge),
        "multiplicities": _counts(dataset.multiplicity),
    }


def _counts(values: np.ndarray) -> dict[str, int]:
    found, counts = np.unique(np.asarray(values, dtype=int), return_counts=True)
    return {str(value): int(count) for value, count in zip(found, counts, strict=True)}
