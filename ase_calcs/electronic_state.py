"""Total charge and multiplicity of ASE atoms: where they are read from, and when they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms

from .errors import StructureError, TeacherError
from .potential import ModelHeader

# Initial charges and moments are often rounded partial ones; their sum may miss a whole number by this much.
_ROUNDING = 0.05


def electronic_state(atoms: Atoms, charge: int | None = None, multiplicity: int | None = None) -> tuple[int, int]:
    """Charge in e and multiplicity 2S+1 of some atoms.

    From the arguments, else ``atoms.info``, else initial charges and moments, else 0 and 1.
    Initial charges or moments that are all zero say nothing. |Σ moments| unpaired electrons make a multiplicity of
    |Σ moments| + 1.

    Raises
    ------
    StructureError
        Two sources contradict each other, or one is not a whole number.
    """
    info, arrays = atoms.info, atoms.arrays
    if "charge" in info or "initial_charges" in arrays:
        charge = _agreed("charge", atoms, charge, "initial_charges", "charges", lambda total: total)
    if "multiplicity" in info or "initial_magmoms" in arrays:
        multiplicity = _agreed(
            "multiplicity", atoms, multiplicity, "initial_magmoms", "magnetic moments", lambda total: abs(total) + 1
        )
    return (0 if charge is None else int(charge)), (1 if multiplicity is None else int(multiplicity))


def _agreed(
    name: str, atoms: Atoms, given: int | None, array: str, words: str, convert: Callable[[float], float]
) -> int | None:
    found: dict[str, int] = {}
    if given is not None:
        found[f"the calculator ({name}=…)"] = int(given)
    if atoms.info.get(name) is not None:
        found[f'atoms.info["{name}"]'] = _whole(atoms.info[name], f'atoms.info["{name}"]', 0.0)
    values = atoms.arrays.get(array)
    if values is not None and values.any():
        source = f"the initial {words} of the atoms"
        found[source] = _whole(convert(float(values.sum())), f"the {name} from {source}", _ROUNDING)
    if len(set(found.values())) > 1:
        said = ", ".join(f"{source} says {value}" for source, value in found.items())
        raise StructureError(f"The {name} is contradictory: {said}. Make them agree, or remove all but one.")
    return next(iter(found.values()), None)


def _whole(value: Any, source: str, rounding: float) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not abs(number - np.round(number)) <= rounding:
        raise StructureError(f"{source} is {value!r}, which is not a whole number. Give the total as an integer.")
    return int(np.round(number))


def check_electronic_state(numbers: np.ndarray, charge: int, multiplicity: int, header: ModelHeader) -> None:
    """Refuse a state that the training data did not have.

    A header without charges or multiplicities (a model made by hand) allows all. If the teacher knows electrons, their
    number must allow the multiplicity.

    Raises
    ------
    StructureError
        With what was seen in training.
    """
    for name, value, seen in (
        ("charge", charge, header.charges),
        ("multiplicity", multiplicity, header.multiplicities),
    ):
        if seen and value not in seen:
            listed = ", ".join(str(s) for s in seen)
            raise StructureError(
                f"The {name} is {value}, but the model was trained on {name} {listed} only, and would guess. "
                f'Set {name}=… or atoms.info["{name}"] if {value} is not what is meant; else train on such structures.'
            )
    if header.teacher and ":" not in header.teacher:  # `module:Class` teachers may not know electrons
        from .teachers.registry import check_electron_count

        try:
            check_electron_count(numbers, charge, multiplicity)
        except TeacherError as error:
            raise StructureError(str(error)) from error
