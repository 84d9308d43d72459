"""Is a coarse-grained force field any good? What it samples and its forces, beside all that it must be better than.

Forces: of every frame, beside a model of zero, one that is right for another frame (shuffled), the prior, and the noise
that no model can explain; and mean forces on frozen configurations. Dynamics: replicas of every candidate beside the
reference, and every divergence beside that between parts of the reference itself.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...ase_calcs.errors import InputError, check_positive
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.model import BeadTopology, CoarseGrainedModel, Part
from ...ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig, SimulationResult
from ...ase_calcs.units import KB, KCAL_PER_MOL
from ...datasets.proteins.alike import squared_differences
from ...datasets.proteins.beads import BeadFrames
from ...datasets.proteins.mean_force import MeanForces, force_error
from . import metrics
from .metrics import Tica

FOLDED = 0.6  # Q from which on a configuration counts as folded
_AT_ONCE = 500
_SAME = 1e-6  # Å²: a configuration of the mean forces is this frame of the data


@dataclass(frozen=True)
class Candidate:
    """A force field, or a part of one, under a name."""

    name: str
    model: CoarseGrainedModel
    part: Part = "hybrid"


@dataclass(frozen=True)
class JudgeConfig:
    """How to judge.

    Attributes
    ----------
    replicas
        Of each protein, begun at frames spread over the reference.
    picoseconds
        Of each.
    discard
        Share of them, at the beginning, that is not looked at.
    validation
        Share of every run's frames, its last ones, whose forces are looked at.
    seed
        Of the dynamics.
    """

    replicas: int = 16
    picoseconds: float = 1000.0
    discard: float = 0.2
    validation: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("replicas", "picoseconds", "validation"):
            check_positive(name, getattr(self, name))
        if not 0 <= self.discard < 1:
            raise InputError(f"`discard` is {self.discard}; it must lie from 0 to below 1.")


@dataclass(frozen=True)
class Reference:
    """What is known of a protein.

    Attributes
    ----------
    frames
        At the temperature of the force field.
    native
        (B, 3) Å, or None: then there are no contacts and no RMSD.
    means
        Mean forces on frozen configurations, or None.
    """

    frames: BeadFrames
    native: np.ndarray | None = None
    means: MeanForces | None = None

    def runs(self) -> list[np.ndarray]:
        """Positions of each run; of a single one its two halves."""
        names = list(dict.fromkeys(self.frames.origins.tolist()))
        if len(names) == 1:
            half = len(self.frames.positions) // 2
            return [self.frames.positions[:half], self.frames.positions[half:]]
        return [self.frames.positions[self.frames.origins == name] for name in names]

    def last(self, share: float) -> BeadFrames:
        """The last share of every run."""
        kept = np.zeros(len(self.frames.positions), dtype=bool)
        for name in np.unique(self.frames.origins):
            rows = np.flatnonzero(self.frames.origins == name)
            kept[rows[len(rows) - max(1, round(share * len(rows))) :]] = True
        return self.frames.select(kept)


@dataclass
class Judged:
    """Numbers for tables, and arrays for figures.

    Attributes
    ----------
    numbers
        Plain values by name.
    reference
        What was compared with.
    sampled
        Name of a candidate → (T, B, 3) Å of all its replicas, the beginning left out.
    results
        Name of a candidate → the simulation.
    tica
        Of the reference.
    """

    numbers: dict[str, Any]
    reference: Reference
    sampled: dict[str, np.ndarray] = field(default_factory=dict)
    results: dict[str, SimulationResult] = field(default_factory=dict)
    tica: Tica | None = None


def judge(
    references: Sequence[Reference],
    candidates: Sequence[Candidate],
    config: JudgeConfig | None = None,
    *,
    progress: Progress | None = None,
) -> list[Judged]:
    """Judge every candidate on every protein.

    Raises
    ------
    InputError
        No candidates, or two of the same name.
    """
    config, progress = config or JudgeConfig(), progress or SilentProgress()
    names = [candidate.name for candidate in candidates]
    if not candidates or len(set(names)) < len(names):
        raise InputError(f"The candidates are {', '.join(names) or 'none'}; needed is one or more, each name once.")
    found = []
    total = config.picoseconds * config.replicas * len(candidates) * len(references)
    with progress.task("simulations to judge, ps", total) as task:
        for number, reference in enumerate(references):
            one = _begin(reference, config, candidates[0].model.temperature)
            for candidate in candidates:
                result, seconds = _simulate(reference, candidate, config, number, task)
                one.results[candidate.name] = result
                kept = result.positions[int(config.discard * len(result.positions)) :]
                flat = kept.reshape(-1, *kept.shape[2:])
                one.sampled[candidate.name] = flat[np.isfinite(flat).all((1, 2))]
                one.numbers["candidates"][candidate.name] = {
                    **_forces(reference, candidate, config), **_dynamics(one, candidate, result, seconds, config),
                }  # fmt: skip
            found.append(one)
    return found


def _begin(reference: Reference, config: JudgeConfig, kelvin: float) -> Judged:
    frames, runs = reference.frames, reference.runs()
    each = [metrics.divergence(run, np.concatenate([other for other in runs if other is not run])) for run in runs]
    known = reference.last(config.validation)
    square = float((known.forces**2).mean())
    numbers: dict[str, Any] = {
        "name": frames.name,
        "sequence": frames.sequence,
        "temperature_K": kelvin,
        "frames": len(frames.positions),
        "runs": len(np.unique(frames.origins)),
        "floor": {kind: float(np.nanmean([one[kind] for one in each])) for kind in metrics.KINDS},
        "reference": _shape(frames.positions, reference.native, kelvin),
        "reference_runs": [_shape(run, reference.native, kelvin) for run in runs],
        "zero_rmse": np.sqrt(square) / KCAL_PER_MOL,
        "noise": _noise(reference),
        "candidates": {},
    }
    if reference.means is not None:
        nothing, spread = force_error(np.zeros_like(reference.means.forces), reference.means)
        numbers["means"] = {
            "configurations": len(reference.means.positions),
            "zero": nothing / KCAL_PER_MOL, "zero_error": spread / KCAL_PER_MOL,
            "standard_error": float(np.sqrt((reference.means.errors**2).mean())) / KCAL_PER_MOL,
        }  # fmt: skip
    by_run = [frames.positions[frames.origins == name] for name in dict.fromkeys(frames.origins.tolist())]
    tica = metrics.fit_tica(by_run)
    if tica is not None:
        rest = [np.concatenate([other for other in runs if other is not run]) for run in runs]
        own = [_tica_divergence(tica, run, other) for run, other in zip(runs, rest, strict=True)]
        numbers["tica_floor"] = float(np.mean(own))
    return Judged(numbers, reference, tica=tica)


def _noise(reference: Reference) -> float | None:
    """Root mean square difference of a single frame's force from the mean force, kcal/mol/Å per component: where the
    mean forces are of configurations that are frames."""
    if reference.means is None:
        return None
    squared = squared_differences(reference.means.positions, reference.frames.positions)
    near = squared.argmin(1)
    same = squared[np.arange(len(near)), near] < _SAME
    if same.sum() < 2:
        return None
    # Both as they lay in the run: frames of a dataset are moved to their centre, and not turned.
    difference = reference.frames.forces[near[same]] - reference.means.forces[same]
    square = (difference**2).mean() - (reference.means.errors[same] ** 2).mean()
    return float(np.sqrt(max(square, 0.0))) / KCAL_PER_MOL


def _predicted(candidate: Candidate, sequence: str, x: np.ndarray) -> np.ndarray:
    """(T, B, 3) eV/Å."""
    topology: BeadTopology = candidate.model.bind(Chains.from_sequence(sequence))
    with torch.no_grad():
        parts = [
            candidate.model(torch.as_tensor(x[k : k + _AT_ONCE]), topology, candidate.part).forces.numpy()
            for k in range(0, len(x), _AT_ONCE)
        ]
    return np.concatenate(parts)


def _forces(reference: Reference, candidate: Candidate, config: JudgeConfig) -> dict[str, Any]:
    frames = reference.last(config.validation)
    wanted = frames.forces
    predicted = _predicted(candidate, frames.sequence, frames.positions)
    shuffled = predicted[np.random.default_rng(config.seed).permutation(len(predicted))]
    square, own = float((wanted**2).mean()), float((predicted**2).mean())
    numbers: dict[str, Any] = {
        "force_rmse": float(np.sqrt(((predicted - wanted) ** 2).mean())) / KCAL_PER_MOL,
        "shuffled_rmse": float(np.sqrt(((shuffled - wanted) ** 2).mean())) / KCAL_PER_MOL,
        "explained": 1 - float(((predicted - wanted) ** 2).mean()) / square,
        "slope": float((predicted * wanted).mean()) / own if own else float("nan"),
    }
    if reference.means is not None:
        on_means = _predicted(candidate, frames.sequence, reference.means.positions)
        error, spread = force_error(on_means, reference.means)
        numbers |= {"mean_force_error": error / KCAL_PER_MOL, "mean_force_spread": spread / KCAL_PER_MOL}
    return numbers


def _simulate(
    reference: Reference, candidate: Candidate, config: JudgeConfig, number: int, task: Any
) -> tuple[SimulationResult, float]:
    frames = reference.frames.positions
    chosen = np.linspace(0, len(frames) - 1, config.replicas).astype(int)
    settings = SimulationConfig(picoseconds=config.picoseconds, temperature_K=candidate.model.temperature)
    begun = time.monotonic()
    dynamics = ReplicaLangevin(
        candidate.model, Chains.from_sequence(reference.frames.sequence), frames[chosen], settings,
        seed=config.seed + number, part=candidate.part,
    )  # fmt: skip
    return dynamics.run(task.advance), time.monotonic() - begun


def _dynamics(
    one: Judged, candidate: Candidate, result: SimulationResult, seconds: float, config: JudgeConfig
) -> dict[str, Any]:
    x = one.sampled[candidate.name]
    lived = result.steps * result.timestep / 1000
    numbers: dict[str, Any] = {
        "survived": result.survivors,
        "lived_ps": sorted(lived.tolist()),
        "troubles": [vars(trouble) for trouble in result.troubles],
        "temperature_K": float(result.temperatures.mean()),
        "thermostat_K": candidate.model.temperature,
        "shortest_A": float(np.nanmin(result.shortest)),
        "timestep_fs": result.timestep,
        "ns_per_day": float(lived.sum() / 1000 / max(seconds, 1e-9) * 86400),
    }
    if len(x) < 2:
        return numbers
    native = one.reference.native
    numbers |= {
        "divergence": metrics.divergence(x, one.reference.frames.positions),
        **_shape(x, native, candidate.model.temperature),
    }
    begin = int(config.discard * len(result.positions))
    order = [metrics.radius_of_gyration(result.positions[begin:, k]) for k in range(result.positions.shape[1])]
    times = [metrics.correlation_time(series, result.interval) for series in order]
    numbers["correlation_ps"] = float(np.nanmean(times)) if np.isfinite(times).any() else float("nan")
    energies = result.energies[begin:]
    energies = energies[np.isfinite(energies)]
    # Of the beads' potential, k: its fluctuation at one temperature.
    numbers["heat_capacity_k"] = float(energies.var() / (KB * candidate.model.temperature) ** 2)
    if one.tica is not None:
        numbers["tica_divergence"] = _tica_divergence(one.tica, x, one.reference.frames.positions)
    return numbers


def _shape(x: np.ndarray, native: np.ndarray | None, kelvin: float) -> dict[str, Any]:
    """Size, contacts, folding, secondary structure and handedness of an ensemble."""
    size, second = metrics.radius_of_gyration(x), metrics.secondary_structure(x)
    numbers: dict[str, Any] = {
        "rg_A": float(size.mean()), "rg_std_A": float(size.std()),
        "helix": float(second["helix"].mean()), "strand": float(second["strand"].mean()),
        "handedness": metrics.handedness(x).tolist() if x.shape[1] > 3 else [],
    }  # fmt: skip
    if native is not None:
        q, away = metrics.native_contacts(x, native), metrics.rmsd(x, native)
        share = float((q > FOLDED).mean())
        numbers |= {
            "q": float(q.mean()), "folded": share, "unfolding_kcal": unfolding_free_energy(share, kelvin),
            "rmsd_A": float(away.mean()), "rmsd_least_A": float(away.min()),
        }  # fmt: skip
    return numbers


def unfolding_free_energy(folded: float, kelvin: float) -> float:
    """kcal/mol that unfolding costs, from the folded share; NaN where only one state was seen."""
    return float(KB * kelvin * np.log(folded / (1 - folded)) / KCAL_PER_MOL) if 0 < folded < 1 else float("nan")


def _tica_divergence(tica: Tica, x: np.ndarray, reference: np.ndarray) -> float:
    """Of the two slowest coordinates together, bits."""
    from ..dynamics_report.metrics import jensen_shannon

    edges = tica_edges(tica, reference)
    low, high = (np.array([e[k] for e in edges]) for k in (0, -1))
    # Everything farther out is in the outermost bins.
    counts = [np.histogramdd(np.clip(tica.project(y), low, high), edges)[0].ravel() for y in (x, reference)]
    return jensen_shannon(*counts)


def tica_edges(tica: Tica, reference: np.ndarray, bins: int = 30) -> list[np.ndarray]:
    """Edges of a histogram of both coordinates, over the middle 99.8 % of the reference."""
    edges = []
    for values in tica.project(reference).T:
        low, high = np.percentile(values, [0.1, 99.9])
        edges.append(np.linspace(low, max(high, low + 1e-6), bins + 1))
    return edges


def candidates_of(model: CoarseGrainedModel, others: Mapping[str, CoarseGrainedModel]) -> list[Candidate]:
    """The hybrid, its prior and its network alone, what it would be without excluded volume, and other force fields."""
    found = [Candidate("hybrid", model)] if model.network is not None else []
    found.append(Candidate("prior", model, "prior"))
    if model.network is not None:
        found.append(Candidate("network only", model, "network"))
        if bool(torch.isfinite(model.prior.log_epsilon[0])):
            bare = copy.deepcopy(model)
            bare.prior.log_epsilon.data[0] = -torch.inf
            found.append(Candidate("no excluded volume", bare))
    return found + [Candidate(name, other) for name, other in others.items()]
