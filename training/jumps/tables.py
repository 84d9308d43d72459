"""What jump networks learn from, in memory: windows of trajectories, or structures with forces and drawn velocities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ...ase_calcs.errors import DataError
from ...ase_calcs.jumps.graph import JumpGraph
from ...ase_calcs.units import FS, KB
from ...datasets.trajectory import Trajectory
from .topology import Topology, find_topology


@dataclass(frozen=True)
class JumpBatch:
    """B windows, N atoms in all. The first fields are those of `JumpGraph`.

    Attributes
    ----------
    displacement, velocity_change
        (N, 3) Å and Å/fs, what the network shall predict; the centre of mass and its motion are taken out.
    forces
        (N, 3) eV/Å at the start; NaN where unknown.
    bonds, angles, dihedrals
        (2, M), (3, M), (4, M) indices into the atoms of the batch.
    """

    numbers: Tensor
    masses: Tensor
    system: Tensor
    positions: Tensor
    velocities: Tensor
    edges: Tensor
    hops: Tensor
    interval: Tensor
    displacement: Tensor
    velocity_change: Tensor
    forces: Tensor
    bonds: Tensor
    angles: Tensor
    dihedrals: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The fields in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> JumpBatch:
        """A copy on another device."""
        return JumpBatch(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @property
    def graph(self) -> JumpGraph:
        """What the network sees."""
        return JumpGraph(**{field.name: getattr(self, field.name) for field in fields(JumpGraph)})


class _Molecules:
    """Trajectories as one list of atoms, with the topology of each molecule."""

    def __init__(self, trajectories: Sequence[Trajectory], *, cutoff: float, dtype: torch.dtype) -> None:
        self.trajectories, self.cutoff, self.dtype = list(trajectories), cutoff, dtype
        known: dict[bytes, Topology] = {}
        self.topologies: list[Topology] = []
        for run in self.trajectories:
            key = run.numbers.tobytes() + run.group.encode()
            if key not in known:
                known[key] = find_topology(run.numbers, run.positions[0])
            self.topologies.append(known[key])
        self.pairs = [np.argwhere(~np.eye(len(t.hops), dtype=bool)).T for t in self.topologies]

    def collate(self, parts: Sequence[_Part], rotation: Sequence[np.ndarray]) -> JumpBatch:
        """Join windows; each is turned by its rotation."""
        columns: dict[str, list[np.ndarray]] = {name: [] for name in _PER_ATOM}
        indices: dict[str, list[np.ndarray]] = {name: [] for name in ("edges", "bonds", "angles", "dihedrals")}
        hops, system, offset = [], [], 0
        for number, (part, turn) in enumerate(zip(parts, rotation, strict=True)):
            run, topology = self.trajectories[part.run], self.topologies[part.run]
            i, j = self.pairs[part.run]
            near = ((part.positions[i] - part.positions[j]) ** 2).sum(axis=1) < self.cutoff**2
            indices["edges"].append(np.stack([i[near], j[near]]) + offset)
            hops.append(topology.hops[i[near], j[near]])
            for name in ("bonds", "angles", "dihedrals"):
                indices[name].append(getattr(topology, name) + offset)
            columns["numbers"].append(run.numbers)
            columns["masses"].append(run.masses)
            for name in ("positions", "velocities", "displacement", "velocity_change", "forces"):
                columns[name].append(_still(getattr(part, name), run.masses, name) @ turn.T)
            system.append(np.full(len(run.numbers), number))
            offset += len(run.numbers)

        def real(array: np.ndarray) -> Tensor:
            return torch.as_tensor(array).to(torch.int64 if array.dtype.kind in "iu" else self.dtype)

        return JumpBatch(
            system=real(np.concatenate(system)),
            hops=real(np.concatenate(hops)),
            interval=real(np.array([part.interval for part in parts])),
            **{name: real(np.concatenate(values)) for name, values in columns.items()},
            **{name: real(np.concatenate(values, axis=1)) for name, values in indices.items()},
        )


_PER_ATOM = ("numbers", "masses", "positions", "velocities", "displacement", "velocity_change", "forces")


@dataclass(frozen=True)
class _Part:
    run: int
    positions: np.ndarray
    velocities: np.ndarray
    displacement: np.ndarray
    velocity_change: np.ndarray
    forces: np.ndarray
    interval: float


def _still(vectors: np.ndarray, masses: np.ndarray, name: str) -> np.ndarray:
    """Without the motion of the centre of mass; forces as they are."""
    if name == "forces":
        return vectors
    return vectors - (masses[:, None] * vectors).sum(axis=0) / masses.sum()


class WindowTable:
    """Windows of k small steps, every other one played backwards.

    Parameters
    ----------
    trajectories
        With velocities.
    spans
        fs, lengths of the jumps; each a multiple of the interval between the frames.
    every
        A window begins every so many frames.
    cutoff
        Å, of the network.
    rotations, seed
        See `JumpDataConfig.rotations`; a batch is turned in the same way whenever it is drawn.

    Raises
    ------
    DataError
        A span is no multiple of the interval, or no trajectory is as long as a window.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        spans: Sequence[float],
        cutoff: float,
        every: int = 1,
        rotations: Literal["off", "batch", "per_graph"] = "off",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._molecules = _Molecules(trajectories, cutoff=cutoff, dtype=dtype)
        self.rotations, self.seed = rotations, seed
        windows = []
        for run, trajectory in enumerate(trajectories):
            for span in spans:
                frames = span / trajectory.interval
                if abs(frames - round(frames)) > 1e-6 or round(frames) < 1:
                    raise DataError(
                        f"A jump of {span:g} fs is no multiple of the {trajectory.interval:g} fs between the frames of "
                        f"{trajectory.origin or 'a trajectory'}. Store frames at that interval, or change `data.k`."
                    )
                starts = np.arange(0, len(trajectory) - round(frames), every)
                windows.append(np.stack([np.full_like(starts, run), starts, np.full_like(starts, round(frames))]))
        self.windows = np.concatenate(windows, axis=1).T if windows else np.zeros((0, 3), dtype=int)  # (W, 3)
        if not len(self.windows):
            raise DataError("No trajectory is as long as one jump. Make longer ones, or a smaller `data.k`.")
        sizes = np.array([len(t.numbers) for t in trajectories])[self.windows[:, 0]]
        self.edge_counts = sizes * (sizes - 1)

    def __len__(self) -> int:
        return len(self.windows)

    def begin_epoch(self, epoch: int) -> None:
        """See `TaskTable`; windows are the same in all."""

    def batch(self, chosen: Sequence[int] | np.ndarray) -> JumpBatch:
        """Collate windows."""
        chosen = np.asarray(chosen)
        parts = []
        # Every other window is seen backwards, as in a film: the same laws of motion, and for a thermostatted run in
        # equilibrium the same probabilities.
        for (run, start, n), backwards in zip(self.windows[chosen].tolist(), chosen % 2, strict=True):
            t = self._molecules.trajectories[run]
            first, last, sign = (start + n, start, -1.0) if backwards else (start, start + n, 1.0)
            parts.append(
                _Part(
                    run,
                    t.positions[first],
                    sign * t.velocities[first],
                    t.positions[last] - t.positions[first],
                    sign * (t.velocities[last] - t.velocities[first]),
                    t.forces[first] if t.forces is not None else np.full_like(t.positions[first], np.nan),
                    n * t.interval,
                )
            )
        return self._molecules.collate(parts, self._rotations(chosen))

    def _rotations(self, chosen: np.ndarray) -> list[np.ndarray]:
        if self.rotations == "off":
            return [np.eye(3)] * len(chosen)
        seeds = [chosen.tolist()] * len(chosen) if self.rotations == "batch" else [[k] for k in chosen.tolist()]
        rngs = [np.random.default_rng([self.seed, *seed]) for seed in seeds]
        return [Rotation.random(random_state=rng).as_matrix() for rng in rngs]


def _starts(trajectories: Sequence[Trajectory], every: int) -> list[np.ndarray]:
    return [np.arange(0, len(t), every) for t in trajectories]


class FlowTable:
    """Structures with forces; velocities are drawn in every epoch, from Maxwell and Boltzmann.

    `displacement` of a batch is empty of meaning (zeros); `velocity_change` holds the accelerations F/m, Å/fs².

    Parameters
    ----------
    trajectories
        Frames with forces, a dataset's too (see `read_frames`); their own velocities are not used.
    longest
        fs; durations are drawn between 0 and this.
    temperatures_K
        Lowest and highest; drawn evenly.
    instant
        Share of examples with duration 0.
    every
        One frame in so many is used.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        *,
        longest: float,
        temperatures_K: tuple[float, float],
        instant: float,
        cutoff: float,
        every: int = 1,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if any(t.forces is None for t in trajectories):
            raise DataError(
                "Mean-flow training needs forces for every frame; label them, or use `data.source: windows`."
            )
        self._molecules = _Molecules(trajectories, cutoff=cutoff, dtype=dtype)
        self.longest, self.temperatures, self.instant, self.seed = longest, temperatures_K, instant, seed
        self.frames = np.concatenate(
            [np.stack([0 * starts + run, starts]) for run, starts in enumerate(_starts(trajectories, every))], axis=1
        ).T
        self.epoch = 0
        sizes = np.array([len(t.numbers) for t in trajectories])[self.frames[:, 0]]
        self.edge_counts = sizes * (sizes - 1)

    def __len__(self) -> int:
        return len(self.frames)

    def begin_epoch(self, epoch: int) -> None:
        """See `TaskTable`."""
        self.epoch = epoch

    def batch(self, chosen: Sequence[int] | np.ndarray) -> JumpBatch:
        """Collate frames with velocities and durations that each frame draws anew in every epoch."""
        chosen = np.asarray(chosen)
        parts = []
        for number, (run, frame) in zip(chosen.tolist(), self.frames[chosen].tolist(), strict=True):
            rng = np.random.default_rng([self.seed, self.epoch, number])
            t = self._molecules.trajectories[run]
            assert t.forces is not None
            kT = KB * rng.uniform(*self.temperatures)
            # Å per ASE time to Å/fs.
            velocities = rng.standard_normal(t.positions[frame].shape) * np.sqrt(kT / t.masses)[:, None] * FS
            duration = 0.0 if rng.uniform() < self.instant else rng.uniform(0.0, self.longest)
            acceleration = t.forces[frame] / t.masses[:, None] * FS**2
            zeros = np.zeros_like(velocities)
            parts.append(_Part(run, t.positions[frame], velocities, zeros, acceleration, t.forces[frame], duration))
        return self._molecules.collate(parts, [np.eye(3)] * len(chosen))
