"""From a drawn molecule (SMILES, SDF record) to a `Structure`: every hydrogen an atom, in 3D, with charge and spin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ase_calcs.errors import StructureError, require
from .charges import (
    check_parity,
    electron_count,
    label,
    lowest_multiplicity,
    normalise_charges,
    suspicious_charges,
)
from .hydrogens import atom_numbers, atom_positions, check_distances, complete_hydrogens, embed, has_3d
from .structure import Structure

if TYPE_CHECKING:
    from rdkit import Chem

# Elements whose charge and spin follow from a drawing. In everything else (metals) they do not.
MAIN_GROUP = frozenset([1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 33, 34, 35, 36, 52, 53, 54])
# Bond orders are guessed from a geometry only up to this size; the search is exponential in the worst case.
REBOND_ATOMS = 80
REBOND_ITERATIONS = 10_000

_SINGLE_ATOM = "a single atom: its forces are always zero, so there is nothing to learn from it"


@dataclass(frozen=True)
class Prepared:
    """An accepted record: the structure, and what was done to it."""

    structure: Structure
    notes: tuple[str, ...] = ()


def need_rdkit() -> None:
    """Say in one sentence what to install where RDKit is missing."""
    require("rdkit.Chem", extra="train", purpose="read and complete molecules")


def parse_smiles(smiles: str) -> Chem.Mol | None:
    """An unsanitised molecule, or None where `smiles` is not SMILES; quiet."""
    need_rdkit()
    from rdkit import Chem, rdBase

    parameters: Any = Chem.SmilesParserParams()
    parameters.sanitize = False
    parameters.removeHs = False
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles, parameters)


def prepare_molecule(mol: Chem.Mol, *, seed: int = 0, multiplicity: int | None = None) -> Prepared:
    """Normalise, complete and check a molecule; accept it or refuse it with a reason.

    Parameters
    ----------
    mol
        Unsanitised RDKit molecule, with a conformer where the record has coordinates.
    seed
        Seed of the embedding, where one is needed.
    multiplicity
        2S+1 where the record states it; else 1, or 2 for a declared radical.

    Raises
    ------
    StructureError
        The reason of the refusal.
    """
    from rdkit import rdBase

    with rdBase.BlockLogs():
        return _prepare(mol, seed, multiplicity)


def _prepare(mol: Chem.Mol, seed: int, multiplicity: int | None) -> Prepared:
    from rdkit import Chem

    notes: list[str] = []
    _check_atoms(mol, notes)
    three_d, note = has_3d(mol)
    notes += [note] if note else []
    metals = sorted({atom.GetSymbol() for atom in mol.GetAtoms() if atom.GetAtomicNum() not in MAIN_GROUP})
    if three_d and not metals and mol.GetNumBonds() == 0 and mol.GetNumAtoms() > 1:
        mol = rebond(mol)
        notes.append("the record has no bonds; they were found from the geometry")
    _check_whole(mol)
    if metals:
        raise StructureError(
            f"contains {', '.join(metals)}: charge and spin of a metal do not follow from a drawing. Give the geometry "
            "as extxyz with charge= and multiplicity= in the comment line."
        )
    declared = sum(atom.GetNumRadicalElectrons() for atom in mol.GetAtoms())
    editable = Chem.RWMol(mol)
    notes += normalise_charges(editable)
    mol = _sanitise(editable)
    _check_radicals(mol, declared, multiplicity)
    if three_d:
        full, done = complete_hydrogens(mol)
        Chem.AssignStereochemistryFrom3D(full)
    else:
        open_centres = _open_stereocentres(mol)
        full, done = embed(mol, seed)
        if open_centres:
            done.append(f"stereochemistry not drawn at {', '.join(open_centres)}; one form was taken")
        Chem.AssignStereochemistryFrom3D(full)
    notes += done
    if full.GetNumAtoms() == 1:
        raise StructureError(_SINGLE_ATOM)
    check_distances(full)
    notes += suspicious_charges(full)
    return Prepared(_structure(full, multiplicity), tuple(notes))


def _structure(full: Chem.Mol, multiplicity: int | None) -> Structure:
    from rdkit import Chem

    numbers = atom_numbers(full)
    charge = Chem.GetFormalCharge(full)
    if multiplicity is None and charge == 0 and numbers.tolist() == [8, 8]:
        raise StructureError(
            "O2 is a triplet, which its drawing does not say: state multiplicity 3 (SD field or extxyz)"
        )
    spin = lowest_multiplicity(numbers, charge) if multiplicity is None else multiplicity
    check_parity(numbers, charge, spin)
    smiles = Chem.MolToSmiles(Chem.RemoveHs(full))
    return Structure(
        numbers, atom_positions(full), charge=charge, multiplicity=spin, group=smiles, origin="input", smiles=smiles
    )


def _check_atoms(mol: Chem.Mol, notes: list[str]) -> None:
    if mol.GetNumAtoms() == 0:
        raise StructureError("no atoms")
    queries = [a for a in mol.GetAtoms() if a.GetAtomicNum() == 0 or a.HasQuery()]
    if queries:
        raise StructureError(f"{label(queries[0])} is a dummy or query atom; replace it by a real one")
    if mol.GetNumAtoms() == 1 and mol.GetAtomWithIdx(0).GetAtomicNum() == 1:
        raise StructureError("a single hydrogen atom, not a molecule")
    if mol.GetNumAtoms() == 1 and mol.GetAtomWithIdx(0).GetAtomicNum() not in MAIN_GROUP:
        raise StructureError(_SINGLE_ATOM)
    isotopes = [label(atom) for atom in mol.GetAtoms() if atom.GetIsotope()]
    for atom in mol.GetAtoms():
        atom.SetIsotope(0)
    if isotopes:
        notes.append(f"isotope labels dropped at {', '.join(isotopes[:5])}; energies do not depend on mass")


def _check_whole(mol: Chem.Mol) -> None:
    """One connected piece only."""
    from rdkit import Chem

    pieces = Chem.GetMolFrags(mol)
    if len(pieces) > 1:
        sizes = ", ".join(str(len(piece)) for piece in pieces[:6]) + (", …" if len(pieces) > 6 else "")
        raise StructureError(
            f"{len(pieces)} disconnected pieces (of {sizes} atoms): a salt, a mixture or a broken molecule. Split it "
            "into one record per molecule; give a complex you want whole as extxyz with its charge."
        )


def _sanitise(mol: Chem.RWMol) -> Chem.Mol:
    from rdkit import Chem

    result = mol.GetMol()
    try:
        Chem.SanitizeMol(result)
    except (ValueError, RuntimeError) as error:
        raise StructureError(f"RDKit finds the chemistry impossible: {_one_based(result, str(error))}") from None
    Chem.AssignStereochemistry(result, cleanIt=True, force=True)
    return result


def _one_based(mol: Chem.Mol, message: str) -> str:
    """RDKit's complaint with atoms named as people count them."""
    import re

    message = re.sub(r"[aA]tom # ?(\d+) (\w+)", lambda m: f"{m[2]}{int(m[1]) + 1}", message.strip())
    message = re.sub(r"[uU]nkekulized atoms: ([\d ]+\d)", lambda m: _kekule(mol, m[1].split()), message)
    return re.sub(r"[aA]tom (\d+)", lambda m: label(mol.GetAtomWithIdx(int(m[1]))), message)


def _kekule(mol: Chem.Mol, indices: list[str]) -> str:
    names = [label(mol.GetAtomWithIdx(int(index))) for index in indices]
    return f"aromatic atoms {', '.join(names)} (a missing [nH] or charge?)"


def _check_radicals(mol: Chem.Mol, declared: int, multiplicity: int | None) -> None:
    """Open valences are accepted as one declared unpaired electron, or with a stated multiplicity; else refused."""
    radicals = [atom for atom in mol.GetAtoms() if atom.GetNumRadicalElectrons()]
    count = sum(atom.GetNumRadicalElectrons() for atom in radicals)
    if count == 0 or multiplicity is not None:
        return
    where = ", ".join(label(atom) for atom in radicals[:6]) + (", …" if len(radicals) > 6 else "")
    from_brackets = mol.GetNumConformers() == 0  # SMILES states a radical by its brackets, an SDF by M RAD
    if not declared and not from_brackets:
        raise StructureError(
            f"{count} open valence{'s' if count > 1 else ''} at {where}: the record fixes the number of bonds of these "
            "atoms without the hydrogens that fill them (docking programs write this). Write it again from a format "
            "that keeps the hydrogens, or declare radicals with M  RAD."
        )
    if count > 1:
        raise StructureError(
            f"{count} radical electrons at {where}: the spin state does not follow from the drawing. State it: an SD "
            "field `multiplicity`, or extxyz with multiplicity= in the comment line."
        )


def _open_stereocentres(mol: Chem.Mol) -> list[str]:
    from rdkit import Chem

    centres = Chem.FindMolChiralCenters(mol, includeUnassigned=True, useLegacyImplementation=False)
    return [label(mol.GetAtomWithIdx(index)) for index, tag in centres if tag == "?"]


def rebond(mol: Chem.Mol, charge: int | None = None) -> Chem.Mol:
    """Find the bonds of a hydrogen-complete 3D geometry, only where one answer accounts for every electron.

    Raises
    ------
    StructureError
        If there are no hydrogens, the molecule is too large, falls into pieces, or no set of bonds fits the charge.
    """
    from rdkit import Chem
    from rdkit.Chem import rdDetermineBonds

    numbers = atom_numbers(mol)
    charge = Chem.GetFormalCharge(mol) if charge is None else charge
    if not (numbers == 1).any():
        raise StructureError(
            f"{len(numbers)} atoms, no bonds and no hydrogens: valences cannot be told. Give bonds or hydrogens."
        )
    if len(numbers) > REBOND_ATOMS:
        raise StructureError(f"no bonds, and more than {REBOND_ATOMS} atoms: give an SDF with bonds")
    if electron_count(numbers, charge) % 2:
        raise StructureError(
            f"no bonds, and an odd number of electrons at charge {charge:+d}: hydrogens or charge missing?"
        )
    result = Chem.RWMol(mol)
    for atom in result.GetAtoms():
        atom.SetFormalCharge(0)
    try:
        rdDetermineBonds.DetermineConnectivity(result)
        _check_whole(result)
        rdDetermineBonds.DetermineBondOrders(result, charge=charge, maxIterations=REBOND_ITERATIONS, embedChiral=False)
        Chem.SanitizeMol(result)
    except StructureError:
        raise
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise StructureError(f"no bonds, and none found that fit charge {charge:+d} ({reason})") from None
    open_valences = sum(a.GetNumRadicalElectrons() + a.GetNumImplicitHs() for a in result.GetAtoms())
    if Chem.GetFormalCharge(result) != charge or open_valences:
        raise StructureError(f"no bonds, and none found that fit charge {charge:+d} and every valence")
    return result.GetMol()
