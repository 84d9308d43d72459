"""What the commands `distillase ensemble …` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..ase_calcs.errors import DataError, InputError
from ..ase_calcs.progress import Progress
from ..ase_calcs.proteins.backbone import CB, O
from ..ase_calcs.proteins.ramachandran import shares
from ..ase_calcs.proteins.validity import defects
from ..datasets.proteins.backbones import BackboneFrames, read_backbones, write_backbones
from ..datasets.proteins.manifest import read_manifest
from ..datasets.proteins.reference import RECORD
from ..datasets.proteins.structures import read_reference, read_structure, read_trajectory
from .summary import plain_table, render

_GLYCINE = "G"


def prepare_ensembles(
    sources: Sequence[str],
    out: Path,
    *,
    trajectories: Sequence[str],
    temperatures: tuple[float, ...],
    stride: int,
    progress: Progress,
) -> None:
    """`distillase ensemble prepare`."""
    moving = _by_name(trajectories, [name or path.stem for name, path in map(_named, sources)])
    found: dict[str, BackboneFrames] = {}
    read: list[str] = []
    for text in sources:
        name, path = _named(text)
        for protein in _read(name, path, moving.pop(name or path.stem, []), temperatures, stride):
            found[protein.name] = _joined(found[protein.name], protein) if protein.name in found else protein
        read.append(path.name)
    if moving:
        raise InputError(f"--trajectory names {', '.join(moving)}; no source is called that.")
    table = plain_table(
        {
            "protein": "left", "residues": "right", "parts": "right", "conformations": "right", "built O, Cβ": "right",
            "favoured": "right", "outliers": "right", "valid": "right", "strictly": "right",
        }
    )  # fmt: skip
    for protein in found.values():
        table.add_row(*_row(protein))
    write_backbones(out, list(found.values()), {"sources": read})
    progress.say(render(table))
    progress.say(
        "Favoured and outliers: (φ, ψ) of Lovell et al. 2003. Valid: not torn and nothing on top of something else "
        "(BioEmu's filter); strictly: no strained peptide, overlap, twisted peptide bond or D residue either."
    )
    progress.say(f"\n{out}: {sum(len(p.positions) for p in found.values())} conformations of {len(found)} proteins")


def _named(text: str) -> tuple[str, Path]:
    """``NAME=PATH``; a path that exists is one, whatever it looks like."""
    if Path(text).exists() or "=" not in text:
        return "", Path(text)
    name, _, path = text.partition("=")
    return name, Path(path)


def _by_name(trajectories: Sequence[str], names: Sequence[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for text in trajectories:
        name, path = _named(text)
        if not name and len(names) > 1:
            raise InputError(
                f"`--trajectory {text}`: there are {len(names)} sources. Write NAME={text}, and name them."
            )
        found.setdefault(name or names[0], []).append(path)
    return found


def _read(
    name: str, path: Path, trajectories: Sequence[Path], temperatures: tuple[float, ...], stride: int
) -> list[BackboneFrames]:
    if trajectories:
        return [read_trajectory(path, trajectory, name or path.stem, stride) for trajectory in trajectories]
    if path.is_dir():
        if not (path / RECORD).is_file():
            raise InputError(f"{path} is no folder of `distillase cg reference`.")
        return [read_reference(path, temperatures, name or path.name, stride)]
    if path.suffix.lower() == ".csv":
        return read_manifest(path)
    if path.suffix.lower() == ".h5":
        return read_backbones(path)
    return [read_structure(path, name or path.stem)]


def _joined(one: BackboneFrames, other: BackboneFrames) -> BackboneFrames:
    if one.sequence != other.sequence:
        raise DataError(
            f"Two sources of {one.name} have other residues: {one.sequence} and {other.sequence}. Give them names of "
            "their own, NAME=SOURCE."
        )
    positions, temperatures, origins = (
        np.concatenate([getattr(p, key) for p in (one, other)]) for key in ("positions", "temperatures", "origins")
    )
    return BackboneFrames(one.name, one.sequence, positions, one.built | other.built, temperatures, origins)


def _row(p: BackboneFrames) -> list[str]:
    types, starts = torch.as_tensor(p.types), torch.as_tensor(p.starts)
    favoured, outliers = shares(torch.as_tensor(p.torsions()), types, starts)
    found = defects(types, torch.as_tensor(p.positions), starts, torch.as_tensor(p.built)).summary()
    has_cb = np.array(list(p.sequence.replace(":", ""))) != _GLYCINE
    missing = int(p.built[:, O].sum() + (p.built[:, CB] & has_cb).sum())
    return [
        p.name, str(len(types)), str(int(starts.sum())), str(len(p.positions)), str(missing), f"{favoured:.1%}",
        f"{outliers:.1%}", f"{found['loose']:.0%}", f"{found['strict']:.0%}",
    ]  # fmt: skip
