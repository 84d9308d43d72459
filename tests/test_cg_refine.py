"""Refining: what is labelled, what moves the replicas, and a whole round."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from distillase.ase_calcs.errors import InputError
from distillase.ase_calcs.modelfile import load_coarse_grained
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import Chains, coarse_grained_atoms, extended_chain
from distillase.ase_calcs.proteins.committee import Committee
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from distillase.datasets.proteins.alike import squared_differences
from distillase.datasets.proteins.beads import BeadFrames, read_beads, save_npz
from distillase.datasets.proteins.mean_force import load_mean_forces
from distillase.launch.cli import main
from distillase.launch.progress import make_progress
from distillase.training.proteins.config import BeadRecipe
from distillase.training.proteins.refine import RefineConfig, Visited, _Run, choose_different
from distillase.training.proteins.run import split_frames

SEQUENCE = "AGAPGYA"
SMALL = {"scalar_features": 8, "tensor_features": 4, "n_basis": 6, "mlp": 8}


def test_what_is_chosen_is_flagged_and_different() -> None:
    rng = np.random.default_rng(0)
    places = extended_chain(SEQUENCE) + rng.normal(0, 1.0, (5, 7, 3))
    x = np.repeat(places, 20, 0) + rng.normal(0, 0.01, (100, 7, 3))  # five clusters of twenty
    deviations = np.repeat([0.1, 0.5, 0.6, 0.7, 0.8], 20)
    visited = Visited(x, deviations, 0.3, 4, ())
    assert np.array_equal(visited.flagged, np.arange(20, 100))
    flagged, spread = x[visited.flagged], deviations[visited.flagged]
    chosen = choose_different(flagged, spread, x[:0], budget=10, least_difference=0.3)
    assert sorted(chosen // 20) == [0, 1, 2, 3]  # one of each cluster, though the budget allows for ten
    assert spread[chosen[0]] == 0.8
    between = np.sqrt(squared_differences(flagged[chosen], flagged[chosen]))
    assert between[np.triu_indices(4, 1)].min() > 0.3
    assert len(choose_different(flagged, spread, x[:0], budget=2, least_difference=0.3)) == 2
    again = choose_different(flagged, spread, flagged[chosen[:2]], budget=10, least_difference=0.3)
    assert sorted(again // 20) == sorted(chosen[2:] // 20)  # what is labelled already is left alone
    assert not len(choose_different(flagged[:0], spread[:0], x[:0], budget=10, least_difference=0.3))


def hybrid(seed: int, **settings: float) -> CoarseGrainedModel:
    allegro = pytest.importorskip("distillase.ase_calcs.allegro")
    pytest.importorskip("allegro")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = allegro.Allegro(range(1, 21), **SMALL, **settings)
    network.energy_scale.fill_(0.05)
    described = {"architecture": "allegro", "hyperparameters": network.hyperparameters}
    model = CoarseGrainedModel(range(1, 21), network=described)
    model.network.load_state_dict(network.state_dict())
    return model.eval().requires_grad_(False)


def test_the_dynamics_of_a_committee_follow_the_mean_force() -> None:
    members, chains = [hybrid(seed) for seed in range(3)], Chains.from_sequence(SEQUENCE)
    start = extended_chain(SEQUENCE, angle=100.0, dihedral=50.0) + np.random.default_rng(0).normal(0, 0.1, (4, 7, 3))
    committee = Committee(members)
    dynamics = ReplicaLangevin(committee, chains, start, SimulationConfig(timestep=5.0))
    for _ in range(5):
        dynamics.step()
    each = [model(dynamics.x, model.bind(chains)) for model in members]
    mean = torch.stack([one.forces for one in each]).mean(0)
    assert torch.allclose(dynamics.output.forces, mean, rtol=0, atol=1e-6)
    assert torch.allclose(dynamics.output.energy, torch.stack([one.energy for one in each]).mean(0), rtol=0, atol=1e-6)
    assert float((each[0].forces - mean).detach().abs().max()) > 1e-3
    # What it calls a deviation is what the calculator calls one.
    forces, deviations = committee.forces(dynamics.x, committee.bind(chains))
    atoms = [coarse_grained_atoms(SEQUENCE, x) for x in dynamics.x.numpy()]
    for k, found in enumerate(CoarseGrainedCalculator(members, warn_above=None).calculate_many(atoms)):
        assert np.allclose(found["forces_std"], deviations[k], rtol=0, atol=1e-6)
        assert np.allclose(found["forces"], forces[k], rtol=0, atol=1e-6)


def test_replicas_that_go_wrong_are_named_and_used_up_to_there(tmp_path, capsys) -> None:
    members, bad = [hybrid(seed) for seed in range(2)], 1
    x = extended_chain(SEQUENCE, angle=100.0, dihedral=50.0) + np.random.default_rng(0).normal(0, 0.05, (5, 7, 3))
    x[bad, 3] = x[bad, 2] + 0.3
    frames = BeadFrames("chain", SEQUENCE, x, np.zeros_like(x), np.full(5, 300.0), np.full(5, "run"))
    config = RefineConfig(picoseconds=0.4, replicas=4, interval=0.02, threshold=1e-6)
    run = _Run([frames], members[0].prior, {"chain": tmp_path}, tmp_path, BeadRecipe(), config, "", 1, make_progress())
    (tmp_path / "round-0").mkdir()
    found = run.explore(0, "chain", Committee(members))
    assert [text.split(" after ")[0] for text in found.ended] == [f"replica {bad}"]
    said = capsys.readouterr().out
    assert "1 of 4 replicas ended early" in said
    assert found.ended[0] in said
    n_frames = len(found.positions) / 3  # of each that lived
    assert n_frames == int(n_frames) > 5
    written = (tmp_path / "round-0" / "exploration.npz").stat().st_mtime_ns
    again = run.explore(0, "chain", Committee(members))  # read, not simulated
    assert (tmp_path / "round-0" / "exploration.npz").stat().st_mtime_ns == written
    assert np.array_equal(again.positions, found.positions)
    assert again.ended == found.ended


def test_a_committee_is_of_one_kind() -> None:
    one, other = hybrid(0), hybrid(1)
    other.prior.angle.data[:, 1] += 0.1
    for members in ([one], [one, CoarseGrainedModel(range(1, 21))]):
        with pytest.raises(InputError, match="two or more members"):
            Committee(members)
    for members in ([one, other], [one, hybrid(1, cutoff=9.0)]):
        with pytest.raises(InputError, match="one prior"):
            Committee(members)
    with pytest.raises(InputError, match="needs 2 or more"):
        RefineConfig(members=1)


@pytest.fixture(scope="module")
def aga(tmp_path_factory):
    """A reference of AGA and the dataset that was mapped from it."""
    for module in ("openmm", "pdbfixer", "PeptideBuilder", "mdtraj", "allegro"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("refine")
    words = ["--nanoseconds", "0.02", "--interval", "0.1", "--temperatures", "300", "--starts", "extended"]
    assert main(["cg", "reference", "AGA", "--out", str(folder / "aga"), "--workers", "1", *words]) == 0
    assert main(["cg", "map", str(folder / "aga"), "--out", str(folder / "beads.h5")]) == 0
    return folder


def command(folder, out, *further: str) -> list[str]:
    recipe = {f"network.options={json.dumps(SMALL)}", "first.max_epochs=1", "second.max_epochs=1"}
    words = ["cg", "refine", str(folder / "beads.h5"), "--reference", str(folder / "aga"), "--out", str(out)]
    for text in (*recipe, "relative_entropy.steps=0"):
        words += ["--set", text]
    return [*words, "--members", "2", "--picoseconds", "2", "--replicas", "6", "--interval", "0.1", *further]


def test_a_round_labels_learns_and_is_not_repeated(aga, tmp_path, capsys) -> None:
    out = tmp_path / "refined"
    short = ["--budget", "2", "--mean-force-picoseconds", "2.4", "--replicates", "2", "--workers", "2"]
    assert main(command(aga, out, *short)) == 0
    text = capsys.readouterr().out
    assert "frames visited are above" in text
    assert "→" in text
    labels = load_mean_forces(out / "round-0" / "mean-forces")
    assert 1 <= len(labels.positions) <= 2
    with np.load(out / "round-0" / "exploration.npz") as visited:
        flagged, threshold = visited["positions"][visited["deviations"] > visited["threshold"]], visited["threshold"]
    assert len(flagged) > len(labels.positions)
    committee = CoarseGrainedCalculator([out / "round-0" / f"member-{k}" / "model.safetensors" for k in range(2)])
    (trained,), _, _ = split_frames(read_beads(aga / "beads.h5"), (), 0.1)
    found = committee.calculate_many([coarse_grained_atoms("AGA", x) for x in trained.positions])
    assert threshold == pytest.approx(np.quantile([one["forces_std"].max() for one in found], 0.9), rel=1e-3)
    assert all(np.abs(flagged - x).max((1, 2)).min() < 1e-6 for x in labels.positions)
    # The labels have changed what is learned, and the last committee is the one that has learned them.
    models = [out / f"model-{k}.safetensors" for k in range(2)]
    for k, path in enumerate(models):
        before, after = (load_coarse_grained(out / f"round-{r}" / f"member-{k}" / "model.safetensors") for r in (0, 1))
        pairs = list(zip(before.state_dict().values(), after.state_dict().values(), strict=True))
        assert not all(torch.equal(a, b) for a, b in pairs)
        last = load_coarse_grained(path).state_dict()
        assert all(torch.equal(a, last[name]) for name, a in after.state_dict().items())
    atoms = coarse_grained_atoms("AGA", labels.positions[0])
    atoms.calc = CoarseGrainedCalculator(models)
    assert np.isfinite(atoms.get_forces()).all()
    assert atoms.calc.results["forces_std"].max() > 0
    kept = [file for file in out.glob("round-*/**/*") if file.suffix in (".npz", ".safetensors")]
    written = {file: file.stat().st_mtime_ns for file in kept}
    assert main(command(aga, out, *short)) == 0
    assert "training" not in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in kept} == written
    assert main(command(aga, out, *short, "--threshold", "0.1")) == 2
    assert "other settings (`threshold`)" in capsys.readouterr().err


def test_nothing_flagged_is_success(aga, tmp_path, capsys) -> None:
    assert main(command(aga, tmp_path, "--threshold", "100", "--picoseconds", "0.5")) == 0
    assert "nothing is flagged" in capsys.readouterr().out
    assert load_coarse_grained(tmp_path / "model-1.safetensors").network is not None
    assert not (tmp_path / "round-0" / "mean-forces").exists()


def test_references_that_cannot_label(aga, tmp_path, capsys) -> None:
    hotter = ["--set", "temperature=350"]
    wet = tmp_path / "wet"
    shutil.copytree(aga / "aga", wet)
    (record,) = [file for file in wet.glob("*.json") if "system" in json.loads(file.read_text())]
    described = json.loads(record.read_text())
    described["system"]["water"] = "tip3p"
    record.write_text(json.dumps(described))
    x = np.repeat(extended_chain("AAA")[None], 20, 0)
    other = BeadFrames("aga", "AAA", x, np.zeros_like(x), np.full(20, 300.0), np.full(20, "run"))
    save_npz(tmp_path / "other.npz", [other])
    main(["cg", "map", str(tmp_path / "other.npz"), "--out", str(tmp_path / "beads.h5")])
    hot = BeadFrames("aga", "AGA", x, np.zeros_like(x), np.full(20, 350.0), np.full(20, "run"))
    save_npz(tmp_path / "hot.npz", [hot])
    main(["cg", "map", str(tmp_path / "hot.npz"), "--out", str(tmp_path / "hot.h5")])
    capsys.readouterr()
    for words, message in (
        (command(aga, tmp_path / "out", "--members", "1"), "`members` is 1"),
        (command(aga, tmp_path / "out", "--reference", f"gly={aga / 'aga'}"), "names no protein"),
        (command(aga, tmp_path / "out", "--reference", str(wet)), "two folders for aga"),
        (["cg", "refine", str(aga / "beads.h5"), "--reference", str(wet), "--out", "x"], "explicit water (tip3p)"),
        (["cg", "refine", str(aga / "beads.h5"), "--reference", str(tmp_path), "--out", "x"], "holds no reference"),
        (["cg", "refine", str(tmp_path / "beads.h5"), "--reference", str(aga / "aga"), "--out", "x"], "is of AGA"),
        (
            ["cg", "refine", str(tmp_path / "hot.h5"), "--reference", str(aga / "aga"), "--out", "x", *hotter],
            "no frames at [350.0] K",
        ),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in " ".join(error.split())
        assert error.startswith("Error: ")
    assert not (tmp_path / "out").exists()
