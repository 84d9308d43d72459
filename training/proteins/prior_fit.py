"""Fitting the prior: Boltzmann inversion for a start, then force matching.

Boltzmann inversion reads a term's energy off the distribution of its coordinate, −kT ln p(q)/J(q), with the Jacobians
r² of bonds and sin θ of angles; it takes coordinates for independent, which they are not. Force matching takes all
terms together, and knows nothing where there are no data. So the second starts from the first and is held to it, softly
and mostly where nothing was sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from ...ase_calcs.errors import DataError, InputError, check_at_least, check_positive
from ...ase_calcs.evaluation import one_thread
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.geometry import angles, dihedrals
from ...ase_calcs.proteins.prior import (
    LEAST_STIFFNESS,
    Prior,
    PriorTopology,
    Repulsion,
    angle_table,
    bond_table,
    chebyshev_powers,
    dihedral_table,
)
from ...ase_calcs.proteins.residues import CODES
from ...ase_calcs.units import KB, KCAL_PER_MOL
from ...datasets.proteins.beads import BeadFrames

_BINS = 72
_SMOOTH = 1.0  # bins
_LEAST_INTERVALS = 12
_PSEUDO = 0.5  # counts in every bin of a dihedral


@dataclass(frozen=True)
class PriorConfig:
    """How the prior is made.

    Attributes
    ----------
    repulsion
        Between beads six or more apart: ``power4`` or ``lj12-6``.
    cutoff
        Å, of that repulsion.
    n_angle, n_dihedral
        Highest multiples of angles and dihedrals.
    splines
        Intervals of splines that hold the Boltzmann inversion of angles and dihedrals; the series then only correct it
        by the forces. 0: the series alone, which are smooth and have few numbers.
    excluded, distant
        ε of excluded volume and of the repulsion of distant beads, kcal/mol; None: what `Prior` has; 0: without.
    samples
        A residue (or pair) with fewer values than this shares its parameters with the others.
    steps
        Of L-BFGS.
    tolerance
        Gradient at which it stops.
    hold
        Weight of the deviation from Boltzmann inversion, in squared kT, against the relative squared error of forces.
    frames
        At most as many go into force matching.
    """

    repulsion: Repulsion = "power4"
    cutoff: float = 15.0
    n_angle: int = 6
    n_dihedral: int = 4
    splines: int = 0
    excluded: float | None = None
    distant: float | None = None
    samples: int = 1000
    steps: int = 200
    tolerance: float = 1e-6
    hold: float = 1e-3
    frames: int = 20_000

    def __post_init__(self) -> None:
        for name in ("cutoff", "n_angle", "n_dihedral", "samples", "steps", "tolerance", "frames"):
            check_positive(name, getattr(self, name))
        for name in ("splines", "excluded", "distant"):
            check_at_least(f"prior.{name}", getattr(self, name) or 0, 0)
        if 0 < self.splines < _LEAST_INTERVALS:
            raise InputError(f"`prior.splines` is {self.splines}; give 0, or {_LEAST_INTERVALS} intervals or more.")


@dataclass(frozen=True)
class PriorFit:
    """A fitted prior and how good it is.

    Attributes
    ----------
    prior
        The prior.
    rms_force
        Root mean square of the mapped forces, eV/Å per component, and of what the prior leaves: after Boltzmann
        inversion and after force matching.
    steps
        Of L-BFGS.
    """

    prior: Prior
    rms_force: dict[str, float]
    steps: int


def fit_prior(
    proteins: Sequence[BeadFrames],
    temperature: float,
    config: PriorConfig | None = None,
    *,
    progress: Progress | None = None,
    seed: int = 0,
) -> PriorFit:
    """Fit all terms to frames of one temperature.

    Parameters
    ----------
    proteins
        Frames with mapped forces.
    temperature
        K, of the frames; others are for the caller to leave out.
    config
        How.
    seed
        Of the choice of frames, where there are more than are used.

    Raises
    ------
    DataError
        Fewer than a hundred frames, or a bond without stiffness.
    """
    config, progress = config or PriorConfig(), progress or SilentProgress()
    total = sum(len(p.positions) for p in proteins)
    if total < 100:
        raise DataError(f"There are {total} frames at {temperature:g} K; a prior needs a hundred at the very least.")
    prior = Prior(
        repulsion=config.repulsion, cutoff=config.cutoff, n_angle=config.n_angle, n_dihedral=config.n_dihedral,
        splines=config.splines, classes=_classes(proteins, config.samples),
    )  # fmt: skip
    with torch.no_grad():
        for place, value in enumerate((config.excluded, config.distant)):
            if value is not None:
                prior.log_epsilon[place] = float(np.log(value * KCAL_PER_MOL)) if value else -torch.inf
    target = invert(prior, proteins, KB * temperature)
    batches = _batches(proteins, config.frames, np.random.default_rng(seed))
    with one_thread():
        rms = {"total": _residual(None, batches), "inversion": _residual(prior, batches)}
        steps = _match(prior, batches, target, KB * temperature, config, progress)
        rms["matching"] = _residual(prior, batches)
    prior.requires_grad_(False)
    if float(prior.stiffness.min()) < LEAST_STIFFNESS:
        raise DataError(
            f"Force matching gave a bond a stiffness of {float(prior.stiffness.min()):.3g} eV/Å²: the frames hold no "
            "intact chains, or too few of them, or proline both cis and trans, which one spring cannot be. Look at the "
            "distances between neighbouring beads."
        )
    return PriorFit(prior, rms, steps)


def _classes(proteins: Sequence[BeadFrames], least: int) -> dict[str, list[str]]:
    """What is seen often enough to have parameters of its own."""
    counts: dict[str, Counter[str]] = {"bonds": Counter(), "angles": Counter(), "dihedrals": Counter()}
    for p in proteins:
        chains = Chains.from_sequence(p.sequence)
        letters = [CODES[t] for t in chains.types]
        for i, j in chains.bonds:
            counts["bonds"][letters[i] + letters[j]] += len(p.positions)
        for _, j, _ in chains.angles:
            counts["angles"][letters[j]] += len(p.positions)
        for _, j, k, _ in chains.dihedrals:
            counts["dihedrals"]["".join(letters[b] if letters[b] in "GP" else "X" for b in (j, k))] += len(p.positions)
    return {term: sorted(name for name, count in found.items() if count >= least) for term, found in counts.items()}


@dataclass(frozen=True)
class _Target:
    """Energies by Boltzmann inversion on grids: (C, bins) for every class, in units of kT."""

    cosines: Tensor
    angle: Tensor
    phi: Tensor
    dihedral: Tensor


def invert(prior: Prior, proteins: Sequence[BeadFrames], kt: float) -> _Target:
    """Put what Boltzmann inversion gives into the prior; a class without values takes those of all."""
    bonds, theta, phi = _coordinates(prior, proteins)
    with torch.no_grad():
        for kind, values in enumerate(bonds):
            mean, variance = values.mean(), values.var()
            stiffness = kt * (1 / variance - 2 / mean**2)  # p ∝ r² exp(−k (r − r₀)²/2kT)
            if not stiffness > 0:
                raise DataError(
                    f"Bonds of class {kind} vary by {np.sqrt(variance):.2f} Å: these are no neighbours along a chain."
                )
            prior.log_stiffness[kind] = float(np.log(stiffness))
            prior.length[kind] = float(mean - 2 * kt / (stiffness * mean))
    edges = np.linspace(0, np.pi, _BINS + 1)
    centres = 0.5 * (edges[1:] + edges[:-1])
    # Where no chain has three beads, or four, there is nothing to invert: those terms stay zero.
    angle_targets = np.stack([_inverted_angle(values, edges, centres) for values in theta] or [np.zeros(_BINS)])
    shares = np.stack([np.histogram(values, edges)[0] / len(values) for values in theta] or [np.ones(_BINS)])
    cosines = torch.as_tensor(np.cos(centres))
    design = np.stack([np.cos(n * centres) for n in range(prior.n_angle + 1)], axis=1)
    turns = np.linspace(-np.pi, np.pi, _BINS + 1)
    middles = 0.5 * (turns[1:] + turns[:-1])
    n = np.arange(1, prior.n_dihedral + 1)
    waves = np.concatenate([np.ones((_BINS, 1)), np.cos(n * middles[:, None]), np.sin(n * middles[:, None])], axis=1)
    turn_counts = np.stack([np.histogram(values, turns)[0] for values in phi] or [np.zeros(_BINS)]) + _PSEUDO
    turn_targets = -np.log(turn_counts / turn_counts.sum(1, keepdims=True))
    if prior.splines:
        _fill_splines(prior, kt, len(theta), len(phi), centres, angle_targets, middles, turn_targets)
        zeros = torch.zeros_like
        return _Target(
            cosines,
            zeros(torch.as_tensor(angle_targets)),
            torch.as_tensor(middles),
            zeros(torch.as_tensor(turn_targets)),
        )
    with torch.no_grad():
        for kind in range(len(theta)):
            weights = np.sqrt(shares[kind] / shares[kind].max() + 0.02)[:, None]
            found = np.linalg.lstsq(design * weights, angle_targets[kind] * weights[:, 0], rcond=None)[0]
            prior.angle[kind] = torch.as_tensor(kt * found[1:])
        for kind in range(len(phi)):
            weights = np.sqrt(turn_counts[kind] / turn_counts[kind].max() + 0.02)[:, None]
            found = np.linalg.lstsq(waves * weights, turn_targets[kind] * weights[:, 0], rcond=None)[0]
            prior.dihedral[kind] = torch.as_tensor(kt * found[1:])
    return _Target(cosines, torch.as_tensor(angle_targets), torch.as_tensor(middles), torch.as_tensor(turn_targets))


def _fill_splines(
    prior: Prior,
    kt: float,
    n_angles: int,
    n_dihedrals: int,
    centres: np.ndarray,
    angle: np.ndarray,
    middles: np.ndarray,
    dihedral: np.ndarray,
) -> None:
    """Cubic splines through energies (C, bins) in kT, smoothed over neighbouring bins against their counting noise."""
    grid = np.linspace(-1, 1, prior.splines + 1)
    turns = np.linspace(-np.pi, np.pi, prior.splines + 1)
    with torch.no_grad():
        for kind in range(n_angles):
            smooth = gaussian_filter1d(angle[kind], _SMOOTH, mode="nearest")
            values = np.interp(np.arccos(grid), centres, smooth)
            prior.angle_spline[kind] = torch.as_tensor(kt * _coefficients(CubicSpline(grid, values)))
        for kind in range(n_dihedrals):
            smooth = gaussian_filter1d(dihedral[kind], _SMOOTH, mode="wrap")
            values = np.interp(turns, middles, smooth, period=2 * np.pi)
            values[-1] = values[0]
            spline = CubicSpline(turns, values, bc_type="periodic")
            prior.dihedral_spline[kind] = torch.as_tensor(kt * _coefficients(spline))


def _coefficients(spline: CubicSpline) -> np.ndarray:
    """(G, 4) of t from 0 to 1 in each interval."""
    width = np.diff(spline.x)
    return (spline.c * width ** np.array([3, 2, 1, 0])[:, None]).T


def _inverted_angle(values: np.ndarray, edges: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """−ln p/sin θ in units of kT; parabolas where nothing was seen, as stiff as the distribution is narrow."""
    counts = np.histogram(values, edges)[0].astype(float)
    seen = counts >= 3
    energy = np.full(len(centres), np.nan)
    energy[seen] = -np.log(counts[seen] / np.sin(centres[seen]) / len(values))
    energy -= energy[seen].min()
    low, high = np.flatnonzero(seen)[[0, -1]]
    stiffness = 1 / values.var()
    inside = np.arange(low, high + 1)
    energy[low : high + 1] = np.interp(centres[inside], centres[seen], energy[seen])
    for edge, part in ((low, np.arange(low)), (high, np.arange(high + 1, len(centres)))):
        away = centres[part] - centres[edge]
        slope = stiffness * abs(centres[edge] - values.mean())
        energy[part] = energy[edge] + slope * np.abs(away) + 0.5 * stiffness * away**2
    return energy


def _coordinates(
    prior: Prior, proteins: Sequence[BeadFrames]
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Values of bonds (Å), angles and dihedrals (rad) of every class; class 0 has all of them."""
    tables = [
        table(prior.classes[name]).numpy()
        for name, table in (("bonds", bond_table), ("angles", angle_table), ("dihedrals", dihedral_table))
    ]
    found: list[list[list[np.ndarray]]] = [[[] for _ in range(int(t.max()) + 1)] for t in tables]
    for p in proteins:
        chains = Chains.from_sequence(p.sequence)
        types, x = chains.types, p.positions
        for i, j in chains.bonds:
            _put(found[0], tables[0][types[i], types[j]], np.linalg.norm(x[:, j] - x[:, i], axis=-1))
        for i, j, k in chains.angles:
            _put(found[1], tables[1][types[j]], angles(x[:, [i, j, k]])[:, 0])
        for i, j, k, m in chains.dihedrals:
            _put(found[2], tables[2][types[j], types[k]], dihedrals(x[:, [i, j, k, m]])[:, 0])
    if not found[0][0]:
        raise DataError("No protein has two residues in one chain.")
    bonds, theta, phi = ([np.concatenate(v) if v else np.zeros(0) for v in term] for term in found)
    return bonds, [v for v in theta if len(v)], [v for v in phi if len(v)]


def _put(classes: list[list[np.ndarray]], kind: int, values: np.ndarray) -> None:
    classes[0].append(values)
    if kind:
        classes[kind].append(values)


@dataclass(frozen=True)
class _Batch:
    positions: Tensor
    forces: Tensor
    topology: PriorTopology


def _batches(proteins: Sequence[BeadFrames], most: int, rng: np.random.Generator) -> list[_Batch]:
    total = sum(len(p.positions) for p in proteins)
    batches = []
    for p in proteins:
        chosen = np.arange(len(p.positions))
        if total > most:
            chosen = np.sort(rng.choice(chosen, max(1, round(most * len(chosen) / total)), replace=False))
        batches.append(
            _Batch(
                torch.as_tensor(p.positions[chosen]),
                torch.as_tensor(p.forces[chosen]),
                PriorTopology.of(Chains.from_sequence(p.sequence)),
            )
        )
    return batches


def _residual(prior: Prior | None, batches: Sequence[_Batch]) -> float:
    total = count = 0.0
    with torch.no_grad():
        for batch in batches:
            left = batch.forces if prior is None else batch.forces - prior(batch.positions, batch.topology).forces
            total += float(left.square().sum())
            count += left.numel()
    return float(np.sqrt(total / count))


def _match(
    prior: Prior, batches: Sequence[_Batch], target: _Target, kt: float, config: PriorConfig, progress: Progress
) -> int:
    """L-BFGS on all parameters but ε; returns its iterations."""
    scale = _residual(None, batches) ** 2
    count = sum(batch.forces.numel() for batch in batches)
    parameters = [prior.log_stiffness, prior.length, prior.angle, prior.dihedral, prior.excess]
    prior.log_epsilon.requires_grad_(False)
    start = prior.excess.detach().clone()
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=config.steps, tolerance_grad=config.tolerance, tolerance_change=1e-12,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum(
            (batch.forces - prior(batch.positions, batch.topology).forces).square().sum() for batch in batches
        ) / (count * scale)
        loss = loss + config.hold * (_deviation(prior, target, kt) + (prior.excess - start).square().mean())
        loss.backward()
        return loss

    with progress.task("prior", None) as task:
        optimizer.step(closure)
        task.advance()
    return int(optimizer.state[parameters[0]].get("n_iter", 0))


def _deviation(prior: Prior, target: _Target, kt: float) -> Tensor:
    """Mean squared difference from Boltzmann inversion in kT², each curve about its own mean: energies have no zero."""
    powers = target.cosines[:, None] ** torch.arange(prior.n_angle + 1, dtype=target.cosines.dtype)
    curve = prior.angle @ chebyshev_powers(prior.n_angle, prior.angle) @ powers.T / kt
    n = torch.arange(1, prior.n_dihedral + 1, dtype=target.phi.dtype)
    b, d = prior.dihedral.chunk(2, dim=-1)
    turn = target.phi[:, None] * n
    wave = (b @ turn.cos().T + d @ turn.sin().T) / kt
    total = torch.zeros((), dtype=torch.float64)
    for values, wanted in ((curve, target.angle), (wave, target.dihedral)):
        difference = values - wanted
        total = total + (difference - difference.mean(1, keepdim=True)).square().mean()
    return total
