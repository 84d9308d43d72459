"""Mean forces on beads that are held still: what a coarse-grained force field should give, without the thermal noise.

The Cα atoms get no mass and stay where a frame has them, everything else moves, and the forces on them are averaged. At
fixed Cα the mean force on every other atom is exactly zero, so any linear combination of those forces may be added to
the one on a Cα without changing its mean (control variates).

Side chains and salt bridges rearrange more slowly than a run of tens of picoseconds lasts, so a run averages the force
over one such state. The reference has visited these states in proportion to their weight: each run begins in another
frame whose Cα atoms are nearly the same, far from the others in time, and these are drawn to where they shall be. What
the runs differ by is the error. (Heating and cooling all but the Cα atoms instead would leave side chains in states
that are 10 to 20 kcal/mol too high.) The combination that lowers the variance most is fitted on all runs but the one it
is used on, so that the fit does not bias the mean.
"""

from __future__ import annotations

import dataclasses
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
from .alike import all_atom_frames, most_alike
from .beads import BeadFrames
from .build import read_protein
from .frames import open_reference
from .reference import number_of
from .system import SystemConfig, make_context, make_system

# fs; nothing is rigid here, as a rigid distance may not end at an atom without mass. With hydrogens of 3 u energies of
# bonds are the same as with 1.5 fs within their errors (0.5 %).
_TIMESTEP = 2.5
_FRICTION = 1.0  # 1/ps
_LEAST_SAMPLES = 20  # of a run
_APPROACH = 5  # steps by which beads are brought to where they shall be
_RIDGE = 1e-3  # of the mean diagonal: there are about as many atoms as independent samples
_THERE = 1e-4  # Å; frames are kept in float32
_HOPELESS = 8  # configurations without a mean force, and no other
_PURPOSE = "compute mean forces"


@dataclass(frozen=True)
class MeanForceConfig:
    """How long and how many.

    Attributes
    ----------
    configurations
        Taken from the reference at equal intervals.
    last
        Share of every run of the reference that they are taken from, at its end. Training validates on the last tenth.
    temperature
        K, of these frames and of the atoms that move.
    picoseconds
        Of averaging for each, all runs together.
    replicates
        Runs of each, which begin in different frames.
    apart
        ps between any two of these frames in the reference.
    equilibrate
        ps before averaging.
    interval
        ps between the forces that are averaged.
    """

    configurations: int = 100
    last: float = 1.0
    temperature: float = 300.0
    picoseconds: float = 8.0
    replicates: int = 2
    apart: float = 50.0
    equilibrate: float = 3.0
    interval: float = 0.06

    def __post_init__(self) -> None:
        for name in (
            "configurations",
            "last",
            "temperature",
            "picoseconds",
            "apart",
            "equilibrate",
            "interval",
        ):
            check_positive(name, getattr(self, name))
        if self.configurations < 2:
            raise InputError("`configurations` must be 2 or more: from one there is no error of an error.")
        if self.last > 1:
            raise InputError(f"`last` is {self.last:g}; it is a share, at most 1.")
        if self.replicates < 2:
            raise InputError("`replicates` must be 2 or more: what runs differ by is the error of their mean.")
        if self.picoseconds / self.replicates / self.interval < _LEAST_SAMPLES:
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
        (M, B, 3) eV/Å: the same without control variates.
    """

    positions: np.ndarray
    forces: np.ndarray
    errors: np.ndarray
    raw_errors: np.ndarray


@dataclass(frozen=True)
class _Job:
    file: Path
    begin: np.ndarray  # (K, N, 3) Å, all atoms, of each run
    target: np.ndarray  # (B, 3) Å, where the beads shall be; mostly where they are
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
        The reference has fewer frames than configurations are asked for, or none of the first can be held with all
        atoms around it.
    InputError
        It is in explicit water, or `folder` holds mean forces of other settings.
    """
    config = config or MeanForceConfig()
    frames = all_atom_frames(reference, config.temperature)
    late = np.concatenate([rows[len(rows) - max(1, round(config.last * len(rows))) :] for rows in frames.runs()])
    if len(late) < config.configurations:
        raise DataError(
            f"{reference} has {len(late)} frames at {config.temperature:g} K to take {config.configurations} from."
        )
    rows = late[np.linspace(0, len(late) - 1, config.configurations).astype(int)]
    targets = frames.positions[rows][:, open_reference(reference).beads].astype(float)
    return mean_forces_at(targets, reference, folder, config, seed=seed, workers=workers, progress=progress)


def mean_forces_at(
    positions: np.ndarray,
    reference: str | Path,
    folder: str | Path,
    config: MeanForceConfig | None = None,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> MeanForces:
    """Mean forces on any configurations of the beads, such as a coarse-grained simulation visits.

    Each run begins in one of the all-atom frames that are most alike, superposed, whose Cα atoms are drawn to where
    they shall be.

    Parameters
    ----------
    positions
        (M, B, 3) Å.
    reference, folder, config, seed, workers, progress
        As in `mean_forces`; `config.configurations` is not used.

    Raises
    ------
    DataError
        The reference has no frames at the temperature.
    InputError
        As `mean_forces`.
    """
    config = config or MeanForceConfig()
    frames = all_atom_frames(reference, config.temperature)
    if not len(frames.positions):
        raise DataError(f"{reference} has no frames at {config.temperature:g} K to begin with.")
    source = open_reference(reference)
    targets = np.asarray(positions, dtype=float)
    if targets.ndim != 3 or targets.shape[1:] != (len(source.beads), 3):
        raise InputError(f"`positions` has shape {targets.shape}; needed is (configurations, {len(source.beads)}, 3).")
    apart = config.apart / source.record["interval"]
    begin = most_alike(targets, frames, source.beads, config.replicates, apart)
    return mean_forces_from(begin, targets, reference, folder, config, seed=seed, workers=workers, progress=progress)


def mean_forces_from(
    begin: np.ndarray,
    targets: np.ndarray,
    reference: str | Path,
    folder: str | Path,
    config: MeanForceConfig | None = None,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> MeanForces:
    """Mean forces on beads that shall be at `targets`, in runs that begin with all atoms at `begin`.

    What `mean_forces` and `mean_forces_at` do, with frames of their choice.

    Parameters
    ----------
    begin
        (M, K, N, 3) Å, all atoms, for each of `config.replicates` runs.
    targets
        (M, B, 3) Å.
    reference, folder, config, seed, workers, progress
        As in `mean_forces`; `config.configurations` is not used.

    Raises
    ------
    DataError
        Of the first configurations none can be held with all atoms around it.
    InputError
        As `mean_forces`.
    """
    folder, progress = Path(folder), progress or SilentProgress()
    config = dataclasses.replace(config or MeanForceConfig(), configurations=max(2, len(targets)))
    openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
    source = open_reference(reference)
    if source.record["system"]["water"] != "obc2":
        raise InputError("Mean forces need a reference in implicit water (`water: obc2`).")
    system = make_system(read_protein(Path(reference) / "protein.pdb"), SystemConfig(), constraints=False).system
    for bead in source.beads:
        system.setParticleMass(int(bead), 0.0)
    xml = openmm.XmlSerializer.serialize(system)
    digest = hashlib.blake2b(begin.tobytes() + targets.tobytes() + xml.encode(), digest_size=16)
    settings = {"seed": seed, "sequence": source.sequence, "content": digest.hexdigest(), **vars(config)}
    with locked(folder, "computing mean forces"):
        described = folder / "mean_forces.json"
        if described.is_file() and json.loads(described.read_text()) != settings:
            raise InputError(f"{folder} holds mean forces of other settings. Name another folder with --out.")
        with atomic_write(described) as temporary:
            temporary.write_text(json.dumps(settings))
        jobs = {
            k: _Job(folder / f"{k:04d}.npz", start, target, source.beads, xml, config, number_of(seed, k))
            for k, (start, target) in enumerate(zip(begin, targets, strict=True))
        }
        # In no particular order: what there is after an interruption is spread over the reference.
        order = np.random.default_rng(seed).permutation(len(jobs)).tolist()
        left = {k: jobs[k] for k in order if not jobs[k].file.is_file()}
        each = config.replicates * config.equilibrate + config.picoseconds
        with progress.task("mean forces, ps", each * len(jobs)) as task:
            task.advance(each * (len(jobs) - len(left)))
            if left:
                held = 0
                for done, (_, fine) in enumerate(in_processes(_run, left, workers, task), 1):
                    held += fine
                    if done >= _HOPELESS and not held:
                        raise DataError(
                            f"None of the first {done} configurations could be held with all atoms around it: they are "
                            "strained. The others were not begun."
                        )
    return load_mean_forces(folder)


def load_mean_forces(folder: str | Path) -> MeanForces:
    """What `mean_forces` has written so far, without configurations that are too strained for all atoms.

    Parameters
    ----------
    folder
        Of `mean_forces`; or an NPZ file with the arrays of `MeanForces`.

    Raises
    ------
    DataError
        There is nothing.
    """
    if str(folder).endswith(".npz"):
        try:
            with np.load(folder) as data:
                return MeanForces(**{name: data[name].astype(float) for name in MeanForces.__dataclass_fields__})
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"`{folder}` holds no mean forces ({error}).") from error
    files = sorted(Path(folder).glob("[0-9]*.npz"))
    if not files:
        raise DataError(f"{folder} holds no mean forces. `distillase cg mean-force` computes them.")
    values: dict[str, list[np.ndarray]] = {name: [] for name in MeanForces.__dataclass_fields__}
    for file in files:
        with np.load(file) as data:
            if np.isnan(data["forces"]).any():
                continue
            for name, found in values.items():
                found.append(data[name])
    if not values["forces"]:
        raise DataError(
            f"None of the {len(files)} configurations in {folder} could be held with all atoms around it: they are "
            "strained. Take frames of longer dynamics."
        )
    return MeanForces(**{name: np.stack(found) for name, found in values.items()})


def _run(job: _Job, advance: Advance) -> bool:
    """Write the mean forces of one configuration; False if all atoms cannot bear it."""
    openmm: Any = require("openmm", extra="proteins", purpose=_PURPOSE)
    try:
        on_beads, on_others = _sample(job, advance)
        mean, error = average(on_beads, on_others)
        _, raw = average(on_beads, None)
    except (DataError, openmm.OpenMMException) as problem:
        if not isinstance(problem, DataError) and "nan" not in str(problem).lower():
            raise  # something else is wrong
        # Too strained for all atoms. It stays so, and must not keep the others from being done.
        mean = error = raw = np.full(job.target.shape, np.nan)
    data = io.BytesIO()
    np.savez(data, positions=job.target, forces=mean, errors=error, raw_errors=raw)
    with atomic_write(job.file) as temporary:
        temporary.write_bytes(data.getvalue())
    return bool(np.isfinite(mean).all())


def _sample(job: _Job, advance: Advance) -> tuple[np.ndarray, np.ndarray]:
    """Forces (K, T, B, 3) on beads and (K, T, N − B, 3) on the other atoms, eV/Å, of K runs of T samples."""
    openmm: Any = require("openmm", extra="proteins", purpose=_PURPOSE)
    config = job.config
    per_sample = max(1, round(config.interval * 1000 / _TIMESTEP))
    samples = round(config.picoseconds / config.replicates * 1000 / _TIMESTEP) // per_sample
    forces = np.empty((config.replicates, samples, *job.begin.shape[1:]))
    for run, begin in enumerate(job.begin):
        seed = number_of(job.seed, run) % (2**31 - 1) + 1
        integrator = openmm.LangevinMiddleIntegrator(config.temperature, _FRICTION, _TIMESTEP / 1000)  # K, 1/ps, ps
        integrator.setRandomNumberSeed(seed)
        context = make_context(openmm.XmlSerializer.deserialize(job.system), integrator)
        context.setPositions(_brought(job, begin) / NM)
        context.setVelocitiesToTemperature(config.temperature, seed)
        integrator.step(round(config.equilibrate * 1000 / _TIMESTEP))
        advance(config.equilibrate)
        for k in range(samples):
            integrator.step(per_sample)
            forces[run, k] = context.getState(forces=True).getForces(asNumpy=True)._value
        advance(config.picoseconds / config.replicates)
    if not np.isfinite(forces).all():
        raise DataError("A configuration blew up with its Cα atoms held.")
    forces *= KJ_PER_MOL / NM
    return forces[:, :, job.beads], np.delete(forces, job.beads, axis=2)


def _brought(job: _Job, begin: np.ndarray) -> np.ndarray:
    """(N, 3) Å: all atoms with the beads where they shall be, the others relaxed."""
    if np.abs(begin[job.beads] - job.target).max() < _THERE:
        return begin
    openmm: Any = require("openmm", extra="proteins", purpose=_PURPOSE)
    positions = begin
    for share in np.linspace(0, 1, _APPROACH + 1)[1:]:
        positions = positions.copy()
        positions[job.beads] = (1 - share) * begin[job.beads] + share * job.target
        integrator = openmm.LangevinMiddleIntegrator(job.config.temperature, 10 * _FRICTION, _TIMESTEP / 2000)
        integrator.setRandomNumberSeed(job.seed % (2**31 - 1) + 1)
        context = make_context(openmm.XmlSerializer.deserialize(job.system), integrator)
        context.setPositions(positions / NM)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=50)
        context.setVelocitiesToTemperature(job.config.temperature, job.seed % (2**31 - 1) + 1)
        integrator.step(200)
        positions = context.getState(positions=True).getPositions(asNumpy=True)._value * NM
    if not np.isfinite(positions).all():
        raise DataError("All atoms could not be brought onto a configuration of the beads.")
    return positions


def average(on_beads: np.ndarray, on_others: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (B, 3) of forces on beads, and its standard error from what the runs differ by.

    Parameters
    ----------
    on_beads
        (K, T, B, 3), of K runs.
    on_others
        (K, T, M, 3), forces whose mean is zero, as control variates; None: the plain mean.
    """
    means = on_beads.mean(1)
    if on_others is not None:
        grams = [_gram(*run) for run in zip(on_beads, on_others, strict=True)]
        for k in range(len(means)):
            others = [other for j, other in enumerate(grams) if j != k]
            gram, mixed = (np.sum([other[part] for other in others], axis=0) for part in (0, 1))
            gram = gram + _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
            means[k] -= np.linalg.solve(gram, mixed).T @ on_others[k].mean(0)
    return means.mean(0), means.std(0, ddof=1) / np.sqrt(len(means))


def _gram(on_beads: np.ndarray, on_others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, M) and (M, B): of the fluctuations of one run (T, ·, 3), all three directions together."""
    target = (on_beads - on_beads.mean(0)).transpose(1, 0, 2).reshape(on_beads.shape[1], -1)
    known = (on_others - on_others.mean(0)).transpose(1, 0, 2).reshape(on_others.shape[1], -1)
    return known @ known.T, known @ target.T


def force_error(predicted: np.ndarray, wanted: MeanForces) -> tuple[float, float]:
    """Root mean square error of forces (M, B, 3) against mean forces, less what the means' own errors explain, and its
    standard error over configurations; eV/Å per component.

    The square of an error contains the variance of the mean that it is compared with, on average; it is taken off. Of
    one configuration there is no standard error: NaN.
    """
    square = ((predicted - wanted.forces) ** 2 - wanted.errors**2).mean((1, 2))
    mean = max(float(square.mean()), 0.0)
    spread = float(square.std(ddof=1) / np.sqrt(len(square))) if len(square) > 1 else float("nan")
    root = float(np.sqrt(mean))
    # An error that is not seen is below the root of what the square of it scatters by.
    return root, spread / (2 * root) if root else float(np.sqrt(spread))


def as_frames(found: MeanForces, name: str, sequence: str, temperature: float) -> BeadFrames:
    """Mean forces as frames to learn from, with their errors."""
    n = len(found.positions)
    return BeadFrames(
        name, sequence, found.positions, found.forces, np.full(n, temperature), np.full(n, "mean forces"),
        np.sqrt((found.errors**2).mean((1, 2))),
    )  # fmt: skip
