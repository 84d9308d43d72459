"""What the teachers' calculators share: a lean and exact answer to "has anything changed?"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


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
