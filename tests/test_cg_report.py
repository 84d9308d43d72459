"""`distillase cg report`: a force field that is the reference itself comes out right, and a wrong one does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from distillase.ase_calcs.errors import InputError
from distillase.ase_calcs.modelfile import save_model
from distillase.ase_calcs.potential import ModelHeader
from distillase.ase_calcs.proteins.chains import Chains, extended_chain, write_pdb
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from distillase.datasets.proteins.beads import BeadFrames, save_npz
from distillase.datasets.proteins.mean_force import MeanForces
from distillase.launch.cli import main
from distillase.training.proteins.judge import (
    Candidate,
    JudgeConfig,
    Reference,
    judge,
    unfolding_free_energy,
)
from distillase.training.proteins.judge_page import findings
from distillase.training.proteins.metrics import fit_tica

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

SEQUENCE = "GYDPETG"
NOISE = 0.2  # eV/Å


def made(strength: float = 0.08) -> CoarseGrainedModel:
    model = CoarseGrainedModel(range(1, 21))
    model.prior.angle.data[:, 1] = strength
    return model.requires_grad_(False).eval()


def forces_of(model: CoarseGrainedModel, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(x), model.bind(Chains.from_sequence(SEQUENCE))).forces.numpy()


@pytest.fixture(scope="module")
def reference() -> Reference:
    model, chains = made(), Chains.from_sequence(SEQUENCE)
    start = np.repeat(extended_chain(SEQUENCE, angle=95.0, dihedral=50.0)[None], 48, 0)
    config = SimulationConfig(picoseconds=20, interval=0.5, friction=0.01)
    run = ReplicaLangevin(model, chains, start, config, seed=5).run().positions[4:]
    x = run.transpose(1, 0, 2, 3).reshape(-1, 7, 3)
    rng = np.random.default_rng(0)
    exact = forces_of(model, x)
    origins = np.repeat(["one", "two"], len(x) // 2)
    frames = BeadFrames("turn", SEQUENCE, x, exact + rng.normal(0, NOISE, x.shape), np.full(len(x), 300.0), origins)
    frozen = x[::40]
    means = MeanForces(frozen, exact[::40], np.full(frozen.shape, 1e-3), np.full(frozen.shape, 1e-3))
    return Reference(frames, x[0], means)


def test_the_truth_is_found_to_be_true_and_a_wrong_force_field_wrong(reference) -> None:
    config = JudgeConfig(replicas=32, picoseconds=16)
    (one,) = judge([reference], [Candidate("right", made()), Candidate("wrong", made(-0.08))], config)
    right, wrong = (one.numbers["candidates"][name] for name in ("right", "wrong"))
    assert right["mean_force_error"] < 0.05
    assert wrong["mean_force_error"] > 20 * right["mean_force_error"]
    noise = NOISE * 23.0605  # kcal/mol/Å
    assert right["force_rmse"] == pytest.approx(noise, rel=0.03)
    assert one.numbers["noise"] == pytest.approx(noise, rel=0.05)
    assert right["slope"] == pytest.approx(1.0, abs=0.05)
    assert right["shuffled_rmse"] > 1.5 * right["force_rmse"]
    assert right["divergence"]["angles"] < 3 * one.numbers["floor"]["angles"]
    assert wrong["divergence"]["angles"] > 10 * right["divergence"]["angles"]
    said = {finding["text"].split(" differ")[0]: finding["level"] for finding in findings(one)}
    assert said["Distributions of angles"] == "trust"
    (other,) = judge([reference], [Candidate("wrong", made(-0.08))], config)
    said = {finding["text"].split(" differ")[0]: finding["level"] for finding in findings(other)}
    assert said["Distributions of angles"] == "distrust"
    with pytest.raises(InputError, match="each name once"):
        judge([reference], [Candidate("a", made()), Candidate("a", made())], config)


def test_folding_free_energy() -> None:
    assert unfolding_free_energy(0.5, 300.0) == 0.0
    assert unfolding_free_energy(0.9, 300.0) == pytest.approx(0.0019872 * 300 * np.log(9), rel=1e-4)
    assert np.isnan(unfolding_free_energy(0.0, 300.0))


def test_tica_finds_the_slow_coordinate() -> None:
    """One distance that relaxes slowly and has a small variance, another one that is fast and wide."""
    rng = np.random.default_rng(0)
    n, slow = 20_000, np.zeros(20_000)
    for k in range(1, n):
        slow[k] = 0.99 * slow[k - 1] + 0.01 * rng.normal()
    x = np.zeros((n, 3, 3))
    x[:, 1, 0] = 5 + slow
    x[:, 2, 1] = 8 + rng.normal(0, 0.5, n)
    tica = fit_tica([x])
    assert abs(np.corrcoef(tica.project(x)[:, 0], slow)[0, 1]) > 0.99
    assert tica.correlations[0] == pytest.approx(0.99**10, abs=0.04)
    assert fit_tica([x[:5]]) is None


def test_the_command_writes_a_page(reference, tmp_path, capsys) -> None:
    data, model, other = tmp_path / "frames.npz", tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    save_npz(data, [reference.frames])
    save_model(model, made())
    save_model(other, made(0.0))
    (tmp_path / "native.pdb").write_text(write_pdb(SEQUENCE, [reference.native]))
    names = MeanForces.__dataclass_fields__
    np.savez(tmp_path / "means.npz", **{name: getattr(reference.means, name) for name in names})
    words = ["cg", "report", str(model), str(data), "--out", str(tmp_path / "report"), "--picoseconds", "4"]
    words += ["--native", str(tmp_path / "native.pdb"), "--mean-forces", f"turn={tmp_path / 'means.npz'}"]
    assert main([*words, "--compare", f"no angles={other}", "--replicas", "4"]) == 0
    assert "of the replicas lived" in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    (protein,) = numbers["proteins"]
    assert list(protein["candidates"]) == ["prior", "no angles"]
    assert page.count("<svg") >= 8
    assert "no angles" in page
    assert str(tmp_path) not in page  # names of files, not where they lie
    assert main([*words, "--compare", f"a={other}", "--compare", f"a={other}"]) == 2
    assert "another name" in capsys.readouterr().err
    assert main([*words, "--native", f"nobody={tmp_path / 'native.pdb'}"]) == 2
    assert "names no protein" in capsys.readouterr().err


def test_a_hybrid_is_judged_with_its_parts(reference, tmp_path, capsys) -> None:
    """Its network was never trained, so nothing is gained; and what it has learned from is said of it."""
    pytest.importorskip("allegro")
    from distillase.ase_calcs.modelfile import build_potential
    from distillase.training.proteins.run import assemble

    options = {"scalar_features": 8, "tensor_features": 4, "n_basis": 6, "mlp": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_potential("allegro", tuple(range(1, 21)), options, dtype=torch.float32)
    network.energy_scale.fill_(0.3)
    model = assemble(made(0.06).prior, network, tuple(range(1, 21)), 300.0)
    model.header = ModelHeader(metrics={"trained_on": {SEQUENCE: 10.0}, "mean_forces": {SEQUENCE: 3.0}})
    save_model(tmp_path / "model.safetensors", model)
    save_npz(tmp_path / "frames.npz", [reference.frames])
    np.savez(
        tmp_path / "means.npz", **{name: getattr(reference.means, name) for name in MeanForces.__dataclass_fields__}
    )
    words = ["cg", "report", str(tmp_path / "model.safetensors"), str(tmp_path / "frames.npz"), "--replicas", "4"]
    words += ["--mean-forces", str(tmp_path / "means.npz"), "--out", str(tmp_path / "out"), "--picoseconds", "1"]
    assert main(words) == 0
    assert "of the prior's error" in capsys.readouterr().out
    (protein,) = json.loads((tmp_path / "out" / "report.json").read_text())["proteins"]
    assert list(protein["candidates"]) == ["hybrid", "prior", "network only", "no excluded volume"]
    assert protein["seen"] is True
    page = (tmp_path / "out" / "report.html").read_text()
    assert "has learned from it" in page.replace("\n", " ")
    assert "3 mean forces" in page
    # Only the forces of the prior are nearly right here.
    errors = {name: row["mean_force_error"] for name, row in protein["candidates"].items()}
    assert errors["prior"] < errors["hybrid"] < errors["network only"]


def test_a_rare_state_far_away_is_counted(reference) -> None:
    """Thirty of 6 000 frames lie so far off that a thousandth of them is beyond ten standard deviations."""
    from distillase.training.proteins.judge import _tica_divergence

    x = np.repeat(reference.frames.positions[:1], 6000, 0)
    x = x + np.random.default_rng(1).normal(0, 0.01, x.shape)
    x[3000:3030] *= 1.6
    tica = fit_tica([x])
    assert np.abs(tica.project(x)).max() > 10
    assert _tica_divergence(tica, x, x) == 0.0
    assert 0.0 < _tica_divergence(tica, x[:3000], x) < 0.05
