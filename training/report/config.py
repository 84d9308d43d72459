"""What a recipe can say about the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...ase_calcs.errors import InputError

CompileMode = Literal["off", "auto", "on"]


@dataclass(frozen=True)
class ReportConfig:
    """The report: what it simulates, how long it may take, what it shows.

    Attributes
    ----------
    md_ps
        Length of each thermostatted trajectory of the student whose bonds and angles are compared with the teacher's,
        ps; 0 leaves the comparison out.
    teacher_md_ps
        Length of each trajectory of the teacher, from the same starting points with the same noise, ps; 0 leaves the
        teacher out.
    nve_ps
        Length of the NVE run whose total energy is watched, ps, once in float32 and once in float64; 0 leaves it out.
    temperature_K
        Of all these runs.
    timestep_fs
        Of all these runs.
    friction_per_fs
        Langevin friction, 1/fs.
    n_starts
        Trajectories per calculator in the comparison.
    speed_seconds
        Time spent on timing each calculator, s; 0 leaves the timing out.
    budget_seconds
        Time that MD with student and teacher may take together, s. Runs that do not fit are shortened, and the report
        says so: a teacher call at 100 atoms costs a hundred times one at 9.
    max_frames
        Frames of a split that are evaluated at most (drawn at random).
    angle_threshold
        eV/Å; atoms whose reference force is smaller have no direction worth comparing and are left out of angles.
    n_structures
        Training structures on the sheet.
    n_worst
        Structures with the largest force errors that are drawn and written to ``worst_forces.pml``.
    compile
        As for `PotentialCalculator`: ``auto`` uses the compiled packages that lie beside the model, ``on`` makes them
        first (half a minute each for float32 and float64), ``off`` does without.
    seed
        Of what is drawn at random, velocities and thermostat noise.
    """

    md_ps: float = 0.8
    teacher_md_ps: float = 0.8
    nve_ps: float = 2.0
    temperature_K: float = 300.0
    timestep_fs: float = 0.5
    friction_per_fs: float = 0.02
    n_starts: int = 4
    speed_seconds: float = 1.0
    budget_seconds: float = 60.0
    max_frames: int = 2000
    angle_threshold: float = 0.1
    n_structures: int = 12
    n_worst: int = 4
    compile: CompileMode = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("md_ps", "teacher_md_ps", "nve_ps", "speed_seconds", "n_structures", "n_worst"):
            if not getattr(self, name) >= 0:
                raise InputError(f"`report.{name}` is {getattr(self, name)}; it must be at least 0.")
        for name in (
            "temperature_K",
            "timestep_fs",
            "friction_per_fs",
            "n_starts",
            "budget_seconds",
            "max_frames",
            "angle_threshold",
        ):
            if not getattr(self, name) > 0:
                raise InputError(f"`report.{name}` is {getattr(self, name)}; it must be greater than zero.")
