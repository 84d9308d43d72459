"""`distillase md` and `distillase bench`: a structure and a calculator by name, run through ASE's own dynamics."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import BaseCalculator
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ..ase_calcs.bench import MDSpeed, energy_drift, time_md
from ..ase_calcs.calculator import CompileMode, PotentialCalculator
from ..ase_calcs.errors import InputError, did_you_mean
from ..ase_calcs.progress import Progress
from ..ase_calcs.teachers import make_teacher, teacher_names
from ..datasets.structure import Structure
from .summary import plain_table, render

ENSEMBLES = ("nve", "langevin")
COMPILE = get_args(CompileMode)


@dataclass(frozen=True)
class MDSettings:
    """How `run_md` moves the atoms.

    Attributes
    ----------
    ensemble
        ``"nve"`` or ``"langevin"``.
    temperature_K
        Of the thermostat and the first velocities (twice that in NVE from a relaxed structure, so that this is the mean
        temperature of the run).
    steps, timestep_fs
        Length of the run.
    friction_per_fs
        Langevin friction, 1/fs.
    seed
        Of velocities and noise.
    interval
        Steps between two lines and two frames.
    trajectory
        Where frames go (.traj or .extxyz); None for nowhere.
    relax
        Minimise before the first step.
    """

    ensemble: str = "langevin"
    temperature_K: float = 300.0
    steps: int = 1000
    timestep_fs: float = 0.5
    friction_per_fs: float = 0.01
    seed: int = 0
    interval: int = 100
    trajectory: Path | None = None
    relax: bool = False

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise InputError(f"Unknown ensemble `{self.ensemble}`{did_you_mean(self.ensemble, ENSEMBLES)}")
        if self.timestep_fs <= 0:
            raise InputError(f"The time step is {self.timestep_fs} fs; it must be positive (0.5 suits hydrogens).")
        if self.trajectory is not None and self.trajectory.suffix not in (".traj", ".xyz", ".extxyz"):
            raise InputError(f"Trajectory {self.trajectory}: write to .traj, .xyz or .extxyz.")


def read_one(item: str, seed: int = 0) -> Structure:
    """The first structure of a file, or of a SMILES.

    Raises
    ------
    InputError
        With the reason if there is none.
    """
    from ..datasets.readers import read_structures

    intake = read_structures([item], seed=seed, allow_no_hydrogen=True)
    if not intake.structures:
        reasons = "; ".join(refusal.reason for refusal in intake.refusals) or "nothing was found in it"
        raise InputError(f"No structure could be read from `{item}`: {reasons}.")
    return intake.structures[0]


def make_calculator(name: str, structure: Structure, dtype: str, compile: str = "auto") -> BaseCalculator:
    """A student from its model file (`compile` as `PotentialCalculator` takes it), or a teacher by name."""
    if Path(name).exists():
        if compile not in COMPILE:
            raise InputError(f"Unknown way to compile `{compile}`{did_you_mean(compile, COMPILE)}")
        return PotentialCalculator(
            name,
            dtype=dtype,
            charge=structure.charge,
            multiplicity=structure.multiplicity,
            compile=cast(CompileMode, compile),
        )
    if Path(name).suffix == ".safetensors":
        raise InputError(f"There is no model file {name}.")
    if name.split("?")[0] not in teacher_names() and ":" not in name:
        raise InputError(f"`{name}` is neither a model file nor a teacher{did_you_mean(name, teacher_names())}")
    return make_teacher(name, structure.charge, structure.multiplicity, smiles=structure.smiles)


def run_md(
    calculator: str, item: str, options: MDSettings, *, dtype: str, compile: str = "auto", progress: Progress
) -> dict[str, float]:
    """Run MD and print time, energies and temperature, and at the end the drift.

    Returns
    -------
    dict
        ``drift`` of the total energy, meV/atom/ps (NVE only); ``temperature_K``, mean of the second half;
        ``steps_per_second``.
    """
    structure = read_one(item, options.seed)
    atoms = structure.to_atoms()
    atoms.calc = make_calculator(calculator, structure, dtype, compile)
    if options.relax:
        _relax(atoms, progress)
    dynamics = _dynamics(atoms, options)
    writer = _writer(options.trajectory, atoms)
    rows: list[tuple[float, float, float, float]] = []

    def look() -> None:
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        done = dynamics.get_number_of_steps()
        fs, total, kelvin = done * options.timestep_fs, potential + kinetic, atoms.get_temperature()
        if not np.isfinite(potential):
            raise InputError(f"The energy is {potential} after {done} steps; try a shorter step.")
        rows.append((fs, potential, kinetic, kelvin))
        if done % options.interval == 0:
            progress.say(f"{fs:10.1f} fs  E_pot {potential:14.5f} eV  E_tot {total:14.5f} eV  {kelvin:7.1f} K")
            if writer is not None:
                writer.write(atoms)

    dynamics.attach(look, interval=_looks(options))
    start = time.perf_counter()
    dynamics.run(options.steps)
    seconds = time.perf_counter() - start
    if writer is not None:
        writer.close()
        progress.say(f"Trajectory: {options.trajectory}")
    return _closing(np.array(rows), len(atoms), seconds, options, progress)


def _looks(options: MDSettings) -> int:
    """Steps between two looks: a divisor of `interval`, so that no line is missed, for about a thousand looks."""
    wanted = max(1, options.steps // 1000)
    return max(n for n in range(1, options.interval + 1) if options.interval % n == 0 and n <= wanted)


def _closing(
    rows: np.ndarray, n_atoms: int, seconds: float, options: MDSettings, progress: Progress
) -> dict[str, float]:
    result = {
        "temperature_K": float(rows[len(rows) // 2 :, 3].mean()),
        "steps_per_second": options.steps / seconds,
    }
    picoseconds = options.steps * options.timestep_fs / 1000
    progress.say(
        f"{picoseconds:g} ps in {seconds:.1f} s ({result['steps_per_second']:.0f} steps/s, lines and frames included); "
        f"mean temperature of the second half {result['temperature_K']:.1f} K"
    )
    if options.ensemble == "nve":
        result["drift"] = energy_drift(rows[:, 0], rows[:, 1] + rows[:, 2], n_atoms)
        spread = 1000 * float(np.std(rows[:, 1] + rows[:, 2])) / n_atoms
        progress.say(
            f"NVE drift {result['drift']:+.4f} meV/atom/ps (slope of a straight line through the total energy), "
            f"fluctuation {spread:.4f} meV/atom"
        )
    return result


def _dynamics(atoms: Atoms, options: MDSettings) -> MolecularDynamics:
    rng = np.random.default_rng(options.seed)
    if options.temperature_K > 0:
        # From a minimum half of the kinetic energy soon becomes potential energy, and no thermostat makes up for it.
        factor = 2.0 if options.relax and options.ensemble == "nve" else 1.0
        thermalize_momenta(atoms, temperature_K=factor * options.temperature_K, rng=rng)
        if options.ensemble == "nve":
            Stationary(atoms)
            if not atoms.pbc.any() and len(atoms) > 1:
                ZeroRotation(atoms)
    step = options.timestep_fs * units.fs
    if options.ensemble == "nve":
        return VelocityVerlet(atoms, timestep=step)
    friction = options.friction_per_fs / units.fs
    return Langevin(atoms, timestep=step, temperature_K=options.temperature_K, friction=friction, rng=rng, fixcm=False)


def _relax(atoms: Atoms, progress: Progress) -> None:
    from ase.optimize import LBFGS

    reached = LBFGS(atoms, logfile=None).run(fmax=0.05, steps=200)  # type: ignore[arg-type]  # ASE takes None
    how = "to 0.05 eV/Å" if reached else "200 steps, which did not reach 0.05 eV/Å"
    progress.say(f"Relaxed {how}")


def _writer(path: Path | None, atoms: Atoms) -> Any:
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".traj":
        from ase.io.trajectory import Trajectory

        return Trajectory(path, "w", atoms)
    return _ExtxyzWriter(path)


class _ExtxyzWriter:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, atoms: Atoms) -> None:
        from ase.io import write

        write(self._file, atoms, format="extxyz")

    def close(self) -> None:
        self._file.close()


def run_bench(
    model: str,
    item: str,
    *,
    teacher: str,
    steps: int,
    timestep_fs: float,
    temperature_K: float,
    seed: int,
    dtype: str,
    compile: str = "auto",
    progress: Progress,
) -> list[MDSpeed]:
    """Time the student, and the teacher beside it, and print a table."""
    structure = read_one(item, seed)
    names = {f"student ({dtype})": model} | ({f"teacher {teacher}": teacher} if teacher else {})
    speeds = []
    for label, name in names.items():
        calculator = make_calculator(name, structure, dtype, compile)
        few = steps if name == model else max(10, steps // 20)
        with progress.task(label, None):
            speeds.append(
                time_md(
                    calculator, structure.to_atoms(), name=label, steps=few,
                    timestep_fs=timestep_fs, temperature_K=temperature_K, seed=seed,
                )
            )  # fmt: skip
    progress.say(_speed_table(speeds, len(structure), timestep_fs))
    return speeds


def _speed_table(speeds: list[MDSpeed], n_atoms: int, timestep_fs: float) -> str:
    import platform

    import torch

    table = plain_table(
        {
            "calculator": "left",
            "ms/step": "right",
            "steps/s": "right",
            "ns/day": "right",
            "of the time": "left",
            "×": "right",
        }
    )
    for speed in speeds:
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in speed.shares.items())
        ratio = speeds[-1].seconds_per_step / speed.seconds_per_step
        table.add_row(
            speed.name, f"{1000 * speed.seconds_per_step:.3f}", f"{1 / speed.seconds_per_step:.0f}",
            f"{speed.ns_per_day(timestep_fs):.3g}", shares, f"{ratio:.1f}" if len(speeds) > 1 else "",
        )  # fmt: skip
    head = (
        f"{n_atoms} atoms, velocity Verlet, {timestep_fs:g} fs; {torch.get_num_threads()} torch threads on "
        f"{platform.machine()}. Only the ratio of two lines means something elsewhere."
    )
    return f"{head}\n{render(table)}"
