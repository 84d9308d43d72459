"""What to sample and how, as frozen dataclasses whose fields are the keys of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...ase_calcs.errors import InputError, check_at_least, check_positive


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
        if self.timestep > 2.0:
            raise InputError(f"`timestep` is {self.timestep} fs; bonds to hydrogen need 1 fs or less, 2 is the limit.")


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


def _temperatures(config: Any, name: str) -> None:
    values = getattr(config, name)
    if not values or any(not 0 < value < float("inf") for value in values):
        raise InputError(f"`{name}` is {values!r}; it must be one or more temperatures above 0 K.")
    if not isinstance(values, tuple):
        object.__setattr__(config, name, tuple(values))


def _surface(config: Any, name: str = "surface") -> None:
    if getattr(config, name) not in ("mmff94", "teacher"):
        raise InputError(f"`{name}` is {getattr(config, name)!r}; allowed are `mmff94` and `teacher`.")
