"""Charge and spin of a drawn molecule: mend the usual misdrawings, say what looks wrong, count the electrons.

A wrong total charge is the worst fault an input can have: every teacher labels the wrong ion without complaint. The
parity of the electrons does not catch a nitro group written ``N([O-])[O-]`` (charge −2, still even), so such groups are
rewritten here, with a note, before any charge is summed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..ase_calcs.errors import StructureError

if TYPE_CHECKING:
    from rdkit import Chem

# Usual sum of bond orders, by element and formal charge. A charged atom outside this table is called suspicious.
_USUAL_VALENCE: dict[tuple[str, int], tuple[int, ...]] = {
    ("B", -1): (4,),
    ("C", -1): (3,),  # isocyanide, cyanide: only where a triple bond stands, see `_usual`
    ("N", 1): (4,),
    ("N", -1): (1, 2),
    ("O", -1): (1,),
    ("O", 1): (3,),
    ("P", 1): (4,),
    ("S", -1): (1,),
    ("S", 1): (3, 5),
    ("Se", -1): (1,),
    ("Se", 1): (3,),
    ("I", 1): (2,),
}


def electron_count(numbers: np.ndarray, charge: int) -> int:
    """Number of electrons of a structure; `numbers` (N,) atomic numbers, `charge` in e."""
    return int(np.sum(numbers)) - int(charge)


def lowest_multiplicity(numbers: np.ndarray, charge: int) -> int:
    """1 for an even number of electrons, 2 for an odd one."""
    return 1 + electron_count(numbers, charge) % 2


def check_parity(numbers: np.ndarray, charge: int, multiplicity: int) -> None:
    """Refuse a charge and a multiplicity that cannot go together.

    Raises
    ------
    StructureError
        If the electrons are fewer than the unpaired ones, or of the wrong parity.
    """
    electrons = electron_count(numbers, charge)
    if multiplicity < 1 or electrons < multiplicity - 1:
        raise StructureError(
            f"charge {charge:+d} leaves {electrons} electrons, too few for multiplicity {multiplicity}"
        )
    if (electrons + multiplicity) % 2 == 0:
        raise StructureError(
            f"charge {charge:+d} gives {electrons} electrons, which cannot have multiplicity {multiplicity}: "
            f"{'an even' if electrons % 2 == 0 else 'an odd'} number needs "
            f"{'an odd' if electrons % 2 == 0 else 'an even'} multiplicity. Give the right charge or multiplicity."
        )


def label(atom: Chem.Atom) -> str:
    """Name of an atom as people count: element and 1-based index, e.g. ``N5``."""
    return f"{atom.GetSymbol()}{atom.GetIdx() + 1}"


def _order(atom: Chem.Atom) -> float:
    return sum(bond.GetBondTypeAsDouble() for bond in atom.GetBonds())


def _terminal_oxides(mol: Chem.Mol, atom: Chem.Atom) -> list[Chem.Atom]:
    """Singly bonded O− (or S−) neighbours that carry nothing else."""
    return [
        other
        for other in atom.GetNeighbors()
        if other.GetSymbol() in ("O", "S")
        and other.GetDegree() == 1
        and other.GetFormalCharge() == -1
        and mol.GetBondBetweenAtoms(atom.GetIdx(), other.GetIdx()).GetBondTypeAsDouble() == 1.0
    ]


def _make_double(mol: Chem.Mol, atom: Chem.Atom, oxide: Chem.Atom) -> None:
    from rdkit import Chem

    mol.GetBondBetweenAtoms(atom.GetIdx(), oxide.GetIdx()).SetBondType(Chem.BondType.DOUBLE)
    oxide.SetFormalCharge(0)


def _has_hydrogen(atom: Chem.Atom) -> bool:
    return atom.GetNumExplicitHs() > 0 or any(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())


def _mend_nitro(mol: Chem.Mol, atom: Chem.Atom) -> str:
    """N([O-])[O-] and [N+]([O-])[O-] are nitro groups, nitrate esters or nitrate."""
    oxides = _terminal_oxides(mol, atom)
    all_single = _order(atom) == 3.0 == atom.GetDegree()
    if len(oxides) < 2 or not all_single or _has_hydrogen(atom) or atom.GetFormalCharge() not in (0, 1):
        return ""
    before = atom.GetFormalCharge() - len(oxides)
    atom.SetFormalCharge(1)
    atom.SetNumRadicalElectrons(0)
    _make_double(mol, atom, oxides[0])
    return f"nitro group at {label(atom)} was drawn with charge {before:+d}; read as [N+](=O)[O-]"


def _mend_oxide_of_s_or_p(mol: Chem.Mol, atom: Chem.Atom) -> str:
    """S([O-])[O-] with four single bonds is a sulfone, P[O-] with four a phosphoryl, S[O-] with three a sulfoxide."""
    if atom.GetFormalCharge() != 0 or _has_hydrogen(atom) or _order(atom) != atom.GetDegree():
        return ""
    wanted = {("S", 4): 2, ("S", 3): 1, ("P", 4): 1}.get((atom.GetSymbol(), atom.GetDegree()), 0)
    oxides = _terminal_oxides(mol, atom)[:wanted]
    if not wanted or len(oxides) < wanted:
        return ""
    for oxide in oxides:
        _make_double(mol, atom, oxide)
    kind = {("S", 4): "sulfonyl", ("S", 3): "sulfoxide", ("P", 4): "phosphoryl"}[(atom.GetSymbol(), atom.GetDegree())]
    return f"{kind} group at {label(atom)} was drawn with single bonds and {-wanted:+d} too much charge; read with =O"


def _mend_nitrogen_of_four_bonds(mol: Chem.Mol, atom: Chem.Atom) -> str:
    """A neutral N with four bonds is N+ (ammonium, iminium, N-oxide, azide, diazo, isocyanide)."""
    if atom.GetFormalCharge() != 0 or _order(atom) != 4.0 or any(b.GetIsAromatic() for b in atom.GetBonds()):
        return ""
    atom.SetFormalCharge(1)
    for other in atom.GetNeighbors():
        order = mol.GetBondBetweenAtoms(atom.GetIdx(), other.GetIdx()).GetBondTypeAsDouble()
        bare = other.GetFormalCharge() == 0 and not _has_hydrogen(other)
        triple_to_n = any(
            o.GetSymbol() == "N" and mol.GetBondBetweenAtoms(atom.GetIdx(), o.GetIdx()).GetBondTypeAsDouble() == 3.0
            for o in atom.GetNeighbors()
        )
        diazo = other.GetSymbol() == "N" and other.GetDegree() == 1 and order == 2.0
        azide = other.GetSymbol() == "N" and other.GetDegree() == 2 and order == 1.0 and triple_to_n
        isocyanide = other.GetSymbol() == "C" and other.GetDegree() == 1 and order == 3.0
        if bare and (diazo or (azide and _order(other) == 2.0) or isocyanide):
            other.SetFormalCharge(-1)
            return f"{label(atom)} and {label(other)} were drawn without their charges; read as +1 and -1"
    return f"{label(atom)} has four bonds and was drawn neutral; read as +1"


def normalise_charges(mol: Chem.RWMol) -> list[str]:
    """Rewrite misdrawn charged groups in place, before sanitisation; atoms keep their order and coordinates.

    Mended are nitro groups and nitrates written with two O−, sulfonyl, sulfoxide and phosphoryl groups written with O−
    on an uncharged centre, and neutral nitrogens with four bonds (also azides, diazo compounds, isocyanides). Nitro
    groups, N-oxides and azides written with five-bonded nitrogen are mended by RDKit's own sanitisation.

    Returns
    -------
    list of str
        One note for each change.
    """
    notes = []
    for atom in mol.GetAtoms():
        note = ""
        if atom.GetSymbol() == "N":
            note = _mend_nitro(mol, atom) or _mend_nitrogen_of_four_bonds(mol, atom)
        elif atom.GetSymbol() in ("S", "P"):
            note = _mend_oxide_of_s_or_p(mol, atom)
        if note:
            notes.append(note)
    return notes


def _usual(atom: Chem.Atom) -> bool:
    allowed = _USUAL_VALENCE.get((atom.GetSymbol(), atom.GetFormalCharge()), ())
    if atom.GetSymbol() == "C" and not any(b.GetBondTypeAsDouble() == 3.0 for b in atom.GetBonds()):
        return False
    return atom.GetTotalValence() in allowed


def suspicious_charges(mol: Chem.Mol) -> list[str]:
    """Notes on a total charge of two or more, and on charged atoms with an unusual number of bonds.

    `mol` is sanitised. Monatomic ions are usual whatever their charge.
    """
    notes = []
    charges = [atom.GetFormalCharge() for atom in mol.GetAtoms()]
    if abs(sum(charges)) >= 2:
        where = ", ".join(f"{label(a)} {a.GetFormalCharge():+d}" for a in mol.GetAtoms() if a.GetFormalCharge())
        notes.append(f"suspicious charge: total {sum(charges):+d} e, from {where}; check the drawing")
    notes += [
        f"suspicious charge: {atom.GetFormalCharge():+d} on {label(atom)} with {atom.GetTotalValence()} bonds; "
        "check the drawing"
        for atom in mol.GetAtoms()
        if atom.GetFormalCharge() and atom.GetDegree() + atom.GetTotalNumHs() and not _usual(atom)
    ]
    return notes


def as_integer(value: Any, what: str) -> int:
    """An integer from a number or text of a file, refusing 0.5, NaN and words."""
    if isinstance(value, (bool, np.bool_)):  # how ASE reads a bare word such as `charge`, without `=`
        raise StructureError(f"{what} has no value; write `=` and a whole number")
    try:
        number = float(value)
        whole = round(number)
    except (TypeError, ValueError, OverflowError):
        raise StructureError(f"{what} is `{value}`, which is not a whole number") from None
    if abs(number - whole) > 1e-6:
        raise StructureError(f"{what} is {value}, which is not a whole number")
    return int(whole)
