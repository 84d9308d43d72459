"""`distillase cg`: from mapped frames to a prior that runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distillase.ase_calcs.errors import InputError
from distillase.ase_calcs.modelfile import load_coarse_grained
from distillase.ase_calcs.proteins.chains import Chains, extended_chain, write_pdb
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.prior import PriorTopology
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from distillase.datasets.proteins.beads import BeadFrames, load_npz, read_beads, save_npz
from distillase.launch.cli import main
from distillase.launch.config import load_bead_recipe
from distillase.training.proteins.config import BeadRecipe

SHORT = ("--set", "relative_entropy={steps: 2, replicas: 4, md_steps: 2}", "--set", "loss.smooth_functions=1300")

SEQUENCE = "GYDPETG"


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Frames at 300 K and a few at 350 K, from a prior, with noise on the forces as reality has it."""
    model, chains = CoarseGrainedModel(range(1, 21)), Chains.from_sequence(SEQUENCE)
    model.prior.angle.data[:, 1] = 0.08
    config = SimulationConfig(picoseconds=30, friction=0.01, interval=0.5)
    start = np.repeat(extended_chain(SEQUENCE)[None], 64, 0)
    x = ReplicaLangevin(model, chains, start, config, seed=5).run().positions[20:].reshape(-1, 7, 3)
    forces = model.prior.requires_grad_(False)(torch.tensor(x), PriorTopology.of(chains)).forces.numpy()
    forces += np.random.default_rng(0).normal(0, 0.3, forces.shape)
    kelvin = np.full(len(x), 300.0)
    kelvin[-200:] = 350.0
    frames = BeadFrames("hairpin", SEQUENCE, x, forces, kelvin, np.full(len(x), "run"))
    return save_npz(tmp_path_factory.mktemp("cg") / "hairpin.npz", [frames])


def test_the_road_from_frames_to_a_simulation(npz, tmp_path, capsys) -> None:
    data, out = tmp_path / "beads.h5", tmp_path / "run"
    assert main(["cg", "map", str(npz), "--out", str(data)]) == 0
    assert main(["cg", "prior", str(data), "--out", str(out), "--picoseconds", "10"]) == 0
    text = capsys.readouterr().out
    assert "hairpin (GYDPETG)" in text
    assert "100%" in text
    model = load_coarse_grained(out / "prior.safetensors")
    assert model.temperature == 300.0
    assert model.elements == (3, 4, 6, 13, 17, 20)
    (tmp_path / "start.pdb").write_text(write_pdb(SEQUENCE, [extended_chain(SEQUENCE)]))
    words = ["cg", "simulate", str(out / "prior.safetensors"), str(tmp_path / "start.pdb"), "--out", str(out / "md")]
    assert main([*words, "--picoseconds", "5", "--replicas", "3", "--temperature", "320"]) == 0
    assert "mean forces at 300 K" in capsys.readouterr().out
    with np.load(out / "md" / "trajectory.npz") as run:
        assert run["positions"].shape == (5, 3, 7, 3)
        assert str(run["sequence"]) == SEQUENCE
    assert (out / "md" / "replica-0.pdb").read_text().count("MODEL") == 5


def test_training_ends_with_a_hybrid_that_was_simulated(npz, tmp_path, capsys) -> None:
    pytest.importorskip("allegro")
    data, out = tmp_path / "beads.h5", tmp_path / "run"
    main(["cg", "map", str(npz), "--out", str(data)])
    small = "network.options={scalar_features: 8, tensor_features: 4, n_basis: 6, mlp: 8}"
    words = ["cg", "train", str(data), "--out", str(out), "--picoseconds", "5", "--set", small]
    assert main([*words, "--set", "first.max_epochs=2", "--set", "second.max_epochs=1", *SHORT]) == 0
    text = capsys.readouterr().out
    assert "of what the prior leaves" in text
    assert text.count("100%") == 2
    model, prior = load_coarse_grained(out / "model.safetensors"), load_coarse_grained(out / "prior.safetensors")
    assert model.network is not None
    assert prior.network is None
    assert all(torch.equal(a, b) for a, b in zip(model.prior.parameters(), prior.prior.parameters(), strict=True))
    assert "scalar_features: 8" in (out / "config.yaml").read_text()
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert main([*words, "--set", "first.max_epochs=2", "--set", "second.max_epochs=1", *SHORT]) == 0
    assert "of these data and settings already" in capsys.readouterr().out
    assert (out / "model.safetensors").stat().st_mtime_ns == written  # nothing was trained again
    assert main([*words, "--set", "network.cutof=9"]) == 2
    assert "did you mean `cutoff`" in capsys.readouterr().err


def test_the_default_recipe_is_the_default_of_the_code() -> None:
    assert load_bead_recipe() == BeadRecipe()
    large = load_bead_recipe("large")
    assert large.network.options["l_max"] == 2
    assert (large.first.optimizer, large.second.optimizer) == ("adabelief", "yogi")
    with pytest.raises(InputError, match="compile"):
        load_bead_recipe("default", ["first.compile=on"])


def test_a_prior_that_is_not_stable_is_refused(npz, tmp_path, capsys) -> None:
    """Frames of chains that run through themselves, and forces that say nothing."""
    (frames,) = load_npz(npz)
    x = 3.84 * (np.arange(7) % 2)[None, :, None] * np.array([1.0, 0.0, 0.0])  # to and fro between two places
    x = x + np.random.default_rng(0).normal(0, 0.05, (400, 7, 3))
    bad = BeadFrames("bad", SEQUENCE, x, frames.forces[:400], frames.temperatures[:400], frames.origins[:400])
    save_npz(tmp_path / "bad.npz", [bad])
    assert main(["cg", "map", str(tmp_path / "bad.npz"), "--out", str(tmp_path / "bad.h5")]) == 0
    assert main(["cg", "prior", str(tmp_path / "bad.h5"), "--out", str(tmp_path / "bad")]) == 2
    error = capsys.readouterr().err
    assert "not stable" in error or "stiffness" in error
    assert not (tmp_path / "bad" / "prior.safetensors").exists()


def test_user_errors_are_one_paragraph(npz, tmp_path, capsys) -> None:
    data = tmp_path / "beads.h5"
    main(["cg", "map", str(npz), "--out", str(data)])
    capsys.readouterr()
    for words, message in (
        (["cg", "prior", str(data), "--out", str(tmp_path), "--temperature", "400"], "no frames within 1 K of 400 K"),
        (["cg", "prior", str(tmp_path / "none.h5"), "--out", str(tmp_path)], "none.h5"),
        (["cg", "map", str(tmp_path / "nothing"), "--out", str(data)], "holds no reference"),
        (["cg", "map", str(npz), "--out", str(data), "--unit", "pN"], "allowed are"),
        (["cg", "map", str(npz), "--out", str(data), "--temperatures", "350"], "mapped already"),
        (["cg", "simulate", str(data), "none.pdb", "--out", str(tmp_path)], "no file `none.pdb`"),
        (["cg", "simulate", str(data), "A" * 300 + "B", "--out", str(tmp_path)], "is no sequence"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.startswith("Error: ")
        assert "Traceback" not in error


def test_datasets_of_several_proteins_are_merged(npz, tmp_path, capsys) -> None:
    (first,) = load_npz(npz)
    second = BeadFrames(
        "short", "GYD", first.positions[:40, :3], first.forces[:40, :3], first.temperatures[:40], first.origins[:40]
    )
    save_npz(tmp_path / "short.npz", [second])
    data, both = tmp_path / "one.h5", tmp_path / "both.h5"
    main(["cg", "map", str(npz), "--out", str(data)])
    assert main(["cg", "merge", str(data), str(tmp_path / "short.npz"), "--out", str(both)]) == 0
    found = {p.name: p for p in read_beads(both)}
    assert {name: p.sequence for name, p in found.items()} == {"hairpin": SEQUENCE, "short": "GYD"}
    assert np.allclose(found["short"].forces, second.forces, atol=1e-6)
    assert np.array_equal(found["hairpin"].temperatures, first.temperatures)
    capsys.readouterr()
    assert main(["cg", "merge", str(both), str(tmp_path / "short.npz"), "--out", str(tmp_path / "x.h5")]) == 2
    assert "another `--name`" in capsys.readouterr().err
