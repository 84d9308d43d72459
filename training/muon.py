"""Muon: gradient steps whose matrices are orthogonalized, with AdamW for everything that is not a matrix.

Sources: Jordan et al., *Muon: an optimizer for hidden layers in neural networks* (2024), for the update and the
coefficients of the Newton–Schulz iteration; Liu et al., *Muon is scalable for LLM training* (arXiv 2502.16982), for the
scale that lets AdamW and Muon share one learning rate.

torch has a `Muon` of its own, which takes one matrix at a time, in bfloat16. A force field is some forty matrices of
32×32, where that costs more than the whole gradient: here all matrices of one shape are orthogonalized in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

# Quintic Newton–Schulz iteration x → a·x + b·x³ + c·x⁵ on singular values: five rounds bring all of them near one.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
# Root mean square of an AdamW update; a Muon update is scaled to the same.
ADAM_RMS = 0.2


class Muon(Optimizer):
    """Muon for matrices, AdamW for the rest; both decay weights in the decoupled way.

    Parameters
    ----------
    matrices
        Weights (A, B) of linear layers. One that is several square maps side by side, (kA, A) or (A, kA), is taken
        as k matrices.
    others
        Biases, embeddings, readouts.
    lr
        Of both.
    momentum
        Nesterov's.
    weight_decay
        Of matrices.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        groups = [
            {"params": list(matrices), "momentum": momentum, "weight_decay": weight_decay},
            {"params": list(others), "weight_decay": 0.0},
        ]
        super().__init__([g for g in groups if g["params"]], {"lr": lr})
        self._link()

    def _link(self) -> None:
        """An inner AdamW works on the group without momentum, and keeps its state among ours."""
        others = [g for g in self.param_groups if "momentum" not in g]
        self._adam = AdamW(others, fused=True) if others else None
        if self._adam is not None:
            self._adam.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._link()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self._step_matrices(group)
        if self._adam is not None:
            self._adam.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters]
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        wanted = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
        by_shape: dict[tuple[int, int], list[int]] = {}
        for k, p in enumerate(parameters):
            by_shape.setdefault(_block(p), []).append(k)
        for (rows, columns), members in by_shape.items():
            blocks = [_split(wanted[k], rows, columns) for k in members]
            steps = orthogonalize(torch.cat(blocks)) * (-group["lr"] * ADAM_RMS * max(rows, columns) ** 0.5)
            parts = steps.split([len(b) for b in blocks])
            torch._foreach_add_(
                [parameters[k] for k in members],
                [_join(part, parameters[k]) for k, part in zip(members, parts, strict=True)],
            )


def orthogonalize(matrices: Tensor) -> Tensor:
    """(M, A, B) → (M, A, B): the singular vectors stay, the singular values become about one (0.7 to 1.2)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    # The norm bounds the largest singular value; an all-zero gradient stays zero.
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    for _ in range(ROUNDS):
        square = torch.bmm(x, x.transpose(1, 2))
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.transpose(1, 2) if tall else x


def _block(matrix: Tensor) -> tuple[int, int]:
    rows, columns = matrix.shape
    short, long = min(rows, columns), max(rows, columns)
    return (short, short) if long % short == 0 else (rows, columns)


def _split(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """(kA, A) or (A, kA) → (k, A, A)."""
    blocks = matrix.view(matrix.shape[0] // rows, rows, matrix.shape[1] // columns, columns)
    return blocks.transpose(1, 2).reshape(-1, rows, columns)


def _join(blocks: Tensor, like: Tensor) -> Tensor:
    """The reverse of `_split`."""
    _, rows, columns = blocks.shape
    grid = blocks.view(like.shape[0] // rows, like.shape[1] // columns, rows, columns)
    return grid.transpose(1, 2).reshape(like.shape)
