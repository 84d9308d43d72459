"""Trust, trust with care, do not trust: a table of criteria with fixed limits, applied to the numbers of the report.

Each criterion has two limits. Up to the first the student may be trusted in this respect; above the second it may not;
in between it wants care. The verdict is the worst of all criteria. A criterion that could not be measured counts as
"care" if a student should never be trusted without it, and not at all otherwise. ``docs/report.md`` says why each limit
is where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

LEVELS = ("trust", "care", "distrust")
VERDICTS = {"trust": "Trust", "care": "Trust with care", "distrust": "Do not trust"}


@dataclass(frozen=True)
class Criterion:
    """One thing a trustworthy student must get right.

    Attributes
    ----------
    name
        Key in ``report.json``.
    label
        What is measured, in words.
    unit
        Of the limits.
    good, bad
        Up to `good`: trust; above `bad`: distrust.
    required
        Whether a missing value costs trust.
    """

    name: str
    label: str
    unit: str
    good: float
    bad: float
    required: bool = False


CRITERIA = (
    Criterion("force_mae", "Mean error of force components, held out", "meV/Å", 25.0, 100.0, required=True),
    Criterion("force_relative", "RMS force error over RMS force, held out", "%", 5.0, 20.0, required=True),
    Criterion("worst_element", "The same for the worst element", "%", 10.0, 35.0),
    Criterion("angle_mean", "Mean angle between the two forces", "°", 5.0, 15.0, required=True),
    Criterion("energy_mae", "Mean energy error, held out", "meV/atom", 2.0, 10.0),
    Criterion("force_max", "Largest force error on one atom", "eV/Å", 1.0, 5.0),
    Criterion("drift", "NVE drift of the student, float64 (without its sign)", "meV/atom/ps", 0.1, 1.0,
              required=True),
    Criterion("bond_shift", "Mean bond length along MD against the teacher (beyond noise)", "Å", 0.005, 0.02),
    Criterion("angle_shift", "Mean bond angle along MD against the teacher (beyond noise)", "°", 1.0, 3.0),
    Criterion("broken", "Bonds broken in MD that the teacher keeps", "", 0.0, 0.0),
)  # fmt: skip
FEW_FRAMES = 50  # held-out frames below which the errors themselves are uncertain
SHORT_NVE = 1.0  # ps; in less a slow exchange of energy between modes passes for a drift, or hides one


@dataclass(frozen=True)
class Finding:
    """One criterion applied.

    Attributes
    ----------
    level
        ``"trust"``, ``"care"``, ``"distrust"`` or ``"unmeasured"``.
    text
        One sentence.
    value
        In `unit`; None if not measured.
    criterion
        Its row of `CRITERIA`; None for a remark about the data.
    """

    level: str
    text: str
    value: float | None = None
    criterion: Criterion | None = None


@dataclass(frozen=True)
class Verdict:
    """The worst of all findings, and the findings, worst first."""

    level: str
    findings: tuple[Finding, ...]

    @property
    def title(self) -> str:
        """``Trust``, ``Trust with care`` or ``Do not trust``."""
        return VERDICTS[self.level]


def judge(values: Mapping[str, float | None], remarks: tuple[Finding, ...] = ()) -> Verdict:
    """Apply `CRITERIA` to values by name (None or absent: not measured), and add remarks about the data."""
    findings = [_apply(criterion, values.get(criterion.name)) for criterion in CRITERIA] + list(remarks)
    order = ("distrust", "care", "unmeasured", "trust")
    findings.sort(key=lambda finding: order.index(finding.level))
    levels = [f.level for f in findings if f.level in LEVELS]
    return Verdict(max(levels, key=LEVELS.index, default="care"), tuple(findings))


def _apply(criterion: Criterion, value: float | None) -> Finding:
    if value is None:
        level = "care" if criterion.required else "unmeasured"
        return Finding(level, f"{criterion.label}: not measured", None, criterion)
    if not value <= criterion.bad:  # NaN is a failure too
        level = "distrust"
    else:
        level = "trust" if value <= criterion.good else "care"
    limits = f"fine up to {criterion.good:g}, not to be trusted above {criterion.bad:g}"
    if criterion.good == criterion.bad:
        limits = f"must not exceed {criterion.good:g}"
    unit = f" {criterion.unit}" if criterion.unit and criterion.unit not in "°%" else criterion.unit
    return Finding(level, f"{criterion.label}: {value:.3g}{unit} ({limits})", float(value), criterion)


def drift_remarks(numbers: Mapping[str, Any]) -> tuple[Finding, ...]:
    """A run too short, or too noisy for the limit, proves nothing."""
    good = next(c.good for c in CRITERIA if c.name == "drift")
    runs = [run for run in (numbers.get("nve") or {}).get("runs", ()) if run["dtype"] == "float64"]
    return tuple(
        Finding(
            "care",
            f"NVE of {run['ps']:.2g} ps is too short to tell a drift of {good:g} meV/atom/ps from none"
            f"{' (' + run['stopped'] + ')' if run['stopped'] else ''}.",
        )
        for run in runs
        if not run["failed"]
        and np.isfinite(run["drift_error"])
        and (run["ps"] < SHORT_NVE or not 2 * run["drift_error"] <= good)
    )


def headline_values(numbers: Mapping[str, Any]) -> dict[str, float | None]:
    """Values of the criteria, in their units, from the numbers of the report."""
    held = numbers["held_out"]
    forces, angles, energy = held["forces"], held["angles"], held["energy"]
    relative = [row["relative"] for row in numbers["per_element"] if row["relative"] is not None]
    values: dict[str, float | None] = {
        "force_mae": _times(forces["mae"], 1000),
        "force_relative": _times(forces["relative"], 100),
        "worst_element": _times(max(relative, default=None), 100),
        "angle_mean": angles["mean"],
        "energy_mae": _times(energy["mae_per_atom"], 1000),
        "force_max": forces["max"],
    }
    for run in (numbers.get("nve") or {}).get("runs", ()):
        if run["dtype"] == "float64":
            measured = np.isfinite(run["drift"]) and np.isfinite(run["drift_error"])
            values["drift"] = float("inf") if run["failed"] else abs(run["drift"]) if measured else None
    comparison = numbers.get("md")
    if comparison:
        values["broken"] = float(max(0, comparison["student_broken"] - (comparison["teacher_broken"] or 0)))
        if comparison["student_failed"]:
            values["broken"] = float("inf")
        for key, rows in (("bond_shift", comparison["bonds"]), ("angle_shift", comparison["angles"])):
            # Where noise alone could exceed the upper limit nothing has been measured.
            bad = next(c.bad for c in CRITERIA if c.name == key)
            shifts = [
                max(0.0, abs(row["mean_difference"]) - 2 * row["difference_error"])
                for row in rows
                if row.get("mean_difference") is not None and 2 * row["difference_error"] <= bad
            ]
            values[key] = max(shifts) if shifts else None
    return values


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value
