"""Dataset files to and from other formats, and several into one or one into several."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..ase_calcs.errors import DataError, InputError
from ..ase_calcs.progress import Progress, SilentProgress
from .foreign import ImportOptions, Seen, read_ase_db, read_extxyz, write_ase_db, write_extxyz
from .npz import MoleculeFile, load_npz, write_npz
from .splits import SplitBy, split_indices
from .store import Dataset
from .structure import Labels
from .writer import Frame, atomic_write, write_dataset

Format = Literal["dataset", "extxyz", "npz", "db"]
Need = Literal["forces", "energy", "nothing"]

SUFFIXES: dict[str, Format] = {
    ".h5": "dataset",
    ".hdf5": "dataset",
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".npz": "npz",
    ".db": "db",
}
READERS: dict[Format, Callable[[Path, ImportOptions, Seen], Iterator[Frame]]] = {
    "extxyz": read_extxyz,
    "db": read_ase_db,
}
WRITERS: dict[Format, Callable[[Path, Iterable[Frame]], int]] = {
    "extxyz": write_extxyz,
    "db": write_ase_db,
}

# Labels of one geometry that differ by more than this, in eV, are not of one teacher with one set of settings.
SAME_ENERGY = 1e-4


@dataclass(frozen=True)
class ConvertResult:
    """What a conversion did: the file, how many frames, how many of them with energy and with forces, and remarks."""

    path: Path
    n_frames: int
    n_energy: int
    n_forces: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MergeResult:
    """The merged file, its frames, how many duplicates were dropped, and how many of those had other labels."""

    path: Path
    n_frames: int
    n_duplicates: int
    n_conflicts: int


def format_of(path: Path) -> Format:
    """Format by suffix.

    Raises
    ------
    InputError
        For a suffix that is not known.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"The format of {path.name} is not known; known suffixes are {', '.join(SUFFIXES)}.")
    return SUFFIXES[path.suffix.lower()]


def convert_file(
    source: str | Path,
    target: str | Path,
    *,
    options: ImportOptions | None = None,
    need: Need = "forces",
    teacher: str | None = None,
    progress: Progress | None = None,
) -> ConvertResult:
    """Convert between dataset files (.h5), extended XYZ, NPZ and ASE databases, by suffix.

    A folder stands for the NPZ files in it, one for each molecule: as the source all of them are read, by name; as the
    target of a dataset file it gets them.

    Parameters
    ----------
    source, target
        Files or folders; a target file is replaced in one step.
    options
        Names, units, charge and multiplicity for foreign sources. Must be None for a dataset file.
    need
        What at least one frame must have. A file of thousands of frames whose labels have names that nobody asked for
        would otherwise come in as a set without labels.
    teacher
        Who made the labels, e.g. ``"PBE/def2-SVP"``; kept in the provenance, and compared by `merge_datasets`.
    progress
        Where to report to.

    Raises
    ------
    DataError
        The source cannot be read, or lacks what is needed.
    InputError
        Unknown suffix, unit or key, or source and target are one file.
    """
    source, target = Path(source), Path(target)
    from_format = "npz" if source.is_dir() else format_of(source)
    to_folder = from_format == "dataset" and (target.is_dir() or not target.suffix)
    to_format = "npz" if to_folder else format_of(target)
    if source.resolve() == target.resolve():
        raise InputError(f"Source and target are the same file, {source}; name another target.")
    if not source.exists():
        raise DataError(f"There is no file {source}.")
    if from_format == "dataset" and options not in (None, ImportOptions()):
        raise InputError(f"{source.name} is a dataset file: its units, names and charges are fixed; drop the options.")
    if from_format == "dataset" and teacher is not None:
        raise InputError(f"{source.name} is a dataset file and says itself who its teacher was; drop `teacher`.")
    counts, seen = _Counts(), Seen()
    with (progress or SilentProgress()).task(f"Converting {source.name}", None) as bar:
        if from_format == "dataset":
            dataset = Dataset(source)
            frames: Iterable[Frame] = dataset.frames()
            provenance: Mapping[str, Any] = dataset.provenance
        elif from_format == "npz":
            files = [load_npz(path, options or ImportOptions(), seen) for path in _files(source)]
            frames = (frame for file in files for frame in file.frames())
            provenance = _provenance(source, options or ImportOptions(), teacher) | _said_by(files, teacher)
        else:
            frames = READERS[from_format](source, options or ImportOptions(), seen)
            provenance = _provenance(source, options or ImportOptions(), teacher)
        counted = counts.over(frames, source, need, seen, bar.advance)
        if to_format == "dataset":
            write_dataset(target, counted, provenance=provenance)
        elif to_folder:
            _write_npz_folder(target, Dataset(source), counted)
        else:
            with atomic_write(target) as temporary:
                if to_format == "npz":
                    write_npz(temporary, counted, provenance)
                else:
                    WRITERS[to_format](temporary, counted)
    notes = [f"{count} frames: {text}" for text, count in seen.notes.items()]
    for name, count in (("energy", counts.energy), ("forces", counts.forces)):
        if 0 < count < counts.frames:
            notes.append(f"{counts.frames - count} of {counts.frames} frames have no {name}")
    return ConvertResult(target, counts.frames, counts.energy, counts.forces, tuple(notes))


@dataclass
class _Counts:
    """Counts frames as they stream past; fails before the target is put in place if what is needed never came."""

    frames: int = 0
    energy: int = 0
    forces: int = 0

    def over(
        self, frames: Iterable[Frame], source: Path, need: Need, seen: Seen, advance: Callable[[], None]
    ) -> Iterator[Frame]:
        for frame in frames:
            labels: Labels | None = frame[1]
            self.frames += 1
            self.energy += labels is not None and labels.energy is not None
            self.forces += labels is not None and labels.forces is not None
            advance()
            yield frame
        if self.frames == 0:
            raise DataError(f"{source} has no frames.")
        wanted = {"nothing": (), "energy": ("energy",), "forces": ("energy", "forces")}[need]
        missing = [name for name in wanted if getattr(self, name) == 0]
        if missing:
            names = ", ".join(sorted(seen.names)) or "none"
            raise DataError(
                f"None of the {self.frames} frames of {source.name} has {' and '.join(missing)}. Real numbers seen in "
                f"it: {names}. If the labels are among them, name them (--energy-key, --forces-key); if the file has "
                f"energies only, say --need energy; for geometries without labels, --need nothing."
            )


def _provenance(source: Path, options: ImportOptions, teacher: str | None) -> dict[str, Any]:
    hashes = {}
    for path in _files(source):
        with open(path, "rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    single = {"file": source.name, "sha256": hashes.get(source.name)}
    return {
        "teacher": teacher,
        "source": {"folder": source.name, "sha256": hashes} if source.is_dir() else single,
        "import": {k: v for k, v in asdict(options).items() if v is not None},
    }


def _files(source: Path) -> list[Path]:
    """The file, or the NPZ files of a folder by name."""
    found = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    if not found:
        raise DataError(f"The folder {source} holds no NPZ files; other formats are converted file by file.")
    return found


def _said_by(files: Sequence[MoleculeFile], teacher: str | None) -> dict[str, Any]:
    """What NPZ files that become one dataset say together: their teacher and their trajectories."""
    said: dict[str, Any] = {}
    if teacher is None:
        teachers = {tuple(_plain(file.provenance.get(key)) for key in TEACHER_KEYS) for file in files}
        if len(teachers) > 1:
            names = ", ".join(sorted(" ".join(filter(None, names)) or "one not said" for names in teachers))
            raise DataError(
                f"The files are of different teachers ({names}), which do not belong in one set. If you know that "
                f"they do, name one teacher for all of them with --teacher."
            )
        said = {key: files[0].provenance[key] for key in TEACHER_KEYS if key in files[0].provenance}
    if all("trajectories" in file.provenance for file in files):
        said["trajectories"] = [record for file in files for record in file.provenance["trajectories"]]
    return said


def _write_npz_folder(folder: Path, dataset: Dataset, frames: Iterable[Frame]) -> None:
    """One NPZ file for each molecule, named after its group; `frames` are those of the dataset."""
    molecules: dict[tuple[str, bytes], list[Frame]] = {}
    for frame in frames:
        molecules.setdefault((frame[0].group, frame[0].numbers.tobytes()), []).append(frame)
    used: set[str] = set()
    for (group, _), own in molecules.items():
        name = re.sub(r"[^\w.+-]", "_", group) or "molecule"
        while name in used:
            name += "_"
        used.add(name)
        with atomic_write(folder / f"{name}.npz") as temporary:
            write_npz(temporary, own, dataset.provenance)


# ----------------------------------------------------------------------------------------------------- merge and split


def merge_datasets(
    paths: Sequence[str | Path],
    target: str | Path,
    *,
    teachers: Literal["same", "any"] = "same",
    progress: Progress | None = None,
) -> MergeResult:
    """Put several dataset files into one; a geometry that comes twice is kept once.

    The first copy of a geometry stays, unless only a later one has labels.

    Parameters
    ----------
    paths
        Dataset files, in the order in which their frames shall stand.
    target
        The merged file.
    teachers
        ``"same"`` refuses files whose provenance names different teachers or versions, and copies of one geometry
        whose energies differ by more than `SAME_ENERGY`; ``"any"`` takes them and counts the latter as conflicts.

    Raises
    ------
    DataError
        Different teachers, or labels that contradict each other.
    InputError
        Fewer than two files, or the target among them.
    """
    sources, target = [Path(p) for p in paths], Path(target)
    if len(sources) < 2:
        raise InputError(f"Merging takes at least two dataset files; got {len(sources)}.")
    if target.resolve() in [p.resolve() for p in sources]:
        raise InputError(f"The target {target} is one of the files to merge; name another target.")
    datasets = [Dataset(p) for p in sources]
    if teachers == "same":
        _check_teachers(datasets)
    chosen: dict[str, tuple[int, int, float | None]] = {}  # key → file, frame, energy
    duplicates = conflicts = 0
    with (progress or SilentProgress()).task("Comparing geometries", sum(map(len, datasets))) as bar:
        for d, dataset in enumerate(datasets):
            for i, (structure, labels) in enumerate(dataset):
                energy = None if labels is None else labels.energy
                key = structure.key()
                bar.advance()
                if key not in chosen:
                    chosen[key] = (d, i, energy)
                    continue
                duplicates += 1
                known = chosen[key][2]
                if known is None and labels is not None:
                    chosen[key] = (d, i, energy)
                elif known is not None and energy is not None and abs(known - energy) > SAME_ENERGY:
                    conflicts += 1
                    if teachers == "same":
                        raise DataError(
                            f"One geometry has the energy {known:.6f} eV in {sources[chosen[key][0]].name} and "
                            f"{energy:.6f} eV in {sources[d].name}: not the same teacher or settings. Merge only one "
                            f"of them, or say --teachers any to keep the first."
                        )
    provenance = {
        **_shared(datasets),
        "merged_from": [
            {"file": p.name, "content_hash": ds.content_hash, "provenance": ds.provenance}
            for p, ds in zip(sources, datasets, strict=True)
        ],
    }
    order = sorted((d, i) for d, i, _ in chosen.values())
    write_dataset(target, (f for d, i in order for f in datasets[d].frames([i])), provenance=provenance)
    return MergeResult(target, len(order), duplicates, conflicts)


TEACHER_KEYS = ("teacher", "teacher_version", "teacher_settings")


def _check_teachers(datasets: Sequence[Dataset]) -> None:
    """Refuse labels of different teachers; sets without labels go with anything."""
    labelled = [ds for ds in datasets if ds.fields & {"energy", "forces"}]
    found = {ds.path.name: tuple(_plain(ds.provenance.get(key)) for key in TEACHER_KEYS) for ds in labelled}
    if len(set(found.values())) > 1:
        table = "; ".join(f"{name}: {' '.join(v for v in said if v) or 'not said'}" for name, said in found.items())
        raise DataError(
            f"The files were labelled by different teachers ({table}). Energies of different methods do not belong in "
            f"one set. If you know that they do, say --teachers any."
        )


def _plain(value: Any) -> str:
    return "" if value in (None, {}, []) else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _shared(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Entries of the provenance in which all labelled files agree."""
    provenances = [ds.provenance for ds in datasets if ds.fields & {"energy", "forces"}] or [datasets[0].provenance]
    first = provenances[0]
    return {k: v for k, v in first.items() if all(p.get(k) == v for p in provenances) and k != "merged_from"}


def split_dataset(
    path: str | Path,
    out_dir: str | Path | None = None,
    *,
    by: SplitBy = "group",
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, Path]:
    """Write the parts of a dataset as files of their own, ``<name>-<part>.h5``.

    Parameters
    ----------
    path
        The dataset file.
    out_dir
        Where the parts go; default the folder of `path`.
    by, fractions, seed
        As in `split_indices`.

    Returns
    -------
    dict
        Part → file.
    """
    dataset = Dataset(path)
    folder = Path(out_dir) if out_dir is not None else dataset.path.parent
    parts = split_indices(dataset, by=by, fractions=fractions, seed=seed)
    written = {}
    for part, indices in parts.items():
        provenance = {
            **dataset.provenance,
            "split": {
                "of": dataset.path.name,
                "content_hash": dataset.content_hash,
                "part": part,
                "by": by,
                "seed": seed,
            },
        }
        target = folder / f"{dataset.path.stem}-{part}.h5"
        written[part] = write_dataset(target, dataset.frames(indices), provenance=provenance)
    return written
