"""Dynamics on a teacher's surface that call the teacher once every k steps.

Jumps need torch, which no process that makes a teacher's own dynamics shall load: they are imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .hmc import SelfLearningHMC, effective_sample_size
from .mts import MTSLangevin, MTSVelocityVerlet
from .replicas import ReplicaExchangeHMC
from .resonance import Resonance, resonance
from .temperatures import (
    ModeHeating,
    ReferenceTemperatures,
    TemperatureMonitor,
    element_temperatures,
    reference_temperatures,
    repartition_hydrogen_mass,
)

if TYPE_CHECKING:
    from .jump import JumpCounts, JumpForces, LearnedJump

__all__ = [
    "JumpCounts",
    "JumpForces",
    "LearnedJump",
    "MTSLangevin",
    "MTSVelocityVerlet",
    "ModeHeating",
    "ReferenceTemperatures",
    "ReplicaExchangeHMC",
    "Resonance",
    "SelfLearningHMC",
    "TemperatureMonitor",
    "effective_sample_size",
    "element_temperatures",
    "reference_temperatures",
    "repartition_hydrogen_mass",
    "resonance",
]


def __getattr__(name: str) -> Any:
    if name not in ("JumpCounts", "JumpForces", "LearnedJump"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".jump", __name__), name)
