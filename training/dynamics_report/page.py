"""The page: figures, tables and words put into ``dynamics.html``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report.figure import TEACHER
from ..report.page import TABLE_ROWS, load_template
from . import plots
from .compare import GOOD_DRIFT
from .runs import CONTROL, Section
from .torsions import FLIP_DEFINITION

SETTINGS = (
    ("teacher", "teacher"), ("integrator", "integrator"), ("timestep", "step, fs"), ("friction", "friction, 1/fs"),
    ("temperature_K", "T, K"), ("seed", "seed"),
)  # fmt: skip
NOT_RECORDED = "not recorded"
ALIASED = 4000.0  # cm⁻¹; hydrogens stretch up to here


def render(numbers: dict[str, Any], sections: Sequence[Section]) -> str:
    """The finished HTML."""
    return load_template(__package__, "dynamics.html").render(
        n=numbers,
        pages=[
            {"n": entry, "figures": figures(entry, section, f"s{k}"), "key": key(section), "id": f"s{k}"}
            for k, (entry, section) in enumerate(zip(numbers["sections"], sections, strict=True))
        ],
        flip_definition=FLIP_DEFINITION,
        good_drift=GOOD_DRIFT,
        precise=_precise,
        settings=SETTINGS,
        not_recorded=NOT_RECORDED,
        aliased=ALIASED,
        table_rows=TABLE_ROWS,
    )


def _precise(row: dict[str, Any]) -> bool:
    """Whether three digits of a mean would hide what it is looked at for."""
    return row["key"].startswith("mean_")


def key(section: Section) -> list[dict[str, Any]]:
    """What colours mean, for every figure alike."""
    shown = [{"name": "reference", "colour": TEACHER, "dashed": False}]
    return shown + [
        {"name": name, "colour": colour, "dashed": name == CONTROL} for name, colour in plots.colours(section).items()
    ]


def figures(entry: dict[str, Any], section: Section, name: str) -> dict[str, str]:
    """SVG by name; "" where there is nothing to draw."""
    temperatures = [row for row in entry["metrics"] if row["key"].startswith("temperature:")]
    found = {
        "overview": plots.overview(entry["metrics"], section, f"{name}-overview"),
        "energies": plots.energies(section, f"{name}-energies"),
        "temperatures": plots.means(temperatures, section, f"{name}-temperatures"),
        "pairs": plots.pairs(section, f"{name}-pairs"),
        "spectra": plots.spectra(section, f"{name}-spectra"),
        "flips": plots.means(entry["flips"], section, f"{name}-flips"),
    }
    for kind, rows in entry["types"].items():
        found[kind] = plots.distributions(section, kind, rows, f"{name}-{kind}")
    return found
