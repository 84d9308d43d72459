"""What a set of structures is made of, and whether that looks like what was meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..ase_calcs.errors import DataError
from .structure import Structure

# Elements that molecule sets hold mostly by mistake: an atom name or a symbol with a digit read as an element.
_MISREAD: dict[str, str] = {
    "Ho": "hydrogens written `H0` or `HO`",
    "Hg": "hydrogens named `HG`",
    "He": "hydrogens named `HE`",
    "Hf": "hydrogens named `HF`",
    "Hs": "hydrogens named `HS`",
    "Ca": "α-carbons named `CA`",
    "Cd": "carbons named `CD`",
    "Ce": "carbons named `CE`",
    "Co": "carbons named `CO`",
    "Cs": "carbons named `CS`",
    "Cr": "carbons named `CR`",
    "Cu": "carbons named `CU`",
    "Nd": "nitrogens named `ND`",
    "Ne": "nitrogens named `NE`",
    "No": "nitrogens named `NO`",
    "Np": "nitrogens named `NP`",
    "Os": "oxygens named `OS`",
    "Sc": "sulfurs or `SC` beads",
    "Sg": "sulfurs named `SG`",
    "Pa": "phosphorus named `PA`",
    "Pb": "phosphorus named `PB`",
}
_COMMON_ORGANIC = frozenset(["H", "B", "C", "N", "O", "F", "Si", "P", "S", "Cl", "Br", "I", "Se"])


@dataclass(frozen=True)
class ElementRow:
    """One element of a set.

    Attributes
    ----------
    symbol, number
        The element.
    count
        Atoms of it in the set.
    fraction
        Share of all atoms.
    structures
        Structures that hold it.
    per_structure
        Mean count over the structures that hold it.
    most
        Largest count in one structure.
    """

    symbol: str
    number: int
    count: int
    fraction: float
    structures: int
    per_structure: float
    most: int


@dataclass(frozen=True)
class Composition:
    """Elements, sizes and hydrogen of a set.

    Attributes
    ----------
    rows
        One per element, by atomic number.
    n_structures, n_atoms, n_groups
        Sizes.
    atoms_per_structure
        Least, median and most.
    hydrogen_fraction
        Share of hydrogen among all atoms, 0 to 1.
    hydrogen_per_carbon
        H atoms over C atoms of the set; None without carbon.
    without_hydrogen
        Groups of non-periodic structures that hold carbon and no hydrogen.
    charges, multiplicities
        Structures by total charge and by multiplicity.
    warnings
        Sentences about what looks wrong.
    """

    rows: tuple[ElementRow, ...]
    n_structures: int
    n_atoms: int
    n_groups: int
    atoms_per_structure: tuple[int, float, int]
    hydrogen_fraction: float
    hydrogen_per_carbon: float | None
    without_hydrogen: tuple[str, ...]
    charges: dict[int, int]
    multiplicities: dict[int, int]
    warnings: tuple[str, ...]

    def table(self) -> str:
        """Plain text for people: a line per element, then totals and warnings."""
        lines = [f"{'element':>7} {'atoms':>9} {'share':>7} {'structures':>10} {'mean':>6} {'most':>5}"]
        lines += [
            f"{r.symbol:>7} {r.count:9d} {100 * r.fraction:6.1f}% {r.structures:10d} {r.per_structure:6.1f} {r.most:5d}"
            for r in self.rows
        ]
        least, median, most = self.atoms_per_structure
        ratio = "no carbon" if self.hydrogen_per_carbon is None else f"H/C {self.hydrogen_per_carbon:.2f}"
        lines.append(
            f"{self.n_structures} structures of {self.n_groups} groups, {self.n_atoms} atoms, {least}–{most} each "
            f"(median {median:g}); hydrogen {100 * self.hydrogen_fraction:.1f} %, {ratio}"
        )
        lines.append("charges " + ", ".join(f"{q:+d}: {n}" for q, n in self.charges.items()))
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def composition_check(structures: Sequence[Structure], *, allow_no_hydrogen: bool = False) -> Composition:
    """Count the elements of a set and refuse a molecule set without any hydrogen.

    Heavy-atom-only sets come from crystal structures and generative models; a potential trained on them is worthless,
    and nothing later in the chain would notice. Fully periodic sets (materials) are not refused.

    Raises
    ------
    DataError
        If there are no structures, or molecules with 0 % hydrogen and `allow_no_hydrogen` is False.
    """
    if not structures:
        raise DataError("There are no structures to look at: everything was refused, or the input is empty.")
    counts = np.zeros((len(structures), 119), dtype=np.int64)
    for row, structure in enumerate(structures):
        counts[row] = np.bincount(structure.numbers, minlength=119)[:119]
    molecular = np.array([not structure.pbc.any() for structure in structures])
    if molecular.any() and counts[molecular, 1].sum() == 0 and not allow_no_hydrogen:
        raise DataError(
            f"None of the {int(molecular.sum())} molecules holds a hydrogen atom. If hydrogens are missing, give the "
            "molecules as SMILES or SDF (completed on reading) or protonate them first; if they truly have none, say "
            "so with --allow-no-hydrogen (allow_no_hydrogen=True)."
        )
    rows = _rows(counts)
    carbon = int(counts[:, 6].sum())
    bare = molecular & (counts[:, 6] > 0) & (counts[:, 1] == 0)
    without = tuple(dict.fromkeys(s.group for s, flag in zip(structures, bare, strict=True) if flag))
    sizes = counts.sum(axis=1)
    ratio = float(counts[:, 1].sum() / carbon) if carbon else None
    return Composition(
        rows=rows,
        n_structures=len(structures),
        n_atoms=int(counts.sum()),
        n_groups=len({structure.group for structure in structures}),
        atoms_per_structure=(int(sizes.min()), float(np.median(sizes)), int(sizes.max())),
        hydrogen_fraction=float(counts[:, 1].sum() / counts.sum()),
        hydrogen_per_carbon=ratio,
        without_hydrogen=without,
        charges=_tally([structure.charge for structure in structures]),
        multiplicities=_tally([structure.multiplicity for structure in structures]),
        warnings=tuple(_warnings(rows, counts[molecular], structures, without)),
    )


def _rows(counts: np.ndarray) -> tuple[ElementRow, ...]:
    from ase.data import chemical_symbols

    total = counts.sum()
    return tuple(
        ElementRow(
            symbol=chemical_symbols[z],
            number=int(z),
            count=int(counts[:, z].sum()),
            fraction=float(counts[:, z].sum() / total),
            structures=int((counts[:, z] > 0).sum()),
            per_structure=float(counts[counts[:, z] > 0, z].mean()),
            most=int(counts[:, z].max()),
        )
        for z in np.flatnonzero(counts.sum(axis=0))
    )


def _tally(values: list[int]) -> dict[int, int]:
    return {int(value): values.count(value) for value in sorted(set(values))}


def _warnings(
    rows: tuple[ElementRow, ...], molecules: np.ndarray, structures: Sequence[Structure], without: tuple[str, ...]
) -> list[str]:
    found = []
    for row in rows:
        if row.symbol in _MISREAD and molecules[:, row.number].sum():
            found.append(
                f"{row.count} {row.symbol} atoms in {row.structures} structures: often {_MISREAD[row.symbol]}, "
                "misread as an element; look at them"
            )
        elif row.symbol not in _COMMON_ORGANIC and row.fraction < 0.001 and molecules[:, row.number].sum():
            found.append(
                f"{row.symbol} is rare: {row.count} atoms in {row.structures} structures, too few to learn from"
            )
    if without:
        shown = ", ".join(without[:5]) + (", …" if len(without) > 5 else "")
        found.append(f"{len(without)} molecule(s) with carbon and no hydrogen: {shown}")
    found += _ratio_warnings(molecules)
    odd = sum(structure.multiplicity > 1 for structure in structures)
    if odd:
        found.append(f"{odd} of {len(structures)} structures have unpaired electrons")
    return found


def _ratio_warnings(molecules: np.ndarray) -> list[str]:
    """H against C, for molecules: too little where hydrogens are missing, too much beside solvent."""
    found = []
    hydrogen, carbon = molecules[:, 1], molecules[:, 6]
    halogens = molecules[:, [9, 17, 35, 53]].sum(axis=1)
    organic = carbon > 0
    # Half a hydrogen per carbon is already a large fused aromatic; far below stand partly completed molecules.
    bare = organic & (hydrogen > 0) & (hydrogen + halogens < 0.25 * carbon)
    if bare.any():
        found.append(
            f"{int(bare.sum())} structures have under one H for four C: hydrogens missing (only the polar ones there)?"
        )
    if organic.any():
        ratio = hydrogen[organic].sum() / carbon[organic].sum()
        if 0 < ratio + halogens[organic].sum() / carbon[organic].sum() < 0.4:
            found.append(f"H/C is {ratio:.2f} over the set; organic molecules lie near 1 to 2: hydrogens missing?")
        if ratio > 4.5:
            found.append(
                f"H/C is {ratio:.2f} over the set, more than methane's 4: solvent, or hydrogens counted twice?"
            )
    return found
