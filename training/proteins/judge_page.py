"""The report on a coarse-grained force field: ``report.html``, ``report.json``, and what they say first."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.writer import atomic_write
from ..report.figure import TEACHER
from ..report.page import load_template
from ..report.speed import machine
from ..report.write import json_ready
from .judge import JudgeConfig, Judged
from .judge_plots import colours, figures
from .metrics import KINDS

PAGE, NUMBERS = "report.html", "report.json"
PACKAGES = ("distillase", "torch", "nequip", "nequip-allegro", "openmm", "numpy", "ase")
GOOD = 0.05  # bits; a divergence below it is small whatever the reference does by itself
TIMES_FLOOR = 2.0
WARM = 0.02  # relative deviation of the temperature
CLOSE = 3.0  # Å
FREE_ENERGY = 1.0  # kcal/mol


def write_report(folder: str | Path, judged: Sequence[Judged], config: JudgeConfig, provenance: dict[str, Any]) -> Path:
    """Both files, in `folder`; returns the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {
        "proteins": [{**one.numbers, "findings": findings(one)} for one in judged],
        "config": vars(config),
        "provenance": {**provenance, **_surroundings()},
    }
    pages = [
        {
            "n": entry, "figures": figures(one, f"p{k}"), "id": f"p{k}",
            "key": {"reference": TEACHER, **colours(list(one.results))},
        }
        for k, (one, entry) in enumerate(zip(judged, numbers["proteins"], strict=True))
    ]  # fmt: skip
    text = load_template(__package__, "judge.html").render(n=numbers, pages=pages, kinds=KINDS, shapes=_shapes)
    for name, content in ((PAGE, text), (NUMBERS, json.dumps(json_ready(numbers), indent=1))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return folder / PAGE


def _shapes(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Rows of the table of sizes: the reference, its runs, candidates."""
    runs = [(f"its run {k + 1}", row) for k, row in enumerate(entry["reference_runs"][:4])]
    return [("reference", entry["reference"]), *runs, *entry["candidates"].items()]


def _surroundings() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    written = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"versions": versions, "machine": machine(), "written": written}


def findings(one: Judged) -> list[dict[str, str]]:
    """What there is to say of the first candidate, the force field itself: level and sentence."""
    name, row = next(iter(one.numbers["candidates"].items()))
    found = [_stability(row)]
    if "divergence" not in row:
        return found
    found += [_divergence(kind, row["divergence"][kind], one.numbers["floor"][kind]) for kind in KINDS]
    found = [finding for finding in found if finding["text"]]
    found += _folding(one, row)
    prior = one.numbers["candidates"].get("prior")
    if prior is not None and name != "prior" and row.get("mean_force_error") and prior["mean_force_error"]:
        share = row["mean_force_error"] / prior["mean_force_error"]
        error = share * np.hypot(
            row["mean_force_spread"] / row["mean_force_error"], prior["mean_force_spread"] / prior["mean_force_error"]
        )
        level = "trust" if share <= 0.6 else "care" if share + error < 1 else "distrust"
        found.append(
            _finding(level, f"Mean forces: {100 * share:.0f} ± {100 * error:.0f} % of the prior's error (aim: 60 %).")
        )
    return found


def _finding(level: str, text: str) -> dict[str, str]:
    return {"level": level, "text": text}


def _stability(row: dict[str, Any]) -> dict[str, str]:
    warm = abs(row["temperature_K"] / row["thermostat_K"] - 1)
    whole = row["survived"] == 1.0
    level = "trust" if whole and warm < WARM and row["shortest_A"] >= CLOSE else "care" if whole else "distrust"
    return _finding(
        level,
        f"{100 * row['survived']:.0f} % of the replicas lived for {max(row['lived_ps']):.0f} ps, at "
        f"{row['temperature_K']:.1f} K (thermostat {row['thermostat_K']:g} K); no two beads came closer than "
        f"{row['shortest_A']:.2f} Å.",
    )


def _divergence(kind: str, value: float, floor: float) -> dict[str, str]:
    if not np.isfinite(value):
        return _finding("unmeasured", "")
    good = value <= GOOD or value <= TIMES_FLOOR * floor
    return _finding(
        "trust" if good else "care" if value <= 2 * max(GOOD, TIMES_FLOOR * floor) else "distrust",
        f"Distributions of {kind} differ by {value:.3f} bits from the reference, whose own runs differ by {floor:.3f}.",
    )


def _folding(one: Judged, row: dict[str, Any]) -> list[dict[str, str]]:
    if "folded" not in row:
        return []
    wanted = one.numbers["reference"]
    difference = abs(row["unfolding_kcal"] - wanted["unfolding_kcal"])
    text = (
        f"{100 * row['folded']:.1f} % of the configurations are folded, {100 * wanted['folded']:.1f} % in the reference"
    )
    if np.isfinite(difference):
        level = "trust" if difference <= FREE_ENERGY else "care"
        return [_finding(level, f"{text}: free energies of folding differ by {difference:.2f} kcal/mol.")]
    both = 0 < wanted["folded"] < 1
    level = "distrust" if both else "unmeasured"
    return [_finding(level, f"{text}.")]
