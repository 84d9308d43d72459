"""Words for the numbers: one line per metric, one word per candidate."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from ..report.page import number
from ..report.verdict import LEVELS, Finding
from .compare import CONFORMATIONAL, GOOD_DRIFT, Row, slow_torsions
from .runs import CONTROL, RunSet, Section

TITLES = {
    "trust": "Like the reference",
    "care": "Close to the reference",
    "distrust": "Unlike the reference",
    "unmeasured": "Not measured",
}
UNDECIDED = "Not decided"
WORDS = {
    "trust": "within the noise",
    "care": "just outside the noise",
    "distrust": "clearly outside the noise",
}
ENOUGH_REFERENCES = 4
BY_CHANCE = 0.05  # of the metrics of a further reference run lie above the limit


def metric_findings(rows: Sequence[Row]) -> list[Finding]:
    """One line per metric: every candidate in plain words, then the control."""
    return [Finding(_worst(row), _sentence(row)) for row in rows]


def _worst(row: Row) -> str:
    levels = [cell["level"] for name, cell in row["cells"].items() if name != CONTROL and cell["level"] in LEVELS]
    return max(levels, key=LEVELS.index, default="unmeasured")


def _sentence(row: Row) -> str:
    names = [name for name in row["cells"] if name != CONTROL] + [name for name in row["cells"] if name == CONTROL]
    reasons = {row["cells"][name]["note"] for name in names if row["cells"][name]["value"] is None}
    if len(reasons) == 1 and all(row["cells"][name]["value"] is None for name in names):
        return f"{row['label']}: not measured ({reasons.pop()})."
    parts = [f"{name} {_clause(row, row['cells'][name])}" for name in names]
    return f"{row['label']}: {'; '.join(parts)}."


def _clause(row: Row, cell: Row) -> str:
    if cell["value"] is None:
        return f"is not measured ({cell['note']})"
    unit = row["unit"]
    value = f"{number(cell['value'])} {unit}"
    if row["kind"] == "mean":
        sign = "+" if cell["difference"] >= 0 else ""
        value += f" ({sign}{number(cell['difference'], 2)} {unit} from the reference)"
    if cell["floor"] is None or cell["level"] not in WORDS:
        return f"has {value}; there is no noise floor{' (' + cell['note'] + ')' if cell['note'] else ''}"
    times = f", {number(cell['ratio'], 2)} × the noise floor," if cell["ratio"] is not None else ","
    word = WORDS[cell["level"]]
    if row["kind"] == "size" and cell["size"] <= GOOD_DRIFT:
        word = f"and below the {GOOD_DRIFT:g} {unit} that pass in any case"
    return f"has {value}{times} {word}"


def overall(runs: RunSet, rows: Sequence[Row], slow: Collection[str] = ()) -> dict[str, Any]:
    """The word for one candidate (or the control), and why.

    A few metrics just outside the noise are what chance alone would bring: of twenty, one. Where torsions turn so
    rarely that the reference has not sampled them (`slow`), what hangs on conformers decides nothing.
    """
    levels = {row["label"]: row["cells"][runs.name]["level"] for row in rows}
    measured = [value for value in levels.values() if value in LEVELS]
    far = [label for label, value in levels.items() if value == "distrust"]
    hanging = {row["label"] for row in rows if row["key"] in CONFORMATIONAL} if slow else set()
    near = [label for label, value in levels.items() if value == "care"]
    excused = math.ceil(BY_CHANCE * len(measured))
    if not measured and not runs.failed:
        found, why = "unmeasured", "There was nothing to compare."
    elif far and not runs.failed and hanging.issuperset(far):
        found = "care"
        why = (
            f"Outside the noise: {_list(far)}. All of that hangs on the conformers that were visited, and the "
            f"reference turns {' and '.join(slow)} too rarely for its noise to be known. Longer runs would tell."
        )
    elif runs.failed or far:
        found = "distrust"
        why = "A run broke down. " if runs.failed else ""
        why += f"Clearly outside the noise: {_list(far)}." if far else ""
    elif len(near) > excused:
        found, why = "care", f"Just outside the noise: {_list(near)}."
    else:
        found = "trust"
        why = f"All {len(measured)} metrics are within the noise of the reference."
        if near:
            why = (
                f"{len(measured) - len(near)} of {len(measured)} metrics are within the noise of the reference; "
                f"{_list(near)} just outside it: as much is expected by chance."
            )
    return {
        "name": runs.name,
        "level": found,
        "title": UNDECIDED if far and found == "care" else TITLES[found],
        "why": why.strip(),
        "within": measured.count("trust"),
        "measured": len(measured),
        "far": far,
        "near": near,
    }


def _list(labels: Sequence[str]) -> str:
    lowered = [label if label[:2].isupper() else label[0].lower() + label[1:] for label in labels]
    return ", ".join(lowered)


def remarks(section: Section) -> list[Finding]:
    """What limits how far the numbers of a section reach."""
    found = []
    n = len(section.reference.runs)
    if section.control is None:
        found.append(
            Finding("care", "No control without a model was given: how much of the agreement is the model's doing, and "
                            "how much the corrector's, stays open.")
        )  # fmt: skip
    if n < ENOUGH_REFERENCES:
        found.append(
            Finding("care", f"The noise floor rests on {n} reference runs and is itself uncertain; the limits are wide "
                            f"for that reason. {ENOUGH_REFERENCES} or more see smaller differences.")
        )  # fmt: skip
    for name, flips in slow_torsions(section).items():
        found.append(
            Finding("care", f"The torsion {name} flips {flips:.2g} times in a reference run: too few to know its "
                            "distribution, or how much that differs between runs. Dihedrals, and means of bonds and "
                            "angles that change with the conformer, may look better or worse than they are.")
        )  # fmt: skip
    found += [Finding("care", note) for note in section.notes]
    for runs in section.others:
        found += [Finding("distrust" if runs.failed else "care", f"{runs.name}: {note}") for note in runs.notes]
    return found
