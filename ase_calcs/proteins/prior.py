"""What is known of a chain of beads before anything is learned: bonds, angles, dihedrals, and no overlaps.

Energies are raw sums; nothing weighs one term against another. With c = cos θ, and sums over the beads of a chain::

    bonds       ½ k (r − r₀)²                                  by the two residues
    angles      Σ_n a_n cos nθ = Σ_n a_n T_n(c)                by the residue in the middle
    dihedrals   Σ_n b_n cos nφ + d_n sin nφ                    by the two in the middle; signed, so handed
    (each of both may have a spline beside its series)
    excluded    ε (σ/r)⁶, two to five residues apart           σ the mean of the two residues' own
    repulsion   ε (σ/r)⁴, or 4ε[(σ/r)¹² − (σ/r)⁶], all others  switched off smoothly before the cutoff

Forces are written out: they can be differentiated with respect to the parameters, which is what fitting needs, and cost
a third of what automatic differentiation would. All pairs are one array, and angles and dihedrals are functions of bond
vectors, so that few operations do everything. An angle enters through its cosine alone, so nothing is singular where
three beads lie on a line; a dihedral is undefined there, and its force grows as the sine of the angle shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..units import KCAL_PER_MOL
from .chains import Chains
from .residues import CODES

Repulsion = Literal["power4", "lj12-6"]
TERMS = ("bonds", "angles", "dihedrals", "excluded", "repulsion")

BOND_LENGTH = 3.84  # Å
BOND_STIFFNESS = 154.5 * KCAL_PER_MOL  # eV/Å², in ½ k (r − r₀)²
EPSILON = 5.0 * KCAL_PER_MOL
SIGMA = 4.0  # Å
LEAST_SIGMA = 2.5  # Å; smaller ones let chains pass through each other
LEAST_STIFFNESS = 10.0 * KCAL_PER_MOL
_LJ_EPSILON = 0.2 * KCAL_PER_MOL
_N_ANGLE, _N_DIHEDRAL = 6, 4
_G, _P = CODES.index("G"), CODES.index("P")


@dataclass(frozen=True)
class PriorTopology:
    """Index arrays of the terms of one set of chains, on a device.

    Attributes
    ----------
    pairs
        (2, P) int64: beads of all pairs, the bonds first, then excluded ones, then distant ones.
    n_bonds, n_excluded
        How many.
    angles, dihedrals
        (2, A) and (3, D) int64: the bonds that an angle, a dihedral consists of.
    middle
        (A,) int64, the bead in the middle of each angle.
    axis
        (2, D) int64, the two beads in the middle of each dihedral.
    types
        (N,) int64.
    """

    pairs: Tensor
    n_bonds: int
    n_excluded: int
    angles: Tensor
    dihedrals: Tensor
    middle: Tensor
    axis: Tensor
    types: Tensor

    @classmethod
    def of(cls, chains: Chains, device: torch.device | str = "cpu") -> PriorTopology:
        """Of chains of beads."""
        place = {(int(i), int(j)): k for k, (i, j) in enumerate(chains.bonds)}

        def runs(beads: np.ndarray) -> np.ndarray:
            steps = beads.shape[1] - 1
            found = [[place[int(run[k]), int(run[k + 1])] for run in beads] for k in range(steps)]
            return np.array(found, dtype=int).reshape(steps, len(beads))

        pairs = np.concatenate([chains.bonds, chains.excluded, chains.distant]).T
        arrays = (pairs, runs(chains.angles), runs(chains.dihedrals), chains.angles[:, 1], chains.dihedrals[:, 1:3].T)
        pairs_, angles, dihedrals, middle, axis = (
            torch.as_tensor(np.ascontiguousarray(array), dtype=torch.int64, device=device) for array in arrays
        )
        types = torch.as_tensor(chains.types, dtype=torch.int64, device=device)
        return cls(pairs_, len(chains.bonds), len(chains.excluded), angles, dihedrals, middle, axis, types)

    @property
    def bonds(self) -> Tensor:
        """(2, B) beads of the bonds."""
        return self.pairs[:, : self.n_bonds]


@dataclass(frozen=True)
class BoundPrior:
    """Parameters of every single term of one set of chains: what does not change while beads move.

    Attributes
    ----------
    topology
        Of the chains.
    stiffness, length
        (B,) of each bond.
    excluded, distant
        Of each pair: ε σ⁶; and ε σ⁴, or 4 ε σ¹² and 4 ε σ⁶, (1 or 2, pairs).
    constant
        () the sum of what the angles' energies have at a cosine of 0.
    angle, angle_slope
        (A, n) of powers of the cosine from the first on, and of their derivative from the zeroth on.
    dihedral, dihedral_slope
        (D, 2n) of cosines, then sines, of multiples; and of the derivative.
    angle_spline, dihedral_spline
        (A or D, intervals, 4), or None.
    """

    topology: PriorTopology
    stiffness: Tensor
    length: Tensor
    excluded: Tensor
    distant: Tensor
    constant: Tensor
    angle: Tensor
    angle_slope: Tensor
    dihedral: Tensor
    dihedral_slope: Tensor
    angle_spline: Tensor | None = None
    dihedral_spline: Tensor | None = None


@dataclass(frozen=True)
class PriorOutput:
    """Of R configurations of N beads.

    Attributes
    ----------
    energies
        Name of a term → (R,) eV.
    forces
        (R, N, 3) eV/Å, of all terms together.
    """

    energies: dict[str, Tensor]
    forces: Tensor

    @property
    def energy(self) -> Tensor:
        """(R,) eV."""
        return torch.stack(list(self.energies.values())).sum(0)


class Prior(nn.Module):
    """The prior energy and its forces.

    Parameters
    ----------
    repulsion
        ``power4`` or ``lj12-6``, between beads six or more apart.
    cutoff
        Å, of that repulsion; it is switched off over the last 3 Å.
    n_angle, n_dihedral
        Highest multiples of the angle and the dihedral.
    splines
        Intervals of splines for angles (over the cosine) and dihedrals, which the series are added to; 0: none.
    classes
        Which residues have parameters of their own: ``{"bonds": ["GY", …], "angles": ["G", …], "dihedrals": [...]}``;
        what is not named shares parameters. See `PriorClasses`.
    dtype
        Of parameters and energies.

    Attributes
    ----------
    log_stiffness, length
        (C,) bonds: log of k in eV/Å², and r₀ in Å.
    angle
        (C, n_angle) a_n, eV.
    dihedral
        (C, 2 n_dihedral) b_n, then d_n, eV.
    excess
        (20,) Å, σ of each residue above `LEAST_SIGMA`, through softplus.
    log_epsilon
        (2,) log of ε of excluded volume and of repulsion, eV; −∞ leaves a term out.
    angle_spline, dihedral_spline
        (C, splines, 4) eV: coefficients of t³, t², t and 1 in each interval, t from 0 to 1; present with splines only.
    """

    angle_spline: Tensor
    dihedral_spline: Tensor

    def __init__(
        self,
        *,
        repulsion: Repulsion = "power4",
        cutoff: float = 15.0,
        n_angle: int = _N_ANGLE,
        n_dihedral: int = _N_DIHEDRAL,
        splines: int = 0,
        classes: dict[str, list[str]] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if repulsion not in get_args(Repulsion):
            raise InputError(f"`repulsion` is {repulsion!r}; allowed are {', '.join(map(repr, get_args(Repulsion)))}.")
        self.repulsion: Repulsion = repulsion
        self.cutoff = float(cutoff)
        self.n_angle, self.n_dihedral = int(n_angle), int(n_dihedral)
        self.classes = {term: list((classes or {}).get(term, [])) for term in ("bonds", "angles", "dihedrals")}
        tables = (bond_table, angle_table, dihedral_table)
        for term, table in zip(self.classes, tables, strict=True):
            self.register_buffer(f"{term}_class", table(self.classes[term]), persistent=False)
        n_bonds, n_angles, n_dihedrals = (len(names) + 1 for names in self.classes.values())
        self.splines = int(splines)
        if self.splines:
            self.register_buffer("angle_spline", torch.zeros(n_angles, self.splines, 4, dtype=dtype))
            self.register_buffer("dihedral_spline", torch.zeros(n_dihedrals, self.splines, 4, dtype=dtype))
        self.log_stiffness = nn.Parameter(torch.full((n_bonds,), float(np.log(BOND_STIFFNESS)), dtype=dtype))
        self.length = nn.Parameter(torch.full((n_bonds,), BOND_LENGTH, dtype=dtype))
        self.angle = nn.Parameter(torch.zeros(n_angles, self.n_angle, dtype=dtype))
        self.dihedral = nn.Parameter(torch.zeros(n_dihedrals, 2 * self.n_dihedral, dtype=dtype))
        excess = float(np.log(np.expm1(SIGMA - LEAST_SIGMA)))
        self.excess = nn.Parameter(torch.full((len(CODES),), excess, dtype=dtype))
        far = EPSILON if repulsion == "power4" else _LJ_EPSILON
        self.log_epsilon = nn.Parameter(torch.tensor([EPSILON, far], dtype=dtype).log())

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments (JSON types) that build this prior again."""
        return {
            "repulsion": self.repulsion, "cutoff": self.cutoff, "n_angle": self.n_angle,
            "n_dihedral": self.n_dihedral, "splines": self.splines, "classes": self.classes,
        }  # fmt: skip

    @property
    def stiffness(self) -> Tensor:
        """(C,) k of bonds, eV/Å²."""
        return self.log_stiffness.exp()

    @property
    def sigma(self) -> Tensor:
        """(20,) Å."""
        return LEAST_SIGMA + nn.functional.softplus(self.excess)

    @property
    def epsilon(self) -> Tensor:
        """(2,) eV, of excluded volume and of repulsion."""
        return self.log_epsilon.exp()

    def bond_kinds(self, first: Tensor, second: Tensor) -> Tensor:
        """Which parameters a bond between residues of these types has."""
        return self.bonds_class[first, second]  # type: ignore[index]

    def dihedral_kinds(self, first: Tensor, second: Tensor) -> Tensor:
        """Which parameters a dihedral with residues of these types in the middle has."""
        return self.dihedrals_class[first, second]  # type: ignore[index]

    def bind(self, topology: PriorTopology) -> BoundPrior:
        """Look up the parameters of every term; differentiable with respect to them."""
        i, j = topology.bonds
        kind = self.bond_kinds(topology.types[i], topology.types[j])
        sigma = self.sigma[topology.types]
        i, j = topology.pairs[:, topology.n_bonds :]
        near, far = (0.5 * (sigma[i] + sigma[j])).split([topology.n_excluded, len(i) - topology.n_excluded])
        epsilon = self.epsilon
        distant = [epsilon[1] * far**4] if self.repulsion == "power4" else [
            4 * epsilon[1] * far**12, 4 * epsilon[1] * far**6
        ]  # fmt: skip
        powers = chebyshev_powers(self.n_angle, self.angle)
        bent = self.angles_class[topology.types[topology.middle]]  # type: ignore[index]
        angle = (self.angle @ powers)[bent]
        constant, angle = angle[:, 0].sum(), angle[:, 1:]
        first, second = topology.types[topology.axis]
        turned = self.dihedral_kinds(first, second)
        dihedral = self.dihedral[turned]
        n = torch.arange(1, self.n_dihedral + 1, dtype=angle.dtype, device=angle.device)
        b, d = dihedral.chunk(2, dim=-1)
        return BoundPrior(
            topology, self.stiffness[kind], self.length[kind], epsilon[0] * near**6, torch.stack(distant),
            constant, angle, angle * torch.arange(1, self.n_angle + 1, dtype=angle.dtype, device=angle.device),
            dihedral, torch.cat([n * d, -n * b], dim=-1),
            self.angle_spline[bent] if self.splines else None,
            self.dihedral_spline[turned] if self.splines else None,
        )  # fmt: skip

    def forward(
        self, positions: Tensor, topology: PriorTopology | BoundPrior, terms: Sequence[str] = TERMS
    ) -> PriorOutput:
        """Energies and forces.

        Parameters
        ----------
        positions
            (R, N, 3) Å, R configurations of the same chains.
        topology
            Of these chains; or what `bind` made of it, which saves looking parameters up.
        terms
            Which of `TERMS`.
        """
        bound = topology if isinstance(topology, BoundPrior) else self.bind(topology)
        known = bound.topology
        i, j = known.pairs
        vector = positions.index_select(1, j) - positions.index_select(1, i)  # (R, P, 3)
        square = (vector * vector).sum(-1)
        inverse = square.rsqrt()  # 1/r
        n_far = len(i) - known.n_bonds - known.n_excluded
        sizes = (known.n_bonds, known.n_excluded, n_far)
        along, near, far = inverse.split(sizes, dim=1)
        energies: dict[str, Tensor] = {}
        slopes = [torch.zeros_like(part) for part in (along, near, far)]  # (dE/dr)/r
        if "bonds" in terms:
            stretch = 1 / along - bound.length
            pull = bound.stiffness * stretch
            energies["bonds"], slopes[0] = 0.5 * (pull * stretch).sum(-1), pull * along
        bends: list[Tensor] = []  # gradients with respect to bond vectors, (R, M, 3), and which bonds
        which: list[Tensor] = []
        bonds = vector[:, : known.n_bonds]
        if "angles" in terms:
            energies["angles"], gradients = _angles(bonds * along[..., None], along, bound)
            bends += gradients
            which += known.angles.unbind(0)
        if "dihedrals" in terms:
            energies["dihedrals"], gradients = _dihedrals(bonds, bound)
            bends += gradients
            which += known.dihedrals.unbind(0)
        if "excluded" in terms:
            inverse2 = near * near
            energy = bound.excluded * (inverse2 * inverse2 * inverse2)
            energies["excluded"], slopes[1] = energy.sum(-1), -6 * energy * inverse2
        if "repulsion" in terms:
            energies["repulsion"], slopes[2] = self._repulsion(far, bound)
        gradient = torch.cat(slopes, dim=1)[..., None] * vector  # with respect to r_j − r_i
        if bends:
            gradient = gradient.index_add(1, torch.cat(which), torch.cat(bends, dim=1))
        forces = torch.zeros_like(positions).index_add(1, i, gradient).index_add(1, j, -gradient)
        return PriorOutput({name: energies[name] for name in TERMS if name in energies}, forces)

    def _repulsion(self, inverse: Tensor, bound: BoundPrior) -> tuple[Tensor, Tensor]:
        """(R,) energy, and (R, P) (dE/dr)/r."""
        square = inverse * inverse
        if self.repulsion == "power4":
            energy = bound.distant[0] * (square * square)
            slope = -4 * energy * square
        else:
            sixth = square * square * square
            twelve, six = bound.distant[0] * (sixth * sixth), bound.distant[1] * sixth
            energy, slope = twelve - six, (6 * six - 12 * twelve) * square
        on, off = _switch(1 / inverse, self.cutoff - 3.0, self.cutoff)
        return (energy * on).sum(-1), slope * on + energy * off * inverse


def _angles(unit: Tensor, inverse: Tensor, bound: BoundPrior) -> tuple[Tensor, list[Tensor]]:
    """(R,) energy, and gradients (R, A, 3) with respect to the first and the second bond of each angle, from unit
    vectors (R, B, 3) along bonds and 1/r (R, B)."""
    first, second = bound.topology.angles
    a, b = unit.index_select(1, first), unit.index_select(1, second)
    cosine = -(a * b).sum(-1, keepdim=True)  # of the angle between −a and b
    powers = cosine.expand(-1, -1, bound.angle.shape[1]).cumprod(-1)  # c, c², …
    energy = bound.constant + (powers * bound.angle).sum((1, 2))
    slope = bound.angle_slope[:, :1] + (powers[..., :-1] * bound.angle_slope[:, 1:]).sum(-1, keepdim=True)
    if bound.angle_spline is not None:
        # Rounding takes a cosine a little beyond ±1, where the outermost intervals go on.
        extra, steep = _spline(bound.angle_spline, 0.5 * (cosine[..., 0] + 1))
        energy, slope = energy + extra.sum(-1), slope + 0.5 * steep[..., None]
    slope_a, slope_b = (slope * inverse.index_select(1, k)[..., None] for k in (first, second))
    return energy, [-slope_a * (b + cosine * a), -slope_b * (a + cosine * b)]


def _dihedrals(bonds: Tensor, bound: BoundPrior) -> tuple[Tensor, list[Tensor]]:
    """(R,) energy, and gradients (R, D, 3) with respect to the three bonds of each dihedral."""
    first, second, third = (bonds.index_select(1, k) for k in bound.topology.dihedrals)
    left, right = torch.linalg.cross(first, second), torch.linalg.cross(second, third)
    square = (second * second).sum(-1, keepdim=True)
    length = square.sqrt()
    sine, cosine = length * (first * right).sum(-1, keepdim=True), (left * right).sum(-1, keepdim=True)
    n = bound.dihedral.shape[1] // 2
    phi = torch.atan2(sine, cosine)
    multiple = phi * torch.arange(1, n + 1, dtype=bonds.dtype, device=bonds.device)
    waves = torch.cat([multiple.cos(), multiple.sin()], dim=-1)  # (R, D, 2n)
    energy = (waves * bound.dihedral).sum((1, 2))
    slope = (waves * bound.dihedral_slope).sum(-1, keepdim=True)
    if bound.dihedral_spline is not None:
        extra, steep = _spline(bound.dihedral_spline, phi[..., 0] / (2 * torch.pi) + 0.5)
        energy, slope = energy + extra.sum(-1), slope + steep[..., None] / (2 * torch.pi)
    slope = slope * length
    start = slope / (left * left).sum(-1, keepdim=True) * left
    end = slope / (right * right).sum(-1, keepdim=True) * right
    back = (first * second).sum(-1, keepdim=True) / square
    ahead = (third * second).sum(-1, keepdim=True) / square
    return energy, [start, -back * start - ahead * end, end]


def _spline(table: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """(R, M) energies and derivatives with respect to `place` (R, M), from 0 to 1 over all intervals of (M, G, 4)."""
    n = table.shape[1]
    scaled = place * n
    interval = scaled.detach().floor().clamp(0, n - 1)
    t = scaled - interval
    rows = torch.arange(table.shape[0], device=table.device).expand_as(t)
    a, b, c, d = table[rows, interval.long()].unbind(-1)
    return ((a * t + b) * t + c) * t + d, n * ((3 * a * t + 2 * b) * t + c)


def chebyshev_powers(n: int, like: Tensor) -> Tensor:
    """(n, n + 1): row k holds the coefficients of T_k₊₁(c) = cos((k + 1) θ) in powers of c = cos θ."""
    rows = [np.polynomial.chebyshev.cheb2poly([0] * (k + 1) + [1]) for k in range(n)]
    padded = np.stack([np.pad(row, (0, n + 1 - len(row))) for row in rows])
    return torch.as_tensor(padded, dtype=like.dtype, device=like.device)


def bond_table(names: list[str]) -> Tensor:
    """(20, 20) class of a pair of residues, in the order of the sequence; 0 is shared."""
    table = torch.zeros(len(CODES), len(CODES), dtype=torch.int64)
    for k, name in enumerate(names):
        table[CODES.index(name[0]), CODES.index(name[1])] = k + 1
    return table


def angle_table(names: list[str]) -> Tensor:
    """(20,) class of a residue between two others; 0 is shared."""
    table = torch.zeros(len(CODES), dtype=torch.int64)
    for k, name in enumerate(names):
        table[CODES.index(name)] = k + 1
    return table


def dihedral_table(names: list[str]) -> Tensor:
    """(20, 20) class of the two residues in the middle, where X stands for all but glycine and proline."""
    table = torch.zeros(len(CODES), len(CODES), dtype=torch.int64)
    groups = {"G": [_G], "P": [_P], "X": [k for k in range(len(CODES)) if k not in (_G, _P)]}
    for k, name in enumerate(names):
        table[torch.tensor(groups[name[0]])[:, None], torch.tensor(groups[name[1]])] = k + 1
    return table


def _switch(r: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """1 up to `start`, 0 from `stop` on, with two continuous derivatives between; and its slope."""
    u = ((r - start) / (stop - start)).clamp(0, 1)
    return 1 - u**3 * (10 - 15 * u + 6 * u**2), -30 * u**2 * (1 - u) ** 2 / (stop - start)
