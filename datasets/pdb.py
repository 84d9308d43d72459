"""PDB models as `ase.Atoms` with the charge that their hydrogens and valences imply."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from ..ase_calcs.errors import StructureError
from .molecules import REBOND_ATOMS, need_rdkit, rebond

if TYPE_CHECKING:
    from rdkit import Chem

# Bonds of an uncharged atom. What nitrogen, oxygen and sulfur have more or less of is their formal charge.
_NEUTRAL_VALENCE = {1: 1, 6: 4, 7: 3, 8: 2, 9: 1, 16: 2, 17: 1, 35: 1, 53: 1}

_PROTONATE = (
    "no hydrogens. A PDB file does not say how it is protonated, so it is not guessed here: add hydrogens at your pH, "
    "for example with PDBFixer (`pdbfixer in.pdb --add-atoms=hydrogen --ph=7`) or `reduce`; "
    "give a ligand as SDF or SMILES"
)


def pdb_models(text: str) -> Iterator[tuple[str, str]]:
    """Split a PDB file into its models: (name, block of coordinate and CONECT lines).

    CONECT lines stand after the last model and belong to all of them.
    """
    lines = text.splitlines()
    conect = [line for line in lines if line.startswith("CONECT")]
    blocks: list[tuple[str, list[str]]] = []
    name = ""
    block: list[str] = []
    for line in lines:
        if line.startswith("MODEL "):
            name, block = f"model {line[6:].strip()}", []
        elif line.startswith(("ATOM  ", "HETATM", "TER")):
            block.append(line)
        elif line.startswith("ENDMDL") and any(not b.startswith("TER") for b in block):
            blocks.append((name, block))
            name, block = "", []
    if any(not line.startswith("TER") for line in block):
        blocks.append((name, block))
    for name, block in blocks:
        yield name, "\n".join([*block, *conect, "END", ""])


def read_pdb_model(block: str) -> tuple[Atoms, list[str]]:
    """One PDB model as Atoms with ``info["charge"]``, and notes.

    Coordinates come through ASE; the empty frame that its reader can append is not taken. The charge is the sum over
    atoms of bonds less usual valence (N 3, O and S 2), with the bond orders that RDKit knows for standard residues:
    lysine's NH3, arginine, every form of histidine, carboxylates and termini count as their hydrogens say. The cell
    (CRYST1) is dropped: the model is read as one molecule.

    Raises
    ------
    StructureError
        Without hydrogens, with alternate locations, without element columns, or where a residue's bonds are unknown.
    """
    import ase.io

    atom_lines = [line for line in block.splitlines() if line.startswith(("ATOM  ", "HETATM"))]
    _check_columns(atom_lines)
    try:
        images = ase.io.read(io.StringIO(block), index=":", format="proteindatabank")
    except (ValueError, KeyError, IndexError) as error:
        raise StructureError(f"malformed PDB line ({error})") from None
    frames = [image for image in images if len(image)]
    if len(frames) != 1 or len(frames[0]) != len(atom_lines):
        raise StructureError("malformed PDB model: not every ATOM line was understood")
    # A fresh object: the PDB columns (occupancies, residues, B factors) are no concern of a teacher.
    atoms = Atoms(frames[0].numbers, frames[0].positions)
    if not (atoms.numbers == 1).any():
        raise StructureError(_PROTONATE)
    charge, how = _charge(block, atoms)
    atoms.info["charge"] = charge
    return atoms, [how]


def _check_columns(atom_lines: list[str]) -> None:
    if not atom_lines:
        raise StructureError("no atoms")
    if any(not line[76:78].strip() for line in atom_lines):
        raise StructureError(
            "no element symbols in columns 77-78: names such as CA or HG are ambiguous without them. Write the file "
            "again with a current program."
        )
    if len({line[16] for line in atom_lines} - {" "}) > 1:
        raise StructureError("alternate locations are present; keep one")


def _charge(block: str, atoms: Atoms) -> tuple[int, str]:
    need_rdkit()
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        mol = Chem.MolFromPDBBlock(block, sanitize=False, removeHs=False)
    if mol is None or mol.GetNumAtoms() != len(atoms):
        raise StructureError("RDKit cannot parse the PDB model")
    total, unknown = 0, ""
    for atom in mol.GetAtoms():
        excess = _excess(atom)
        if excess and not _protonation(mol, atom, excess):
            residue = atom.GetPDBResidueInfo()
            unknown = f"{residue.GetResidueName().strip()} {residue.GetResidueNumber()} ({residue.GetName().strip()})"
            break
        total += int(excess)
    if not unknown:
        return total, f"charge {total:+d} from the valences of its atoms"
    if len(atoms) <= REBOND_ATOMS:
        try:
            rebond(mol, charge=0)
        except StructureError:
            pass  # the reason below says more
        else:
            return 0, "charge 0, consistent with the bonds found from the geometry"
    raise StructureError(
        f"the bonds of residue {unknown} are not known or hydrogens are missing there, so its charge cannot be told. "
        "Complete the hydrogens, or give the structure as extxyz with charge= in the comment line."
    )


def _excess(atom: Chem.Atom) -> float:
    """Bonds more (or fewer) than the uncharged atom has; minus infinity for an element that is not in the table."""
    bonds = sum(bond.GetBondTypeAsDouble() for bond in atom.GetBonds())
    return bonds - _NEUTRAL_VALENCE.get(atom.GetAtomicNum(), np.inf)


def _protonation(mol: Chem.Mol, atom: Chem.Atom, excess: float) -> bool:
    """Whether an excess of bonds is a charge that proteins have, not a missing hydrogen or an unknown bond order."""
    if atom.GetSymbol() in ("N", "O") and excess == 1:
        return True
    if excess != -1:
        return False
    if atom.GetSymbol() == "O":  # carboxylate, phosphate: another oxygen on the same atom
        return any(
            other.GetSymbol() == "O" and other.GetIdx() != atom.GetIdx()
            for centre in atom.GetNeighbors()
            for other in centre.GetNeighbors()
        )
    if atom.GetSymbol() != "N":
        return False
    # RDKit's template of histidine has its double bond at ND1; protonated there, the two nitrogens balance.
    me = atom.GetPDBResidueInfo()
    return any(
        other.GetSymbol() == "N" and _excess(other) == 1 and info.GetName() != " N  "
        for other in mol.GetAtoms()
        if (info := other.GetPDBResidueInfo()).GetResidueNumber() == me.GetResidueNumber()
        and info.GetChainId() == me.GetChainId()
        and info.GetResidueName() == me.GetResidueName() == "HIS"
    )
