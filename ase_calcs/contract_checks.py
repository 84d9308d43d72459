"""The checks behind `check_calculator`: each measures one violation against a tolerance, or does not apply."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError

SHAPES = {
    "energy": (),
    "free_energy": (),
    "forces": ("N", 3),
    "energies": ("N",),
    "stress": (6,),
    "charges": ("N",),
    "dipole": (3,),
}


class NotApplicable(Exception):
    """Raised inside a check that does not apply."""


class Outcome(NamedTuple):
    """A measured violation, what is allowed, and what the reader should know."""

    measured: float
    tolerance: float
    note: str = ""


@dataclass
class Subject:
    """A calculator, one structure to try it on, and how strictly; `names` are the properties to look at."""

    calc: Any
    atoms: Atoms
    tolerance: dict[str, float]
    rng: np.random.Generator
    names: list[str] = field(default_factory=list)

    def fresh(self, atoms: Atoms, names: Sequence[str] | None = None, calc: Any = None) -> dict[str, Any]:
        """Properties of a copy of `atoms`, calculated and not remembered."""
        calc = calc or self.calc
        if hasattr(calc, "reset"):
            calc.reset()
        return self.current(atoms.copy(), names, calc)

    def current(self, atoms: Atoms, names: Sequence[str] | None = None, calc: Any = None) -> dict[str, Any]:
        """Properties as an ASE script would get them, the calculator's cache included."""
        calc = calc or self.calc
        return {name: calc.get_property(name, atoms) for name in names or self.names}

    def potential(self, atoms: Atoms) -> float:
        """The energy whose gradient the forces are."""
        name = "free_energy" if "free_energy" in self.names else "energy"
        return float(self.fresh(atoms, [name])[name])

    def compare(self, got: dict[str, Any], want: dict[str, Any], skip: Sequence[str] = ()) -> Outcome:
        """Largest deviation in units of its tolerance, so that energies and forces share a row."""
        worst, note = 0.0, ""
        for name in want.keys() - set(skip):
            a, b = np.asarray(got[name], dtype=float), np.asarray(want[name], dtype=float)
            if a.shape != b.shape:
                return Outcome(np.inf, 1.0, f"{name} has shape {a.shape}, not {b.shape}")
            largest = float(np.abs(b).max(initial=0.0))
            if name in ("energy", "free_energy", "energies"):
                allowed = self.tolerance["energy"] + self.tolerance["relative"] * largest
            else:
                allowed = self.tolerance["value"] * max(1.0, largest)
            deviation = float(np.abs(a - b).max(initial=0.0)) / allowed
            if not deviation <= worst:
                worst, note = deviation, f"worst: {name}, off by {deviation * allowed:.1e}"
        return Outcome(worst, 1.0, note if not worst <= 1 else "")


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _voigt(matrix: np.ndarray) -> np.ndarray:
    return matrix[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]


def _matrix(voigt: np.ndarray) -> np.ndarray:
    return voigt[[[0, 5, 4], [5, 1, 3], [4, 3, 2]]]


def _derivative(function: Callable[[float], float], h: float) -> float:
    """Central difference of fourth order."""
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


def _results_are_numpy(subject: Subject) -> Outcome:
    n_atoms, wrong = len(subject.atoms), []
    for name, value in subject.fresh(subject.atoms).items():
        shape = tuple(n_atoms if size == "N" else size for size in SHAPES[name])
        if shape == () and not isinstance(value, float | np.floating):
            wrong.append(f"{name} is a {type(value).__name__}, not a float")
        elif shape and not (isinstance(value, np.ndarray) and value.dtype == np.float64 and value.shape == shape):
            kind = f"{getattr(value, 'dtype', type(value).__name__)} {getattr(value, 'shape', '')}"
            wrong.append(f"{name} is {kind}, not float64 {shape}")
        elif not np.isfinite(value).all():
            wrong.append(f"{name} is not finite")
    return Outcome(len(wrong), 0, "; ".join(wrong))


def _energies_sum(subject: Subject) -> Outcome:
    if "energies" not in subject.names:
        raise NotApplicable("no energies per atom")
    result = subject.fresh(subject.atoms)
    return subject.compare({"energy": np.sum(result["energies"])}, {"energy": result["energy"]})


def _forces_are_gradient(subject: Subject) -> Outcome:
    atoms, h = subject.atoms, subject.tolerance["step"]
    forces = subject.fresh(atoms, ["forces"])["forces"]
    components = [(a, k) for a in range(len(atoms)) for k in range(3)]
    worst, note = 0.0, ""
    for index in subject.rng.permutation(len(components))[:24]:
        atom, axis = components[index]

        def moved(step: float, atom: int = atom, axis: int = axis) -> float:
            trial = atoms.copy()
            trial.positions[atom, axis] += step
            return subject.potential(trial)

        deviation = abs(_derivative(moved, h) + forces[atom, axis])
        if not deviation <= worst:
            worst, note = deviation, f"eV/Å, atom {atom} along {'xyz'[axis]}"
    return Outcome(worst, subject.tolerance["fd"] * max(1.0, np.abs(forces).max()), note)


def _stress_is_gradient(subject: Subject) -> Outcome:
    if "stress" not in subject.names:
        raise NotApplicable("no stress, or no cell periodic in three directions")
    atoms, worst, note = subject.atoms, 0.0, ""
    stress = subject.fresh(atoms, ["stress"])["stress"]
    for component in range(6):
        direction = _matrix(np.eye(6)[component])
        direction /= direction.sum()  # an off-diagonal component stands twice

        def strained(step: float, direction: np.ndarray = direction) -> float:
            trial = atoms.copy()
            trial.set_cell(trial.cell.array @ (np.eye(3) + step * direction), scale_atoms=True)
            return subject.potential(trial)

        slope = _derivative(strained, subject.tolerance["strain"]) / atoms.get_volume()
        deviation = abs(slope - stress[component])
        if not deviation <= worst:
            worst, note = deviation, f"eV/Å³, component {('xx', 'yy', 'zz', 'yz', 'xz', 'xy')[component]}"
    return Outcome(worst, subject.tolerance["fd"] * max(1.0, np.abs(stress).max()), note)


def _rotation(subject: Subject) -> Outcome:
    rotation = _random_rotation(subject.rng)
    want = subject.fresh(subject.atoms)
    for name in want.keys() & {"forces", "dipole"}:
        want[name] = want[name] @ rotation
    if "stress" in want:
        want["stress"] = _voigt(rotation.T @ _matrix(want["stress"]) @ rotation)
    turned = subject.atoms.copy()
    turned.set_cell(turned.cell.array @ rotation)
    turned.positions = turned.positions @ rotation
    return subject.compare(subject.fresh(turned), want)


def _translation(subject: Subject) -> Outcome:
    moved = subject.atoms.copy()
    moved.positions += subject.rng.uniform(-3, 3, size=3)
    # The dipole of an ion depends on the origin.
    return subject.compare(subject.fresh(moved), subject.fresh(subject.atoms), skip=["dipole"])


def _permutation(subject: Subject) -> Outcome:
    if len(subject.atoms) < 2:
        raise NotApplicable("one atom")
    ring = subject.rng.permutation(len(subject.atoms))
    order = np.empty_like(ring)
    order[ring] = np.roll(ring, 1)  # one cycle: no atom stays where it is
    want = subject.fresh(subject.atoms)
    for name in want.keys() & {"forces", "energies", "charges"}:
        want[name] = want[name][order]
    return subject.compare(subject.fresh(subject.atoms[order]), want)


def _lattice_shift(subject: Subject) -> Outcome:
    atoms = subject.atoms
    if not atoms.pbc.any():
        raise NotApplicable("not periodic")
    jumps = np.where(atoms.pbc, subject.rng.integers(-2, 3, size=(len(atoms), 3)), 0)
    moved = atoms.copy()
    moved.positions += jumps @ np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    return subject.compare(subject.fresh(moved), subject.fresh(atoms), skip=["dipole"])


def _repeatable(subject: Subject) -> Outcome:
    return subject.compare(subject.fresh(subject.atoms), subject.fresh(subject.atoms))


def _order_of_properties(subject: Subject) -> Outcome:
    forward = subject.fresh(subject.atoms)
    return subject.compare(subject.fresh(subject.atoms, subject.names[::-1]), forward)


def _atoms_unchanged(subject: Subject) -> Outcome:
    atoms = subject.atoms.copy()
    if hasattr(subject.calc, "reset"):
        subject.calc.reset()
    atoms.info["a note of the user"] = [1, 2]
    before_info, before = copy.deepcopy(atoms.info), atoms.copy()
    subject.current(atoms)
    changed = [name for name in before.arrays if not np.array_equal(before.arrays[name], atoms.arrays.get(name))]
    changed += [f"new array {name}" for name in atoms.arrays.keys() - before.arrays.keys()]
    if not (np.array_equal(before.cell, atoms.cell) and np.array_equal(before.pbc, atoms.pbc)):
        changed.append("cell")
    if repr(before_info) != repr(atoms.info):
        changed.append("info")
    return Outcome(len(changed), 0, ", ".join(changed))


def _results_are_copies(subject: Subject) -> Outcome:
    """Neither writing to a result nor a later calculation changes what was handed out."""
    atoms = subject.atoms.copy()
    first = subject.fresh(atoms)
    kept = copy.deepcopy(first)
    moved = atoms.copy()
    moved.positions += 0.1 * subject.rng.normal(size=moved.positions.shape)
    subject.current(moved)
    aliased = [name for name in first if not np.array_equal(first[name], kept[name])]
    again = subject.fresh(atoms)["forces"]
    want = np.array(again)
    again += 1.0
    if not np.array_equal(subject.current(atoms, ["forces"])["forces"], want):
        aliased.append("forces that are written to")
    return Outcome(len(aliased), 0, ", ".join(aliased))


def _one_atom(subject: Subject) -> Outcome:
    even = np.flatnonzero(subject.atoms.numbers % 2 == 0)
    if not len(even):
        raise NotApplicable("no element with an even number of electrons")
    single = Atoms(subject.atoms.numbers[even[:1]], [[0.1, 0.2, 0.3]])
    names = [name for name in subject.names if name != "stress"]
    return _results_are_numpy(Subject(subject.calc, single, subject.tolerance, subject.rng, names))


def _cache(subject: Subject) -> Outcome:
    """After a change made in place, the calculator says what it says after `reset()`."""
    stale = []
    for what, change in _CHANGES.items():
        atoms = subject.atoms.copy()
        subject.fresh(atoms)
        subject.current(atoms)
        if not change(atoms):
            continue
        cached, fresh = (_try(subject.current, atoms), _try(subject.fresh, atoms))
        if isinstance(cached, Exception) and isinstance(fresh, Exception):
            continue  # the change is refused, as it should be, both times
        if isinstance(cached, Exception) or isinstance(fresh, Exception) or subject.compare(cached, fresh)[0] > 1:
            stale.append(what)
    return Outcome(len(stale), 0, "not noticed: " + ", ".join(stale) if stale else "")


def _try(function: Callable[[Atoms], dict[str, Any]], atoms: Atoms) -> dict[str, Any] | Exception:
    try:
        return function(atoms)
    except Exception as error:
        return error


def _change_positions(atoms: Atoms) -> bool:
    atoms.positions[0, 0] += 0.01
    return True


def _change_cell(atoms: Atoms) -> bool:
    atoms.cell[:] *= 1.01
    return bool(atoms.pbc.any())


def _change_numbers(atoms: Atoms) -> bool:
    other = np.flatnonzero(atoms.numbers != atoms.numbers[0])
    if len(other):
        atoms.numbers[[0, other[0]]] = atoms.numbers[[other[0], 0]]
    return bool(len(other))


def _change_charge(atoms: Atoms) -> bool:
    atoms.info["charge"] = int(atoms.info.get("charge", 0)) + 2  # two electrons: the multiplicity stays possible
    return True


_CHANGES = {
    "positions": _change_positions,
    "cell": _change_cell,
    "numbers": _change_numbers,
    "charge in atoms.info": _change_charge,
}


def _no_calculation_unless_allowed(subject: Subject) -> Outcome:
    if not hasattr(subject.calc, "calculation_required"):
        raise NotApplicable("no calculation_required")
    atoms, wrong = subject.atoms.copy(), []
    subject.fresh(atoms)
    if subject.calc.calculation_required(atoms, ["energy", "forces"]):
        wrong.append("known results are calculated again")
    _change_positions(atoms)
    if not subject.calc.calculation_required(atoms, ["energy"]):
        wrong.append("calculation_required is False after a move")
    if subject.calc.get_property("energy", atoms, allow_calculation=False) is not None:
        wrong.append("get_property(allow_calculation=False) gives a result after a move")
    return Outcome(len(wrong), 0, "; ".join(wrong))


def _unknown_property(subject: Subject) -> Outcome:
    name = next(n for n in ("magmoms", "magmom", "stresses", "dipole") if n not in subject.calc.implemented_properties)
    try:
        subject.fresh(subject.atoms, [name])
    except PropertyNotImplementedError:
        return Outcome(0, 0)
    except Exception as error:
        return Outcome(1, 0, f"{name} raised {type(error).__name__}")
    return Outcome(1, 0, f"{name} was returned")


def _duplicate(subject: Subject, make: Callable[[Any], Any], verb: str) -> Outcome:
    want = subject.fresh(subject.atoms)
    try:
        twin = make(subject.calc)
    except Exception as error:
        raise NotApplicable(f"cannot be {verb}: {type(error).__name__}") from error
    outcome = subject.compare(subject.fresh(subject.atoms, calc=twin), want)
    moved = subject.atoms.copy()
    moved.positions *= 1.01
    subject.fresh(subject.atoms)
    if subject.calc.get_property("energy", subject.atoms, allow_calculation=False) is None:
        return outcome  # keeps no results that could be shared
    subject.fresh(moved, calc=twin)
    if subject.calc.get_property("energy", subject.atoms, allow_calculation=False) != want["energy"]:
        return Outcome(np.inf, 1.0, "a calculation with the copy replaces the results of the original")
    return outcome


def _deep_copy(subject: Subject) -> Outcome:
    return _duplicate(subject, copy.deepcopy, "copied")


def _pickled(subject: Subject) -> Outcome:
    return _duplicate(subject, lambda calc: pickle.loads(pickle.dumps(calc)), "pickled")


def _batch_equals_singles(subject: Subject) -> Outcome:
    many = getattr(subject.calc, "calculate_many", None)
    if many is None:
        raise NotApplicable("no calculate_many")
    moved = subject.atoms.copy()
    moved.positions += 0.05 * subject.rng.normal(size=moved.positions.shape)
    structures = [subject.atoms, moved, subject.atoms]
    outcomes = [
        subject.compare(got, subject.fresh(atoms))
        for got, atoms in zip(many(structures, subject.names), structures, strict=True)
    ]
    return max(outcomes, key=lambda outcome: outcome.measured)


CHECKS: dict[str, Callable[[Subject], Outcome]] = {
    "results are finite NumPy float64 of the right shape": _results_are_numpy,
    "atomic energies sum to the energy": _energies_sum,
    "forces are the gradient of the energy": _forces_are_gradient,
    "stress is the strain gradient of the energy": _stress_is_gradient,
    "rotation turns forces and changes no energy": _rotation,
    "translation changes nothing": _translation,
    "permutation of atoms permutes forces": _permutation,
    "shifts by lattice vectors change nothing": _lattice_shift,
    "a second calculation gives the same": _repeatable,
    "the order of properties does not matter": _order_of_properties,
    "atoms are not changed": _atoms_unchanged,
    "results are copies": _results_are_copies,
    "one atom keeps its shapes": _one_atom,
    "changes of the atoms are noticed": _cache,
    "nothing is calculated unless allowed": _no_calculation_unless_allowed,
    "unknown properties are refused": _unknown_property,
    "a deep copy is equal and independent": _deep_copy,
    "a pickled copy is equal and independent": _pickled,
    "a batch equals its singles": _batch_equals_singles,
}
