"""Backbones that tests make, and files of them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import biotite.structure as structure
import h5py
import numpy as np
import torch
from biotite.structure.io import pdb

from distillase.ase_calcs.proteins.backbone import ATOMS, CA, OMEGA, C, Frames, N, build_backbone
from distillase.ase_calcs.proteins.residues import THREE_LETTER
from distillase.datasets.proteins.backbones import BackboneFrames, completed, starts_of
from distillase.datasets.proteins.frames import types_of

SEQUENCE = "GAPWLYVT:KDEP"


def rotations(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.float64, generator=generator))[0]
    return q * torch.linalg.det(q)[..., None, None]


def made(sequence: str = SEQUENCE, count: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residue types, torsions (T, L, 3) and backbones (T, L, 5, 3), parts 30 Å apart."""
    rng = np.random.default_rng(seed)
    types, starts = torch.as_tensor(types_of(sequence)), torch.as_tensor(starts_of(sequence))
    torsions = torch.as_tensor(rng.uniform(-math.pi, math.pi, (count, len(types), 3)))
    torsions[..., OMEGA] = math.pi + torch.as_tensor(rng.normal(0, 0.1, (count, len(types))))
    origin = torch.cumsum(starts, 0)[:, None] * torch.tensor([30.0, 0.0, 0.0], dtype=torch.float64)
    begin = Frames(rotations(count, len(types), seed=seed), origin.expand(count, -1, -1))
    return types, torsions, build_backbone(types, torsions, starts=starts, begin=begin)


def frames(sequence: str = SEQUENCE, name: str = "made", count: int = 4) -> BackboneFrames:
    _, _, x = made(sequence, count)
    whole, built = completed(sequence, x.numpy())
    return BackboneFrames(name, sequence, whole, built, np.full(count, 300.0), np.array(["run"] * count))


def atom_array(p: BackboneFrames, frame: int, rename: dict[int, str] | None = None) -> structure.AtomArray:
    letters = p.sequence.replace(":", "")
    atoms = []
    for k, letter in enumerate(letters):
        for a, name in enumerate(ATOMS):
            if name == "CB" and letter == "G":
                continue
            atoms.append(
                structure.Atom(
                    p.positions[frame, k, a], chain_id="A", res_id=k + 1, element=name[0], atom_name=name,
                    res_name=(rename or {}).get(k, THREE_LETTER[letter]),
                )
            )  # fmt: skip
    return structure.array(atoms)


def write_pdb(path: Path, models: list[structure.AtomArray]) -> Path:
    lines = []
    for k, model in enumerate(models):
        file = pdb.PDBFile()
        file.set_structure(model)
        lines += [f"MODEL     {k + 1:4d}", *(line for line in file.lines if line.startswith("ATOM")), "ENDMDL"]
    path.write_text("\n".join(lines) + "\nEND\n")
    return path


def write_h5(path: Path, p: BackboneFrames, *, omega_before: bool = False, swap: bool = False) -> Path:
    torsions = p.torsions()
    if omega_before:
        torsions[:, 1:, OMEGA] = torsions[:, :-1, OMEGA].copy()
    with h5py.File(path, "w") as file:
        for k, name in ((N, "coords_N"), (CA, "coords_ca"), (C, "coords_C")):
            file[name] = p.positions[:, :, k].astype(np.float32)
        file["mask_ca"] = np.ones(p.positions.shape[:2])
        for k, name in enumerate(("phi", "psi", "omega")):
            pair = np.stack([np.sin(torsions[..., k]), np.cos(torsions[..., k])], axis=-1)
            file[f"torsion_{name}_sincos"] = pair[..., ::-1] if swap else pair
    return path


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path
