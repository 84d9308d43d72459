"""What the parts of the training recipe buy: the same frames, the same number of epochs, one thing changed at a time.

    python benchmarks/ablation.py --run runs/aspirin --epochs 40

trains one student per line of `VARIANTS`, 32 wide, on the dataset and the split of a run, and prints force error, force
angles and energies on its test frames. Epochs are counted and not minutes, so that other work on the machine changes
nothing; the time of each is printed beside it. The first rows differ in their seed alone: differences smaller than
theirs mean nothing. Results go to benchmarks/results/ablation.json with the machine's name.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from distillase.ase_calcs import PotentialCalculator
from distillase.datasets.store import Dataset
from distillase.training.config import LossConfig, ModelConfig, TrainConfig
from distillase.training.run import train


@dataclass(frozen=True)
class Variant:
    """The default recipe with something changed."""

    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 4e-3
    rank: int = 2
    seed: int = 0


SQUARED = LossConfig(kind="mse", forces=100.0, energy=100.0)
VARIANTS = {
    "default": Variant(),
    "default, another seed": Variant(seed=1),
    "default, a third seed": Variant(seed=2),
    "angle 1": Variant(loss=LossConfig(angle=1.0)),
    "angle 10": Variant(loss=LossConfig(angle=10.0)),
    "squared errors": Variant(loss=SQUARED),
    "squared errors, angle 10": Variant(loss=replace(SQUARED, angle=10.0)),
    "Huber": Variant(loss=LossConfig(kind="huber")),
    "AdamW": Variant(optimizer="adamw"),
    "AdamW, lr 2e-3": Variant(optimizer="adamw", lr=2e-3),
    "rank 1": Variant(rank=1),
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
    parser.add_argument("--epochs", type=int, default=40, help="of each variant")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"))
    args = parser.parse_args()
    splits = {k: np.asarray(v) for k, v in json.loads((args.run / "splits.json").read_text()).items()}
    rows = []
    with Dataset(args.run / "dataset.h5") as data:
        frames = [data.structure(int(k)).to_atoms() for k in splits["test"]]
        reference = np.concatenate([np.asarray(data.labels(int(k)).forces) for k in splits["test"]])
    for number, (name, variant) in enumerate(VARIANTS.items()):
        config = TrainConfig(
            max_epochs=args.epochs, loss=variant.loss, optimizer=variant.optimizer, lr=variant.lr, tensorboard=False
        )
        result = train(
            args.run / "dataset.h5", args.work / str(number),
            model=ModelConfig(rank=variant.rank), training=config, splits=splits, seed=variant.seed,
        )  # fmt: skip
        predicted = PotentialCalculator(result.model).calculate_many(frames)
        theta = angles(np.concatenate([p["forces"] for p in predicted]), reference)
        rows.append(
            {
                "variant": name,
                "force_mae_meV_per_A": 1e3 * result.metrics["test"]["force_mae"],
                "angle_mean_deg": float(theta.mean()),
                "angle_p95_deg": float(np.percentile(theta, 95)),
                "energy_mae_meV": 1e3 * result.metrics["test"]["energy_mae"],
                "seconds": result.seconds,
            }
        )
        print(
            f"{name:28s} F {rows[-1]['force_mae_meV_per_A']:6.2f} meV/Å   angle {theta.mean():5.2f}° "
            f"(P95 {rows[-1]['angle_p95_deg']:5.2f}°)   E {rows[-1]['energy_mae_meV']:6.2f} meV   "
            f"{result.seconds:.0f} s",
            flush=True,
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        tree = {"machine": cpu_name(), "epochs": args.epochs, "run": args.run.name, "rows": rows}
        args.out.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
