"""Whether a prior can be simulated at all: looked at before a network is trained on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ase_calcs.errors import DataError
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.model import CoarseGrainedModel, Part
from ...ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig, SimulationResult
from ...datasets.proteins.beads import BeadFrames

TOLERANCE = 0.03  # of the temperature


@dataclass(frozen=True)
class Stability:
    """Of one protein.

    Attributes
    ----------
    name
        Of the protein.
    result
        What the simulation gave.
    stable
        Whether every replica reached the end at the temperature of the thermostat.
    """

    name: str
    result: SimulationResult
    stable: bool


def simulate_proteins(
    model: CoarseGrainedModel,
    proteins: Sequence[BeadFrames],
    config: SimulationConfig,
    *,
    replicas: int = 8,
    seed: int = 0,
    part: Part = "hybrid",
    progress: Progress | None = None,
) -> list[Stability]:
    """Simulate every protein from frames spread over its data."""
    progress, found = progress or SilentProgress(), []
    with progress.task(f"{part} simulation, ps", config.picoseconds * replicas * len(proteins)) as task:
        for number, protein in enumerate(proteins):
            chosen = np.linspace(0, len(protein.positions) - 1, replicas).astype(int)
            dynamics = ReplicaLangevin(
                model, Chains.from_sequence(protein.sequence), protein.positions[chosen], config, seed=seed + number,
                part=part,
            )  # fmt: skip
            result = dynamics.run(task.advance)
            # A mean over few steps scatters; five standard errors with a correlation time of one over the friction.
            independent = max(1.0, result.steps.sum() * result.timestep * config.friction)
            noise = 5 * np.sqrt(2 / (3 * protein.positions.shape[1] * independent))
            off = abs(result.temperatures.mean() / config.temperature_K - 1)
            found.append(Stability(protein.name, result, not result.troubles and off < max(TOLERANCE, noise)))
    return found


def require_stable(found: Sequence[Stability], temperature: float) -> None:
    """Refuse to go on with a prior that is not stable.

    Raises
    ------
    DataError
        Naming the proteins and what happened.
    """
    bad = [one for one in found if not one.stable]
    if not bad:
        return
    lines = []
    for one in bad:
        reasons = [f"replica {t.replica} after {t.picoseconds:.1f} ps: {t.reason}" for t in one.result.troubles[:3]]
        reasons.append(f"mean temperature {one.result.temperatures.mean():.0f} K")
        lines.append(f"  {one.name}: {'; '.join(reasons)}")
    raise DataError(
        f"The prior alone is not stable at {temperature:g} K, so a network on top of it would not be either:\n"
        + "\n".join(lines)
        + "\nMostly the frames are too few, or hold too little of the space (add unfolded and pulled starts, or a "
        "hotter temperature), or the bonds of the data are no Cα–Cα bonds."
    )
