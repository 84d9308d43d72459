"""Systems, structures and differences that the tests of OpenMM share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

pytest.importorskip("openmm")

import openmm
from openmm import app, unit

# Alanine dipeptide, ACE-ALA-NME.
DIPEPTIDE = """\
HETATM    1  CH3 ACE A   1       1.988   2.141   0.067  1.00  0.00           C
HETATM    2  H1  ACE A   1       1.394   2.622   0.841  1.00  0.00           H
HETATM    3  H2  ACE A   1       1.974   1.061   0.204  1.00  0.00           H
HETATM    4  H3  ACE A   1       1.586   2.393  -0.913  1.00  0.00           H
HETATM    5  C   ACE A   1       3.415   2.625   0.170  1.00  0.00           C
HETATM    6  O   ACE A   1       4.302   1.863   0.535  1.00  0.00           O
ATOM      7  N   ALA A   2       3.628   3.894  -0.159  1.00  0.00           N
ATOM      8  H   ALA A   2       2.834   4.468  -0.408  1.00  0.00           H
ATOM      9  CA  ALA A   2       4.921   4.575  -0.116  1.00  0.00           C
ATOM     10  HA  ALA A   2       5.483   4.232   0.755  1.00  0.00           H
ATOM     11  CB  ALA A   2       5.695   4.209  -1.394  1.00  0.00           C
ATOM     12  HB1 ALA A   2       5.124   4.514  -2.272  1.00  0.00           H
ATOM     13  HB2 ALA A   2       5.856   3.131  -1.428  1.00  0.00           H
ATOM     14  HB3 ALA A   2       6.665   4.705  -1.411  1.00  0.00           H
ATOM     15  C   ALA A   2       4.721   6.099   0.002  1.00  0.00           C
ATOM     16  O   ALA A   2       3.590   6.584  -0.050  1.00  0.00           O
HETATM   17  N   NME A   3       5.821   6.857   0.119  1.00  0.00           N
HETATM   18  H   NME A   3       6.716   6.389   0.149  1.00  0.00           H
HETATM   19  C   NME A   3       5.811   8.320   0.086  1.00  0.00           C
HETATM   20  H1  NME A   3       5.877   8.662  -0.949  1.00  0.00           H
HETATM   21  H2  NME A   3       4.879   8.697   0.515  1.00  0.00           H
HETATM   22  H3  NME A   3       6.648   8.724   0.656  1.00  0.00           H
END
"""
R0, K, SIGMA, EPSILON, CHARGES = 0.11, 250000.0, 0.3, 0.8, (0.25, -0.25, 0.4)  # nm, kJ/mol/nm², nm, kJ/mol, e


def central_difference(atoms: Atoms, calculator, i: int, axis: int, step: float = 2e-3) -> float:
    """Five-point derivative of the energy, eV/Å."""
    energies = []
    for k in (2, 1, -1, -2):
        moved = atoms.copy()
        moved.positions[i, axis] += k * step
        energies.append(calculator.get_property("energy", moved))
    return (-energies[0] + 8 * energies[1] - 8 * energies[2] + energies[3]) / (12 * step)


def written(system, path: Path) -> str:
    """The teacher's name of a System."""
    path.write_text(openmm.XmlSerializer.serialize(system))
    return f"openmm:{path}"


def three_atoms() -> tuple:
    """C–O with a spring, and an argon that feels both: charges and one Lennard-Jones for all."""
    system = openmm.System()
    for mass in (12.011, 15.999, 39.95):
        system.addParticle(mass)
    bond, pairs = openmm.HarmonicBondForce(), openmm.NonbondedForce()
    bond.addBond(0, 1, R0, K)
    for charge in CHARGES:
        pairs.addParticle(charge, SIGMA, EPSILON)
    pairs.addException(0, 1, 0.0, SIGMA, 0.0)
    system.addForce(bond)
    system.addForce(pairs)
    return system, Atoms("COAr", [[0.1, 0.2, 0.3], [0.2, 0.1, 1.45], [3.0, 1.2, 0.4]])


def water_box(model: str = "tip3p.xml", edge: float = 9.6, switch: float = 0.4) -> tuple:
    """27 flexible waters with particle-mesh Ewald, as a System and as atoms."""
    rng = np.random.default_rng(0)
    atoms, topology = Atoms(), app.Topology()
    chain = topology.addChain()
    for i in range(27):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 180), "z")
        water.rotate(rng.uniform(0, 180), "x")
        water.translate(edge / 3 * np.array([i % 3, i // 3 % 3, i // 9]))
        atoms += water
        residue = topology.addResidue("HOH", chain)
        names = [("O", app.element.oxygen), ("H1", app.element.hydrogen), ("H2", app.element.hydrogen)]
        oxygen, *hydrogens = [topology.addAtom(name, element, residue) for name, element in names]
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    atoms.set_cell([edge] * 3)
    atoms.pbc = True
    topology.setPeriodicBoxVectors(np.eye(3) * edge / 10 * unit.nanometer)
    force_field = app.ForceField(model)
    modeller = app.Modeller(topology, atoms.positions / 10 * unit.nanometer)
    modeller.addExtraParticles(force_field)
    system = force_field.createSystem(
        modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.45, switchDistance=switch, constraints=None,
        rigidWater=False,
    )  # fmt: skip
    return system, atoms
