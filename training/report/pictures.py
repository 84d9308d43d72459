"""Which structures are shown: a random sheet of training structures and the worst cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from .pymol import Case
from .structures import Arrow, structure_svg

LONGEST = 1.6  # Å on the picture, of the strongest force
ERROR_LONGEST = 1.2  # Å, of the largest error
FEW_ARROWS = 14  # atoms with arrows; those with the largest errors


def training_sheet(material: Any) -> list[dict[str, Any]]:
    """Random training structures (held-out ones where there is no training set), from different molecules first."""
    rng = np.random.default_rng([material.config.seed, 1])
    indices = material.splits.get("train", material.held_out.frames)
    if not len(indices) or not material.config.n_structures:
        return []
    groups = np.asarray(material.dataset.group)[indices].astype(str)
    # One frame of every molecule before a second one of any.
    shuffled = rng.permutation(len(indices))
    order = np.zeros(len(indices), dtype=int)
    count: dict[str, int] = {}
    for k in shuffled:
        order[k] = count[groups[k]] = count.get(groups[k], -1) + 1
    chosen = sorted(shuffled, key=lambda k: order[k])[: material.config.n_structures]
    pictures = []
    for k in chosen:
        structure = material.dataset.structure(int(indices[k]))
        hydrogens = int((structure.numbers == 1).sum())
        pictures.append(
            {
                "svg": structure_svg(structure),
                "name": structure.group or f"frame {indices[k]}",
                "origin": structure.origin,
                "n_atoms": len(structure),
                "n_hydrogens": hydrogens,
                "charge": structure.charge,
            }
        )
    return pictures


def worst_pictures(material: Any) -> list[dict[str, Any]]:
    """The worst cases with arrows; scales are common to all of them and returned with each."""
    rows = material.numbers["worst"]
    held = material.held_out
    if not rows:
        return []
    strongest = max(float(np.linalg.norm(held.forces[held.atoms_of(r["position"])], axis=1).max()) for r in rows)
    largest = max(row["error"] for row in rows)
    scale, error_scale = LONGEST / max(strongest, 1e-9), ERROR_LONGEST / max(largest, 1e-9)
    pictures = []
    for row in rows:
        atoms = held.atoms_of(row["position"])
        reference, predicted = held.forces[atoms], held.forces_predicted[atoms]
        error = np.linalg.norm(predicted - reference, axis=1)
        arrows = []
        for k in np.argsort(-error)[:FEW_ARROWS]:
            arrows.append(Arrow(int(k), scale * reference[k], "reference"))
            arrows.append(Arrow(int(k), scale * predicted[k], "predicted"))
        arrows.append(Arrow(row["atom"], error_scale * (predicted - reference)[row["atom"]], "error"))
        structure = material.dataset.structure(row["frame"])
        svg = structure_svg(structure, arrows=arrows, highlight=row["atom"], width=440)
        pictures.append({**row, "svg": svg, "scale": scale, "error_scale": error_scale, "origin": structure.origin})
    return pictures


def pymol_cases(material: Any) -> list[Case]:
    """The same cases for PyMOL."""
    held = material.held_out
    cases = []
    for row in material.numbers["worst"]:
        atoms = held.atoms_of(row["position"])
        title = f"{row['molecule']}, frame {row['frame']}: error {row['error']:.3f} eV/Å on atom {row['atom']}"
        cases.append(
            Case(material.dataset.structure(row["frame"]), held.forces[atoms], held.forces_predicted[atoms], title)
        )
    return cases
