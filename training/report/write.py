"""`write_report`: measures a student and writes what came out as a page, as JSON and as a PyMOL script."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ase_calcs.calculator import PotentialCalculator
from ...ase_calcs.errors import DataError
from ...ase_calcs.modelfile import read_header
from ...ase_calcs.progress import Progress, SilentProgress
from ...datasets.store import Dataset
from .config import ReportConfig
from .evaluate import Evaluation, evaluate
from .statistics import hydrogen_errors, per_element, per_molecule, split_errors, worst_frames
from .verdict import Verdict, drift_remarks, headline_values, judge

PARTS = ("test", "validation", "train")  # held-out numbers come from the first that has frames


@dataclass(frozen=True)
class Material:
    """Everything that the page is made of."""

    numbers: dict[str, Any]
    verdict: Verdict
    held_out: Evaluation
    dataset: Dataset
    splits: Mapping[str, np.ndarray]
    config: ReportConfig
    learning: list[dict[str, Any]]
    md: Any
    nve: Any


def write_report(
    run_dir: str | Path,
    *,
    model: str | Path,
    dataset: str | Path,
    splits: Mapping[str, Sequence[int] | np.ndarray],
    teacher: str | None = None,
    config: ReportConfig | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure a student against its teacher and write ``report.html``.

    Parameters
    ----------
    run_dir
        Where ``report.html``, ``report.json`` (every number printed) and ``worst_forces.pml`` go, and where
        ``metrics.jsonl`` is looked for; without one there are no learning curves.
    model, dataset
        Model file and labelled dataset.
    splits
        Part → indices of its frames: any of ``train``, ``validation`` and ``test``. Held-out numbers come from
        ``test``; without one from ``validation``, which the report then says and counts against the student.
    teacher
        Name in the teacher registry; None leaves out what needs new teacher calls (MD comparison, speed ratio).
    config
        See `ReportConfig`.
    progress
        Where it reports to.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    DataError
        The dataset has no labelled frame that the student takes, or `splits` point outside it.
    ModelFileError
        The model cannot be read.
    """
    from .page import render_page
    from .pictures import pymol_cases
    from .pymol import pymol_script

    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    config = config or ReportConfig()
    progress = progress or SilentProgress()
    began = time.perf_counter()
    with Dataset(dataset) as data:
        material = _measure(folder, Path(model), data, splits, teacher, config, progress)
        material.numbers["seconds"] = time.perf_counter() - began
        page = render_page(material)
        script = pymol_script(pymol_cases(material))
    _write(folder / "worst_forces.pml", script)
    _write(folder / "report.json", json.dumps(json_ready(material.numbers), indent=1, ensure_ascii=False) + "\n")
    _write(folder / "report.html", page)
    return folder / "report.html"


def _measure(
    folder: Path,
    model: Path,
    data: Dataset,
    splits: Mapping[str, Sequence[int] | np.ndarray],
    teacher: str | None,
    config: ReportConfig,
    progress: Progress,
) -> Material:
    from .provenance import composition, data_remarks, provenance
    from .simulate import compare_md, pick_starts, run_drift, time_all

    rng = np.random.default_rng(config.seed)
    student = PotentialCalculator(model, compile=config.compile)
    parts = {name: np.asarray(splits[name], dtype=int) for name in PARTS if len(splits.get(name, ())) > 0}
    if not parts:
        raise DataError(f"No frames were given to evaluate; `splits` should name some of {', '.join(PARTS)}.")
    evaluations: dict[str, Evaluation] = {}
    for name, indices in parts.items():
        most = config.max_frames if name != "train" else max(1, config.max_frames // 4)
        with progress.task(f"Evaluating the {name} frames", 1.0) as task:
            evaluations[name] = evaluate(student, data, indices, most=most, rng=rng, task=task)
    used = next(iter(parts))
    held = evaluations[used]
    threshold = config.angle_threshold
    split_rows = {name: split_errors(e, threshold) for name, e in evaluations.items()}
    starts = pick_starts(held, data, config.n_starts, rng)
    md = compare_md(student, teacher, starts, config, progress)
    nve = run_drift(model, starts[0], config, progress)
    numbers: dict[str, Any] = {
        "held_out_part": used,
        "held_out": split_rows[used],
        "splits": split_rows,
        "split_sizes": {name: len(indices) for name, indices in parts.items()},
        "per_element": per_element(held, threshold),
        "per_molecule": per_molecule(held, threshold),
        "hydrogen": hydrogen_errors(held, data, threshold),
        "worst": worst_frames(held, data, config.n_worst),
        "refused": [list(item) for item in held.refused],
        "composition": composition(data),
        "md": md.numbers,
        "nve": nve.numbers,
        "speed": time_all(model, teacher, held, data, config, progress),
        "provenance": provenance(model, read_header(model), data, teacher, config),
        "config": asdict(config),
    }
    remarks = data_remarks(numbers, data, parts) + drift_remarks(numbers)
    verdict = judge(headline_values(numbers), remarks)
    numbers["verdict"] = {
        "level": verdict.level,
        "title": verdict.title,
        "findings": [
            {
                "name": f.criterion.name if f.criterion else None,
                "level": f.level,
                "text": f.text,
                "value": f.value,
                "unit": f.criterion.unit if f.criterion else None,
                "good": f.criterion.good if f.criterion else None,
                "bad": f.criterion.bad if f.criterion else None,
            }
            for f in verdict.findings
        ],
    }
    return Material(numbers, verdict, held, data, parts, config, read_metrics(folder / "metrics.jsonl"), md, nve)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of ``metrics.jsonl`` in the order of their steps; of a step written twice (a resumed run) the last one.

    No file gives no rows; a half-written last line is left out.
    """
    rows: dict[Any, dict[str, Any]] = {}
    if path.is_file():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                rows[row.get("step", number)] = row
    return [rows[step] for step in sorted(rows)]


def json_ready(value: Any) -> Any:
    """Plain JSON types; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
