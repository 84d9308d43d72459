"""A protein with all its atoms, from a sequence or from a PDB file: what a force field needs before it can begin.

PDBFixer rebuilds a side chain on a bare backbone with either handedness (its superposition allows reflections), so
every residue that leaves here is checked: L-amino acids, and peptide bonds trans unless they came in cis.
"""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...ase_calcs.errors import InputError, StructureError, require
from ...ase_calcs.proteins.residues import CODES, NAMES

_PURPOSE = "build proteins"
_BASINS = {"helix": (-63.0, -43.0), "strand": (-120.0, 130.0), "polyproline": (-75.0, 145.0)}
_SHARES = (0.3, 0.4, 0.3)  # of random chains; left-handed conformations are reached by dynamics
_SPREAD = 15.0  # degrees
_CLASH = 4.2  # Å between Cα atoms that are three or more residues apart
_BROKEN = 4.6  # Å between Cα atoms of neighbours, which are 3.8 apart, 2.9 with a cis bond
_CIS = 90.0  # degrees of ω


@dataclass(frozen=True)
class AllAtom:
    """A protein with all atoms, hydrogens among them.

    Attributes
    ----------
    topology
        OpenMM's ``Topology``.
    positions
        (N, 3) Å.
    notes
        What was added or changed on the way, for people.
    """

    topology: Any
    positions: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def sequence(self) -> str:
        """One letter for each residue, chains divided by colons."""
        chains = [
            "".join(NAMES[residue.name] for residue in chain.residues() if residue.name in NAMES)
            for chain in self.topology.chains()
        ]
        return ":".join(chain for chain in chains if chain)

    def pdb(self) -> str:
        """The text of a PDB file."""
        app, unit = _openmm("openmm.app"), _openmm("openmm.unit")
        text = io.StringIO()
        app.PDBFile.writeFile(self.topology, self.positions * unit.angstrom, text, keepIds=True)
        return text.getvalue()


def build_sequence(sequence: str, *, torsions: Sequence[tuple[float, float]] | None = None, ph: float = 7.0) -> AllAtom:
    """A chain in ideal geometry with chosen backbone torsions.

    Parameters
    ----------
    sequence
        One-letter codes of the twenty amino acids, one chain.
    torsions
        (φ, ψ) in degrees for every residue; None is an extended chain.
    ph
        Decides on the protons of side chains. Hydrogen-free ends become NH3⁺ and COO⁻.

    Raises
    ------
    InputError
        Letters that are no amino acids, or another number of torsions.
    """
    sequence = check_sequence(sequence)
    torsions = [_BASINS["strand"]] * len(sequence) if torsions is None else list(torsions)
    if len(torsions) != len(sequence):
        raise InputError(f"There are {len(torsions)} pairs of torsions for {len(sequence)} residues.")
    builder = require("PeptideBuilder", extra="proteins", purpose=_PURPOSE)
    writer = require("Bio.PDB", extra="proteins", purpose=_PURPOSE)
    # PeptideBuilder takes the ψ of the residue before.
    structure = builder.make_structure(sequence, [phi for phi, _ in torsions[1:]], [psi for _, psi in torsions[:-1]])
    builder.add_terminal_OXT(structure)
    text, output = io.StringIO(), writer.PDBIO()
    output.set_structure(structure)
    output.save(text)
    return _complete(text.getvalue(), ph)


def random_torsions(sequence: str, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(φ, ψ) of an unfolded chain in degrees, residue by residue from helix, strand and polyproline."""
    basins = list(_BASINS.values())
    found = []
    for letter in sequence:
        phi, psi = _BASINS["polyproline"] if letter == "P" else basins[int(rng.choice(3, p=_SHARES))]
        spread = rng.normal(0.0, _SPREAD, 2)
        found.append((phi + (0.0 if letter == "P" else spread[0]), psi + spread[1]))
    return found


def build_unfolded(sequence: str, rng: np.random.Generator, *, ph: float = 7.0, attempts: int = 200) -> AllAtom:
    """A random chain that does not run through itself."""
    for _ in range(attempts):
        protein = build_sequence(sequence, torsions=random_torsions(sequence, rng), ph=ph)
        beads = protein.positions[alpha_carbons(protein.topology)]
        distances = np.linalg.norm(beads[:, None] - beads, axis=-1)
        if (distances[np.triu_indices(len(beads), 3)] > _CLASH).all():
            return protein
    raise StructureError(
        f"No random chain without clashes was found in {attempts} attempts: start from `extended`, or give a PDB file."
    )


def read_protein(path: str | Path, *, ph: float = 7.0) -> AllAtom:
    """The first model of a PDB or mmCIF file, completed.

    Missing atoms and hydrogens are added; water, ions and ligands are left out, and modified residues replaced by what
    they were made from, each with a note. Missing stretches of chain are refused: nobody knows where they are.

    Raises
    ------
    InputError
        The file cannot be read.
    StructureError
        No protein, gaps in a chain, D-amino acids.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"`{path}` cannot be read as a structure ({error}).") from error
    kind: Literal["pdbfile", "pdbxfile"] = "pdbxfile" if path.suffix.lower() in (".cif", ".mmcif") else "pdbfile"
    try:
        return _complete(text, ph, kind)
    except StructureError as error:
        raise StructureError(f"`{path}`: {error}") from error
    except Exception as error:  # PDBFixer and OpenMM have no errors of their own for files they cannot read
        raise InputError(
            f"`{path}` is no {'mmCIF' if kind == 'pdbxfile' else 'PDB'} file that OpenMM can read "
            f"({type(error).__name__}: {error})."
        ) from error


def check_sequence(sequence: str) -> str:
    """Capital letters of amino acids only."""
    letters = "".join(sequence.split()).upper()
    unknown = sorted({letter for letter in letters if letter not in CODES})
    if unknown or not letters:
        raise InputError(
            f"`{sequence}` is no sequence: {', '.join(unknown) or 'it is empty'}. Allowed are the one-letter codes "
            f"{CODES}."
        )
    return letters


def alpha_carbons(topology: Any) -> np.ndarray:
    """Indices of the Cα atoms, residue by residue."""
    return np.array([atom.index for atom in topology.atoms() if atom.name == "CA" and atom.residue.name in NAMES])


def _openmm(module: str) -> Any:
    return require(module, extra="proteins", purpose=_PURPOSE)


def _complete(text: str, ph: float, kind: Literal["pdbfile", "pdbxfile"] = "pdbfile") -> AllAtom:
    """All atoms of the first model of a PDB or mmCIF file."""
    fixer_class = require("pdbfixer", extra="proteins", purpose=_PURPOSE).PDBFixer
    unit = _openmm("openmm.unit")
    # The platform for its minimisations: in double precision, and on one thread, they have one result.
    reference = _openmm("openmm").Platform.getPlatformByName("Reference")
    fixer = fixer_class(**{kind: io.StringIO(text)}, platform=reference)
    before = sum(1 for _ in fixer.topology.residues())
    cis = _cis_bonds(fixer.topology, _angstroms(fixer.positions, unit))
    notes: list[str] = []
    fixer.findMissingResidues()
    lengths = [sum(1 for _ in chain.residues()) for chain in fixer.topology.chains()]
    inner = [key for key in fixer.missingResidues if 0 < key[1] < lengths[key[0]]]
    if inner:
        chain, place = inner[0]
        raise StructureError(
            f"{len(inner)} stretches of chain are missing, the first after residue {place} of chain {chain + 1}. "
            "Model them elsewhere (MODELLER, AlphaFold), or cut the structure there and give the parts as chains."
        )
    if fixer.missingResidues:
        notes.append("ends of chains that the file names but does not show were left out")
        fixer.missingResidues = {}
    fixer.findNonstandardResidues()
    if fixer.nonstandardResidues:
        changed = ", ".join(f"{residue.name} → {name}" for residue, name in fixer.nonstandardResidues)
        notes.append(f"modified residues replaced: {changed}")
        fixer.replaceNonstandardResidues()
    fixer.removeHeterogens(keepWater=False)
    after = sum(1 for _ in fixer.topology.residues())
    if not after or not len(alpha_carbons(fixer.topology)):
        raise StructureError("no amino acids.")
    _refuse_gaps(fixer.topology, _angstroms(fixer.positions, unit))
    if after < before:
        notes.append(f"{before - after} residues of water, ions and ligands left out")
    fixer.findMissingAtoms()
    heavy = sum(len(atoms) for atoms in [*fixer.missingAtoms.values(), *fixer.missingTerminals.values()])
    if heavy:
        notes.append(f"{heavy} heavy atoms added")
        fixer.addMissingAtoms(seed=0)
    with same_numbers():
        fixer.addMissingHydrogens(ph)
    positions = _angstroms(fixer.positions, unit)
    inverted = mirror_images(fixer.topology, positions)
    if inverted:
        raise StructureError(
            f"residues {', '.join(inverted)} are D-amino acids. Side chains built on a bare backbone come out so: give "
            "a structure with Cβ atoms at least."
        )
    twisted = sorted(set(_cis_bonds(fixer.topology, positions)) - set(cis)) if heavy else []
    if twisted:
        raise StructureError(f"the peptide bonds before {', '.join(twisted)} became cis while atoms were added.")
    return AllAtom(fixer.topology, positions, tuple(notes))


def _refuse_gaps(topology: Any, positions: np.ndarray) -> None:
    """A file need not say what it lacks: neighbours in a chain that are far apart are none."""
    residues = [(residue, atoms) for residue, atoms in _named(topology) if "CA" in atoms]
    for (before, first), (residue, second) in pairwise(residues):
        apart = float(np.linalg.norm(positions[second["CA"]] - positions[first["CA"]]))
        if before.chain is residue.chain and apart > _BROKEN:
            raise StructureError(
                f"a stretch of chain is missing between {_label(before)} and {_label(residue)}, whose Cα "
                f"are {apart:.1f} Å apart. Model it elsewhere (MODELLER, AlphaFold), or give the parts as chains."
            )


def _label(residue: Any) -> str:
    """``TYR 2``, or ``TYR 2 of chain B``."""
    chain = residue.chain.id.strip()
    return f"{residue.name} {residue.id}" + (f" of chain {chain}" if chain not in ("", "A") else "")


@contextmanager
def same_numbers() -> Iterator[None]:
    """OpenMM throws new hydrogens around with Python's global generator: here always in the same way."""
    before = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(before)


def _angstroms(positions: Any, unit: Any) -> np.ndarray:
    return np.array(positions.value_in_unit(unit.angstrom), dtype=float)


def mirror_images(topology: Any, positions: np.ndarray) -> list[str]:
    """Residues whose N, C, Cβ stand around Cα as in D-amino acids, as ``TYR 2``."""
    return [
        _label(residue)
        for residue, atoms in _named(topology)
        if {"N", "CA", "C", "CB"} <= atoms.keys()
        and handedness(positions[[atoms[n] for n in ("N", "CA", "C", "CB")]]) < 0
    ]


def handedness(atoms: np.ndarray) -> float:
    """Signed volume (Å³) of N, Cα, C, Cβ (4, 3): positive for L-amino acids."""
    n, ca, c, cb = atoms
    return float(np.dot(np.cross(n - ca, c - ca), cb - ca))


def _cis_bonds(topology: Any, positions: np.ndarray) -> list[str]:
    from ...ase_calcs.proteins.geometry import dihedrals

    found = []
    residues = [(residue, atoms) for residue, atoms in _named(topology) if {"N", "CA", "C"} <= atoms.keys()]
    for (before, first), (residue, second) in itertools.pairwise(residues):
        if before.chain is not residue.chain:
            continue
        four = [first["CA"], first["C"], second["N"], second["CA"]]
        if abs(np.degrees(dihedrals(positions[None, four])[0, 0])) < _CIS:
            found.append(_label(residue))
    return found


def _named(topology: Any) -> Iterable[tuple[Any, dict[str, int]]]:
    for residue in topology.residues():
        if residue.name in NAMES:
            yield residue, {atom.name: atom.index for atom in residue.atoms()}
