"""The one place where foreign units become ours: eV, Å, fs, e, K.

Everything inside distillase is in these units, and in ASE's internal time unit inside ASE dynamics. Constants come from
`ase.units` (CODATA 2014), so that energies agree with those of every other ASE calculator to the last digit.
"""

from __future__ import annotations

from ase import units as _ase

EV = _ase.eV
ANGSTROM = _ase.Angstrom
FS = _ase.fs  # one femtosecond in ASE's internal time unit, Å·sqrt(u/eV)
KB = _ase.kB  # eV/K

HARTREE = _ase.Hartree  # eV
BOHR = _ase.Bohr  # Å
KCAL_PER_MOL = _ase.kcal / _ase.mol  # eV
KJ_PER_MOL = _ase.kJ / _ase.mol  # eV
NM = _ase.nm  # Å
GPA = _ase.GPa  # eV/Å³
DEBYE = _ase.Debye  # e·Å

# Unit strings written into dataset and model files, keyed by field; readers refuse a file that says anything else.
FIELD_UNITS: dict[str, str] = {
    "positions": "Å",
    "cell": "Å",
    "energy": "eV",
    "energies": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å^3",
    "charges": "e",
    "dipole": "e·Å",
    "hessian_rows": "eV/Å^2",
    "velocities": "Å/fs",
    "charge": "e",
    "temperature": "K",
}
