"""Structures in: files and SMILES become `Structure`s, or a refusal with its reason. No record stops the run.

=====================  ==============================================================================================
``.smi``               SMILES and a name per line
``.sdf`` ``.mol``      V2000 or V3000; hydrogens completed, 2D embedded, charge from formal charges
``.xyz`` ``.extxyz``   charge and multiplicity from the comment line
``.db``                ASE database
``.pdb``               protonated models; charge from valences
``.h5``                a distillase dataset (labels are left behind)
a folder               every file of these kinds in it, by name
``.gz`` ``.tar.gz``    any of the text formats, compressed or as an archive
any other text         SMILES
=====================  ==============================================================================================
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms

from ..ase_calcs.errors import DistillaseError, InputError, StructureError
from .composition import composition_check
from .frames import prepare_frame
from .molecules import Prepared, need_rdkit, parse_smiles, prepare_molecule
from .pdb import pdb_models, read_pdb_model
from .structure import Structure

TEXT_SUFFIXES = (".smi", ".smiles", ".sdf", ".mol", ".xyz", ".extxyz", ".pdb")
SUFFIXES = (*TEXT_SUFFIXES, ".db", ".h5")
# What a damaged archive or file raises. Read as one refusal of the whole file.
_BROKEN_FILE = (OSError, EOFError, zlib.error, tarfile.TarError, UnicodeError)


@dataclass(frozen=True)
class Refusal:
    """A record that was not taken, and why.

    Attributes
    ----------
    source
        File (and member of an archive) or SMILES.
    record
        1-based number of the record in its source; the row id of an ASE db; 0 for the file as a whole.
    name
        Name of the record, "" where it has none.
    reason
        One sentence or two.
    """

    source: str
    record: int
    name: str
    reason: str


@dataclass(frozen=True)
class Intake:
    """What was read.

    Attributes
    ----------
    structures
        The accepted ones, in the order of the input.
    refusals
        The others, with reasons.
    notes
        What was changed or looks odd, as "source record N (name): note"; the same note on more than fifty records of
        one source stands once, with their number.
    """

    structures: list[Structure]
    refusals: list[Refusal]
    notes: list[str]


@dataclass(frozen=True)
class _Record:
    source: str
    number: int
    name: str
    prepare: Callable[[], Prepared]


@dataclass(frozen=True)
class _Note:
    record: _Record
    text: str


def read_structures(paths_or_smiles: Sequence[str | Path], *, seed: int = 0, allow_no_hydrogen: bool = False) -> Intake:
    """Read files, folders and SMILES strings.

    Parameters
    ----------
    paths_or_smiles
        Paths (see the table of this module), or SMILES where no such file exists.
    seed
        Seed of the embedding of records without 3D coordinates; the same seed gives the same geometry.
    allow_no_hydrogen
        Take a set of molecules that has no hydrogen atom at all.

    Raises
    ------
    InputError
        If something is neither a file of a known kind nor SMILES: a mistyped path should not be found out hours later.
    DataError
        If structures were accepted, and the molecules among them hold no hydrogen (see `composition_check`).
    """
    if isinstance(paths_or_smiles, (str, Path)):
        paths_or_smiles = [paths_or_smiles]
    sources = [source for item in paths_or_smiles for source in _expand(item)]
    intake = Intake([], [], [])
    for source in sources:
        notes: list[_Note] = []
        _take(source, seed, intake, notes)
        intake.notes.extend(_condense(source, notes))
    if intake.structures:
        composition_check(intake.structures, allow_no_hydrogen=allow_no_hydrogen)
    return intake


def _expand(item: str | Path) -> list[Path | str]:
    """Existing paths as Path (folders become their files), SMILES as str."""
    path = Path(item)
    try:
        exists = path.exists()
    except OSError:  # a SMILES can be too long for a file name
        exists = False
    if exists and path.is_dir():
        found = sorted(entry for entry in path.iterdir() if entry.is_file() and _kind(entry.name))
        if not found:
            raise InputError(f"The folder `{path}` holds no file that can be read; allowed are {', '.join(SUFFIXES)}.")
        return list(found)
    if exists:
        if not _kind(path.name):
            raise InputError(f"`{path}` is of no known kind; allowed are {', '.join(SUFFIXES)}, also .gz and .tar.gz.")
        return [path]
    if isinstance(item, str) and not _kind(item):
        if parse_smiles(item) is not None and item.strip():
            return [item]
        raise InputError(f"`{item}` is neither an existing file nor SMILES.")
    raise InputError(f"There is no file `{item}`.")


def _kind(name: str) -> str:
    """The suffix that decides the reader: ".sdf", ".tar" …; "" for an unknown one."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes[-1:] == [".tgz"] or suffixes[-2:] == [".tar", ".gz"] or suffixes[-1:] == [".tar"]:
        return ".tar"
    if suffixes[-1:] == [".gz"]:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in TEXT_SUFFIXES else ""
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else ""


def _condense(root: Path | str, notes: list[_Note]) -> list[str]:
    """One line per note, and one line in all for a note that more than fifty records share."""
    shared = Counter(note.text for note in notes)
    lines: dict[str, None] = {}
    for note in notes:
        record, count = note.record, shared[note.text]
        if count > 50:
            lines.setdefault(f"{root} {count} records: {note.text}")
        else:
            name = f" ({record.name})" if record.name else ""
            lines.setdefault(f"{record.source} record {record.number}{name}: {note.text}")
    return list(lines)


def _take(source: Path | str, seed: int, intake: Intake, notes: list[_Note]) -> None:
    """Work through one source; whatever happens becomes a structure or a refusal."""
    records = _records(source, seed)
    done = 0
    while True:
        try:
            record = next(records)
        except StopIteration:
            break
        except (DistillaseError, *_BROKEN_FILE) as error:
            intake.refusals.append(Refusal(str(source), 0, "", f"the file cannot be read further: {error}"))
            return
        done += 1
        _take_record(record, intake, notes)
    if not done:
        intake.refusals.append(Refusal(str(source), 0, "", "no records: the file is empty or of another format"))


def _take_record(record: _Record, intake: Intake, notes: list[_Note]) -> None:
    try:
        prepared = record.prepare()
    except StructureError as error:
        reason = str(error)
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # a bad record must not stop the run; the reason says that it was unforeseen
        reason = f"unforeseen {type(error).__name__}: {str(error).strip() or 'no message'}"
    else:
        intake.structures.append(prepared.structure)
        notes.extend(_Note(record, text) for text in prepared.notes)
        return
    intake.refusals.append(Refusal(record.source, record.number, record.name, reason))


def _records(source: Path | str, seed: int) -> Iterator[_Record]:
    if isinstance(source, str):
        yield _smiles_record(source, 1, source, "", seed)
        return
    kind = _kind(source.name)
    if kind == ".tar":
        yield from _tar_records(source, seed)
    elif kind == ".db":
        yield from _db_records(source)
    elif kind == ".h5":
        yield from _dataset_records(source)
    else:
        data = source.read_bytes()
        yield from _text_records(kind, _decode(data, source.name), str(source), seed)


def _decode(data: bytes, name: str) -> str:
    return (gzip.decompress(data) if name.lower().endswith(".gz") else data).decode("utf-8", errors="replace")


def _tar_records(path: Path, seed: int) -> Iterator[_Record]:
    """Every readable file of an archive, by name."""
    with tarfile.open(path) as archive:
        members = sorted((m for m in archive.getmembers() if m.isfile()), key=lambda member: member.name)
        for member in members:
            kind = _kind(member.name)
            stream = archive.extractfile(member) if kind in TEXT_SUFFIXES else None
            if stream is not None and not Path(member.name).name.startswith("."):
                yield from _text_records(kind, _decode(stream.read(), member.name), f"{path}/{member.name}", seed)


def _text_records(kind: str, text: str, source: str, seed: int) -> Iterator[_Record]:
    if kind in (".sdf", ".mol"):
        yield from _sdf_records(text, source, seed)
    elif kind in (".smi", ".smiles"):
        yield from _smi_records(text, source, seed)
    elif kind == ".pdb":
        yield from _pdb_records(text, source)
    else:
        yield from _xyz_records(text, source)


def _smiles_record(source: str, number: int, smiles: str, name: str, seed: int) -> _Record:
    return _Record(source, number, name, partial(_prepare_smiles, smiles, seed))


def _prepare_smiles(smiles: str, seed: int) -> Prepared:
    mol = parse_smiles(smiles)
    if mol is None:
        raise StructureError(f"`{smiles}` is not SMILES")
    return prepare_molecule(mol, seed=seed)


def _smi_records(text: str, source: str, seed: int) -> Iterator[_Record]:
    """One molecule per line, "SMILES name"; empty lines, # comments and a "smiles name" heading are passed over."""
    number = 0
    for line in text.splitlines():
        words = line.split(maxsplit=1)
        if not words or words[0].startswith("#") or (number == 0 and words[0].lower() == "smiles"):
            continue
        number += 1
        yield _smiles_record(source, number, words[0], words[1].strip() if len(words) > 1 else "", seed)


def _sdf_records(text: str, source: str, seed: int) -> Iterator[_Record]:
    blocks = re.split(r"^\$\$\$\$.*$\n?", text.replace("\r\n", "\n").replace("\r", "\n"), flags=re.MULTILINE)
    if blocks and not blocks[-1].strip():
        blocks.pop()
    for number, block in enumerate(blocks, 1):
        name = block.split("\n", 1)[0].strip()
        yield _Record(source, number, name, partial(_prepare_mol_block, block, seed))


def _prepare_mol_block(block: str, seed: int) -> Prepared:
    need_rdkit()
    from rdkit import Chem, rdBase

    molblock, end, _ = block.partition("M  END")
    if not block.strip():
        raise StructureError("the record is empty")
    with rdBase.BlockLogs():
        mol = Chem.MolFromMolBlock(molblock + (end and "M  END\n"), sanitize=False, removeHs=False)
    if mol is None:
        raise StructureError(
            "RDKit cannot parse the record: atom, bond or counts lines are damaged, or an element is unknown"
        )
    field = re.search(r"^>[^\n]*<(?:spin_)?multiplicity>[^\n]*\n\s*(\S+)", block, flags=re.MULTILINE | re.IGNORECASE)
    if field and not field[1].isdecimal():
        raise StructureError(f"the field multiplicity is `{field[1]}`, which is not a whole number of 1 or more")
    return prepare_molecule(mol, seed=seed, multiplicity=int(field[1]) if field else None)


def _pdb_records(text: str, source: str) -> Iterator[_Record]:
    for number, (name, block) in enumerate(pdb_models(text), 1):
        yield _Record(source, number, name, partial(_prepare_pdb, block))


def _prepare_pdb(block: str) -> Prepared:
    atoms, notes = read_pdb_model(block)
    prepared = prepare_frame(atoms)
    return Prepared(prepared.structure, (*notes, *prepared.notes))


def _xyz_records(text: str, source: str) -> Iterator[_Record]:
    """Frames of an (ext)xyz file, cut by their own atom counts so that one bad frame does not take the others along."""
    lines = text.splitlines()
    start, number = 0, 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        number += 1
        if not lines[start].strip().isdecimal():
            raise StructureError(
                f"frame {number}: line {start + 1} should be a number of atoms, got `{lines[start][:40]}`"
            )
        count = int(lines[start])
        frame = lines[start : start + count + 2]
        yield _Record(source, number, "", partial(_prepare_xyz, frame, count))
        start += count + 2


def _prepare_xyz(frame: list[str], count: int) -> Prepared:
    from ase.io.extxyz import read_xyz as read_extxyz

    if count == 0:
        raise StructureError("no atoms")
    if len(frame) < count + 2:
        raise StructureError(f"the frame says {count} atoms and the file ends after {max(len(frame) - 2, 0)}")
    text = "\n".join(frame) + "\n"
    try:
        atoms = next(read_extxyz(io.StringIO(text), 0))
    except Exception as error:  # ASE raises many kinds; a plain comment that only looks like key=value is one cause
        if "Properties" in frame[1] or "Lattice" in frame[1]:
            raise StructureError(f"ASE cannot read the frame ({error})") from None
        atoms = _read_plain_xyz(text, frame[1])
    return prepare_frame(atoms)


def _read_plain_xyz(text: str, comment: str) -> Atoms:
    from ase.io.xyz import read_xyz

    try:
        atoms = next(read_xyz(io.StringIO(text), slice(0, 1)))
    except Exception as error:
        raise StructureError(f"a line of the frame is not `element x y z` with a known element ({error})") from None
    if re.search(r"charge|mult|spin", comment, flags=re.IGNORECASE):
        raise StructureError(f"the comment line names a charge or spin but is not key=value text: `{comment[:60]}`")
    return atoms


def _db_records(path: Path) -> Iterator[_Record]:
    import sqlite3

    from ase.db import connect

    try:
        with connect(path, serial=True) as database:
            rows = list(database.select())
    except (sqlite3.Error, ValueError, KeyError) as error:
        raise StructureError(f"not an ASE database ({error})") from None
    for row in rows:
        name = str(row.get("name", ""))
        yield _Record(str(path), row.id, name, partial(_prepare_row, row))


def _prepare_row(row: Any) -> Prepared:
    # `row.charge` is the sum of the initial charges and hides a key `charge` that the user stored; vars() has both.
    stored = {key: vars(row).get(key, value) for key, value in row.key_value_pairs.items()}
    return prepare_frame(row.toatoms(), given={**row.data, **stored})


def _dataset_records(path: Path) -> Iterator[_Record]:
    from .store import Dataset

    with Dataset(path) as dataset:
        for index in range(len(dataset)):
            structure = dataset.structure(index)
            yield _Record(str(path), index + 1, structure.group, partial(Prepared, structure))
