"""Ensembles of chains: what they are compared by, force fields that learn to sample them, and temperatures."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.modelfile import build_potential, load_coarse_grained, save_model
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import Chains, coarse_grained_atoms, extended_chain
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.prior import Prior
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from distillase.ase_calcs.units import KB
from distillase.datasets.proteins.beads import BeadFrames
from distillase.training.proteins import relative_entropy
from distillase.training.proteins.config import (
    BeadLossConfig,
    BeadNetworkConfig,
    BeadRecipe,
    RelativeEntropyConfig,
    first_stage,
    second_stage,
)
from distillase.training.proteins.metrics import divergence, native_contacts, radius_of_gyration, rmsd
from distillase.training.proteins.relative_entropy import minimise_relative_entropy
from distillase.training.proteins.run import assemble, fresh_network, train_beads
from distillase.training.proteins.task import BeadTable

pytest.importorskip("allegro")

SEQUENCE = "GYDPE"
SMALL = {"scalar_features": 8, "tensor_features": 4, "n_basis": 6, "mlp": 8}
ELEMENTS = tuple(sorted(int(t) + 1 for t in Chains.from_sequence(SEQUENCE).types))


def chain(n: int = 20, sequence: str = "A" * 10, spread: float = 0.3) -> np.ndarray:
    x = extended_chain(sequence, angle=95.0, dihedral=50.0)
    return x + np.random.default_rng(0).normal(0, spread, (n, *x.shape))


def sampled(model: CoarseGrainedModel, kelvin: float = 300.0, seed: int = 0, replicas: int = 64) -> np.ndarray:
    start = np.repeat(extended_chain(SEQUENCE)[None], replicas, 0)
    config = SimulationConfig(picoseconds=8, interval=0.2, friction=0.01, temperature_K=kelvin)
    x = ReplicaLangevin(model, Chains.from_sequence(SEQUENCE), start, config, seed=seed).run().positions[10:]
    return x.reshape(-1, *start.shape[1:])


def bent() -> CoarseGrainedModel:
    """A chain that prefers right angles, which a prior without angles does not know."""
    model = CoarseGrainedModel(ELEMENTS)
    model.prior.angle.data[:, 1] = 0.08
    return model.requires_grad_(False)


def recipe(**entropy: object) -> BeadRecipe:
    stage = {"batch_frames": 16, "warmup_steps": 5, "tensorboard": False, "checkpoint_seconds": 0}
    settings = {"replicas": 32, "md_steps": 10, "force_frames": 8, "checkpoint_seconds": 1e9, **entropy}
    return BeadRecipe(
        network=BeadNetworkConfig(options=SMALL), loss=BeadLossConfig(smooth_functions=1300),
        first=first_stage(max_epochs=2, **stage),
        second=second_stage(max_epochs=1, **stage), relative_entropy=RelativeEntropyConfig(**settings),  # type: ignore[arg-type]
    )  # fmt: skip


def data(n: int = 600) -> BeadFrames:
    """Positions of the bent chain, and forces that say nothing: only where the beads are can be learned from."""
    x = sampled(bent())[:n]
    return BeadFrames("bent", SEQUENCE, x, np.zeros_like(x), np.full(len(x), 300.0), np.full(len(x), "one"))


def test_superposition_is_blind_to_rotation_and_not_to_reflection() -> None:
    from scipy.spatial.transform import Rotation

    x = chain()
    turned = x @ Rotation.random(random_state=2).as_matrix().T + 5.0
    assert rmsd(turned, x[0])[0] == pytest.approx(0.0, abs=1e-6)
    assert np.allclose(rmsd(turned, x[0]), rmsd(x, x[0]), atol=1e-6)
    assert rmsd(-x[:1], x[0])[0] > 1.0
    # Against scipy's own superposition.
    _, wanted = Rotation.align_vectors(x[3] - x[3].mean(0), x[0] - x[0].mean(0))
    assert rmsd(x[3:4], x[0])[0] == pytest.approx(wanted / np.sqrt(10), rel=1e-6)


def test_contacts_and_size() -> None:
    native = chain(1)[0]
    assert native_contacts(native[None], native)[0] > 0.99
    assert native_contacts(extended_chain("A" * 10)[None], native)[0] < 0.3
    assert np.isnan(native_contacts(extended_chain("A" * 3)[None], extended_chain("A" * 3))[0])
    rod = np.zeros((1, 3, 3))
    rod[0, :, 0] = [-1.0, 0.0, 1.0]
    assert radius_of_gyration(rod)[0] == pytest.approx(np.sqrt(2 / 3))


def test_divergence_is_zero_for_the_same_and_one_for_the_disjoint() -> None:
    x = chain(500)
    assert all(value == 0.0 for value in divergence(x, x).values())
    assert divergence(x, 3 * x)["distances"] == pytest.approx(1.0, abs=0.02)
    assert divergence(x, -x)["angles"] == 0.0
    assert divergence(x, -x)["dihedrals"] > 0.5
    assert np.isnan(divergence(x[:, :2], x[:, :2])["angles"])


def test_relative_entropy_learns_a_distribution_from_positions_alone(tmp_path) -> None:
    frames, prior = data(), Prior().requires_grad_(False)
    settings = recipe(steps=100, lr=1e-2, force_weight=0.0)
    table = BeadTable(prior, [frames], cutoff=12.0, loss=BeadLossConfig(), dtype=torch.float32, seed=0)
    potential = fresh_network(settings, ELEMENTS, table)
    before = divergence(sampled(assemble(prior, None, ELEMENTS, 300.0), seed=1), frames.positions)
    history = minimise_relative_entropy(prior, potential, [frames], table, settings, tmp_path)
    after = divergence(sampled(assemble(prior, potential, ELEMENTS, 300.0), seed=1), frames.positions)
    floor = divergence(sampled(bent(), seed=1), frames.positions)
    assert before["angles"] > 5 * floor["angles"]
    assert after["angles"] - floor["angles"] < 0.3 * (before["angles"] - floor["angles"])
    assert [line["update"] for line in history] == [50, 100]
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert all(parameter.requires_grad for parameter in potential.parameters())


def test_the_stage_is_resumed_bit_by_bit(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(relative_entropy, "_LOOK_EVERY", 3)
    first, prior, settings = data(60), Prior().requires_grad_(False), recipe(steps=12)
    other = BeadFrames("short", "GYD", *(v[:, :3] for v in (first.positions, first.forces)), *(first.temperatures,) * 2)
    both = [first, dataclasses.replace(other, origins=first.origins)]
    whole = train_beads(both, prior, tmp_path / "whole", settings)
    assert set(whole.metrics) == {"validation", "forces_alone", "trained_on", "smooth_forces"}
    update = relative_entropy._Run.update

    def interrupted(self):
        if self.step == 7:
            self.save()
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(relative_entropy._Run, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_beads(both, prior, tmp_path / "part", settings)
    monkeypatch.setattr(relative_entropy._Run, "update", update)
    part = train_beads(both, prior, tmp_path / "part", settings)
    histories = [(tmp_path / name / "relative-entropy" / "history.json").read_text() for name in ("whole", "part")]
    assert histories[0] == histories[1]
    assert {line["protein"] for line in json.loads(histories[0])} == {"bent", "short"}
    one, again = (load_coarse_grained(r.path).state_dict() for r in (whole, part))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not list((tmp_path / "part").glob("*/checkpoint*.pt"))


def test_settings_of_the_last_stage_do_not_undo_the_others(tmp_path, monkeypatch) -> None:
    """What a failure of the last stage advises, another rate, goes on from the forces that have been learned."""
    from distillase.training import loop

    frames, prior = data(60), Prior().requires_grad_(False)

    def fail(self, ensemble) -> None:
        if self.step == 2:
            self.save()  # as happens once a minute
        if self.step == 3:
            raise DataError("became unstable")

    monkeypatch.setattr(relative_entropy._Run, "_check", fail)
    with pytest.raises(DataError):
        train_beads([frames], prior, tmp_path, recipe(steps=4))
    monkeypatch.undo()
    steps = []
    monkeypatch.setattr(loop.TrainLoop, "_step", lambda self, *words: steps.append(1))
    train_beads([frames], prior, tmp_path, recipe(steps=4, lr=1e-4))
    assert not steps


def test_replicas_that_go_wrong_are_put_back_and_too_many_end_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(relative_entropy, "_LOOK_EVERY", 3)
    frames, prior = data(60), Prior().requires_grad_(False)
    table = BeadTable(prior, [frames], cutoff=12.0, loss=BeadLossConfig(), dtype=torch.float32, seed=0)
    settings = recipe(steps=4)
    run = relative_entropy._Run(
        prior, fresh_network(settings, ELEMENTS, table), [frames], table, settings, tmp_path, ""
    )
    monkeypatch.setattr(ReplicaLangevin, "wrong", lambda self: torch.arange(32) == 5)
    run.update()
    assert run.ensembles[0].restarts == 1
    placed = run.ensembles[0].dynamics.x.numpy()
    same = (placed[:, None] == frames.positions[None]).all((2, 3)).any(1)
    assert same.tolist() == [k == 5 for k in range(32)]  # that one is at a frame, the others have moved on
    monkeypatch.setattr(ReplicaLangevin, "wrong", lambda self: torch.ones(32, dtype=torch.bool))
    before = sorted(file.name for file in tmp_path.iterdir())
    with pytest.raises(DataError, match="became unstable"):
        run.update()
    assert sorted(file.name for file in tmp_path.iterdir()) == before  # nothing to go on from behind the failure


def split(spread: float = 0.2) -> CoarseGrainedModel:
    """Energy and entropy from two networks with weights of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        part = build_potential("energy-entropy", ELEMENTS, {"base": "allegro", "options": SMALL}, dtype=torch.float64)
    part.energy_scale.fill_(spread)
    return assemble(Prior().requires_grad_(False), part, ELEMENTS, 300.0)


def test_a_free_energy_is_a_straight_line_in_temperature(tmp_path) -> None:
    path = save_model(tmp_path / "model.safetensors", split())
    atoms = coarse_grained_atoms(SEQUENCE, chain(1, SEQUENCE)[0])
    found = {}
    for kelvin in (None, 300.0, 350.0, 400.0, 450.0):
        atoms.calc = CoarseGrainedCalculator(path, temperature_K=kelvin)
        found[kelvin] = atoms.get_potential_energy(), atoms.get_forces()
    assert found[None][0] == found[300.0][0]
    for k in range(2):
        low, middle, high = (found[kelvin][k] for kelvin in (300.0, 350.0, 400.0))
        assert np.allclose(middle - low, high - middle, atol=1e-12)
        assert np.abs(np.asarray(middle - low)).max() > 1e-4
        assert np.allclose(found[450.0][k] - low, 3 * (middle - low), atol=1e-12)


def test_other_temperatures_are_refused_by_models_that_do_not_know_them() -> None:
    with pytest.raises(InputError, match="energy_entropy"):
        CoarseGrainedCalculator(bent(), temperature_K=350.0)


def test_energy_and_entropy_are_learned_from_frames_of_several_temperatures(tmp_path) -> None:
    """Forces that grow by a third from 300 to 400 K: at 500 K, which it has not seen, they have grown by two thirds."""
    truth, x = bent(), sampled(bent())[:700]
    prior = Prior().requires_grad_(False)
    plain = CoarseGrainedModel(ELEMENTS).requires_grad_(False)
    with torch.no_grad():
        known = plain(torch.tensor(x), topology_of(plain)).forces.numpy()
        angle = truth(torch.tensor(x), topology_of(truth)).forces.numpy() - known
    kelvin = np.where(np.arange(len(x)) % 2, 300.0, 400.0)
    forces = known + angle * (kelvin / 300.0)[:, None, None]
    frames = BeadFrames("bent", SEQUENCE, x, forces, kelvin, np.array([f"{t:g}" for t in kelvin]))
    settings = dataclasses.replace(
        recipe(steps=0), network=BeadNetworkConfig(options=SMALL, energy_entropy=True),
        first=first_stage(max_epochs=10, batch_frames=16, lr=1e-2, warmup_steps=5, tensorboard=False),
    )  # fmt: skip
    result = train_beads([frames], prior, tmp_path, settings)
    assert result.metrics["validation"]["explained"] > 0.9
    model = load_coarse_grained(result.path)
    assert model.knows_temperature
    other = torch.tensor(x[::40])
    with torch.no_grad():
        learned = model(other, topology_of(model), "network", 500.0).forces.numpy()
    wanted = angle[::40] * 500 / 300
    assert np.sqrt(np.mean((learned - wanted) ** 2)) < 0.35 * np.sqrt(np.mean(wanted**2))


def topology_of(model: CoarseGrainedModel):
    return model.bind(Chains.from_sequence(SEQUENCE))


def test_replicas_feel_the_forces_of_their_temperature() -> None:
    model = split()
    x = chain(2, SEQUENCE)
    found = {}
    for kelvin in (300.0, 400.0):
        config = SimulationConfig(temperature_K=kelvin)
        dynamics = ReplicaLangevin(model, Chains.from_sequence(SEQUENCE), x, config)
        found[kelvin] = dynamics.output.forces.numpy()
        calculator = CoarseGrainedCalculator(model, temperature_K=kelvin)
        wanted = calculator.calculate_many([coarse_grained_atoms(SEQUENCE, one) for one in x])
        assert np.allclose(found[kelvin], [w["forces"] for w in wanted], atol=1e-12)
        assert dynamics.kt == KB * kelvin
    assert np.abs(found[300.0] - found[400.0]).max() > 1e-4
