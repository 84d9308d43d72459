"""Replicas at several temperatures at once, and exchange between them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.modelfile import build_potential, save_model
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import Chains, coarse_grained_atoms, extended_chain
from distillase.ase_calcs.proteins.exchange import ReplicaExchange, temperature_ladder
from distillase.ase_calcs.proteins.geometry import angles
from distillase.ase_calcs.proteins.model import BeadOutput, CoarseGrainedModel
from distillase.ase_calcs.proteins.recording import FrameRecorder, read_frames
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from distillase.ase_calcs.units import KB
from distillase.launch.cli import main

LADDER = (300.0, 430.0, 600.0)
BARRIER, TILT = 0.02, 0.03  # eV
CHAIN = Chains.from_sequence("AGA")


def two_wells() -> CoarseGrainedModel:
    """Three beads whose angle is near 45° or 135°, with a barrier of 1.5 kT between; nothing else but stiff bonds."""
    model = CoarseGrainedModel(range(1, 21))
    with torch.no_grad():
        model.prior.angle[:, 0], model.prior.angle[:, 3] = TILT, BARRIER
        model.prior.log_epsilon.fill_(-30.0)
        model.prior.log_stiffness.fill_(float(np.log(2.0)))
    return model.requires_grad_(False)


def opened(kelvin: float) -> float:
    """The share of angles above 90°: ∫ sin θ exp(−E/kT)."""
    theta = np.linspace(0, np.pi, 4001)
    weight = np.sin(theta) * np.exp(-(TILT * np.cos(theta) + BARRIER * np.cos(4 * theta)) / (KB * kelvin))
    return float(weight[theta > np.pi / 2].sum() / weight.sum())


def begin(copies: int = 100) -> np.ndarray:
    """Half in one well, half in the other."""
    return np.stack([extended_chain("AGA", angle=(45.0, 135.0)[k % 2]) for k in range(copies)])


SETTINGS = SimulationConfig(picoseconds=16, interval=0.12, friction=0.005, timestep=12.0, least_distance=0.01)


def exchanged(seed: int = 0) -> ReplicaExchange:
    return ReplicaExchange(two_wells(), CHAIN, begin(), LADDER, SETTINGS, every=0.036, seed=seed)


def off(positions: np.ndarray) -> tuple[np.ndarray, float]:
    """How far, in standard errors over copies, the share above 90° is from the integral: (K,) at each temperature; and
    the difference between the coldest and the hottest."""
    late = positions[len(positions) // 3 :]
    assert np.isfinite(late).all()
    each = (angles(late.reshape(-1, 3, 3)).reshape(late.shape[:3]) > np.pi / 2).mean(0)  # (K, C)
    wanted = np.array([opened(kelvin) for kelvin in LADDER])

    def sigmas(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
        error = found.std(-1, ddof=1) / np.sqrt(found.shape[-1])
        assert error.max() < 0.025
        return np.abs(found.mean(-1) - exact) / error

    return sigmas(each, wanted), float(sigmas(each[0] - each[-1], wanted[0] - wanted[-1]))


def test_every_rung_samples_the_distribution_of_its_temperature() -> None:
    result = exchanged().exchange()
    shares, difference = off(result.positions)
    assert shares.max() < 4.0
    assert difference < 4.0
    kinetic = result.simulation.temperatures.reshape(3, -1).mean(1)
    assert kinetic == pytest.approx(LADDER, rel=0.01)
    assert ((result.acceptance > 0.3) & (result.acceptance < 0.95)).all()
    assert result.tried.sum() == pytest.approx(100 * 16 / 0.036, rel=0.01)
    assert np.array_equal(np.sort(result.walkers[-1], axis=0), np.repeat(np.arange(3)[:, None], 100, 1))
    assert all(len(set(result.walkers[:, 0, copy])) == 3 for copy in range(5))


def test_a_wrong_criterion_would_be_seen(monkeypatch) -> None:
    right = ReplicaExchange.difference
    monkeypatch.setattr(ReplicaExchange, "difference", lambda self, *words: -right(self, *words))
    assert off(exchanged().exchange().positions)[1] > 6.0


def knows_temperature() -> CoarseGrainedModel:
    """Two weak networks on a soft bond: energy and entropy."""
    model = CoarseGrainedModel(range(1, 21))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        options = {"features": 8, "layers": 1, "cutoff": 9.0}
        made = build_potential(
            "energy-entropy", model.elements, {"base": "painn", "options": options}, dtype=torch.float64
        )
    made.energy_scale.fill_(0.3)
    model.network = made
    with torch.no_grad():
        model.prior.log_stiffness.fill_(float(np.log(0.1)))
    return model.requires_grad_(False)


def test_each_replica_feels_the_forces_of_its_own_temperature() -> None:
    model = knows_temperature()
    x = begin(3) + np.random.default_rng(0).normal(0, 0.2, (3, 3, 3))
    dynamics = ReplicaLangevin(model, CHAIN, x, temperatures_K=np.array(LADDER))
    for k, kelvin in enumerate(LADDER):
        calculator = CoarseGrainedCalculator(model, temperature_K=kelvin)
        wanted = calculator.calculate_many([coarse_grained_atoms("AGA", x[k])])[0]
        assert dynamics.output.forces[k].numpy() == pytest.approx(wanted["forces"], abs=1e-12)
        assert float(dynamics.output.energy[k]) == pytest.approx(wanted["energy"], abs=1e-12)
    with pytest.raises(InputError, match="each of the 3 replicas"):
        ReplicaLangevin(model, CHAIN, x, temperatures_K=np.array([300.0, 400.0]))


def test_one_temperature_for_all_is_the_same_as_that_of_the_settings() -> None:
    x = begin(4)
    for model in (two_wells(), knows_temperature()):
        config = SimulationConfig(picoseconds=0.5, interval=0.1, temperature_K=400.0, least_distance=0.5)
        one = ReplicaLangevin(model, CHAIN, x, config, seed=3).run()
        each = ReplicaLangevin(model, CHAIN, x, config, seed=3, temperatures_K=np.full(4, 400.0)).run()
        assert np.array_equal(one.positions, each.positions)


def test_swaps_ask_for_the_energy_at_the_temperature_of_the_neighbour() -> None:
    model = knows_temperature()
    dynamics = ReplicaExchange(model, CHAIN, begin(2), LADDER[:2], SimulationConfig(least_distance=0.5))
    for _ in range(30):
        dynamics.step()
    x, beta = dynamics.x.numpy(), 1 / (KB * np.array(LADDER[:2]))
    atoms = [coarse_grained_atoms("AGA", one) for one in x]
    energy = np.array(  # at both temperatures (2,), of all four replicas
        [
            [r["energy"] for r in CoarseGrainedCalculator(model, temperature_K=t).calculate_many(atoms)]
            for t in LADDER[:2]
        ]
    )
    low, high = torch.tensor([0, 1]), torch.tensor([2, 3])
    found = dynamics.difference(dynamics._crossed(torch.tensor([2, 3, 0, 1])), low, high)
    wanted = beta[0] * (energy[0, 2:] - energy[0, :2]) + beta[1] * (energy[1, :2] - energy[1, 2:])
    naive = (beta[0] - beta[1]) * (energy[1, 2:] - energy[0, :2])
    assert found.numpy() == pytest.approx(wanted, abs=1e-9)
    assert np.abs(naive - wanted).max() > 1e-3


def test_what_has_moved_has_the_energy_and_forces_of_where_it_is() -> None:
    model = knows_temperature()
    dynamics = ReplicaExchange(model, CHAIN, begin(8), LADDER, SimulationConfig(least_distance=0.5), every=0.03)
    for _ in range(40):
        dynamics.step()
    assert dynamics.accepted.sum() > 10
    before = dynamics.x.clone()
    dynamics.swap()
    assert not torch.equal(before, dynamics.x)
    fresh = dynamics.evaluate(dynamics.x)
    assert torch.allclose(fresh.forces, dynamics.output.forces, rtol=0, atol=1e-10)
    assert torch.allclose(fresh.energy, dynamics.output.energy, rtol=0, atol=1e-10)


class Shrinking(CoarseGrainedModel):
    """A spring and an entropy: ½ k (r − r₀)² + (T/T₀ − 1) s r."""

    stiffness, slope = 0.1, 0.3  # eV/Å², eV/Å
    knows_temperature = True  # type: ignore[assignment]

    def forward(self, positions, topology, part="hybrid", temperature=None):  # type: ignore[no-untyped-def]
        ratio = torch.as_tensor(temperature, dtype=torch.float64).expand(len(positions)) / 300.0 - 1
        vector = positions[:, 1] - positions[:, 0]
        r = vector.norm(dim=-1)
        pull = (self.stiffness * (r - 3.84) + ratio * self.slope) / r
        forces = torch.stack([pull[:, None] * vector, -pull[:, None] * vector], dim=1)
        return BeadOutput({"bond": 0.5 * self.stiffness * (r - 3.84) ** 2 + ratio * self.slope * r}, forces)


def lengths(kelvin: float) -> float:
    """∫ r³ exp(−W/kT) / ∫ r² exp(−W/kT)."""
    r = np.linspace(0.01, 12, 4000)
    energy = 0.05 * (r - 3.84) ** 2 + (kelvin / 300 - 1) * 0.3 * r
    weight = r**2 * np.exp(-(energy - energy.min()) / (KB * kelvin))
    return float((weight * r).sum() / weight.sum())


@pytest.mark.parametrize("criterion", ["right", "one temperature"])
def test_a_free_energy_that_depends_on_temperature_is_sampled_at_every_rung(criterion: str, monkeypatch) -> None:
    if criterion != "right":  # that of energies that do not depend on temperature
        monkeypatch.setattr(ReplicaExchange, "_crossed", lambda self, partner: self.output)
    ladder = (300.0, 340.0, 380.0)
    config = SimulationConfig(
        picoseconds=10, interval=0.1, friction=0.02, timestep=10.0, least_distance=0.01, largest_force=1e3
    )
    start = np.repeat(extended_chain("AG")[None], 200, 0)
    model = Shrinking(range(1, 21))
    result = ReplicaExchange(model, Chains.from_sequence("AG"), start, ladder, config, every=0.02, seed=1).exchange()
    assert result.simulation.survivors == 1.0
    each = np.linalg.norm(np.diff(result.positions[30:], axis=3), axis=-1)[..., 0].mean(0)  # (K, C)
    error = each.std(1, ddof=1) / np.sqrt(each.shape[1])
    wanted = np.array([lengths(kelvin) for kelvin in ladder])
    off = np.abs(each.mean(1) - wanted) / error
    assert off.max() < 4.5 if criterion == "right" else off.max() > 10
    assert wanted[0] - wanted[-1] > 20 * error.max()


def test_a_ladder_has_both_ends_and_about_three_swaps_in_ten_succeed() -> None:
    sequence = "GYDPETGTWG"
    model, chains = CoarseGrainedModel(range(1, 21)).requires_grad_(False), Chains.from_sequence(sequence)
    start = np.repeat(extended_chain(sequence)[None], 8, 0)
    config = SimulationConfig(picoseconds=8, interval=1.0, friction=0.01)
    ladder = temperature_ladder(model, chains, start, 300.0, 480.0, config=config, picoseconds=8)
    assert (ladder[0], ladder[-1]) == (300.0, pytest.approx(480.0))
    assert (np.diff(ladder) > 0).all()
    result = ReplicaExchange(model, chains, start, ladder, config, every=0.2).exchange()
    assert ((result.acceptance > 0.2) & (result.acceptance < 0.6)).all()
    with pytest.raises(InputError, match="does not rise"):
        temperature_ladder(model, chains, start, 300.0, 300.0)
    with pytest.raises(InputError, match="two or more"):
        ReplicaExchange(model, chains, start, [300.0])


def test_a_replica_that_ended_is_not_swapped() -> None:
    config = SimulationConfig(picoseconds=1, interval=0.1, friction=0.02, least_distance=0.5)
    dynamics = ReplicaExchange(two_wells(), CHAIN, begin(2), LADDER, config, every=0.02)
    dynamics.alive[2] = False
    stayed = dynamics.x[2].clone()
    dynamics.exchange()
    assert torch.equal(dynamics.x[2], stayed)
    assert dynamics.tried[0] == (dynamics._attempts + 1) // 2  # of one copy only


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):  # type: ignore[no-untyped-def]
    made = CoarseGrainedModel(range(1, 21)).requires_grad_(False)
    return save_model(tmp_path_factory.mktemp("model") / "prior.safetensors", made)


def command(model_file, out, *more: str) -> list[str]:  # type: ignore[no-untyped-def]
    return ["cg", "simulate", str(model_file), "GYDPETG", "--out", str(out), "--picoseconds", "4", *more]


def test_the_command_exchanges_named_temperatures_or_makes_a_ladder(model_file, tmp_path, capsys) -> None:
    out = tmp_path / "named"
    words = ("--exchange", "--swap-every", "0.1", "--replicas", "2", "--friction", "0.01")
    assert main(command(model_file, out, *words, "--temperatures", "300,340,390")) == 0
    text = capsys.readouterr().out
    assert "390.0" in text
    assert "%" in text
    with np.load(out / "trajectory.npz") as run:
        assert run["positions"].shape == (4, 3, 2, 7, 3)
        assert run["energies"].shape == run["walkers"].shape == (4, 3, 2)
        assert run["temperatures"].tolist() == [300.0, 340.0, 390.0]
        assert ((run["accepted"] > 0) & (run["accepted"] < run["tried"])).all()
    assert sorted(path.name for path in out.iterdir()) == ["replica-0.pdb", "trajectory.npz"]
    assert main(command(model_file, tmp_path / "made", *words, "--hottest", "400")) == 0
    with np.load(tmp_path / "made" / "trajectory.npz") as run:
        assert (run["temperatures"][0], run["temperatures"][-1]) == (300.0, pytest.approx(400.0))
    capsys.readouterr()
    assert main(command(model_file, out, "--temperatures", "300,340")) == 2
    assert "add `--exchange`" in capsys.readouterr().err
    assert main(command(model_file, out, "--exchange", "--temperatures", "300,340", "--hottest", "500")) == 2
    assert "one of the two" in capsys.readouterr().err


def test_an_interrupted_simulation_leaves_its_frames(model_file, tmp_path, capsys, monkeypatch) -> None:
    whole, out = tmp_path / "whole", tmp_path / "part"
    words = ("--replicas", "2", "--interval", "0.5")
    assert main(command(model_file, whole, *words)) == 0
    step, steps = ReplicaLangevin.step, [0]

    def interrupted(self: ReplicaLangevin) -> None:
        steps[0] += 1
        if steps[0] > 2500 / self.timestep:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(ReplicaLangevin, "step", interrupted)
    assert main(command(model_file, out, *words)) == 130
    captured = capsys.readouterr()
    assert "4 frames are in" in captured.out
    assert "begins anew" in captured.err
    with np.load(whole / "trajectory.npz") as one, np.load(out / "trajectory.npz") as other:
        assert len(other["positions"]) == 4
        assert np.array_equal(one["positions"][:4], other["positions"])
        assert np.array_equal(one["energies"][:4], other["energies"])


def test_a_killed_simulation_leaves_pieces_that_no_other_overwrites(model_file, tmp_path, capsys) -> None:
    recorder = FrameRecorder(tmp_path / "frames", frames=2)
    for k in range(5):
        recorder.add(positions=np.full((2, 7, 3), float(k)), energies=np.full(2, float(k)))
    assert read_frames(tmp_path / "frames")["energies"][:, 0].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert main(command(model_file, tmp_path)) == 2
    assert "was killed" in capsys.readouterr().err
    recorder.flush()
    assert read_frames(tmp_path / "frames")["positions"].shape == (5, 2, 7, 3)
    recorder.clear()
    with pytest.raises(DataError, match="no frames"):
        read_frames(tmp_path / "frames")
