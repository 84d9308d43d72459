"""Protein backbones from torsion angles, and torsion angles from backbones.

Bond lengths and angles are those of Engh and Huber (Acta Cryst. A47, 392, 1991), by which structures are judged; what
is left of a backbone is three torsions for each residue, and the angle at its Cα atom, which varies. Backbones built
from these have the right bonds, closed peptides and L residues, whatever the torsions are.

The residues are placed by rigid frames: Cα at the origin, C on the x axis, N in the xy plane. Where the next frame lies
in the last one follows from ψ, ω and the next φ, and all of them from a prefix product, which takes log₂ L steps and
not L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .residues import CODES

ATOMS = ("N", "CA", "C", "O", "CB")  # of each residue, in this order; glycine's CB is where another residue's would be
N, CA, C, O, CB = range(len(ATOMS))  # noqa: E741
PHI, PSI, OMEGA = range(3)

# Å: mean and standard deviation of bonds; other residues than those named are like the first.
BONDS: dict[str, dict[str, tuple[float, float]]] = {
    "N-CA": {"": (1.458, 0.019), "G": (1.451, 0.016), "P": (1.466, 0.015)},
    "CA-C": {"": (1.525, 0.021), "G": (1.516, 0.018)},
    "C-O": {"": (1.231, 0.020)},
    "CA-CB": {"": (1.530, 0.020), "A": (1.521, 0.033), "ITV": (1.540, 0.027)},
    "C-N": {"": (1.329, 0.014), "P": (1.341, 0.016)},  # by the residue of N
}
# Degrees. The last three are by the residue of N.
ANGLES: dict[str, dict[str, tuple[float, float]]] = {
    "N-CA-C": {"": (111.2, 2.8), "G": (112.5, 2.9), "P": (111.8, 2.5)},
    "CA-C-O": {"": (120.8, 1.7), "G": (120.8, 2.1)},
    "N-CA-CB": {"": (110.5, 1.7), "A": (110.4, 1.5), "ITV": (111.5, 1.7), "P": (103.0, 1.1)},
    "C-CA-CB": {"": (110.1, 1.9), "A": (110.5, 1.5), "ITV": (109.1, 2.2)},
    "CA-C-N": {"": (116.2, 2.0), "G": (116.4, 2.1), "P": (116.9, 1.5)},
    "O-C-N": {"": (123.0, 1.6), "P": (122.0, 1.4)},
    "C-N-CA": {"": (121.7, 1.8), "G": (120.6, 1.7), "P": (122.6, 5.0)},
}


@dataclass(frozen=True)
class Frames:
    """Where residues lie: the axes of each frame in the columns of a rotation, and its Cα atom.

    Attributes
    ----------
    rotation
        (…, L, 3, 3).
    origin
        (…, L, 3) Å.
    """

    rotation: Tensor
    origin: Tensor


@cache
def _table(kind: str, column: int) -> tuple[float, ...]:
    rows = (BONDS | ANGLES)[kind]
    values = [next((v for k, v in rows.items() if code in k and k), rows[""])[column] for code in CODES]
    return tuple(values if kind in BONDS else map(math.radians, values))


def ideal(kind: str, types: Tensor, like: Tensor) -> Tensor:
    """Mean of a bond (Å) or an angle (radians) of residues, in the dtype and on the device of another tensor.

    Parameters
    ----------
    kind
        Of `BONDS` or `ANGLES`.
    types
        (…) int, places in `CODES`.
    """
    return like.new_tensor(_table(kind, 0))[types]


def spread(kind: str, types: Tensor, like: Tensor) -> Tensor:
    """Standard deviation of the same, over well-determined structures."""
    return like.new_tensor(_table(kind, 1))[types]


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(…) radians in (−π, π] of four points (…, 3), with the sign of IUPAC: clockwise is positive.

    Source: Blondel and Karplus, J. Comput. Chem. 17, 1132 (1996), for the arc tangent, exact at every angle.
    """
    first, second, third = b - a, c - b, d - c
    left, right = torch.linalg.cross(first, second), torch.linalg.cross(second, third)
    return torch.atan2((first * right).sum(-1) * second.norm(dim=-1), (left * right).sum(-1))


def angle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """(…) radians, at the middle one of three points (…, 3)."""
    back, ahead = a - b, c - b
    return torch.atan2(torch.linalg.cross(back, ahead).norm(dim=-1), (back * ahead).sum(-1))


def place(a: Tensor, b: Tensor, c: Tensor, length: Tensor, bend: Tensor, turn: Tensor) -> Tensor:
    """(…, 3) the point d at a distance from c, with an angle b-c-d and a dihedral a-b-c-d.

    Source: Parsons et al., J. Comput. Chem. 26, 1063 (2005).
    """
    ahead = _unit(c - b)
    normal = _unit(torch.linalg.cross(b - a, ahead))
    across = torch.linalg.cross(normal, ahead)
    along = -torch.cos(bend)[..., None] * ahead
    aside = torch.cos(turn)[..., None] * across + torch.sin(turn)[..., None] * normal
    return c + length[..., None] * (along + torch.sin(bend)[..., None] * aside)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def frames_of(backbone: Tensor) -> Frames:
    """The frames of residues (…, L, 5, 3), from N, Cα and C."""
    along = _unit(backbone[..., C, :] - backbone[..., CA, :])
    to_n = backbone[..., N, :] - backbone[..., CA, :]
    across = _unit(to_n - (to_n * along).sum(-1, keepdim=True) * along)
    rotation = torch.stack([along, across, torch.linalg.cross(along, across)], dim=-1)
    return Frames(rotation, backbone[..., CA, :])


def residues_in_frames(types: Tensor, bends: Tensor, psi: Tensor) -> Tensor:
    """(…, L, 5, 3) Å, the atoms of each residue in its own frame.

    Parameters
    ----------
    types
        (…, L) int.
    bends
        (…, L) radians, N-Cα-C.
    psi
        (…, L) radians, which says where O is.
    """
    zero, one = torch.zeros_like(bends), torch.ones_like(bends)
    to_n = torch.stack([bends.cos(), bends.sin(), zero], dim=-1)
    to_c = torch.stack([one, zero, zero], dim=-1)
    n, c = ideal("N-CA", types, bends)[..., None] * to_n, ideal("CA-C", types, bends)[..., None] * to_c
    o = place(n, torch.zeros_like(n), c, ideal("C-O", types, bends), ideal("CA-C-O", types, bends), psi + math.pi)
    # The direction with given angles to N and to C; of the two the one of an L residue.
    near_n, near_c = ideal("N-CA-CB", types, bends).cos(), ideal("C-CA-CB", types, bends).cos()
    across = (near_n - near_c * bends.cos()) / bends.sin()
    up = (1 - near_c**2 - across**2).clamp(min=0).sqrt()
    cb = ideal("CA-CB", types, bends)[..., None] * torch.stack([near_c, across, -up], dim=-1)
    return torch.stack([n, torch.zeros_like(n), c, o, cb], dim=-2)


def _next_in_frames(types: Tensor, torsions: Tensor, bends: Tensor, inside: Tensor) -> Frames:
    """(…, L − 1) the frame of the next residue in that of each."""
    follows = types[..., 1:]
    here = inside[..., :-1, :, :]
    like = bends
    n = place(
        here[..., N, :], here[..., CA, :], here[..., C, :],
        ideal("C-N", follows, like), ideal("CA-C-N", follows, like), torsions[..., :-1, PSI],
    )  # fmt: skip
    ca = place(
        here[..., CA, :], here[..., C, :], n,
        ideal("N-CA", follows, like), ideal("C-N-CA", follows, like), torsions[..., :-1, OMEGA],
    )  # fmt: skip
    c = place(here[..., C, :], n, ca, ideal("CA-C", follows, like), bends[..., 1:], torsions[..., 1:, PHI])
    return frames_of(torch.stack([n, ca, c], dim=-2))


def build_backbone(
    types: Tensor,
    torsions: Tensor,
    *,
    bends: Tensor | None = None,
    starts: Tensor | None = None,
    begin: Frames | None = None,
) -> Tensor:
    """Atoms from torsions.

    Parameters
    ----------
    types
        (…, L) int, places in `CODES`.
    torsions
        (…, L, 3) radians: φ, ψ and ω of each residue, where ω is that of the bond to the next residue. The φ of the
        first residue of a chain and the ω of the last are not used; the ψ of the last says where its O is.
    bends
        (…, L) radians, N-Cα-C. Default: ideal.
    starts
        (…, L) bool, the first residues of chains, and those after a gap. Default: the first.
    begin
        Frames of residues, of which those of `starts` are used. Default: all at the origin.

    Returns
    -------
    Tensor
        (…, L, 5, 3) Å, see `ATOMS`.
    """
    if bends is None:
        bends = ideal("N-CA-C", types, torsions).expand(torsions.shape[:-1])
    types = types.expand(torsions.shape[:-1])
    inside = residues_in_frames(types, bends, torsions[..., PSI])
    relative = _next_in_frames(types, torsions, bends, inside)
    if begin is None:
        eye = torch.eye(3, dtype=torsions.dtype, device=torsions.device)
        begin = Frames(eye.expand(*bends.shape, 3, 3), torsions.new_zeros(*bends.shape, 3))
    if starts is None:
        starts = torch.zeros_like(bends, dtype=torch.bool)
        starts[..., 0] = True
    else:
        starts = starts.expand(bends.shape)
    rotation = torch.cat([begin.rotation[..., :1, :, :], relative.rotation], dim=-3)
    origin = torch.cat([begin.origin[..., :1, :], relative.origin], dim=-2)
    rotation = torch.where(starts[..., None, None], begin.rotation, rotation)
    origin = torch.where(starts[..., None], begin.origin, origin)
    frames = _chained(Frames(rotation, origin), starts)
    return inside @ frames.rotation.transpose(-1, -2) + frames.origin[..., None, :]


def _chained(frames: Frames, starts: Tensor) -> Frames:
    """Each frame in all before it, back to the last start (Hillis and Steele's prefix product, with segments)."""
    rotation, origin, fixed = frames.rotation, frames.origin, starts
    count, step = origin.shape[-2], 1
    while step < count:
        before_r, before_o = rotation[..., :-step, :, :], origin[..., :-step, :]
        free = ~fixed[..., step:]
        moved = (before_r @ origin[..., step:, :, None])[..., 0] + before_o
        turned = before_r @ rotation[..., step:, :, :]
        origin = torch.cat([origin[..., :step, :], torch.where(free[..., None], moved, origin[..., step:, :])], dim=-2)
        rotation = torch.cat(
            [
                rotation[..., :step, :, :],
                torch.where(free[..., None, None], turned, rotation[..., step:, :, :]),
            ],
            dim=-3,
        )
        fixed = torch.cat([fixed[..., :step], fixed[..., step:] | fixed[..., :-step]], dim=-1)
        step *= 2
    return Frames(rotation, origin)


def torsions_defined(starts: Tensor) -> Tensor:
    """(…, L, 3) bool: which of φ, ψ and ω four atoms define, of chains that begin at `starts` (…, L)."""
    followed = torch.cat([~starts[..., 1:], torch.zeros_like(starts[..., :1])], dim=-1)
    return torch.stack([~starts, followed, followed], dim=-1)


def torsions_of(backbone: Tensor, starts: Tensor) -> Tensor:
    """(…, L, 3) radians: φ, ψ and ω of residues (…, L, 5, 3), zero where `torsions_defined` says no.

    ω of a residue is that of its bond to the next one.
    """
    n, ca, c = (backbone[..., k, :] for k in (N, CA, C))
    phi = dihedral(c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :], c[..., 1:, :])
    psi = dihedral(n[..., :-1, :], ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :])
    omega = dihedral(ca[..., :-1, :], c[..., :-1, :], n[..., 1:, :], ca[..., 1:, :])
    none = torch.zeros_like(phi[..., :1])
    found = torch.stack([torch.cat([none, phi], -1), torch.cat([psi, none], -1), torch.cat([omega, none], -1)], dim=-1)
    return torch.where(torsions_defined(starts.expand(found.shape[:-1])), found, torch.zeros_like(found))
