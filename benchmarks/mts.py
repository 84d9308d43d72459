"""Multiple time stepping on the teacher's surface: drift, temperatures and teacher calls against 0.5 fs Verlet.

    python benchmarks/mts.py --model runs/quickstart/model.safetensors --structure CCO
    python benchmarks/mts.py --model runs/quickstart/model.safetensors --structure CCO --seeds 0 --picoseconds 2

Every seed: the molecule is relaxed, warmed by Langevin dynamics of the student, and freed of momentum and rotation.
From that one start run velocity Verlet on the teacher at the inner step (the reference) and `MTSVelocityVerlet` at
every outer step. The drift is the slope of the straight line through the teacher's total energy. The advisor's verdict
is asked for before the runs. Runs that are in the result file already are not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS
from md_speed import cpu_model

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.compiled import find_compiler
from distillase.ase_calcs.dynamics import MTSVelocityVerlet, element_temperatures
from distillase.ase_calcs.dynamics.resonance import judge, springs
from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.readers import read_structures
from distillase.datasets.structure import Structure
from distillase.training.report.nve import fit_drift

RESULTS = Path(__file__).parent / "results"
LOST = 50.0  # eV above the start: the run has blown up


def warm_start(structure: Structure, student: Any, seed: int, arguments: argparse.Namespace) -> Atoms:
    """The same start for every run of a seed."""
    atoms = structure.to_atoms()
    atoms.calc = student
    LBFGS(atoms, logfile=None).run(fmax=0.02, steps=500)
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, 2 * arguments.temperature, rng=rng)
    steps = round(1000 * arguments.equilibration / 0.5)
    LangevinBAOAB(
        atoms, 0.5 * units.fs, temperature_K=arguments.temperature, T_tau=100 * units.fs, rng=rng
    ).run(steps)  # fmt: skip
    Stationary(atoms)
    ZeroRotation(atoms)
    return atoms


def follow(start: Atoms, teacher: Any, student: Any, outer: float, k: int, picoseconds: float) -> dict[str, Any]:
    """One run; `outer` in fs, k = 0 for plain Verlet."""
    atoms = start.copy()
    atoms.calc = teacher
    if k:
        dyn: Any = MTSVelocityVerlet(atoms, outer * units.fs, inner=student, k=k)
    else:
        dyn = VelocityVerlet(atoms, outer * units.fs)
    times, energies, temperatures = [], [], []
    began, stopped = time.perf_counter(), ""
    try:
        for _ in dyn.irun(round(1000 * picoseconds / outer)):
            times.append(dyn.get_time() / units.fs)
            energies.append(atoms.get_total_energy())
            temperatures.append(element_temperatures(atoms))
            if not np.isfinite(energies[-1]) or energies[-1] - energies[0] > LOST:
                stopped = f"blew up after {times[-1]:.0f} fs"
                break
    except Exception as error:  # a teacher that meets a wreck
        stopped = f"{type(error).__name__} after {times[-1]:.0f} fs"
    seconds = time.perf_counter() - began
    drift, error_, _ = fit_drift(np.array(times), np.array(energies), len(atoms))
    mean = {chemical_symbols[z]: float(np.mean([t[z] for t in temperatures])) for z in temperatures[0]}
    return {
        "outer_fs": outer, "k": k, "drift": drift, "drift_error": error_, "temperatures": mean,
        "teacher_calls": len(times), "seconds": seconds, "picoseconds": times[-1] / 1000, "stopped": stopped,
    }  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", required=True, help="SMILES or file")
    parser.add_argument("--teacher", default="gfn2-xtb")
    parser.add_argument("--outer", type=float, nargs="+", default=[2.0, 4.0, 5.0, 6.0, 8.0], help="fs")
    parser.add_argument("--inner", type=float, default=0.5, help="fs")
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--equilibration", type=float, default=2.0, help="ps")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=RESULTS / "mts.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    structure = read_structures([arguments.structure]).structures[0]
    state = {"charge": structure.charge, "multiplicity": structure.multiplicity}
    student = PotentialCalculator(arguments.model, dtype="float64", compile="on" if find_compiler() else "off", **state)
    teacher = make_teacher(arguments.teacher, **state)
    settings = {
        key: getattr(arguments, key) for key in ("structure", "teacher", "inner", "picoseconds", "temperature")
    } | {"model": f"{arguments.model.parent.name}/{arguments.model.name}"}
    report: dict[str, Any] = {"settings": settings, "machine": f"{cpu_model()}, {os.cpu_count()} cores", "runs": []}
    if arguments.out.is_file():
        before = json.loads(arguments.out.read_text())
        report["runs"] = before["runs"] if before["settings"] == settings else []

    at = springs(structure.to_atoms(), teacher=teacher, student=student)
    ks = {outer: round(outer / arguments.inner) for outer in arguments.outer}
    report["verdicts"] = {str(outer): str(judge(at, outer * units.fs, k)) for outer, k in ks.items()}
    for outer, verdict in report["verdicts"].items():
        print(f"{float(outer):4.1f} fs  {verdict}")
    print("seed   outer, fs   drift, meV/atom/ps    temperatures, K                teacher calls/ps   s/ps")
    for seed in arguments.seeds:
        start = None
        for outer, k in [(arguments.inner, 0), *ks.items()]:
            if any((r["seed"], r["outer_fs"], r["k"]) == (seed, outer, k) for r in report["runs"]):
                continue
            start = start if start is not None else warm_start(structure, student, seed, arguments)
            row = {"seed": seed} | follow(start, teacher, student, outer, k, arguments.picoseconds)
            report["runs"].append(row)
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
            warm = "  ".join(f"{symbol} {value:4.0f}" for symbol, value in row["temperatures"].items())
            drift = f"{row['drift']:+12.3f} ± {row['drift_error']:.3f}"
            print(
                f"{seed:4d} {outer:9.1f}{' ' if k else '*'} {drift}    {warm:30s} "
                f"{row['teacher_calls'] / row['picoseconds']:12.0f} {row['seconds'] / row['picoseconds']:10.2f}  "
                f"{row['stopped']}",
                flush=True,
            )
    print("* velocity Verlet on the teacher alone")


if __name__ == "__main__":
    main()
