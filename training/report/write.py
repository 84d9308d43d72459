"""`write_report`: measures a student and writes what came out as a page, as JSON and as a PyMOL script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...ase_calcs.progress import Progress, SilentProgress
from .config import ReportConfig


def write_report(
    run_dir: str | Path,
    *,
    model: str | Path,
    dataset: str | Path,
    splits: Mapping[str, Sequence[int]],
    teacher: str | None = None,
    config: ReportConfig | None = None,
    progress: Progress | None = None,
) -> Path:
    """Measure a student against its teacher and write ``report.html``.

    Parameters
    ----------
    run_dir
        Where ``report.html``, ``report.json`` (every number printed) and ``worst_forces.pml`` go, and where
        ``metrics.jsonl`` is looked for; without one there are no learning curves.
    model, dataset
        Model file and labelled dataset.
    splits
        Part → indices of its frames: any of ``train``, ``validation`` and ``test``. Held-out numbers come from
        ``test``.
    teacher
        Name in the teacher registry; None leaves out what needs new teacher calls (MD comparison, speed ratio).
    config
        See `ReportConfig`.
    progress
        Where it reports to.

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    DataError
        The dataset has no labels, or `splits` point outside it.
    """
    raise NotImplementedError
