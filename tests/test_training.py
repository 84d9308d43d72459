"""Contracts of the train loop: gradients that do not depend on batching, exact resume, fitted constants, the loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.compiled import find_compiler
from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.modelfile import load_model
from distillase.datasets.store import Dataset, write_dataset
from distillase.datasets.structure import Labels, Structure
from distillase.training import checkpoint, losses
from distillase.training.batches import EdgeBudgetSampler, FrameTable
from distillase.training.compiled import CompiledStep
from distillase.training.config import LossConfig, ModelConfig, SplitConfig, TrainConfig
from distillase.training.engine import NonFiniteLoss, TorchEngine
from distillase.training.loggers import read_metrics
from distillase.training.loop import TrainLoop
from distillase.training.metrics import INDEX, figures
from distillase.training.run import prepare_potential, reference_energies, train
from distillase.training.task import PotentialTask

ELEMENTS = (1, 6, 8)
MODEL = ModelConfig(features=8, layers=2, n_basis=6, cutoff=4.0)
WATER = np.array([[0.0, 0.0, 0.12], [0.0, 0.76, -0.47], [0.0, -0.76, -0.47]])
CO2 = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.17], [0.0, 0.0, -1.17]])


def frames(n: int, seed: int = 0) -> list[tuple[Structure, Labels]]:
    """Rattled H2O and CO2 labelled with EMT, which knows H, C and O."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(n):
        numbers, positions, group = (([8, 1, 1], WATER, "O"), ([6, 8, 8], CO2, "O=C=O"))[k % 2]
        structure = Structure(
            np.array(numbers), positions + rng.normal(0, 0.05, (3, 3)), group=group, origin=f"rattle/{k // 4}"
        )
        atoms = structure.to_atoms()
        atoms.calc = EMT()
        made.append((structure, Labels(atoms.get_potential_energy(), atoms.get_forces())))
    return made


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "emt.h5"
    return write_dataset(path, frames(48), provenance={"teacher": "emt", "teacher_version": "ase"})


@pytest.fixture(scope="module")
def table(dataset: Path) -> FrameTable:
    return FrameTable(Dataset(dataset), np.arange(48), cutoff=MODEL.cutoff, dtype=torch.float64)


def make_task(table: FrameTable, loss: LossConfig | None = None, **model: object) -> PotentialTask:
    config = ModelConfig(**{**vars(MODEL), "dtype": "float64", **model})
    return PotentialTask(prepare_potential(config, ELEMENTS, table, seed=1), loss or LossConfig(angle=1.0)).train()


def gradients(task: torch.nn.Module) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in task.parameters()]


@pytest.mark.parametrize("kind", ["norm", "mse", "huber"])
def test_gradient_does_not_depend_on_how_frames_fall_into_batches(table: FrameTable, kind: str) -> None:
    task = make_task(table, LossConfig(kind=kind, angle=1.0))
    whole, parts = [np.arange(12)], [np.arange(5), np.arange(5, 6), np.arange(6, 12)]
    found = []
    for grouping in (whole, parts):
        batches = [table.batch(k) for k in grouping]
        counts = torch.stack([task.counts(b) for b in batches]).sum(0)
        task.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            loss, _ = task(batch.tensors(), counts)
            loss.backward()
            total = total + loss.detach()
        found.append((total, gradients(task)))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), abs=1e-12)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_gradient_of_the_force_loss_is_the_finite_difference(table: FrameTable) -> None:
    task = make_task(table, LossConfig(kind="mse", angle=0.5))
    batch = table.batch(np.arange(4)).tensors()
    counts = task.counts(table.batch(np.arange(4)))
    task(batch, counts)[0].backward()
    weight = task.potential.messages[1].filter.weight  # type: ignore[union-attr]
    step = 1e-5
    for index in ((0, 0), (5, 3), (20, 1)):
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                weight[index] += sign * step
                values.append(task(batch, counts)[0].item())
                weight[index] -= sign * step
        assert weight.grad is not None
        assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-9)


def test_sums_are_the_errors_of_the_forward_pass(table: FrameTable, dataset: Path) -> None:
    task = make_task(table).eval()
    batch = table.batch(np.arange(48))
    _, sums = task(batch.tensors(), task.counts(batch))
    found = figures(sums)
    data = Dataset(dataset)
    from distillase.ase_calcs.calculator import PotentialCalculator

    calculator = PotentialCalculator(task.potential)
    results = calculator.calculate_many([data.structure(k).to_atoms() for k in range(48)])
    forces = np.concatenate([r["forces"] for r in results])
    energies = np.array([r["energy"] for r in results])
    assert found["force_mae"] == pytest.approx(np.abs(forces - data.forces).mean(), rel=1e-9)
    assert found["force_rmse"] == pytest.approx(np.sqrt(((forces - data.forces) ** 2).mean()), rel=1e-9)
    assert found["energy_mae"] == pytest.approx(np.abs(energies - data.energy).mean(), rel=1e-9)
    norms = np.linalg.norm(data.forces, axis=1)
    strong = norms > LossConfig().angle_threshold
    cos = (forces * data.forces).sum(1)[strong] / (np.linalg.norm(forces, axis=1) * norms)[strong]
    assert found["angle_mean_deg"] == pytest.approx(np.degrees(np.arccos(cos)).mean(), rel=1e-6)


def test_angular_loss_ignores_length_and_masks_small_forces() -> None:
    forces = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.01, 0.0]])
    assert losses.angle_mask(forces, 0.1).tolist() == [1.0, 0.0]
    turned = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 2.0]], dtype=torch.float64)
    cos = losses.cosine(turned, torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64))
    assert cos.tolist() == pytest.approx([1.0, np.sqrt(0.5)], abs=1e-9)


def test_reference_energies_are_least_squares(table: FrameTable) -> None:
    energies = reference_energies(table, ELEMENTS).numpy()
    counts = table.compositions(ELEMENTS)
    residual = table.energy.numpy() - counts @ energies
    assert np.abs(counts.T @ residual).max() < 1e-8 * np.abs(table.energy.numpy()).sum()


def test_short_range_takes_over_below_the_closest_distance(table: FrameTable) -> None:
    potential = make_task(table).potential
    closest = table.closest_distances(ELEMENTS)
    h, o = 0, 2
    assert potential.short_range.inner[h, o].item() == pytest.approx(0.98 * closest[h, o].item(), rel=1e-12)  # type: ignore[union-attr]
    assert torch.isinf(closest[h, 1])  # H and C never meet in these molecules


def test_batches_respect_the_edge_budget_and_cover_every_frame() -> None:
    counts = np.random.default_rng(0).integers(1, 50, 200)
    sampler = EdgeBudgetSampler(counts, batch_edges=100, batch_frames=6, seed=3)
    for epoch in (0, 1):
        batches = sampler.epoch(epoch)
        assert sorted(np.concatenate(batches)) == list(range(200))
        assert all(counts[b].sum() <= 100 and len(b) <= 6 for b in batches)
    assert not np.array_equal(np.concatenate(sampler.epoch(0)), np.concatenate(sampler.epoch(1)))
    giant = EdgeBudgetSampler(np.array([500, 3, 500]), batch_edges=100, batch_frames=6, seed=0)
    assert sorted(np.concatenate(giant.epoch(0))) == [0, 1, 2]


def short(**kwargs: object) -> TrainConfig:
    return TrainConfig(
        **{"max_epochs": 6, "validate_every": 1, "compile": "off", "batch_frames": 8, "tensorboard": False, **kwargs}
    )


def test_training_learns_and_writes_what_it_says(dataset: Path, tmp_path: Path) -> None:
    result = train(dataset, tmp_path, model=MODEL, training=short(max_epochs=60), split=SplitConfig(test=0.2))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["validation"]["force_mae"] < 0.5 * rows[0]["validation"]["force_mae"]
    assert [row["epoch"] for row in rows] == list(range(1, 61))
    assert json.loads((tmp_path / "splits.json").read_text())["test"] == result.splits["test"].tolist()
    potential = load_model(result.model)
    assert potential.header.teacher == "emt"
    assert potential.header.metrics["test"]["force_mae"] == pytest.approx(result.metrics["test"]["force_mae"])
    assert potential.header.charges == (0,)
    assert not (tmp_path / checkpoint.NAME).exists()


class Stop(Exception):
    pass


@pytest.mark.parametrize("stop_at", [4, 7, 11])
def test_resumed_training_is_bit_identical(
    dataset: Path, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short(checkpoint_seconds=0.0, early_stop=50)
    undisturbed = train(dataset, tmp_path / "a", model=MODEL, training=config)
    original = TrainLoop._step

    def failing(self: TrainLoop, *args: object) -> None:
        if self.state.step == stop_at:
            raise Stop
        original(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TrainLoop, "_step", failing)
        with pytest.raises(Stop):
            train(dataset, tmp_path / "b", model=MODEL, training=config)
    resumed = train(dataset, tmp_path / "b", model=MODEL, training=config)
    a, b = (load_model(r.model).state_dict() for r in (undisturbed, resumed))
    for name in a:
        assert torch.equal(a[name], b[name]), name
    curves = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(tmp_path / run / "metrics.jsonl")]
        for run in "ab"
    ]
    assert curves[0] == curves[1]


def test_a_torn_checkpoint_is_detected_and_the_previous_one_used(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.save_checkpoint(tmp_path, {"fingerprint": "f", "step": step})
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:-7])
    found = checkpoint.load_checkpoint(tmp_path, "f")
    assert found is not None
    assert found["step"] == 1
    with pytest.raises(InputError, match="another dataset"):
        checkpoint.load_checkpoint(tmp_path, "g")


def test_a_nan_stops_before_the_weights_are_touched(table: FrameTable) -> None:
    task = make_task(table)
    batch = table.batch(np.arange(4))
    engine = TorchEngine(task, short(), batch)
    before = [p.detach().clone() for p in task.parameters()]
    batch.forces[0, 0] = torch.nan
    with pytest.raises(NonFiniteLoss, match=r"training\.lr"):
        engine.step([batch], 1e-3)
    for old, new in zip(before, task.parameters(), strict=True):
        assert torch.equal(old, new)


def test_accumulated_batches_make_the_same_step_as_one(table: FrameTable) -> None:
    ends = []
    for grouping in ([np.arange(8)], [np.arange(3), np.arange(3, 8)]):
        task = make_task(table, LossConfig(kind="mse"))
        TorchEngine(task, short(clip=0.5), table.batch([0, 1])).step([table.batch(k) for k in grouping], 1e-3)
        ends.append([p.detach().clone() for p in task.parameters()])
    for a, b in zip(*ends, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adabelief", "yogi"])
@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_optimizers_and_schedules_learn(dataset: Path, tmp_path: Path, optimizer: str, schedule: str) -> None:
    config = short(optimizer=optimizer, schedule=schedule, max_epochs=8, warmup_steps=5)
    train(dataset, tmp_path, model=MODEL, training=config)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[-1]["train"]["loss"] < rows[0]["train"]["loss"]


def test_charges_and_dipoles_are_learned_and_conserve_charge(tmp_path: Path) -> None:
    made = []
    for structure, labels in frames(24):
        charges = np.where(structure.numbers == 8, -0.4, 0.2)
        charges = charges - charges.mean()
        dipole = charges @ structure.positions
        made.append((structure, Labels(labels.energy, labels.forces, charges=charges, dipole=dipole)))
    path = write_dataset(tmp_path / "q.h5", made, provenance={"teacher": "emt"})
    config = short(max_epochs=120, loss=LossConfig(charges=1.0, dipole=1.0))
    model = ModelConfig(**{**vars(MODEL), "charges": True})
    result = train(path, tmp_path / "run", model=model, training=config)
    assert result.metrics["test"]["charge_mae"] < 0.05
    from distillase.ase_calcs.calculator import PotentialCalculator

    atoms = made[0][0].to_atoms()
    atoms.calc = PotentialCalculator(result.model)
    assert atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-5)
    with pytest.raises(InputError, match=r"model\.charges"):
        train(path, tmp_path / "other", model=MODEL, training=config)


def test_stress_is_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(24):
        cell = 3.9 * (np.eye(3) + rng.normal(0, 0.03, (3, 3)))
        positions = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]) @ cell
        positions = positions + rng.normal(0, 0.05, positions.shape)
        structure = Structure(np.full(4, 29), positions, cell, np.ones(3, bool), group="Cu4")
        atoms = structure.to_atoms()
        atoms.calc = EMT()
        made.append((structure, Labels(atoms.get_potential_energy(), atoms.get_forces(), stress=atoms.get_stress())))
    path = write_dataset(tmp_path / "cu.h5", made, provenance={"teacher": "emt"})
    split = SplitConfig(by="frame", validation=0.2, test=0.2)
    scores = {}
    for weight in (0.0, 30.0):
        loss = LossConfig(stress=weight, forces=0.1)
        run = tmp_path / f"w{weight}"
        result = train(path, run, model=MODEL, training=short(max_epochs=40, loss=loss, batch_edges=10**6), split=split)
        data = Dataset(path)
        from distillase.ase_calcs.calculator import PotentialCalculator

        calculator = PotentialCalculator(result.model)
        errors = []
        for k in result.splits["test"]:
            atoms = data.structure(int(k)).to_atoms()
            atoms.calc = calculator
            errors.append(np.abs(atoms.get_stress() - data.stress[k]).mean())
        scores[weight] = np.mean(errors)
    assert scores[30.0] < scores[0.0]


def test_a_student_begins_with_the_weights_of_another(dataset: Path, tmp_path: Path) -> None:
    """Its forces are the other's before any step; energies on another scale, and fewer elements, do not matter."""
    first = train(dataset, tmp_path / "first", model=MODEL, training=short(max_epochs=3)).model
    rng = np.random.default_rng(5)
    waters = []
    for k in range(12):
        structure = Structure(np.array([8, 1, 1]), WATER + rng.normal(0, 0.02, (3, 3)), group="O", origin=f"md/{k}")
        atoms = structure.to_atoms()
        atoms.calc = PotentialCalculator(first, dtype="float64")
        waters.append((structure, Labels(atoms.get_potential_energy() - 2000.0, atoms.get_forces())))
    path = write_dataset(tmp_path / "water.h5", waters, provenance={})
    with Dataset(path) as data:
        few = FrameTable(data, np.arange(12), cutoff=MODEL.cutoff, dtype=torch.float64)
    model = replace(MODEL, start_from=str(first), dtype="float64")
    task = PotentialTask(prepare_potential(model, (1, 8), few, seed=9), LossConfig())
    batch = few.batch(np.arange(12))
    found = figures(task(batch.tensors(), task.counts(batch))[1])
    assert found["force_mae"] < 1e-6
    assert found["energy_mae"] < 1e-6
    before, after = load_model(first).short_range, task.potential.short_range
    rows = [load_model(first).elements.index(z) for z in (1, 8)]
    assert (after.closest_distances() <= before.closest_distances()[rows][:, rows] + 1e-6).all()
    tuned = train(path, tmp_path / "tuned", model=replace(model, dtype="float32"), training=short(max_epochs=1))
    assert load_model(tuned.model).elements == (1, 8)


def test_a_start_of_another_kind_is_refused(dataset: Path, table: FrameTable, tmp_path: Path) -> None:
    first = train(dataset, tmp_path / "first", model=MODEL, training=short(max_epochs=1)).model
    for changed, message in (
        ({"features": 12}, "width, layers and basis must be the same"),
        ({"layers": 3}, "weights"),
    ):
        with pytest.raises(InputError, match=message):
            prepare_potential(replace(MODEL, start_from=str(first), **changed), ELEMENTS, table, seed=1)
    with pytest.raises(InputError, match=r"for elements \[1, 6, 8\]"):
        prepare_potential(replace(MODEL, start_from=str(first)), (*ELEMENTS, 9), table, seed=1)


def test_missing_labels_are_named(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d.h5", [(s, None) for s, _ in frames(12)], provenance={})
    with pytest.raises(DataError, match=r"energy|forces"):
        train(path, tmp_path / "run", model=MODEL, training=short())


def test_bfloat16_training_stays_close_to_full_precision(table: FrameTable, dataset: Path) -> None:
    single = FrameTable(Dataset(dataset), np.arange(48), cutoff=MODEL.cutoff)
    values = {}
    for precision in ("full", "bf16"):
        potential = prepare_potential(MODEL, ELEMENTS, single, seed=1)
        task = PotentialTask(potential, LossConfig(), precision=precision).train()
        batch = single.batch(np.arange(12))
        loss, _ = task(batch.tensors(), task.counts(batch))
        loss.backward()
        values[precision] = loss.item()
        assert all(torch.isfinite(g).all() for g in gradients(task))
    assert values["bf16"] == pytest.approx(values["full"], rel=0.03)
    assert values["bf16"] != values["full"]


@pytest.mark.compiler
@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler, and none was found")
def test_the_compiled_step_has_the_gradients_of_the_eager_one(table: FrameTable) -> None:
    task = make_task(table, rank=1)  # half the time of rank 2; the compiled package of test_calculator has rank 2
    step = CompiledStep(task, table.batch([0, 1]).tensors())
    for chosen in (np.arange(10), np.arange(3, 30), np.arange(1)):
        batch = table.batch(chosen)
        counts = task.counts(batch)
        found = []
        for module in (task, step):
            task.zero_grad()
            loss, sums = module(batch.tensors(), counts)
            loss.backward()
            found.append((loss.item(), sums[INDEX["force_abs"]].item(), gradients(task)))
        assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-10)
        for a, b in zip(found[0][2], found[1][2], strict=True):
            assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)
