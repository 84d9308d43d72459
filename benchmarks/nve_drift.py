"""Energy drift of a student in NVE, float64 and float32 beside each other.

    python benchmarks/nve_drift.py --model runs/quickstart/model.safetensors --structure CCO
    python benchmarks/nve_drift.py --model runs/quickstart/model.safetensors --structure CCO --picoseconds 1

The molecule is relaxed with the student, gets velocities (no net momentum, no net rotation) that make the mean
temperature the one asked for, and runs under `ase.md.verlet.VelocityVerlet`. The drift is the slope of the straight
line through the total energy, with its standard error from block means; the fluctuation is the RMS about that line.
Both precisions start from the same relaxed geometry up to rounding and from the same velocities; `--seeds` repeats the
run with others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.compiled import find_compiler
from distillase.ase_calcs.modelfile import read_header
from distillase.ase_calcs.progress import SilentProgress
from distillase.datasets.readers import read_structures
from distillase.datasets.structure import Structure
from distillase.training.report.nve import run_nve

RESULTS = Path(__file__).parent / "results"


def follow(dtype: str, structure: Structure, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in one precision."""
    compile = "on" if arguments.compile == "auto" and find_compiler() else arguments.compile
    calculator = PotentialCalculator(
        arguments.model,
        dtype=dtype,
        compile=compile,
        charge=structure.charge,
        multiplicity=structure.multiplicity,
    )
    began = time.perf_counter()
    with SilentProgress().task(dtype, 1.0) as task:
        run = run_nve(
            calculator,
            structure,
            picoseconds=arguments.picoseconds,
            timestep_fs=arguments.timestep,
            temperature_K=arguments.temperature,
            seed=seed,
            budget_s=float("inf"),
            task=task,
        )
    numbers = {key: value for key, value in asdict(run).items() if key not in ("times", "energies")}
    return {
        **numbers,
        "seed": seed,
        "compiled": calculator.compiled,
        "picoseconds": float(run.times[-1]) / 1000,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", required=True, help="SMILES or file")
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto", help="auto: if there is a compiler")
    parser.add_argument("--out", type=Path, default=RESULTS / "nve_drift.json")
    arguments = parser.parse_args()
    structure = read_structures([arguments.structure]).structures[0]

    print("precision   seed   drift, meV/atom/ps       RMS, meV/atom   mean T, K   compiled   ms/step")
    runs = []
    for seed in arguments.seeds:
        for dtype in arguments.dtypes:
            runs.append(row := follow(dtype, structure, seed, arguments))
            steps = 1000 * row["picoseconds"] / arguments.timestep
            print(
                f"{dtype}    {seed:5d}   {row['drift']:+.5f} ± {row['drift_error']:.5f}   {row['fluctuation']:16.5f}   "
                f"{row['temperature_K']:9.1f}   {row['compiled']!s:>8}   {1000 * row['seconds'] / max(steps, 1):7.2f}"
                f"{'   ' + row['stopped'] if row['stopped'] else ''}",
                flush=True,
            )
    worst = {d: max(abs(r["drift"]) for r in runs if r["dtype"] == d) for d in arguments.dtypes}
    header = read_header(arguments.model)
    report = {
        "model": f"{arguments.model.parent.name}/{arguments.model.name}",
        "teacher": header.get("teacher"),
        "structure": arguments.structure,
        "atoms": len(structure),
        "timestep_fs": arguments.timestep,
        "temperature_K": arguments.temperature,
        "largest_absolute_drift": worst,
        "median_fluctuation": {
            d: statistics.median(r["fluctuation"] for r in runs if r["dtype"] == d) for d in arguments.dtypes
        },
        "runs": runs,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print("largest |drift|: " + ", ".join(f"{d} {value:.5f} meV/atom/ps" for d, value in worst.items()))


if __name__ == "__main__":
    main()
