"""How evenly the structures of a step fall on processes, in edges of the busiest one against the mean.

    python benchmarks/balance.py --data ../shared/data/molecules/spice_inputs

The inputs of SPICE hold molecules from dipeptides to clusters in water, in one shuffled set. `distillase` divides the
structures of a step by edges (`training.batches.share`); the naive way deals out as many structures to each process,
which is what a `DistributedSampler` does. Nothing is trained: edges are counted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import h5py
import numpy as np

from distillase.ase_calcs.neighbors import neighbor_list
from distillase.training.batches import share


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of SPICE's HDF5 files")
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "balance.json")
    return parser.parse_args()


def edge_counts(folder: Path, cutoff: float) -> np.ndarray:
    """Of every conformation of every file."""
    counts = []
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path) as file:
            for group in file.values():
                for positions in group["conformations"][:]:
                    i, _, _ = neighbor_list(positions.astype(float), np.zeros((3, 3)), np.zeros(3, bool), cutoff)
                    counts.append(len(i))
    return np.array(counts)


def main() -> None:
    arguments = parse()
    edges = edge_counts(arguments.data, arguments.cutoff)
    print(f"{len(edges)} structures of {edges.min()} to {edges.max()} edges within {arguments.cutoff:g} Å")
    rows = []
    print(
        "busiest process against the mean   by edges: mean, worst step      as many structures each: mean, worst step"
    )
    for ranks in (2, 8, 64):
        for each in (4, 16):
            order = np.random.default_rng(0).permutation(len(edges))
            steps = [order[k : k + ranks * each] for k in range(0, len(order) - ranks * each + 1, ranks * each)]
            ours, naive = [], []
            for frames in steps:
                load = np.array([edges[part].sum() for part in share(frames, edges, ranks)])
                dealt = np.array([edges[frames[rank::ranks]].sum() for rank in range(ranks)])
                ours.append(load.max() / load.mean())
                naive.append(dealt.max() / dealt.mean())
            rows.append(
                {
                    "processes": ranks, "structures_each": each, "steps": len(steps),
                    "by_edges": [float(np.mean(ours)), float(np.max(ours))],
                    "naive": [float(np.mean(naive)), float(np.max(naive))],
                }
            )  # fmt: skip
            print(
                f"{ranks:3d} processes, {each:2d} structures each {np.mean(ours):14.3f} {np.max(ours):8.3f}"
                f" {np.mean(naive):24.2f} {np.max(naive):8.2f}"
            )
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"cutoff": arguments.cutoff, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
