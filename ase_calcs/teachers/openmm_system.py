"""An OpenMM System as a teacher: nm and kJ/mol become Å and eV here and nowhere else in the package.

What a System lacks for the purpose is refused instead of guessed: constrained distances have no energy of their own, a
System for other atoms or another charge would be computed without a word, and OpenMM keeps the grid of particle-mesh
Ewald from the box that a Context began with, so that a new cell gets a new Context.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ase import Atoms
from ase.data import atomic_masses, chemical_symbols

from ..errors import InputError, TeacherError, check_at_least, require
from ..units import KJ_PER_MOL, NM
from .base import TeacherCalculator, refuse_unusable

PLATFORMS = ("Reference", "CPU")
_PURPOSE = "compute energies with OpenMM"
_MASS = 0.05  # u; masses of force fields are rounded, and no two elements of a molecule are as close
_LENT = 4.0  # u; the heaviest hydrogen of hydrogen mass repartitioning is well below


def import_openmm() -> Any:
    """The module `openmm`, or `MissingDependency`."""
    return require("openmm", extra="openmm", purpose=_PURPOSE)


def read_text(path: str, what: str) -> str:
    """The content of a file that the user named."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"`{path}` cannot be read as {what}: {reason}.") from error


class OpenMMCalculator(TeacherCalculator):
    """What calculators on an OpenMM System share; a subclass says which System belongs to a structure.

    Parameters
    ----------
    charge
        Total charge, e; compared with the sum of the System's charges where it has one NonbondedForce.
    multiplicity
        Only 1: force fields know closed shells.
    platform
        ``"Reference"``: all in double precision. ``"CPU"``: nonbonded terms in single precision, faster from about a
        hundred atoms; with a cutoff its forces depend on the structure before by 5e-7 eV/Å.
    threads
        Of the CPU platform.

    Gives energy, free_energy, forces and, where the System has one NonbondedForce, its fixed charges and, for
    molecules, their dipole (e·Å).
    """

    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "forces",
        "charges",
        "dipole",
    ]

    def __init__(self, *, charge: int, multiplicity: int, platform: str, threads: int):
        super().__init__()
        if platform not in PLATFORMS:
            raise InputError(f"`platform` is {platform!r}; allowed are 'Reference' and 'CPU'.")
        check_at_least("threads", threads, 1)
        if int(multiplicity) != 1:
            raise TeacherError(f"A force field knows closed shells only; multiplicity {multiplicity} is not one.")
        import_openmm()
        self.charge = int(charge)
        self.multiplicity = 1
        self.platform = platform
        self.threads = int(threads)
        self._fields: dict[bytes, Field] = {}

    @abstractmethod
    def _key(self, atoms: Atoms) -> bytes:
        """What, beside the cell, the System of these atoms is a function of."""

    @abstractmethod
    def _field(self, atoms: Atoms) -> Field:
        """The System of these atoms, checked against them."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and deep-copies without OpenMM's Contexts, which are rebuilt when needed."""
        return {**self.__dict__, "_fields": {}}

    def reset(self) -> None:
        """Forget results and Contexts."""
        super().reset()
        self._fields = {}

    def single_point(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """One single point; every property comes with it.

        Raises
        ------
        TeacherError
            The System is one of other atoms, another charge or another periodicity; NaN; atoms that coincide; a cell
            that is too small for the cutoff.
        """
        refuse_unusable(atoms)
        key = atoms.numbers.tobytes() + self._key(atoms)
        if key not in self._fields:
            if len(self._fields) >= 16:  # reacting frames must not fill the memory
                self._fields.clear()
            self._fields[key] = self._field(atoms)
        return self._fields[key].single_point(atoms)


class SystemCalculator(OpenMMCalculator):
    """A System that was made elsewhere: ``XmlSerializer.serialize(system)``, written into a file.

    Parameters
    ----------
    path
        The file. It is read once, here.
    charge, multiplicity, platform, threads
        As in `OpenMMCalculator`.
    masses
        ``"check"`` compares the masses of the particles with those of the elements, in order. ``"ignore"`` for Systems
        whose particles are not atoms.
    """

    def __init__(
        self,
        path: str,
        *,
        charge: int = 0,
        multiplicity: int = 1,
        platform: str = "Reference",
        threads: int = 1,
        masses: Literal["check", "ignore"] = "check",
    ):
        super().__init__(charge=charge, multiplicity=multiplicity, platform=platform, threads=threads)
        if masses not in ("check", "ignore"):
            raise InputError(f"`masses` is {masses!r}; allowed are 'check' and 'ignore'.")
        self.path = str(path)
        self.masses = masses
        self._xml = read_text(self.path, "a serialised OpenMM System")
        refuse_constraints(system_from_xml(self._xml, self.path), f"the System of `{self.path}`")

    def _key(self, atoms: Atoms) -> bytes:
        return b""

    def _field(self, atoms: Atoms) -> Field:
        system = system_from_xml(self._xml, self.path)
        field = Field(system, self.platform, self.threads)
        field.check_count(atoms.numbers, f"the System of `{self.path}`")
        if self.masses == "check":
            check_masses(field.masses, atoms.numbers, f"the System of `{self.path}`")
        field.check_charge(self.charge, f"the System of `{self.path}`")
        return field


class Field:
    """A System with its Context, for structures of one composition."""

    def __init__(self, system: Any, platform: str, threads: int):
        self._openmm = import_openmm()
        self._system = system
        self._platform = self._openmm.Platform.getPlatformByName(platform)
        self._properties = {"Threads": str(threads), "DeterministicForces": "true"} if platform == "CPU" else {}
        self._context: Any = None
        self._cell = b""
        particles = range(system.getNumParticles())
        # Virtual sites carry charge but are no atoms; OpenMM places them and gives their forces to their parents.
        self._atoms = np.array([i for i in particles if not system.isVirtualSite(i)], dtype=int)
        dalton = self._openmm.unit.dalton
        self.masses = np.array([system.getParticleMass(int(i)).value_in_unit(dalton) for i in self._atoms])
        self.periodic = bool(system.usesPeriodicBoundaryConditions())
        self._charges = _charges(self._openmm, system)
        self._levels = _spanning_tree(self._openmm, system) if self.periodic else []

    def check_count(self, numbers: np.ndarray, whose: str) -> None:
        """Refuse a structure with another number of atoms."""
        if len(numbers) != len(self._atoms):
            sites = self._system.getNumParticles() - len(self._atoms)
            and_sites = f" (and {sites} virtual sites)" if sites else ""
            raise TeacherError(f"The structure has {len(numbers)} atoms, {whose} {len(self._atoms)}{and_sites}.")

    def check_charge(self, charge: int, whose: str) -> None:
        """Refuse a total charge that is not the sum of the charges."""
        if self._charges is not None and abs(self._charges.sum() - charge) > 0.01:
            raise TeacherError(
                f"The structure has charge {charge:+d}, but the charges of {whose} add up to "
                f"{self._charges.sum():+.3f}. Correct the charge of the structure, or take the right System."
            )

    def single_point(self, atoms: Atoms) -> dict[str, Any]:
        """Energy, forces, and charges where they are known, in our units."""
        positions = self._placed(atoms)
        try:
            self._context.setPositions(positions)
            if len(positions) != len(self._atoms):
                self._context.computeVirtualSites()
            state = self._context.getState(getEnergy=True, getForces=True)
        except self._openmm.OpenMMException as error:
            self._context = None
            raise TeacherError(f"OpenMM: {error}") from error
        kj, nm = self._openmm.unit.kilojoule_per_mole, self._openmm.unit.nanometer
        energy = state.getPotentialEnergy().value_in_unit(kj) * KJ_PER_MOL
        forces = state.getForces(asNumpy=True).value_in_unit(kj / nm)[self._atoms] @ self._rotation * (KJ_PER_MOL / NM)
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise TeacherError("OpenMM returned an energy or forces that are not finite: atoms coincide.")
        results = {"energy": energy, "free_energy": energy, "forces": forces}
        if self._charges is not None:
            results["charges"] = self._charges[self._atoms]
            if not self.periodic and len(self._charges) == len(self._atoms):
                results["dipole"] = self._charges @ atoms.positions
        return results

    def _placed(self, atoms: Atoms) -> np.ndarray:
        """Positions of all particles, nm, in a Context that has the cell of the atoms."""
        if self.periodic and not atoms.pbc.all():
            box = np.array([[x._value for x in vector] for vector in self._system.getDefaultPeriodicBoxVectors()])
            lengths = ", ".join(f"{length * NM:.3f}" for length in np.linalg.norm(box, axis=1))
            raise TeacherError(
                f"The System is periodic (with a box of {lengths} Å), the structure is not: set `atoms.cell` and "
                "`atoms.pbc = True`."
            )
        if not self.periodic and atoms.pbc.any():
            raise TeacherError("The structure is periodic, but the System is not. Set `atoms.pbc = False`.")
        cell = atoms.cell.array.tobytes() if self.periodic else b""
        if self._context is None or cell != self._cell:
            self._context, self._cell = None, cell
            self._rotation = np.eye(3)
            if self.periodic:
                self._box, self._rotation = reduced_box(atoms.cell.array / NM)
                self._system.setDefaultPeriodicBoxVectors(*self._box)
            self._context = self._new_context()
        positions = np.zeros((self._system.getNumParticles(), 3))
        positions[self._atoms] = atoms.positions @ self._rotation.T / NM
        if self.periodic:
            positions = _off_the_face(_made_whole(positions, self._levels, self._box), self._box)
        return positions

    def _new_context(self) -> Any:
        integrator = self._openmm.VerletIntegrator(0.001)  # a Context needs one; no step is ever taken
        try:
            return self._openmm.Context(self._system, integrator, self._platform, self._properties)
        except self._openmm.OpenMMException as error:
            raise TeacherError(f"OpenMM: {error}") from error


def _spanning_tree(openmm: Any, system: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parents and children of the molecules' bonds, level by level from one particle of each molecule.

    Bonds are those of harmonic and custom bond forces, and the pairs that the NonbondedForce leaves out.
    """
    pairs: list[tuple[int, int]] = []
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce | openmm.CustomBondForce):
            pairs += [tuple(force.getBondParameters(k)[:2]) for k in range(force.getNumBonds())]
        elif isinstance(force, openmm.NonbondedForce):
            pairs += [tuple(force.getExceptionParameters(k)[:2]) for k in range(force.getNumExceptions())]
    neighbours: dict[int, set[int]] = {}
    for i, j in pairs:
        neighbours.setdefault(i, set()).add(j)
        neighbours.setdefault(j, set()).add(i)
    levels: list[tuple[np.ndarray, np.ndarray]] = []
    seen: set[int] = set()
    front = []
    for root in sorted(neighbours):  # all molecules in step: their n-th levels are one array operation
        if root not in seen:
            front.append(root)
            waiting = [root]
            while waiting:
                new = neighbours[waiting.pop()] - seen
                seen |= new
                waiting += new
    seen = set(front)
    while front:
        edges = []
        for parent in front:
            for child in sorted(neighbours[parent] - seen):
                seen.add(child)
                edges.append((parent, child))
        front = [child for _, child in edges]
        if edges:
            parents, children = np.array(edges).T
            levels.append((parents, children))
    return levels


def _made_whole(positions: np.ndarray, levels: list[tuple[np.ndarray, np.ndarray]], box: np.ndarray) -> np.ndarray:
    """Positions with every molecule in one piece: bonded terms do not look across the faces of the box."""
    if not levels:
        return positions
    inverse = np.linalg.inv(box)
    parents, children = (np.concatenate(side) for side in zip(*levels, strict=True))
    if not np.round((positions[children] - positions[parents]) @ inverse).any():
        return positions
    whole = positions.copy()
    for parents, children in levels:
        steps = np.round((whole[children] - whole[parents]) @ inverse)
        whole[children] -= steps @ box
    return whole


def _off_the_face(positions: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Positions without those that lie on a face of the box but for rounding.

    OpenMM 8.6's reference particle-mesh Ewald wraps −1e-17 to the whole length of the box, past its grid: the energy is
    then wrong by tenths of an eV. Moved by 2e-12 of the box, they are inside of it.
    """
    fractional = positions @ np.linalg.inv(box)
    on_face = np.abs(fractional - np.round(fractional)) < 1e-12
    return positions + (2e-12 * on_face) @ box if on_face.any() else positions


def system_from_xml(text: str, path: str) -> Any:
    """A System from the text of a file."""
    openmm = import_openmm()
    try:
        system = openmm.XmlSerializer.deserialize(text)
    except (ValueError, openmm.OpenMMException) as error:
        hint = ""
        if "<ForceField" in text:
            hint = " It is a force field: make a System with `ForceField.createSystem` and serialise that."
        raise InputError(f"`{path}` is not a serialised OpenMM System ({error}).{hint}") from error
    if not isinstance(system, openmm.System):
        raise InputError(f"`{path}` holds an OpenMM {type(system).__name__}, not a System.")
    return system


def refuse_constraints(system: Any, whose: str) -> None:
    """Refuse a System with fixed distances: its energy does not rise and its forces do not pull as they stretch."""
    if system.getNumConstraints():
        raise InputError(
            f"{system.getNumConstraints()} distances are constrained in {whose}, and have no energy. Make it with "
            "`constraints=None, rigidWater=False`."
        )


def check_masses(masses: np.ndarray, numbers: np.ndarray, whose: str) -> None:
    """Refuse masses that cannot be those of these elements in this order.

    Particles of no mass are fixed and cannot be told. With hydrogen mass repartitioning a hydrogen weighs up to 4 u
    more and its neighbour less, and the total stays.
    """
    standard = atomic_masses[numbers]
    known = masses > 0
    wrong = known & (np.abs(masses - standard) > _MASS)
    if not wrong.any():
        return
    hydrogen = numbers == 1
    moved = np.where(hydrogen, masses - standard, standard - masses)
    repartitioned = (moved[wrong] > 0).all() and (moved[wrong] < np.where(hydrogen[wrong], _LENT, 3 * _LENT)).all()
    if repartitioned and abs((masses - standard)[known].sum()) < _MASS * len(masses):
        return
    i = int(np.argmax(wrong))
    nearest = chemical_symbols[int(np.argmin(np.abs(atomic_masses - masses[i])))]
    raise TeacherError(
        f"Atom {i} is {chemical_symbols[numbers[i]]} in the structure ({standard[i]:.3f} u), but weighs "
        f"{masses[i]:.3f} u in {whose} (like {nearest}): other atoms, or another order. `masses=ignore` is for "
        "particles that are not atoms."
    )


def reduced_box(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same lattice with vectors as OpenMM wants them: a along x, b in the plane of x and y, all of them short.

    Returns
    -------
    (3, 3) vectors in rows, and the rotation (3, 3) that takes a position x to its new place, ``x @ rotation.T``.
    """
    if np.linalg.det(cell) < 0:
        cell = -cell  # a lattice is its own mirror image through a point, and the vectors become right-handed
    q, r = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(r))
    rotation, box = (q * signs).T, (r * signs[:, None]).T
    for i, j in ((2, 1), (2, 0), (1, 0)):
        box[i] -= box[j] * np.round(box[i, j] / box[j, j])
    box[np.abs(box) < 1e-14 * np.abs(box).max()] = 0.0  # OpenMM treats a box that is not rectangular otherwise, slower
    return np.tril(box), rotation


def _charges(openmm: Any, system: Any) -> np.ndarray | None:
    """Charges of all particles, e, of a System with exactly one NonbondedForce."""
    forces = [force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)]
    if len(forces) != 1:
        return None
    unit = openmm.unit.elementary_charge
    count = system.getNumParticles()
    return np.array([forces[0].getParticleParameters(i)[0].value_in_unit(unit) for i in range(count)])
