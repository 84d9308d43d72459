"""The worst cases as a PyMOL script: structures embedded as PDB text, forces as arrows (CGO cones and cylinders)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols

from ...datasets.structure import Structure
from .bonding import find_bonding

SCALE = 0.5  # Å per eV/Å
REFERENCE_RGB = (0.25, 0.51, 0.97)
PREDICTED_RGB = (0.92, 0.48, 0.10)

_HEAD = """# PyMOL script written by distillase: run it with  pymol worst_forces.pml
# Blue arrows: forces of the teacher. Orange arrows: forces of the student. {scale:g} Å stand for 1 eV/Å.
# `disable all`, then `enable worst_2*`, shows another case.
reinitialize
bg_color white
python
from pymol import cmd
"""


@dataclass(frozen=True)
class Case:
    """One geometry with both forces (N, 3) in eV/Å and a line about it."""

    structure: Structure
    reference: np.ndarray
    predicted: np.ndarray
    title: str


def pymol_script(cases: Sequence[Case], *, scale: float = SCALE) -> str:
    """The script; it needs no other file.

    Parameters
    ----------
    cases
        Worst first; objects are named ``worst_1``, ``worst_1_reference``, ``worst_1_predicted`` and so on.
    scale
        Length of an arrow, Å per eV/Å.
    """
    lines = [_HEAD.format(scale=scale)]
    for number, case in enumerate(cases, 1):
        name = f"worst_{number}"
        lines.append(f"# {name}: {' '.join(case.title.split())}")
        lines.append(f'cmd.read_pdbstr({_pdb(case.structure)!r}, "{name}")')
        for kind, forces, colour, radius in (
            ("reference", case.reference, REFERENCE_RGB, 0.07),
            ("predicted", case.predicted, PREDICTED_RGB, 0.045),
        ):
            numbers = _arrows(case.structure.positions, forces * scale, colour, radius)
            lines.append(f'cmd.load_cgo([{numbers}], "{name}_{kind}")')
        if number > 1:
            lines.append(f'cmd.disable("{name}*")')
    lines += [
        "python end",
        "hide lines",
        "hide nonbonded",
        "show sticks, worst_*",
        "show spheres, worst_*",
        "set stick_radius, 0.1",
        "set sphere_scale, 0.22",
        "set cgo_transparency, 0.25, *_reference",
        "util.cbag worst_*",
        "zoom worst_1, 2",
    ]
    return "\n".join(lines) + "\n"


def _pdb(structure: Structure) -> str:
    """PDB records with element columns and bonds, so that PyMOL guesses nothing."""
    bonding = find_bonding(structure.numbers, structure.positions, structure.cell, structure.pbc)
    lines = []
    for k, (number, x) in enumerate(zip(structure.numbers, structure.positions, strict=True), 1):
        symbol = chemical_symbols[int(number)]
        name = f" {symbol:<3}" if len(symbol) == 1 else f"{symbol:<4}"
        lines.append(
            f"HETATM{k % 100000:5d} {name} MOL A   1    {x[0]:8.3f}{x[1]:8.3f}{x[2]:8.3f}  1.00  0.00          "
            f"{symbol.upper():>2}"
        )
    if len(structure) < 100000:
        for (a, b), shift in zip(bonding.pairs, bonding.shifts, strict=True):
            if not shift.any():
                lines.append(f"CONECT{a + 1:5d}{b + 1:5d}")
    return "\n".join([*lines, "END", ""])


def _arrows(starts: np.ndarray, vectors: np.ndarray, rgb: tuple[float, float, float], radius: float) -> str:
    """CGO numbers of a cylinder and a cone per atom (9.0 is CYLINDER, 27.0 is CONE)."""
    numbers: list[float] = []
    for start, vector in zip(starts, vectors, strict=True):
        length = float(np.linalg.norm(vector))
        if length < 1e-3:
            continue
        head = min(0.35 * length, 4 * radius)
        neck, end = start + vector * (1 - head / length), start + vector
        numbers += [9.0, *start, *neck, radius, *rgb, *rgb]
        numbers += [27.0, *neck, *end, 2.2 * radius, 0.0, *rgb, *rgb, 1.0, 0.0]
    return ", ".join(f"{value:.3f}" for value in numbers)
