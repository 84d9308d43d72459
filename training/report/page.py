"""The page: figures, tables and words put into ``report.html`` of this package."""

from __future__ import annotations

import json
import math
from importlib import resources
from typing import Any

from ...ase_calcs.errors import require
from . import plots, plots_md
from .bonding import HBOND_CRITERION
from .pictures import training_sheet, worst_pictures
from .verdict import CRITERIA

TABLE_ROWS = 25  # of a long table on the page; report.json has all
DASH = "–"


def number(value: Any, digits: int = 3, factor: float = 1.0) -> str:
    """A number with a fixed count of significant digits, without exponent where that is readable; – for none."""
    if value is None or not isinstance(value, int | float) or not math.isfinite(value):
        return DASH
    value = factor * value
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude >= 6 or magnitude < -5:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}".replace(",", "\u202f").replace("-", "−")


def fixed(value: Any, decimals: int = 3, factor: float = 1.0) -> str:
    """A number with a fixed count of decimals, for columns; – for none."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{factor * value:.{decimals}f}".replace("-", "−")


def signed(value: Any, decimals: int = 3, factor: float = 1.0) -> str:
    """As `fixed`, with a plus sign."""
    text = fixed(value, decimals, factor)
    return text if text == DASH or text.startswith("−") else f"+{text}"


def load_template(package: str, name: str) -> Any:
    """A page of a package of ours, with the filters and the look (``page.css``) that all reports share."""
    jinja2 = require("jinja2", extra="train", purpose="write the report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "num": number,
        "fixed": fixed,
        "signed": signed,
        "svg": _markup,
        "count": _count,
        "tally": _tally,
    }
    environment.globals["style"] = (resources.files(__package__) / "page.css").read_text(encoding="utf-8")
    return environment.from_string((resources.files(package) / name).read_text(encoding="utf-8"))


def render_page(material: Any) -> str:
    """The finished HTML."""
    template = load_template(__package__, "report.html")
    return template.render(
        n=material.numbers,
        config=material.config,
        verdict=material.verdict,
        cards=cards(material.numbers),
        title=_title(material.numbers),
        figures=_figures(material),
        sheet=training_sheet(material),
        worst=worst_pictures(material),
        hbond_criterion=HBOND_CRITERION,
        criteria=CRITERIA,
        table_rows=TABLE_ROWS,
        header_json=json.dumps(_short(material.numbers["provenance"]["model_header"]), indent=1, ensure_ascii=False),
        dataset_json=json.dumps(
            _short(material.numbers["provenance"]["dataset_provenance"]), indent=1, ensure_ascii=False
        ),
    )


def _markup(text: str) -> Any:
    return require("markupsafe", extra="train", purpose="write the report").Markup(text)


def _count(value: Any) -> str:
    return DASH if value is None else f"{int(value):,}".replace(",", "\u202f")


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{key.replace('-', '−')} ({_count(count)})" for key, count in counts.items())


def _short(value: Any, depth: int = 0) -> Any:
    """Long lists and texts of a header cut, so that the page stays one that is looked at."""
    if isinstance(value, dict):
        return {key: _short(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        cut = [_short(item, depth + 1) for item in value[:12]]
        return [*cut, f"… {len(value) - 12} more"] if len(value) > 12 else cut
    if isinstance(value, str) and len(value) > 300:
        return value[:300] + " …"
    return value


def _title(numbers: dict[str, Any]) -> str:
    molecules = [row["molecule"] for row in numbers["per_molecule"]]
    if len(molecules) == 1 and molecules[0]:
        return str(molecules[0])
    return f"{len(molecules)} molecules" if len(molecules) > 1 else "Student"


def cards(n: dict[str, Any]) -> list[dict[str, str]]:
    """The big numbers at the top: label, value, unit and a line of what it means."""
    held = n["held_out"]
    relative = number(held["forces"]["relative"], 2, 100)
    share = number(held["angles"]["share_under_5deg"], 3, 100)
    found = [
        _card(
            "Force error", number(held["forces"]["mae"], 3, 1000), "meV/Å, mean", f"RMSE is {relative} % of the forces"
        ),
        _card("Force angle", number(held["angles"]["mean"]) + "°", "mean", f"{share} % of atoms are under 5°"),
        _card(
            "Energy error",
            number(held["energy"]["mae_per_atom"], 2, 1000),
            "meV/atom, mean",
            f"RMSE {number(held['energy']['rmse_per_atom'], 2, 1000)}",
        ),
    ]
    hydrogen = n["hydrogen"]["all_hydrogens"]
    if hydrogen["n_atoms"]:
        share = number(n["hydrogen"]["hydrogen_share"], 2, 100)
        found.append(
            _card(
                "Error on hydrogens", number(hydrogen["mae"], 3, 1000), "meV/Å, mean", f"{share} % of the atoms are H"
            )
        )
    for run in (n["nve"] or {}).get("runs", ()):
        if run["dtype"] == "float64":
            note = f"float64, {number(run['ps'], 2)} ps, ± {number(run['drift_error'], 1)}"
            found.append(_card("NVE drift", signed(run["drift"], 3), "meV/atom/ps", note))
    speed = next((r for s in n["speed"] for r in s["rows"] if r["times_faster"] is not None), None)
    if speed is not None:
        found.append(
            _card("Speed", f"{number(speed['times_faster'], 2)}×", "the teacher's", f"{n['speed'][0]['n_atoms']} atoms")
        )
    return found


def _card(label: str, value: str, unit: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "unit": unit, "note": note}


def _figures(material: Any) -> dict[str, str]:
    """SVG by name; "" where there is nothing to draw."""
    n, held = material.numbers, material.held_out
    figures = {
        "learning": plots.learning_curves(material.learning) if material.learning else "",
        "parity_energy": plots.parity_energy(held) if n["held_out"]["energy"]["n_frames"] else "",
        "parity_forces": plots.parity_forces(held),
        "parity_stress": plots.parity_stress(held) if n["held_out"].get("stress", {}).get("n_frames") else "",
        "angles": plots.angle_histogram(held, material.config.angle_threshold) if n["held_out"]["angles"]["n_atoms"]
        else "",
        "elements": plots.error_bars(n["per_element"], "element", "By element", "elements"),
        "hydrogens": plots.error_bars(n["hydrogen"]["classes"], "class", "Hydrogens by bonded partner", "hydrogens"),
        "molecules": plots.molecule_errors(n["per_molecule"]) if len(n["per_molecule"]) > 4 else "",
        "bonds": "", "bond_angles": "", "pairs": "", "nve": "",
    }  # fmt: skip
    bonds = [d for d in material.md.distributions if d.unit == "Å"]
    angles = [d for d in material.md.distributions if d.unit == "°"]
    if bonds:
        figures["bonds"] = plots_md.distribution_panels(bonds, "bonds")
    if angles:
        figures["bond_angles"] = plots_md.distribution_panels(angles, "bond-angles")
    if len(material.md.pair_edges):
        md = material.md
        figures["pairs"] = plots_md.pair_distance_plot(
            md.pair_edges, md.pair_student, md.pair_teacher, md.pair_quantity
        )
    if material.nve.runs:
        figures["nve"] = plots_md.nve_plot(material.nve.runs, material.nve.n_atoms)
    for k, entry in enumerate(n["speed"]):
        figures[f"speed_{k}"] = plots_md.speed_bars(entry["rows"], f"{entry['n_atoms']} atoms", f"speed-{k}")
    return figures
