"""Hartree–Fock and density-functional theory through PySCF, on a GPU through GPU4PySCF where there is one.

PySCF has an ASE calculator too. Ours differs where a teacher must: one SCF gives energy and forces together (theirs
runs it again for whichever is asked second), charge and spin belong to the calculator and not to a molecule built
beforehand, an SCF that does not converge is tried again in two more robust ways and is then a `TeacherError`, and by
default every calculation starts from a cold guess, so that a label does not depend on the one before it.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes

from ..errors import InputError, TeacherError, check_positive, require
from ..units import BOHR, HARTREE
from .base import TeacherCalculator, refuse_unusable
from .registry import check_electron_count

# How an SCF that does not converge is tried again, in this order.
LADDER = ("as asked", "level shift and damping", "second order")


class PySCFCalculator(TeacherCalculator):
    """HF or DFT of a molecule.

    Parameters
    ----------
    method
        ``"HF"``, or a functional as PySCF names it: ``"PBE"``, ``"B3LYP"``, ``"wB97X-V"``.
    basis
        As PySCF names it: ``"def2-SVP"``, ``"6-31G*"``.
    charge
        Total charge, e.
    multiplicity
        Spin multiplicity 2S+1; unrestricted where it is not 1.
    density_fit
        Fit the Coulomb and exchange integrals, in an auxiliary basis that PySCF chooses: several times faster.
    grid
        PySCF's level of the integration grid, 0 to 9. Forces of one level below 3 are rough.
    tolerance
        Hartree, to which the SCF energy converges.
    max_cycle
        SCF cycles of each attempt.
    dispersion
        ``"d3bj"``, ``"d3zero"`` or ``"d4"``.
    guess
        ``"cold"`` starts every SCF from superposed atomic densities: results are a function of the structure alone.
        ``"warm"`` starts from the last density, a third fewer cycles along a trajectory; never for labels.
    device
        ``"auto"``: GPU4PySCF where the package and a GPU are there, else the CPU. ``"cpu"``; ``"gpu"`` or an error.

    Gives energy, free_energy, forces, charges (Mulliken) and dipole (e·Å). `runs_on` is ``"cpu"`` or ``"gpu"``.
    With charge ≠ 0 the dipole depends on the origin of the coordinates.
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
        method: str = "PBE",
        basis: str = "def2-SVP",
        *,
        charge: int = 0,
        multiplicity: int = 1,
        density_fit: bool = True,
        grid: int = 3,
        tolerance: float = 1e-9,
        max_cycle: int = 100,
        dispersion: Literal["d3bj", "d3zero", "d4"] | None = None,
        guess: Literal["cold", "warm"] = "cold",
        device: Literal["auto", "cpu", "gpu"] = "auto",
    ):
        super().__init__()
        if guess not in ("cold", "warm"):
            raise InputError(f"`guess` is {guess!r}; allowed are 'cold' and 'warm'.")
        if device not in ("auto", "cpu", "gpu"):
            raise InputError(f"`device` is {device!r}; allowed are 'auto', 'cpu' and 'gpu'.")
        if dispersion not in (None, "d3bj", "d3zero", "d4"):
            raise InputError(f"`dispersion` is {dispersion!r}; allowed are 'd3bj', 'd3zero', 'd4' and None.")
        if isinstance(grid, bool) or grid not in range(10):
            raise InputError(f"`grid` is {grid!r}; PySCF has levels 0 to 9.")
        check_positive("tolerance", tolerance)
        check_positive("max_cycle", max_cycle)
        require("pyscf", extra="dft", purpose="label with Hartree–Fock or DFT")
        if dispersion is not None:
            require("pyscf.dispersion", extra="dft", purpose=f"add {dispersion}, with the package `pyscf-dispersion`")
        self.method = method
        self.basis = basis
        self.charge = int(charge)
        self.multiplicity = int(multiplicity)
        self.density_fit = density_fit
        self.grid = int(grid)
        self.tolerance = float(tolerance)
        self.max_cycle = int(max_cycle)
        self.dispersion = dispersion
        self.guess = guess
        self.runs_on = _device(device)
        self.scf_runs = 0
        self._density: Any = None  # of the last SCF, where the guess is warm
        self._field: Any = None  # the mean field of the last SCF: what is asked for later comes from it
        self._check_names()

    def reset(self) -> None:
        """Forget results and the last density."""
        super().reset()
        self._density = self._field = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickles and deep-copies without density and mean field, which may lie on a GPU."""
        return {**self.__dict__, "_density": None, "_field": None}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """One SCF for a new structure; what is asked for later of the same structure comes from that SCF."""
        known, self._field = (None if system_changes else self._field), None
        if known is None:
            super().calculate(atoms, properties, system_changes)
        else:
            self.results |= self._evaluated(known, properties)

    def single_point(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """One SCF; forces cost a gradient more and come where they are asked for. With a cold guess all come.

        Raises
        ------
        TeacherError
            No atoms, periodic atoms, NaN positions, impossible multiplicity, an element the basis does not have, an SCF
            that does not converge.
        """
        return self._evaluated(self._converged(atoms), properties)

    def _evaluated(self, field: Any, properties: Sequence[str]) -> dict[str, Any]:
        """What is asked for, from a converged mean field, which is kept for what is asked next."""
        wanted = self.implemented_properties if self.guess == "cold" else properties
        energy = float(field.e_tot) * HARTREE
        results: dict[str, Any] = {"energy": energy, "free_energy": energy}
        if "forces" in wanted:
            gradient = np.asarray(_on_host(field.nuc_grad_method().run(verbose=0).de))
            results["forces"] = -gradient * (HARTREE / BOHR)
        if "dipole" in wanted:
            results["dipole"] = np.asarray(_on_host(field.dip_moment(unit="AU", verbose=0))) * BOHR
        if "charges" in wanted:
            results["charges"] = np.asarray(_on_host(field.mulliken_pop(verbose=0)[1]))
        if not np.isfinite(energy) or not np.isfinite(results.get("forces", 0.0)).all():
            raise TeacherError(f"{self.method}/{self.basis} returned an energy or forces that are not finite.")
        self._field = field
        return results

    def _converged(self, atoms: Atoms) -> Any:
        """A converged mean field for these atoms."""
        refuse_unusable(
            atoms, periodic="The atoms are periodic; this teacher computes molecules. Set `atoms.pbc = False`."
        )
        check_electron_count(atoms.numbers, self.charge, self.multiplicity)
        molecule = self._molecule(atoms)
        density = self._density if self.guess == "warm" else None
        if density is not None and density.shape[-1] != molecule.nao:
            density = None  # another molecule
        for attempt in LADDER:
            field = self._mean_field(molecule, attempt)
            self.scf_runs += 1
            try:
                field.kernel(dm0=density)
            except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
                raise TeacherError(f"{self.method}/{self.basis}: {error}") from error
            if field.converged:
                self._density = field.make_rdm1() if self.guess == "warm" else None
                return field
            density = field.make_rdm1()
        self._density = None
        raise TeacherError(
            f"{self.method}/{self.basis}: the SCF did not converge to {self.tolerance:g} Hartree in {self.max_cycle} "
            f"cycles, tried in {len(LADDER)} ways ({', '.join(LADDER)})."
        )

    def _molecule(self, atoms: Atoms) -> Any:
        from pyscf import gto
        from pyscf.lib.exceptions import BasisNotFoundError

        try:
            return gto.M(
                atom=[(symbol, xyz) for symbol, xyz in zip(atoms.symbols, atoms.positions / BOHR, strict=True)],
                unit="Bohr",
                basis=self.basis,
                charge=self.charge,
                spin=self.multiplicity - 1,
                verbose=0,
            )
        except (BasisNotFoundError, KeyError, RuntimeError) as error:
            raise TeacherError(f"PySCF has no basis `{self.basis}` for {atoms.symbols}: {error}") from error

    def _mean_field(self, molecule: Any, attempt: str) -> Any:
        from pyscf import dft, scf

        if self.method.upper() in ("HF", "RHF", "UHF"):
            field = scf.RHF(molecule) if self.multiplicity == 1 else scf.UHF(molecule)
        else:
            field = dft.RKS(molecule) if self.multiplicity == 1 else dft.UKS(molecule)
            field.xc = self.method
            field.grids.level = self.grid
        if self.dispersion is not None:
            field.disp = self.dispersion
        if self.density_fit:
            field = field.density_fit()
        if self.runs_on == "gpu":
            field = field.to_gpu()
        field.conv_tol, field.max_cycle, field.verbose = self.tolerance, self.max_cycle, 0
        if attempt == LADDER[1]:
            field.level_shift, field.damp = 0.2, 0.5
        elif attempt == LADDER[2]:
            field = field.newton()
            field.conv_tol, field.max_cycle, field.verbose = self.tolerance, self.max_cycle, 0
        return field

    def _check_names(self) -> None:
        """Refuse a functional that PySCF does not know before anything is computed."""
        if self.method.upper() in ("HF", "RHF", "UHF"):
            return
        from pyscf.dft import libxc

        try:
            libxc.parse_xc(self.method)
        except (KeyError, ValueError, AssertionError) as error:
            raise InputError(
                f"PySCF knows no functional `{self.method}` ({error}). Write `pyscf:PBE/def2-SVP` or `pyscf:HF/6-31G*`."
            ) from error


def _device(wanted: str) -> Literal["cpu", "gpu"]:
    """Where to compute; `auto` takes a GPU only where package and GPU are both there."""
    if wanted == "cpu":
        return "cpu"
    installed = importlib.util.find_spec("gpu4pyscf") is not None
    if not installed:
        if wanted == "gpu":
            raise InputError("`device` is 'gpu', but GPU4PySCF is not installed: pip install gpu4pyscf-cuda12x.")
        return "cpu"
    cupy = importlib.import_module("cupy")
    try:
        found = cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:
        found = False
    if not found and wanted == "gpu":
        raise InputError("`device` is 'gpu' and GPU4PySCF is installed, but no GPU was found.")
    return "gpu" if found else "cpu"


def _on_host(array: Any) -> Any:
    """A NumPy array of what may lie on a GPU."""
    return array.get() if hasattr(array, "get") else array
