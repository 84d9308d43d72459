"""Looking at a dataset file before trusting it.

The checks need no teacher. Forces of an isolated molecule sum to zero and exert no torque, whatever the method; a file
with swapped atoms, or with wrong units in one part, breaks one of the statistics below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ..ase_calcs.errors import StructureError
from ..ase_calcs.neighbors import neighbor_list
from ..ase_calcs.progress import Progress, SilentProgress
from .schema import FIELDS, LABEL_FIELDS
from .store import Dataset
from .structure import Structure

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One check that had something to say."""

    verdict: Verdict
    check: str
    message: str


@dataclass(frozen=True)
class Limits:
    """Where a check begins to complain.

    Attributes
    ----------
    max_force
        eV/Å; a larger force on an atom is worth a look.
    net_force, net_torque
        Net over gross, ``|Σ F| / Σ |F|`` and ``|Σ r × F| / Σ |r| |F|``: warn above the first value, fail above the
        second.
    contact
        Two atoms nearer than this share of the sum of their covalent radii are a clash.
    energy_outlier
        Robust standard deviations from the median of the frames of the same composition, and eV per atom; both must
        be exceeded.
    reference_misfit
        eV per atom between an energy and a sum of atomic energies fitted to all compositions.
    """

    max_force: float = 50.0
    net_force: tuple[float, float] = (1e-3, 5e-2)
    net_torque: tuple[float, float] = (1e-3, 5e-2)
    contact: float = 0.55
    energy_outlier: tuple[float, float] = (8.0, 0.05)
    reference_misfit: float = 2.0


@dataclass(frozen=True)
class Validation:
    """Outcome of `validate_dataset`.

    Attributes
    ----------
    findings
        What is not as it should be, the worst first; empty if all is well.
    statistics
        The numbers behind it, e.g. ``"mean |F| (eV/Å)"``.
    compositions
        (formula with charge, frames, mean energy in eV or None, its standard deviation), by number of frames.
    """

    findings: list[Finding]
    statistics: dict[str, float]
    compositions: list[tuple[str, int, float | None, float | None]] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst finding, or ok."""
        verdicts = {finding.verdict for finding in self.findings}
        return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "ok"


def _frame_all(ds: Dataset, atom_mask: np.ndarray) -> np.ndarray:
    return np.logical_and.reduceat(atom_mask, ds.offsets[:-1])


def has_field(ds: Dataset, name: str) -> np.ndarray:
    """(F,) whether a frame has a field, that is whether it is not NaN throughout."""
    values = ds.array(name)
    missing = np.isnan(values.reshape(len(values), -1)).all(axis=1)
    return ~(_frame_all(ds, missing) if FIELDS[name].per == "atom" else missing)


def validate_dataset(path: str | Path, *, limits: Limits | None = None, progress: Progress | None = None) -> Validation:
    """Check a dataset file for damage, impossible physics and leaks between groups.

    Parameters
    ----------
    path
        The file.
    limits
        Where the checks begin to complain.
    progress
        Where to report to.

    Returns
    -------
    Validation
        Verdict ``ok``, ``warn`` (look before training) or ``fail`` (do not train on it), with reasons.

    Raises
    ------
    DataError
        If the file cannot be read as a dataset at all.
    """
    limits = limits or Limits()
    findings: list[Finding] = []
    statistics: dict[str, float] = {}
    with Dataset(path) as ds:
        _check_content(ds, findings)
        if any(finding.verdict == "fail" for finding in findings):
            return Validation(findings, statistics)  # statistics of damaged numbers would only mislead
        _check_forces(ds, limits, findings, statistics)
        compositions = _check_energies(ds, limits, findings, statistics)
        _check_electrons(ds, findings, statistics)
        _check_geometries(ds, limits, findings, statistics, progress or SilentProgress())
    findings.sort(key=lambda finding: {"fail": 0, "warn": 1, "ok": 2}[finding.verdict])
    return Validation(findings, statistics, compositions)


def _some(frames: np.ndarray) -> str:
    """`3 frames (12, 40, 41)`."""
    shown = ", ".join(str(int(i)) for i in frames[:5]) + (", …" if len(frames) > 5 else "")
    return f"{len(frames)} frame{'s' if len(frames) != 1 else ''} ({shown})"


def _check_content(ds: Dataset, findings: list[Finding]) -> None:
    """The hash still fits, numbers are finite, and a label is there for all atoms of a frame or for none."""
    if ds.recompute_hash() != ds.content_hash:
        findings.append(
            Finding(
                "fail", "content hash", "The arrays are not those that were written: the file was changed afterwards."
            )
        )
    for name in sorted(ds.fields & set(FIELDS)):
        values = ds.array(name)
        if values.dtype.kind != "f":
            continue
        bad = ~np.isfinite(values.reshape(len(values), -1))
        if FIELDS[name].required:
            wrong = bad.any(axis=1)
            wrong = ~_frame_all(ds, ~wrong) if FIELDS[name].per == "atom" else wrong
        else:
            some, every = bad.any(axis=1), bad.all(axis=1) & np.isnan(values.reshape(len(values), -1)).all(axis=1)
            if FIELDS[name].per == "atom":
                some, every = ~_frame_all(ds, ~some), _frame_all(ds, every)
            wrong = some & ~every
        if wrong.any():
            findings.append(
                Finding("fail", "finite values", f"`{name}` is not finite in {_some(np.flatnonzero(wrong))}.")
            )
    if not ds.fields & set(LABEL_FIELDS):
        findings.append(Finding("ok", "labels", "The frames have no labels yet; label them with `distillase label`."))
    else:
        for name in ("energy", "forces"):
            missing = ~has_field(ds, name) if name in ds.fields else np.ones(len(ds), dtype=bool)
            if missing.any():
                findings.append(
                    Finding("warn", "labels", f"{_some(np.flatnonzero(missing))} of {len(ds)} have no {name}.")
                )


def _check_forces(ds: Dataset, limits: Limits, findings: list[Finding], statistics: dict[str, float]) -> None:
    """Size of the forces; net force and torque of molecules."""
    if "forces" not in ds.fields:
        return
    starts, sizes = ds.offsets[:-1], np.diff(ds.offsets)
    known = has_field(ds, "forces")
    norms = np.linalg.norm(ds.forces, axis=1)
    finite = norms[np.isfinite(norms)]
    statistics["mean |F| (eV/Å)"] = float(finite.mean())
    statistics["rms |F| (eV/Å)"] = float(np.sqrt((finite**2).mean()))
    statistics["max |F| (eV/Å)"] = float(finite.max())
    largest = np.maximum.reduceat(np.nan_to_num(norms), starts)
    if (largest > limits.max_force).any():
        frames = np.flatnonzero(largest > limits.max_force)
        findings.append(
            Finding(
                "warn",
                "large forces",
                f"{_some(frames)} with |F| above {limits.max_force:g} eV/Å; clashes or wrong units.",
            )
        )
    free = known & (sizes > 1) & ~ds.pbc.any(axis=1)
    if not free.any() or finite.max() == 0:
        return
    centre = np.add.reduceat(ds.positions, starts) / sizes[:, None]
    arm = ds.positions - np.repeat(centre, sizes, axis=0)
    net = np.linalg.norm(np.add.reduceat(ds.forces, starts), axis=1)[free]
    gross = np.add.reduceat(norms, starts)[free]
    torque = np.linalg.norm(np.add.reduceat(np.cross(arm, ds.forces), starts), axis=1)[free]
    gross_torque = np.add.reduceat(np.linalg.norm(arm, axis=1) * norms, starts)[free]
    for name, part, whole, limit, unit, meaning in (
        ("net force", net, gross, limits.net_force, "eV/Å", "forces of an isolated molecule sum to zero"),
        (
            "net torque",
            torque,
            gross_torque,
            limits.net_torque,
            "eV",
            "forces of an isolated molecule exert no torque; do positions and forces have the same order of atoms?",
        ),
    ):
        ratio = float(np.sqrt((part**2).sum() / (whole**2).sum()))
        statistics[f"rms {name} ({unit})"] = float(np.sqrt((part**2).mean()))
        statistics[f"{name}, net over gross"] = ratio
        if ratio > limit[0]:
            verdict: Verdict = "fail" if ratio > limit[1] else "warn"
            findings.append(Finding(verdict, name, f"The {name} is {ratio:.1e} of the gross one; {meaning}."))


def _composition_counts(ds: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Elements (K,), and their counts in each frame (F, K)."""
    elements, column = np.unique(ds.numbers, return_inverse=True)
    counts = np.zeros((len(ds), len(elements)), dtype=np.int64)
    np.add.at(counts, (np.repeat(np.arange(len(ds)), np.diff(ds.offsets)), column.reshape(-1)), 1)
    return elements, counts


def _formula(elements: np.ndarray, counts: np.ndarray, charge: int, multiplicity: int) -> str:
    symbols = {chemical_symbols[z]: int(c) for z, c in zip(elements, counts, strict=True) if c}
    first = [s for s in ("C", "H") if s in symbols] if "C" in symbols else []
    text = "".join(f"{s}{symbols[s] if symbols[s] > 1 else ''}" for s in first + sorted(set(symbols) - set(first)))
    return text + (f" charge {charge:+d}" if charge else "") + (f" 2S+1={multiplicity}" if multiplicity != 1 else "")


def _check_energies(
    ds: Dataset, limits: Limits, findings: list[Finding], statistics: dict[str, float]
) -> list[tuple[str, int, float | None, float | None]]:
    """Table of compositions; energies far from those of the same composition, or from a sum over atoms."""
    elements, counts = _composition_counts(ds)
    state = np.column_stack([counts, ds.charge, ds.multiplicity])
    kinds, kind = np.unique(state, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    energy = ds.energy if "energy" in ds.fields else np.full(len(ds), np.nan)
    sizes = np.diff(ds.offsets)
    outliers: list[int] = []
    table: list[tuple[str, int, float | None, float | None]] = []
    for k, row in enumerate(kinds):
        frames = np.flatnonzero(kind == k)
        values = energy[frames]
        known = values[np.isfinite(values)]
        name = _formula(elements, row[:-2], int(row[-2]), int(row[-1]))
        table.append((name, len(frames), *((float(known.mean()), float(known.std())) if len(known) else (None, None))))
        if len(known) >= 10:
            away = np.abs(values - np.median(known))
            spread = 1.4826 * float(np.median(away[np.isfinite(away)]))
            limit = np.maximum(limits.energy_outlier[0] * spread, limits.energy_outlier[1] * sizes[frames])
            outliers += [int(i) for i in frames[away > limit]]
    if outliers:
        text = f"{_some(np.array(sorted(outliers)))} with an energy far from the others of the same composition."
        findings.append(Finding("warn", "energy outliers", text))
    # Free atoms lie several eV above what an atom is worth inside a molecule.
    known_frames = np.isfinite(energy) & (sizes > 1)
    if known_frames.sum() > len(elements) and len(kinds) > len(elements):
        fit, *_ = np.linalg.lstsq(counts[known_frames].astype(float), energy[known_frames], rcond=None)
        misfit = np.where(known_frames, np.abs(energy - counts @ fit) / sizes, 0.0)
        statistics["median misfit to atomic energies (eV/atom)"] = float(np.median(misfit[known_frames]))
        odd = np.flatnonzero(misfit > limits.reference_misfit)
        if len(odd):
            text = (
                f"{_some(odd)} whose energy is more than {limits.reference_misfit:g} eV/atom away from a sum of atomic "
                f"energies; are all parts of the file of one method and in eV?"
            )
            findings.append(Finding("warn", "atomic energies", text))
    statistics["hydrogen fraction"] = float((ds.numbers == 1).mean())
    if (ds.numbers == 6).any() and not (ds.numbers == 1).any():
        findings.append(
            Finding("warn", "hydrogens", "There is carbon and no hydrogen: were hydrogens lost on the way?")
        )
    return sorted(table, key=lambda row: -row[1])


def _check_electrons(ds: Dataset, findings: list[Finding], statistics: dict[str, float]) -> None:
    """An even number of electrons goes with an odd multiplicity."""
    electrons = np.add.reduceat(ds.numbers, ds.offsets[:-1]) - ds.charge
    beads = np.logical_or.reduceat(ds.numbers == 0, ds.offsets[:-1])
    wrong = np.flatnonzero(((electrons + ds.multiplicity) % 2 == 0) & ~beads)
    statistics["charged frames"] = float((ds.charge != 0).sum())
    if len(wrong):
        text = f"{_some(wrong)} where charge and multiplicity do not go with the number of electrons."
        findings.append(Finding("warn", "electrons", text))


def _smallest_height(cell: np.ndarray) -> float:
    """Smallest distance between opposite faces of a cell, Å; 0 for a flat one."""
    if abs(np.linalg.det(cell)) < 1e-6:
        return 0.0
    return float(1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0).max())


def _close_pairs(structure: Structure, reach: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (i, j) nearer than `reach`, and their distances, Å."""
    positions, pbc = structure.positions, structure.pbc
    if len(positions) <= 300 and not pbc.any():
        a, b = np.triu_indices(len(positions), 1)
        difference = positions[b] - positions[a]
    elif (
        len(positions) <= 300
        and pbc.all()
        and 1 / np.linalg.norm(np.linalg.inv(structure.cell), axis=0).max() > 2 * reach
    ):
        # A vector shorter than half of every height of the cell has fractional coordinates within ±1/2, so rounding
        # finds it; far quicker than cell lists when a small molecule sits in a large box.
        a, b = np.triu_indices(len(positions), 1)
        fractional = (positions[b] - positions[a]) @ np.linalg.inv(structure.cell)
        difference = (fractional - np.round(fractional)) @ structure.cell
    else:
        a, b, shift = neighbor_list(positions, structure.cell, pbc, reach)
        difference = positions[b] + shift @ structure.cell - positions[a]
    distance = np.linalg.norm(difference, axis=1)
    near = distance < reach
    return a[near], b[near], distance[near]


def _check_geometries(
    ds: Dataset, limits: Limits, findings: list[Finding], statistics: dict[str, float], progress: Progress
) -> None:
    """Clashes and geometries that come more than once, within a group or (a leak) in two."""
    first: dict[str, int] = {}
    repeated: list[int] = []
    leaks: list[int] = []
    clashes: list[int] = []
    nearest = np.inf
    reach = 2.0 * float(covalent_radii[np.unique(ds.numbers)].max())
    group = ds.group
    with progress.task("Checking geometries", len(ds)) as bar:
        for i in range(len(ds)):
            structure = ds.structure(i)
            key = structure.key()
            if key in first:
                repeated.append(i)
                if group[first[key]] != group[i]:
                    leaks.append(i)
            first.setdefault(key, i)
            try:
                a, b, distance = _close_pairs(structure, reach)
            except StructureError as error:
                findings.append(Finding("fail", "cell", f"Frame {i}: {error}"))
                continue
            if len(a):
                radii = covalent_radii[structure.numbers]
                nearest = min(nearest, float(distance.min()))
                if (distance < limits.contact * (radii[a] + radii[b])).any():
                    clashes.append(i)
            bar.advance()
    if np.isfinite(nearest):
        statistics["shortest distance (Å)"] = nearest
    statistics["duplicate frames"] = float(len(repeated))
    if clashes:
        text = f"{_some(np.array(clashes))} with atoms nearer than {limits.contact:g} of the sum of covalent radii."
        findings.append(Finding("warn", "clashes", text))
    if repeated:
        findings.append(
            Finding("warn", "duplicates", f"{_some(np.array(repeated))} repeat the geometry of an earlier one.")
        )
    if leaks:
        text = f"{_some(np.array(leaks))} repeat a geometry of another group, so a split by group leaks."
        findings.append(Finding("warn", "leaks", text))
