"""What limits mean forces that are learned from a reference: how many frames it has, or what is fitted to them?

    distillase cg map reference --name chignolin --out beads.h5
    python benchmarks/smooth_forces.py model.safetensors beads.h5 --mean-forces chignolin-mean-forces.npz

Smooth forces (`training/proteins/smoothing.py`), which networks learn from, are fitted to shares of the frames of the
lowest temperature, then to these and the frames of hotter rungs as if they were of that temperature, and compared with
mean forces. The last tenth of each run is never learned from.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from distillase.ase_calcs.modelfile import load_coarse_grained
from distillase.ase_calcs.units import KCAL_PER_MOL
from distillase.datasets.proteins.beads import BeadFrames, read_beads
from distillase.datasets.proteins.mean_force import as_frames, force_error, load_mean_forces
from distillase.training.proteins.config import BeadLossConfig
from distillase.training.proteins.run import split_frames
from distillase.training.proteins.smoothing import fit_smooth_forces
from distillase.training.proteins.task import leftover
from distillase.training.report.speed import machine

SHARES = (8, 4, 2, 1)
VALIDATION = 0.1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a coarse-grained force field, whose prior is used")
    parser.add_argument("beads", type=Path, help="of one protein, with several temperatures")
    parser.add_argument("--mean-forces", type=Path, required=True, help="to judge by")
    parser.add_argument("--rungs", type=int, default=3, help="how many temperatures, the lowest first")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "smooth_forces.json")
    return parser.parse_args()


def every(frames: BeadFrames, nth: int) -> BeadFrames:
    return frames.select(np.arange(len(frames.positions)) % nth == 0)


def main() -> None:
    args = parse()
    prior = load_coarse_grained(args.model).prior
    (protein,) = split_frames(read_beads(args.beads), (), VALIDATION)[0]
    kelvin = np.unique(np.round(protein.temperatures, 1))[: args.rungs]
    wanted = load_mean_forces(args.mean_forces)
    left = leftover(prior, as_frames(wanted, protein.name, protein.sequence, float(kelvin[0])))
    alone = force_error(wanted.forces - left, wanted)[0]
    print(f"prior: {alone / KCAL_PER_MOL:.2f} kcal/mol/Å per component")
    lowest = protein.select(np.round(protein.temperatures, 1) == kelvin[0])
    sets = {f"1/{n} of {kelvin[0]:g} K": every(lowest, n) for n in SHARES}
    for most in kelvin[1:]:
        sets[f"up to {most:g} K"] = protein.select(np.round(protein.temperatures, 1) <= most)
    rows = {}
    for name, frames in sets.items():
        fit = fit_smooth_forces(prior, frames, [], BeadLossConfig())
        if fit is None:
            raise SystemExit("there is no room for smooth functions of this protein")
        error, uncertainty = force_error(wanted.forces - left + fit.forces(wanted.positions), wanted)
        rows[name] = {
            "frames": len(frames.positions),
            "functions": len(fit.weights),
            "explained": fit.explained,
            "error": error / KCAL_PER_MOL,
            "uncertainty": uncertainty / KCAL_PER_MOL,
            "of_prior": error / alone,
        }
        found = f"{error / KCAL_PER_MOL:.2f}, {error / alone:.0%} of the prior's"
        print(f"{name:>16} {len(frames.positions):7} frames: {found}", flush=True)
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(
        json.dumps({"machine": machine(), "prior": alone / KCAL_PER_MOL, "kcal/mol/A": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
