"""Dynamics on a teacher's surface that call the teacher once every k steps."""

from .hmc import SelfLearningHMC, effective_sample_size
from .jump import JumpCounts, JumpForces, LearnedJump
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
