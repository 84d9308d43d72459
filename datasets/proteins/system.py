"""OpenMM Systems for reference dynamics of proteins: amber14 in implicit or explicit water.

OpenMM ships OBC2 as a `CustomGBForce`. Its native `GBSAOBCForce` is the same model (energies agree to 1e-6) and two to
three times as fast on a CPU, so it takes its place here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ...ase_calcs.errors import InputError, StructureError, check_positive, require
from .build import AllAtom, same_numbers

Water = Literal["obc2", "tip3p"]

_PURPOSE = "make reference dynamics"
_AMBER14 = "amber14/protein.ff14SB.xml"
_SMALL = 200  # atoms
_OFFSET = 0.009  # nm, between the Born radius and what the XML file stores as `or`
_SURFACE = 2.25936  # kJ/mol/nm², ACE
_SOLVENT, _SOLUTE = 78.5, 1.0  # relative permittivities


@dataclass(frozen=True)
class SystemConfig:
    """What the reference is made of.

    Attributes
    ----------
    water
        ``obc2``: generalised Born. ``tip3p``: a box of explicit water with 0.1 M NaCl.
    hydrogen_mass
        u; taken from the heavy atom beside it, which allows longer steps and changes no average.
    padding
        Å between the protein and the walls of a box of explicit water.
    """

    water: Water = "obc2"
    hydrogen_mass: float = 3.0
    padding: float = 10.0

    def __post_init__(self) -> None:
        if self.water not in get_args(Water):
            raise InputError(f"`water` is {self.water!r}; allowed are {', '.join(map(repr, get_args(Water)))}.")
        check_positive("hydrogen_mass", self.hydrogen_mass)
        check_positive("padding", self.padding)


@dataclass(frozen=True)
class Prepared:
    """A System and where its atoms are.

    Attributes
    ----------
    system
        OpenMM's ``System``.
    topology
        Of everything in it, the protein first.
    positions
        (N, 3) Å.
    n_protein
        Atoms of the protein.
    """

    system: Any
    topology: Any
    positions: np.ndarray
    n_protein: int


def make_system(protein: AllAtom, config: SystemConfig | None = None, *, constraints: bool = True) -> Prepared:
    """The System of a protein.

    Parameters
    ----------
    protein
        With all atoms.
    config
        Water and masses.
    constraints
        Whether bonds of hydrogen are rigid. Without, atoms may have no mass.

    Raises
    ------
    StructureError
        The force field does not know a residue.
    """
    config = config or SystemConfig()
    app, unit = require("openmm.app", extra="proteins", purpose=_PURPOSE), _units()
    water = ["implicit/obc2.xml"] if config.water == "obc2" else ["amber14/tip3p.xml"]
    field = app.ForceField(_AMBER14, *water)
    topology, positions = protein.topology, protein.positions
    settings: dict[str, Any] = {"nonbondedMethod": app.NoCutoff}
    if config.water != "obc2":
        modeller = app.Modeller(topology, positions * unit.angstrom)
        with same_numbers():  # ions are dealt out at random
            modeller.addSolvent(
                field, model="tip3p", padding=config.padding * unit.angstrom, ionicStrength=0.1 * unit.molar
            )
        topology = modeller.topology
        positions = np.array(modeller.positions.value_in_unit(unit.angstrom))
        settings = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9 * unit.nanometer}
    try:
        system = field.createSystem(
            topology,
            constraints=app.HBonds if constraints else None,
            hydrogenMass=config.hydrogen_mass * unit.dalton,
            removeCMMotion=False,
            **settings,
        )
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error).partition("For more information")[0].split())
        raise StructureError(f"amber14 cannot describe this protein: {reason}") from error
    if config.water == "obc2":
        use_native_born(system)
    elif constraints:
        openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
        system.addForce(openmm.MonteCarloBarostat(1.0 * unit.bar, 300.0 * unit.kelvin))
    return Prepared(system, topology, positions, protein.topology.getNumAtoms())


def use_native_born(system: Any) -> None:
    """Put OpenMM's own OBC2 in the place of the same model in its general-purpose form, in this System.

    Raises
    ------
    StructureError
        The System has no such force.
    """
    openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
    slow = [k for k in range(system.getNumForces()) if isinstance(system.getForce(k), openmm.CustomGBForce)]
    if len(slow) != 1:
        raise StructureError(f"The System has {len(slow)} CustomGBForces, and one was expected.")
    force = system.getForce(slow[0])
    names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
    if names != ["charge", "or", "sr"]:
        raise StructureError(f"A CustomGBForce with the parameters {names} is not OBC2 as OpenMM ships it.")
    native = openmm.GBSAOBCForce()
    native.setSolventDielectric(_SOLVENT)
    native.setSoluteDielectric(_SOLUTE)
    native.setSurfaceAreaEnergy(_SURFACE)
    for atom in range(force.getNumParticles()):
        charge, reduced, scaled = force.getParticleParameters(atom)
        native.addParticle(charge, reduced + _OFFSET, scaled / reduced)
    system.removeForce(slow[0])
    system.addForce(native)


def make_context(system: Any, integrator: Any) -> Any:
    """A Context on one core: OpenMM's Reference platform up to 200 atoms, its CPU platform above.

    The latter hands work to a thread several times a step. Chignolin (138 atoms) made 1 110 steps a second on the one
    and 690 on the other, a dipeptide 42 000 and 1 160.
    """
    openmm = require("openmm", extra="proteins", purpose=_PURPOSE)
    name = "Reference" if system.getNumParticles() <= _SMALL else "CPU"
    properties = {} if name == "Reference" else {"Threads": "1"}
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName(name), properties)


def constrained_pairs(system: Any) -> np.ndarray:
    """(C, 2) atoms whose distance is rigid."""
    pairs = [system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints())]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def degrees_of_freedom(system: Any) -> int:
    """Of momenta, constraints taken off."""
    moving = sum(system.getParticleMass(k)._value > 0 for k in range(system.getNumParticles()))
    return 3 * moving - system.getNumConstraints()


def _units() -> Any:
    return require("openmm.unit", extra="proteins", purpose=_PURPOSE)
