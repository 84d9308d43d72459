"""The surface that geometries are made on: the teacher, or MMFF94."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ase.calculators.calculator import BaseCalculator

from ...ase_calcs.teachers import make_teacher, parse_teacher, teacher_files, teacher_version
from ..structure import Structure

_BONDED = ("mmff94", "gfn-ff", "openmm:openff")  # force fields that find the bonds of a molecule in a geometry of it


def surface_name(surface: Literal["mmff94", "teacher"], teacher: str, *, dynamics: bool) -> str:
    """The registry name of a surface.

    In dynamics an xTB teacher starts each SCF from the step before, which is a quarter faster, and force fields keep
    the bonds they began with. Neither is good for labels, so nothing computed here is ever used as one.
    """
    spec = parse_teacher("mmff94" if surface == "mmff94" else teacher)
    if dynamics and spec.name in ("gfn1-xtb", "gfn2-xtb") and "guess" not in spec.options:
        spec = replace(spec, options={**spec.options, "guess": "warm"})
    if spec.name in _BONDED and "topology" not in spec.options:
        spec = replace(spec, options={**spec.options, "topology": "first"})
    return str(spec)


def labelling_surface(teacher: str) -> str:
    """The registry name of a teacher whose energies and forces along a trajectory are kept as labels.

    Every SCF starts cold, so that a label depends on its structure alone and a trajectory can be taken up anywhere;
    MMFF94 keeps the bonds it began with.
    """
    return surface_name("teacher", teacher, dynamics=False)


def surface_identity(name: str) -> str:
    """Name, version and the hashes of the files it mentions, for the keys of cached work."""
    return f"{name} [{', '.join([teacher_version(name), *teacher_files(name).values()])}]"


def make_surface(name: str, molecule: Structure) -> BaseCalculator:
    """A fresh calculator for one molecule. Force fields take their bonds from the molecule's own geometry."""
    calculator = make_teacher(name, molecule.charge, molecule.multiplicity, smiles=molecule.smiles)
    if parse_teacher(name).name in _BONDED:
        # With `topology=first` the first calculation fixes the bonds: make it the reference geometry.
        calculator.get_property("energy", molecule.to_atoms())
    return calculator
