"""Errors as numbers: whole split, per element, per molecule, by direction, by the surroundings of hydrogens.

All functions return plain dictionaries that go into ``report.json`` as they are. Energies in eV, forces in eV/Å,
angles in degrees.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...datasets.store import Dataset
from .bonding import angle_between, find_bonding
from .evaluate import Evaluation, symbol

Row = dict[str, Any]


def force_errors(reference: np.ndarray, predicted: np.ndarray) -> Row:
    """Force errors over some atoms.

    Parameters
    ----------
    reference, predicted
        (A, 3) eV/Å.

    Returns
    -------
    dict
        ``n_atoms``; ``mae`` and ``rmse`` over Cartesian components, eV/Å; ``rms_reference`` eV/Å; ``relative``, the
        RMSE over the RMS of the reference; ``max``, the longest error vector, eV/Å. None where there are no atoms.
    """
    if len(reference) == 0:
        return {"n_atoms": 0, "mae": None, "rmse": None, "rms_reference": None, "relative": None, "max": None}
    error = predicted - reference
    rmse, rms = float(np.sqrt(np.mean(error**2))), float(np.sqrt(np.mean(reference**2)))
    return {
        "n_atoms": len(reference),
        "mae": float(np.abs(error).mean()),
        "rmse": rmse,
        "rms_reference": rms,
        "relative": rmse / rms if rms > 0 else None,
        "max": float(np.linalg.norm(error, axis=1).max()),
    }


def angle_statistics(reference: np.ndarray, predicted: np.ndarray, threshold: float) -> Row:
    """Angles between predicted and reference force, over atoms whose reference force is at least `threshold` eV/Å.

    Returns
    -------
    dict
        ``n_atoms``, ``masked_share`` (left out), ``mean``, ``p95``, ``max`` in degrees, ``share_under_5deg``.
    """
    strong = np.linalg.norm(reference, axis=1) >= threshold
    masked = float(1 - strong.mean()) if len(strong) else 0.0
    if not strong.any():
        return {"n_atoms": 0, "masked_share": masked, "mean": None, "p95": None, "max": None, "share_under_5deg": None}
    angles = angle_between(reference[strong], predicted[strong])
    return {
        "n_atoms": int(strong.sum()),
        "masked_share": masked,
        "mean": float(angles.mean()),
        "p95": float(np.percentile(angles, 95)),
        "max": float(angles.max()),
        "share_under_5deg": float((angles < 5.0).mean()),
    }


def energy_errors(evaluation: Evaluation) -> Row:
    """Energy errors: ``mae_per_atom`` and ``rmse_per_atom`` in eV per atom, ``mae`` in eV per structure.

    ``mae_relative`` is the MAE in eV after the mean error of each molecule has been taken away: what matters for
    dynamics, where a constant does not.
    """
    known = np.isfinite(evaluation.energy)
    if not known.any():
        return {"n_frames": 0, "mae_per_atom": None, "rmse_per_atom": None, "mae": None, "mae_relative": None}
    error = (evaluation.energy_predicted - evaluation.energy)[known]
    per_atom = error / evaluation.sizes[known]
    _, code = np.unique(evaluation.group[known].astype(str), return_inverse=True)
    mean = np.bincount(code, error) / np.bincount(code)
    return {
        "n_frames": int(known.sum()),
        "mae_per_atom": float(np.abs(per_atom).mean()),
        "rmse_per_atom": float(np.sqrt(np.mean(per_atom**2))),
        "mae": float(np.abs(error).mean()),
        "mae_relative": float(np.abs(error - mean[code]).mean()),
    }


def split_errors(evaluation: Evaluation, threshold: float) -> Row:
    """Everything about one split: frames, forces, angles, energies, and stress and dipole where they are labelled."""
    row: Row = {
        "n_frames": len(evaluation),
        "n_available": evaluation.n_available,
        "n_refused": len(evaluation.refused),
        "forces": force_errors(evaluation.forces, evaluation.forces_predicted),
        "angles": angle_statistics(evaluation.forces, evaluation.forces_predicted, threshold),
        "energy": energy_errors(evaluation),
    }
    for name in ("stress", "dipole"):
        reference, predicted = getattr(evaluation, name), getattr(evaluation, f"{name}_predicted")
        if reference is not None and predicted is not None:
            known = np.isfinite(reference).all(axis=1)
            error = (predicted - reference)[known]
            row[name] = {
                "n_frames": int(known.sum()),
                "mae": float(np.abs(error).mean()) if known.any() else None,
                "rmse": float(np.sqrt(np.mean(error**2))) if known.any() else None,
            }
    return row


def per_element(evaluation: Evaluation, threshold: float) -> list[Row]:
    """One row per element, by atomic number; ``against_carbon`` is its MAE over that of carbon (None without C)."""
    rows = []
    for number in np.unique(evaluation.numbers):
        of = evaluation.numbers == number
        reference, predicted = evaluation.forces[of], evaluation.forces_predicted[of]
        angles = angle_statistics(reference, predicted, threshold)
        rows.append({"element": symbol(number), **force_errors(reference, predicted), "angle_mean": angles["mean"]})
    carbon = next((row["mae"] for row in rows if row["element"] == "C"), None)
    for row in rows:
        row["against_carbon"] = row["mae"] / carbon if carbon else None
    return rows


def per_molecule(evaluation: Evaluation, threshold: float) -> list[Row]:
    """One row per group, the largest force MAE first."""
    frame = evaluation.frame_of_atom
    energy = np.abs(evaluation.energy_predicted - evaluation.energy) / evaluation.sizes
    rows = []
    for group in sorted(set(map(str, evaluation.group))):
        frames = evaluation.group.astype(str) == group
        of = frames[frame]
        reference, predicted = evaluation.forces[of], evaluation.forces_predicted[of]
        known = frames & np.isfinite(energy)
        rows.append(
            {
                "molecule": group,
                "n_frames": int(frames.sum()),
                "atoms": int(evaluation.sizes[frames][0]),
                **force_errors(reference, predicted),
                "angle_mean": angle_statistics(reference, predicted, threshold)["mean"],
                "energy_mae_per_atom": float(energy[known].mean()) if known.any() else None,
            }
        )
    return sorted(rows, key=lambda row: -row["mae"])


def hydrogen_errors(evaluation: Evaluation, dataset: Dataset, threshold: float) -> dict[str, Any]:
    """Errors of hydrogens by what they are bonded to, and of the atoms of hydrogen bonds.

    Returns
    -------
    dict
        ``classes``: rows ``C–H``, ``N–H``, ``O–H``, others, and ``free H``; ``hydrogen_bonds``: rows for the
        hydrogens, donors and acceptors; ``n_hydrogen_bonds``, ``frames_with_hydrogen_bond``; ``all_hydrogens`` and
        ``heavy_atoms`` for comparison.
    """
    partner = np.full(len(evaluation.numbers), -1)
    roles = {role: np.zeros(len(evaluation.numbers), dtype=bool) for role in ("donor", "hydrogen", "acceptor")}
    n_bonds = n_frames = 0
    for k, index in enumerate(evaluation.frames):
        structure = dataset.structure(int(index))
        found = find_bonding(structure.numbers, structure.positions, structure.cell, structure.pbc)
        atoms = evaluation.atoms_of(k)
        hydrogen = structure.numbers == 1
        partner[atoms][hydrogen] = found.partner[hydrogen]
        n_bonds += len(found.hydrogen_bonds)
        n_frames += len(found.hydrogen_bonds) > 0
        for role, column in zip(roles, found.hydrogen_bonds.T, strict=True):
            roles[role][atoms.start + column] = True

    def row(name: str, of: np.ndarray) -> Row:
        reference, predicted = evaluation.forces[of], evaluation.forces_predicted[of]
        angles = angle_statistics(reference, predicted, threshold)
        return {"class": name, **force_errors(reference, predicted), "angle_mean": angles["mean"]}

    order = [6, 7, 8, *sorted(set(partner.tolist()) - {-1, 0, 6, 7, 8})]
    classes = [row(f"{symbol(z)}–H", partner == z) for z in order if z in (6, 7, 8) or (partner == z).any()]
    if (partner == 0).any():
        classes.append(row("free H", partner == 0))
    names = {"donor": "donor D of D–H…A", "hydrogen": "hydrogen H of D–H…A", "acceptor": "acceptor A of D–H…A"}
    hydrogen = evaluation.numbers == 1
    polar_free = np.isin(partner, (7, 8, 9)) & ~roles["hydrogen"]
    return {
        "n_hydrogens": int(hydrogen.sum()),
        "hydrogen_share": float(hydrogen.mean()),
        "classes": classes,
        "hydrogen_bonds": [
            *(row(names[role], mask) for role, mask in roles.items()),
            row("N–H, O–H or F–H without a hydrogen bond", polar_free),
        ],
        "n_hydrogen_bonds": n_bonds,
        "frames_with_hydrogen_bond": int(n_frames),
        "all_hydrogens": row("all hydrogens", hydrogen),
        "heavy_atoms": row("all other atoms", ~hydrogen),
    }


def worst_frames(evaluation: Evaluation, dataset: Dataset, n: int) -> list[Row]:
    """The n frames with the longest error vector on one atom, each with that atom.

    Neighbours in time are bad together, so one frame of each trajectory comes first; more of the same only where there
    are fewer trajectories than n.
    """
    error = np.linalg.norm(evaluation.forces_predicted - evaluation.forces, axis=1)
    if not len(error) or n == 0:
        return []
    worst = np.maximum.reduceat(error, evaluation.offsets[:-1])
    order = np.argsort(-worst, kind="stable").tolist()
    origin = np.asarray(dataset.origin)[evaluation.frames].astype(str)
    count: dict[tuple[str, str], int] = {}
    turn: dict[int, int] = {}
    for k in order:
        trajectory = (str(evaluation.group[k]), origin[k])
        turn[k] = count[trajectory] = count.get(trajectory, -1) + 1
    chosen = sorted(order, key=lambda k: turn[k])[:n]  # stable: the worst of each turn first
    rows = []
    for k in chosen:
        atoms = evaluation.atoms_of(int(k))
        atom = int(np.argmax(error[atoms]))
        rows.append(
            {
                "position": int(k),
                "frame": int(evaluation.frames[k]),
                "molecule": str(evaluation.group[k]),
                "n_atoms": int(evaluation.sizes[k]),
                "atom": atom,
                "element": symbol(evaluation.numbers[atoms][atom]),
                "error": float(error[atoms][atom]),
                "reference": float(np.linalg.norm(evaluation.forces[atoms][atom])),
                "frame_mae": float(np.abs((evaluation.forces_predicted - evaluation.forces)[atoms]).mean()),
            }
        )
    return rows
