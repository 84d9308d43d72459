"""Which (φ, ψ) proteins have: the distributions of Lovell et al., Proteins 50, 437 (2003), doi:10.1002/prot.10286.

They are those of 500 high-resolution crystal structures ("Top500"), for glycine, proline, residues before proline and
all others; each value says which share of residues lies where there are no more of them. Above 2 % a residue counts as
favoured, below 0.05 % (0.2 % for the three special kinds) as an outlier, as in MolProbity. The tables come with the
package `pyrama`; nothing of its code is run.
"""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .residues import CODES

KINDS = ("general", "glycine", "preproline", "proline")
GENERAL, GLYCINE, PREPROLINE, PROLINE = range(len(KINDS))
FAVOURED = 0.02
OUTLIER = (0.0005, 0.002, 0.002, 0.002)  # of each kind
_BINS = 180  # of 2 degrees, with centres at odd degrees


def kinds_of(types: Tensor, starts: Tensor) -> Tensor:
    """(L,) int, which of `KINDS` residues (L,) belong to; chains begin at `starts` (L,)."""
    proline = types == CODES.index("P")
    before = torch.cat([proline[1:] & ~starts[1:], proline.new_zeros(1)])
    kinds = torch.where(before, PREPROLINE, GENERAL)
    kinds = torch.where(types == CODES.index("G"), GLYCINE, kinds)
    return torch.where(proline, PROLINE, kinds)


@cache
def _tables() -> Tensor:
    """(4, 180, 180) float64."""
    found = importlib.util.find_spec("pyrama")
    if found is None or found.origin is None:
        raise InputError(
            "Ramachandran distributions come with the package `pyrama`, which is missing: "
            'pip install "distillase[proteins]"'
        )
    folder = Path(found.origin).parent / "data"
    tables = np.stack([np.loadtxt(folder / f"pref_{kind}.data")[:, 2].reshape(_BINS, _BINS) for kind in KINDS])
    return torch.as_tensor(tables)


def score(phi: Tensor, psi: Tensor, kinds: Tensor) -> Tensor:
    """(…) share of residues that lie where there are no more of them, 0 to 1; bilinear between the centres of bins.

    Parameters
    ----------
    phi, psi
        (…) radians.
    kinds
        (…) int, see `kinds_of`.
    """
    tables = _tables().to(phi)
    place = [torch.rad2deg(x) / 2 + (_BINS - 1) / 2 for x in (phi, psi)]
    a, b = (x.detach().floor() for x in place)
    u, v = place[0] - a, place[1] - b
    a, b = a.long(), b.long()
    found = torch.zeros_like(u)
    for da, wa in ((0, 1 - u), (1, u)):
        for db, wb in ((0, 1 - v), (1, v)):
            found = found + wa * wb * tables[kinds, (a + da) % _BINS, (b + db) % _BINS]
    return found


def favoured(scores: Tensor) -> Tensor:
    """(…) bool."""
    return scores >= FAVOURED


def outlier(scores: Tensor, kinds: Tensor) -> Tensor:
    """(…) bool."""
    return scores < scores.new_tensor(OUTLIER)[kinds]


def shares(torsions: Tensor, types: Tensor, starts: Tensor) -> tuple[float, float]:
    """Of residues that have both φ and ψ the share that is favoured, and that of outliers.

    Parameters
    ----------
    torsions
        (…, L, 3) radians, as of `torsions_of`.
    types, starts
        (L,).
    """
    ends = torch.cat([starts[1:], starts.new_ones(1)])
    inner = ~starts & ~ends
    if not inner.any():
        return math.nan, math.nan
    kinds = kinds_of(types, starts)[inner]
    found = score(torsions[..., inner, 0], torsions[..., inner, 1], kinds.expand(torsions[..., inner, 0].shape))
    outliers = outlier(found, kinds.expand(found.shape))
    return favoured(found).double().mean().item(), outliers.double().mean().item()
