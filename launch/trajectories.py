"""`distillase trajectories`: molecules in, a teacher's own dynamics out, in one dataset file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ..ase_calcs.errors import DataError, InputError, TeacherError
from ..ase_calcs.progress import Progress
from ..ase_calcs.teachers import parse_teacher, teacher_version
from ..datasets.sampling import TrajectoryConfig, run_trajectories
from ..datasets.sampling.trajectories import WORK
from ..datasets.structure import Structure
from ..datasets.trajectory import FILE_NAME
from .pipeline import available_cores
from .stages import differences, named_input, plain, write_text
from .summary import ROWS_SHOWN, plain_table, render, show_intake

RECORD = "trajectories.yaml"
GROWING = ("trajectories", "picoseconds")  # a folder takes more of these


@dataclass(frozen=True)
class Order:
    """What the command line asks for.

    Attributes
    ----------
    molecules
        Files and SMILES.
    teacher
        Registry name.
    config
        How to run.
    seed
        Of embedding, velocities and noise.
    allow_no_hydrogen
        Accept a set of molecules without a single hydrogen.
    """

    molecules: tuple[str, ...]
    teacher: str
    config: TrajectoryConfig
    seed: int = 0
    allow_no_hydrogen: bool = False

    def record(self) -> dict[str, Any]:
        """Everything that the frames depend on, as plain values; files by name and content."""
        return plain(
            {
                "molecules": [named_input(item) for item in self.molecules],
                "teacher": self.teacher,
                "teacher_version": teacher_version(self.teacher),
                "seed": self.seed,
                "allow_no_hydrogen": self.allow_no_hydrogen,
                **asdict(self.config),
            }
        )


def make_trajectories(order: Order, folder: Path, *, workers: int, progress: Progress) -> None:
    """Run, and print a table of what became of each trajectory.

    Parameters
    ----------
    order
        What to compute.
    folder
        Gets ``trajectories.h5``, the record `RECORD`, and ``trajectories/`` with what an interrupted run goes on from.
    workers
        Processes; 0 is one for every core.
    progress
        Where to report to.

    Raises
    ------
    InputError
        The folder was made with other settings.
    TeacherError
        Some trajectories ended before their time. The others, and what there is of these, are in the file.
    """
    parse_teacher(order.teacher)
    record = order.record()
    _check_record(folder, record)
    structures = _read(order, progress)
    write_text(folder / RECORD, yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=120))
    result = run_trajectories(
        structures,
        folder,
        teacher=order.teacher,
        config=order.config,
        seed=order.seed,
        workers=workers or available_cores(),
        progress=progress,
    )
    progress.say("\n" + _table(result.records))
    if result.stopped:
        first = result.stopped[0]
        raise TeacherError(
            f"{len(result.stopped)} of {len(result.records)} trajectories ended before their time, the first of them "
            f"{first['group']}, {first['origin']}, {first['stopped']}. What was computed up to there is in "
            f"{result.path}, with the reason in its record."
        )


def _check_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else, or more than is asked for now."""
    path = folder / RECORD
    begun = (folder / FILE_NAME).exists() or any((folder / WORK).glob("*.frames"))
    if not begun or not path.is_file():
        return
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        grown = {key: record[key] for key in GROWING if record[key] > old[key]}
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as the record of a run ({error}). Name another folder with --out."
        ) from error
    lines = differences(old, {**record, **{key: old[key] for key in grown}})
    if lines:
        raise InputError(
            f"{folder} holds trajectories made with other settings:\n" + "\n".join(lines) + "\nGive the old "
            "settings (more trajectories or picoseconds are allowed), or another folder with --out."
        )


def _read(order: Order, progress: Progress) -> list[Structure]:
    from ..datasets.readers import read_structures

    if not order.molecules:
        raise InputError(
            "There are no molecules to work on: name files (.smi .sdf .xyz .extxyz .db .pdb .h5) or SMILES."
        )
    intake = read_structures(list(order.molecules), seed=order.seed, allow_no_hydrogen=order.allow_no_hydrogen)
    show_intake(intake, progress)
    if not intake.structures:
        raise DataError("None of the molecules could be used; the reasons stand above.")
    return intake.structures


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    """Those that ended early first, where not all can be shown."""
    verlet = any("energy_drift" in record for record in records)
    columns = {"molecule": "left", "trajectory": "left", "frames": "right", "mean K": "right"}
    columns |= {"drift, meV/atom/ps": "right"} if verlet else {}
    table = plain_table({**columns, "gradients": "right", "s": "right", "ended early": "left"})
    shown = sorted(records, key=lambda r: "stopped" not in r)[:ROWS_SHOWN] if len(records) > ROWS_SHOWN else records
    for r in shown:
        drift = [f"{r['energy_drift']:+.4f}" if "energy_drift" in r else ""] if verlet else []
        kelvin = f"{r['mean_temperature_K']:.1f}" if "mean_temperature_K" in r else ""
        table.add_row(
            r["group"], r["origin"], str(r["frames"]), kelvin, *drift,
            str(r["teacher_gradients"]), f"{r['seconds']:.1f}", r.get("stopped", ""),
        )  # fmt: skip
    rest = f"\n… and {len(records) - len(shown)} more" if len(shown) < len(records) else ""
    return render(table) + rest
