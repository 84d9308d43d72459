"""One baseline trajectory, advanced step by step, that can be killed at any moment and goes on bit for bit.

Two files hold it. ``NAME.frames`` is a row of float64 per frame (positions Å, velocities Å/fs, forces eV/Å, energy eV),
appended to. ``NAME.npz`` is its state at some step: positions, momenta, generator, and how many frames belong to it; it
is written whole or not at all, after the frames are on the disk. Rows beyond those that the state counts were written
by a run that died, and are written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError
from ase.md.verlet import VelocityVerlet

from ...ase_calcs.dynamics.mts import MTSLangevin
from ...ase_calcs.dynamics.restart import RestartFile
from ...ase_calcs.errors import DataError, InputError, MissingDependency, TeacherError
from ...ase_calcs.units import FS, KB
from ..structure import Structure
from .config import TrajectoryConfig
from .dynamics import overheated, pulled
from .surface import make_surface, surface_identity

_FORMAT = 1  # counted up when the same job would give another result
_SAVE_SECONDS = 1.0  # at most this much work is lost, and one step
_REPORT_SECONDS = 0.25
_FLAT = 1e-6  # a principal moment of inertia smaller than this times the largest has no rotation


@dataclass(frozen=True)
class TrajectoryJob:
    """What makes one trajectory.

    Attributes
    ----------
    start
        First geometry; group, origin and electronic state of the frames.
    teacher
        Registry name, as it runs.
    config
        How to run it.
    seed
        Of its velocities and its thermostat alone.
    """

    start: Structure
    teacher: str
    config: TrajectoryConfig
    seed: int

    def key(self) -> str:
        """Hash of everything a frame depends on. The length is not among it, so that a trajectory can be extended."""
        settings = asdict(self.config)
        for unused in ("picoseconds", "trajectories", "conformers"):
            del settings[unused]
        said = [_FORMAT, self.start.key(), self.start.smiles, str(self.seed), surface_identity(self.teacher), settings]
        return hashlib.blake2b(json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()

    def path(self, folder: Path) -> Path:
        """Of its files, without suffix."""
        return folder / f"{self.start.origin.replace('/', '-')}-{self.key()}"


@dataclass(frozen=True)
class Outcome:
    """How far a trajectory has come.

    Attributes
    ----------
    frames, steps
        Frames that are kept, and steps made for them, equilibration included.
    seconds
        Spent on them.
    stopped
        Why it ended before its time, or ``""``.
    final
        Whether nothing is left to do. A trajectory that an unforeseen error of its calculator ended is tried again.
    """

    frames: int
    steps: int
    seconds: float
    stopped: str
    final: bool


def known_outcome(job: TrajectoryJob, folder: Path) -> Outcome | None:
    """What earlier runs have made of a job; None for nothing."""
    found = RestartFile(job.path(folder).with_suffix(".npz")).read(job.start.numbers, {"key": job.key()})
    if found is None:
        return None
    state = found[1]
    # Not by its steps: it may have died between the last of them and its frame.
    final = bool(state["stopped"]) or state["frames"] >= job.config.n_frames
    return Outcome(state["frames"], state["step"], state["seconds"], state["stopped"], final)


def read_frames(job: TrajectoryJob, folder: Path, count: int) -> dict[str, np.ndarray]:
    """``positions velocities forces`` (T, N, 3) and ``energies`` (T,) of the first `count` frames, mapped from disk."""
    n = len(job.start)
    if count:
        rows: Any = np.memmap(job.path(folder).with_suffix(".frames"), dtype="<f8", mode="r", shape=(count, 9 * n + 1))
    else:
        rows = np.empty((0, 9 * n + 1))
    vectors = rows[:, : 9 * n].reshape(count, 3, n, 3)
    return {
        "positions": vectors[:, 0],
        "velocities": vectors[:, 1],
        "forces": vectors[:, 2],
        "energies": rows[:, 9 * n],
    }


def perform(item: tuple[TrajectoryJob, Path], advance: Callable[[float], None]) -> Outcome:
    """Go on with a job from where its files are, to its end; `advance` is told of steps.

    What the teacher refuses and what blows up ends the trajectory, with the reason in its outcome.
    """
    job, folder = item
    known = known_outcome(job, folder)
    if known is not None and known.final:
        return known
    run = _Run(job, folder)
    try:
        return run.to_the_end(advance)
    finally:
        run.close()


class _Run:
    """A trajectory under way."""

    def __init__(self, job: TrajectoryJob, folder: Path) -> None:
        self.job, self.config = job, job.config
        self.rng = np.random.default_rng(job.seed)
        self.atoms = job.start.to_atoms()
        self.step, self.frames, self.seconds = 0, 0, 0.0
        path = job.path(folder)
        self.state = RestartFile(path.with_suffix(".npz"))
        self.settings = {"key": job.key()}
        found = self.state.read(self.atoms.numbers, self.settings)
        if found is None:
            thermalise(self.atoms, self.config.temperature_K, self.rng)
        else:
            arrays, state = found
            self.atoms.positions[:] = arrays["positions"]
            self.atoms.set_momenta(arrays["momenta"])
            self.rng.bit_generator.state = state["random"]
            self.step, self.frames, self.seconds = state["step"], state["frames"], state["seconds"]
        self.rows = self._open(path.with_suffix(".frames"))
        self.clock = self.saved = self.reported = time.perf_counter()

    def _open(self, path: Path) -> Any:
        """The file of frames, without what a run that died wrote after its last state."""
        file = open(path, "r+b" if path.exists() else "x+b")  # noqa: SIM115 (closed in `close`)
        whole = self.frames * 8 * (9 * len(self.atoms) + 1)
        if os.fstat(file.fileno()).st_size < whole:
            file.close()
            raise DataError(
                f"{path} is shorter than its state says, so part of it was lost or changed. Remove it and "
                f"{self.state.path.name} to compute this trajectory anew."
            )
        file.truncate(whole)
        file.seek(whole)
        return file

    def close(self) -> None:
        self.rows.close()

    def to_the_end(self, advance: Callable[[float], None]) -> Outcome:
        """Run; whatever way it ends short of a signal, the outcome says so."""
        stopped, final, reported = "", True, self.step
        try:
            self.atoms.calc = make_surface(self.job.teacher, self.job.start)
            stepper = self._stepper()
            while not stopped:
                if self.step == self.config.equilibration_steps and not self.frames:
                    self._end_equilibration()
                    stepper = self._stepper()
                stopped = self._keep_frame()
                if stopped or self.step == self.config.steps:
                    break
                stepper.step()
                self.step += 1
                stopped = overheated(self.atoms, self.config.temperature_K)
                now = time.perf_counter()
                if now - self.saved > _SAVE_SECONDS and not stopped:
                    self._save()
                if now - self.reported > _REPORT_SECONDS:
                    advance(self.step - reported)
                    self.reported, reported = now, self.step
        except (TeacherError, CalculatorError) as error:
            stopped = str(error)
        except (InputError, MissingDependency):
            raise
        except Exception as error:  # other people's calculators raise anything, and the other trajectories go on
            stopped, final = f"unforeseen {type(error).__name__}: {error}", False
        if stopped:
            stopped = f"at {self._when()}: {stopped}"
        if final:
            self._save(stopped)
        else:
            self.rows.flush()
            self.seconds += time.perf_counter() - self.clock
        advance(self.config.steps - reported)  # what was planned and not needed
        return Outcome(self.frames, self.step, self.seconds, stopped, final)

    def _when(self) -> str:
        fs = (self.step - self.config.equilibration_steps) * self.config.timestep
        return f"{fs:g} fs" if fs >= 0 else f"{-fs:g} fs before the end of the equilibration"

    def _stepper(self) -> Any:
        """The integrator of this step; all that it knows is in atoms and generator."""
        timestep = self.config.timestep * FS
        if self.config.integrator == "verlet" and self.step >= self.config.equilibration_steps:
            return VelocityVerlet(self.atoms, timestep)
        # With one inner step to an outer one the student is never asked, and this is BAOAB on the teacher.
        return MTSLangevin(
            self.atoms,
            timestep,
            inner=self.atoms.calc,
            k=1,
            temperature_K=self.config.temperature_K,
            friction=self.config.friction / FS,
            fixcm=len(self.atoms) > 1,  # a lone atom has no other motion
            rng=self.rng,
        )

    def _end_equilibration(self) -> None:
        if self.config.integrator == "verlet":
            remove_net_motion(self.atoms)

    def _keep_frame(self) -> str:
        """Append the frame of this step if one is due; what is wrong with it, or ``""``."""
        since = self.step - self.config.equilibration_steps
        if since != self.frames * self.config.stride:
            return ""
        fault = pulled(self.atoms, self.config.max_force)
        if fault:
            return fault
        energy = self.atoms.get_potential_energy()
        if not np.isfinite(energy):
            return f"the energy is {energy}"
        vectors = np.stack([self.atoms.positions, self.atoms.get_velocities() * FS, self.atoms.get_forces()])
        self.rows.write(np.append(vectors, energy).astype("<f8").tobytes())
        self.frames += 1
        return ""

    def _save(self, stopped: str = "") -> None:
        self.rows.flush()
        os.fsync(self.rows.fileno())
        now = time.perf_counter()
        self.seconds += now - self.clock
        self.clock = self.saved = now
        arrays = {
            "numbers": self.atoms.numbers,
            "positions": self.atoms.positions,
            "momenta": self.atoms.get_momenta(),
        }
        state = {
            "settings": self.settings,
            "step": self.step,
            "frames": self.frames,
            "seconds": self.seconds,
            "stopped": stopped,
            "random": self.rng.bit_generator.state,
        }
        self.state.write(arrays, state)


# ---------------------------------------------------------------------------------------------------------- net motion


def thermalise(atoms: Atoms, temperature_K: float, rng: np.random.Generator) -> None:
    """Momenta of the Maxwell–Boltzmann distribution, without net motion.

    Nothing is rescaled, so every degree of freedom that is left has this temperature, K.
    """
    widths = np.sqrt(KB * temperature_K * atoms.get_masses())[:, None]
    atoms.set_momenta(widths * rng.standard_normal((len(atoms), 3)))
    remove_net_motion(atoms)


def remove_net_motion(atoms: Atoms) -> None:
    """Take away the net momentum and, of a molecule, the net rotation; a lone atom keeps what it has."""
    if len(atoms) == 1:
        return
    masses = atoms.get_masses()[:, None]
    momenta = atoms.get_momenta()
    momenta -= masses / masses.sum() * momenta.sum(axis=0)
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.get_center_of_mass()
        # The pseudo-inverse, because a linear molecule has no moment of inertia about its axis.
        inverse = np.linalg.pinv(_inertia(arms, masses), rcond=_FLAT, hermitian=True)
        momenta -= masses * np.cross(inverse @ np.cross(arms, momenta).sum(axis=0), arms)
    atoms.set_momenta(momenta)


def degrees_of_freedom(config: TrajectoryConfig, positions: np.ndarray, masses: np.ndarray, pbc: np.ndarray) -> int:
    """How many move in the frames: the thermostat leaves the net momentum at zero, Verlet the rotation as well.

    Parameters
    ----------
    positions
        (N, 3) Å, the first frame.
    masses
        (N,) u.
    pbc
        (3,) bool.
    """
    if len(positions) == 1:
        return 3
    free = 3 * len(positions) - 3
    if config.integrator == "langevin" or pbc.any():
        return free
    arms = positions - (masses[:, None] * positions).sum(axis=0) / masses.sum()
    moments = np.linalg.eigvalsh(_inertia(arms, masses[:, None]))
    return free - int((moments > _FLAT * moments.max()).sum())


def _inertia(arms: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """(3, 3) u Å², for arms (N, 3) and masses (N, 1)."""
    return (masses * (arms**2).sum(axis=1, keepdims=True)).sum() * np.eye(3) - (masses * arms).T @ arms
