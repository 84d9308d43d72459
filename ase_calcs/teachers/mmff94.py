"""The MMFF94 force field through RDKit, as an ASE calculator."""

from __future__ import annotations

from typing import Any, Literal

from ase.calculators.calculator import Calculator

from ..errors import InputError


class MMFF94Calculator(Calculator):
    """MMFF94 (not written yet)."""

    def __init__(
        self,
        *,
        charge: int = 0,
        multiplicity: int = 1,
        smiles: str = "",
        variant: Literal["MMFF94", "MMFF94s"] = "MMFF94",
        **_: Any,
    ):
        raise InputError("The mmff94 teacher is not there yet.")
