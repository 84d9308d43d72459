"""What the teachers' calculators share: what they refuse, and an exact answer to "has anything changed?"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TeacherError

if TYPE_CHECKING:
    from ase import Atoms


def refuse_unusable(atoms: Atoms, *, periodic: str = "") -> None:
    """Raise `TeacherError` for no atoms, positions that are not finite and, with a reason given, for periodic atoms."""
    if len(atoms) == 0:
        raise TeacherError("There are no atoms.")
    if periodic and atoms.pbc.any():
        raise TeacherError(periodic)
    if not np.isfinite(atoms.positions).all():
        raise TeacherError("Positions contain NaN or infinity.")


def changes(before: Atoms | None, now: Atoms) -> list[str]:
    """ASE's names of what differs in bits between two structures, of what a teacher looks at.

    ASE's own comparison asks three times per MD step and takes longer than MMFF94 itself. It also lets differences up
    to 1e-15 pass, and a label would then be that of another structure.
    """
    if before is None:
        return ["positions", "numbers", "cell", "pbc"]
    pairs: list[tuple[str, Any, Any]] = [
        ("positions", before.positions, now.positions),
        ("numbers", before.numbers, now.numbers),
        ("cell", before.cell.array, now.cell.array),
        ("pbc", before.pbc, now.pbc),
    ]
    return [name for name, a, b in pairs if a.shape != b.shape or not np.equal(a, b).all()]
