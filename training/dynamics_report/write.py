"""Measuring, and the two files that come of it."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ...ase_calcs.errors import InputError
from ...datasets.trajectory import Trajectory
from ..report.speed import machine
from ..report.write import json_ready
from . import metrics
from .compare import average_rows, flip_rows, headline_rows, slow_torsions, type_rows
from .cost import cost_rows
from .features import KINDS
from .runs import RunSet, Section, make_sections
from .torsions import FLIP_DEFINITION
from .verdict import metric_findings, overall, remarks

PAGE, NUMBERS = "dynamics.html", "metrics.json"
PACKAGES = ("distillase", "numpy", "ase")
DEFINITIONS = {
    "noise_floor": "distances: mean over the reference runs of the distance of one to all others; means: standard "
    "deviation of one run's difference from the mean of the references",
    "limit": "what a further reference run stays below in 95 of 100 cases, and at least 1.25 times the floor of a "
    "distance",
    "divergence": "Jensen–Shannon, base 2, in bits",
    "flip": FLIP_DEFINITION,
}


def write(
    out: Path,
    reference: Sequence[Trajectory],
    candidates: Mapping[str, Sequence[Trajectory]],
    control: Sequence[Trajectory],
    discard_ps: float,
    files: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """See `write_dynamics_report`."""
    from .page import render

    if not (math.isfinite(discard_ps) and discard_ps >= 0):
        raise InputError(f"{discard_ps} ps cannot be discarded; give 0 or more.")
    began = time.perf_counter()
    sections = make_sections(reference, candidates, control, 1000 * discard_ps)
    numbers: dict[str, Any] = {
        "definitions": DEFINITIONS,
        "discard_ps": discard_ps,
        "sections": [section_numbers(section) for section in sections],
        "provenance": {
            "files": {name: list(names) for name, names in files.items()},
            "versions": {package: _version(package) for package in PACKAGES},
            "machine": machine(),
            "written": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
    }
    numbers["seconds"] = time.perf_counter() - began
    page = render(numbers, sections)
    out.mkdir(parents=True, exist_ok=True)
    numbers = json_ready(numbers)
    _write(out / NUMBERS, json.dumps(numbers, indent=1, ensure_ascii=False) + "\n")
    _write(out / PAGE, page)
    return numbers


def section_numbers(section: Section) -> dict[str, Any]:
    """Everything about one molecule that the page and ``metrics.json`` show."""
    rows = headline_rows(section)
    slow = slow_torsions(section)
    present = [kind for kind in KINDS if kind != "pairs" and any(key[0] == kind for key in section.coordinates.edges)]
    return {
        "group": section.group,
        "n_atoms": len(section.coordinates.numbers),
        "control": section.control.name if section.control else None,
        "columns": [runs.name for runs in section.others],
        "verdicts": [overall(runs, rows, slow) for runs in section.candidates],
        "control_verdict": overall(section.control, rows, slow) if section.control else None,
        "findings": [{"level": f.level, "text": f.text} for f in metric_findings(rows)],
        "remarks": [{"level": f.level, "text": f.text} for f in remarks(section)],
        "metrics": rows,
        "types": {kind: type_rows(section, kind) for kind in present},
        "averages": {kind: average_rows(section, kind) for kind in ("bonds", "angles") if kind in present},
        "flips": flip_rows(section) if section.coordinates.wells else [],
        "wells": {
            str(name): wells.tolist()
            for name, wells in zip(section.coordinates.names["torsions"], section.coordinates.wells, strict=True)
        },
        "dihedrals_with_a_mean": int(section.coordinates.clear.sum()),
        "dihedrals": len(section.coordinates.clear),
        "cost": cost_rows(section),
        "runs": [run_numbers(runs) for runs in (section.reference, *section.others)],
        "curves": curves(section),
    }


def run_numbers(runs: RunSet) -> dict[str, Any]:
    """How a set of runs was made and what of it is compared."""
    return {
        "name": runs.name,
        "ensemble": runs.ensemble or None,
        "compared_ps": runs.view.duration / 1000,
        "compared_interval_fs": runs.view.interval,
        "nyquist": metrics.nyquist(runs.view.interval),
        "resolution": 1 / (runs.view.segment * metrics.LIGHT),
        "failed": runs.failed,
        "trajectories": [
            {
                "origin": t.origin, "frames": len(t), "interval_fs": t.interval, "picoseconds": picoseconds,
                "drift": run.drift if run else None, "drift_error": run.drift_error if run else None,
                "settings": dict(t.settings),
            }
            for t, picoseconds, run in zip(
                runs.trajectories, runs.picoseconds, runs.runs or [None] * len(runs.trajectories), strict=True
            )
        ],
    }  # fmt: skip


def curves(section: Section) -> dict[str, Any]:
    """What the figures draw: histograms of all runs of a role together, and spectra."""
    found: dict[str, Any] = {
        "edges": {f"{kind}:{name}": edges for (kind, name), edges in section.coordinates.edges.items()}
    }
    for runs in (section.reference, *section.others):
        if runs.runs:
            found[runs.name] = {
                "counts_with_both_outsides": {f"{k}:{n}": c for (k, n), c in runs.pooled.histograms.items()},
                "wavenumbers": runs.pooled.wavenumbers,
                "spectrum": runs.pooled.spectrum,
            }
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
