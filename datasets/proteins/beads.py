"""Dataset files with one bead per residue: the format of every other dataset, with residue types for elements.

``numbers`` holds 1 + the place of the residue in `CODES`, ``group`` the protein, ``origin`` the run. The provenance has
``kind: coarse-grained`` and the sequences, which say where chains end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ...ase_calcs.errors import DataError
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.residues import CODES
from ..store import Dataset
from ..writer import FrameTable, atomic_write, write_dataset
from .frames import FORCE_UNITS, Piece, Source, types_of
from .mapping import ForceMapper, MapKind, check_map, map_forces, rigid_pairs, root_mean_square

KIND = "coarse-grained"
TOLERANCE = 1.0  # K, within which frames count as of a temperature
_LONGEST_BOND = 6.0  # Å; 3.8 with a spread of 0.06 at 300 K
_TEST_FRAMES = 200  # of which rigid bonds are found


@dataclass(frozen=True)
class MapResult:
    """What became of a mapping.

    Attributes
    ----------
    path
        The dataset file.
    frames
        How many.
    weights
        (B, N), the force map.
    constraints
        Rigid distances between atoms.
    rms
        Root mean square of forces on beads under each kind of map, eV/Å per component: of the first half of the
        frames, with which the optimal map of this comparison was made, and of the second half.
    """

    path: Path
    frames: int
    weights: np.ndarray
    constraints: int
    rms: dict[str, tuple[float, float]]


def write_mapped(
    path: str | Path, source: Source, pieces: Callable[[], Iterable[Piece]], kind: MapKind = "optimal"
) -> MapResult:
    """Map all-atom frames onto Cα beads and write them as a dataset.

    Parameters
    ----------
    path
        Of the dataset file.
    source
        Whose frames.
    pieces
        Gives the frames from the beginning each time it is called, which is several times.
    kind
        Of the force map.

    Raises
    ------
    DataError
        No frames, or ones without a usable map.
    """
    pairs = source.pairs if source.pairs is not None else _find_pairs(source, pieces())
    total = sum(len(piece.positions) for piece in pieces())
    if total < 2:
        raise DataError(f"There are {total} frames of {source.name}; nothing can be learned from them.")
    half, whole = (ForceMapper(source.beads, pairs, source.n_atoms) for _ in range(2))
    seen = 0
    for piece in pieces():
        whole.add(piece.forces)
        half.add(piece.forces[: max(0, total // 2 - seen)])
        seen += len(piece.forces)
    ridge = half.best_ridge(whole.without(half)) if kind == "optimal" and half.n_frames else 0.0
    weights = whole.solve(kind, ridge)
    if kind != "raw":
        check_map(weights, source.beads, pairs)
    rms = _compare(half, pieces, total // 2, ridge)
    provenance = {
        "kind": KIND,
        "sequences": {source.name: source.sequence},
        "map": kind,
        "map_ridge": ridge,
        "constraints": len(pairs),
        "source": source.record,
        "rms_force": rms,
    }
    write_dataset(path, _tables(source, pieces(), weights), provenance=provenance)
    return MapResult(Path(path), total, weights, len(pairs), rms)


def _find_pairs(source: Source, pieces: Iterable[Piece]) -> np.ndarray:
    first: list[np.ndarray] = []
    for piece in pieces:
        first.append(piece.positions)
        if sum(map(len, first)) >= _TEST_FRAMES:
            break
    if not first:
        raise DataError(f"There are no frames of {source.name}.")
    return rigid_pairs(np.concatenate(first)[:_TEST_FRAMES])


def _compare(
    half: ForceMapper, pieces: Callable[[], Iterable[Piece]], n_half: int, ridge: float
) -> dict[str, tuple[float, float]]:
    rms = {}
    maps = {kind: half.solve(kind, ridge) for kind in ("raw", "basic", "optimal")}  # type: ignore[arg-type]
    for kind, weights in maps.items():
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        seen = 0
        for piece in pieces():
            mapped = map_forces(piece.forces, weights)
            cut = max(0, n_half - seen)
            parts[0].append(mapped[:cut])
            parts[1].append(mapped[cut:])
            seen += len(mapped)
        rms[kind] = (root_mean_square(parts[0]), root_mean_square(parts[1]))
    return rms


def _tables(source: Source, pieces: Iterable[Piece], weights: np.ndarray) -> Iterator[FrameTable]:
    for piece in pieces:
        yield bead_table(
            source.name, source.sequence, piece.positions[:, source.beads], map_forces(piece.forces, weights),
            np.full(len(piece.positions), piece.temperature), f"{piece.origin} {piece.temperature:.1f} K",
        )  # fmt: skip


def bead_table(
    name: str, sequence: str, positions: np.ndarray, forces: np.ndarray, temperatures: np.ndarray, origin: str
) -> FrameTable:
    """Frames (T, B, 3) of one protein, as `write_dataset` takes them."""
    types = types_of(sequence)
    n_frames, n_beads = positions.shape[:2]
    if n_beads != len(types):
        raise DataError(f"{name} has {n_beads} beads and a sequence of {len(types)} residues.")
    # Centred: float32 coordinates of a molecule that has drifted away would lose digits of its distances.
    centred = positions - positions.mean(axis=1, keepdims=True)
    _refuse_broken(name, sequence, centred)
    columns: dict[str, Any] = {
        "numbers": np.tile(types + 1, n_frames).astype(np.uint8),
        "positions": centred.reshape(-1, 3).astype(float),
        "forces": forces.reshape(-1, 3).astype(float),
        "temperature": np.asarray(temperatures, dtype=float),
        "cell": np.zeros((n_frames, 3, 3)),
        "pbc": np.zeros((n_frames, 3), dtype=bool),
        "charge": np.zeros(n_frames, dtype=int),
        "multiplicity": np.ones(n_frames, dtype=int),
        "group": [name] * n_frames,
        "origin": [origin] * n_frames,
        "smiles": [""] * n_frames,
    }
    return FrameTable(np.full(n_frames, n_beads), columns)


def _refuse_broken(name: str, sequence: str, positions: np.ndarray) -> None:
    """Chains that are cut by the walls of a box have bonds as long as the box."""
    bonds = Chains.from_sequence(sequence).bonds
    if not len(bonds) or not len(positions):
        return
    lengths = np.linalg.norm(positions[:, bonds[:, 1]] - positions[:, bonds[:, 0]], axis=-1)
    if lengths.max() > _LONGEST_BOND:
        frame, bond = np.unravel_index(int(lengths.argmax()), lengths.shape)
        raise DataError(
            f"{name}: beads {bonds[bond, 0]} and {bonds[bond, 1]} follow each other in a chain and are "
            f"{lengths.max():.1f} Å apart in frame {frame} of a run. Make molecules whole that the periodic box cuts "
            "(`gmx trjconv -pbc mol`), or put a colon into the sequence where a chain is broken."
        )


@dataclass(frozen=True)
class BeadFrames:
    """All frames of one protein, in memory.

    Attributes
    ----------
    name, sequence
        Chains divided by colons.
    positions
        (T, B, 3) Å.
    forces
        (T, B, 3) eV/Å.
    temperatures
        (T,) K; NaN where unknown.
    origins
        (T,) which run each frame belongs to.
    errors
        (T,) eV/Å per component: standard error of forces that are means already; None for forces of single frames.
    """

    name: str
    sequence: str
    positions: np.ndarray
    forces: np.ndarray
    temperatures: np.ndarray
    origins: np.ndarray
    errors: np.ndarray | None = None

    @property
    def types(self) -> np.ndarray:
        """(B,) place of every residue in `CODES`."""
        return types_of(self.sequence)

    def at(self, temperature: float) -> BeadFrames:
        """Those at a temperature (K); frames of unknown temperature are taken to be of any."""
        return self.select(np.isnan(self.temperatures) | (np.abs(self.temperatures - temperature) < TOLERANCE))

    def select(self, frames: np.ndarray) -> BeadFrames:
        """Some of the frames, by index or mask."""
        return BeadFrames(
            self.name, self.sequence, self.positions[frames], self.forces[frames], self.temperatures[frames],
            self.origins[frames], None if self.errors is None else self.errors[frames],
        )  # fmt: skip


def read_beads(path: str | Path) -> list[BeadFrames]:
    """Every protein of a dataset with beads.

    Raises
    ------
    DataError
        It has no forces, or is a dataset of atoms.
    """
    with Dataset(path) as data:
        if data.provenance.get("kind") != KIND:
            raise DataError(
                f"{path} is a dataset of atoms, not of beads: `distillase cg map` makes one with a bead per residue."
            )
        sequences: Mapping[str, str] = data.provenance["sequences"]
        groups, origins, offsets = data.group, data.origin.astype(str), data.offsets
        positions, forces = data.positions, data.forces
        temperatures = data.temperature if "temperature" in data.fields else np.full(len(groups), np.nan)
    found = []
    for name in dict.fromkeys(groups.tolist()):
        frames = np.flatnonzero(groups == name)
        n = len(types_of(sequences[name]))
        rows = offsets[frames][:, None] + np.arange(n)
        found.append(
            BeadFrames(name, sequences[name], positions[rows], forces[rows], temperatures[frames], origins[frames])
        )
    return found


def save_npz(path: str | Path, proteins: Sequence[BeadFrames], *, note: str = "") -> Path:
    """Write frames as NPZ: ``R``, ``F`` (T, B, 3), ``species`` (T, B), ``mask`` (T, B), and what is ours beside them.

    Proteins of different length are padded, with ``mask`` false and species 0 there; a species is 1 + the place of the
    residue in `CODES`. Å and eV/Å, in float32.
    """
    longest = max(p.positions.shape[1] for p in proteins)

    def padded(values: np.ndarray) -> np.ndarray:
        width = [(0, 0), (0, longest - values.shape[1]), *[(0, 0)] * (values.ndim - 2)]
        return np.pad(values, width)

    arrays = {
        "R": np.concatenate([padded(p.positions.astype(np.float32)) for p in proteins]),
        "F": np.concatenate([padded(p.forces.astype(np.float32)) for p in proteins]),
        "species": np.concatenate([padded(np.tile(p.types + 1, (len(p.positions), 1))) for p in proteins]).astype(
            np.uint8
        ),
        "mask": np.concatenate([padded(np.ones(p.positions.shape[:2], bool)) for p in proteins]),
        "temperature": np.concatenate([p.temperatures for p in proteins]).astype(np.float32),
        "protein": np.concatenate([np.full(len(p.positions), k) for k, p in enumerate(proteins)]).astype(np.uint16),
        "names": np.array([p.name for p in proteins]),
        "sequences": np.array([p.sequence for p in proteins]),
        "origin": np.concatenate([p.origins for p in proteins]).astype(str),
        "note": np.array(note),
    }
    path = Path(path)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return path


def load_npz(path: str | Path, *, name: str = "", force_unit: str = "eV/A") -> list[BeadFrames]:
    """Read ``R F species mask``; see `save_npz`. Without ``sequences`` the species say what the residues are.

    Raises
    ------
    DataError
        An array is missing, or of the wrong shape, or a species is none of 1 to 20.
    """
    path = Path(path)
    try:
        with np.load(path) as data:
            arrays = {key: data[key] for key in data.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise DataError(f"`{path}` cannot be read as NPZ ({error}).") from error
    missing = [key for key in ("R", "F", "species") if key not in arrays]
    if missing:
        raise DataError(f"`{path}` has no array {', '.join(missing)}; needed are R, F, species and mask.")
    if force_unit not in FORCE_UNITS:
        raise DataError(f"The unit of forces is {force_unit!r}; allowed are {', '.join(FORCE_UNITS)}.")
    positions, species = arrays["R"], arrays["species"]
    forces = arrays["F"] * FORCE_UNITS[force_unit]
    if species.ndim == 1:
        species = np.broadcast_to(species, positions.shape[:2])
    mask = arrays.get("mask", species > 0).astype(bool)
    if positions.shape != (*mask.shape, 3) or forces.shape != positions.shape or species.shape != mask.shape:
        raise DataError(
            f"`{path}`: R {positions.shape}, F {forces.shape}, species {species.shape}, mask {mask.shape} do not fit."
        )
    if mask.any() and not ((species[mask] >= 1) & (species[mask] <= len(CODES))).all():
        raise DataError(f"`{path}`: species must be 1 to {len(CODES)}, the place of the residue in {CODES}.")
    kelvin = arrays.get("temperature", np.full(len(positions), np.nan))
    origin = arrays.get("origin", np.full(len(positions), path.stem))
    which = arrays.get("protein")
    if which is None:  # one protein for each sequence
        keys = ["".join(CODES[s - 1] for s in row[m]) for row, m in zip(species, mask, strict=True)]
        sequences = list(dict.fromkeys(keys))
        which = np.array([sequences.index(key) for key in keys])
        base = name or path.stem
        names = [base if len(sequences) == 1 else f"{base}-{k + 1}" for k in range(len(sequences))]
    else:
        sequences, names = arrays["sequences"].tolist(), arrays["names"].tolist()
    found = []
    for k, (label, sequence) in enumerate(zip(names, sequences, strict=True)):
        rows = np.flatnonzero(which == k)
        n = len(types_of(sequence))
        if len(rows) and not (mask[rows, :n].all() and not mask[rows, n:].any()):
            raise DataError(f"`{path}`: beads of {label} must come first in each row, then padding.")
        found.append(
            BeadFrames(
                label,
                sequence,
                positions[rows, :n].astype(float),
                forces[rows, :n].astype(float),
                kelvin[rows].astype(float),
                origin[rows].astype(str),
            )
        )
    return found


def write_beads(path: str | Path, proteins: Sequence[BeadFrames], provenance: Mapping[str, Any]) -> Path:
    """A dataset file of frames in memory."""

    def tables() -> Iterator[FrameTable]:
        for p in proteins:
            for origin in dict.fromkeys(p.origins.tolist()):
                rows = p.origins == origin
                yield bead_table(p.name, p.sequence, p.positions[rows], p.forces[rows], p.temperatures[rows], origin)

    sequences = {p.name: p.sequence for p in proteins}
    return write_dataset(path, tables(), provenance={"kind": KIND, "sequences": sequences, **provenance})
