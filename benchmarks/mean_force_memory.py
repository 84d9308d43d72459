"""Do mean forces remember where the other atoms began?

    python benchmarks/mean_force_memory.py --reference reference --anneal 600:6 1000:16

With the Cα atoms held at the same places, the runs begin once with the other atoms as they were in that frame, and once
as in the most similar frame of a part of the reference that is far away in time. Mean forces should be the same within
their errors; what they differ by beyond these is a state that annealing left as it was, and that no error shows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from distillase.ase_calcs.progress import SilentProgress
from distillase.ase_calcs.units import KCAL_PER_MOL
from distillase.datasets.proteins.frames import open_reference
from distillase.datasets.proteins.mean_force import (
    MeanForceConfig,
    MeanForces,
    all_atom_frames,
    mean_forces_from,
    most_alike,
)
from distillase.training.report.speed import machine

LATE, EARLY = 0.1, 0.88  # shares of every run of the reference


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a folder of `distillase cg reference`")
    parser.add_argument("--anneal", nargs="+", default=["600:6", "1000:16"], help="K:ps")
    parser.add_argument("--configurations", type=int, default=16)
    parser.add_argument("--picoseconds", type=float, default=10.0)
    parser.add_argument("--replicates", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("mean-force-memory"), help="gets the runs; resumable")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "mean_force_memory.json")
    return parser.parse_args()


def excess(one: MeanForces, other: MeanForces) -> tuple[float, float, float]:
    """Kcal/mol/Å per component: what two mean forces differ by, what their errors explain, and the rest."""
    square = float(((one.forces - other.forces) ** 2).mean())
    known = float((one.errors**2 + other.errors**2).mean())
    return tuple(np.sqrt(max(0.0, x)) / KCAL_PER_MOL for x in (square, known, square - known))  # type: ignore[return-value]


def main() -> None:
    args = parse()
    beads = open_reference(args.reference).beads
    late = all_atom_frames(args.reference, MeanForceConfig.temperature, LATE).astype(float)
    begin = late[np.linspace(0, len(late) - 1, args.configurations).astype(int)]
    targets = begin[:, beads]
    early = all_atom_frames(args.reference, MeanForceConfig.temperature, first=EARLY)
    rows = {}
    print(f"{'annealed':>14} {'differ by':>10} {'errors':>8} {'beyond':>8}   kcal/mol/Å per component")
    for name in args.anneal:
        kelvin, ps = (float(x) for x in name.split(":"))
        config = MeanForceConfig(hottest=kelvin, anneal=ps, picoseconds=args.picoseconds, replicates=args.replicates)
        found = [
            mean_forces_from(
                start, targets, args.reference, args.work / f"{name.replace(':', '-')}-{k}", config, seed=k,
                workers=args.workers, progress=SilentProgress(),
            )
            for k, start in enumerate((begin, most_alike(targets, early, beads)))
        ]  # fmt: skip
        rows[name] = dict(zip(("differ", "errors", "beyond"), excess(*found), strict=True))
        print(f"{kelvin:6g} K {ps:3g} ps", *(f"{x:9.2f}" for x in rows[name].values()), flush=True)
    args.out.parent.mkdir(exist_ok=True)
    settings = {"configurations": args.configurations, "picoseconds": args.picoseconds, "replicates": args.replicates}
    args.out.write_text(json.dumps({"machine": machine(), **settings, "kcal/mol/A": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
