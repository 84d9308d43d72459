"""What ensembles of Cα chains are compared by: pure functions on positions (T, B, 3) in Å."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ase_calcs.dynamics import effective_sample_size
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


# Of four Cα atoms in a row: their dihedral (degrees) and the distance of the outer two (Å), middle and half width. From
# the criteria of P-SEA (Labesse et al., 10.1093/bioinformatics/13.3.291).
_SECONDARY = {"helix": ((50.0, 20.0), (5.3, 0.5)), "strand": ((-170.0, 45.0), (9.9, 0.9))}


def secondary_structure(x: np.ndarray) -> dict[str, np.ndarray]:
    """``helix`` and ``strand`` → (B,) how often a residue is part of four in a row that are shaped like one."""
    n = x.shape[1]
    found = {name: np.zeros(n) for name in _SECONDARY}
    if n < 4:
        return found
    turn = np.degrees(dihedrals(x))
    span = np.linalg.norm(x[:, 3:] - x[:, :-3], axis=-1)
    for name, ((angle, wide), (length, long)) in _SECONDARY.items():
        off = (turn - angle + 180.0) % 360.0 - 180.0
        there = (np.abs(off) <= wide) & (np.abs(span - length) <= long)
        part = np.zeros((len(x), n), dtype=bool)
        for k in range(4):
            part[:, k : n - 3 + k] |= there
        found[name] = part.mean(0)
    return found


def handedness(x: np.ndarray) -> np.ndarray:
    """(D,) share of each dihedral's values that are positive, which tells a chain from its mirror image."""
    return (dihedrals(x) > 0).mean(0)


@dataclass(frozen=True)
class Tica:
    """The slowest linear combinations of distances: time-lagged independent components.

    Attributes
    ----------
    mean
        (P,) Å.
    components
        (P, K); projections have unit variance in the data they were fitted to.
    correlations
        (K,) after the lag.
    """

    mean: np.ndarray
    components: np.ndarray
    correlations: np.ndarray

    def project(self, x: np.ndarray) -> np.ndarray:
        """(T, K)."""
        return (pair_distances(x) - self.mean) @ self.components


def fit_tica(runs: Sequence[np.ndarray], lag: int = 10, n: int = 2, ridge: float = 1e-6) -> Tica | None:
    """From runs (T, B, 3) of the reference, with reversible estimators (Pérez-Hernández et al., 10.1063/1.4811489).

    Returns
    -------
    Tica or None
        None where no run is longer than the lag.
    """
    from scipy.linalg import eigh

    series = [pair_distances(run) for run in runs if len(run) > lag]
    if not series or series[0].shape[1] < n:
        return None
    first, later = (np.concatenate([part(s) for s in series]) for part in (lambda s: s[:-lag], lambda s: s[lag:]))
    mean = 0.5 * (first.mean(0) + later.mean(0))
    a, b = first - mean, later - mean
    now = (a.T @ a + b.T @ b) / (2 * len(a))
    then = (a.T @ b + b.T @ a) / (2 * len(a))
    now += ridge * np.trace(now) / len(now) * np.eye(len(now))
    values, vectors = eigh(then, now)
    order = np.argsort(values)[::-1][:n]
    return Tica(mean, vectors[:, order], values[order])


def correlation_time(values: np.ndarray, interval: float) -> float:
    """Integrated autocorrelation time of a series (T,), in the unit of `interval`; NaN for a constant."""
    values = values[np.isfinite(values)]
    if len(values) < 4 or values.std() == 0:
        return float("nan")
    return interval * len(values) / (2 * effective_sample_size(values))
