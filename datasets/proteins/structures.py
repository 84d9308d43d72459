"""Backbones from structure files, from trajectories, and from the references that `distillase cg reference` makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ase_calcs.errors import DataError, InputError, StructureError, require
from ...ase_calcs.proteins.backbone import ATOMS
from ...ase_calcs.proteins.residues import NAMES
from ...ase_calcs.units import NM
from .backbones import BackboneFrames, completed, with_gaps
from .frames import load_topology, loaded, reference_pieces

# What modified residues were made from: their backbones are the same.
MODIFIED = {
    "MSE": "M", "NLE": "L", "SEP": "S", "TPO": "T", "PTR": "Y", "HYP": "P", "CSO": "C", "CSD": "C", "CME": "C",
    "OCS": "C", "KCX": "K", "MLY": "K", "M3L": "K", "ALY": "K", "LLP": "K", "PCA": "E", "CGU": "E", "NEP": "H",
    "MEN": "N", "SNN": "N", "SME": "M", "FME": "M", "TYS": "Y", "AIB": "A", "ORN": "K",
}  # fmt: skip
_KNOWN = NAMES | MODIFIED
_FORMATS = (".pdb", ".ent", ".cif", ".mmcif", ".bcif")


@dataclass(frozen=True)
class _Residues:
    """Of one model: keys that tell residues apart, their codes, chains, and the five atoms, NaN where missing."""

    keys: list[tuple[str, int, str]]
    codes: str
    positions: np.ndarray


def read_structure(path: str | Path, name: str = "") -> BackboneFrames:
    """Every model of a PDB, mmCIF or binary mmCIF file.

    Residues that some model lacks, or that have no N, Cα or C, are left out, which leaves a gap. Of alternate locations
    the one with the highest occupancy is taken.

    Parameters
    ----------
    path
        The file: ``.pdb .ent .cif .mmcif .bcif``.
    name
        Of the protein; the file's by default.

    Raises
    ------
    InputError
        It cannot be read.
    StructureError
        It has no backbone, or a residue with one that is not known.
    """
    path = Path(path)
    models = [_residues(atoms, path) for atoms in _models(path)]
    whole = set.intersection(*(set(m.keys) for m in models)) if models else set()
    kept = [key for key in models[0].keys if key in whole] if models else []
    if not kept:
        raise StructureError(f"`{path}` has no residue with N, Cα and C in every one of its {len(models)} models.")
    rows = [{key: k for k, key in enumerate(m.keys)} for m in models]
    positions = np.stack([m.positions[[at[key] for key in kept]] for m, at in zip(models, rows, strict=True)])
    letters = "".join(models[0].codes[rows[0][key]] for key in kept)
    origins = np.array([f"model {k + 1}" for k in range(len(models))])
    return _frames(name or path.stem, letters, [key[0] for key in kept], positions, origins, np.nan)


def _models(path: Path) -> Iterator[Any]:
    structure = require("biotite.structure", extra="proteins", purpose="read structures of proteins")
    pdb = require("biotite.structure.io.pdb", extra="proteins", purpose="read structures of proteins")
    pdbx = require("biotite.structure.io.pdbx", extra="proteins", purpose="read structures of proteins")
    invalid = require("biotite", extra="proteins", purpose="read structures of proteins").InvalidFileError
    suffix = path.suffix.lower()
    if suffix not in _FORMATS:
        raise InputError(f"`{path}` is of no format that is read here; these are {', '.join(_FORMATS)}.")
    try:
        if suffix in (".pdb", ".ent"):
            file = pdb.PDBFile.read(path)
            get: Callable[[int], Any] = lambda k: file.get_structure(model=k, altloc="occupancy")  # noqa: E731
            count = file.get_model_count()
        else:
            file = (pdbx.BinaryCIFFile if suffix == ".bcif" else pdbx.CIFFile).read(path)
            get = lambda k: pdbx.get_structure(file, model=k, altloc="occupancy")  # noqa: E731
            count = pdbx.get_model_count(file)
        for k in range(1, count + 1):
            yield get(k)
    except (OSError, ValueError, KeyError, IndexError, structure.BadStructureError, invalid) as error:
        raise InputError(f"`{path}` cannot be read as a structure ({type(error).__name__}: {error}).") from error


def _residues(atoms: Any, path: Path) -> _Residues:
    places = {atom: k for k, atom in enumerate(ATOMS)}
    found: dict[tuple[str, int, str], np.ndarray] = {}
    names: dict[tuple[str, int, str], str] = {}
    wanted = np.flatnonzero(np.isin(atoms.atom_name, ATOMS))
    for k in wanted.tolist():
        key = (str(atoms.chain_id[k]), int(atoms.res_id[k]), str(atoms.ins_code[k]))
        found.setdefault(key, np.full((len(ATOMS), 3), np.nan))[places[str(atoms.atom_name[k])]] = atoms.coord[k]
        names.setdefault(key, str(atoms.res_name[k]))
    keys = [key for key, xyz in found.items() if np.isfinite(xyz[:3]).all()]
    unknown = sorted({names[key] for key in keys if names[key] not in _KNOWN})
    if unknown:
        raise StructureError(
            f"`{path}` has residues with a backbone that are not known: {', '.join(unknown)}. Rename them to the amino "
            "acids that they were made from, or take them out."
        )
    positions = np.stack([found[key] for key in keys]) if keys else np.zeros((0, len(ATOMS), 3))
    return _Residues(keys, "".join(_KNOWN[names[key]] for key in keys), positions)


def _frames(
    name: str,
    letters: str,
    chains: Sequence[object],
    positions: np.ndarray,
    origins: np.ndarray,
    temperature: float | np.ndarray,
) -> BackboneFrames:
    positions = positions.astype(float)
    labels = np.unique([str(c) for c in chains], return_inverse=True)[1]
    sequence = with_gaps(letters, labels, positions)
    whole, built = completed(sequence, positions)
    kelvin = np.broadcast_to(np.asarray(temperature, dtype=float), (len(positions),)).copy()
    return BackboneFrames(name, sequence, whole, built, kelvin, origins)


def read_trajectory(topology: str | Path, trajectory: str | Path, name: str = "", stride: int = 1) -> BackboneFrames:
    """Backbones along a trajectory: DCD, XTC or TRR.

    Parameters
    ----------
    topology
        A PDB file with all atoms of the trajectory.
    trajectory
        The file.
    name
        Of the protein; the topology's by default.
    stride
        Every which frame to take.

    Raises
    ------
    InputError
        Files that cannot be read, or do not fit together.
    DataError
        No residue has N, Cα and C.
    """
    mdtraj = require("mdtraj", extra="proteins", purpose="read trajectories of proteins")
    letters, chains, atoms = _backbone_atoms(topology)
    pieces = [piece.xyz[:, atoms.clip(0)] * NM for piece in loaded(mdtraj, topology, trajectory)]
    if not pieces:
        raise DataError(f"`{trajectory}` has no frames.")
    positions = np.concatenate(pieces)[::stride].astype(float)
    positions[:, atoms < 0] = np.nan
    origins = np.full(len(positions), Path(trajectory).stem)
    return _frames(name or Path(topology).stem, letters, chains, positions, origins, np.nan)


def read_reference(
    folder: str | Path, temperatures: tuple[float, ...] = (), name: str = "", stride: int = 1
) -> BackboneFrames:
    """Backbones of a folder of `run_reference`.

    Parameters
    ----------
    folder
        Of the reference; it may still be running.
    temperatures
        K, which of its temperatures to take; all of them if empty.
    name
        Of the protein; the folder's by default.
    stride
        Every which frame of a run to take.
    """
    folder = Path(folder)
    letters, chains, atoms = _backbone_atoms(folder / "protein.pdb")
    runs: dict[tuple[str, float], list[np.ndarray]] = {}
    for piece in reference_pieces(folder, temperatures):
        runs.setdefault((piece.origin, piece.temperature), []).append(piece.positions[:, atoms.clip(0)])
    if not runs:
        raise DataError(f"{folder} has no frames yet.")
    thinned = {run: np.concatenate(pieces)[::stride] for run, pieces in runs.items()}
    positions = np.concatenate(list(thinned.values())).astype(float)
    positions[:, atoms < 0] = np.nan
    counts = [len(x) for x in thinned.values()]
    origins = np.repeat([f"{origin} {kelvin:.1f} K" for origin, kelvin in thinned], counts)
    kelvin = np.repeat([kelvin for _, kelvin in thinned], counts)
    return _frames(name or folder.name, letters, chains, positions, origins, kelvin)


def _backbone_atoms(topology: str | Path) -> tuple[str, list[int], np.ndarray]:
    """Letters, chains and (L, 5) atoms of residues with N, Cα and C; −1 for an O or a Cβ that there is not."""
    top = load_topology(topology)
    letters, chains, atoms = [], [], []
    for residue in top.residues:
        here = {atom.name: atom.index for atom in residue.atoms}
        if residue.name in _KNOWN and all(atom in here for atom in ATOMS[:3]):
            letters.append(_KNOWN[residue.name])
            chains.append(residue.chain.index)
            atoms.append([here.get(atom, -1) for atom in ATOMS])
    if not letters:
        raise DataError(f"`{topology}` has no residue with N, Cα and C.")
    found = np.array(atoms)
    return "".join(letters), chains, found
