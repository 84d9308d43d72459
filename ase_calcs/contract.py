"""`check_calculator`: what every energy-and-forces calculator owes its users, measured on any ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms
from ase.build import molecule

from .contract_checks import CHECKS, SHAPES, NotApplicable, Subject
from .errors import DistillaseError, InputError

# One tolerance table, a function of the precision the calculator works in. `step` and `strain` are those of the finite
# differences: wide in float32, whose energies carry noise of about 1e-6 eV per atom.
_TOLERANCES = {
    "float64": {"energy": 1e-8, "relative": 1e-12, "value": 1e-7, "fd": 1e-6, "step": 1e-3, "strain": 5e-4},
    "float32": {"energy": 1e-4, "relative": 1e-7, "value": 2e-3, "fd": 1e-2, "step": 2e-2, "strain": 3e-3},
}


class ContractError(DistillaseError, AssertionError):
    """A calculator broke its contract; the message is the table of `ContractReport`."""


class ContractRow(NamedTuple):
    """One check on one structure. `passed` is None where the check does not apply, and `note` then says why."""

    name: str
    system: str
    passed: bool | None
    measured: float
    tolerance: float
    note: str


@dataclass(frozen=True)
class ContractReport:
    """All rows of a check; print it for a table."""

    calculator: str
    rows: tuple[ContractRow, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[ContractRow, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.passed is False)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        words = {True: "ok", False: "FAILED", None: "n/a"}
        lines = [f"Contract of {self.calculator}"]
        for row in self.rows:
            numbers = f"{row.measured:9.2e} ≤ {row.tolerance:8.1e}" if row.passed is not None else " " * 20
            lines.append(f"{words[row.passed]:6}  {row.name:{width}}  {numbers}  {row.system:14} {row.note}".rstrip())
        lines.append("all hold" if self.passed else f"{len(self.failures)} of {len(self.rows)} rows failed")
        return "\n".join(lines)


def check_calculator(
    calc: Any,
    atoms: Atoms | Sequence[Atoms] | None = None,
    *,
    precision: Literal["float64", "float32"] | None = None,
    tolerance_scale: float = 1.0,
    seed: int = 0,
    raise_on_failure: bool = False,
) -> ContractReport:
    """Run the contract of an energy-and-forces calculator.

    Forces and stress are the finite-difference gradients of the energy; energy and forces follow rotations,
    translations, permutations and lattice shifts; nothing stale comes out of the cache; results belong to the caller
    and atoms are left alone; one atom, copies, pickles and (where there is one) ``calculate_many`` behave.

    Parameters
    ----------
    calc
        Any ASE calculator. Its cached results are dropped.
    atoms
        Structures to try it on, at best one molecule and one periodic cell. They are copied, and the copies rattled by
        0.05 Å so that no force vanishes by symmetry. Without them, small systems of the elements of the calculator (its
        ``elements`` attribute), or else of common elements that it accepts.
    precision
        Row of the tolerance table; by default the calculator's own ``dtype`` attribute, or float64.
    tolerance_scale
        Multiplies every tolerance, e.g. 1e3 for a calculator with a loosely converged SCF.
    seed
        Of the random displacements, rotations and shifts.
    raise_on_failure
        Raise instead of returning a report with failures.

    Returns
    -------
    ContractReport
        Prints as a table; ``report.passed``, ``report.failures``, ``report.rows``.

    Raises
    ------
    ContractError
        If a check fails and `raise_on_failure` is set.
    InputError
        No structure was given and the calculator accepts none of the common ones.
    """
    precision = precision or ("float32" if "32" in str(getattr(calc, "dtype", "")) else "float64")
    if precision not in _TOLERANCES:
        raise InputError(f"precision is {precision!r}; allowed are 'float64' and 'float32'.")
    scaled = ("energy", "relative", "value", "fd")
    tolerance = {k: v * (tolerance_scale if k in scaled else 1.0) for k, v in _TOLERANCES[precision].items()}
    systems = _default_systems(calc) if atoms is None else [atoms] if isinstance(atoms, Atoms) else list(atoms)
    rows: list[ContractRow] = []
    for number, system in enumerate(systems):
        rng = np.random.default_rng([seed, number])
        rattled = system.copy()
        rattled.positions += 0.05 * rng.normal(size=rattled.positions.shape)
        subject = Subject(calc, rattled, tolerance, rng, _properties(calc, rattled))
        label = f"{system.get_chemical_formula()} {''.join('FT'[int(p)] for p in system.pbc)}"
        rows += [_row(name, subject, label) for name in CHECKS]
    report = ContractReport(type(calc).__name__, tuple(rows))
    if raise_on_failure and not report.passed:
        raise ContractError(str(report))
    return report


def _row(name: str, subject: Subject, label: str) -> ContractRow:
    try:
        outcome = CHECKS[name](subject)
    except NotApplicable as reason:
        return ContractRow(name, label, None, np.nan, np.nan, str(reason))
    except Exception as error:  # whatever a calculator raises is a finding, not a crash of the report
        return ContractRow(name, label, False, np.inf, 0.0, f"raised {type(error).__name__}: {error}")
    passed = bool(outcome.measured <= outcome.tolerance)  # NaN does not pass
    return ContractRow(name, label, passed, float(outcome.measured), float(outcome.tolerance), outcome.note)


def _properties(calc: Any, atoms: Atoms) -> list[str]:
    names = [name for name in SHAPES if name in calc.implemented_properties]
    if not atoms.pbc.all() and "stress" in names:
        names.remove("stress")
    if atoms.pbc.any() and "dipole" in names:
        names.remove("dipole")  # depends on the choice of the cell
    if not {"energy", "forces"} <= set(names):
        raise InputError(f"{type(calc).__name__} does not give energy and forces; there is nothing to check.")
    return names


def _default_systems(calc: Any) -> list[Atoms]:
    """A cluster and a crystal that the calculator accepts."""
    elements = getattr(calc, "elements", None)
    if elements is not None:
        rng = np.random.default_rng(0)
        numbers = np.resize(np.array(elements), max(5, min(len(elements), 10)))
        grid = 1.6 * np.array(np.unravel_index(np.arange(len(numbers)), (3, 3, 3))).T
        candidates = [Atoms(numbers, grid + 0.1 * rng.normal(size=grid.shape), cell=[5.0, 5.2, 5.4])]
    else:
        candidates = [molecule("CH3CH2OH", cell=[5.0, 5.5, 6.0]), _box("Cu", 2.5), _box("Ar", 3.8)]
    for cluster in candidates:
        try:
            calc.get_property("energy", cluster)
        except Exception:
            continue
        crystal = cluster.copy()
        crystal.pbc = True
        return [cluster, crystal]
    raise InputError(f"{type(calc).__name__} accepts none of the common structures; pass `atoms` that it can handle.")


def _box(symbol: str, spacing: float) -> Atoms:
    """Eight atoms on a slightly skewed simple cubic lattice, not periodic."""
    grid = np.array(np.unravel_index(np.arange(8), (2, 2, 2))).T
    cell = 2 * spacing * np.array([[1, 0, 0], [0.1, 1, 0], [0, 0.05, 1.1]])
    return Atoms([symbol] * 8, grid / 2 @ cell, cell=cell)
