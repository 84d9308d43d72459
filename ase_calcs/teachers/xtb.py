"""GFN1-xTB and GFN2-xTB through tblite, as a teacher: single-threaded, and every label from a cold SCF guess.

tblite brings an ASE calculator too. Ours differs where a teacher must: a result never starts from the one before it
(a warm guess makes forces depend on the order of the structures by 1.5e-4 eV/Å), failures become `TeacherError` with
the reason, charge and multiplicity are checked against the number of electrons, and a calculation runs on one thread
whatever the environment says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from ase import Atoms

from ..errors import InputError, TeacherError, did_you_mean, require
from ..units import BOHR, HARTREE, KB
from .base import TeacherCalculator, refuse_unusable
from .registry import check_electron_count

_METHODS = ("GFN1-xTB", "GFN2-xTB")
_SOLVATION = ("alpb", "gbsa", "gbe", "gb", "ddX")


class XTBCalculator(TeacherCalculator):
    """GFN1-xTB or GFN2-xTB.

    Parameters
    ----------
    method
        ``"GFN1-xTB"`` (10.1021/acs.jctc.7b00118) or ``"GFN2-xTB"`` (10.1021/acs.jctc.8b01176).
    charge
        Total charge, e.
    multiplicity
        Spin multiplicity 2S+1. Without `spin_polarization` unpaired electrons cost energy and gain none: GFN2-xTB then
        puts the triplet of O₂ above its singlet.
    accuracy
        tblite's convergence factor for the SCF; its own default is 1.0. For aspirin at 500 K the largest error that is
        left in a force is 2e-4 eV/Å at 1.0, 5e-5 at 0.1 and 4e-6 at 0.01.
    electronic_temperature
        K, of the Fermi smearing.
    max_iterations
        SCF cycles before a structure is refused.
    mixer_damping
        Of the Broyden mixer, in (0, 1].
    solvation
        tblite's solvation model and its arguments, e.g. ``("alpb", "water")``.
    spin_polarization
        Scale of the spin-polarised term (10.1021/acs.jpca.2c06989), 1.0 for open shells; None leaves it out.
    guess
        ``"cold"`` starts every SCF from superposed atomic densities: results are a function of the structure alone.
        ``"warm"`` starts from the last result, a quarter faster along a trajectory; never for labels.

    Gives energy, free_energy, energies, forces, charges (Mulliken), dipole (e·Å), and stress where all three directions
    are periodic. With charge ≠ 0 the dipole depends on the origin of the coordinates.
    """

    implemented_properties: ClassVar[list[str]] = [  # type: ignore[misc]
        "energy",
        "free_energy",
        "energies",
        "forces",
        "charges",
        "dipole",
        "stress",
    ]

    def __init__(
        self,
        method: str = "GFN2-xTB",
        *,
        charge: int = 0,
        multiplicity: int = 1,
        accuracy: float = 0.1,
        electronic_temperature: float = 300.0,
        max_iterations: int = 250,
        mixer_damping: float = 0.4,
        solvation: tuple[Any, ...] | None = None,
        spin_polarization: float | None = None,
        guess: Literal["cold", "warm"] = "cold",
    ):
        super().__init__()
        if method not in _METHODS:
            raise InputError(f"Unknown xTB method `{method}`{did_you_mean(method, _METHODS)}")
        if guess not in ("cold", "warm"):
            raise InputError(f"`guess` is {guess!r}; allowed are 'cold' and 'warm'.")
        for key, value in (
            ("accuracy", accuracy),
            ("electronic_temperature", electronic_temperature),
            ("max_iterations", max_iterations),
            ("mixer_damping", mixer_damping),
            ("spin_polarization", 1.0 if spin_polarization is None else spin_polarization),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise InputError(f"`{key}` of an xTB teacher must be a positive number, not {value!r}.")
        if solvation is not None and (not isinstance(solvation, tuple | list) or solvation[0] not in _SOLVATION):
            raise InputError(f"`solvation` is {solvation!r}; write e.g. ('alpb', 'water'); models: {_SOLVATION}.")
        self.method = method
        self.charge = int(charge)
        self.multiplicity = int(multiplicity)
        self.accuracy = float(accuracy)
        self.electronic_temperature = float(electronic_temperature)
        self.max_iterations = int(max_iterations)
        self.mixer_damping = float(mixer_damping)
        self.solvation = tuple(solvation) if solvation is not None else None
        self.spin_polarization = None if spin_polarization is None else float(spin_polarization)
        self.guess = guess
        self._forget()
        require("tblite.interface", extra="xtb", purpose="label with GFN1-xTB or GFN2-xTB")

    def _forget(self) -> None:
        self._engine: Any = None  # tblite's calculator for the atoms seen last
        self._engine_for: tuple[bytes, bytes] | None = None
        self._last: Any = None  # the last result, used as a guess only where guess is "warm"

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and deep-copies without tblite's handles, which hold C pointers."""
        return {**self.__dict__, "_engine": None, "_engine_for": None, "_last": None}

    def reset(self) -> None:
        """Forget results and, for a warm guess, the last wavefunction."""
        super().reset()
        self._forget()

    def single_point(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """One single point; with a cold guess every property comes with it.

        Raises
        ------
        TeacherError
            No atoms, NaN or coinciding positions, impossible multiplicity, element without parameters, SCF failure.
        """
        with _one_thread():
            result = self._solve(atoms)
        self._last = result if self.guess == "warm" else None
        # Labels come whole. In dynamics what is not asked for is not fetched, a tenth of a step for a small molecule.
        converted = _convert(result, atoms, self.implemented_properties if self.guess == "cold" else properties)
        if not np.isfinite(converted["energy"]) or not np.isfinite(converted["forces"]).all():
            raise TeacherError(f"{self.method} returned an energy or forces that are not finite.")
        return converted

    def _solve(self, atoms: Atoms) -> Any:
        refuse_unusable(atoms)
        system = (atoms.numbers.tobytes(), atoms.pbc.tobytes())
        try:
            if self._engine is None or self._engine_for != system:
                check_electron_count(atoms.numbers, self.charge, self.multiplicity)
                self._forget()
                self._engine, self._engine_for = self._make_engine(atoms), system
            else:
                cell = np.ascontiguousarray(atoms.cell.array) / BOHR if atoms.pbc.any() else None
                self._engine.update(positions=atoms.positions / BOHR, lattice=cell)
            return self._engine.singlepoint(self._last)
        except (RuntimeError, ValueError, TypeError) as error:
            self._forget()  # tblite's handles may be half updated
            if isinstance(error, TeacherError):
                raise
            raise TeacherError(f"{self.method}: {_first_line(error)}") from error

    def _make_engine(self, atoms: Atoms) -> Any:
        interface = require("tblite.interface", extra="xtb", purpose="label with GFN1-xTB or GFN2-xTB")
        periodic = atoms.pbc.any()
        engine = interface.Calculator(
            self.method,
            atoms.numbers,
            atoms.positions / BOHR,
            float(self.charge),
            self.multiplicity - 1,
            atoms.cell.array / BOHR if periodic else None,
            atoms.pbc if periodic else None,
        )
        engine.set("verbosity", 0)
        engine.set("accuracy", self.accuracy)
        engine.set("temperature", self.electronic_temperature * KB / HARTREE)
        engine.set("max-iter", self.max_iterations)
        engine.set("mixer-damping", self.mixer_damping)
        if self.solvation is not None:
            engine.add(f"{self.solvation[0]}-solvation", *self.solvation[1:])
        if self.spin_polarization is not None:
            engine.add("spin-polarization", self.spin_polarization)
        return engine


def _convert(result: Any, atoms: Atoms, wanted: Sequence[str]) -> dict[str, Any]:
    """tblite's atomic units into ours, the one place where it happens."""
    energy = float(result["energy"]) * HARTREE
    converted = {
        "energy": energy,
        "free_energy": energy,
        "forces": -result["gradient"] * (HARTREE / BOHR),
    }
    if "energies" in wanted:
        converted["energies"] = result["energies"] * HARTREE
    if "charges" in wanted:
        converted["charges"] = np.array(result["charges"])
    if "dipole" in wanted:
        converted["dipole"] = result["dipole"] * BOHR
    if "stress" in wanted and atoms.pbc.all():
        virial = result["virial"] * (HARTREE / atoms.get_volume())  # (3, 3), already with the sign of ASE's stress
        converted["stress"] = virial.flat[[0, 4, 8, 5, 2, 1]]
    return converted


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


@lru_cache(maxsize=1)
def _openmp() -> Any:
    """The OpenMP runtime that tblite is linked against, or None where there is none."""
    library = require("tblite._libtblite", extra="xtb", purpose="label with GFN1-xTB or GFN2-xTB")
    try:
        handle = ctypes.CDLL(library.__file__)  # symbols are looked up in the libraries it depends on, too
        handle.omp_get_max_threads.restype = ctypes.c_int
        handle.omp_set_num_threads.argtypes = [ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return handle


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run tblite on one OpenMP thread and give the calling thread its number back afterwards.

    Two threads per process on two busy cores are 3 to 60 times slower than one.
    """
    openmp = _openmp()
    if openmp is None:
        yield
        return
    threads = openmp.omp_get_max_threads()
    openmp.omp_set_num_threads(1)
    try:
        yield
    finally:
        openmp.omp_set_num_threads(threads)
