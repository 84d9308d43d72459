"""What is kept of a run: histograms, means, a spectrum, counts. All comparisons are made of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ...datasets.trajectory import Trajectory
from ..report.bonding import bond_angles, bond_lengths, internal_coordinates, type_name
from ..report.compare import BROKEN
from ..report.nve import fit_drift
from . import metrics, torsions

NO_CELL = (np.zeros((3, 3)), np.zeros(3, dtype=bool))
MOST_DISTANCES = 2_000_000  # pair distances per run; of a longer one every k-th frame is looked at
PAIR_WIDTH = 0.025  # Å, of a bin
SEGMENTS = (250.0, 2000.0)  # fs, shortest and longest window of the spectrum
KINDS = {"bonds": "Å", "angles": "°", "dihedrals": "°", "torsions": "°", "pairs": "Å"}


@dataclass(frozen=True)
class Coordinates:
    """What is looked at in one molecule, and in which bins: all fixed by the reference.

    Attributes
    ----------
    numbers
        (N,)
    bonds, angles, dihedrals, torsions
        (P, 2), (Q, 3), (D, 4), (R, 4) int. Torsions are the dihedrals of rotatable bonds, one for each.
    names
        Kind → (P,), (Q,), (D,), (R,) names. Bonds, angles and dihedrals with the same name share a histogram; every
        torsion has its own.
    edges
        (kind, name) → edges of its bins.
    wells
        Of every torsion, degrees.
    clear
        (D,) bool: dihedrals that have a mean in the reference.
    """

    numbers: np.ndarray
    bonds: np.ndarray
    angles: np.ndarray
    dihedrals: np.ndarray
    torsions: np.ndarray
    names: dict[str, np.ndarray]
    edges: dict[tuple[str, str], np.ndarray]
    wells: list[np.ndarray]
    clear: np.ndarray

    def values(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Kind → (T, n) Å or degrees, for positions (T, N, 3)."""
        return {
            "bonds": bond_lengths(positions, self.bonds, *NO_CELL),
            "angles": bond_angles(positions, self.angles, *NO_CELL),
            "dihedrals": torsions.dihedral_angles(positions, self.dihedrals),
            "torsions": torsions.dihedral_angles(positions, self.torsions),
        }


def find_coordinates(references: Sequence[Trajectory]) -> Coordinates:
    """Bonds of the first frame of the first reference; bins and wells of all references together."""
    first = references[0]
    numbers, frame = np.asarray(first.numbers), np.asarray(first.positions[0], dtype=float)
    inner = internal_coordinates(numbers, frame, *NO_CELL)
    chains = torsions.proper_dihedrals(inner.bonds, frame)
    turning = torsions.rotatable_dihedrals(numbers, inner.bonds, frame)
    names = {
        "bonds": inner.bond_types,
        "angles": inner.angle_types,
        "dihedrals": np.array([_dihedral_type(numbers[c]) for c in chains], dtype=object),
        "torsions": np.array(
            ["–".join(f"{chemical_symbols[numbers[a]]}{a}" for a in c) for c in turning], dtype=object
        ),
    }
    bare = Coordinates(
        numbers, inner.bonds, inner.angles, chains, turning, names, {}, [], np.zeros(len(chains), dtype=bool)
    )
    pooled = [bare.values(np.asarray(t.positions)) for t in references]
    edges: dict[tuple[str, str], np.ndarray] = {}
    for kind, labels in names.items():
        for name in dict.fromkeys(labels.tolist()):
            if kind in ("dihedrals", "torsions"):
                edges[kind, name] = np.linspace(-180, 180, metrics.DIHEDRAL_BINS + 1)
            else:
                edges[kind, name] = metrics.bin_edges(np.concatenate([v[kind][:, labels == name] for v in pooled]))
    if len(numbers) > 1:
        reach = max(float(pair_distances(t.positions).max()) for t in references)
        edges["pairs", "all pairs"] = np.arange(0.5, reach + PAIR_WIDTH, PAIR_WIDTH)
    wells = [torsions.find_wells(np.concatenate([v["torsions"][:, k] for v in pooled])) for k in range(len(turning))]
    directions = np.mean([metrics.mean_direction(v["dihedrals"]) for v in pooled], axis=0)
    return replace(bare, edges=edges, wells=wells, clear=np.abs(directions) >= metrics.CLEAR_MEAN)


def _dihedral_type(numbers: np.ndarray) -> str:
    """The same name from both ends."""
    return type_name(numbers if tuple(numbers) <= tuple(numbers[::-1]) else numbers[::-1])


def pair_distances(positions: np.ndarray) -> np.ndarray:
    """Å: distances of all pairs of atoms, of at most so many frames that `MOST_DISTANCES` is not exceeded."""
    positions = np.asarray(positions)
    i, j = np.triu_indices(positions.shape[1], 1)
    every = max(1, math.ceil(len(positions) * len(i) / MOST_DISTANCES))
    shown = positions[::every]
    return np.linalg.norm(shown[:, i] - shown[:, j], axis=-1)


@dataclass(frozen=True)
class View:
    """The same stretch and the same interval for all that are compared: `duration` and `interval`, fs.

    A longer run has smoother histograms, one with frames closer together a wider spectrum; neither is a virtue of the
    dynamics.
    """

    duration: float
    interval: float

    @property
    def segment(self) -> float:
        """fs in one window of the spectrum."""
        return float(np.clip(self.duration / 4, SEGMENTS[0], SEGMENTS[1]))

    def of(self, trajectory: Trajectory) -> Trajectory:
        """The first frames of a trajectory, `interval` apart as nearly as whole numbers of its frames allow."""
        stride = max(1, round(self.interval / trajectory.interval))
        step = stride * trajectory.interval
        frames = slice(0, stride * int(self.duration / step + 1e-6) + 1, stride)
        return replace(
            trajectory,
            positions=np.asarray(trajectory.positions[frames], dtype=float),
            velocities=np.asarray(trajectory.velocities[frames], dtype=float),
            energies=None if trajectory.energies is None else np.asarray(trajectory.energies[frames], dtype=float),
            forces=None,
            interval=step,
        )


@dataclass(frozen=True)
class Features:
    """One run, or several pooled, seen through a `View`.

    Attributes
    ----------
    picoseconds
        Length; of pooled runs their sum.
    histograms
        (kind, name) → counts on the bins of `Coordinates.edges`.
    means
        ``"bonds"`` (P,) Å, ``"angles"`` (Q,) degrees, ``"dihedrals"`` (D,) mean unit vectors as complex numbers.
    averages
        (kind, name) → mean over all bonds or angles of a type and its standard error, Å or degrees. Of one run only.
    wavenumbers, spectrum
        (K,) cm⁻¹ and per cm⁻¹.
    flips
        (R,) of every torsion.
    temperatures
        Atomic number (0: all) → mean and standard error, K. Of one run only.
    drift, drift_error
        meV/atom/ps; NaN without energies. Of one run only.
    times, total
        (T,) fs and total energy in meV/atom from its mean; empty without energies. Of one run only.
    broken
        Bonds that are broken in the last frame.
    """

    picoseconds: float
    histograms: dict[tuple[str, str], np.ndarray]
    means: dict[str, np.ndarray]
    averages: dict[tuple[str, str], tuple[float, float]]
    wavenumbers: np.ndarray
    spectrum: np.ndarray
    flips: np.ndarray
    temperatures: dict[int, tuple[float, float]]
    drift: float
    drift_error: float
    times: np.ndarray
    total: np.ndarray
    broken: int


def measure(trajectory: Trajectory, coordinates: Coordinates, view: View) -> Features:
    """What `view` shows of a trajectory."""
    seen = view.of(trajectory)
    values = coordinates.values(seen.positions)
    histograms = {
        (kind, name): metrics.histogram(
            pair_distances(seen.positions) if kind == "pairs" else values[kind][:, coordinates.names[kind] == name],
            edges,
        )
        for (kind, name), edges in coordinates.edges.items()
    }
    times = seen.interval * np.arange(len(seen))
    total, drift, error = np.zeros(0), math.nan, math.nan
    if seen.energies is not None:
        energies = seen.energies + metrics.kinetic_energies(seen.velocities, seen.masses).sum(axis=1)
        drift, error, _ = fit_drift(times, energies, len(seen.numbers))
        total = 1000 * (energies - energies.mean()) / len(seen.numbers)
    grid = np.arange(0.0, metrics.nyquist(view.interval), 1 / (view.segment * metrics.LIGHT))
    spectrum = np.interp(
        grid, *metrics.power_spectrum(seen.velocities, seen.masses, seen.interval, view.segment), right=0.0
    )
    limit = BROKEN * covalent_radii[coordinates.numbers[coordinates.bonds]].sum(axis=1)
    return Features(
        picoseconds=float(times[-1]) / 1000,
        histograms=histograms,
        means={
            "bonds": values["bonds"].mean(axis=0),
            "angles": values["angles"].mean(axis=0),
            "dihedrals": metrics.mean_direction(values["dihedrals"]),
        },
        averages={
            (kind, name): metrics.mean_with_error(values[kind][:, coordinates.names[kind] == name].mean(axis=1))
            for kind, name in coordinates.edges
            if kind in ("bonds", "angles")
        },
        wavenumbers=grid,
        spectrum=spectrum,
        flips=np.array([torsions.count_flips(values["torsions"][:, k], w) for k, w in enumerate(coordinates.wells)]),
        temperatures={
            z: metrics.mean_with_error(series)
            for z, series in metrics.temperatures(seen.velocities, seen.masses, seen.numbers).items()
        },
        drift=drift,
        drift_error=error,
        times=times,
        total=total,
        broken=int((values["bonds"][-1] > limit).sum()),
    )


def pool(runs: Sequence[Features]) -> Features:
    """Several runs of one `View` as one; what only a single run has is that of the first."""
    if len(runs) == 1:
        return runs[0]
    return replace(
        runs[0],
        picoseconds=sum(run.picoseconds for run in runs),
        histograms={key: np.sum([run.histograms[key] for run in runs], axis=0) for key in runs[0].histograms},
        means={key: np.mean([run.means[key] for run in runs], axis=0) for key in runs[0].means},
        spectrum=np.mean([run.spectrum for run in runs], axis=0),
        flips=np.sum([run.flips for run in runs], axis=0),
        broken=sum(run.broken for run in runs),
    )
