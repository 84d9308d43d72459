"""Frames of a reference or of somebody else's dynamics, a piece at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ase_calcs.errors import DataError, InputError, require
from ...ase_calcs.proteins.residues import CODES, NAMES
from ...ase_calcs.units import KCAL_PER_MOL, KJ_PER_MOL, NM
from .reference import RECORD

FORCE_UNITS = {"eV/A": 1.0, "kcal/mol/A": KCAL_PER_MOL, "kJ/mol/nm": KJ_PER_MOL / NM}
_PIECE = 1000  # frames


@dataclass(frozen=True)
class Piece:
    """Some frames of one run.

    Attributes
    ----------
    positions
        (T, N, 3) Å.
    forces
        (T, N, 3) eV/Å.
    temperature
        K.
    origin
        Which run they belong to.
    """

    positions: np.ndarray
    forces: np.ndarray
    temperature: float
    origin: str


@dataclass(frozen=True)
class Source:
    """Where frames come from.

    Attributes
    ----------
    name
        Of the protein.
    sequence
        One letter for each residue, chains divided by colons.
    beads
        (B,) indices of Cα atoms.
    n_atoms
        Atoms of a frame.
    pairs
        (C, 2) rigidly bound atoms; None where they must be found from the frames.
    record
        How the frames were made.
    """

    name: str
    sequence: str
    beads: np.ndarray
    n_atoms: int
    pairs: np.ndarray | None
    record: dict[str, Any]


def open_reference(folder: str | Path, name: str = "") -> Source:
    """A folder that `run_reference` made."""
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"{folder} holds no reference that can be read ({error}). `distillase cg reference` makes one."
        ) from error
    beads, sequence, n_atoms = _of_pdb(folder / "protein.pdb")
    pairs = np.array(record["constraints"], dtype=int).reshape(-1, 2)
    pairs = pairs[(pairs < n_atoms).all(axis=1)]  # water has its own
    return Source(
        name or folder.name, sequence, beads, n_atoms, pairs, {k: v for k, v in record.items() if k != "constraints"}
    )


def reference_pieces(folder: str | Path, temperatures: tuple[float, ...] = ()) -> Iterator[Piece]:
    """Frames of a reference, chunk by chunk.

    Parameters
    ----------
    folder
        Of the reference; it may still be running.
    temperatures
        K, which of its temperatures to take; all of them if empty.
    """
    folder = Path(folder)
    record = json.loads((folder / RECORD).read_text())
    there = tuple(record["ladder"]) or tuple(record["temperatures"])
    unknown = [t for t in temperatures if not any(abs(t - known) < 0.5 for known in there)]
    if unknown:
        raise InputError(f"The reference has no frames at {unknown} K; it has {[round(t, 1) for t in there]}.")
    for job in sorted(path for path in (folder / "frames").glob("*") if path.is_dir()):
        rungs = tuple(record["ladder"]) if record["exchange"] else (float(job.name.rsplit("-", 1)[1].rstrip("K")),)
        for file in sorted(job.glob("[0-9]*.npz"))[1:]:  # the first is the equilibration
            with np.load(file) as data:
                positions, forces = data["positions"], data["forces"]
            for k, kelvin in enumerate(rungs):
                if not temperatures or any(abs(kelvin - t) < 0.5 for t in temperatures):
                    yield Piece(positions[k], forces[k], kelvin, job.name)


def load_topology(path: str | Path) -> Any:
    """mdtraj's topology of a PDB file."""
    mdtraj = require("mdtraj", extra="proteins", purpose="read trajectories of proteins")
    try:
        return mdtraj.load_topology(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"`{path}` cannot be read as a topology ({error}).") from error


def open_dynamics(topology: str | Path, name: str = "") -> Source:
    """The topology of somebody else's dynamics: a PDB file with all atoms of the trajectory."""
    top = load_topology(topology)
    beads = [a.index for a in top.atoms if a.name == "CA" and a.residue.name in NAMES]
    chains = [
        "".join(NAMES[r.name] for r in chain.residues if r.name in NAMES and any(a.name == "CA" for a in r.atoms))
        for chain in top.chains
    ]
    if not beads:
        raise DataError(f"`{topology}` has no Cα atoms of amino acids.")
    return Source(
        name or Path(topology).stem, ":".join(chain for chain in chains if chain), np.array(beads), top.n_atoms, None,
        {"topology": Path(topology).name},
    )  # fmt: skip


def dynamics_pieces(
    topology: str | Path, trajectory: str | Path, forces: str | Path, unit: str, temperature: float
) -> Iterator[Piece]:
    """Frames of a DCD, XTC or TRR file with forces from an ``.npy`` array (T, N, 3).

    Raises
    ------
    InputError
        An unknown unit, or files that do not fit together.
    """
    mdtraj = require("mdtraj", extra="proteins", purpose="read trajectories of proteins")
    if unit not in FORCE_UNITS:
        raise InputError(f"The unit of forces is {unit!r}; allowed are {', '.join(FORCE_UNITS)}.")
    try:
        values = np.load(forces, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"`{forces}` cannot be read as an .npy array of forces ({error}).") from error
    begin = 0
    for piece in loaded(mdtraj, topology, trajectory):
        end = begin + piece.n_frames
        if values.ndim != 3 or values.shape[1:] != (piece.n_atoms, 3) or len(values) < end:
            raise InputError(
                f"`{forces}` has shape {values.shape}; {trajectory} has {piece.n_atoms} atoms, {end} frames or more. "
                "One force for every atom of every frame is needed."
            )
        yield Piece(piece.xyz * NM, np.array(values[begin:end]) * FORCE_UNITS[unit], temperature, Path(trajectory).stem)
        begin = end
    if begin != len(values):
        raise InputError(f"`{forces}` has {len(values)} frames and `{trajectory}` has {begin}.")


def loaded(mdtraj: Any, topology: str | Path, trajectory: str | Path) -> Iterator[Any]:
    """Pieces of a trajectory; what mdtraj says of a file that it cannot read is one sentence."""
    try:
        yield from mdtraj.iterload(str(trajectory), top=str(topology), chunk=_PIECE)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise InputError(
            f"`{trajectory}` cannot be read as a trajectory of the atoms of `{topology}` ({error})."
        ) from error


def _of_pdb(path: Path) -> tuple[np.ndarray, str, int]:
    source = open_dynamics(path)
    return source.beads, source.sequence, source.n_atoms


def types_of(sequence: str) -> np.ndarray:
    """(B,) place of every residue in `CODES`."""
    return np.array([CODES.index(letter) for letter in sequence.replace(":", "")])
