"""What to sample and how, as frozen dataclasses whose fields are the keys of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...ase_calcs.errors import InputError, check_at_least, check_positive, did_you_mean


@dataclass(frozen=True)
class MDConfig:
    """Langevin dynamics, one trajectory for every temperature and replica.

    Attributes
    ----------
    n_frames
        Frames per molecule, in all: spread evenly over temperatures and replicas. 0 turns MD off.
    temperatures_K
        K. Above the temperature the student will run at, so that it has seen what it meets there.
    replicas
        Independent trajectories per temperature; they start from the conformers in turn.
    stride
        Steps between two frames kept.
    timestep
        fs.
    friction
        1/fs.
    equilibration
        Steps before the first frame.
    surface
        ``"teacher"``, or ``"mmff94"``: hundreds of times cheaper, with other bond lengths than the teacher's.
    max_force
        eV/Å; a trajectory that meets a larger force is cut there.
    """

    n_frames: int = 0
    temperatures_K: tuple[float, ...] = (300.0, 500.0)
    replicas: int = 2
    stride: int = 20
    timestep: float = 0.5
    friction: float = 0.01
    equilibration: int = 1000
    surface: Literal["mmff94", "teacher"] = "teacher"
    max_force: float = 100.0

    def __post_init__(self) -> None:
        _whole(self, "n_frames", "equilibration", at_least=0)
        _whole(self, "replicas", "stride", at_least=1)
        for name in ("timestep", "friction", "max_force"):
            check_positive(name, getattr(self, name))
        _temperatures(self, "temperatures_K")
        _surface(self)
        _short(self.timestep)


@dataclass(frozen=True)
class TrajectoryConfig:
    """Baseline trajectories of a teacher; see `run_trajectories`.

    Attributes
    ----------
    integrator
        ``"langevin"`` (BAOAB, canonical ensemble) or ``"verlet"`` (velocity Verlet, constant energy).
    temperature_K
        K, of the first velocities and of the thermostat.
    timestep
        fs.
    picoseconds
        ps from the first frame to the last.
    interval
        fs between two frames, a multiple of the time step.
    friction
        1/fs, of the thermostat; with ``"verlet"`` it acts in the equilibration alone.
    equilibrate
        ps with the thermostat before the first frame, whatever the integrator.
    trajectories
        For each molecule, from its input geometries and then from its conformers, in turn.
    conformers
        Embedded for each molecule that has fewer input geometries than trajectories.
    max_force
        eV/Å; a trajectory whose frame has a larger force has blown up.
    """

    integrator: Literal["langevin", "verlet"] = "langevin"
    temperature_K: float = 300.0
    timestep: float = 0.5
    picoseconds: float = 10.0
    interval: float = 10.0
    friction: float = 0.01
    equilibrate: float = 1.0
    trajectories: int = 1
    conformers: int = 10
    max_force: float = 100.0

    def __post_init__(self) -> None:
        if self.integrator not in ("langevin", "verlet"):
            allowed = did_you_mean(self.integrator, ("langevin", "verlet"))
            raise InputError(f"Unknown integrator `{self.integrator}`{allowed}")
        for name in ("temperature_K", "timestep", "picoseconds", "interval", "friction", "max_force"):
            check_positive(name, getattr(self, name))
        check_at_least("equilibrate", self.equilibrate, 0)
        _whole(self, "trajectories", at_least=1)
        _whole(self, "conformers", at_least=0)
        _short(self.timestep)
        _multiple("interval", self.interval, "time step", self.timestep)
        _multiple("picoseconds", 1000 * self.picoseconds, "interval", self.interval)
        _multiple("equilibrate", 1000 * self.equilibrate, "time step", self.timestep)

    @property
    def stride(self) -> int:
        """Steps between two frames."""
        return round(self.interval / self.timestep)

    @property
    def equilibration_steps(self) -> int:
        """Steps before the first frame."""
        return round(1000 * self.equilibrate / self.timestep)

    @property
    def n_frames(self) -> int:
        """Frames of one trajectory, the first and the last included."""
        return round(1000 * self.picoseconds / self.interval) + 1

    @property
    def steps(self) -> int:
        """Steps of one trajectory, equilibration included."""
        return self.equilibration_steps + (self.n_frames - 1) * self.stride


@dataclass(frozen=True)
class SamplingConfig:
    """Which geometries to make from every molecule.

    Attributes
    ----------
    conformers
        ETKDG conformers per molecule, MMFF94-optimised; fewer where fewer differ.
    conformer_rmsd
        Å; a conformer nearer to an earlier one than this is dropped (measured as for `dedup_rmsd`).
    rattled
        Rattled geometries per molecule: Gaussian displacements of the conformers.
    rattle_sigma
        Standard deviation of each Cartesian displacement, Å.
    normal_modes
        Geometries per molecule displaced along normal modes by classical Boltzmann amplitudes.
    mode_temperatures_K
        K, taken in turn.
    mode_surface
        Surface of the relaxation and the Hessian, as `MDConfig.surface`.
    mode_floor
        cm⁻¹; softer modes move as if they had this wavenumber (their amplitude would leave the harmonic region).
    md
        Dynamics.
    min_distance
        Two atoms nearer than this times the sum of their covalent radii clash; the geometry is not kept.
    dedup_rmsd
        Å; of two geometries of a molecule nearer than this the later is dropped. 0 keeps all.
    select
        Keep this many geometries per molecule by farthest-point selection. 0 keeps all.
    """

    conformers: int = 10
    conformer_rmsd: float = 0.1
    rattled: int = 0
    rattle_sigma: float = 0.05
    normal_modes: int = 0
    mode_temperatures_K: tuple[float, ...] = (300.0, 600.0)
    mode_surface: Literal["mmff94", "teacher"] = "teacher"
    mode_floor: float = 100.0
    md: MDConfig = field(default_factory=MDConfig)
    min_distance: float = 0.6
    dedup_rmsd: float = 0.02
    select: int = 0

    def __post_init__(self) -> None:
        _whole(self, "conformers", "rattled", "normal_modes", "select", at_least=0)
        for name in ("rattle_sigma", "mode_floor"):
            check_positive(name, getattr(self, name))
        _temperatures(self, "mode_temperatures_K")
        for name in ("min_distance", "dedup_rmsd", "conformer_rmsd"):
            check_at_least(name, getattr(self, name), 0)
        _surface(self, "mode_surface")


def _whole(config: Any, *names: str, at_least: int) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise InputError(f"`{name}` is {value!r}; it must be a whole number, {at_least} or more.")


def _short(timestep: float) -> None:
    if timestep > 2.0:
        raise InputError(f"`timestep` is {timestep} fs; bonds to hydrogen need 1 fs or less, 2 is the limit.")


def _multiple(name: str, value: float, of: str, part: float) -> None:
    """Refuse a length of time that is not made of whole parts."""
    parts = value / part
    if abs(parts - round(parts)) > 1e-6 * max(1.0, parts):
        nearest = " or ".join(f"{n * part:g}" for n in (int(parts), int(parts) + 1) if n)
        raise InputError(
            f"`{name}` is {value:g} fs, which is not a multiple of the {of}, {part:g} fs; take {nearest} fs."
        )


def _temperatures(config: Any, name: str) -> None:
    values = getattr(config, name)
    if not values or any(not 0 < value < float("inf") for value in values):
        raise InputError(f"`{name}` is {values!r}; it must be one or more temperatures above 0 K.")
    if not isinstance(values, tuple):
        object.__setattr__(config, name, tuple(values))


def _surface(config: Any, name: str = "surface") -> None:
    if getattr(config, name) not in ("mmff94", "teacher"):
        raise InputError(f"`{name}` is {getattr(config, name)!r}; allowed are `mmff94` and `teacher`.")
