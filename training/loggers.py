"""Where metrics go: always `metrics.jsonl`, TensorBoard and W&B where asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..ase_calcs.errors import require
from .config import TrainConfig

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends rows to ``metrics.jsonl`` and to the loggers that the recipe names.

    Rows after `resume_step` (written by a run that died after its last checkpoint) are dropped: they come again.
    """

    def __init__(self, folder: Path, config: TrainConfig, *, resume_step: int = 0) -> None:
        self.path = folder / METRICS
        rows = [row for row in read_metrics(self.path) if row["step"] <= resume_step] if resume_step else []
        self.path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._tensorboard: Any = None
        self._wandb: Any = None
        if config.tensorboard:
            board = require("torch.utils.tensorboard", extra="train", purpose="write TensorBoard logs")
            self._tensorboard = board.SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step or None)
        if config.wandb:
            wandb: Any = require("wandb", extra="wandb", purpose="log to Weights & Biases")
            self._wandb = wandb.init(dir=str(folder), resume="allow")

    def write(self, row: dict[str, Any]) -> None:
        """One validation."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        flat = _flatten(row)
        if self._tensorboard is not None:
            for name, value in flat.items():
                self._tensorboard.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(flat, step=row["step"])

    def close(self) -> None:
        """Flush what is buffered."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``; a torn last line is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _flatten(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[f"{prefix}{name}"] = value
    return flat
