"""One registry of teachers: `gfn2-xtb`, `pyscf:PBE/def2-SVP`, `openmm:amber14`, any ASE calculator as `module:Class`.

>>> parse_teacher("gfn2-xtb?accuracy=0.01&electronic_temperature=500")
>>> make_teacher("gfn2-xtb", charge=1)
>>> make_teacher("pyscf:PBE/def2-SVP?grid=4")
>>> make_teacher("openmm:peptide/system.xml?platform=CPU")
>>> make_teacher("ase.calculators.emt:EMT?asap_cutoff=True")
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.calculator import BaseCalculator, Calculator
from ase.data import chemical_symbols

from ..errors import InputError, MissingDependency, TeacherError, did_you_mean, require

# Option of `module:Class` teachers that is ours and not passed on; see `make_teacher`.
CHARGE_FROM_INFO = "charge_from_info"


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher's name taken apart.

    Attributes
    ----------
    name
        Built-in name, or ``"module:Class"``.
    options
        What followed the ``?``, values as Python objects.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def builtin(self) -> bool:
        """Whether distillase brings this teacher, as opposed to ``module:Class``."""
        return self.family in _BUILTIN

    @property
    def family(self) -> str:
        """The name without what varies: ``"pyscf"`` of ``"pyscf:PBE/def2-SVP"``, ``"openmm"`` of a System's file."""
        head = self.name.partition(":")[0]
        return head if head in ("pyscf", "openmm") and self.name not in _BUILTIN else self.name

    def __str__(self) -> str:
        """The canonical name: options sorted by key, so that equal teachers are spelt the same."""
        options = "&".join(f"{key}={self.options[key]!r}" for key in sorted(self.options))
        return f"{self.name}?{options}" if options else self.name


@dataclass(frozen=True)
class _BuiltIn:
    """A teacher that distillase brings; `factory(options, charge, multiplicity, smiles)` makes a calculator.

    `files` are the options that name files, whose content is part of what a label depends on.
    """

    distribution: str
    extra: str
    defaults: Mapping[str, Any]
    factory: Callable[[Mapping[str, Any], int, int, str], Calculator]
    files: tuple[str, ...] = ()


def _make_xtb(method: str) -> Callable[[Mapping[str, Any], int, int, str], Calculator]:
    def factory(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
        from .xtb import XTBCalculator

        return XTBCalculator(method=method, charge=charge, multiplicity=multiplicity, **options)

    return factory


def _make_mmff94(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
    from .mmff94 import MMFF94Calculator

    return MMFF94Calculator(charge=charge, multiplicity=multiplicity, smiles=smiles, **options)


def _make_pyscf(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
    from .dft import PySCFCalculator

    return PySCFCalculator(charge=charge, multiplicity=multiplicity, **options)


def _make_xtb_python(method: str) -> Callable[[Mapping[str, Any], int, int, str], Calculator]:
    def factory(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
        from .xtb_python import XTBPythonCalculator

        return XTBPythonCalculator(method=method, charge=charge, multiplicity=multiplicity, **options)

    return factory


def _make_gfnff(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
    from .xtb_python import GFNFFCalculator

    return GFNFFCalculator(charge=charge, multiplicity=multiplicity, **options)


def _make_openmm(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
    from .openmm_system import SystemCalculator

    return SystemCalculator(charge=charge, multiplicity=multiplicity, **options)


def _make_amber14(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
    from .openmm_fields import AmberCalculator

    return AmberCalculator(charge=charge, multiplicity=multiplicity, **options)


def _make_openff(options: Mapping[str, Any], charge: int, multiplicity: int, smiles: str) -> Calculator:
    from .openmm_fields import OpenFFCalculator

    return OpenFFCalculator(charge=charge, multiplicity=multiplicity, smiles=smiles, **options)


_XTB_DEFAULTS: dict[str, Any] = {
    "accuracy": 0.1,
    "electronic_temperature": 300.0,
    "max_iterations": 250,
    "mixer_damping": 0.4,
    "solvation": None,
    "spin_polarization": None,
    "guess": "cold",
}

_PYSCF_DEFAULTS: dict[str, Any] = {
    "density_fit": True,
    "grid": 3,
    "tolerance": 1e-9,
    "max_cycle": 100,
    "dispersion": None,
    "guess": "cold",
    "device": "auto",
}

_XTB_PYTHON_DEFAULTS: dict[str, Any] = {
    "accuracy": 0.1,
    "electronic_temperature": 300.0,
    "max_iterations": 250,
    "solvent": None,
}

_OPENMM_DEFAULTS: dict[str, Any] = {"platform": "Reference", "threads": 1}

_OPENFF_DEFAULTS: dict[str, Any] = {
    "force_field": "openff_unconstrained-2.2.1.offxml",
    "charges": None,
    "topology": "each",
    **_OPENMM_DEFAULTS,
}

_BUILTIN: dict[str, _BuiltIn] = {
    "gfn1-xtb": _BuiltIn("tblite", "xtb", _XTB_DEFAULTS, _make_xtb("GFN1-xTB")),
    "gfn2-xtb": _BuiltIn("tblite", "xtb", _XTB_DEFAULTS, _make_xtb("GFN2-xTB")),
    "mmff94": _BuiltIn("rdkit", "train", {"variant": "MMFF94", "topology": "each"}, _make_mmff94),
    "pyscf": _BuiltIn("pyscf", "dft", _PYSCF_DEFAULTS, _make_pyscf),
    "gfn1-xtb@xtb": _BuiltIn("xtb", "xtb-python", _XTB_PYTHON_DEFAULTS, _make_xtb_python("GFN1-xTB")),
    "gfn2-xtb@xtb": _BuiltIn("xtb", "xtb-python", _XTB_PYTHON_DEFAULTS, _make_xtb_python("GFN2-xTB")),
    "gfn-ff": _BuiltIn("xtb", "xtb-python", {"topology": "each", "solvent": None}, _make_gfnff),
    "openmm": _BuiltIn("openmm", "openmm", {"masses": "check", **_OPENMM_DEFAULTS}, _make_openmm, ("path",)),
    "openmm:amber14": _BuiltIn(
        "openmm", "openmm", {"pdb": None, "solvation": None, **_OPENMM_DEFAULTS}, _make_amber14, ("pdb",)
    ),
    "openmm:openff": _BuiltIn("openmm", "openmm", _OPENFF_DEFAULTS, _make_openff, ("force_field",)),
}

# Names of families whose members are endless, as lists show them.
_SHOWN = {"pyscf": "pyscf:METHOD/BASIS", "openmm": "openmm:PATH/TO/system.xml"}


def teacher_names() -> list[str]:
    """Names of the built-in teachers, sorted; one name stands for all of PySCF's methods and for all OpenMM Systems."""
    return sorted(_SHOWN.get(name, name) for name in _BUILTIN)


def parse_teacher(name: str) -> TeacherSpec:
    """Take a teacher's name apart and check what can be checked without making it.

    Parameters
    ----------
    name
        ``"gfn2-xtb"``, ``"gfn2-xtb?accuracy=0.01&electronic_temperature=300"`` or ``"module:Class?key=value"``. Values
        are Python literals; a bare word is a string (``device=cpu``).

    Raises
    ------
    InputError
        Unknown name or option (with the nearest allowed one), or an option that cannot be read.
    """
    base, _, query = name.strip().partition("?")
    options = _parse_options(query, name)
    spec = TeacherSpec(base, options)
    if spec.family == "pyscf":
        _method_and_basis(base)
    elif spec.family == "openmm":
        _system_file(base)
    if spec.builtin:
        allowed = _BUILTIN[spec.family].defaults
        for key in options:
            if key not in allowed:
                raise InputError(f"Teacher `{base}` has no option `{key}`{did_you_mean(key, allowed)}")
        return spec
    module, colon, cls = base.partition(":")
    if colon and all(part.isidentifier() for part in (*module.split("."), *cls.split("."))):
        return TeacherSpec(base, options)
    if colon:
        raise InputError(f"Teacher `{base}` should read `module:Class`, e.g. `ase.calculators.emt:EMT`.")
    hint = did_you_mean(base.lower(), _BUILTIN)
    raise InputError(f"Unknown teacher `{base}`{hint} Any ASE calculator can be named as `module:Class?key=value`.")


def _method_and_basis(name: str) -> tuple[str, str]:
    """``pyscf:PBE/def2-SVP`` → ``PBE``, ``def2-SVP``."""
    method, slash, basis = name.partition(":")[2].partition("/")
    if not (slash and method.strip() and basis.strip()):
        raise InputError(
            f"Teacher `{name}` should read `pyscf:METHOD/BASIS`, e.g. `pyscf:PBE/def2-SVP` or `pyscf:HF/6-31G*`."
        )
    return method.strip(), basis.strip()


def _system_file(name: str) -> str:
    """``openmm:peptide/system.xml`` → ``peptide/system.xml``; whether the file is there is asked when it is read."""
    path = name.partition(":")[2].strip()
    if not path.lower().endswith(".xml"):
        hint = did_you_mean(name, [key for key in _BUILTIN if key.startswith("openmm:")]) if path else ""
        close = hint if "did you mean" in hint else "."
        raise InputError(
            f"Teacher `{name}` should read `openmm:PATH/TO/system.xml` (a serialised System), `openmm:amber14` or "
            f"`openmm:openff`{close}"
        )
    return path


def _parse_options(query: str, name: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, text = item.partition("=")
        key, text = key.strip(), text.strip()
        if not equals or not key.isidentifier() or not text:
            raise InputError(f"Option `{item}` of teacher `{name}` should read `key=value`.")
        if key in options:
            raise InputError(f"Option `{key}` of teacher `{name}` is given twice.")
        options[key] = _parse_value(key, text)
    return options


def _parse_value(key: str, text: str) -> Any:
    if text.lower() in ("true", "false", "none", "null") and text not in ("True", "False", "None"):
        # As a bare word it would become a string, and a non-empty string is true.
        raise InputError(f"Option `{key}={text}`: write Python's `True`, `False` or `None` (or quote a string).")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if all(character.isalnum() or character in "_-.+:/ " for character in text):
            return text
        raise InputError(f"Option `{key}={text}` is not a Python literal. Quote strings: `{key}='{text}'`.") from None


def teacher_settings(name: str) -> dict[str, Any]:
    """Every setting of a teacher with defaults filled in, JSON-ready, for provenance and for hashing.

    A file that the name mentions is there as the SHA-256 of its content (``path_sha256``): two Systems under one name
    are two teachers.

    Raises
    ------
    InputError
        Unknown teacher or option, or a file that cannot be read.
    """
    spec = parse_teacher(name)
    defaults = _BUILTIN[spec.family].defaults if spec.builtin else {}
    settings = {**defaults, **spec.options, **teacher_files(name)}
    return {key: value if _is_json(value) else repr(value) for key, value in sorted(settings.items())}


def teacher_files(name: str) -> dict[str, str]:
    """The SHA-256 of each file that a teacher's name mentions, by option: ``{"pdb_sha256": "9f86…"}``.

    Raises
    ------
    InputError
        A file cannot be read.
    """
    spec = parse_teacher(name)
    hashes = {}
    for option in _BUILTIN[spec.family].files if spec.builtin else ():
        path = _system_file(spec.name) if option == "path" else spec.options.get(option)
        if path is None or (option == "force_field" and not Path(path).is_file()):  # one that the toolkit brings
            continue
        try:
            hashes[f"{option}_sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
            raise InputError(f"Teacher `{name}`: `{path}` cannot be read: {reason}.") from error
    return hashes


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def make_teacher(name: str, charge: int = 0, multiplicity: int = 1, *, smiles: str = "") -> BaseCalculator:
    """A fresh teacher for structures of one charge and multiplicity.

    Built-in xTB teachers start every calculation from a cold SCF guess, so labels do not depend on their order.

    Parameters
    ----------
    name
        See `parse_teacher`.
    charge
        Total charge, e.
    multiplicity
        Spin multiplicity 2S+1.
    smiles
        Where known: gives MMFF94 and OpenFF their bonds. A teacher that needs no bonds ignores it.

    Returns
    -------
    An ASE calculator; what it gives is in its ``implemented_properties`` (energies eV, forces eV/Å, charges e,
    dipole e·Å).

    Raises
    ------
    InputError
        The name or an option is wrong.
    MissingDependency
        The package behind the teacher is not installed.
    TeacherError
        A charged or open-shell structure is given to a ``module:Class`` that takes no ``charge`` or ``multiplicity``:
        it would be computed as neutral without a word. Calculators that read ``atoms.info["charge"]`` and
        ``atoms.info["multiplicity"]`` themselves are named with the option ``charge_from_info=True``.
    """
    spec = parse_teacher(name)
    if spec.builtin:
        options = dict(spec.options)
        if spec.family == "pyscf":
            options["method"], options["basis"] = _method_and_basis(spec.name)
        elif spec.family == "openmm":
            options["path"] = _system_file(spec.name)
        return _BUILTIN[spec.family].factory(options, int(charge), int(multiplicity), smiles)
    return _make_from_module(spec, int(charge), int(multiplicity))


def _make_from_module(spec: TeacherSpec, charge: int, multiplicity: int) -> BaseCalculator:
    cls = _load_class(spec.name)
    options = dict(spec.options)
    from_info = bool(options.pop(CHARGE_FROM_INFO, False))
    accepted, takes_any = _parameters(cls)
    for key in options:
        # A class with **kwargs may know more than it declares, so there only what looks like a slip is refused.
        if key not in accepted and (not takes_any or _close(key, accepted) != "."):
            raise InputError(f"`{spec.name}` takes no `{key}`{did_you_mean(key, accepted)}")
    for key, value, neutral in (("charge", charge, 0), ("multiplicity", multiplicity, 1)):
        if from_info or key in options:
            continue
        if key in accepted:
            options[key] = value
        elif value != neutral:
            raise TeacherError(
                f"The structure has {key} {value}, but `{spec.name}` takes no argument `{key}`. If it reads "
                f"atoms.info[{key!r}] instead, add the option `{CHARGE_FROM_INFO}=True`."
            )
    try:
        calculator = cls(**options)
    except TypeError as error:
        raise InputError(f"`{spec.name}` could not be made with {options}: {error}") from error
    if not hasattr(calculator, "get_property"):
        raise InputError(f"`{spec.name}` is not an ASE calculator: it has no `get_property`.")
    return calculator


def _load_class(name: str) -> Callable[..., Any]:
    module_name, _, path = name.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"Teacher `{name}`: module `{module_name}` could not be imported ({error}).") from error
    for part in path.split("."):
        if not hasattr(target, part):
            public = [word for word in dir(target) if not word.startswith("_")]
            close = did_you_mean(part, public) if len(public) < 20 else _close(part, public)
            raise InputError(f"Module `{module_name}` has no `{path}`{close}")
        target = getattr(target, part)
    if not callable(target):
        raise InputError(f"`{name}` is not a class or a function that makes a calculator.")
    return target


def _close(word: str, allowed: Iterable[str]) -> str:
    hint = did_you_mean(word, allowed)
    return hint if "did you mean" in hint else "."


def _parameters(cls: Callable[..., Any]) -> tuple[set[str], bool]:
    """Named keyword arguments of a calculator class, and whether it takes any others too."""
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return set(), True
    kinds = inspect.Parameter
    names = {
        p.name for p in signature.parameters.values() if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in signature.parameters.values())
    defaults = getattr(cls, "default_parameters", None)
    if takes_any and isinstance(defaults, Mapping):
        # ASE's own classes list their keywords here and take **kwargs.
        names |= set(defaults)
    return names, takes_any


def teacher_version(name: str) -> str:
    """Package and version behind a teacher, e.g. ``"tblite 0.8.0"``, for provenance. Does not make the teacher."""
    spec = parse_teacher(name)
    if spec.builtin:
        builtin = _BUILTIN[spec.family]
        distribution = builtin.distribution
        try:
            version = f"{distribution} {metadata.version(distribution)}"
            with suppress(metadata.PackageNotFoundError):
                if spec.family == "openmm:openff":
                    version += f", openff-toolkit {metadata.version('openff-toolkit')}"
            return version
        except metadata.PackageNotFoundError:
            if distribution == "xtb":
                from .xtb_python import require_xtb

                require_xtb()
            module = require(distribution, extra=builtin.extra, purpose="make labels")
            return f"{distribution} {getattr(module, '__version__', 'of unknown version')}"
    top = spec.name.partition(":")[0].partition(".")[0]
    for distribution in _distributions().get(top, []):
        return f"{distribution} {metadata.version(distribution)}"
    return f"{top} {getattr(sys.modules.get(top), '__version__', 'of unknown version')}"


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    """Distributions by the packages they bring; half a second, for every installed file list is read."""
    return metadata.packages_distributions()


def check_electron_count(numbers: np.ndarray, charge: int, multiplicity: int) -> None:
    """Refuse a charge and multiplicity that no set of electrons can have.

    n electrons allow multiplicities of the parity of n + 1, up to n + 1 (all spins parallel).

    Parameters
    ----------
    numbers
        (N,) atomic numbers.
    charge
        Total charge, e.
    multiplicity
        Spin multiplicity 2S+1.

    Raises
    ------
    TeacherError
        With the multiplicities that are possible.
    """
    electrons = int(np.sum(numbers)) - charge
    if electrons < 0:
        raise TeacherError(f"Charge {charge:+d} takes away more electrons than the {int(np.sum(numbers))} there are.")
    if 1 <= multiplicity <= electrons + 1 and (electrons - multiplicity) % 2 == 1:
        return
    first = 1 if electrons % 2 == 0 else 2
    possible = ", ".join(str(m) for m in range(first, min(electrons + 1, first + 4) + 1, 2))
    raise TeacherError(
        f"{electrons} electrons ({_formula(numbers)}, charge {charge:+d}) cannot have multiplicity {multiplicity}; "
        f"possible are {possible}, … Set the right charge or multiplicity."
    )


def _formula(numbers: np.ndarray) -> str:
    elements, counts = np.unique(np.asarray(numbers, dtype=int), return_counts=True)
    return "".join(f"{chemical_symbols[z]}{n if n > 1 else ''}" for z, n in zip(elements, counts, strict=True))
