"""Stages of a run: done once, recorded with what they were made from, gone on with after an interruption.

A stage writes its outputs atomically and then its record, ``.stages/<name>.json``. The same command finds the record
and passes on; a command with other settings is refused, with what differs, because half of a folder made with one
recipe and half with another is worth nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ase_calcs.errors import InputError
from ..ase_calcs.progress import Progress
from .progress import clock

RECORDS = ".stages"


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes
    ----------
    name
        As it is written after ``--restart-from``.
    title
        What the user reads.
    outputs
        Files and folders, relative to the run folder, without which the stage is not finished.
    leftovers
        Files and folders beside the outputs that belong to the stage (caches, checkpoints).
    """

    name: str
    title: str
    outputs: tuple[str, ...]
    leftovers: tuple[str, ...] = ()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def file_hash(path: Path) -> str:
    """Hash of a file's bytes (32 hex digits)."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_file(item: str) -> bool:
    """Whether it names a file, and is no SMILES."""
    try:
        return Path(item).is_file()
    except OSError:  # a SMILES too long for a file name
        return False


def named_input(item: str) -> str:
    """A file by its name and content, wherever it lies; a SMILES as it is."""
    return f"{Path(item).name} ({file_hash(Path(item))[:12]})" if is_file(item) else item


def read_record(folder: Path, stage: Stage) -> dict[str, Any] | None:
    """What is recorded of a stage, or None if it was never begun (or its record is unreadable)."""
    path = folder / RECORDS / f"{stage.name}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "inputs" in record else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line per key whose value is not what it was."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "nothing"), new.get(key, "nothing")
        if before != after:
            lines.append(f"  {key}: {before} there, {after} now")
    return lines


def check_inputs(folder: Path, stage: Stage, inputs: Mapping[str, Any], *, partial: bool = False) -> None:
    """Refuse to go on with a stage that was begun with other inputs.

    Parameters
    ----------
    inputs
        Flat mapping of plain values.
    partial
        Compare only the keys in `inputs` (the hashes of earlier stages' files are not known yet).

    Raises
    ------
    InputError
        With every key that differs, and how to start afresh.
    """
    record = read_record(folder, stage)
    made = any((folder / name).exists() for name in (*stage.outputs, *stage.leftovers))
    if record is None or not (made or record.get("finished")):
        return  # nothing is there yet that could be mixed up: a first try that failed may be mended
    old = record["inputs"]
    if partial:
        old = {key: value for key, value in old.items() if not key.startswith("source.")}
    lines = differences(old, plain(inputs))
    if lines:
        raise InputError(
            f"{folder} holds a run with other settings, so its stage `{stage.name}` cannot be used:\n"
            + "\n".join(lines)
            + f"\nGive the old settings, or another folder with --out, or do this stage and those after it again "
            f"with --restart-from {stage.name} (what is there now is moved to a folder old-<number> in it)."
        )


def run_stage(
    folder: Path,
    stage: Stage,
    inputs: Mapping[str, Any],
    work: Callable[[], Mapping[str, Any] | None],
    progress: Progress,
) -> dict[str, Any]:
    """Do a stage, or pass on if it is done.

    Parameters
    ----------
    folder
        The run folder.
    stage
        Which stage.
    inputs
        Everything its outputs depend on: settings by their recipe key, hashes of files as ``source.<name>``.
    work
        Does it and returns plain values to be recorded; must itself go on from where it was interrupted.
    progress
        Told when the stage is passed over and when it is done.

    Returns
    -------
    dict
        What `work` returned, now or when it was done.
    """
    check_inputs(folder, stage, inputs)
    record = read_record(folder, stage)
    path = folder / RECORDS / f"{stage.name}.json"
    if record and record.get("finished") and all((folder / name).exists() for name in stage.outputs):
        progress.say(f"{stage.title}: done already")
        return record["result"]
    write_text(path, _json({"inputs": plain(inputs), "finished": False}))
    start = time.monotonic()
    result = plain(work() or {})
    seconds = time.monotonic() - start
    record = {"inputs": plain(inputs), "finished": True, "seconds": round(seconds, 3), "result": result}
    write_text(path, _json(record))
    progress.say(f"{stage.title}: done in {clock(seconds)}")
    return result


def set_aside(folder: Path, stages: Sequence[Stage], keep: Sequence[str] = ()) -> Path | None:
    """Move what the stages made to ``old-<n>/``, so that they begin again and nothing is lost.

    Parameters
    ----------
    keep
        Outputs or leftovers that stay where they are (labels are dear).

    Returns
    -------
    Path or None
        The folder they went to; None if there was nothing.
    """
    names = [f"{RECORDS}/{stage.name}.json" for stage in stages]
    names += [name for stage in stages for name in (*stage.outputs, *stage.leftovers) if name not in keep]
    there = [name for name in dict.fromkeys(names) if (folder / name).exists()]
    if not there:
        return None
    number = 1
    while (folder / f"old-{number}").exists():
        number += 1
    target = folder / f"old-{number}"
    for name in there:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / name, target / name)
    return target


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON, so that a tuple equals the list it was written as."""
    return json.loads(json.dumps(values, default=_number))


def _number(value: Any) -> Any:
    if hasattr(value, "item"):  # a NumPy scalar
        return value.item()
    return str(value)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, ensure_ascii=False) + "\n"
