"""Trajectories sorted into molecules and roles, checked, and made comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ...ase_calcs.errors import DataError, InputError
from ...datasets.trajectory import Trajectory
from .features import Coordinates, Features, View, find_coordinates, measure, pool

REFERENCE = "reference"
CONTROL = "no-model control"
FEWEST_FRAMES = 20
SHORT = 0.9  # of the reference's length: shorter runs are pointed out
MOST_CANDIDATES = 6  # more curves than colours that can be told apart
SAMPLERS = ("hmc", "montecarlo", "monte carlo", "mcmc")
THERMOSTATS = ("langevin", "nvt", "npt", "nose", "nosé", "bussi", "berendsen", "andersen", "csvr", "thermostat")


def ensemble(trajectory: Trajectory) -> str:
    """How a run treats its energy, from its settings.

    Returns
    -------
    str
        ``"sampler"``: its order means nothing in time; ``"thermostat"``; ``"constant energy"``; "" where no integrator
        is recorded.
    """
    name = str(trajectory.settings.get("integrator") or "").lower()
    if any(word in name for word in SAMPLERS):
        return "sampler"
    if any(word in name for word in THERMOSTATS) or _positive(trajectory.settings.get("friction")):
        return "thermostat"
    return "constant energy" if name else ""


def _positive(value: Any) -> bool:
    return value is not None and bool(np.any(np.asarray(value, dtype=float) > 0))


@dataclass(frozen=True)
class RunSet:
    """The runs of one role, and the reference seen as they are.

    Attributes
    ----------
    name
        ``"reference"``, ``"no-model control"`` or the candidate's.
    trajectories
        As they came, without frames that are not finite.
    view
        What of them is compared.
    runs, references
        Features through that view. Empty where there are too few frames.
    ensemble
        As `ensemble` says; "mixed" where they differ.
    picoseconds
        Length of every run as it was recorded, before anything was discarded: what its costs paid for.
    notes
        What is odd about them, in sentences.
    failed
        True where a run broke down.
    """

    name: str
    trajectories: tuple[Trajectory, ...]
    view: View
    runs: tuple[Features, ...]
    references: tuple[Features, ...]
    ensemble: str
    picoseconds: tuple[float, ...]
    notes: tuple[str, ...] = ()
    failed: bool = False

    @cached_property
    def all_but_one(self) -> list[Features]:
        """The references without the first, without the second, …: what single runs are put against."""
        return [pool([r for k, r in enumerate(self.references) if k != left]) for left in range(len(self.references))]

    @cached_property
    def pooled(self) -> Features:
        """All its runs as one."""
        return pool(self.runs)


@dataclass(frozen=True)
class Section:
    """One molecule: its reference, its control where there is one, its candidates."""

    group: str
    coordinates: Coordinates
    reference: RunSet
    control: RunSet | None
    candidates: tuple[RunSet, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def others(self) -> tuple[RunSet, ...]:
        """Control and candidates."""
        return (*((self.control,) if self.control else ()), *self.candidates)


def make_sections(
    reference: Sequence[Trajectory],
    candidates: Mapping[str, Sequence[Trajectory]],
    control: Sequence[Trajectory],
    discard_fs: float,
) -> list[Section]:
    """Check everything and measure it.

    Raises
    ------
    InputError
        No candidate, too many, or names that are taken.
    DataError
        Fewer than two independent references of a molecule, one of them twice, too few frames, periodic boundaries, or
        a run of a molecule that the reference does not have.
    """
    if not candidates:
        raise InputError("There is no candidate: give at least one as NAME=FILE.")
    if len(candidates) > MOST_CANDIDATES:
        raise InputError(
            f"{len(candidates)} candidates are more than one figure can show; give at most {MOST_CANDIDATES} at a time."
        )
    for name in candidates:
        if name in ("", REFERENCE, CONTROL, "control"):
            raise InputError(f"A candidate cannot be called {name!r}; choose another name.")
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in reference:
        groups.setdefault(trajectory.group, []).append(trajectory)
    if not groups:
        raise DataError("The reference holds no trajectory.")
    roles = {**({CONTROL: control} if len(control) else {}), **candidates}
    for name, runs in {REFERENCE: reference, **roles}.items():
        _refuse_periodic(name, runs)
    for group, runs in groups.items():
        _check_references(group, runs)
    sorted_runs = {name: _by_group(name, runs, groups) for name, runs in roles.items()}
    return [_section(group, runs, sorted_runs, discard_fs) for group, runs in groups.items()]


def _refuse_periodic(name: str, runs: Sequence[Trajectory]) -> None:
    if any(np.any(getattr(run, "pbc", False)) for run in runs):
        raise DataError(
            f"`{name}` holds a periodic trajectory. This report is for molecules in vacuum: its bonds, dihedrals and "
            "distances know no cell."
        )


def _check_references(group: str, runs: Sequence[Trajectory]) -> None:
    called = f" of {group}" if group else ""
    for run in runs[1:]:
        if not _same_molecule(run, runs[0]):
            raise DataError(
                f"The reference trajectories{called} are not of one molecule: {_formula(runs[0])} and {_formula(run)}. "
                "Atoms must be the same, in the same order; different molecules need different `group`s."
            )
    if len(runs) < 2:
        raise DataError(
            f"There is only one reference trajectory{called}. The noise floor is what independent runs of the same "
            "dynamics differ by; the pieces of a single run share its start, its slow torsions and its energy, so they "
            "would make the floor too low and every candidate look bad. Give two runs of different seeds, better four."
        )
    for k, run in enumerate(runs):
        twin = next((other for other in runs[:k] if _same_run(run, other)), None)
        if twin is not None:
            raise DataError(
                f"Two reference trajectories{called}, {twin.origin!r} and {run.origin!r}, are of one run: they have "
                "the same origin and seed, or the same last frame. What a run differs from itself by is no floor. "
                "Give independent runs, each once and with an origin of its own."
            )


def _same_run(a: Trajectory, b: Trajectory) -> bool:
    # Folders made by one command with other seeds may use the same names.
    named = bool(a.origin) and (a.origin, a.settings.get("seed")) == (b.origin, b.settings.get("seed"))
    return named or (len(a) > 0 and len(b) > 0 and np.array_equal(a.positions[-1], b.positions[-1]))


def _sound(trajectory: Trajectory, discard_fs: float) -> Trajectory:
    """A reference without its first `discard_fs`: every frame must be finite and there must be enough of them."""
    cut = _frames(trajectory, _after(discard_fs, trajectory))
    called = f"The reference trajectory {trajectory.origin or trajectory.group or '(without a name)'}"
    if finite_frames(cut) < len(cut):
        raise DataError(f"{called} has positions or velocities that are not finite: a reference must be sound.")
    if len(cut) < FEWEST_FRAMES:
        raise DataError(
            f"{called} has {len(cut)} frames{f' after {discard_fs:g} fs were discarded' if discard_fs else ''}; "
            f"{FEWEST_FRAMES} is the least of which a distribution can be made."
        )
    return cut


def _after(discard_fs: float, trajectory: Trajectory) -> slice:
    return slice(int(np.ceil(discard_fs / trajectory.interval - 1e-9)), None)


def _frames(trajectory: Trajectory, which: slice) -> Trajectory:
    return replace(
        trajectory,
        positions=trajectory.positions[which],
        velocities=trajectory.velocities[which],
        energies=None if trajectory.energies is None else trajectory.energies[which],
        forces=None,
    )


def finite_frames(trajectory: Trajectory) -> int:
    """How many frames come before the first with a position or velocity that is not finite."""
    sound = np.isfinite(trajectory.positions).all(axis=(1, 2)) & np.isfinite(trajectory.velocities).all(axis=(1, 2))
    if trajectory.energies is not None:
        sound &= np.isfinite(trajectory.energies)
    return len(sound) if sound.all() else int(np.argmin(sound))


def _same_molecule(a: Trajectory, b: Trajectory) -> bool:
    same = np.array_equal(a.numbers, b.numbers)
    return same and (a.charge, a.multiplicity) == (b.charge, b.multiplicity)


def _formula(trajectory: Trajectory) -> str:
    from ase.formula import Formula
    from ase.symbols import Symbols

    text = str(Formula(str(Symbols(np.asarray(trajectory.numbers)))).convert("hill"))
    return f"{text} (charge {trajectory.charge:+d}, multiplicity {trajectory.multiplicity})"


def _by_group(
    name: str, runs: Sequence[Trajectory], groups: Mapping[str, Sequence[Trajectory]]
) -> dict[str, list[Trajectory]]:
    """Runs under the group of the reference that they belong to.

    A reference of one molecule takes runs of that molecule by any name: files are often named by hand.
    """
    if not len(runs):
        raise DataError(f"`{name}` holds no trajectory.")
    found: dict[str, list[Trajectory]] = {}
    for run in runs:
        group = run.group if run.group in groups else next(iter(groups)) if len(groups) == 1 else None
        if group is None:
            raise DataError(
                f"`{name}` holds a trajectory of {run.group!r}, of which there is no reference, only of "
                f"{', '.join(groups)}."
            )
        if not _same_molecule(run, groups[group][0]):
            raise DataError(
                f"`{name}` is of another molecule than the reference: {_formula(run)} against "
                f"{_formula(groups[group][0])}. Atoms must be the same, in the same order."
            )
        found.setdefault(group, []).append(run)
    return found


def _section(
    group: str, given: list[Trajectory], roles: Mapping[str, dict[str, list[Trajectory]]], discard_fs: float
) -> Section:
    references = [_sound(run, discard_fs) for run in given]
    coordinates = find_coordinates(references)
    view = View(min(_length(t) for t in references), max(t.interval for t in references))
    # Candidates are mostly alike in length and interval; the reference is measured once for each kind of view.
    seen: dict[View, tuple[Features, ...]] = {}

    def through(chosen: View) -> tuple[Features, ...]:
        if chosen not in seen:
            seen[chosen] = tuple(measure(t, coordinates, chosen) for t in references)
        return seen[chosen]

    own = through(view)
    kinds = {ensemble(t) for t in references}
    whole = RunSet(
        REFERENCE, tuple(references), view, own, own, kinds.pop() if len(kinds) == 1 else "mixed",
        tuple(_length(t) / 1000 for t in given),
    )  # fmt: skip
    sets, missing = {}, []
    for name, by_group in roles.items():
        if group not in by_group:
            missing.append(f"`{name}` has no trajectory of this molecule.")
            continue
        sets[name] = _run_set(name, by_group[group], coordinates, whole, discard_fs, through)
    candidates = tuple(found for name, found in sets.items() if name != CONTROL)
    return Section(group, coordinates, whole, sets.get(CONTROL), candidates, tuple(missing))


def _run_set(
    name: str, given: Sequence[Trajectory], coordinates: Coordinates, reference: RunSet, discard_fs: float, through: Any
) -> RunSet:
    notes, kept, failed = [], [], False
    for run in given:
        cut = _frames(run, _after(discard_fs, run))
        sound = finite_frames(cut)
        if sound < len(cut):
            failed = True
            notes.append(
                f"Broke down after {(sound * cut.interval + discard_fs) / 1000:.3g} ps: numbers became infinite."
            )
        kept.append(_frames(cut, slice(0, sound)))
    kinds = {ensemble(t) for t in kept}
    kind = kinds.pop() if len(kinds) == 1 else "mixed"
    lengths = tuple(_length(t) / 1000 for t in given)
    whole = View(
        min(reference.view.duration, *(_length(t) for t in kept)),
        max(reference.view.interval, *(t.interval for t in kept)),
    )
    if whole.duration < (FEWEST_FRAMES - 1) * whole.interval:
        notes.append(
            f"Its shortest run has fewer than {FEWEST_FRAMES} frames {whole.interval:g} fs apart: nothing is compared."
        )
        return RunSet(name, tuple(kept), whole, (), (), kind, lengths, tuple(notes), failed)
    runs = tuple(measure(t, coordinates, whole) for t in kept)
    notes += _differences(kept, kind, reference, whole)
    broken, kept_bonds = sum(r.broken for r in runs), sum(r.broken for r in reference.runs)
    if broken:
        notes.append(
            f"{broken} bonds of the first reference frame are broken at the end ({kept_bonds} in the reference)."
        )
    failed = failed or broken > kept_bonds
    return RunSet(name, tuple(kept), whole, runs, through(whole), kind, lengths, tuple(notes), failed)


def _differences(kept: Sequence[Trajectory], kind: str, reference: RunSet, view: View) -> list[str]:
    """What was prepared otherwise than the reference, and so need not agree with it."""
    notes = []
    if kind and reference.ensemble and kind != reference.ensemble:
        notes.append(
            f"Another ensemble ({kind}) than the reference ({reference.ensemble}): temperatures, spectra and rates "
            "differ for that reason alone."
        )
    for key, unit in (("temperature_K", " K"), ("friction", "/fs"), ("teacher", "")):
        theirs = {_text(t.settings.get(key)) for t in reference.trajectories} - {""}
        ours = {_text(t.settings.get(key)) for t in kept} - {""}
        if theirs and ours and theirs != ours:
            notes.append(
                f"`{key}` is {', '.join(sorted(ours))}{unit}, in the reference {', '.join(sorted(theirs))}{unit}."
            )
    if any(not np.allclose(t.masses, reference.trajectories[0].masses) for t in kept):
        notes.append("Masses differ from the reference's: its spectrum and its rates are those of another system.")
    if view.duration < SHORT * reference.view.duration:
        notes.append(
            f"Its shortest run has {view.duration / 1000:.3g} ps, the reference {reference.view.duration / 1000:.3g}: "
            "over so short a time the noise floor, its own, is higher, and less can be seen."
        )
    return notes


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _length(trajectory: Trajectory) -> float:
    """fs."""
    return max(0, len(trajectory) - 1) * trajectory.interval
