"""amber14 and OpenFF through OpenMM: bonds from names, fields that fit or are refused."""

from __future__ import annotations

import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.io import read, write

from distillase.ase_calcs.errors import InputError, MissingDependency, TeacherError
from distillase.ase_calcs.teachers import (
    make_teacher,
)

pytest.importorskip("openmm")

import openmm
from openmm import app
from openmm_systems import DIPEPTIDE, central_difference


@pytest.fixture
def peptide(tmp_path: Path) -> tuple[Path, Atoms]:
    path = tmp_path / "ala 2.pdb"  # with a space, as users have them
    path.write_text(DIPEPTIDE)
    return path, read(path)


# --- amber14 -------------------------------------------------------------------------------------------------------


def test_amber14_is_openmms(peptide) -> None:
    path, atoms = peptide
    force_field = app.ForceField("amber14/protein.ff14SB.xml")
    system = force_field.createSystem(app.PDBFile(io.StringIO(DIPEPTIDE)).topology, nonbondedMethod=app.NoCutoff)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(atoms.positions / 10)
    state = context.getState(getEnergy=True, getForces=True)
    calculator = make_teacher(f"openmm:amber14?pdb='{path}'")
    kj = 0.010364269  # eV per kJ/mol
    assert calculator.get_property("energy", atoms) == pytest.approx(state.getPotentialEnergy()._value * kj, abs=1e-6)
    np.testing.assert_allclose(
        calculator.get_property("forces", atoms), state.getForces(asNumpy=True)._value * kj / 10, atol=1e-6
    )
    assert calculator.get_property("charges", atoms).sum() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("solvation", [None, "obc2"])
@pytest.mark.parametrize(("platform", "step", "tolerance"), [("Reference", 1e-3, 1e-7), ("CPU", 5e-3, 1e-3)])
def test_amber14_forces_are_the_gradient(peptide, solvation, platform: str, step: float, tolerance: float) -> None:
    path, atoms = peptide
    atoms.rattle(0.05, seed=1)
    calculator = make_teacher(f"openmm:amber14?pdb='{path}'&solvation={solvation!r}&platform={platform}")
    forces = calculator.get_property("forces", atoms).copy()
    for i, axis in ((0, 0), (6, 1), (8, 2), (21, 0)):
        assert -central_difference(atoms, calculator, i, axis, step) == pytest.approx(forces[i, axis], abs=tolerance)


def test_water_lowers_the_energy_of_a_peptide(peptide) -> None:
    path, atoms = peptide
    vacuum, water = (make_teacher(f"openmm:amber14?pdb='{path}'&solvation={s!r}") for s in (None, "obc2"))
    assert -1.0 < water.get_property("energy", atoms) - vacuum.get_property("energy", atoms) < -0.3


def test_residues_of_ases_reader_will_do(peptide, tmp_path: Path) -> None:
    path, atoms = peptide
    energy = make_teacher(f"openmm:amber14?pdb='{path}'").get_property("energy", atoms)
    calculator = make_teacher("openmm:amber14")
    assert calculator.get_property("energy", atoms) == pytest.approx(energy, abs=1e-12)
    # Two peptides far from one another: not one chain of six residues, though ASE keeps no chains.
    far = atoms.copy()
    far.positions += 500.0
    assert calculator.get_property("energy", atoms + far) == pytest.approx(2 * energy, abs=1e-3)
    renamed = atoms.copy()
    renamed.arrays["residuenames"][6:16] = "GLY"
    renamed.arrays["atomtypes"][8] = "XX"
    assert calculator.check_state(renamed) != []
    bare = Atoms(atoms.numbers, atoms.positions)
    with pytest.raises(TeacherError, match=r"Give a PDB file .*`openmm:amber14\?pdb=FILE`"):
        calculator.get_property("energy", bare)


def test_peptides_that_do_not_fit(peptide, tmp_path: Path) -> None:
    path, atoms = peptide
    name = f"openmm:amber14?pdb='{path}'"
    with pytest.raises(TeacherError, match=r"charge \+1, but the charges .* add up to .0\.000"):
        make_teacher(name, charge=1).get_property("energy", atoms)
    with pytest.raises(TeacherError, match="Atom 0 is H in the structure and C in"):
        make_teacher(name).get_property("energy", atoms[[1, 0, *range(2, 22)]])
    with pytest.raises(TeacherError, match="21 atoms"):
        make_teacher(name).get_property("energy", atoms[:21])
    periodic = atoms.copy()
    periodic.set_cell([30] * 3)
    periodic.pbc = True
    with pytest.raises(TeacherError, match="computes molecules"):
        make_teacher(name).get_property("energy", periodic)
    bare = tmp_path / "no_hydrogens.pdb"
    bare.write_text("\n".join(line for line in DIPEPTIDE.splitlines() if not line.endswith("H")))
    with pytest.raises(InputError, match=r"missing .*Missing hydrogens are added by PDBFixer"):
        make_teacher(f"openmm:amber14?pdb='{bare}'")
    with pytest.raises(InputError, match="no such file"):
        make_teacher("openmm:amber14?pdb=absent.pdb")
    write(tmp_path / "frame.xyz", atoms, format="xyz")
    with pytest.raises(InputError, match="PDB"):
        make_teacher(f"openmm:amber14?pdb='{tmp_path}/frame.xyz'")


# --- OpenFF --------------------------------------------------------------------------------------------------------


def test_openff_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openff.toolkit", None)
    with pytest.raises(MissingDependency, match="conda-forge openff-toolkit"):
        make_teacher("openmm:openff")


def test_openff_gets_the_molecule_in_the_order_of_the_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a toolkit that makes springs of the bonds it is given; the real one is not on PyPI."""
    pytest.importorskip("rdkit")

    class Molecule:
        def __init__(self, rdkit_molecule):
            self.rdkit = rdkit_molecule

        @classmethod
        def from_rdkit(cls, molecule, allow_undefined_stereo, hydrogens_are_explicit):
            assert hydrogens_are_explicit
            return cls(molecule)

        def to_topology(self):
            return self.rdkit

    class ForceField:
        def __init__(self, name):
            assert name.startswith("openff_unconstrained")

        def create_openmm_system(self, topology, charge_from_molecules):
            assert charge_from_molecules is None
            system, bonds = openmm.System(), openmm.HarmonicBondForce()
            for atom in topology.GetAtoms():
                system.addParticle(atom.GetMass())
            for bond in topology.GetBonds():
                # Short enough a rest length that each bond pulls.
                bonds.addBond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), 0.05, 1000 * bond.GetBondTypeAsDouble())
            system.addForce(bonds)
            return system

    toolkit = types.SimpleNamespace(Molecule=Molecule, ForceField=ForceField)
    monkeypatch.setitem(sys.modules, "openff", types.ModuleType("openff"))
    monkeypatch.setitem(sys.modules, "openff.toolkit", toolkit)
    atoms = molecule("CH3CHO")
    calculator = make_teacher("openmm:openff", smiles="CC=O")
    kj = units.kJ / units.mol
    d = atoms.get_all_distances()
    orders = {(6, 8): 2, (6, 6): 1, (1, 6): 1}
    energy = sum(
        0.5 * 10 * kj * orders[tuple(sorted(atoms.numbers[[i, j]]))] * (d[i, j] - 0.5) ** 2
        for i in range(len(atoms))
        for j in range(i)
        if d[i, j] < 1.7 and tuple(sorted(atoms.numbers[[i, j]])) in orders
    )
    assert calculator.get_property("energy", atoms) == pytest.approx(energy, abs=1e-9)
    shuffled = atoms[np.random.default_rng(0).permutation(len(atoms))]
    assert calculator.get_property("energy", shuffled) == pytest.approx(energy, abs=1e-9)
