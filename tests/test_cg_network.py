"""A network on top of the prior: Allegro, its training on noisy forces, and the force field of both."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from distillase.ase_calcs.allegro import Allegro
from distillase.ase_calcs.errors import InputError
from distillase.ase_calcs.graph import AtomGraph
from distillase.ase_calcs.modelfile import load_coarse_grained, save_model
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import Chains, coarse_grained_atoms, extended_chain
from distillase.ase_calcs.proteins.model import BeadTopology, CoarseGrainedModel, bead_graph
from distillase.ase_calcs.proteins.prior import Prior, PriorTopology
from distillase.datasets.proteins.beads import BeadFrames
from distillase.training.proteins import task as task_module
from distillase.training.proteins.config import (
    BeadLossConfig,
    BeadNetworkConfig,
    BeadRecipe,
    RelativeEntropyConfig,
    first_stage,
    second_stage,
)
from distillase.training.proteins.run import fresh_network, split_frames, train_beads, without_validated
from distillase.training.proteins.task import (
    INDEX,
    BeadTable,
    BeadTask,
    closest,
    leftover,
    mean_force_weights,
    pressed_together,
)

pytest.importorskip("allegro")

SEQUENCE = "GYDPETGTWG"
SMALL = {"scalar_features": 8, "tensor_features": 4, "n_basis": 6, "mlp": 8}


def configurations(sequence: str = SEQUENCE, n: int = 3, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    x = extended_chain(sequence, angle=100.0, dihedral=50.0)
    return x + np.random.default_rng(seed).normal(0, spread, (n, *x.shape))


def network(**settings: object) -> Allegro:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Allegro(range(1, 21), **{**SMALL, "dtype": torch.float64, **settings})  # type: ignore[arg-type]


def hybrid() -> CoarseGrainedModel:
    part = network()
    model = CoarseGrainedModel(
        range(1, 21), network={"architecture": "allegro", "hyperparameters": part.hyperparameters}, dtype=torch.float64
    )
    model.network.load_state_dict(part.state_dict())
    return model.requires_grad_(False)


def graph(positions: np.ndarray) -> AtomGraph:
    topology = BeadTopology.of(Chains.from_sequence(SEQUENCE))
    return bead_graph(torch.tensor(positions), topology, 12.0, torch.float64)


@pytest.mark.parametrize(
    "settings",
    [{}, {"l_max": 2, "layers": 2}, {"parity": False}, {"embedding": "pairs"}, {"handed": True, "layers": 2}],
)
def test_allegro_has_the_symmetries_of_a_potential(settings) -> None:
    from scipy.spatial.transform import Rotation

    model, x = network(**settings), configurations()
    turn = Rotation.random(random_state=1).as_matrix()
    one, other = model(graph(x)), model(graph(x @ turn.T + 3.0))
    assert torch.allclose(one.energy, other.energy, rtol=0, atol=1e-11)
    assert torch.allclose(one.forces @ torch.tensor(turn.T), other.forces, rtol=0, atol=1e-11)
    assert float(one.forces.detach().abs().max()) > 1e-3
    moved = x.copy()
    moved[1, 3, 1] += 1e-4
    back = x.copy()
    back[1, 3, 1] -= 1e-4
    slope = float(model(graph(moved)).energy[1] - model(graph(back)).energy[1]) / 2e-4
    assert slope == pytest.approx(-float(one.forces[13, 1]), abs=1e-7)


def test_allegro_is_blind_to_handedness_unless_it_shall_not_be_and_the_prior_is_not() -> None:
    """Its energies are scalars of even parity: a chain and its mirror image are one to it, whatever it has learned."""
    x = configurations()
    model = network(layers=3, l_max=2)
    difference = (model(graph(x)).energy - model(graph(-x)).energy).abs()
    assert float(difference.max()) < 1e-11
    handed = network(layers=2, handed=True)
    assert float((handed(graph(x)).energy - handed(graph(-x)).energy).abs().min()) > 1e-4
    with pytest.raises(InputError, match="two layers"):
        network(handed=True)
    with torch.no_grad():
        prior = Prior()
        prior.dihedral[:, prior.n_dihedral] = 0.2
        topology = PriorTopology.of(Chains.from_sequence(SEQUENCE))
        there, mirrored = prior(torch.tensor(x), topology).energy, prior(torch.tensor(-x), topology).energy
    assert float((there - mirrored).abs().min()) > 1e-3


def test_building_allegro_changes_nothing_outside() -> None:
    before, state = torch.get_default_dtype(), torch.get_rng_state()
    network()
    assert torch.get_default_dtype() == before == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_pairs_of_types_have_embeddings_of_their_own() -> None:
    """With embeddings of either end, what AG and GA, AA and GG are to each other is fixed; with pairs it is not."""
    count = {kind: sum(p.numel() for p in network(embedding=kind).parameters()) for kind in ("types", "pairs")}
    assert count["pairs"] - count["types"] > 300 * SMALL["n_basis"]  # 400 pairs, against 20 types
    with pytest.raises(InputError, match="'types' and 'pairs'"):
        network(embedding="atoms")


def test_smoothness_is_the_curvature_of_the_network(monkeypatch) -> None:
    """Against second derivatives by automatic differentiation, for displacements small enough."""
    monkeypatch.setattr(task_module, "_STEP", 1e-4)
    made, potential = table([frames(n=15)]), network()
    batch = made.batch(np.arange(15))
    plain, smooth = (BeadTask(potential, BeadLossConfig(smoothness=weight)).train() for weight in (0.0, 2.0))
    losses = [float(task(batch.tensors(), task.counts(batch))[0].detach()) for task in (plain, smooth)]
    shift = task_module.displacements(batch.positions)
    assert float(shift.std()) == pytest.approx(1e-4, rel=0.1)
    assert abs(float(shift.mean())) < 3e-5
    square = 0.0
    for first in range(0, 150, 10):
        here = (batch.edges[0] >= first) & (batch.edges[0] < first + 10)
        edges, numbers = batch.edges[:, here] - first, batch.numbers[first : first + 10]

        def energy(y: torch.Tensor, edges=edges, numbers=numbers) -> torch.Tensor:
            nothing = torch.zeros(10, dtype=torch.float64)
            vectors = y[edges[1]] - y[edges[0]]
            terms = potential.atomic_terms(potential.species(numbers), edges, vectors, nothing, nothing)
            return terms.energies.sum() * potential.energy_scale

        hessian = torch.autograd.functional.hessian(energy, batch.positions[first : first + 10]).reshape(30, 30)
        square += float((hessian @ shift[first : first + 10].flatten()).square().sum())
    assert losses[1] - losses[0] == pytest.approx(2.0 * square / (3 * 1e-4**2) / 150, rel=1e-3)


@pytest.mark.parametrize("embedding", ["types", "pairs"])
def test_energy_is_smooth_at_the_cutoff(embedding: str) -> None:
    model = network(cutoff=6.0, embedding=embedding)
    topology = BeadTopology.of(Chains.from_sequence("AG"))
    energies, forces = [], []
    for r in (5.9999, 6.0001):
        x = torch.tensor([[[0.0, 0, 0], [r, 0, 0]]], dtype=torch.float64)
        output = model(bead_graph(x, topology, 6.0, torch.float64))
        energies.append(float(output.energy))
        forces.append(float(output.forces.abs().max()))
    assert energies[0] == pytest.approx(energies[1], abs=1e-9)
    assert max(forces) < 1e-6


def test_the_force_field_is_the_sum_of_its_parts(tmp_path) -> None:
    model = hybrid()
    path = save_model(tmp_path / "hybrid.safetensors", model)
    atoms = [coarse_grained_atoms(SEQUENCE, x) for x in configurations()]
    found = {
        part: CoarseGrainedCalculator(path, part=part).calculate_many(atoms) for part in ("hybrid", "prior", "network")
    }
    for both, known, learned in zip(*found.values(), strict=True):
        assert both["energy"] == pytest.approx(known["energy"] + learned["energy"], abs=1e-12)
        assert both["forces"] == pytest.approx(known["forces"] + learned["forces"], abs=1e-12)
        assert "network" in both["components"]
    again = load_coarse_grained(path)
    assert again.network.hyperparameters == model.network.hyperparameters
    assert np.array_equal(
        CoarseGrainedCalculator(again).calculate_many(atoms)[0]["forces"], found["hybrid"][0]["forces"]
    )
    single = load_coarse_grained(path, dtype="float32")
    assert single.network.dtype == torch.float32
    assert single.prior.length.dtype == torch.float64
    forces = CoarseGrainedCalculator(single).calculate_many(atoms)[0]["forces"]
    assert forces == pytest.approx(found["hybrid"][0]["forces"], abs=1e-5)


def frames(
    name: str = "hairpin", sequence: str = SEQUENCE, n: int = 300, noise: float = 0.0, seed: int = 0
) -> BeadFrames:
    """Forces of a prior and of an attraction between beads far apart in sequence, which a network must learn."""
    x = configurations(sequence, n, seed=seed)
    chains = Chains.from_sequence(sequence)
    with torch.no_grad():
        forces = Prior()(torch.tensor(x), PriorTopology.of(chains)).forces.numpy()
    for i, j in chains.distant:
        vector = x[:, j] - x[:, i]
        r = np.linalg.norm(vector, axis=1, keepdims=True)
        pull = 0.4 * np.exp(-((r - 9.0) ** 2) / 4) * vector / r
        forces[:, i] += pull
        forces[:, j] -= pull
    forces += np.random.default_rng(seed + 1).normal(0, noise, forces.shape)
    origins = np.array([f"run {k % 2}" for k in range(n)])
    return BeadFrames(name, sequence, x, forces, np.full(n, 300.0), origins)


def table(proteins: list[BeadFrames], **loss: float) -> BeadTable:
    config = BeadLossConfig(**{"decoys": 0.0, **loss})
    return BeadTable(Prior(), proteins, cutoff=12.0, loss=config, dtype=torch.float64, seed=0)


def test_what_is_left_for_the_network_is_what_the_prior_does_not_say() -> None:
    p = frames(n=20)
    left = leftover(Prior().requires_grad_(False), p)
    assert np.abs(left.sum(1)).max() < 1e-9
    near = np.unique(Chains.from_sequence(SEQUENCE).distant)
    others = np.setdiff1d(np.arange(10), near)
    assert np.abs(left[:, others]).max() < 1e-12 if len(others) else True
    assert np.abs(left).max() > 0.05


def test_batches_mix_proteins_of_different_length_and_equal_graphs() -> None:
    proteins = [frames(n=5), frames("short", "AWG", n=4, seed=3)]
    made = table(proteins)
    batch = made.batch([7, 0, 3])
    assert batch.positions.shape == (10 + 10 + 3, 3)
    assert int(batch.n_frames) == 3
    edges = {tuple(edge) for edge in batch.edges.T.tolist()}
    x = batch.positions.numpy()
    for i in range(23):
        for j in range(23):
            near = i != j and batch.system[i] == batch.system[j] and np.linalg.norm(x[i] - x[j]) < 12.0
            assert ((i, j) in edges) == bool(near)
    assert made.edge_counts[[7, 0, 3]].sum() == batch.edges.shape[1]
    assert np.allclose(x[:10], proteins[0].positions[0])
    assert np.allclose(batch.positions[20:].numpy(), proteins[1].positions[2])


def test_half_of_the_decoys_have_two_beads_closer_than_any_frame() -> None:
    p = frames(n=40)
    least = closest(p.positions)
    i, j = np.triu_indices(10, 2)
    assert least == np.linalg.norm(p.positions[:, i] - p.positions[:, j], axis=-1).min()
    made = table([p], decoys=0.5)
    batch = made.batch(np.arange(40, 60))
    x = batch.positions.numpy().reshape(20, 10, 3)
    shortest = np.linalg.norm(x[:, i] - x[:, j], axis=-1).min(1)
    assert (shortest[:10] < least).all()
    assert (shortest[:10] > 0.69 * least).all()
    # Two beads of each are moved, and only these.
    moved = np.array([(np.abs(a - p.positions).max(2) > 1e-12).sum(1).min() for a in x[:10]])
    assert (moved == 2).all()
    assert np.isinf(closest(np.zeros((3, 2, 3))))
    assert pressed_together(np.zeros((3, 2, 3)), 4.0, np.random.default_rng(0)).shape == (3, 2, 3)


def test_the_loss_is_the_weighted_mean_square_and_decoys_want_silence() -> None:
    made = table([frames(n=10)], decoys=0.3, decoy_weight=0.5)
    assert len(made) == 13
    batch = made.batch(np.arange(13))
    assert float(batch.forces[batch.real == 0].abs().max()) == 0.0
    task = BeadTask(network(), BeadLossConfig())
    loss, sums = task(batch.tensors(), task.counts(batch))
    output = task.potential(
        AtomGraph(
            batch.numbers, batch.positions, torch.zeros(13, 3, 3), torch.zeros(13, 3, dtype=torch.bool), batch.system,
            batch.edges, torch.zeros(batch.edges.shape[1], 3), torch.zeros(13), torch.ones(13),
        )
    )  # fmt: skip
    error = (output.forces - batch.forces).square().sum(-1)
    wanted = (batch.weight * error).sum() / batch.weight.sum()
    assert float(loss) == pytest.approx(float(wanted), rel=1e-12)
    assert float(sums[INDEX["square"]]) == pytest.approx(float(error[batch.real == 1].sum()), rel=1e-12)
    assert float(batch.weight.sum()) == 10 * (10 + 0.5 * 3)


def test_the_loss_of_a_step_does_not_depend_on_its_batches() -> None:
    made, task = table([frames(n=8), frames("short", "AWG", n=8)]), BeadTask(network(), BeadLossConfig(magnitude=0.1))
    whole = made.batch(np.arange(16))
    parts = [made.batch([0, 9, 3]), made.batch([1, 2, 4, 5, 6, 7, 8]), made.batch([10, 11, 12, 13, 14, 15])]
    counts = sum(task.counts(part) for part in parts)
    assert torch.allclose(counts, task.counts(whole))
    together = sum(float(task(part.tensors(), counts)[0]) for part in parts)
    assert together == pytest.approx(float(task(whole.tensors(), counts)[0]), rel=1e-12)


def test_splits_hold_out_whole_proteins_and_the_ends_of_runs() -> None:
    proteins = [frames(n=40), frames("short", "GWY", n=20)]
    training, validation, held = split_frames(proteins, ("short",), 0.1)
    assert [p.name for p in held] == ["short"]
    assert (len(training[0].positions), len(validation[0].positions)) == (36, 4)
    assert np.array_equal(validation[0].positions, proteins[0].positions[-4:])
    with pytest.raises(InputError, match="short have residues"):
        split_frames([proteins[0], frames("short", "AWK", n=20)], ("short",), 0.1)
    with pytest.raises(InputError, match="too few frames"):
        split_frames([proteins[0], frames("few", "GTY", n=2)], (), 0.1)
    with pytest.raises(InputError, match="nobody"):
        split_frames(proteins, ("nobody",), 0.1)
    with pytest.raises(InputError, match="Nothing is left"):
        split_frames(proteins, ("short", "hairpin"), 0.1)


def recipe(epochs: int = 12, **changes: object) -> BeadRecipe:
    first, second = (
        first_stage(
            max_epochs=epochs, batch_frames=16, lr=5e-3, warmup_steps=5, tensorboard=False, checkpoint_seconds=0
        ),
        second_stage(max_epochs=3, batch_frames=16, warmup_steps=5, tensorboard=False, checkpoint_seconds=0),
    )
    net = BeadNetworkConfig(options=SMALL, dtype="float64")
    entropy = RelativeEntropyConfig(steps=0)
    loss = BeadLossConfig(smooth_functions=1300)  # without products of pairs, which take most of the time
    settings = {"network": net, "loss": loss, "first": first, "second": second, "relative_entropy": entropy, **changes}
    return BeadRecipe(**settings)  # type: ignore[arg-type]


# Half the time of the default.
ONE_LAYER = BeadNetworkConfig(options={**SMALL, "layers": 1}, dtype="float64")


def test_a_network_learns_through_noise_what_the_prior_leaves(tmp_path) -> None:
    """Noise as large as the forces: validation on clean forces must come out far below them."""
    noisy, clean = frames(n=600, noise=0.1), frames(n=60, seed=50)
    prior = Prior().requires_grad_(False)
    result = train_beads([noisy], prior, tmp_path, recipe(epochs=18, network=ONE_LAYER), dataset_hash="abc")
    model = load_coarse_grained(result.path)
    assert model.header.dataset_hash == "abc"
    assert model.header.metrics["validation"]["explained"] > 0.15
    topology = BeadTopology.of(Chains.from_sequence(SEQUENCE))
    with torch.no_grad():
        learned = model(torch.tensor(clean.positions), topology, "network").forces.numpy()
    left = leftover(prior, clean)
    assert np.sqrt(np.mean((learned - left) ** 2)) < 0.6 * np.sqrt(np.mean(left**2))
    rows = [json.loads(line) for line in (tmp_path / "stage-1" / "metrics.jsonl").read_text().splitlines()]
    assert {"explained", "zero_rmse", "slope"} <= set(rows[-1]["validation"])


def test_an_interrupted_training_goes_on_bit_by_bit(tmp_path, monkeypatch) -> None:
    from distillase.training import loop

    data, prior, short = [frames(n=60, noise=0.1)], Prior().requires_grad_(False), recipe(epochs=4)
    whole = train_beads(data, prior, tmp_path / "whole", short)
    saved, step = loop.TrainLoop._step, 0

    def interrupted(self, *words: object) -> None:
        nonlocal step
        step += 1
        if step == 18:  # in the second stage
            self._save()
            raise KeyboardInterrupt
        saved(self, *words)

    monkeypatch.setattr(loop.TrainLoop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_beads(data, prior, tmp_path / "part", short)
    monkeypatch.setattr(loop.TrainLoop, "_step", saved)
    part = train_beads(data, prior, tmp_path / "part", short)
    one, other = (load_coarse_grained(r.path).state_dict() for r in (whole, part))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_initial_weights_come_from_the_seed_alone() -> None:
    made, settings = table([frames(n=10)]), recipe()
    first = fresh_network(settings, (3, 4, 6, 13, 17, 19, 20), made)
    torch.rand(3)
    second = fresh_network(settings, (3, 4, 6, 13, 17, 19, 20), made)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    third = fresh_network(dataclasses.replace(settings, seed=1), (3, 4, 6, 13, 17, 19, 20), made)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))
    assert first.hyperparameters["mean_neighbors"] == pytest.approx(made.mean_neighbors())


def test_mean_forces_count_as_many_frames_as_have_their_error() -> None:
    loss = BeadLossConfig(frame_noise=0.4, most_frames=50.0)
    assert mean_force_weights(np.array([0.4, 0.2, 0.1, 0.01]), loss).tolist() == pytest.approx([1.0, 4.0, 16.0, 50.0])
    p = frames(n=4)
    means = dataclasses.replace(p, errors=np.array([0.4, 0.2, 0.1, 0.01]))
    made = BeadTable(
        Prior(), [p, means], cutoff=12.0, loss=dataclasses.replace(loss, decoys=0.0), dtype=torch.float64, seed=0
    )
    assert made.batch([4, 5]).weight.tolist() == pytest.approx([1.0] * 10 + [4.0] * 10)
    assert made.batch([0]).weight.tolist() == [1.0] * 10
    assert means.select(np.array([1])).errors.tolist() == [0.2]


def test_mean_forces_on_validation_frames_are_left_out() -> None:
    """Else the network would be told about the frames that it is judged by."""
    data = frames(n=100)
    parts = split_frames([data], (), 0.1)
    every = dataclasses.replace(data, errors=np.full(100, 0.1))
    turned = dataclasses.replace(every, positions=every.positions[:, :, [1, 2, 0]] + 5.0)  # as another run has them
    kept = without_validated(turned, parts)
    assert len(kept.positions) == 90
    assert np.array_equal(kept.forces, parts[0][0].forces)
    assert without_validated(dataclasses.replace(every, name="held out"), parts) is None


def test_mean_forces_teach_more_than_as_many_frames(tmp_path) -> None:
    noisy, clean = frames(n=100, noise=0.3), frames(n=60, seed=50)
    means = dataclasses.replace(frames(n=150, seed=9), errors=np.full(150, 0.03))
    prior, topology = Prior().requires_grad_(False), BeadTopology.of(Chains.from_sequence(SEQUENCE))
    left, error = leftover(prior, clean), {}
    for name, extra in (("frames", [frames(n=150, noise=0.3, seed=9)]), ("means", [means])):
        result = train_beads([noisy], prior, tmp_path / name, recipe(epochs=18), means=extra)
        with torch.no_grad():
            learned = load_coarse_grained(result.path)(torch.tensor(clean.positions), topology, "network").forces
        error[name] = np.sqrt(np.mean((learned.numpy() - left) ** 2))
    assert error["means"] < 0.9 * error["frames"]
