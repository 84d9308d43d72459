"""Every defect of a backbone is found, and none where there is none."""

from __future__ import annotations

import math

import pytest
import torch

from distillase.ase_calcs.proteins.backbone import CA, CB, OMEGA, PHI, PSI, C, N, O, build_backbone
from distillase.ase_calcs.proteins.residues import CODES
from distillase.ase_calcs.proteins.validity import Defects, defects

SEQUENCE = "AVGPLKSYTA"
TYPES = torch.tensor([CODES.index(letter) for letter in SEQUENCE])
STARTS = torch.arange(len(SEQUENCE)) == 0


def torsions(phi: float, psi: float) -> torch.Tensor:
    found = torch.zeros(len(SEQUENCE), 3, dtype=torch.float64)
    found[:, PHI], found[:, PSI], found[:, OMEGA] = math.radians(phi), math.radians(psi), math.pi
    return found


HELIX, STRAND = torsions(-62.0, -41.0), torsions(-120.0, 135.0)


def look(backbone: torch.Tensor, built: torch.Tensor | None = None) -> Defects:
    return defects(TYPES, backbone[None] if backbone.ndim == 3 else backbone, STARTS, built)


def test_helices_and_strands_have_no_defects():
    found = look(build_backbone(TYPES, torch.stack([HELIX, STRAND])))
    assert found.strict.all()
    assert found.loose.all()
    assert set(found.summary().items()) >= {("strict", 1.0), ("twisted", 0.0), ("clash_score", 0.0)}


def only(found: Defects) -> set[str]:
    names = ("torn", "touching", "strained", "overlaps", "twisted", "inverted", "cis")
    return {name for name in names if getattr(found, name).item()}


def test_a_torn_chain_is_no_longer_one():
    x = build_backbone(TYPES, STRAND)
    x[5:] += 3 * (x[9, CA] - x[0, CA]) / (x[9, CA] - x[0, CA]).norm()
    found = look(x)
    assert only(found) == {"torn", "strained"}
    assert found.torn.item() == 1
    assert not found.loose.item()
    # The same where the chain is known to have a gap is none.
    gap = STARTS.clone()
    gap[5] = True
    assert defects(TYPES, x[None], gap).strict.item()


def test_mirrored_proteins_consist_of_right_handed_residues():
    found = look(build_backbone(TYPES, HELIX) * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert only(found) == {"inverted"}
    assert found.inverted.item() == len(SEQUENCE) - 1  # all but glycine
    # Where no Cβ was measured nothing is said of handedness.
    built = torch.zeros(len(SEQUENCE), 5, dtype=torch.bool)
    built[:, CB] = True
    mirror = build_backbone(TYPES, HELIX) * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert look(mirror, built).strict.item()


@pytest.mark.parametrize(("degrees", "residue", "expected"), [(90, 5, "twisted"), (0, 5, "cis"), (0, 2, None)])
def test_peptide_bonds_are_trans_or_cis(degrees: float, residue: int, expected: str | None):
    turned = STRAND.clone()
    turned[residue, OMEGA] = math.radians(degrees)  # the bond from residue 2 goes to proline
    found = look(build_backbone(TYPES, turned))
    assert only(found) - {"overlaps"} == ({expected} if expected else set())
    assert found.cis.item() == (expected == "cis")


def test_atoms_overlap_then_touch_and_nitrogen_and_oxygen_may_share_a_hydrogen():
    x = build_backbone(TYPES, STRAND)

    def with_distance(atom: int, other: int, distance: float) -> Defects:
        y = x.clone()
        y[9] += 50.0  # out of everything's way
        y[9, atom] = y[2, other] + torch.tensor([distance, 0.0, 0.0], dtype=torch.float64)
        keep = torch.zeros(len(SEQUENCE), 5, dtype=torch.bool)
        keep[9, atom] = keep[2, other] = True
        return look(y, ~keep)

    assert with_distance(N, O, 2.4).overlaps.item() == 0
    assert with_distance(N, O, 2.4).clash_score.item() == 0
    assert with_distance(C, C, 2.5).overlaps.item() == 1
    assert with_distance(C, C, 2.5).touching.item() == 0
    assert with_distance(C, C, 0.9).touching.item() == 1
    assert with_distance(C, C, 2.9).overlaps.item() == 0
    assert with_distance(C, C, 2.9).clash_score.item() == 500.0  # of two atoms


def test_strained_peptides_are_counted():
    x = build_backbone(TYPES, STRAND)
    x[5:] += 0.2 * (x[5, N] - x[4, C]) / (x[5, N] - x[4, C]).norm()
    found = look(x)
    assert only(found) == {"strained"}
    assert found.strained.item() == 1
    assert found.loose.item()


def test_defects_do_not_depend_on_the_batch():
    both = torch.stack([build_backbone(TYPES, HELIX), build_backbone(TYPES, STRAND)])
    both[1, 3] += 2.0
    whole = look(both)
    for k in range(2):
        one = look(both[k])
        for name in Defects.__dataclass_fields__:
            assert getattr(one, name)[0] == getattr(whole, name)[k], name
