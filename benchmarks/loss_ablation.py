"""What the terms of the loss buy: the same frames, the same time, other weights.

    python benchmarks/loss_ablation.py --run runs/aspirin --minutes 5

trains one student per line of `VARIANTS` on the dataset and the split of a run, and prints force error, force angles
and energies on its test frames. Results go to benchmarks/results/loss_ablation.json with the machine's name.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np

from distillase.ase_calcs import PotentialCalculator
from distillase.datasets.store import Dataset
from distillase.launch.config import load_recipe
from distillase.training.config import LossConfig
from distillase.training.run import train

VARIANTS: dict[str, LossConfig] = {
    "energy + forces": LossConfig(),
    "… + angle 0.1": LossConfig(angle=0.1),
    "… + angle 1": LossConfig(angle=1.0),
    "… + angle 10": LossConfig(angle=10.0),
    "squared errors": LossConfig(kind="mse", forces=100.0, energy=100.0),
    "squared errors + angle 10": LossConfig(kind="mse", forces=100.0, energy=100.0, angle=10.0),
    "Huber": LossConfig(kind="huber"),
    "forces only": LossConfig(energy=0.0),
    "energy ×10": LossConfig(energy=10.0),
}


def cpu_name() -> str:
    """Processor of this machine, as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def angles(predicted: np.ndarray, reference: np.ndarray, threshold: float = 0.1) -> np.ndarray:
    """Angles in degrees between (A, 3) forces, where the reference exceeds `threshold` eV/Å."""
    strong = np.linalg.norm(reference, axis=1) > threshold
    a, b = predicted[strong], reference[strong]
    cos = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return np.degrees(np.arccos(np.clip(cos, -1, 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished `distillase distill`")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each variant")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/loss_ablation.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/loss_ablation"))
    args = parser.parse_args()
    recipe = load_recipe(args.run / "config.yaml")
    splits = {k: np.asarray(v) for k, v in json.loads((args.run / "splits.json").read_text()).items()}
    rows = []
    with Dataset(args.run / "dataset.h5") as data:
        frames = [data.structure(int(k)).to_atoms() for k in splits["test"]]
        reference = np.concatenate([np.asarray(data.labels(int(k)).forces) for k in splits["test"]])
    for number, (name, loss) in enumerate(VARIANTS.items()):
        config = replace(recipe.training, minutes=args.minutes, loss=loss, tensorboard=False)
        result = train(
            args.run / "dataset.h5", args.work / str(number),
            model=recipe.model, training=config, splits=splits, seed=recipe.seed,
        )  # fmt: skip
        predicted = PotentialCalculator(result.model).calculate_many(frames)
        theta = angles(np.concatenate([p["forces"] for p in predicted]), reference)
        rows.append(
            {
                "loss": name,
                "force_mae_meV_per_A": 1e3 * result.metrics["test"]["force_mae"],
                "angle_mean_deg": float(theta.mean()),
                "angle_p95_deg": float(np.percentile(theta, 95)),
                "energy_mae_meV": 1e3 * result.metrics["test"]["energy_mae"],
                "epochs": result.epochs,
            }
        )
        print(
            f"{name:28s} F {rows[-1]['force_mae_meV_per_A']:6.2f} meV/Å   angle {theta.mean():5.2f}° "
            f"(P95 {rows[-1]['angle_p95_deg']:5.2f}°)   E {rows[-1]['energy_mae_meV']:6.2f} meV   "
            f"{result.epochs} epochs",
            flush=True,
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tree = {"machine": cpu_name(), "minutes": args.minutes, "run": args.run.name, "rows": rows}
        args.out.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
