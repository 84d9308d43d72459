"""The MMFF94 force field (Halgren 1996, 10.1002/(SICI)1096-987X(199604)17:5/6<490::AID-JCC1>3.0.CO;2-P) through RDKit.

A cheap surface to sample geometries on, and a teacher whose labels cost microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from ase import Atoms

from ..errors import InputError, TeacherError, require
from ..units import KCAL_PER_MOL
from .base import TeacherCalculator, refuse_unusable
from .registry import check_electron_count
from .topology import bond_fingerprint, molecule_from_geometry

_PURPOSE = "compute MMFF94 energies"
_NO_CUTOFF = 1e4  # Å; RDKit drops pairs beyond 100 Å when it builds the field, which would depend on the geometry


class MMFF94Calculator(TeacherCalculator):
    """MMFF94 or MMFF94s for one molecule, or several that do not react.

    Parameters
    ----------
    charge
        Total charge, e.
    multiplicity
        Only 1: a force field of closed shells.
    smiles
        Bond orders and formal charges; which atom is which is found in the geometry, so the order is free.
    molecule
        Instead: an RDKit molecule whose atoms are in the order of the structures, hydrogens included.
    variant
        ``"MMFF94"``, or ``"MMFF94s"`` with planar delocalised nitrogens.
    topology
        ``"each"`` finds the bonds of every structure anew (a cache makes repeats free), so that a label is a function
        of its structure alone. ``"first"`` keeps the bonds of the first one until `reset`: for dynamics.

    Gives energy, free_energy, forces (analytic), charges (the field's fixed partial charges) and their dipole (e·Å).
    """

    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "forces",
        "charges",
        "dipole",
    ]

    def __init__(
        self,
        *,
        charge: int = 0,
        multiplicity: int = 1,
        smiles: str = "",
        molecule: Any = None,
        variant: Literal["MMFF94", "MMFF94s"] = "MMFF94",
        topology: Literal["each", "first"] = "each",
    ):
        super().__init__()
        if variant not in ("MMFF94", "MMFF94s"):
            raise InputError(f"`variant` is {variant!r}; allowed are 'MMFF94' and 'MMFF94s'.")
        if topology not in ("each", "first"):
            raise InputError(f"`topology` is {topology!r}; allowed are 'each' and 'first'.")
        if multiplicity != 1:
            raise TeacherError(f"MMFF94 knows closed shells only; the structure has multiplicity {multiplicity}.")
        require("rdkit.Chem.rdForceFieldHelpers", extra="train", purpose=_PURPOSE)
        self.charge = int(charge)
        self.smiles = smiles
        self.molecule = molecule
        self.variant = variant
        self.topology = topology
        self._fields: dict[bytes, tuple[Any, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and deep-copies without RDKit's force fields, which are rebuilt when needed."""
        return {**self.__dict__, "_fields": {}}

    def reset(self) -> None:
        """Forget results and bonds."""
        super().reset()
        self._fields = {}

    def single_point(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """One single point; every property comes with it.

        Raises
        ------
        TeacherError
            Periodic or empty structure, NaN, no bond orders that fit, an atom that MMFF94 has no parameters for.
        """
        refuse_unusable(atoms, periodic="MMFF94 through RDKit has no periodic boundary conditions.")
        field, charges = self._field_of(atoms)
        flat = atoms.positions.ravel().tolist()
        energy = field.CalcEnergy(flat) * KCAL_PER_MOL
        forces = np.array(field.CalcGrad(flat)).reshape(-1, 3) * -KCAL_PER_MOL
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise TeacherError("MMFF94 returned an energy or forces that are not finite: atoms coincide.")
        return {
            "energy": energy,
            "free_energy": energy,
            "forces": forces,
            "charges": charges.copy(),
            "dipole": charges @ atoms.positions,
        }

    def _field_of(self, atoms: Atoms) -> tuple[Any, np.ndarray]:
        if self.topology == "first" or self.molecule is not None:
            key = atoms.numbers.tobytes()
        else:
            key = atoms.numbers.tobytes() + bond_fingerprint(atoms.numbers, atoms.positions, smiles=self.smiles)
        if key not in self._fields:
            if len(self._fields) >= 64:  # reacting frames must not fill the memory
                self._fields.clear()
            self._fields[key] = self._build(atoms)
        return self._fields[key]

    def _build(self, atoms: Atoms) -> tuple[Any, np.ndarray]:
        helpers = require("rdkit.Chem.rdForceFieldHelpers", extra="train", purpose=_PURPOSE)
        chem = require("rdkit.Chem", extra="train", purpose=_PURPOSE)
        if self.molecule is not None:
            molecule = chem.Mol(self.molecule)
            order = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
            if not np.array_equal(order, atoms.numbers):
                raise InputError("The atoms of `molecule` are not those of the structure, in the same order.")
        else:
            check_electron_count(atoms.numbers, self.charge, 1)
            molecule = molecule_from_geometry(atoms.numbers, atoms.positions, charge=self.charge, smiles=self.smiles)
        conformer = chem.Conformer(len(atoms))
        conformer.SetPositions(np.ascontiguousarray(atoms.positions))
        molecule.RemoveAllConformers()
        molecule.AddConformer(conformer, assignId=True)
        properties = helpers.MMFFGetMoleculeProperties(molecule, mmffVariant=self.variant)
        if properties is None:
            raise TeacherError(f"MMFF94 has no parameters for {chem.MolToSmiles(chem.RemoveHs(molecule))}.")
        field = helpers.MMFFGetMoleculeForceField(
            molecule, properties, nonBondedThresh=_NO_CUTOFF, ignoreInterfragInteractions=False
        )
        field.Initialize()
        charges = np.array([properties.GetMMFFPartialCharge(i) for i in range(len(atoms))])
        return field, charges
