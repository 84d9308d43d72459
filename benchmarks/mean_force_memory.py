"""Do mean forces depend on where the other atoms begin?

    python benchmarks/mean_force_memory.py --reference reference

With the Cα atoms held at the same places, runs begin either all in the frame that the places are from, or in frames
alike from other times, and once more in still other ones. Mean forces should be the same within their errors; what they
differ by beyond these is a state of the other atoms that a run does not leave and that its error does not see.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from distillase.ase_calcs.units import KCAL_PER_MOL
from distillase.datasets.proteins.alike import all_atom_frames, most_alike
from distillase.datasets.proteins.frames import open_reference
from distillase.datasets.proteins.mean_force import (
    MeanForceConfig,
    MeanForces,
    mean_forces_from,
)
from distillase.training.report.speed import machine

LATE, EARLY = 0.9, 0.85  # shares of every run: what lies after one, and before the other


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a folder of `distillase cg reference`")
    parser.add_argument("--configurations", type=int, default=16)
    parser.add_argument("--picoseconds", type=float, default=16.0)
    parser.add_argument("--replicates", type=int, default=4)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("mean-force-memory"), help="gets the runs; resumable")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mean_force_memory.json")
    return parser.parse_args()


def excess(one: MeanForces, other: MeanForces) -> dict[str, float]:
    """Kcal/mol/Å per component: what two mean forces differ by, what their errors explain, and the rest."""
    square = float(((one.forces - other.forces) ** 2).mean())
    known = float((one.errors**2 + other.errors**2).mean())
    values = {"differ": square, "errors": known, "beyond": square - known}
    return {name: float(np.sign(x) * np.sqrt(abs(x)) / KCAL_PER_MOL) for name, x in values.items()}


def main() -> None:
    args = parse()
    source = open_reference(args.reference)
    frames = all_atom_frames(args.reference, MeanForceConfig.temperature)
    late = np.concatenate([rows[round(LATE * len(rows)) :] for rows in frames.runs()])
    early = frames.select(np.concatenate([rows[: round(EARLY * len(rows))] for rows in frames.runs()]))
    own = frames.positions[late[np.linspace(0, len(late) - 1, args.configurations).astype(int)]].astype(float)
    targets = own[:, source.beads]
    config = MeanForceConfig(picoseconds=args.picoseconds, replicates=args.replicates)
    apart = config.apart / source.record["interval"]
    alike = most_alike(targets, early, source.beads, 2 * args.replicates, apart)
    begin = {
        "own": np.repeat(own[:, None], args.replicates, axis=1),
        "alike": alike[:, ::2],
        "alike again": alike[:, 1::2],
    }
    found = {
        name: mean_forces_from(
            starts, targets, args.reference, args.work / name.replace(" ", "-"), config, seed=k, workers=args.workers
        )
        for k, (name, starts) in enumerate(begin.items())
    }
    print(f"{'':>24} {'differ by':>10} {'errors':>8} {'beyond':>8}   kcal/mol/Å per component")
    rows = {}
    for one, other in (("own", "alike"), ("alike", "alike again")):
        rows[f"{one}, {other}"] = row = excess(found[one], found[other])
        print(f"{one + ', ' + other:>24}", *(f"{x:9.2f}" for x in row.values()), flush=True)
    args.out.parent.mkdir(exist_ok=True)
    settings = {"configurations": args.configurations, "picoseconds": args.picoseconds, "replicates": args.replicates}
    args.out.write_text(json.dumps({"machine": machine(), **settings, "kcal/mol/A": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
