"""What trajectories are compared by: pure functions on arrays, in Å, degrees, fs, eV, K, u and cm⁻¹."""

from __future__ import annotations

import numpy as np
from ase import units

from ...ase_calcs.dynamics import effective_sample_size

LIGHT = 2.99792458e-5  # cm/fs
BINS = 40  # of a histogram, besides one for everything below and one for everything above
DIHEDRAL_BINS = 36
CLEAR_MEAN = 0.5  # length of the mean unit vector below which a dihedral has no mean direction worth the name


def bin_edges(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """(bins + 1,) edges over the middle 99.9 % of `values`; what lies outside has bins of its own in `histogram`."""
    low, high = np.percentile(values, [0.05, 99.95])
    margin = 1e-9 * max(1.0, abs(low), abs(high))
    return np.linspace(low - margin, high + margin, bins + 1)


def histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(len(edges) + 1,) counts: below the first edge, the bins, above the last edge. Nothing is dropped."""
    places = np.searchsorted(edges, np.asarray(values).ravel(), side="right")
    return np.bincount(places, minlength=len(edges) + 1).astype(float)


def density(counts: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(len(edges) − 1,) probability per unit, from the counts of `histogram`."""
    return counts[1:-1] / max(float(counts.sum()), 1e-300) / np.diff(edges)


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen–Shannon divergence of two histograms on the same bins, in bits: 0 for equal ones, 1 for disjoint ones.

    ½ Σ p log₂(p/m) + ½ Σ q log₂(q/m) with m = (p + q)/2. Source: Lin, IEEE Trans. Inf. Theory 37, 145 (1991). The
    histograms need not be normalised. NaN if one of them is empty.
    """
    if p.sum() <= 0 or q.sum() <= 0:
        return float("nan")
    p, q = p / p.sum(), q / q.sum()
    middle = 0.5 * (p + q)
    total = 0.0
    for side in (p, q):
        filled = side > 0
        total += 0.5 * float((side[filled] * np.log2(side[filled] / middle[filled])).sum())
    return min(1.0, max(0.0, total))


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root of the mean squared difference; NaN for nothing."""
    return float(np.sqrt(np.mean((np.asarray(a) - np.asarray(b)) ** 2))) if len(a) else float("nan")


def mean_direction(degrees: np.ndarray) -> np.ndarray:
    """(T, D) degrees → (D,) complex, the mean of exp(iφ).

    Its argument is the circular mean, its length the concentration.

    Source: Mardia and Jupp, *Directional Statistics* (2000), section 2.2.
    """
    return np.exp(1j * np.radians(degrees)).mean(axis=0)


def circular_rmse(a: np.ndarray, b: np.ndarray, clear: np.ndarray) -> float:
    """RMS difference in degrees of circular means given as `mean_direction`, over the dihedrals that are `clear`.

    Parameters
    ----------
    a, b
        (D,) complex.
    clear
        (D,) bool: those that have a mean. A freely turning methyl group has none.
    """
    if not clear.any():
        return float("nan")
    return float(np.sqrt(np.mean(np.degrees(np.angle(a[clear] * np.conj(b[clear]))) ** 2)))


def kinetic_energies(velocities: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """(T, N, 3) Å/fs and (N,) u → (T, N) eV."""
    return 0.5 * np.asarray(masses)[None, :] * (np.asarray(velocities) ** 2).sum(axis=-1) / units.fs**2


def temperatures(velocities: np.ndarray, masses: np.ndarray, numbers: np.ndarray) -> dict[int, np.ndarray]:
    """(T,) K of every element, and of all atoms under 0: Σ m v² / (3 N k_B), no degree of freedom subtracted.

    The same thermometer as `distillase.ase_calcs.dynamics.element_temperatures`.
    """
    each = kinetic_energies(velocities, masses) / (1.5 * units.kB)
    numbers = np.asarray(numbers)
    return {0: each.mean(axis=1)} | {int(z): each[:, numbers == z].mean(axis=1) for z in np.unique(numbers)}


def mean_with_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of a correlated series (T,) and its standard error, from `effective_sample_size`."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values.mean()) if len(values) else float("nan"), float("nan")
    # Four draws at the least: a series shorter than its memory knows nothing of its error.
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(max(effective_sample_size(values), 4.0)))


def nyquist(interval: float) -> float:
    """cm⁻¹: the highest wavenumber that frames `interval` fs apart can show; higher ones are folded below it."""
    return 0.5 / (interval * LIGHT)


def power_spectrum(
    velocities: np.ndarray, masses: np.ndarray, interval: float, segment: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mass-weighted power spectrum of the velocities: the vibrational density of states of a classical system.

    By the Wiener–Khinchin theorem the Fourier transform of the velocity autocorrelation of Dickey and Paskin, Phys.
    Rev. 188, 1407 (1969); averaged over half-overlapping Hann windows after Welch, IEEE Trans. Audio Electroacoust.
    15, 70 (1967).

    Parameters
    ----------
    velocities
        (T, N, 3) Å/fs.
    masses
        (N,) u.
    interval
        fs between two frames.
    segment
        fs in one window: the resolution is 1/(c · segment). Cut to the run.

    Returns
    -------
    wavenumbers, density
        (K,) cm⁻¹ from 0 to the Nyquist limit, and per cm⁻¹ with unit area.
    """
    weighted = np.asarray(velocities).reshape(len(velocities), -1) * np.sqrt(np.repeat(masses, 3))
    n = int(np.clip(round(segment / interval), 2, len(weighted)))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)
    starts = range(0, len(weighted) - n + 1, max(1, n // 2))
    power = np.zeros(n // 2 + 1)
    for start in starts:
        transform = np.fft.rfft(weighted[start : start + n] * window[:, None], axis=0)
        power += (np.abs(transform) ** 2).sum(axis=1)
    wavenumbers = np.fft.rfftfreq(n, interval) / LIGHT
    area = float(power.sum()) * (wavenumbers[1] - wavenumbers[0])
    return wavenumbers, power / max(area, 1e-300)
