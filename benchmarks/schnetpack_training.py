"""SchNetPack 2.1's PaiNN, trained by SchNetPack's own code on the frames of one of our runs, for the same wall-clock.

    python benchmarks/schnetpack_training.py --run runs/aspirin --minutes 30                  # its recipe, 128 wide
    python benchmarks/schnetpack_training.py --run runs/aspirin --minutes 30 --features 32 --patience 15 --cooldown 5

Reads ``dataset.h5`` and ``splits.json`` of the run, gives SchNetPack the same training, validation and test frames, and
compares the test errors with those of ``model.safetensors`` there. The recipe is SchNetPack's own for MD17 and rMD17
(see ``peers/schnetpack_train.py``). What is done in its favour: reading the database, its offsets and neighbour lists
are outside the clock and kept in memory; the clock runs during training alone; checkpoints and validation follow its
recipe. `--patience` and `--cooldown` may be shortened, because the 75 epochs of its recipe are meant for days.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from md_speed import cpu_model
from venvs import TORCH, default_folder, peer_python

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.datasets.store import Dataset

SCRIPT = Path(__file__).parent / "peers" / "schnetpack_train.py"
RESULTS = Path(__file__).parent / "results"
ANGLE_THRESHOLD = 0.1  # eV/Å; the direction of a smaller force is not judged


def force_errors(
    energy: np.ndarray, forces: np.ndarray, reference_energy: np.ndarray, reference: np.ndarray, numbers: np.ndarray
) -> dict[str, Any]:
    """Errors over the test frames in meV and Å: energies (T,), forces (A, 3), atomic numbers (A,)."""
    from ase.data import chemical_symbols

    difference = np.abs(forces - reference)
    length = np.linalg.norm(reference, axis=1)
    cosine = (forces * reference).sum(axis=1) / (length * np.linalg.norm(forces, axis=1))
    angles = np.degrees(np.arccos(np.clip(cosine[length > ANGLE_THRESHOLD], -1.0, 1.0)))
    return {
        "force_mae_meV_A": 1000 * difference.mean(),
        "force_rmse_meV_A": 1000 * float(np.sqrt((difference**2).mean())),
        "energy_mae_meV": 1000 * float(np.abs(energy - reference_energy).mean()),
        "angle_mean_deg": float(angles.mean()),
        "force_mae_meV_A_by_element": {
            chemical_symbols[z]: 1000 * difference[numbers == z].mean() for z in np.unique(numbers)
        },
    }


def our_predictions(model: Path, dataset: Dataset, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energies (T,) and forces (A, 3) of the test frames, in order."""
    calculator = PotentialCalculator(model, compile="off")
    structures = [dataset.structure(int(i)).to_atoms() for i in test]
    results = calculator.calculate_many(structures, ("energy", "forces"))
    return np.array([r["energy"] for r in results]), np.concatenate([r["forces"] for r in results])


def split_of(run: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    splits = {
        name: np.asarray(rows, dtype=np.int64) for name, rows in json.loads((run / "splits.json").read_text()).items()
    }
    if max(rows.max() for rows in splits.values() if len(rows)) >= dataset.n_frames:
        raise SystemExit(
            f"{run / 'splits.json'} does not belong to {dataset.path}: it names frames that are not there."
        )
    return splits


def train_schnetpack(
    folder: Path, job: dict[str, Any], dataset: Dataset, splits: dict[str, np.ndarray], python: Path
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Run SchNetPack in its environment; its result, and its energies and forces of the test frames."""
    arrays: dict[str, Any] = {name: dataset.array(name) for name in ("numbers", "positions", "energy", "forces")}
    np.savez(folder / "frames.npz", **{**arrays, **splits, "offsets": dataset.offsets})
    (folder / "job.json").write_text(json.dumps(job))
    command = [python, SCRIPT, *(folder / name for name in ("job.json", "frames.npz", "predictions.npz"))]
    env = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "PYTHONWARNINGS": "ignore"}
    subprocess.run([str(part) for part in command], check=True, env=env)
    with np.load(folder / "predictions.npz") as file:
        return json.loads((folder / "result.json").read_text()), file["energy"], file["forces"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, required=True, help="folder with dataset.h5, splits.json, model.safetensors"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of training, wall-clock")
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--energy-weight", type=float, default=0.01)
    parser.add_argument("--factor", type=float, default=0.5, help="of the learning rate on a plateau")
    parser.add_argument("--patience", type=int, default=75, help="epochs without a better validation loss")
    parser.add_argument("--cooldown", type=int, default=10, help="epochs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--venvs", type=Path, default=default_folder(), help="folder of the peers' environments")
    parser.add_argument("--torch", default=TORCH, help="what pip is asked for there")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/schnetpack_training_F<width>.json")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    python = peer_python("schnetpack", arguments.venvs, arguments.torch)
    settings = ("minutes", "features", "batch_size", "lr", "energy_weight", "factor", "patience", "cooldown", "threads")
    job = {name: getattr(arguments, name) for name in (*settings, "seed")}
    with Dataset(arguments.run / "dataset.h5") as dataset, tempfile.TemporaryDirectory() as folder:
        splits = split_of(arguments.run, dataset)
        test = splits["test"]
        atoms = np.concatenate([np.arange(dataset.offsets[i], dataset.offsets[i + 1]) for i in test])
        truth = dataset.energy[test], dataset.forces[atoms], dataset.numbers[atoms]
        model = arguments.run / "model.safetensors"
        ours = force_errors(*our_predictions(model, dataset, test), *truth) if model.is_file() else None
        result, energy, forces = train_schnetpack(Path(folder), job, dataset, splits, python)
        report: dict[str, Any] = {
            "machine": f"{cpu_model()}, {os.cpu_count()} cores",
            "run": os.path.relpath(arguments.run),
            "dataset_hash": dataset.content_hash,
            "frames": {name: len(rows) for name, rows in splits.items()},
            "settings": job,
            **{name: value for name, value in result.items() if name != "history"},
            "schnetpack": force_errors(energy, forces, *truth),
            "history": result["history"],
        }
    if ours is not None:
        report["ours"] = ours
    out = arguments.out or RESULTS / f"schnetpack_training_F{arguments.features}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(
        f"SchNetPack PaiNN, {arguments.features} features, {result['parameters']} parameters: "
        f"{result['epochs']} epochs, {result['steps']} steps in {result['seconds'] / 60:.1f} minutes"
    )
    print("                force MAE     energy MAE   mean force angle   (test frames)")
    for name in ("schnetpack", "ours"):
        if name in report:
            e = report[name]
            print(
                f"{name:12s} {e['force_mae_meV_A']:6.2f} meV/Å {e['energy_mae_meV']:8.2f} meV   "
                f"{e['angle_mean_deg']:8.2f}°"
            )


if __name__ == "__main__":
    main()
