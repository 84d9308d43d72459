"""All-atom reference dynamics of a protein: frames with forces, from several starts and temperatures, resumable.

A *job* is one start with one temperature, or with a ladder of them whose neighbours exchange configurations. It is cut
into chunks of a few seconds; the file of a chunk holds its frames and all that the next one begins with. What noise a
chunk gets depends on the seed, the job and the chunk's number alone: stopped at any moment, the same command gives the
frames that an undisturbed run gives.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from zipfile import BadZipFile

import numpy as np

from ...ase_calcs.errors import DataError, InputError, StructureError, check_positive, require
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.units import KB, KCAL_PER_MOL, KJ_PER_MOL, NM
from ..lock import locked
from ..sampling.processes import Advance, in_processes
from ..writer import atomic_write
from .build import AllAtom, alpha_carbons, build_sequence, build_unfolded
from .system import Prepared, SystemConfig, constrained_pairs, degrees_of_freedom, make_context, make_system

Start = Literal["folded", "extended", "unfolded", "pulled"]

RECORD = "reference.json"
_FRICTION = 1.0  # 1/ps
_EXCHANGE = 2.0  # ps between attempts
_CHUNK = 20.0  # ps
_HOTTEST = 500.0  # K
_PULL = 2.5  # kcal/mol/Å², of the spring that pulls the ends apart
_STRETCH = 3.0  # Å for each residue, where it pulls them to
_PULL_PS = 40.0
_PURPOSE = "make reference dynamics"


@dataclass(frozen=True)
class ReferenceConfig:
    """How the reference is run.

    Attributes
    ----------
    nanoseconds
        Of every start at every temperature, after `equilibrate`.
    temperatures
        K.
    starts
        ``folded`` is the given structure; ``extended`` and ``unfolded`` (a random chain) are built from the sequence;
        ``pulled`` is the folded one with its ends drawn apart.
    exchange
        Whether the temperatures of a start exchange configurations. Rungs are added up to 500 K, so close that about
        three attempts in ten succeed in implicit water.
    interval
        ps between frames.
    timestep
        fs.
    equilibrate
        ps before the first frame.
    system
        Force field and water.
    """

    nanoseconds: float = 1.0
    temperatures: tuple[float, ...] = (300.0, 350.0, 400.0)
    starts: tuple[Start, ...] = ("extended", "unfolded")
    exchange: bool = False
    interval: float = 1.0
    timestep: float = 4.0
    equilibrate: float = 20.0
    system: SystemConfig = field(default_factory=SystemConfig)

    def __post_init__(self) -> None:
        for name in ("nanoseconds", "interval", "timestep"):
            check_positive(name, getattr(self, name))
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            raise InputError(f"`temperatures` is {self.temperatures}; give one or several different ones, in K.")
        for kelvin in self.temperatures:
            check_positive("temperatures", kelvin)
        unknown = [name for name in self.starts if name not in get_args(Start)]
        if unknown or not self.starts:
            raise InputError(f"`starts` is {self.starts}; allowed are {', '.join(map(repr, get_args(Start)))}.")
        for name, value in (("interval", self.interval), ("equilibrate", self.equilibrate)):
            if abs(value * 1000 / self.timestep % 1) > 1e-9:
                raise InputError(f"`{name}` is {value} ps, which is no whole number of steps of {self.timestep} fs.")
        for name, value in (("interval", self.interval), ("exchange", _EXCHANGE)):
            if abs(_CHUNK / value % 1) > 1e-9:
                raise InputError(f"`{name}` is {value} ps and must divide {_CHUNK:g} ps.")
        if len(set(self.starts)) < len(self.starts):
            raise InputError(f"`starts` is {self.starts}; each start once.")
        if "pulled" in self.starts and self.system.water != "obc2":
            raise InputError(
                "`pulled` draws a chain out of its box of explicit water. Take `water: obc2`, or other starts."
            )
        if self.exchange and self.system.water != "obc2":
            raise InputError(
                "`exchange` in explicit water would need a rung every few kelvin. Take `water: obc2`, or several "
                "temperatures without exchange."
            )


@dataclass(frozen=True)
class Job:
    """One start on one rung or a ladder of them."""

    name: str
    folder: Path
    start: np.ndarray
    system: str
    temperatures: tuple[float, ...]
    config: ReferenceConfig
    seed: int
    n_protein: int
    chunks: int
    pull: tuple[int, int, float] | None = None  # atoms at the ends, and how far apart a spring draws them, Å

    def file(self, chunk: int) -> Path:
        """Of a chunk; number 0 is the equilibration and holds no frames."""
        return self.folder / self.name / f"{chunk:05d}.npz"


def ladder(temperatures: tuple[float, ...], freedom: int) -> tuple[float, ...]:
    """Temperatures with rungs between and above them up to 500 K.

    A system of f harmonic degrees of freedom exchanges with probability erfc(√(f/8) ΔT/T) (with f/2 for the heat
    capacity of its potential energy in k); 0.3 of attempts succeed where ΔT/T = 2.07/√f.
    """
    wanted = sorted({*temperatures, max(_HOTTEST, *temperatures)})
    step = 1 + 2.07 / np.sqrt(freedom)
    rungs = [wanted[0]]
    for low, high in itertools.pairwise(wanted):
        between = max(1, round(np.log(high / low) / np.log(step)))
        rungs += [float(low * (high / low) ** (k / between)) for k in range(1, between)] + [high]
    return tuple(rungs)


def run_reference(
    protein: AllAtom,
    folder: str | Path,
    config: ReferenceConfig | None = None,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Run what is still missing.

    Parameters
    ----------
    protein
        The folded structure, or any other one of the same residues.
    folder
        Gets ``protein.pdb``, ``system.xml``, the record and a folder of chunks for every job.
    config
        What to run.
    seed
        Of random chains, velocities and noise.
    workers
        Processes, each on one core.
    progress
        Told picoseconds.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        The folder holds a reference made with other settings (more nanoseconds are allowed).
    """
    config, progress, folder = config or ReferenceConfig(), progress or SilentProgress(), Path(folder)
    with locked(folder, "making a reference"):
        prepared = make_system(protein, config.system)
        record = {
            "sequence": protein.sequence, "seed": seed, **asdict(config),
            "ladder": ladder(config.temperatures, degrees_of_freedom(prepared.system)) if config.exchange else (),
            "constraints": constrained_pairs(prepared.system).tolist(), "structure": _hash(prepared),
        }  # fmt: skip
        _check_record(folder / RECORD, record)
        jobs = _plan(protein, prepared, folder, config, seed, record["ladder"])
        if not (folder / RECORD).is_file():
            _write(folder / "protein.pdb", protein.pdb().encode())
            _write(folder / "system.xml", _serialised(prepared.system).encode())
        _write(folder / RECORD, json.dumps(record, indent=1).encode())
        left = {k: job for k, job in enumerate(jobs) if not job.file(job.chunks).is_file()}
        total = sum(len(job.temperatures) * (config.equilibrate + job.chunks * _CHUNK) for job in jobs)
        done = sum(_done(job) for job in jobs)
        with progress.task("reference, ps", total) as task:
            task.advance(done)
            if left:
                for _ in in_processes(run_job, left, workers, task):
                    pass
    return folder


def _plan(
    protein: AllAtom, prepared: Prepared, folder: Path, config: ReferenceConfig, seed: int, rungs: tuple[float, ...]
) -> list[Job]:
    jobs = []
    beads = alpha_carbons(protein.topology).tolist()
    for start in config.starts:
        for temperatures in [rungs] if config.exchange else [(kelvin,) for kelvin in config.temperatures]:
            name = f"{start}-{'exchange' if config.exchange else f'{temperatures[0]:g}K'}"
            own = number_of(seed, name)
            begin = _begin(start, protein, config, own, prepared)
            jobs.append(
                Job(
                    name,
                    folder / "frames",
                    begin.positions,
                    _serialised(begin.system),
                    tuple(temperatures),
                    config,
                    own,
                    begin.n_protein,
                    int(np.ceil(config.nanoseconds * 1000 / _CHUNK - 1e-9)),
                    (beads[0], beads[-1], _STRETCH * (len(beads) - 1)) if start == "pulled" else None,
                )
            )
    return jobs


def _begin(start: Start, protein: AllAtom, config: ReferenceConfig, seed: int, prepared: Prepared) -> Prepared:
    """Where a job begins. Chains are built only where there is one: how several lie together is in the file alone."""
    if start == "pulled" and ":" in protein.sequence:
        raise InputError("`starts` has `pulled`, which draws the ends of one chain apart; there are several.")
    if start in ("folded", "pulled"):
        return prepared
    if ":" in protein.sequence:
        raise InputError(f"`starts` has `{start}`, which is built from the sequence of one chain; there are several.")
    rng = np.random.default_rng(seed)
    built = build_sequence(protein.sequence) if start == "extended" else build_unfolded(protein.sequence, rng)
    place = {name: k for k, name in enumerate(_atom_names(built))}
    wanted = _atom_names(protein)
    if not has_atoms_of(protein, built):
        raise StructureError(
            f"The chain built from the sequence has other atoms than the given structure, so `{start}` cannot start "
            "from it. Leave it out of `starts`."
        )
    return make_system(AllAtom(protein.topology, built.positions[[place[name] for name in wanted]]), config.system)


def has_atoms_of(protein: AllAtom, other: AllAtom) -> bool:
    """Whether both have the same atoms; other protons, disulfide bridges and caps make a difference."""
    return set(_atom_names(protein)) == set(_atom_names(other))


def _atom_names(protein: AllAtom) -> list[tuple[int, str]]:
    return [(atom.residue.index, atom.name) for atom in protein.topology.atoms()]


def _done(job: Job) -> float:
    """ps that are finished, over all its temperatures."""
    if not job.file(0).is_file():
        return 0.0
    chunks = sum(job.file(k).is_file() for k in range(1, job.chunks + 1))
    return len(job.temperatures) * (job.config.equilibrate + chunks * _CHUNK)


def run_job(job: Job, advance: Advance) -> None:
    """All chunks of a job that are not there yet."""
    first = next((k for k in range(job.chunks + 1) if not job.file(k).is_file()), None)
    if first is None:
        return
    job.file(0).parent.mkdir(parents=True, exist_ok=True)
    state = None if first == 0 else _load_state(job.file(first - 1))
    for chunk in range(first, job.chunks + 1):
        runner = _Runner(job, number_of(job.seed, chunk))
        if state is None:
            state = runner.equilibrate(advance)
            _save(job.file(0), state, {})
            continue
        state, frames = runner.run_chunk(state, advance)
        _save(job.file(chunk), state, frames)


@dataclass
class _State:
    """Of all temperatures: positions (K, N, 3) nm, velocities (K, N, 3) nm/ps, box (K, 3, 3) nm; attempts and
    successes of exchanges between neighbours (K − 1, 2), since the beginning; seconds of computing."""

    positions: np.ndarray
    velocities: np.ndarray
    box: np.ndarray
    exchanges: np.ndarray
    seconds: float


class _Runner:
    """One OpenMM Context, for one chunk: a new one, so that its noise depends on the chunk's seed alone."""

    def __init__(self, job: Job, seed: int):
        openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
        self.unit = require("openmm.unit", extra="proteins", purpose=_PURPOSE)
        self.job, self.rng = job, np.random.default_rng(seed)
        self.system = openmm.XmlSerializer.deserialize(job.system)
        self.explicit = self.system.usesPeriodicBoundaryConditions()
        for force in self.system.getForces():
            if isinstance(force, openmm.MonteCarloBarostat):
                force.setRandomNumberSeed(int(self.rng.integers(1, 2**31)))
        if job.pull is not None:
            first, last, far = job.pull
            spring = openmm.CustomBondForce(f"0.5*pull*(r-{far / NM})^2")
            spring.addGlobalParameter("pull", 0.0)
            spring.addBond(first, last)
            self.system.addForce(spring)
        self.integrator = openmm.LangevinMiddleIntegrator(
            job.temperatures[0], _FRICTION, job.config.timestep / 1000
        )  # K, 1/ps, ps
        self.integrator.setRandomNumberSeed(int(self.rng.integers(1, 2**31)))
        self.context = make_context(self.system, self.integrator)

    def _set(self, k: int, state: _State) -> None:
        self.integrator.setTemperature(self.job.temperatures[k])
        if self.explicit:
            self.context.setParameter("MonteCarloTemperature", self.job.temperatures[k])
        self.context.setPeriodicBoxVectors(*state.box[k])
        self.context.setPositions(state.positions[k])
        self.context.setVelocities(state.velocities[k])

    def _get(self, k: int, state: _State) -> float:
        """Put where the Context is into the state; the potential energy, kJ/mol."""
        now = self.context.getState(positions=True, velocities=True, energy=True)
        state.positions[k] = now.getPositions(asNumpy=True)._value
        state.velocities[k] = now.getVelocities(asNumpy=True)._value
        state.box[k] = now.getPeriodicBoxVectors(asNumpy=True)._value
        energy = now.getPotentialEnergy()._value
        if not np.isfinite(energy) or not np.isfinite(state.positions[k]).all():
            raise DataError(
                f"The reference {self.job.name} blew up at {self.job.temperatures[k]:g} K: a shorter `timestep` than "
                f"{self.job.config.timestep:g} fs helps, and so does a start without clashes."
            )
        return energy

    def equilibrate(self, advance: Advance) -> _State:
        """Minimised, warmed, and pulled apart where that is the start."""
        openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
        job, begun = self.job, time.monotonic()
        box = self.system.getDefaultPeriodicBoxVectors()
        box = np.array([[edge._value for edge in row] for row in box])
        shape = (len(job.temperatures), *job.start.shape)
        state = _State(
            np.broadcast_to(job.start / NM, shape).copy(), np.zeros(shape),
            np.broadcast_to(box, (len(job.temperatures), 3, 3)).copy(),
            np.zeros((max(len(job.temperatures) - 1, 0), 2)), 0.0,
        )  # fmt: skip
        steps = round(job.config.equilibrate * 1000 / job.config.timestep)
        for k, kelvin in enumerate(job.temperatures):
            self._set(k, state)
            if job.pull is not None:
                self.context.setParameter("pull", _PULL * KCAL_PER_MOL / KJ_PER_MOL * NM**2)
            openmm.LocalEnergyMinimizer.minimize(self.context, 10.0, 500)  # kJ/mol/nm, steps
            self.context.setVelocitiesToTemperature(kelvin, int(self.rng.integers(1, 2**31)))
            if job.pull is not None:
                self.integrator.step(round(_PULL_PS * 1000 / job.config.timestep))
                self.context.setParameter("pull", 0.0)
            self.integrator.step(steps)
            self._get(k, state)
            advance(job.config.equilibrate)
        state.seconds = time.monotonic() - begun
        return state

    def run_chunk(self, state: _State, advance: Advance) -> tuple[_State, dict[str, np.ndarray]]:
        """The frames of a chunk, and where it ends."""
        job, begun = self.job, time.monotonic()
        step, n = job.config.timestep / 1000, job.n_protein
        per_frame, per_exchange = round(job.config.interval / step), round(_EXCHANGE / step)
        ladder_of = len(job.temperatures)
        length = round(_CHUNK / step)
        n_frames = length // per_frame
        frames: dict[str, np.ndarray] = {
            "positions": np.zeros((ladder_of, n_frames, n, 3), np.float32),
            "forces": np.zeros((ladder_of, n_frames, n, 3), np.float32),
            "energies": np.zeros((ladder_of, n_frames)),
        }
        stops = sorted({*range(0, length, per_frame), *range(0, length, per_exchange)} | {length})
        energies = np.zeros(ladder_of)
        between = list(itertools.pairwise(stops))
        # Rung by rung from one exchange to the next, as a Context is cheap to move but not for free.
        for segment in _segments(between, per_exchange if ladder_of > 1 else length):
            for k in range(ladder_of):
                self._set(k, state)
                for a, b in segment:
                    self.integrator.step(b - a)
                    if b % per_frame == 0:
                        self._record(k, b // per_frame - 1, frames)
                energies[k] = self._get(k, state)
            if ladder_of > 1:
                self._exchange(state, energies)
            advance(ladder_of * (segment[-1][1] - segment[0][0]) * step)
        state.seconds += time.monotonic() - begun
        return state, frames

    def _record(self, k: int, number: int, frames: Mapping[str, np.ndarray]) -> None:
        now = self.context.getState(positions=True, forces=True, energy=True, enforcePeriodicBox=False)
        n = self.job.n_protein
        frames["positions"][k, number] = now.getPositions(asNumpy=True)._value[:n] * NM
        frames["forces"][k, number] = now.getForces(asNumpy=True)._value[:n] * (KJ_PER_MOL / NM)
        frames["energies"][k, number] = now.getPotentialEnergy()._value * KJ_PER_MOL

    def _exchange(self, state: _State, energies: np.ndarray) -> None:
        """Neighbours swap configurations with the probability of Metropolis: the even pairs, or the odd ones."""
        kelvin = np.array(self.job.temperatures)
        beta = KJ_PER_MOL / (KB * kelvin)  # mol/kJ
        for k in range(int(self.rng.integers(2)) if len(kelvin) > 2 else 0, len(kelvin) - 1, 2):
            state.exchanges[k, 0] += 1
            gain = (beta[k] - beta[k + 1]) * (energies[k] - energies[k + 1])
            if gain < 0 and self.rng.random() >= np.exp(gain):
                continue
            state.exchanges[k, 1] += 1
            pair = [k, k + 1]
            for values in (state.positions, state.velocities, state.box, energies):
                values[pair] = values[pair[::-1]]
            scale = np.sqrt(kelvin[k] / kelvin[k + 1])
            state.velocities[k] *= scale
            state.velocities[k + 1] /= scale


def _segments(stops: list[tuple[int, int]], every: int) -> Iterator[list[tuple[int, int]]]:
    """Stretches between stops, gathered from one exchange to the next."""
    gathered: list[tuple[int, int]] = []
    for stop in stops:
        gathered.append(stop)
        if stop[1] % every == 0:
            yield gathered
            gathered = []
    if gathered:
        yield gathered


def number_of(seed: int, what: object) -> int:
    """A seed that depends on the seed and on what it is for."""
    return zlib.crc32(f"{seed}/{what}".encode())


def _save(path: Path, state: _State, frames: Mapping[str, np.ndarray]) -> None:
    data = io.BytesIO()
    np.savez(data, **{f"state_{k}": v for k, v in vars(state).items()}, **frames)  # type: ignore[arg-type]
    _write(path, data.getvalue())


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _load_state(path: Path) -> _State:
    try:
        with np.load(path) as data:
            values = {key.removeprefix("state_"): data[key] for key in data.files if key.startswith("state_")}
            return _State(**{**values, "seconds": float(values["seconds"])})
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}). Remove it, and the command computes it again.") from error


def _serialised(system: Any) -> str:
    openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
    return str(openmm.XmlSerializer.serialize(system))


def _hash(prepared: Prepared) -> str:
    """Of the force field and of where the atoms are, to a hundredth of an Å."""
    digest = hashlib.blake2b(_serialised(prepared.system).encode(), digest_size=16)
    digest.update(np.round(prepared.positions, 2).tobytes())
    return digest.hexdigest()


def _check_record(path: Path, record: dict[str, Any]) -> None:
    if not path.is_file():
        return
    old, new = json.loads(path.read_text()), json.loads(json.dumps(record))
    changed = [
        f"  {key}: {old.get(key)} there, {new[key]} now"
        for key in new
        if key not in ("nanoseconds", "constraints") and old.get(key) != new[key]
    ]
    if changed or old["nanoseconds"] > new["nanoseconds"]:
        raise InputError(
            f"{path.parent} holds a reference made with other settings:\n"
            + "\n".join(changed or [f"  nanoseconds: {old['nanoseconds']} there, {new['nanoseconds']} now"])
            + "\nGive the old settings (more nanoseconds are allowed), or another folder with --out."
        )
