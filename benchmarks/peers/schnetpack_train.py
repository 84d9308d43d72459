"""SchNetPack's PaiNN trained by SchNetPack's own task, data module and callbacks; runs in SchNetPack's environment.

    python schnetpack_train.py job.json frames.npz predictions.npz

The recipe is that of ``schnetpack/configs/experiment/md17.yaml`` and ``rmd17.yaml`` with the defaults they stand on:
kcal/mol, offsets by the mean, PaiNN with 3 interactions, 20 Gaussians and 5 Å, AdamW 1e-3, batches of 10, MSE of energy
and forces weighted 0.01 : 0.99, weights averaged with 0.995, learning rate halved on a plateau, the checkpoint with the
best validation loss. Driven by ``benchmarks/schnetpack_training.py``, which says what is set otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from schnetpack_import import import_schnetpack

spk = import_schnetpack()

import pytorch_lightning as pl  # noqa: E402
import torchmetrics  # noqa: E402
from schnetpack import transform as trn  # noqa: E402
from schnetpack.data import ASEAtomsData, AtomsDataModule  # noqa: E402
from schnetpack.interfaces import AtomsConverter  # noqa: E402
from schnetpack.train import ExponentialMovingAverage, ModelCheckpoint  # noqa: E402
from schnetpack.units import convert_units  # noqa: E402

CUTOFF = 5.0
SPLITS = {"train": "train", "val": "validation", "test": "test"}  # its names and ours
# schnetpack's own subclass passes `verbose` on, which torch has dropped; without smoothing, which is how the recipe
# uses it, it is torch's scheduler.
PLATEAU = torch.optim.lr_scheduler.ReduceLROnPlateau


class InMemory(torch.utils.data.Dataset):
    """Frames read from the database and transformed once; every transform of the recipe is deterministic."""

    def __init__(self, dataset: Any) -> None:
        self.base = dataset
        self.frames = [dataset[i] for i in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return dict(self.frames[index])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


def make_data(frames: dict[str, np.ndarray], job: dict[str, Any]) -> AtomsDataModule:
    """An ASE database of all frames, and its data module with exactly our splits."""
    atoms = molecules(frames)
    offsets = frames["offsets"]
    properties = [
        {"energy": frames["energy"][i : i + 1], "forces": frames["forces"][offsets[i] : offsets[i + 1]]}
        for i in range(len(atoms))
    ]
    dataset = ASEAtomsData.create(
        "frames.db", distance_unit="Ang", property_unit_dict={"energy": "eV", "forces": "eV/Ang"}
    )
    dataset.add_systems(properties, atoms)
    np.savez("split.npz", **{f"{name}_idx": frames[key] for name, key in SPLITS.items()})
    data = AtomsDataModule(
        "frames.db",
        batch_size=job["batch_size"],
        val_batch_size=100,
        split_file="split.npz",
        distance_unit="Ang",
        property_units={"energy": "kcal/mol", "forces": "kcal/mol/Ang"},
        transforms=[
            trn.SubtractCenterOfMass(),
            trn.RemoveOffsets("energy", remove_mean=True),
            trn.MatScipyNeighborList(cutoff=CUTOFF),
            trn.CastTo32(),
        ],
        num_workers=0,
    )
    data.setup()
    data._train_dataset, data._val_dataset = InMemory(data._train_dataset), InMemory(data._val_dataset)
    data._train_dataloader = data._val_dataloader = None  # those made so far read the database
    return data


def molecules(frames: dict[str, np.ndarray]) -> list[Atoms]:
    bounds = list(zip(frames["offsets"][:-1], frames["offsets"][1:], strict=True))
    return [Atoms(frames["numbers"][a:b], frames["positions"][a:b]) for a, b in bounds]


def make_task(job: dict[str, Any]) -> Any:
    model = spk.model.NeuralNetworkPotential(
        representation=spk.representation.PaiNN(
            n_atom_basis=job["features"],
            n_interactions=3,
            radial_basis=spk.nn.GaussianRBF(n_rbf=20, cutoff=CUTOFF),
            cutoff_fn=spk.nn.CosineCutoff(CUTOFF),
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=job["features"], output_key="energy"),
            spk.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
        postprocessors=[trn.CastTo64(), trn.AddOffsets("energy", add_mean=True)],
    )
    outputs = [
        spk.task.ModelOutput(
            name=name,
            loss_fn=torch.nn.MSELoss(),
            loss_weight=weight,
            metrics={"mae": torchmetrics.regression.MeanAbsoluteError()},
        )
        for name, weight in (("energy", job["energy_weight"]), ("forces", 1.0 - job["energy_weight"]))
    ]
    return spk.task.AtomisticTask(
        model=model,
        outputs=outputs,
        optimizer_cls=torch.optim.AdamW,
        optimizer_args={"lr": job["lr"], "weight_decay": 0.0},
        scheduler_cls=PLATEAU,
        scheduler_args={
            "mode": "min",
            "factor": job["factor"],
            "patience": job["patience"],
            "cooldown": job["cooldown"],
            "threshold": 0.0,
        },
        scheduler_monitor="val_loss",
    )


class History(pl.Callback):
    """Validation errors over time, in meV and Å."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.began = time.perf_counter()

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        unit = 1000 * convert_units("kcal/mol", "eV")
        values = trainer.callback_metrics
        row = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": time.perf_counter() - self.began,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "force_mae_meV_A": unit * float(values["val_forces_mae"]),
            "energy_mae_meV": unit * float(values["val_energy_mae"]),
        }
        self.rows.append(row)
        if row["epoch"] % 10 == 0:
            print(
                f"epoch {row['epoch']:4d}  {row['seconds']:6.0f} s  lr {row['lr']:.1e}  validation "
                f"{row['force_mae_meV_A']:.1f} meV/Å",
                file=sys.stderr,
                flush=True,
            )


def train(data: AtomsDataModule, job: dict[str, Any]) -> dict[str, Any]:
    """Train for the time given; the best model by validation loss is left in ``best_model``."""
    pl.seed_everything(job["seed"])
    history = History()
    task = make_task(job)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision="32-true",
        max_epochs=100_000,
        max_time=timedelta(minutes=job["minutes"]),
        num_sanity_val_steps=0,
        default_root_dir=".",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,
        inference_mode=False,
        callbacks=[
            # Before the checkpoint, so that the averaged weights are what is validated and kept, as in its configs.
            ExponentialMovingAverage(decay=0.995),
            ModelCheckpoint("best_model", monitor="val_loss", mode="min", save_top_k=1, dirpath="checkpoints"),
            history,
        ],
    )
    began = time.perf_counter()
    trainer.fit(task, datamodule=data)
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": time.perf_counter() - began,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "history": history.rows,
    }


def predict(frames: dict[str, np.ndarray], batch: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Energies (T,) in eV and forces (A, 3) in eV/Å of the test frames, in order, from the best model."""
    model = spk.utils.load_model("best_model").eval()
    convert = AtomsConverter(neighbor_list=trn.MatScipyNeighborList(cutoff=CUTOFF), dtype=torch.float32)
    atoms = molecules(frames)
    chosen = [atoms[i] for i in frames["test"]]
    unit = convert_units("kcal/mol", "eV")
    energies, forces = [], []
    for start in range(0, len(chosen), batch):
        output = model(convert(chosen[start : start + batch]))
        energies.append(output["energy"].detach().double().numpy() * unit)
        forces.append(output["forces"].detach().double().numpy() * unit)
    return np.concatenate(energies), np.concatenate(forces)


def main() -> None:
    job_path, frames_path, out = (Path(argument).resolve() for argument in sys.argv[1:])
    job = json.loads(job_path.read_text())
    torch.set_num_threads(job["threads"])
    with np.load(frames_path) as file:
        frames = {name: file[name] for name in file.files}
    os.chdir(job_path.parent)
    data = make_data(frames, job)
    result = train(data, job)
    if not Path("best_model").is_file():
        raise SystemExit("The time was over before the first validation; give SchNetPack more minutes.")
    energy, forces = predict(frames)
    np.savez(out, energy=energy, forces=forces)
    result["versions"] = {"schnetpack": spk.__version__, "lightning": pl.__version__, "torch": torch.__version__}
    (job_path.parent / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
