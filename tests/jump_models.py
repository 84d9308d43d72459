"""A molecule whose motion is known in closed form, for tests of jumps."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor

from distillase.ase_calcs.jumps import JumpGraph, JumpNetwork
from distillase.ase_calcs.jumps.base import without_momentum
from distillase.datasets.trajectory import Trajectory

OMEGA = 0.2  # 1/fs: a period of 31 fs
HOME = molecule("CH3CH2OH")
HOME.positions -= HOME.get_center_of_mass()


class Springs(Calculator):
    """Every atom is bound to its place in ethanol by m ω²/2 |x − x₀|²: all swing with ω, and the centre of mass too."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]  # type: ignore[misc]

    def __init__(self, stiffness: float = 1.0) -> None:
        super().__init__()
        self.stiffness = stiffness
        self.calls = 0

    def calculate(self, atoms: Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes):
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self.calls += 1
        k = self.atoms.get_masses()[:, None] * self.stiffness * (OMEGA / units.fs) ** 2
        away = self.atoms.positions - HOME.positions
        self.results = {"energy": float(0.5 * (k * away**2).sum()), "forces": -k * away}


class SpringJump(JumpNetwork):
    """The exact flow of `Springs`: x − x₀ turns into v/ω and back."""

    architecture: ClassVar[str] = "spring-jump"

    def __init__(self, stiffness: float = 1.0, longest: float = 200.0) -> None:
        super().__init__((1, 6, 8), features=2, layers=1, longest=longest, max_displacement=10.0)
        self.omega = OMEGA * stiffness**0.5
        self.to(torch.float64)

    def outputs(self, s: Tensor, velocities: Tensor, directions: Tensor, basis: Tensor, edges: Tensor) -> Tensor:
        raise NotImplementedError("the rates are known in closed form; there is no network to ask")

    def rates(self, graph: JumpGraph) -> tuple[Tensor, Tensor, Tensor | None]:
        n = graph.positions.shape[0] // 9
        away = graph.positions - torch.as_tensor(HOME.positions, dtype=graph.positions.dtype).repeat(n, 1)
        w, t = self.omega, graph.interval[graph.system][:, None]
        half = 0.5 * w * t
        sinc = torch.where(
            t == 0, torch.ones_like(t), torch.sin(w * t) / torch.where(t == 0, torch.ones_like(t), w * t)
        )
        # (1 − cos wt)/t = w · sin²(wt/2)/(wt/2)
        safe = torch.where(t == 0, torch.ones_like(t), half)
        versine = torch.where(t == 0, torch.zeros_like(t), torch.sin(half) ** 2 / safe)
        velocity = graph.velocities * sinc - w * away * versine
        acceleration = -w * w * away * sinc - w * graph.velocities * versine
        return without_momentum(velocity, graph), without_momentum(acceleration, graph), None


def spring_run(seed: int, frames: int = 101, interval: float = 1.0, temperature_K: float = 300.0) -> Trajectory:
    """An exact trajectory on `Springs` at a resting centre of mass."""
    rng, masses = np.random.default_rng(seed), HOME.get_masses()
    kT = units.kB * temperature_K

    def still(x: np.ndarray) -> np.ndarray:
        return x - masses @ x / masses.sum()

    v = still(rng.standard_normal((9, 3)) * np.sqrt(kT / masses)[:, None] * units.fs)
    away = still(rng.standard_normal((9, 3)) * np.sqrt(kT / masses)[:, None] * units.fs / OMEGA)
    t = interval * np.arange(frames)[:, None, None]
    c, s = np.cos(OMEGA * t), np.sin(OMEGA * t)
    x = HOME.positions + away * c + v / OMEGA * s
    forces = -masses[:, None] * (OMEGA / units.fs) ** 2 * (x - HOME.positions)
    return Trajectory(
        HOME.numbers, masses, x, v * c - away * OMEGA * s, interval, forces=forces, group="ethanol", origin=str(seed),
        settings={"teacher": "springs"},
    )  # fmt: skip
