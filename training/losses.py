"""Sums over a batch from which losses and metrics are made.

Everything here is a *sum*, never a mean: dividing by counts happens once, with counts over all batches of a step (and,
later, all ranks), so that the gradient does not depend on how structures fall on batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import LossConfig

# Below this squared length the direction and the norm of an error vector are not differentiable.
TINY = 1e-12


def penalty(error: Tensor, config: LossConfig) -> Tensor:
    """(M, C) error vectors → (M,) penalties of the kind the recipe names."""
    squared = (error * error).sum(dim=-1)
    if config.kind == "mse":
        return squared
    norm = torch.sqrt(squared + TINY)
    if config.kind == "norm":
        return norm
    delta = config.huber_delta
    return torch.where(norm < delta, 0.5 * squared / delta, norm - 0.5 * delta)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(M, 3), (M, 3) → (M,) cosine of the angle; smooth for a vanishing `a`."""
    product = torch.sqrt(((a * a).sum(dim=-1) + TINY) * ((b * b).sum(dim=-1) + TINY))
    return (a * b).sum(dim=-1) / product


def angle_mask(forces: Tensor, threshold: float) -> Tensor:
    """(N,) 1 where the reference force exceeds `threshold` eV/Å, else 0."""
    return ((forces * forces).sum(dim=-1) > threshold**2).to(forces.dtype)
