"""PaiNN as a jump network: velocities enter as the first vector features. See `distillase.ase_calcs.painn`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..errors import InputError
from ..painn import Message, Update, second_harmonics, traceless_product
from .base import JumpNetwork, bounded


class PaiNNJump(JumpNetwork):
    """PaiNN with vectors (``rank=1``), or with tensors of rank two as well."""

    architecture: ClassVar[str] = "painn-jump"

    def __init__(self, elements: Sequence[int], *, rank: int = 2, dtype: torch.dtype = torch.float32, **common: Any):
        super().__init__(elements, **common, rank=rank)
        if rank not in (1, 2):
            raise InputError(f"`rank` is {rank}; PaiNN has vectors (1) or vectors and rank-two tensors (2).")
        width, layers = self._hyperparameters["features"], self._hyperparameters["layers"]
        self.rank = rank
        self.messages = nn.ModuleList(
            Message(width, 2 * self._hyperparameters["n_basis"], rank=rank, first=False) for _ in range(layers)
        )
        self.updates = nn.ModuleList(Update(width, rank=rank, last=k == layers - 1) for k in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.gate = nn.Linear(width, width)
        self.speed = nn.Linear(width, width)
        self.readout = nn.Linear(width, self.n_outputs, bias=False)
        self.to(dtype)

    def outputs(self, s: Tensor, velocities: Tensor, directions: Tensor, basis: Tensor, edges: Tensor) -> Tensor:
        """See `JumpNetwork.outputs`."""
        channels = silu(self.speed(s))  # (N, F)
        v = velocities.T[:, :, None] * channels  # (3, N, F)
        tensors = [v, traceless_product(v, v)][: self.rank]
        harmonics = [directions, second_harmonics(directions)][: self.rank]
        norms = iter(self.norms)
        for message, update in zip(self.messages, self.updates, strict=True):
            s, tensors = message(next(norms)(s), [_bounded(t) for t in tensors], basis, harmonics, edges)
            s, tensors = update(next(norms)(s), [_bounded(t) for t in tensors])
        return self.readout(tensors[0] * self.gate(s)).permute(1, 2, 0)


def _bounded(tensors: Tensor) -> Tensor:
    """(3, N, F) or (5, N, F)."""
    return bounded(tensors, channels=-1, components=0)
