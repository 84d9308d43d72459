"""Mean forces on beads that are held still: what a coarse-grained force field should give, without the thermal noise.

The Cα atoms get no mass and stay where a frame has them, everything else moves, and the forces on them are averaged. At
fixed Cα the mean force on every other atom is exactly zero, so any linear combination of those forces may be added to
the one on a Cα without changing its mean (control variates); the combination that lowers the variance most is fitted on
one half of the run and used on the other, so that the fit does not bias the mean. What 40 ps cannot average are side
chains that turn more slowly.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ase_calcs.errors import DataError, InputError, check_positive, require
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.units import KJ_PER_MOL, NM
from ..lock import locked
from ..sampling.processes import Advance, in_processes
from ..writer import atomic_write
from .beads import BeadFrames
from .build import read_protein
from .frames import open_reference, reference_pieces
from .reference import number_of
from .system import SystemConfig, make_context, make_system

_TIMESTEP = 1.5  # fs; nothing is rigid here, as a rigid distance may not end at an atom without mass
_FRICTION = 1.0  # 1/ps
_BLOCKS = 8  # of each half, for the standard error
_RIDGE = 1e-3  # of the mean diagonal: there are about as many atoms as independent samples
_PURPOSE = "compute mean forces"


@dataclass(frozen=True)
class MeanForceConfig:
    """How long and how many.

    Attributes
    ----------
    configurations
        Taken from the reference at equal intervals.
    temperature
        K, of these frames and of the atoms that move.
    picoseconds
        Of averaging for each.
    equilibrate
        ps before it.
    interval
        ps between the forces that are averaged.
    """

    configurations: int = 100
    temperature: float = 300.0
    picoseconds: float = 40.0
    equilibrate: float = 5.0
    interval: float = 0.06

    def __post_init__(self) -> None:
        for name in ("configurations", "temperature", "picoseconds", "equilibrate", "interval"):
            check_positive(name, getattr(self, name))
        if self.configurations < 2:
            raise InputError("`configurations` must be 2 or more: from one there is no error of an error.")
        if self.picoseconds / self.interval < 4 * _BLOCKS:
            raise InputError(
                f"`picoseconds` {self.picoseconds:g} with an `interval` of {self.interval:g} ps gives too few samples "
                "for a mean and its error. Average for longer."
            )


@dataclass(frozen=True)
class MeanForces:
    """Of M configurations of B beads.

    Attributes
    ----------
    positions
        (M, B, 3) Å.
    forces, errors
        (M, B, 3) eV/Å: means, and their standard errors.
    raw_errors
        (M, B, 3) eV/Å: the standard errors without control variates.
    """

    positions: np.ndarray
    forces: np.ndarray
    errors: np.ndarray
    raw_errors: np.ndarray


@dataclass(frozen=True)
class _Job:
    file: Path
    positions: np.ndarray  # (N, 3) Å, all atoms
    beads: np.ndarray
    system: str
    config: MeanForceConfig
    seed: int


def mean_forces(
    reference: str | Path,
    folder: str | Path,
    config: MeanForceConfig | None = None,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> MeanForces:
    """Mean forces on configurations of a reference; those that are done already are read.

    Parameters
    ----------
    reference
        A folder of `run_reference`, in implicit water.
    folder
        Gets a file for each configuration.
    config
        How many, and for how long.
    seed
        Of velocities and noise.

    Raises
    ------
    DataError
        The reference has fewer frames than configurations are asked for.
    InputError
        It is in explicit water, or `folder` holds mean forces of other settings.
    """
    config, progress, folder = config or MeanForceConfig(), progress or SilentProgress(), Path(folder)
    openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
    source = open_reference(reference)
    if source.record["system"]["water"] != "obc2":
        raise InputError("Mean forces need a reference in implicit water (`water: obc2`).")
    protein = read_protein(Path(reference) / "protein.pdb")
    system = make_system(protein, SystemConfig(), constraints=False).system
    for bead in source.beads:
        system.setParticleMass(int(bead), 0.0)
    xml = openmm.XmlSerializer.serialize(system)
    pieces = [piece.positions for piece in reference_pieces(reference, (config.temperature,))]
    frames = np.concatenate(pieces) if pieces else np.zeros((0, len(protein.positions), 3))
    if len(frames) < config.configurations:
        raise DataError(
            f"{reference} has {len(frames)} frames at {config.temperature:g} K; {config.configurations} are wanted."
        )
    chosen = np.linspace(0, len(frames) - 1, config.configurations).astype(int)
    content = hashlib.blake2b(frames[chosen].tobytes() + xml.encode(), digest_size=16).hexdigest()
    settings = {"seed": seed, "sequence": source.sequence, "content": content, **vars(config)}
    with locked(folder, "computing mean forces"):
        described = folder / "mean_forces.json"
        if described.is_file() and json.loads(described.read_text()) != settings:
            raise InputError(f"{folder} holds mean forces of other settings. Name another folder with --out.")
        with atomic_write(described) as temporary:
            temporary.write_text(json.dumps(settings))
        jobs = {
            k: _Job(folder / f"{k:04d}.npz", frames[row].astype(float), source.beads, xml, config, number_of(seed, k))
            for k, row in enumerate(chosen)
        }
        # In no particular order: what there is after an interruption is spread over the reference.
        order = np.random.default_rng(seed).permutation(len(jobs)).tolist()
        left = {k: jobs[k] for k in order if not jobs[k].file.is_file()}
        each = config.equilibrate + config.picoseconds
        with progress.task("mean forces, ps", each * len(jobs)) as task:
            task.advance(each * (len(jobs) - len(left)))
            if left:
                for _ in in_processes(_run, left, workers, task):
                    pass
    return load_mean_forces(folder)


def load_mean_forces(folder: str | Path) -> MeanForces:
    """What `mean_forces` has written so far. Raises DataError if there is nothing."""
    files = sorted(Path(folder).glob("[0-9]*.npz"))
    if not files:
        raise DataError(f"{folder} holds no mean forces. `distillase cg mean-force` computes them.")
    values: dict[str, list[np.ndarray]] = {name: [] for name in MeanForces.__dataclass_fields__}
    for file in files:
        with np.load(file) as data:
            for name, found in values.items():
                found.append(data[name])
    return MeanForces(**{name: np.stack(found) for name, found in values.items()})


def _run(job: _Job, advance: Advance) -> None:
    on_beads, on_others = _sample(job, advance)
    mean, error = average(on_beads, on_others)
    _, raw = average(on_beads, None)
    data = io.BytesIO()
    np.savez(data, positions=job.positions[job.beads], forces=mean, errors=error, raw_errors=raw)
    with atomic_write(job.file) as temporary:
        temporary.write_bytes(data.getvalue())


def _sample(job: _Job, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
    """Forces (T, B, 3) on beads and (T, N − B, 3) on the other atoms, eV/Å."""
    openmm: Any = require("openmm", extra="proteins", purpose=_PURPOSE)
    config = job.config
    integrator = openmm.LangevinMiddleIntegrator(config.temperature, _FRICTION, _TIMESTEP / 1000)  # K, 1/ps, ps
    integrator.setRandomNumberSeed(job.seed % (2**31 - 1) + 1)
    context = make_context(openmm.XmlSerializer.deserialize(job.system), integrator)
    context.setPositions(job.positions / NM)
    context.setVelocitiesToTemperature(config.temperature, job.seed % (2**31 - 1) + 1)
    integrator.step(round(config.equilibrate * 1000 / _TIMESTEP))
    advance(config.equilibrate)
    per_sample = max(1, round(config.interval * 1000 / _TIMESTEP))
    samples = round(config.picoseconds * 1000 / _TIMESTEP) // per_sample
    forces = np.empty((samples, len(job.positions), 3))
    for k in range(samples):
        integrator.step(per_sample)
        forces[k] = context.getState(forces=True).getForces(asNumpy=True)._value
        advance(per_sample * _TIMESTEP / 1000)
    if not np.isfinite(forces).all():
        raise DataError("A configuration blew up with its Cα atoms held: it is strained. Use frames of a longer run.")
    forces *= KJ_PER_MOL / NM
    return forces[:, job.beads], np.delete(forces, job.beads, axis=1)


def average(on_beads: np.ndarray, on_others: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (B, 3) of forces on beads, and its standard error from blocks.

    Parameters
    ----------
    on_beads
        (T, B, 3).
    on_others
        (T, M, 3), forces whose mean is zero, as control variates; None: the plain mean.
    """
    half = len(on_beads) // 2
    parts = (slice(0, half), slice(half, 2 * half))
    blocks: list[np.ndarray] = []
    for mine, other in (parts, parts[::-1]):
        values = on_beads[mine]
        if on_others is not None:
            values = values + np.einsum("bm,tmd->tbd", _weights(on_beads[other], on_others[other]), on_others[mine])
        size = len(values) // _BLOCKS
        blocks += [values[k * size : (k + 1) * size].mean(0) for k in range(_BLOCKS)]
    together = np.stack(blocks)
    return together.mean(0), together.std(0, ddof=1) / np.sqrt(len(together))


def _weights(on_beads: np.ndarray, on_others: np.ndarray) -> np.ndarray:
    """(B, M), one for all three directions: least squares of the fluctuations."""
    target = (on_beads - on_beads.mean(0)).transpose(1, 0, 2).reshape(on_beads.shape[1], -1)
    known = on_others.transpose(1, 0, 2).reshape(on_others.shape[1], -1)
    gram = known @ known.T
    gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return -np.linalg.solve(gram, known @ target.T).T


def force_error(predicted: np.ndarray, wanted: MeanForces) -> tuple[float, float]:
    """Root mean square error of forces (M, B, 3) against mean forces, less what the means' own errors explain, and its
    standard error over configurations; eV/Å per component.

    The square of an error contains the variance of the mean that it is compared with, on average; it is taken off.
    """
    square = ((predicted - wanted.forces) ** 2 - wanted.errors**2).mean((1, 2))
    mean = max(float(square.mean()), 0.0)
    spread = float(square.std(ddof=1) / np.sqrt(len(square)))
    root = float(np.sqrt(mean))
    return root, spread / (2 * root) if root else spread


def as_frames(found: MeanForces, name: str, sequence: str, temperature: float) -> BeadFrames:
    """Mean forces as frames to learn from, with their errors."""
    n = len(found.positions)
    return BeadFrames(
        name, sequence, found.positions, found.forces, np.full(n, temperature), np.full(n, "mean forces"),
        np.sqrt((found.errors**2).mean((1, 2))),
    )  # fmt: skip
