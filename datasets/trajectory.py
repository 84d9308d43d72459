"""`Trajectory`: one run of one molecule, as arrays; what jump networks learn from and what dynamics are compared by.

In a dataset file a trajectory is one origin of one group; `velocities` and `temperature` are stored with its frames,
and what there is no array for (the time between frames, how it was made, what it cost) is one record of the list
``trajectories`` in the provenance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_masses

from ..ase_calcs.errors import DataError, InputError
from ..ase_calcs.units import FS, KB
from .foreign import ImportOptions, Seen
from .npz import load_npz
from .npz import write_npz as write_npz_frames
from .store import Dataset
from .structure import Labels, Structure
from .writer import FRAMES_PER_FLUSH, Frame, FrameTable, atomic_write, write_dataset

FILE_NAME = "trajectories.h5"  # in the folder of a run

# Entries of a record that say which frames it means; the others are the settings.
_FRAMES = ("group", "origin", "frames", "interval", "masses")


@dataclass(frozen=True)
class Trajectory:
    """Frames of one run at equal intervals.

    Attributes
    ----------
    numbers
        (N,) int, atomic numbers.
    masses
        (N,) u, as the run had them.
    positions
        (T, N, 3) Å.
    velocities
        (T, N, 3) Å/fs. ASE's own are Å per √(u Å²/eV), which is 10.18 fs: multiply them by `ase.units.fs`.
    interval
        fs between two frames.
    energies
        (T,) eV, potential energy of the teacher; None where unknown.
    forces
        (T, N, 3) eV/Å of the teacher; None where unknown.
    group
        The molecule it belongs to.
    origin
        Which run it is: trajectories with different origins are independent.
    charge, multiplicity
        Electronic state.
    smiles
        Canonical SMILES where known, else "".
    settings
        How it was made: ``teacher``, ``integrator``, ``timestep`` (fs), ``friction`` (1/fs), ``temperature_K``,
        ``seed``, and what it cost: ``teacher_gradients``, ``teacher_energies``, ``seconds``; ``degrees_of_freedom``
        that move, and ``stopped``, why it ended before its time. What is unknown is absent.
    cell
        (3, 3) Å, rows are lattice vectors; zeros for a molecule.
    pbc
        (3,) bool.
    """

    numbers: np.ndarray
    masses: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    interval: float
    energies: np.ndarray | None = None
    forces: np.ndarray | None = None
    group: str = ""
    origin: str = ""
    charge: int = 0
    multiplicity: int = 1
    smiles: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    cell: np.ndarray = field(default_factory=lambda: np.zeros((3, 3)))
    pbc: np.ndarray = field(default_factory=lambda: np.zeros(3, dtype=bool))

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def times(self) -> np.ndarray:
        """(T,) fs since the first frame."""
        return self.interval * np.arange(len(self))

    @property
    def kinetic_energies(self) -> np.ndarray:
        """(T,) eV, Σ ½ m v²."""
        return 0.5 * np.einsum("tnd,tnd,n->t", self.velocities, self.velocities, self.masses / FS**2)

    @property
    def temperatures(self) -> np.ndarray:
        """(T,) K, 2 E_kin / (f k_B) with f = ``settings["degrees_of_freedom"]``, else 3N."""
        degrees = self.settings.get("degrees_of_freedom") or 3 * len(self.numbers)
        return 2.0 * self.kinetic_energies / (degrees * KB)


# -------------------------------------------------------------------------------------------------------------- reading


def read_trajectories(path: str | Path, *, interval: float | None = None) -> list[Trajectory]:
    """The trajectories in a dataset file, an NPZ file, or the folder of a run of ``distillase trajectories``.

    Parameters
    ----------
    path
        ``trajectories.h5`` or the folder that holds it, or an ``.npz`` in the schema of `distillase.datasets.npz`.
    interval
        fs between two frames, for a file that does not say.

    Returns
    -------
    list of Trajectory
        In the order of the file; one whose first frame was never reached is left out.

    Raises
    ------
    DataError
        No velocities, no word on the time between frames, or frames that are missing.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if path.suffix.lower() == ".npz":
        return _from_npz(path, interval)
    with Dataset(path) as dataset:
        return _from_dataset(dataset, interval)


def read_frames(path: str | Path) -> list[Trajectory]:
    """The labelled frames of a dataset, one `Trajectory` for each origin, in time or not.

    For what needs positions and forces and no order: velocities are zero and the interval is 0.

    Raises
    ------
    DataError
        No forces, or frames of one origin that are not of one molecule.
    """
    with Dataset(path) as dataset:
        if "forces" not in dataset.fields:
            raise DataError(f"{dataset.path} has no forces; label it first (`distillase label`).")
        runs: dict[tuple[str, str, bytes], list[int]] = {}
        for i, key in enumerate(zip(dataset.group.tolist(), dataset.origin.tolist(), strict=True)):
            numbers = dataset.numbers[dataset.offsets[i] : dataset.offsets[i + 1]]
            runs.setdefault((str(key[0]), str(key[1]), numbers.tobytes()), []).append(i)
        found = []
        for (group, origin, _), rows in runs.items():
            first = dataset.structure(rows[0])
            atoms = dataset.offsets[rows][:, None] + np.arange(len(first))  # (T, N)
            found.append(
                Trajectory(
                    numbers=first.numbers,
                    masses=atomic_masses[first.numbers],
                    positions=dataset.positions[atoms],
                    velocities=np.zeros((*atoms.shape, 3)),
                    interval=0.0,
                    forces=dataset.forces[atoms],
                    group=group,
                    origin=origin,
                    charge=first.charge,
                    multiplicity=first.multiplicity,
                    smiles=first.smiles,
                    settings={"teacher": dataset.provenance.get("teacher", "")},
                )
            )
        return found


def _from_npz(path: Path, interval: float | None) -> list[Trajectory]:
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    file = load_npz(path, ImportOptions(interval=interval), Seen())
    if file.velocities is None:
        raise DataError(f"{path} has no velocities, so its frames are not a trajectory that dynamics can be told from.")
    records = _records(file.provenance, interval, str(path))
    return [
        _checked(
            Trajectory(
                numbers=file.numbers,
                positions=file.positions[rows],
                velocities=file.velocities[rows],
                energies=_known(file.energies, rows),
                forces=_known(file.forces, rows),
                cell=np.zeros((3, 3)) if file.cell is None else file.cell[rows[0]],
                pbc=np.zeros(3, dtype=bool) if file.pbc is None else np.array(file.pbc[rows[0]], dtype=bool),
                **_said(records, key, len(rows), file.provenance, str(path), file.masses),
                charge=int(file.charge[rows[0]]),
                multiplicity=int(file.multiplicity[rows[0]]),
                smiles=str(file.smiles[rows[0]]),
            ),
            str(path),
        )
        for key, rows in _runs(file.group, file.origin).items()
    ]


def _from_dataset(dataset: Dataset, interval: float | None) -> list[Trajectory]:
    where = str(dataset.path)
    if "velocities" not in dataset.fields:
        raise DataError(
            f"{where} has no velocities, so its frames are not trajectories; `distillase trajectories` makes some."
        )
    records = _records(dataset.provenance, interval, where)
    found = []
    for key, rows in _runs(dataset.group, dataset.origin).items():
        first = dataset.structure(int(rows[0]))
        n = len(first)
        if (dataset.offsets[rows + 1] - dataset.offsets[rows] != n).any():
            raise DataError(f"{where}: the frames of {key[0]}, {key[1]} are not all of one molecule.")
        atoms = dataset.offsets[rows][:, None] + np.arange(n)  # (T, N)
        if (dataset.numbers[atoms] != first.numbers).any():
            raise DataError(f"{where}: the frames of {key[0]}, {key[1]} do not list the same atoms in the same order.")
        said = _said(records, key, len(rows), dataset.provenance, where, atomic_masses[first.numbers])
        trajectory = Trajectory(
            numbers=first.numbers,
            positions=dataset.positions[atoms],
            velocities=dataset.velocities[atoms],
            energies=_known(dataset.energy, rows) if "energy" in dataset.fields else None,
            forces=_known(dataset.forces, atoms) if "forces" in dataset.fields else None,
            charge=first.charge,
            multiplicity=first.multiplicity,
            smiles=first.smiles,
            cell=first.cell,
            pbc=first.pbc,
            **said,
        )
        found.append(_checked(trajectory, where))
    return found


def _runs(group: np.ndarray, origin: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """(group, origin) → indices of its frames, in the order of the file."""
    runs: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(group.tolist(), origin.tolist(), strict=True)):
        runs.setdefault((str(key[0]), str(key[1])), []).append(i)
    return {key: np.array(rows) for key, rows in runs.items()}


def _records(
    provenance: Mapping[str, Any], interval: float | None, where: str
) -> dict[tuple[str, str], Mapping[str, Any]] | float:
    """Records by (group, origin), or the interval for all where there are none."""
    if "trajectories" in provenance:
        return {(record["group"], record["origin"]): record for record in provenance["trajectories"]}
    if interval is None:
        raise DataError(
            f"{where} does not say how much time lies between its frames. Files of `distillase trajectories` do; for "
            f"another, give `interval` in fs."
        )
    return float(interval)


def _said(
    records: dict[tuple[str, str], Mapping[str, Any]] | float,
    key: tuple[str, str],
    n_frames: int,
    provenance: Mapping[str, Any],
    where: str,
    masses: np.ndarray,
) -> dict[str, Any]:
    """Name, interval, settings and masses of a run; `masses` are those where its record gives none."""
    record: Mapping[str, Any] = {"interval": records} if isinstance(records, float) else records.get(key, {})
    if "interval" not in record:
        raise DataError(f"{where}: no record says how the frames of {key[0]}, {key[1]} follow each other.")
    if record.get("frames", n_frames) != n_frames:
        raise DataError(
            f"{where}: {key[0]}, {key[1]} had {record['frames']} frames and {n_frames} are here. A trajectory with "
            f"gaps cannot be used; split such files by trajectory or by group, not by frame."
        )
    settings = {k: v for k, v in record.items() if k not in _FRAMES}
    if provenance.get("teacher"):
        settings.setdefault("teacher", provenance["teacher"])
    return {
        "group": key[0],
        "origin": key[1],
        "interval": float(record["interval"]),
        "settings": settings,
        "masses": np.array(record.get("masses", masses), dtype=float),
    }


def _known(values: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    """The rows, if they are known in every frame."""
    return None if values is None or not np.isfinite(values[rows]).all() else values[rows]


def _checked(trajectory: Trajectory, where: str) -> Trajectory:
    if not np.isfinite(trajectory.velocities).all():
        raise DataError(f"{where}: some frames of {trajectory.group}, {trajectory.origin} have no velocities.")
    return trajectory


# -------------------------------------------------------------------------------------------------------------- writing


def write_trajectories(
    path: str | Path, trajectories: Sequence[Trajectory], *, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Write trajectories into a dataset file.

    Parameters
    ----------
    path
        Target; replaced in one step if it exists.
    trajectories
        Each with its own pair of group and origin. One without frames leaves its record alone.
    provenance
        Stored beside the list ``trajectories``.

    Raises
    ------
    DataError
        No frames at all, two trajectories of one name, or values that are not finite.
    """
    records = [trajectory_record(t) for t in trajectories]
    names = [(record["group"], record["origin"]) for record in records]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(
            f"Two trajectories are called {', '.join(sorted(twice)[0])}; each origin of a group is one run."
        )
    tables = (table for trajectory in trajectories for table in _tables(trajectory))
    return write_dataset(Path(path), tables, provenance={**(provenance or {}), "trajectories": records})


def trajectory_record(trajectory: Trajectory) -> dict[str, Any]:
    """What the provenance says of one trajectory."""
    record: dict[str, Any] = {
        "group": trajectory.group,
        "origin": trajectory.origin,
        "frames": len(trajectory),
        "interval": float(trajectory.interval),
        **trajectory.settings,
    }
    if not np.array_equal(trajectory.masses, atomic_masses[trajectory.numbers]):
        record["masses"] = np.asarray(trajectory.masses).tolist()
    return record


def _tables(trajectory: Trajectory) -> Iterator[FrameTable]:
    n, temperatures = len(trajectory.numbers), trajectory.temperatures
    for start in range(0, len(trajectory), FRAMES_PER_FLUSH):
        part = slice(start, start + FRAMES_PER_FLUSH)
        count = len(trajectory.positions[part])
        columns: dict[str, Any] = {
            "numbers": np.tile(trajectory.numbers, count),
            "positions": np.reshape(trajectory.positions[part], (-1, 3)),
            "velocities": np.reshape(trajectory.velocities[part], (-1, 3)),
            "temperature": temperatures[part],
            "cell": np.broadcast_to(trajectory.cell, (count, 3, 3)),
            "pbc": np.broadcast_to(trajectory.pbc, (count, 3)),
            "charge": np.full(count, trajectory.charge),
            "multiplicity": np.full(count, trajectory.multiplicity),
            **{name: [getattr(trajectory, name)] * count for name in ("group", "origin", "smiles")},
        }
        if trajectory.energies is not None:
            columns["energy"] = trajectory.energies[part]
        if trajectory.forces is not None:
            columns["forces"] = np.reshape(trajectory.forces[part], (-1, 3))
        yield FrameTable(np.full(count, n), columns)


def write_npz(path: str | Path, trajectories: Sequence[Trajectory]) -> Path:
    """Write trajectories of one molecule as NPZ, in nm, nm/ps, kJ/mol, kJ/mol/nm, K and u (see `read_npz`).

    Raises
    ------
    DataError
        No frames, or trajectories of several molecules.
    """
    path = Path(path)
    records = [trajectory_record(t) for t in trajectories]
    with atomic_write(path) as temporary:
        write_npz_frames(temporary, (f for t in trajectories for f in _frames(t)), {"trajectories": records})
    return path


def read_npz(path: str | Path, *, interval: float | None = None) -> list[Trajectory]:
    """The trajectories of an NPZ file; see `read_trajectories`."""
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path} is not an NPZ file; `read_trajectories` reads other kinds too.")
    return read_trajectories(path, interval=interval)


def _frames(trajectory: Trajectory) -> Iterator[Frame]:
    temperatures = trajectory.temperatures
    for i in range(len(trajectory)):
        structure = Structure(
            trajectory.numbers,
            trajectory.positions[i],
            cell=trajectory.cell,
            pbc=trajectory.pbc,
            charge=trajectory.charge,
            multiplicity=trajectory.multiplicity,
            group=trajectory.group,
            origin=trajectory.origin,
            smiles=trajectory.smiles,
        )
        energy = None if trajectory.energies is None else float(trajectory.energies[i])
        forces = None if trajectory.forces is None else trajectory.forces[i]
        labels = Labels(energy, forces) if energy is not None or forces is not None else None  # type: ignore[arg-type]
        yield structure, labels, {"velocities": trajectory.velocities[i], "temperature": temperatures[i]}
