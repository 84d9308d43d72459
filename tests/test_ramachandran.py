"""Which torsions of a backbone are favoured, and which are outliers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distillase.ase_calcs.proteins.ramachandran import (
    GENERAL,
    GLYCINE,
    PREPROLINE,
    PROLINE,
    favoured,
    kinds_of,
    outlier,
    score,
    shares,
)
from distillase.ase_calcs.proteins.residues import CODES


def at(phi: float, psi: float, kind: int) -> torch.Tensor:
    one = [torch.tensor(math.radians(x), dtype=torch.float64) for x in (phi, psi)]
    return score(*one, torch.tensor(kind))


def types(sequence: str) -> torch.Tensor:
    return torch.tensor([CODES.index(letter) for letter in sequence])


@pytest.mark.parametrize(
    ("phi", "psi", "kind", "verdict"),
    [
        (-63, -43, GENERAL, "favoured"),  # α
        (-120, 130, GENERAL, "favoured"),  # β
        (57, 40, GENERAL, "favoured"),  # left-handed α
        (60, -90, GENERAL, "outlier"),
        (0, 0, GENERAL, "outlier"),
        (100, -170, GLYCINE, "favoured"),  # what no other residue may
        (100, -170, GENERAL, "outlier"),
        (-65, 145, PROLINE, "favoured"),
        (-140, 150, PROLINE, "outlier"),  # its ring holds φ
        (-63, -43, PREPROLINE, "favoured"),
        (-95, 0, PREPROLINE, "outlier"),  # the next ring is in the way
        (-95, 0, GENERAL, "favoured"),
    ],
)
def test_regions_are_where_textbooks_have_them(phi: float, psi: float, kind: int, verdict: str):
    found = at(phi, psi, kind)
    said = "favoured" if favoured(found) else "outlier" if outlier(found, torch.tensor(kind)) else "allowed"
    assert said == verdict


def test_kinds_of_residues_follow_from_the_sequence_and_end_with_the_chain():
    starts = torch.zeros(8, dtype=torch.bool)
    starts[[0, 6]] = True
    expected = [GENERAL, GLYCINE, PREPROLINE, PROLINE, PROLINE, GENERAL, PROLINE, GENERAL]
    assert kinds_of(types("AGAPPAPA"), starts).tolist() == expected


def test_scores_are_periodic_continuous_and_differentiable():
    rng = np.random.default_rng(0)
    phi, psi = (torch.as_tensor(rng.uniform(-math.pi, math.pi, 40)).requires_grad_() for _ in range(2))
    kinds = torch.as_tensor(rng.integers(0, 4, 40))
    own = score(phi, psi, kinds)
    assert (score(phi + 2 * math.pi, psi - 2 * math.pi, kinds) - own).abs().max() < 1e-12
    assert (score(phi + 1e-9, psi, kinds) - own).abs().max() < 1e-6
    assert at(180 - 1e-9, 20, GENERAL).item() == pytest.approx(at(-180 + 1e-9, 20, GENERAL).item(), abs=1e-8)
    torch.autograd.gradcheck(lambda a, b: score(a, b, kinds), (phi, psi), eps=1e-7, atol=1e-5)


def test_what_is_uniform_on_the_circle_has_the_shares_of_the_regions():
    """The table's own share of bins, from angles that are drawn and not gridded; the ends of chains do not count."""
    sequence = "A" * 2002
    angles = torch.as_tensor(np.random.default_rng(1).uniform(-math.pi, math.pi, (40, 2002, 3)))
    starts = torch.zeros(2002, dtype=torch.bool)
    starts[0] = True
    good, bad = shares(angles, types(sequence), starts)
    grid = torch.linspace(-179, 179, 180, dtype=torch.float64)
    phi, psi = (torch.deg2rad(x) for x in torch.meshgrid(grid, grid, indexing="ij"))
    table = score(phi, psi, torch.zeros(180, 180, dtype=torch.long))
    assert good == pytest.approx(favoured(table).double().mean().item(), abs=0.01)
    assert bad == pytest.approx(outlier(table, torch.tensor(GENERAL)).double().mean().item(), abs=0.01)


def test_without_inner_residues_there_are_no_shares():
    assert all(math.isnan(x) for x in shares(torch.zeros(1, 2, 3), types("AA"), torch.tensor([True, False])))
