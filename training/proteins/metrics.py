"""What ensembles of Cα chains are compared by: pure functions on positions (T, B, 3) in Å."""

from __future__ import annotations

import numpy as np

from ...ase_calcs.proteins.geometry import (
    CONTACT,
    CONTACT_APART,
    CONTACT_SHARPNESS,
    CONTACT_STRETCH,
    angles,
    dihedrals,
)
from ..dynamics_report.metrics import histogram, jensen_shannon

_FARTHEST = 60.0  # Å, of histograms; what lies beyond has a bin of its own
KINDS = ("distances", "angles", "dihedrals")


def pairs_of(n_beads: int) -> np.ndarray:
    """(2, P) all pairs."""
    return np.array(np.triu_indices(n_beads, 1))


def pair_distances(x: np.ndarray, pairs: np.ndarray | None = None) -> np.ndarray:
    """(T, P) Å."""
    i, j = pairs_of(x.shape[1]) if pairs is None else pairs
    return np.linalg.norm(x[:, i] - x[:, j], axis=-1)


def edges_of(kind: str) -> np.ndarray:
    """Bins, fixed, so that figures of different references can be compared: 0.5 Å, 5° and 10°."""
    if kind == "distances":
        return np.arange(3.0, _FARTHEST, 0.5)
    return np.linspace(0.0, np.pi, 37) if kind == "angles" else np.linspace(-np.pi, np.pi, 37)


def coordinates(x: np.ndarray) -> dict[str, np.ndarray]:
    """Name of a kind → (T, M): all distances (Å), all angles along the chain, all dihedrals (radians)."""
    return {"distances": pair_distances(x), "angles": angles(x), "dihedrals": dihedrals(x)}


def divergence(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """For each kind the Jensen–Shannon divergence (bits) of its distributions, the mean over its coordinates; NaN where
    the chain is too short to have any."""
    one, other, found = coordinates(a), coordinates(b), {}
    for kind in KINDS:
        columns = zip(one[kind].T, other[kind].T, strict=True)
        edges = edges_of(kind)
        each = [jensen_shannon(histogram(p, edges), histogram(q, edges)) for p, q in columns]
        found[kind] = float(np.mean(each)) if each else float("nan")
    return found


def native_contacts(x: np.ndarray, native: np.ndarray) -> np.ndarray:
    """(T,) Q, the share of contacts of the native structure (B, 3) that are there, smoothly counted.

    Pairs of Cα atoms three or more residues apart and closer than 8 Å. NaN if there are none.
    """
    pairs = pairs_of(len(native))
    there = pair_distances(native[None], pairs)[0]
    contacts = (there < CONTACT) & (pairs[1] - pairs[0] >= CONTACT_APART)
    if not contacts.any():
        return np.full(len(x), np.nan)
    stretched = pair_distances(x, pairs[:, contacts]) - CONTACT_STRETCH * there[contacts]
    return (1 / (1 + np.exp(np.clip(CONTACT_SHARPNESS * stretched, -50, 50)))).mean(1)


def radius_of_gyration(x: np.ndarray) -> np.ndarray:
    """(T,) Å, all beads alike."""
    return np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).sum(-1).mean(1))


def rmsd(x: np.ndarray, native: np.ndarray) -> np.ndarray:
    """(T,) Å, after the best superposition (rotation without reflection) on the native structure (B, 3)."""
    moved, fixed = x - x.mean(1, keepdims=True), native - native.mean(0)
    u, s, v = np.linalg.svd(np.einsum("tbi,bj->tij", moved, fixed))
    handed = np.sign(np.linalg.det(u) * np.linalg.det(v))
    best = s[:, 0] + s[:, 1] + handed * s[:, 2]
    square = (moved**2).sum((1, 2)) + (fixed**2).sum() - 2 * best
    return np.sqrt(np.maximum(square, 0.0) / len(native))
