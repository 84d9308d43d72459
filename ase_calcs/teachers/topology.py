"""Bonds from geometry, and RDKit molecules in the atom order of a structure.

Everything here is a function of its arguments alone: the same structure gets the same bonds whatever was seen before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import chemical_symbols, covalent_radii

from ..errors import TeacherError, require

BOND_SCALE = 1.3  # atoms of a smaller `bond_stretch` than this are bonded
# A hot frame may stretch a bond past the first, or bring a contact below it; tried in turn against a known SMILES.
_SCALES_WITH_SMILES = (BOND_SCALE, 1.2, 1.4, 1.5, 1.6)
_PURPOSE = "work with the bonds of molecules (MMFF94, conformers)"


def covalent_sums(numbers: np.ndarray) -> np.ndarray:
    """Sums of covalent radii of all pairs, (N, N), Å."""
    radii = covalent_radii[np.asarray(numbers, dtype=int)]
    return radii[:, None] + radii[None, :]


def pair_distances(positions: np.ndarray) -> np.ndarray:
    """Distances of all pairs without periodic images, (N, N), Å."""
    vectors = positions[:, None] - positions[None, :]
    return np.sqrt(np.einsum("ijc,ijc->ij", vectors, vectors))


def bond_stretch(numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """How far pairs are from touching: 1 at the sum s of covalent radii (Cordero 2008), (N, N), dimensionless.

    1 + (d − s)/min(s, 1.5 Å): the allowance stops growing with the radii, else the two iodines of CH₂I₂ were bonded.
    """
    sums = covalent_sums(numbers)
    return 1.0 + (pair_distances(np.asarray(positions, dtype=float)) - sums) / np.minimum(sums, 1.5)


def bonded_pairs(numbers: np.ndarray, positions: np.ndarray, *, scale: float = BOND_SCALE) -> np.ndarray:
    """Pairs i < j with a `bond_stretch` below `scale`, (P, 2) int, sorted; no periodic images."""
    return np.argwhere(np.triu(bond_stretch(numbers, positions) < scale, k=1))


def bond_fingerprint(numbers: np.ndarray, positions: np.ndarray, *, smiles: str = "") -> bytes:
    """Bytes that are equal where `molecule_from_geometry` is certain to find the same bonds; a key for caches."""
    scales = sorted(_SCALES_WITH_SMILES) if smiles else [BOND_SCALE]
    upper = np.triu_indices(len(numbers), k=1)
    ratio = bond_stretch(numbers, positions)[upper]
    return np.searchsorted(scales, ratio, side="right").astype(np.uint8).tobytes()


def molecule_from_geometry(numbers: np.ndarray, positions: np.ndarray, *, charge: int = 0, smiles: str = "") -> Any:
    """A sanitised RDKit molecule with the atoms in the order given, one conformer, and stereo read from it.

    Parameters
    ----------
    numbers
        (N,) atomic numbers, hydrogens included.
    positions
        (N, 3), Å.
    charge
        Total charge, e; must be the sum of formal charges.
    smiles
        Where given, bond orders and formal charges come from it, and only which atom is which from the geometry.
        Otherwise bond orders are perceived (RDKit's rdDetermineBonds, after Kim & Kim 2015, 10.1002/bkcs.10334).

    Raises
    ------
    TeacherError
        The SMILES cannot be read, or its charge or elements are not those of the structure; the geometry
        does not have the bonds of the SMILES; or bond orders cannot be perceived.
    """
    numbers = np.asarray(numbers, dtype=int)
    positions = np.asarray(positions, dtype=float)
    if smiles:
        molecule = _from_smiles(numbers, positions, charge, smiles)
    else:
        molecule = _from_bond_perception(numbers, positions, charge)
    chem = require("rdkit.Chem", extra="train", purpose=_PURPOSE)
    molecule.RemoveAllConformers()
    conformer = chem.Conformer(len(numbers))
    conformer.SetPositions(np.ascontiguousarray(positions))
    molecule.AddConformer(conformer, assignId=True)
    chem.AssignStereochemistryFrom3D(molecule)
    return molecule


def _skeleton(chem: Any, numbers: np.ndarray, pairs: np.ndarray) -> Any:
    """Elements and single bonds, nothing else: what two drawings of one molecule have in common."""
    skeleton = chem.RWMol()
    for z in numbers:
        atom = chem.Atom(int(z))
        atom.SetNoImplicit(True)
        skeleton.AddAtom(atom)
    for i, j in pairs:
        skeleton.AddBond(int(i), int(j), chem.BondType.SINGLE)
    return skeleton


def _from_smiles(numbers: np.ndarray, positions: np.ndarray, charge: int, smiles: str) -> Any:
    chem = require("rdkit.Chem", extra="train", purpose=_PURPOSE)
    template = chem.MolFromSmiles(smiles)
    if template is None:
        raise TeacherError(f"The SMILES `{smiles}` cannot be read.")
    template = chem.AddHs(template)
    if chem.GetFormalCharge(template) != charge:
        raise TeacherError(
            f"The SMILES `{smiles}` has charge {chem.GetFormalCharge(template):+d}, the structure {charge:+d}."
        )
    template_numbers = np.array([atom.GetAtomicNum() for atom in template.GetAtoms()], dtype=int)
    if not np.array_equal(np.sort(template_numbers), np.sort(numbers)):
        raise TeacherError(
            f"The SMILES `{smiles}` has {_count(template_numbers)} (hydrogens added), the structure {_count(numbers)}."
        )
    pairs = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in template.GetBonds()], dtype=int).reshape(-1, 2)
    query = _skeleton(chem, template_numbers, pairs)
    for scale in _SCALES_WITH_SMILES:
        found = bonded_pairs(numbers, positions, scale=scale)
        if len(found) != len(pairs):
            continue
        match = _skeleton(chem, numbers, found).GetSubstructMatch(query)  # atom of the structure for each of the SMILES
        if len(match) == len(numbers):
            return chem.RenumberAtoms(template, [int(k) for k in np.argsort(match)])
    raise TeacherError(f"The geometry does not have the bonds of `{smiles}`: it is broken, reacted or has a clash.")


def _from_bond_perception(numbers: np.ndarray, positions: np.ndarray, charge: int) -> Any:
    chem = require("rdkit.Chem", extra="train", purpose=_PURPOSE)
    determine = require("rdkit.Chem.rdDetermineBonds", extra="train", purpose=_PURPOSE)
    molecule = _skeleton(chem, numbers, bonded_pairs(numbers, positions))
    conformer = chem.Conformer(len(numbers))
    conformer.SetPositions(np.ascontiguousarray(positions))
    molecule.AddConformer(conformer, assignId=True)
    try:
        with _quiet():
            determine.DetermineBondOrders(molecule, charge=int(charge), embedChiral=False)
            chem.SanitizeMol(molecule)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TeacherError(
            f"No bond orders fit {_count(numbers)} with charge {charge:+d} ({reason}). Give the molecule as SMILES or "
            "SDF, or correct its charge."
        ) from error
    return molecule.GetMol()


def _quiet() -> Any:
    return require("rdkit.rdBase", extra="train", purpose=_PURPOSE).BlockLogs()


def _count(numbers: np.ndarray) -> str:
    elements, counts = np.unique(numbers, return_counts=True)
    return " ".join(f"{n}×{chemical_symbols[z]}" for z, n in zip(elements, counts, strict=True))
