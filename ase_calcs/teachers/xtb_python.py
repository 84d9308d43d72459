"""GFN-FF, and a second GFN1-xTB and GFN2-xTB, through xtb-python (the package `xtb`).

tblite is the default for xTB: xtb-python is no longer developed. It is here for GFN-FF, which tblite does not have, and
to check one implementation of GFN2-xTB against another. Its library runs in a process of its own, see
`xtb_python_server`; one such process serves all calculators of a process, and a label is a function of the request
alone: every calculation makes the library's objects anew.
"""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ..errors import InputError, MissingDependency, TeacherError, check_positive, did_you_mean, require
from ..units import BOHR, HARTREE
from .base import TeacherCalculator, refuse_unusable
from .registry import check_electron_count
from .topology import BOND_SCALE, bond_stretch

_METHODS = {"GFN1-xTB": "GFN1xTB", "GFN2-xTB": "GFN2xTB", "GFN-FF": "GFNFF"}
_LAST_ELEMENT = 86  # radon; beyond it xTB ends the process and GFN-FF returns zeros
_LAST_PYTHON = (3, 11)  # for which the package has wheels
# Of xtb.interface.Solvent; named here so that a wrong name is refused before anything is started.
_SOLVENTS = (
    "acetone", "acetonitrile", "benzene", "ch2cl2", "chcl3", "cs2", "dmf", "dmso", "ether", "h2o", "methanol",
    "nhexane", "thf", "toluene",
)  # fmt: skip
_PERIODIC = "xtb-python computes molecules. Set `atoms.pbc = False`, or use `gfn2-xtb`, which is periodic."


class _XTBPythonCalculator(TeacherCalculator):
    """What the three methods share; not made itself."""

    def __init__(self, method: str, charge: int, multiplicity: int, solvent: str | None):
        super().__init__()
        if method not in _METHODS:
            raise InputError(f"Unknown method `{method}`{did_you_mean(method, _METHODS)}")
        if solvent is not None and solvent not in _SOLVENTS:
            raise InputError(f"`solvent` is {solvent!r}; allowed are {', '.join(map(repr, _SOLVENTS))} and None.")
        require_xtb()
        self.method = method
        self.charge = int(charge)
        self.multiplicity = int(multiplicity)
        self.solvent = solvent

    def _ask(self, atoms: Atoms, reference: np.ndarray | None = None, **settings: Any) -> dict[str, Any]:
        """One calculation in the other process, its results in our units: the one place where they are converted."""
        refuse_unusable(atoms, periodic=_PERIODIC)
        heavy = atoms.numbers[(atoms.numbers > _LAST_ELEMENT) | (atoms.numbers < 1)]
        if len(heavy):
            raise TeacherError(f"{self.method} has no parameters for {chemical_symbols[heavy[0]]}; it ends at Rn.")
        check_electron_count(atoms.numbers, self.charge, self.multiplicity)
        request = {
            "method": _METHODS[self.method],
            "numbers": np.array(atoms.numbers),
            "positions": atoms.positions / BOHR,
            "reference": None if reference is None else reference / BOHR,
            "charge": self.charge,
            "unpaired": self.multiplicity - 1,
            "solvent": self.solvent,
        }
        kind, found = _SERVER.ask(self.method, {**request, **settings})
        if kind == "missing":
            raise MissingDependency(f"xtb-python could not be imported in a process of its own: {found}")
        if kind == "failed":
            raise TeacherError(f"{self.method}: {_reasons(found)}")
        energy, forces = found["energy"] * HARTREE, found["gradient"] * (-HARTREE / BOHR)
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise TeacherError(f"{self.method} returned an energy or forces that are not finite.")
        results = {"energy": energy, "free_energy": energy, "forces": forces, "dipole": found["dipole"] * BOHR}
        return results | ({"charges": found["charges"]} if "charges" in found else {})


class XTBPythonCalculator(_XTBPythonCalculator):
    """GFN1-xTB or GFN2-xTB through xtb-python, every SCF from a cold guess.

    Parameters
    ----------
    method
        ``"GFN1-xTB"`` (10.1021/acs.jctc.7b00118) or ``"GFN2-xTB"`` (10.1021/acs.jctc.8b01176).
    charge
        Total charge, e.
    multiplicity
        Spin multiplicity 2S+1.
    accuracy
        xtb's convergence factor for the SCF, its own default is 1.0. Forces agree with tblite's converged ones to 3e-4
        eV/Å at 1.0 and to 1e-5 at 0.1.
    electronic_temperature
        K, of the Fermi smearing.
    max_iterations
        SCF cycles before a structure is refused.
    solvent
        Of the GBSA model, as xtb-python names it: ``"h2o"``, ``"dmso"``.

    Gives energy, free_energy, forces, charges (Mulliken) and dipole (e·Å). With charge ≠ 0 the dipole depends on the
    origin of the coordinates.
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
        method: str = "GFN2-xTB",
        *,
        charge: int = 0,
        multiplicity: int = 1,
        accuracy: float = 0.1,
        electronic_temperature: float = 300.0,
        max_iterations: int = 250,
        solvent: str | None = None,
    ):
        super().__init__(method, charge, multiplicity, solvent)
        check_positive("accuracy", accuracy)
        check_positive("electronic_temperature", electronic_temperature)
        check_positive("max_iterations", max_iterations)
        self.accuracy = float(accuracy)
        self.electronic_temperature = float(electronic_temperature)
        self.max_iterations = int(max_iterations)

    def single_point(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """One single point; every property comes with it.

        Raises
        ------
        TeacherError
            No atoms, periodic atoms, NaN or coinciding positions, impossible multiplicity, an element beyond radon, an
            SCF that does not converge, or the library ended its process.
        """
        return self._ask(
            atoms,
            accuracy=self.accuracy,
            electronic_temperature=self.electronic_temperature,
            max_iterations=self.max_iterations,
        )


class GFNFFCalculator(_XTBPythonCalculator):
    """The GFN-FF force field (10.1002/anie.202004239) for molecules of elements up to radon.

    Parameters
    ----------
    charge
        Total charge, e.
    multiplicity
        Only 1: a force field of closed shells.
    topology
        ``"each"`` finds the bonds and atom types of every structure anew, so that a label is a function of its
        structure alone. ``"first"`` keeps those of the first one until `reset` or until the elements change: for
        dynamics.
    solvent
        As in `XTBPythonCalculator`.

    Gives energy, free_energy, forces and dipole (e·Å). With charge ≠ 0 the dipole depends on the origin.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "dipole"]  # type: ignore[misc]

    def __init__(
        self,
        *,
        charge: int = 0,
        multiplicity: int = 1,
        topology: Literal["each", "first"] = "each",
        solvent: str | None = None,
    ):
        super().__init__("GFN-FF", charge, multiplicity, solvent)
        if topology not in ("each", "first"):
            raise InputError(f"`topology` is {topology!r}; allowed are 'each' and 'first'.")
        if int(multiplicity) != 1:
            raise TeacherError(f"GFN-FF is a force field of closed shells; multiplicity {multiplicity} is not one.")
        self.topology = topology
        self._first: tuple[np.ndarray, np.ndarray] | None = None  # numbers and positions that the bonds are those of

    def reset(self) -> None:
        """Forget results and bonds."""
        super().reset()
        self._first = None

    def single_point(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """One single point; every property comes with it.

        Raises
        ------
        TeacherError
            No atoms, periodic atoms, NaN or coinciding positions, an odd number of electrons, an element beyond radon,
            CO or NO beside hydrogen, or the library ended its process.
        """
        _refuse_lone_oxides(atoms)
        reference = None
        if self.topology == "first":
            if self._first is None or not np.array_equal(self._first[0], atoms.numbers):
                self._first = atoms.numbers.copy(), atoms.positions.copy()
            reference = self._first[1]
        try:
            return self._ask(atoms, reference, accuracy=0.1, electronic_temperature=300.0, max_iterations=250)
        except TeacherError:
            if self._first is not None and reference is self._first[1] and np.array_equal(reference, atoms.positions):
                self._first = None  # bonds of a structure that has none must not stay
            raise


def _refuse_lone_oxides(atoms: Atoms) -> None:
    """Refuse CO and NO as molecules of their own beside hydrogen.

    For an O with one neighbour, a C or N without another, the hydrogen-bond term of xtb 6.5.1 (``abhgfnff_eg3``) writes
    through indices that it has not set: the energy is then anything, or the process ends.
    """
    if not (8 in atoms.numbers and 1 in atoms.numbers):
        return
    bonded = bond_stretch(atoms.numbers, atoms.positions) < BOND_SCALE
    np.fill_diagonal(bonded, False)
    ends = bonded.sum(axis=1) == 1
    oxygen, other = ends & (atoms.numbers == 8), ends & np.isin(atoms.numbers, (6, 7))
    if (bonded & oxygen[:, None] & other[None, :]).any():
        raise TeacherError(
            "GFN-FF of xtb 6.5.1 cannot compute a free CO or NO beside hydrogen: it reads and writes out of bounds."
        )


def require_xtb() -> None:
    """Refuse where xtb-python is not installed, without loading its library into this process."""
    try:
        require("xtb", extra="xtb-python", purpose="label with GFN-FF, or with xTB as a second implementation")
    except MissingDependency as error:
        if sys.version_info[:2] <= _LAST_PYTHON:
            raise
        here = ".".join(str(part) for part in sys.version_info[:2])
        raise MissingDependency(
            f"xtb-python (the package `xtb`) has wheels for Python up to 3.11, and this is Python {here}: make an "
            "environment with Python 3.11, or use `gfn2-xtb`, which is tblite."
        ) from error


def _reasons(log: str) -> str:
    """xtb's numbered log, ``-2- source: message``, as a sentence: the messages, the cause last."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    messages = [line.partition(": ")[2] or line for line in lines if line.startswith("-")]
    return "; ".join(messages) if messages else " ".join(lines)


class _Server:
    """The other process: started when first asked, again after it has ended, and in a forked child anew."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = ""
        self._owner = 0
        self._lock = threading.Lock()

    def ask(self, method: str, request: dict[str, Any]) -> tuple[str, Any]:
        """The reply to a request. `TeacherError` if the library ends the process instead."""
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                pickle.dump(request, process.stdin)
                process.stdin.flush()
                reply: tuple[str, Any] = pickle.load(process.stdout)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
                raise TeacherError(f"{method}: the library ended its process ({self._ended(process)}).") from error
            except BaseException:  # Ctrl-C: its reply must not be taken for that of the next request
                process.kill()
                self.stop()
                raise
            return reply

    def stop(self) -> None:
        """End the process, if this one started it, and remove its folder."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
        if self._owner == os.getpid():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        self.stop()
        self._owner = os.getpid()
        self._folder = tempfile.mkdtemp(prefix="distillase-xtb-")
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        # Parameter files of the user's would change the method; the folder is empty.
        paths = {
            "XTBPATH": self._folder,
            "XTBHOME": self._folder,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with open(Path(self._folder, "stderr"), "wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("xtb_python_server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self._folder,
                env={**os.environ, **one_thread, **paths},
            )
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> str:
        """How the process ended, and the last thing it said."""
        code = process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        with suppress(OSError):
            said = Path(self._folder, "stderr").read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "")
            how = f"{how}: {last}" if last else how
        self.stop()
        return how


_SERVER = _Server()
atexit.register(_SERVER.stop)
