"""What the calculators of the teachers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ..errors import TeacherError


class TeacherCalculator(Calculator):
    """An ASE calculator around a single point, with an exact answer to "has anything changed?"."""

    @abstractmethod
    def single_point(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """What is asked for, and what comes with it, as new objects; nothing is kept for ASE's cache.

        Labelling calls this: ASE's copy of the atoms is 1 % of a small GFN2 label.

        Parameters
        ----------
        atoms
            Is not changed.
        properties
            ASE's names.

        Raises
        ------
        TeacherError
            With the reason why there is no label for these atoms.
        """

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """`single_point` for ASE: results stay in ``results``; errors are the same."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None  # set by the base class
        self.results = {}
        self.results = self.single_point(self.atoms, properties)

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last calculation, bit by bit; charge and multiplicity are the calculator's own."""
        return changes(self.atoms, atoms)


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
