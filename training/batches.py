"""Frames in memory as flat tensors, and batches filled by edges.

Neighbour lists of training frames never change, so they are computed once; a batch is then a handful of slices. Where
several processes train together, each of them prepares a part.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..ase_calcs.errors import DataError
from ..ase_calcs.neighbors import neighbor_list
from ..ase_calcs.progress import Progress, SilentProgress
from ..datasets.store import Dataset
from .world import World

_PER_ATOM = ("numbers", "positions", "forces", "charges")
_SHIFTED = ("edges", "system")  # count atoms and structures of their batch
_FRAMES_AT_ONCE = 64
_SEEN_AFTER_S = 20.0  # of a network file system


@dataclass(frozen=True)
class Batch:
    """A batch of B labelled structures, N atoms, E edges. Labels that no loss asks for are None.

    Attributes
    ----------
    numbers, system, edges, charge, multiplicity
        As in `AtomGraph`.
    vectors
        (E, 3) r_ij, Å.
    positions
        (N, 3), Å.
    volume
        (B,) Å³; zero without a cell.
    energy
        (B,) float64, eV.
    forces
        (N, 3), eV/Å.
    stress
        (B, 3, 3), eV/Å³.
    charges, dipole
        (N,) e and (B, 3) e·Å.
    """

    numbers: Tensor
    system: Tensor
    edges: Tensor
    charge: Tensor
    multiplicity: Tensor
    vectors: Tensor
    positions: Tensor
    volume: Tensor
    energy: Tensor
    forces: Tensor
    stress: Tensor | None = None
    charges: Tensor | None = None
    dipole: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, in a fixed order."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in named if tensor is not None}

    def to(self, device: torch.device | str) -> Batch:
        """A copy on another device."""
        return Batch(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


class FrameTable:
    """Some frames of a dataset, in memory, with their edges.

    Parameters
    ----------
    dataset
        With energies and forces.
    frames
        Indices; the table keeps their order.
    cutoff
        Å.
    labels
        Further labels to hold: ``stress``, ``charges``, ``dipole``.
    dtype
        Of vectors, forces and the like; energies stay in float64.

    Raises
    ------
    DataError
        A label is missing, from the dataset or from one of the frames.
    """

    def __init__(
        self,
        dataset: Dataset,
        frames: Sequence[int] | np.ndarray,
        *,
        cutoff: float,
        labels: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
    ) -> None:
        frames = np.asarray(frames, dtype=np.int64)
        offsets = np.asarray(dataset.offsets)
        n_atoms = offsets[frames + 1] - offsets[frames]
        # Row numbers of all atoms of the chosen frames, in order.
        atoms = np.concatenate([np.arange(offsets[f], offsets[f + 1]) for f in frames]) if len(frames) else frames
        self.atom_offsets = np.concatenate([[0], np.cumsum(n_atoms)])
        positions, cells, pbc = (
            dataset.rows(n, i) for n, i in (("positions", atoms), ("cell", frames), ("pbc", frames))
        )

        def tensor(name: str, rows: np.ndarray, kind: torch.dtype) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(dataset.rows(name, rows))).to(kind)

        self._columns: dict[str, Tensor] = {
            "numbers": tensor("numbers", atoms, torch.int64),
            "positions": torch.from_numpy(np.ascontiguousarray(positions)).to(dtype),
            "forces": tensor("forces", atoms, dtype),
            "energy": tensor("energy", frames, torch.float64),
            "charge": tensor("charge", frames, dtype),
            "multiplicity": tensor("multiplicity", frames, dtype),
            "volume": torch.from_numpy(np.abs(np.linalg.det(cells))).to(dtype),
        }
        if "charges" in labels:
            self._columns["charges"] = tensor("charges", atoms, dtype)
        if "dipole" in labels:
            self._columns["dipole"] = tensor("dipole", frames, dtype)
        if "stress" in labels:
            self._columns["stress"] = _stress_tensors(dataset, frames, dtype)
        self._refuse_missing(frames)
        self._find_edges(positions, cells, pbc, cutoff, dtype, progress or SilentProgress())

    @classmethod
    def load(cls, folder: Path) -> FrameTable:
        """What `save` has written, mapped: its pages are read when they are needed, once for all processes."""
        table = cls.__new__(cls)
        paths = {path.stem: path for path in folder.glob("*.npy")}
        # What is empty cannot be mapped.
        arrays = {n: np.load(p, mmap_mode="c" if p.stat().st_size > 4096 else None) for n, p in paths.items()}
        table.atom_offsets, table.edge_offsets = arrays.pop("atom_offsets"), arrays.pop("edge_offsets")
        table._edges, table._vectors = (torch.from_numpy(arrays.pop(name)) for name in ("edges", "vectors"))
        table._columns = {name: torch.from_numpy(arrays[name]) for name in sorted(arrays)}
        return table

    def save(self, folder: Path) -> None:
        """Write it as a folder of arrays; either all of it is there afterwards or nothing."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        temporary.chmod(0o755)
        arrays = {name: column.numpy() for name, column in self._columns.items()}
        arrays |= {"atom_offsets": self.atom_offsets, "edge_offsets": self.edge_offsets}
        arrays |= {"edges": self._edges.numpy(), "vectors": self._vectors.numpy()}
        for name, array in arrays.items():
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(folder)

    def __len__(self) -> int:
        return len(self.atom_offsets) - 1

    def begin_epoch(self, epoch: int) -> None:
        """Frames are the same in all."""

    @property
    def numbers(self) -> Tensor:
        """(A,) atomic numbers of all frames."""
        return self._columns["numbers"]

    @property
    def edge_counts(self) -> np.ndarray:
        """(F,) edges per frame."""
        return np.diff(self.edge_offsets)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        held = [*self._columns.values(), self._edges, self._vectors]
        return sum(t.numel() * t.element_size() for t in held) + self.atom_offsets.nbytes + self.edge_offsets.nbytes

    def batch(self, chosen: Sequence[int] | np.ndarray) -> Batch:
        """Collate the frames at these positions of the table."""
        chosen = np.asarray(chosen)
        columns: dict[str, Tensor] = {}
        atom_slices = [slice(self.atom_offsets[k], self.atom_offsets[k + 1]) for k in chosen]
        edge_slices = [slice(self.edge_offsets[k], self.edge_offsets[k + 1]) for k in chosen]
        index = torch.from_numpy(chosen)
        for name, column in self._columns.items():
            if name in _PER_ATOM:
                columns[name] = torch.cat([column[s] for s in atom_slices])
            else:
                columns[name] = column[index]
        n_atoms = np.array([s.stop - s.start for s in atom_slices])
        n_edges = np.array([s.stop - s.start for s in edge_slices])
        shift = np.repeat(np.concatenate([[0], np.cumsum(n_atoms)[:-1]]), n_edges)
        edges = torch.cat([self._edges[:, s] for s in edge_slices], dim=1).long() + torch.from_numpy(shift)
        return Batch(
            system=torch.from_numpy(np.repeat(np.arange(len(chosen)), n_atoms)),
            edges=edges,
            vectors=torch.cat([self._vectors[s] for s in edge_slices]),
            **columns,
        )

    def closest_distances(self, elements: Sequence[int]) -> Tensor:
        """(S, S) float64 closest distance of every pair of elements, Å; infinite where a pair never meets."""
        species = np.searchsorted(np.asarray(elements), self.numbers.numpy())
        closest = np.full((len(elements), len(elements)), np.inf)
        for k in range(len(self)):
            edges = self._edges[:, self.edge_offsets[k] : self.edge_offsets[k + 1]].numpy() + self.atom_offsets[k]
            vectors = self._vectors[self.edge_offsets[k] : self.edge_offsets[k + 1]].numpy()
            np.minimum.at(closest, (species[edges[0]], species[edges[1]]), np.linalg.norm(vectors, axis=1))
        return torch.from_numpy(closest)

    def compositions(self, elements: Sequence[int]) -> np.ndarray:
        """(F, S) number of atoms of each element."""
        species = np.searchsorted(np.asarray(elements), self.numbers.numpy())
        counts = np.zeros((len(self), len(elements)))
        frame = np.repeat(np.arange(len(self)), np.diff(self.atom_offsets))
        np.add.at(counts, (frame, species), 1.0)
        return counts

    @property
    def energy(self) -> Tensor:
        """(F,) float64, eV."""
        return self._columns["energy"]

    def force_scale(self) -> float:
        """Root mean square of all components of all forces, eV/Å."""
        return float(self._columns["forces"].double().square().mean().sqrt())

    def over_frames(self, function: Callable[[Batch], Tensor], width: int) -> Tensor:
        """(F, width) float64: what `function` says of a batch, (B, width), for all frames."""
        found = torch.zeros(len(self), width, dtype=torch.float64)
        for first in range(0, len(self), _FRAMES_AT_ONCE):
            chosen = np.arange(first, min(first + _FRAMES_AT_ONCE, len(self)))
            found[chosen] = function(self.batch(chosen)).double()
        return found

    def _refuse_missing(self, frames: np.ndarray) -> None:
        for name in ("energy", "forces", "charges", "dipole"):
            column = self._columns.get(name)
            if column is None or bool(torch.isfinite(column).all()):
                continue
            bad = (~torch.isfinite(column)).reshape(len(column), -1).any(dim=1).numpy().nonzero()[0]
            frame = np.searchsorted(self.atom_offsets, bad, side="right") - 1 if name in _PER_ATOM else bad
            n_bad, first = len(set(frame.tolist())), frames[frame[0]]
            raise DataError(
                f"{n_bad} of {len(self)} frames have no `{name}` (first: frame {first} of the dataset). Label them, "
                f"leave them out, or give `training.loss.{name}` no weight."
            )

    def _find_edges(
        self,
        positions: np.ndarray,
        cells: np.ndarray,
        pbc: np.ndarray,
        cutoff: float,
        dtype: torch.dtype,
        progress: Progress,
    ) -> None:
        edges, vectors, counts = [], [], [0]
        with progress.task("neighbour lists", len(self)) as bar:
            for k, (cell, periodic) in enumerate(zip(cells, pbc, strict=True)):
                x = positions[self.atom_offsets[k] : self.atom_offsets[k + 1]]
                i, j, shifts = neighbor_list(x, cell, periodic, cutoff)
                r = x[j] - x[i] + shifts @ np.where(periodic[:, None], cell, 0.0)
                edges.append(np.stack([i, j]).astype(np.int32))
                vectors.append(r)
                counts.append(len(i))
                bar.advance()
        self.edge_offsets = np.cumsum(counts)
        self._edges = torch.from_numpy(np.concatenate(edges, axis=1) if edges else np.zeros((2, 0), np.int32))
        self._vectors = torch.from_numpy(np.concatenate(vectors) if vectors else np.zeros((0, 3))).to(dtype)


class SharedTable:
    """A `FrameTable` that the processes of a world make together, and none of them holds in its own memory.

    Each reads and prepares a part, writes it beside the run, and maps the parts of all: whatever one process reads of
    them is there for the others of its machine. After a restart the parts are found again.

    Parameters
    ----------
    dataset, frames, cutoff, labels, dtype, progress
        As for `FrameTable`.
    world
        The processes.
    folder
        Seen by all of them. A process that does not see the part of another prepares that part itself.
    """

    def __init__(
        self,
        dataset: Dataset,
        frames: Sequence[int] | np.ndarray,
        world: World,
        folder: Path,
        *,
        cutoff: float,
        labels: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
    ) -> None:
        self.world = world
        frames = np.asarray(frames, dtype=np.int64)
        atoms = np.cumsum(np.diff(dataset.offsets)[frames])
        bounds = np.searchsorted(atoms, atoms[-1] * np.arange(1, world.size) / world.size) if len(frames) else 0
        shares = np.split(frames, bounds) if len(frames) else [frames] * world.size
        described = repr((dataset.content_hash, frames.tobytes(), cutoff, tuple(labels), str(dtype), world.size))
        folder = folder / hashlib.blake2b(described.encode(), digest_size=8).hexdigest()

        def prepare(rank: int) -> FrameTable:
            return FrameTable(dataset, shares[rank], cutoff=cutoff, labels=labels, dtype=dtype, progress=progress)

        refused: DataError | None = None
        mine, own = folder / str(world.rank), {}
        if not mine.is_dir():
            try:
                own[world.rank] = prepare(world.rank)
                own[world.rank].save(mine)
                own.clear()
            except DataError as error:
                refused = error
            except OSError as error:  # kept in memory, then; the others prepare it themselves
                (progress or SilentProgress()).say(f"{folder} cannot be written: {error}")
        if world.largest(float(refused is not None)):
            raise refused or DataError("Another process could not use its part of the dataset; its message says why.")
        # A file system of several machines may show what another has written a little later.
        deadline = time.monotonic() + _SEEN_AFTER_S
        while not all((folder / str(rank)).is_dir() for rank in range(world.size)) and time.monotonic() < deadline:
            time.sleep(0.1)
        here = [folder / str(rank) for rank in range(world.size)]
        self._parts = [
            FrameTable.load(path) if path.is_dir() else own.get(rank) or prepare(rank) for rank, path in enumerate(here)
        ]
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in self._parts])])
        self._edge_counts = np.concatenate([part.edge_counts for part in self._parts])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def begin_epoch(self, epoch: int) -> None:
        """Frames are the same in all."""

    @property
    def edge_counts(self) -> np.ndarray:
        """See `FrameTable`."""
        return self._edge_counts

    @property
    def energy(self) -> Tensor:
        """See `FrameTable`."""
        return torch.cat([part.energy for part in self._parts])

    def batch(self, chosen: Sequence[int] | np.ndarray) -> Batch:
        """See `FrameTable`; frames of one part stay together."""
        chosen = np.asarray(chosen)
        part_of = np.searchsorted(self._starts, chosen, side="right") - 1
        return joined([self._parts[p].batch(chosen[part_of == p] - self._starts[p]) for p in np.unique(part_of)])

    def compositions(self, elements: Sequence[int]) -> np.ndarray:
        """See `FrameTable`."""
        return np.concatenate([part.compositions(elements) for part in self._parts])

    def closest_distances(self, elements: Sequence[int]) -> Tensor:
        """See `FrameTable`; each process looks at its part."""
        return self.world.smallest(self._parts[self.world.rank].closest_distances(elements))

    def force_scale(self) -> float:
        """See `FrameTable`; each process looks at its part."""
        forces = self._parts[self.world.rank]._columns["forces"].double()
        squares = self.world.sum(torch.tensor([float(forces.square().sum()), forces.numel()], dtype=torch.float64))
        return float((squares[0] / squares[1]).sqrt())

    def over_frames(self, function: Callable[[Batch], Tensor], width: int) -> Tensor:
        """See `FrameTable`; each process looks at its part."""
        found = torch.zeros(len(self), width, dtype=torch.float64)
        first, last = self._starts[self.world.rank : self.world.rank + 2]
        found[first:last] = self._parts[self.world.rank].over_frames(function, width)
        return self.world.sum(found)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all their structures, in order."""
    if len(batches) == 1:
        return batches[0]
    columns: dict[str, list[Tensor]] = {name: [] for name in batches[0].tensors()}
    atoms = systems = 0
    for batch in batches:
        for name, tensor in batch.tensors().items():
            columns[name].append(tensor + (atoms if name == "edges" else systems) if name in _SHIFTED else tensor)
        atoms, systems = atoms + len(batch.numbers), systems + len(batch.energy)
    return Batch(**{name: torch.cat(parts, dim=1 if name == "edges" else 0) for name, parts in columns.items()})


def _stress_tensors(dataset: Dataset, frames: np.ndarray, dtype: torch.dtype) -> Tensor:
    """(F, 3, 3) from ASE's Voigt order; NaN stays NaN (a molecule among periodic frames)."""
    voigt = dataset.rows("stress", frames)
    full = voigt[:, [[0, 5, 4], [5, 1, 3], [4, 3, 2]]]
    return torch.from_numpy(np.ascontiguousarray(full)).to(dtype)


class EdgeBudgetSampler:
    """Batches of at most `batch_edges` edges and `batch_frames` structures, another order every epoch.

    The order is a function of seed and epoch alone, so that a run can be resumed in the middle of an epoch.
    """

    def __init__(self, edge_counts: np.ndarray, *, batch_edges: int, batch_frames: int, seed: int) -> None:
        self.edge_counts = np.asarray(edge_counts)
        self.batch_edges = batch_edges
        self.batch_frames = batch_frames
        self.seed = seed

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """All batches of one epoch; a structure larger than the budget is a batch of its own."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.edge_counts))
        return list(self._fill(order, self.batch_edges))

    def in_order(self) -> list[np.ndarray]:
        """All frames once, in the table's order (validation)."""
        return list(self._fill(np.arange(len(self.edge_counts)), self.batch_edges))

    def steps(self, epoch: int, accumulate: int) -> list[list[np.ndarray]]:
        """The batches of an epoch, so many for each step."""
        batches = self.epoch(epoch)
        return [batches[k : k + accumulate] for k in range(0, len(batches), accumulate)]

    def of_rank(self, batches: Sequence[np.ndarray], world: World, largest: int = 0) -> list[np.ndarray]:
        """What one process does of some batches.

        Parameters
        ----------
        batches
            Of one step, or of a validation; every process knows them all.
        world
            Alone, a process does them as they are.
        largest
            Edges in a batch, where memory holds fewer than the budget; 0 for the budget.
        """
        if world.size == 1 and not largest:
            return list(batches)
        mine = share(np.concatenate(batches), self.edge_counts, world.size)[world.rank]
        return list(self._fill(mine, min(largest or self.batch_edges, self.batch_edges)))

    def _fill(self, order: np.ndarray, batch_edges: int) -> Iterator[np.ndarray]:
        start, edges = 0, 0
        for k, frame in enumerate(order):
            count = int(self.edge_counts[frame])
            if k > start and (edges + count > batch_edges or k - start >= self.batch_frames):
                yield order[start:k]
                start, edges = k, 0
            edges += count
        if start < len(order):
            yield order[start:]


def share(frames: np.ndarray, edge_counts: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Divide the frames of one step among processes so that each has about as many edges.

    The largest come first, each to the process with the fewest edges so far: the busiest is then at most a third above
    the best possible (Graham 1969), and with tens of frames each within a few per cent of the mean. Every process works
    out the same division; one gets nothing if there are fewer frames than processes.
    """
    found: list[list[int]] = [[] for _ in range(ranks)]
    load = np.zeros(ranks)
    for frame in sorted(frames.tolist(), key=lambda f: (-int(edge_counts[f]), f)):
        rank = int(np.argmin(load))
        found[rank].append(frame)
        load[rank] += edge_counts[frame] + 1  # a structure without edges costs something too
    return [np.array(sorted(mine), dtype=np.int64) for mine in found]
