"""The dynamics report: candidates against a reference, its own noise floor and a control without a model.

Nothing heavier than numpy is imported until `write_dynamics_report` is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...datasets.trajectory import Trajectory

__all__ = ["write_dynamics_report"]


def write_dynamics_report(
    out: str | Path,
    reference: Sequence[Trajectory],
    candidates: Mapping[str, Sequence[Trajectory]],
    *,
    control: Sequence[Trajectory] = (),
    discard_ps: float = 0.0,
    files: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Compare dynamics and write ``dynamics.html`` and ``metrics.json``.

    Parameters
    ----------
    out
        Folder for both; made if it is not there.
    reference
        Two or more independent trajectories per molecule, four better. Bonds, bins and noise floor come from them.
    candidates
        Name → trajectories of the same molecules.
    control
        The candidate's corrector without a model, or whatever else shows what the model adds.
    discard_ps
        Taken from the beginning of every trajectory, of the reference too.
    files
        ``"reference"``, ``"no-model control"`` or a candidate's name → names of its files, for the record.

    Returns
    -------
    dict
        What ``metrics.json`` holds.

    Raises
    ------
    InputError
        No candidate, a name that is taken, a negative `discard_ps`.
    DataError
        The trajectories do not fit together; the message says which and why.
    """
    from .write import write

    return write(Path(out), reference, candidates, control, discard_ps, files or {})
