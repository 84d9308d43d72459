"""Smooth forces in place of noisy ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.proteins.chains import Chains, extended_chain
from distillase.ase_calcs.proteins.prior import Prior
from distillase.datasets.proteins.beads import BeadFrames
from distillase.training.proteins.config import BeadLossConfig
from distillase.training.proteins.smoothing import (
    SmoothForces,
    derivatives,
    fit_smooth_forces,
    smooth_functions,
    smoothed,
)
from distillase.training.proteins.task import leftover

SEQUENCE = "GYDPETG"
LOSS = BeadLossConfig(frame_noise=0.05)


def prior() -> Prior:
    return Prior().requires_grad_(False)


def shapes(n: int, seed: int = 0, sequence: str = SEQUENCE) -> np.ndarray:
    x = extended_chain(sequence, angle=110, dihedral=60)
    return x + np.random.default_rng(seed).normal(0, 0.25, (n, *x.shape))


def pull(x: np.ndarray) -> np.ndarray:
    """Forces of what is no sum of the prior's terms: a contact of the ends that depends on the handedness between."""
    t = torch.as_tensor(x).requires_grad_()
    a, b, c = t[:, 1] - t[:, 0], t[:, 2] - t[:, 1], t[:, 3] - t[:, 2]
    handed = (torch.linalg.cross(a, b) * c).sum(-1) / 50
    distance = (t[:, -1] - t[:, 0]).norm(dim=-1)
    energy = 0.2 * torch.tanh(handed) * torch.exp(-((distance - 9) ** 2) / 8) + 0.05 * torch.cos(distance)
    return -torch.autograd.grad(energy.sum(), t)[0].numpy()


def frames(n: int, noise: float, seed: int = 0, kelvin: float = 300.0, name: str = "one") -> BeadFrames:
    x = shapes(n, seed)
    empty = BeadFrames(name, SEQUENCE, x, np.zeros_like(x), np.full(n, kelvin), np.full(n, "run"))
    forces = pull(x) - leftover(prior(), empty)
    forces += np.random.default_rng(seed + 1).normal(0, noise, x.shape)
    return dataclasses.replace(empty, forces=forces)


def error(fit: SmoothForces, x: np.ndarray) -> float:
    """Of its forces, as a share of what there is to find."""
    return float(np.sqrt(((fit.forces(x) - pull(x)) ** 2).mean() / (pull(x) ** 2).mean()))


def test_forces_are_those_of_an_energy_that_knows_left_from_right() -> None:
    chains, x = Chains.from_sequence(SEQUENCE), shapes(30)
    functions = smooth_functions(chains, x, 4000)
    assert functions is not None
    one = torch.as_tensor(x[0])
    count = len(functions(one))
    weights = np.random.default_rng(0).normal(size=count)
    fit = SmoothForces(functions, weights, 0.0, 0.0)
    forces = fit.forces(x[:2])[0]
    for bead, axis in ((0, 0), (3, 1), (6, 2)):
        step = torch.zeros_like(one)
        step[bead, axis] = 1e-4
        slope = float((functions(one + step) - functions(one - step)) @ torch.as_tensor(weights)) / 2e-4
        assert forces[bead, axis] == pytest.approx(-slope, abs=1e-4 * np.abs(forces).max())
    assert np.abs(forces.sum(0)).max() < 1e-4 * np.abs(forces).max()
    turned = torch.as_tensor(x[0] @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0])
    mirrored = torch.as_tensor(x[0] * [-1, 1, 1])
    rotated = turned if torch.linalg.det(turned[1:4] - turned[0]) * torch.linalg.det(one[1:4] - one[0]) > 0 else -turned
    assert float((functions(rotated + 5.0) - functions(one)).abs().max()) < 1e-9
    assert float((functions(mirrored) - functions(one)).abs().max()) > 0.1
    assert derivatives(functions, x[:3]).shape == (3, count, 21)


def test_noise_is_averaged_away() -> None:
    """Where noise is ten times the forces, what is left after the fit is a fraction of them."""
    size = float(np.sqrt((pull(shapes(100)) ** 2).mean()))
    x = shapes(200, seed=9)
    loud = fit_smooth_forces(prior(), frames(4000, 10 * size), (), dataclasses.replace(LOSS, frame_noise=10 * size))
    assert loud is not None
    assert error(loud, x) < 0.75
    assert 0 < loud.explained < 0.01  # of all, a hundredth of which is not noise
    clean = fit_smooth_forces(prior(), frames(1500, 0.1 * size), (), dataclasses.replace(LOSS, frame_noise=0.1 * size))
    assert clean is not None
    assert error(clean, x) < 0.15
    assert clean.explained > 0.97


def test_pure_noise_teaches_nothing() -> None:
    one = frames(300, 0.0)
    noise = np.random.default_rng(5).normal(0, 0.3, one.forces.shape)
    one = dataclasses.replace(one, forces=one.forces - pull(one.positions) + noise)
    fit = fit_smooth_forces(prior(), one, (), dataclasses.replace(LOSS, frame_noise=0.3))
    assert fit is not None
    assert np.sqrt((fit.forces(shapes(100, 3)) ** 2).mean()) < 0.05


def test_mean_forces_are_taken_up() -> None:
    size = float(np.sqrt((pull(shapes(100)) ** 2).mean()))
    loss = dataclasses.replace(LOSS, frame_noise=10 * size)
    few = frames(300, 10 * size)
    means = dataclasses.replace(frames(150, size, seed=3), errors=np.full(150, size))
    x = shapes(200, seed=9)
    alone, both = (fit_smooth_forces(prior(), few, known, loss) for known in ((), (means,)))
    assert alone is not None
    assert both is not None
    assert error(both, x) < 0.85 * error(alone, x)


def test_each_temperature_has_its_own_and_what_is_too_long_is_left_as_it_is() -> None:
    size = float(np.sqrt((pull(shapes(100)) ** 2).mean()))
    cold, hot = frames(400, size), frames(400, size, seed=2, kelvin=400.0)
    both = BeadFrames(
        "one", SEQUENCE, *(np.concatenate([getattr(p, f) for p in (cold, hot)]) for f in ("positions", "forces")),
        np.concatenate([cold.temperatures, hot.temperatures]), np.concatenate([cold.origins, hot.origins]),
    )  # fmt: skip
    loss = dataclasses.replace(LOSS, frame_noise=size)
    found, shares = smoothed(prior(), [both], [], loss, temperature=300.0)
    assert list(shares) == ["one, 300 K", "one, 400 K"]
    assert sum(len(p.positions) for p in found) == 800
    left = np.concatenate([leftover(prior(), p) for p in found])
    wanted = np.concatenate([pull(p.positions) for p in found])
    assert ((left - wanted) ** 2).mean() < 0.25 * size**2
    means = dataclasses.replace(cold, errors=np.full(400, size))
    kept, none = smoothed(prior(), [both], [means], dataclasses.replace(loss, smooth_functions=50), temperature=300.0)
    assert kept == [both, means]
    assert none == {}
    with pytest.raises(InputError, match="smooth_functions"):
        BeadLossConfig(smooth_functions=-1)


def test_short_and_broken_chains_have_what_they_can_have() -> None:
    for sequence, least in (("AG", 1), ("AGA", 6), ("AG:GA", 12)):
        chains = Chains.from_sequence(sequence)
        x = shapes(20, sequence=sequence)
        functions = smooth_functions(chains, x, 4000)
        assert functions is not None
        assert len(functions(torch.as_tensor(x[0]))) > least
    assert smooth_functions(Chains.from_sequence("A"), np.zeros((1, 1, 3)), 4000) is None


def test_runs_of_one_frame_and_beads_on_a_line() -> None:
    size = float(np.sqrt((pull(shapes(100)) ** 2).mean()))
    one = frames(400, 0.3 * size)
    one = dataclasses.replace(one, origins=np.array([f"run {k}" for k in range(400)]))
    fit = fit_smooth_forces(prior(), one, (), dataclasses.replace(LOSS, frame_noise=0.3 * size))
    assert fit is not None
    assert fit.explained > 0.5
    single = fit_smooth_forces(prior(), one.select(np.arange(1)), (), LOSS)
    assert single is not None
    assert np.abs(single.forces(one.positions[:2])).max() == 0  # nothing to check it on
    straight = one.positions.copy()
    straight[7, 0] = 2 * straight[7, 1] - straight[7, 2]
    with pytest.raises(DataError, match="on a line"):
        fit_smooth_forces(prior(), dataclasses.replace(one, positions=straight), (), LOSS)
