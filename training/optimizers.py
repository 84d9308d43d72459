"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..ase_calcs.errors import require
from .config import TrainConfig
from .muon import Muon


def make_optimizer(config: TrainConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer a recipe names; weight decay applies to the matrices of linear layers.

    AdaBelief (Zhuang et al., NeurIPS 2020) and Yogi (Zaheer et al., NeurIPS 2018) come from `pytorch-optimizer`.
    """
    embeddings = {id(p) for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trained = [p for p in module.parameters() if p.requires_grad]
    # A readout to a single number is a vector: it has no directions to orthogonalize.
    matrices = [p for p in trained if p.ndim == 2 and min(p.shape) > 1 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    others = [p for p in trained if id(p) not in chosen]
    if config.optimizer == "muon":
        return Muon(matrices, others, lr=config.lr, weight_decay=config.weight_decay)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True)
    library: Any = require("pytorch_optimizer", extra="train", purpose=f"train with `optimizer: {config.optimizer}`")
    if config.optimizer == "adabelief":
        return library.AdaBelief(groups, lr=config.lr, weight_decouple=True, rectify=False)
    return library.Yogi(groups, lr=config.lr, weight_decouple=True)


class Schedule:
    """Learning rate as a function of step and progress; the plateau schedule also listens to validations.

    Its whole state is `factor`, `best` and `waited`.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.factor = 1.0
        self.best = math.inf
        self.waited = 0

    def lr(self, step: int, progress: float) -> float:
        """Learning rate of step number `step` (from 0) when a fraction `progress` of the training is done."""
        warmup = min(1.0, (step + 1) / (self.config.warmup_steps + 1))
        return self.config.lr * warmup * self._decay(min(max(progress, 0.0), 1.0))

    def _decay(self, progress: float) -> float:
        final = self.config.lr_final
        if self.config.schedule == "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.config.schedule == "plateau":
            return max(self.factor, final)
        return 1.0

    def validated(self, value: float) -> None:
        """Tell the schedule a validation error."""
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.config.plateau_patience:
            self.factor, self.waited = 0.5 * self.factor, 0

    def state_dict(self) -> dict[str, float]:
        """See the class."""
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """See the class."""
        self.factor, self.best, self.waited = state["factor"], state["best"], int(state["waited"])


class ExponentialAverage:
    """Running average of the weights (EMA), with a short memory at first so that it forgets the initial weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = [p for p in module.parameters() if p.requires_grad]
        self.average = [p.detach().clone() for p in self._live]
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """After every optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, [p.detach() for p in self._live], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and live weights; call it again to go back."""
        for live, average in zip(self._live, self.average, strict=True):
            kept = live.detach().clone()
            live.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Average and number of updates."""
        return {"average": [a.clone() for a in self.average], "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.updates = int(state["updates"])
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)
