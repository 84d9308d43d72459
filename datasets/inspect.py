"""What is in a dataset file: counts, units, composition, provenance. What may be wrong with it is in `validate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from .schema import FIELDS, unit_of
from .store import Dataset
from .validate import Finding, Limits, Validation, has_field, validate_dataset

__all__ = ["DatasetInfo", "Finding", "Limits", "Validation", "dataset_info", "validate_dataset"]


@dataclass(frozen=True)
class DatasetInfo:
    """What is in a dataset file.

    Attributes
    ----------
    path, content_hash, bytes
        The file.
    n_frames, n_atoms, n_groups, n_trajectories
        Counts; a trajectory is one origin of one group.
    atoms_per_frame
        Smallest, median, largest.
    labelled
        Optional field → number of frames that have it.
    units
        Field → unit.
    elements
        Symbol → number of atoms.
    hydrogen_fraction
        Share of hydrogen among the atoms.
    charges, multiplicities
        Value → number of frames.
    periodic
        Frames with at least one periodic direction.
    largest_groups
        The groups with most frames, up to ten.
    provenance
        As it was written.
    unknown_arrays
        Arrays in the file that nothing reads.
    """

    path: Path
    content_hash: str
    bytes: int
    n_frames: int
    n_atoms: int
    n_groups: int
    n_trajectories: int
    atoms_per_frame: tuple[int, int, int]
    labelled: dict[str, int]
    units: dict[str, str]
    elements: dict[str, int]
    hydrogen_fraction: float
    charges: dict[int, int]
    multiplicities: dict[int, int]
    periodic: int
    largest_groups: list[tuple[str, int]]
    provenance: dict[str, Any]
    unknown_arrays: tuple[str, ...]


def dataset_info(path: str | Path) -> DatasetInfo:
    """Counts, units, composition and provenance of a dataset file.

    Raises
    ------
    DataError
        If the file cannot be read as a dataset.
    """
    with Dataset(path) as ds:
        per_frame = np.diff(ds.offsets)
        numbers, counts = np.unique(ds.numbers, return_counts=True)
        elements = {chemical_symbols[z]: int(c) for z, c in zip(numbers, counts, strict=True)}
        groups, sizes = np.unique(ds.group.astype(str), return_counts=True)
        order = np.argsort(-sizes, kind="stable")[:10]
        optional = [name for name, spec in FIELDS.items() if not spec.required and name in ds.fields]
        labelled = {name: int(has_field(ds, name).sum()) for name in optional}
        if "hessian_row_offsets" in ds.fields:
            labelled["hessian_rows"] = int((np.diff(ds.array("hessian_row_offsets")) > 0).sum())
        return DatasetInfo(
            path=ds.path,
            content_hash=ds.content_hash,
            bytes=ds.path.stat().st_size,
            n_frames=len(ds),
            n_atoms=ds.n_atoms,
            n_groups=len(groups),
            n_trajectories=len(set(zip(ds.group, ds.origin, strict=True))),
            atoms_per_frame=(int(per_frame.min()), int(np.median(per_frame)), int(per_frame.max())),
            labelled=labelled,
            units={name: unit_of(name) for name in FIELDS if name in ds.fields and unit_of(name) != "1"},
            elements=elements,
            hydrogen_fraction=elements.get("H", 0) / ds.n_atoms,
            charges=_histogram(ds.charge),
            multiplicities=_histogram(ds.multiplicity),
            periodic=int(ds.pbc.any(axis=1).sum()),
            largest_groups=[(str(groups[k]), int(sizes[k])) for k in order],
            provenance=ds.provenance,
            unknown_arrays=ds.unknown_arrays,
        )


def _histogram(values: np.ndarray) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return {int(v): int(c) for v, c in zip(found, counts, strict=True)}
