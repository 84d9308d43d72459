"""OpenMM Systems made from a structure: amber14 for peptides, OpenFF for small molecules."""

from __future__ import annotations

import io
import warnings
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ..errors import InputError, MissingDependency, TeacherError, require
from .openmm_system import Field, OpenMMCalculator, import_openmm, read_text, system_from_xml
from .registry import check_electron_count
from .topology import bond_fingerprint, molecule_from_geometry

_AMBER14 = "amber14/protein.ff14SB.xml"
_SOLVATION = ("hct", "obc1", "obc2", "gbn", "gbn2")
# What ASE's reader of PDB files leaves in `atoms.arrays`.
_NAMES = ("atomtypes", "residuenames", "residuenumbers")
_NEEDS_NAMES = (
    "amber14 needs to know which residue each atom belongs to. Give a PDB file with the atoms in the order of the "
    "structures, `openmm:amber14?pdb=FILE`, or structures that `ase.io.read` made from a PDB file and that still have "
    f"the arrays {', '.join(f'`{name}`' for name in _NAMES)}. Labelling keeps no such arrays: give the file."
)
_PERIODIC = (
    "The structure is periodic, and this teacher computes molecules. Set `atoms.pbc = False`, or make a System with "
    "solvent yourself and name its file, `openmm:PATH/TO/system.xml`."
)


class AmberCalculator(OpenMMCalculator):
    """The protein force field amber14 (ff14SB, 10.1021/acs.jctc.5b00255), without cutoff or constraints.

    Parameters
    ----------
    charge, multiplicity, platform, threads
        As in `OpenMMCalculator`.
    pdb
        A PDB file with all hydrogens and the atoms in the order of the structures: names, residues, chains and
        disulfide bridges are read from it. Without it they come from what ASE's PDB reader leaves in ``atoms.arrays``;
        a chain then ends at an OXT, at a cap, or where the residue number goes down.
    solvation
        None is a vacuum, as for every other teacher. ``"hct"``, ``"obc1"``, ``"obc2"``, ``"gbn"``, ``"gbn2"``:
        generalised Born water as OpenMM ships it.
    """

    def __init__(
        self,
        *,
        charge: int = 0,
        multiplicity: int = 1,
        pdb: str | None = None,
        solvation: Literal["hct", "obc1", "obc2", "gbn", "gbn2"] | None = None,
        platform: str = "Reference",
        threads: int = 1,
    ):
        super().__init__(charge=charge, multiplicity=multiplicity, platform=platform, threads=threads)
        if solvation is not None and solvation not in _SOLVATION:
            raise InputError(f"`solvation` is {solvation!r}; allowed are {', '.join(map(repr, _SOLVATION))} and None.")
        self.pdb = pdb
        self.solvation = solvation
        self._of_pdb: tuple[np.ndarray, str] | None = None
        if pdb is not None:
            try:
                self._of_pdb = _amber_system(read_text(pdb, "a PDB file"), solvation)
            except TeacherError as error:
                raise InputError(f"`{pdb}`: {error}") from error

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed, names of atoms and residues included where they say what the atoms are."""
        changed = super().check_state(atoms, tol)
        if self.atoms is not None and not changed and self._key(self.atoms) != self._key(atoms):
            return ["numbers"]
        return changed

    def _key(self, atoms: Atoms) -> bytes:
        if self._of_pdb is not None or any(name not in atoms.arrays for name in _NAMES):
            return b""
        return "\n".join(" ".join(map(str, atoms.arrays[name])) for name in _NAMES).encode()

    def _field(self, atoms: Atoms) -> Field:
        if atoms.pbc.any():
            raise TeacherError(_PERIODIC)
        if self._of_pdb is not None:
            numbers, xml = self._of_pdb
            whose = f"`{self.pdb}`"
        elif all(name in atoms.arrays for name in _NAMES):
            numbers, xml = _amber_system(_pdb_of_arrays(atoms), self.solvation)
            whose = "its residues"
        else:
            raise TeacherError(_NEEDS_NAMES)
        field = Field(system_from_xml(xml, "amber14"), self.platform, self.threads)
        field.check_count(atoms.numbers, whose)
        if not np.array_equal(numbers, atoms.numbers):
            i = int(np.argmax(numbers != atoms.numbers))
            raise TeacherError(
                f"Atom {i} is {chemical_symbols[atoms.numbers[i]]} in the structure and {chemical_symbols[numbers[i]]} "
                f"in {whose}: other atoms, or another order."
            )
        field.check_charge(self.charge, whose)
        return field


@lru_cache(maxsize=8)
def _force_field(solvation: str | None) -> Any:
    app = require("openmm.app", extra="openmm", purpose="make an amber14 System")
    return app.ForceField(_AMBER14, *([f"implicit/{solvation}.xml"] if solvation else []))


def _amber_system(pdb: str, solvation: str | None) -> tuple[np.ndarray, str]:
    """Atomic numbers and the serialised System of the text of a PDB file."""
    app = require("openmm.app", extra="openmm", purpose="make an amber14 System")
    openmm = import_openmm()
    try:
        topology = app.PDBFile(io.StringIO(pdb)).topology
    except (ValueError, KeyError, IndexError, StopIteration) as error:
        raise TeacherError(f"no PDB file that OpenMM can read ({error}).") from error
    elements = [atom.element for atom in topology.atoms()]
    if not elements or any(element is None for element in elements):
        raise TeacherError("no PDB file with elements in columns 77 and 78.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            system = _force_field(solvation).createSystem(
                topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False
            )
        except (ValueError, KeyError) as error:
            reason = " ".join(str(error).partition("For more information")[0].split())
            raise TeacherError(
                f"amber14 cannot describe these residues: {reason} Missing hydrogens are added by PDBFixer; what is no "
                "peptide needs a System of its own, `openmm:PATH/TO/system.xml`."
            ) from error
    return np.array([element.atomic_number for element in elements]), openmm.XmlSerializer.serialize(system)


def _pdb_of_arrays(atoms: Atoms) -> str:
    """A PDB file of what ASE keeps of one. ASE drops the chains; see `AmberCalculator` for where they end."""
    names, residues, numbers = (atoms.arrays[name] for name in _NAMES)
    lines: list[str] = []
    chain, ended = 0, False
    for i, (x, y, z) in enumerate(atoms.positions):
        new_residue = i > 0 and (numbers[i] != numbers[i - 1] or residues[i] != residues[i - 1])
        if new_residue and (ended or numbers[i] < numbers[i - 1] or residues[i] == "ACE"):
            chain, ended = chain + 1, False
            lines.append("TER")
        ended = ended or names[i] == "OXT" or residues[i] in ("NME", "NHE", "NH2")
        element = chemical_symbols[atoms.numbers[i]]
        name = str(names[i]) if len(str(names[i])) > 3 or len(element) > 1 else f" {names[i]}"
        lines.append(
            f"ATOM  {(i + 1) % 100000:5d} {name:<4} {residues[i]!s:>3} {chr(ord('A') + chain % 26)}"
            f"{numbers[i] % 10000:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {element.upper():>2}"
        )
    return "\n".join([*lines, "END", ""])


class OpenFFCalculator(OpenMMCalculator):
    """A force field of the Open Force Field Initiative for small molecules, through `openff.toolkit`.

    Parameters
    ----------
    charge, multiplicity, platform, threads
        As in `OpenMMCalculator`.
    smiles
        Bond orders and formal charges; which atom is which is found in the geometry. Perceived where not given.
    force_field
        A file that the toolkit knows, or a path; without constraints.
    charges
        None takes those that the force field asks for (AM1-BCC or a network in its place). Otherwise a method of
        ``Molecule.assign_partial_charges``, e.g. ``"gasteiger"`` or ``"mmff94"``, which need nothing beside RDKit.
    topology
        ``"each"`` finds the bonds of every structure anew; ``"first"`` keeps those of the first one until `reset`.
    """

    def __init__(
        self,
        *,
        charge: int = 0,
        multiplicity: int = 1,
        smiles: str = "",
        force_field: str = "openff_unconstrained-2.2.1.offxml",
        charges: str | None = None,
        topology: Literal["each", "first"] = "each",
        platform: str = "Reference",
        threads: int = 1,
    ):
        super().__init__(charge=charge, multiplicity=multiplicity, platform=platform, threads=threads)
        if topology not in ("each", "first"):
            raise InputError(f"`topology` is {topology!r}; allowed are 'each' and 'first'.")
        self.smiles = smiles
        self.force_field = force_field
        self.charge_method = charges
        self.topology = topology
        _import_openff()

    def _key(self, atoms: Atoms) -> bytes:
        return b"" if self.topology == "first" else bond_fingerprint(atoms.numbers, atoms.positions, smiles=self.smiles)

    def _field(self, atoms: Atoms) -> Field:
        if atoms.pbc.any():
            raise TeacherError(_PERIODIC)
        check_electron_count(atoms.numbers, self.charge, 1)
        toolkit = _import_openff()
        found = molecule_from_geometry(atoms.numbers, atoms.positions, charge=self.charge, smiles=self.smiles)
        try:
            molecule = toolkit.Molecule.from_rdkit(found, allow_undefined_stereo=True, hydrogens_are_explicit=True)
            if self.charge_method is not None:
                molecule.assign_partial_charges(self.charge_method)
            system = toolkit.ForceField(self.force_field).create_openmm_system(
                molecule.to_topology(), charge_from_molecules=[molecule] if self.charge_method is not None else None
            )
        except Exception as error:  # the toolkit raises several dozen classes of its own
            reason = " ".join(str(error).split())
            hint = ""
            if "assign_partial_charges" in reason:  # a page of what no installed package can do
                reason = f"no installed package can compute the charges `{self.charge_method or self.force_field}`"
                hint = " `charges=gasteiger` and `charges=mmff94` need nothing beside RDKit."
            raise TeacherError(f"OpenFF: {type(error).__name__}: {reason}.{hint}") from error
        if system.getNumConstraints():
            raise TeacherError(
                f"`{self.force_field}` constrains bonds, which then have no energy: take one of the files "
                "`openff_unconstrained-…`."
            )
        field = Field(system, self.platform, self.threads)
        field.check_count(atoms.numbers, "the OpenFF molecule")
        field.check_charge(self.charge, "the OpenFF molecule")
        return field


def _import_openff() -> Any:
    try:
        return require("openff.toolkit", extra="openmm", purpose="make OpenFF Systems")
    except MissingDependency as error:
        raise MissingDependency(
            "`openmm:openff` needs the package `openff.toolkit`, which pip does not have: install it with "
            "`conda install -c conda-forge openff-toolkit`, or make a System with it elsewhere and name its file, "
            "`openmm:PATH/TO/system.xml`."
        ) from error
