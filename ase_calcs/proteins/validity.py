"""What is wrong with backbones: broken chains, strained peptides, clashes, D residues.

Two levels of strictness. The loose one is the filter of BioEmu (github.com/microsoft/bioemu): nothing torn and nothing
on top of something else. The strict one asks for peptides as they are in all-atom models (means and deviations as in
aSAM, github.com/giacomo-janson/sam2), for atoms that do not overlap, for peptide bonds that are cis or trans, and for L
residues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .backbone import ATOMS, CA, CB, OMEGA, C, N, O, angle, torsions_of
from .residues import CODES

TORN_ALPHA = 4.5  # Å, between the Cα atoms of neighbours
TORN_PEPTIDE = 2.0  # Å, from C to N
TOUCHING = 1.0  # Å, between atoms of residues more than two apart
PEPTIDE_BOND = (1.348, 0.029)  # Å, mean and standard deviation, C-N
PEPTIDE_ANGLES = {"C-N-CA": (2.1615, 0.057), "CA-C-N": (2.0575, 0.051)}  # radians
DEVIATIONS = 4.0  # three is what one in four hundred values exceeds by chance, and a protein has hundreds
# Å; what two atoms of residues three or more apart may overlap. Crystals and NMR models reach 0.6, and 0.8 where N and
# O share a hydrogen.
RADII = {"C": 1.70, "N": 1.55, "O": 1.52}  # Bondi, J. Phys. Chem. 68, 441 (1964)
OVERLAP, OVERLAP_BONDED = 0.8, 1.0
CLASH = 0.4  # Å, from where on overlaps count in the clash score
CIS, TRANS = math.radians(40.0), math.radians(140.0)
LEFT = 1.0  # Å³, of N, C and Cβ about Cα: 2.6 in L residues, −2.6 in D residues
_FAR = 3  # residues
_PAIRS = 2**24  # of atoms at once


@dataclass(frozen=True)
class Defects:
    """How many of each kind every one of T conformations has.

    Attributes
    ----------
    torn
        (T,) neighbours whose Cα atoms or whose C and N are too far apart.
    touching
        (T,) pairs of atoms nearer than 1 Å.
    strained
        (T,) bonds and angles of peptides out of range.
    overlaps
        (T,) pairs of atoms that lie too deep in each other.
    twisted
        (T,) peptide bonds that are neither cis nor trans.
    inverted
        (T,) D residues.
    cis
        (T,) cis bonds to other residues than proline: rare, but no defect.
    clash_score
        (T,) overlaps of more than 0.4 Å but hydrogen bonds, for 1000 atoms.
    """

    torn: Tensor
    touching: Tensor
    strained: Tensor
    overlaps: Tensor
    twisted: Tensor
    inverted: Tensor
    cis: Tensor
    clash_score: Tensor

    @property
    def loose(self) -> Tensor:
        """(T,) bool, whether the filter of BioEmu lets a conformation pass."""
        return (self.torn + self.touching) == 0

    @property
    def strict(self) -> Tensor:
        """(T,) bool, whether nothing is wrong."""
        return (self.torn + self.touching + self.strained + self.overlaps + self.twisted + self.inverted) == 0

    def summary(self) -> dict[str, float]:
        """Share of conformations that pass, and the mean number of every defect."""
        shares = {"loose": self.loose.double().mean().item(), "strict": self.strict.double().mean().item()}
        return shares | {f.name: getattr(self, f.name).double().mean().item() for f in fields(self)}


def defects(types: Tensor, backbone: Tensor, starts: Tensor, built: Tensor | None = None) -> Defects:
    """Look for everything that may be wrong.

    Parameters
    ----------
    types
        (L,) int, places in `CODES`.
    backbone
        (T, L, 5, 3) Å.
    starts
        (L,) bool, first residues of chains and after gaps.
    built
        (L, 5) bool, atoms that were not in the source: of them nothing is said. Glycine has no Cβ whatever this says.
    """
    there = torch.ones(len(types), len(ATOMS), dtype=torch.bool) if built is None else ~built
    there = there.clone()
    there[types == CODES.index("G"), CB] = False
    joined = ~starts[1:]
    here, ahead = backbone[:, :-1][:, joined], backbone[:, 1:][:, joined]
    bond = (ahead[:, :, N] - here[:, :, C]).norm(dim=-1)
    alpha = (ahead[:, :, CA] - here[:, :, CA]).norm(dim=-1)
    bends = {
        "C-N-CA": angle(here[:, :, C], ahead[:, :, N], ahead[:, :, CA]),
        "CA-C-N": angle(here[:, :, CA], here[:, :, C], ahead[:, :, N]),
    }
    strained = _off(bond, PEPTIDE_BOND).sum(-1)
    for kind, value in bends.items():
        strained = strained + _off(value, PEPTIDE_ANGLES[kind]).sum(-1)
    omega = torsions_of(backbone, starts)[:, :-1, OMEGA][:, joined].abs()
    to_proline = (types[1:] == CODES.index("P"))[joined]
    n, c, cb = (backbone[..., k, :] - backbone[..., CA, :] for k in (N, C, CB))
    volume = (torch.linalg.cross(n, c) * cb).sum(-1)
    touching, overlaps, clashes = _close(backbone, there)
    return Defects(
        torn=((alpha > TORN_ALPHA) | (bond > TORN_PEPTIDE)).sum(-1),
        touching=touching,
        strained=strained,
        overlaps=overlaps,
        twisted=((omega > CIS) & (omega < TRANS)).sum(-1),
        inverted=((volume < LEFT) & there[:, CB]).sum(-1),
        cis=((omega <= CIS) & ~to_proline).sum(-1),
        clash_score=clashes * (1000.0 / int(there.sum())),
    )


def _off(values: Tensor, known: tuple[float, float]) -> Tensor:
    mean, deviation = known
    return (values - mean).abs() > DEVIATIONS * deviation


def _close(backbone: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) pairs of atoms that touch, that overlap, and that clash, among residues three or more apart."""
    residue, atom = torch.nonzero(there, as_tuple=True)
    radii = torch.tensor([RADII[name[0]] for name in ATOMS], dtype=backbone.dtype)[atom]
    far = (residue[None] - residue[:, None]) >= _FAR
    bonded = ((atom[:, None] == N) & (atom[None] == O)) | ((atom[:, None] == O) & (atom[None] == N))
    reach = radii[:, None] + radii[None]
    counts = []
    size = max(1, _PAIRS // max(1, len(atom)) ** 2)
    for first in range(0, len(backbone), size):
        x = backbone[first : first + size, residue, atom]
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        deep = reach - distance
        counts.append(
            torch.stack(
                [
                    (far & (distance < TOUCHING)).sum((1, 2)),
                    (far & (deep > torch.where(bonded, OVERLAP_BONDED, OVERLAP))).sum((1, 2)),
                    (far & ~bonded & (deep > CLASH)).sum((1, 2)),
                ]
            )
        )
    whole = torch.cat(counts, dim=1) if counts else torch.zeros((3, 0), dtype=torch.long)
    return whole[0], whole[1], whole[2]
