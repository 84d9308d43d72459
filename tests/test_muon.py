"""Muon: orthogonal steps, fused maps one by one, torch's own Muon as the oracle, exact resume."""

from __future__ import annotations

import copy

import pytest
import torch

from distillase.training.muon import Muon, orthogonalize


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def take_steps(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], n: int = 3, seed: int = 7) -> None:
    for k in range(n):
        for j, p in enumerate(parameters):
            p.grad = random(*p.shape, seed=seed + 10 * k + j, dtype=p.dtype)
        optimizer.step()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    given = random(3, *shape)
    steps = orthogonalize(given)
    u, _, vh = torch.linalg.svd(given, full_matrices=False)
    inner = u.transpose(1, 2) @ steps @ vh.transpose(1, 2)
    values = torch.diagonal(inner, dim1=1, dim2=2)
    assert torch.allclose(inner, torch.diag_embed(values), atol=1e-12)
    assert ((values > 0.3) & (values < 1.3)).all()


def test_a_vanishing_gradient_moves_nothing() -> None:
    weight = random(4, 4)
    before = weight.clone()
    weight.grad = torch.zeros(4, 4, dtype=torch.float64)
    Muon([weight], [], lr=0.1).step()
    assert torch.equal(weight, before)


def test_side_by_side_maps_are_treated_as_separate_ones() -> None:
    tall, wide = random(12, 4), random(4, 8, seed=1)
    separate = [t.clone() for t in (*tall.split(4), *wide.split(4, dim=1))]
    together, apart = Muon([tall, wide], [], lr=0.1), Muon(separate, [], lr=0.1)
    for k in range(3):
        tall.grad, wide.grad = random(12, 4, seed=20 + k), random(4, 8, seed=30 + k)
        for p, g in zip(separate, (*tall.grad.split(4), *wide.grad.split(4, dim=1)), strict=True):
            p.grad = g.clone()
        together.step()
        apart.step()
    assert torch.allclose(tall, torch.cat(separate[:3]), atol=1e-14)
    assert torch.allclose(wide, torch.cat(separate[3:], dim=1), atol=1e-14)


def test_agrees_with_torch_to_its_bfloat16() -> None:
    mine, theirs = random(32, 32, dtype=torch.float32), random(32, 32, dtype=torch.float32)
    start = mine.clone()
    take_steps(Muon([mine], [], lr=0.1, weight_decay=0.2), [mine])
    take_steps(torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw"), [theirs])
    assert (mine - theirs).norm() < 0.02 * (mine - start).norm()


def test_others_take_the_steps_of_adamw() -> None:
    bias, twin = random(5), random(5)
    take_steps(Muon([random(4, 4)], [bias], lr=0.01), [bias])
    take_steps(torch.optim.AdamW([twin], lr=0.01, weight_decay=0.0), [twin])
    assert torch.allclose(bias, twin, atol=1e-14)


def test_a_resumed_run_takes_the_same_steps() -> None:
    whole = [random(8, 4), random(5, seed=1)]
    halves = [p.clone() for p in whole]
    optimizer = Muon(whole[:1], whole[1:], lr=0.01)
    take_steps(optimizer, whole, seed=1)
    first = Muon(halves[:1], halves[1:], lr=0.01)
    take_steps(first, halves, seed=1)
    second = Muon(halves[:1], halves[1:], lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    take_steps(optimizer, whole, seed=99)
    take_steps(second, halves, seed=99)
    for a, b in zip(whole, halves, strict=True):
        assert torch.equal(a, b)
