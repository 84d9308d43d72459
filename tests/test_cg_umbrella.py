"""Umbrella windows of beads and their free-energy profile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.proteins.chains import Chains, extended_chain
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.simulate import SimulationConfig
from distillase.ase_calcs.proteins.umbrella import (
    NativeContacts,
    UmbrellaSampling,
    end_to_end,
    free_energy_profile,
)
from distillase.ase_calcs.units import KB
from distillase.training.proteins.metrics import native_contacts

pymbar = pytest.importorskip("pymbar")

KT = KB * 300.0
CHAIN = Chains.from_sequence("AGA")
WINDOWS = np.repeat(np.linspace(3.5, 7.75, 18), 4)
SPRING = 0.6


def three_beads() -> CoarseGrainedModel:
    model = CoarseGrainedModel(range(1, 21))
    with torch.no_grad():
        model.prior.angle[:, 1] = 0.1
    return model.requires_grad_(False)


def start() -> np.ndarray:
    """A triangle with the distance of its window."""
    half = np.minimum(WINDOWS / 2, 3.80)
    x = np.zeros((len(WINDOWS), 3, 3))
    x[:, 1, 0], x[:, 2, 0], x[:, 1, 1] = half, 2 * half, np.sqrt(3.84**2 - half**2)
    return x


def settings(**changes: float) -> SimulationConfig:
    return SimulationConfig(**{"picoseconds": 16, "interval": 0.05, "friction": 0.01, **changes})


def exact(d: np.ndarray) -> np.ndarray:
    """−kT ln p(d): d · exp(−E(d)/kT) times an integral over both bonds, each with the weight r exp(−bond energy/kT).

    With d, r, s the sides of the triangle the volume element is d r s.
    """
    model = three_beads()
    topology = model.bind(CHAIN)
    r = np.linspace(3.2, 4.5, 60)
    profile = []
    for one in d:
        a, b = (g.ravel() for g in np.meshgrid(r, r))
        possible = (a + b > one) & (np.abs(a - b) < one)
        a, b = a[possible], b[possible]
        cosine = (a**2 + one**2 - b**2) / (2 * a * one)
        x = np.zeros((len(a), 3, 3))
        x[:, 1, 0], x[:, 1, 1] = a * cosine, a * np.sqrt(np.maximum(0, 1 - cosine**2))
        x[:, 2, 0] = one
        energy = model(torch.as_tensor(x), topology).energy.numpy()
        profile.append(-KT * np.log(np.sum(a * b * one * np.exp(-energy / KT))))
    return np.array(profile)


def test_the_profile_of_a_distance_is_the_integral_over_everything_else() -> None:
    umbrella = UmbrellaSampling(three_beads(), CHAIN, start(), end_to_end, WINDOWS, SPRING, settings(), seed=1)
    result = umbrella.run_windows()
    edges = np.linspace(3.6, 7.4, 20)
    profile = result.profile(bins=edges)
    fine = edges[:-1, None] + np.diff(edges)[0] * (np.arange(8) + 0.5) / 8  # means over bins: the profile is steep
    wanted = -KT * np.log(np.exp(-exact(fine.ravel()) / KT).reshape(fine.shape).mean(1))
    # An offset is free; take the one that fits best.
    weight = 1 / (profile.error + 0.002) ** 2
    difference = profile.free_energy - wanted
    difference -= (weight * difference).sum() / weight.sum()
    assert np.ptp(wanted) > 4 * KT
    assert 0 < np.median(profile.error) < 0.25 * KT
    assert (np.abs(difference) < 4 * profile.error + 0.05 * KT).all()
    assert np.sqrt(np.mean(difference**2)) < 0.15 * KT
    assert profile.overlap > 0.01
    # The springs matter: without windows the beads hardly ever come that close.
    assert (np.abs(result.variable[80:].mean(0) - WINDOWS) < 1.0).all()


def test_springs_push_along_the_gradient_of_the_variable() -> None:
    x = torch.tensor(extended_chain("GYDPETG")[None] + np.random.default_rng(0).normal(0, 0.5, (2, 7, 3)))
    chains, model = Chains.from_sequence("GYDPETG"), three_beads()
    native = extended_chain("GYDPETG", angle=95.0, dihedral=50.0)
    for variable in (end_to_end, NativeContacts(native)):
        umbrella = UmbrellaSampling(model, chains, x.numpy(), variable, [0.2, 9.0], [0.5, 0.1])
        step = 1e-5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        up, down = umbrella.evaluate(x + step).energy, umbrella.evaluate(x - step).energy
        slope = -2 * (umbrella.evaluate(x).forces * step).sum((1, 2))
        assert torch.allclose(up - down, slope, rtol=1e-5, atol=1e-11)
        wanted = 0.5 * umbrella.stiffness * (variable(x) - umbrella.centres) ** 2
        assert torch.allclose(umbrella.evaluate(x).energies["umbrella"], wanted)


def test_contacts_are_those_of_the_analysis() -> None:
    native = extended_chain("A" * 10, angle=95.0, dihedral=50.0)
    x = native + np.random.default_rng(0).normal(0, 1.0, (20, 10, 3))
    assert NativeContacts(native)(torch.tensor(x)).numpy() == pytest.approx(native_contacts(x, native), abs=1e-12)
    with pytest.raises(InputError, match="no contacts"):
        NativeContacts(extended_chain("AGA"))


def test_what_cannot_be_put_together_is_refused() -> None:
    model, rng = three_beads(), np.random.default_rng(0)
    with pytest.raises(InputError, match="72 starting configurations"):
        UmbrellaSampling(model, CHAIN, start(), end_to_end, [1.0, 2.0], 1.0)
    with pytest.raises(InputError, match="stiffness"):
        UmbrellaSampling(model, CHAIN, start(), end_to_end, WINDOWS, -1.0)
    with pytest.raises(InputError, match="differentiate"):
        UmbrellaSampling(model, CHAIN, start(), lambda x: x.detach()[:, 0, 0], WINDOWS, 1.0)
    with pytest.raises(DataError, match="do not overlap"):
        free_energy_profile(
            [rng.normal(c, 0.05, 200) for c in (0.0, 5.0)], np.array([0.0, 5.0]), np.full(2, KT / 0.0025), 300.0
        )
    with pytest.raises(DataError, match="5 samples"):
        free_energy_profile([rng.normal(0, 1, 5)], np.zeros(1), np.ones(1), 300.0)
    config = settings(picoseconds=1.0, largest_force=0.01)
    result = UmbrellaSampling(model, CHAIN, start(), end_to_end, WINDOWS, SPRING, config).run_windows()
    with pytest.raises(DataError, match="windows ended early"):
        result.profile()


def test_the_error_is_that_of_repetitions() -> None:
    """Free particles in harmonic windows: both halves are equally likely, and off by as much as is said."""
    rng, centres = np.random.default_rng(3), np.linspace(0, 10, 21)
    ratios = []
    for _ in range(20):
        samples = [rng.normal(c, 0.5, 60) for c in centres]
        springs = np.full(21, KT / 0.5**2)
        profile = free_energy_profile(samples, centres, springs, 300.0, bins=np.array([1.0, 5.0, 9.0]))
        ratios.append(profile.free_energy.max() / profile.error[np.argmax(profile.free_energy)])
    assert profile.samples.sum() > 800
    assert 0.6 < np.sqrt(np.mean(np.square(ratios))) < 1.5
