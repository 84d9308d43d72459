"""What a student saves where the teacher is density functional theory: seconds for the same statistics.

    python benchmarks/dft.py --model runs/ethanol-pbe/model.safetensors --structure CCO --work runs/dft

Nobody waits for 50 ps of such a teacher, so its cost is measured over some steps and the rest is extrapolated:

- teacher: velocity Verlet at 0.5 fs, seconds per step;
- `MTSVelocityVerlet`: seconds per step of 4 fs, and the drift over the steps that were made. Both begin with the
  density of the step before, which is a worse guess after 4 fs than after 0.5: that is part of what is measured;
- `ReplicaExchangeHMC`: seconds per move, and effective samples of the slowest observable (see `slhmc.py`);
- Langevin dynamics: effective samples per step from long runs of the *student*, whose surface is the teacher's to a few
  meV/Å; times the teacher's seconds per step.

The advisor is asked first, with the teacher's stiffest modes. What is in the work folder already is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from md_speed import cpu_model
from mts import follow
from mts import warm_start as free_start
from slhmc import STEP, effective, langevin, self_learning, turning, warm_start

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.compiled import find_compiler
from distillase.ase_calcs.dynamics import resonance
from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.readers import read_structures
from distillase.training.jumps.topology import find_topology


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", required=True, help="SMILES or file")
    parser.add_argument("--teacher", default="pyscf:PBE/def2-svp?guess=warm")
    parser.add_argument("--verlet-steps", type=int, default=60, help="of the teacher alone")
    parser.add_argument("--mts-steps", type=int, default=200, help="of 4 fs")
    parser.add_argument("--length", type=int, default=400, help="student steps of 0.5 fs for each teacher energy")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--moves", type=int, default=40, help="of every replica")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--friction", type=float, default=2.0, help="1/ps, of Langevin dynamics")
    parser.add_argument("--seeds", type=int, default=4, help="Langevin runs of the student")
    parser.add_argument("--picoseconds", type=float, default=100.0, help="of each")
    parser.add_argument("--equilibration", type=float, default=2.0, help="ps, of the student, before any step")
    parser.add_argument("--part", choices=("all", "mts", "slhmc"), default="all")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "dft.json")
    return parser.parse_args()


def kept(path: Path, make: Any) -> Any:
    """What was measured before, or now."""
    if not path.is_file():
        path.write_text(json.dumps(make(), indent=1) + "\n")
    return json.loads(path.read_text())


def per_step(run: dict[str, Any]) -> float:
    """Seconds per step, of a run of `mts.follow`."""
    return float(run["seconds"] / run["teacher_calls"])


def sampling(atoms: Atoms, student: Any, teacher: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Moves of the teacher and Langevin dynamics of the student, and what an effective sample of each takes."""
    path = arguments.work / f"slhmc-{arguments.length}.npz"
    if not path.is_file():
        self_learning(atoms, student, teacher, arguments, path)
    for seed in range(arguments.seeds):
        run = arguments.work / f"student-langevin-{seed}.npz"
        if not run.is_file():
            langevin(warm_start(atoms, student, arguments.temperature, seed), student, arguments, seed, run)
    indices = turning(find_topology(atoms.numbers, warm_start(atoms, student, arguments.temperature, 0).positions))
    ours = np.load(path)
    runs = [np.load(arguments.work / f"student-langevin-{seed}.npz") for seed in range(arguments.seeds)]

    def total(chains: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        each = [effective(energies, positions, indices) for energies, positions in chains]
        return {name: sum(found[name] for found in each) for name in each[0]}

    sampled = total([(ours["energies"][:, i], ours["positions"][:, i]) for i in range(arguments.replicas)])
    dynamics = total([(run["energies"], run["positions"]) for run in runs])
    steps = sum(int(run["calls"]) for run in runs)
    return {
        "acceptance": float(ours["acceptance"].mean()), "moves": int(ours["calls"]),
        "seconds_per_move": float(ours["seconds"]) / int(ours["calls"]),
        "effective_samples": {"slhmc": sampled, "langevin": dynamics},
        "moves_per_effective_sample": int(ours["calls"]) / min(sampled.values()),
        "steps_per_effective_sample": steps / min(dynamics.values()), "friction_per_ps": arguments.friction,
    }  # fmt: skip


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    structure = read_structures([arguments.structure]).structures[0]
    state = {"charge": structure.charge, "multiplicity": structure.multiplicity}
    options: dict[str, Any] = {"compile": "on" if find_compiler() else "off", **state}
    report: dict[str, Any] = {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} threads",
        "teacher": arguments.teacher, "structure": arguments.structure,
        "model": f"{arguments.model.parent.name}/{arguments.model.name}",
    }  # fmt: skip
    if arguments.part != "slhmc":
        student: Any = PotentialCalculator(arguments.model, dtype="float64", **options)
        begin = free_start(structure, student, 0, arguments)

        def advice() -> str:
            teacher = make_teacher(arguments.teacher, **state)
            return str(resonance(begin, 4 * units.fs, teacher=teacher, student=student, k=8, stiff_modes=6))

        report["advisor_4fs"] = kept(arguments.work / "advice.json", advice)
        print(report["advisor_4fs"], flush=True)
        for name, outer, k, steps in (
            ("verlet", STEP, 0, arguments.verlet_steps),
            ("mts", 4.0, 8, arguments.mts_steps),
        ):
            report[name] = kept(
                arguments.work / f"{name}.json",
                lambda outer=outer, k=k, steps=steps: follow(
                    begin, make_teacher(arguments.teacher, **state), student, outer, k, steps * outer / 1000
                ),
            )
            print(name, json.dumps(report[name]), flush=True)
        report["mts_faster"] = 8 * per_step(report["verlet"]) / per_step(report["mts"])
    if arguments.part != "mts":
        student = PotentialCalculator(arguments.model, dtype="float32", **options)
        report["sampling"] = sampling(
            structure.to_atoms(), student, make_teacher(arguments.teacher, **state), arguments
        )
    if arguments.part == "all":
        of = report["sampling"]
        seconds = {
            "langevin": of["steps_per_effective_sample"] * per_step(report["verlet"]),
            "slhmc": of["moves_per_effective_sample"] * of["seconds_per_move"],
        }
        report["seconds_per_effective_sample"] = seconds
        report["slhmc_faster"] = seconds["langevin"] / seconds["slhmc"]
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
