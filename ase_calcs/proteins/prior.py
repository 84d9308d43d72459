"""What is known of a chain of beads before anything is learned: bonds, angles, dihedrals, and no overlaps.

Energies are raw sums; nothing weighs one term against another. With c = cos θ, and sums over the beads of a chain::

    bonds       ½ k (r − r₀)²                                  by the two residues
    angles      Σ_n a_n cos nθ = Σ_n a_n T_n(c)                by the residue in the middle
    dihedrals   Σ_n b_n cos nφ + d_n sin nφ                    by the two in the middle; signed, so handed
    excluded    ε (σ/r)⁶, two to five residues apart           σ the mean of the two residues' own
    repulsion   ε (σ/r)⁴, or 4ε[(σ/r)¹² − (σ/r)⁶], all others  switched off smoothly before the cutoff

Forces are written out: they can be differentiated with respect to the parameters, which is what fitting needs, and cost
a third of what automatic differentiation would. An angle enters through its cosine alone, so nothing is singular where
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
    bonds, angles, dihedrals, excluded, distant
        (M, 2), (M, 3), (M, 4), (M, 2), (M, 2) int64.
    types
        (N,) int64.
    """

    bonds: Tensor
    angles: Tensor
    dihedrals: Tensor
    excluded: Tensor
    distant: Tensor
    types: Tensor

    @classmethod
    def of(cls, chains: Chains, device: torch.device | str = "cpu") -> PriorTopology:
        """Of chains of beads."""
        names = ("bonds", "angles", "dihedrals", "excluded", "distant", "types")
        return cls(*(torch.as_tensor(getattr(chains, name), dtype=torch.int64, device=device) for name in names))


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
        (2,) log of ε of excluded volume and of repulsion, eV.
    """

    def __init__(
        self,
        *,
        repulsion: Repulsion = "power4",
        cutoff: float = 15.0,
        n_angle: int = _N_ANGLE,
        n_dihedral: int = _N_DIHEDRAL,
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
            "n_dihedral": self.n_dihedral, "classes": self.classes,
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

    def forward(self, positions: Tensor, topology: PriorTopology, terms: Sequence[str] = TERMS) -> PriorOutput:
        """Energies and forces.

        Parameters
        ----------
        positions
            (R, N, 3) Å, R configurations of the same chains.
        topology
            Of these chains.
        terms
            Which of `TERMS`.
        """
        energies: dict[str, Tensor] = {}
        forces = torch.zeros_like(positions)
        for name in terms:
            term, beads, gradient = getattr(self, f"_{name}")(positions, topology)
            energies[name] = term.sum(-1)
            # One scatter for each term: the gradient (R, M, k, 3) of M terms of k beads.
            flat = gradient.reshape(len(positions), -1, 3)
            forces = forces.index_add(1, beads.reshape(-1), -flat)
        return PriorOutput(energies, forces)

    # Each returns energies (R, M), beads (M, k) and gradients (R, M, k, 3).

    def _bonds(self, x: Tensor, topology: PriorTopology) -> tuple[Tensor, Tensor, Tensor]:
        i, j = topology.bonds.unbind(1)
        kind = self.bond_kinds(topology.types[i], topology.types[j])
        vector, r = _distance(x, i, j)
        stretch, k = r - self.length[kind], self.stiffness[kind]
        return 0.5 * k * stretch**2, topology.bonds, _pair_gradient(k * stretch / r, vector)

    def _angles(self, x: Tensor, topology: PriorTopology) -> tuple[Tensor, Tensor, Tensor]:
        i, j, k = topology.angles.unbind(1)
        kind = self.angles_class[topology.types[j]]  # type: ignore[index]
        a, b = x[:, i] - x[:, j], x[:, k] - x[:, j]  # (R, M, 3)
        inverse_a, inverse_b = a.norm(dim=-1, keepdim=True).reciprocal(), b.norm(dim=-1, keepdim=True).reciprocal()
        a, b = a * inverse_a, b * inverse_b
        cosine = (a * b).sum(-1, keepdim=True).clamp(-1, 1)
        energy, slope = _chebyshev(cosine[..., 0], self.angle[kind])
        slope = slope[..., None]
        left, right = slope * (b - cosine * a) * inverse_a, slope * (a - cosine * b) * inverse_b
        return energy, topology.angles, torch.stack([left, -left - right, right], dim=2)

    def _dihedrals(self, x: Tensor, topology: PriorTopology) -> tuple[Tensor, Tensor, Tensor]:
        i, j, k, m = topology.dihedrals.unbind(1)
        kind = self.dihedral_kinds(topology.types[j], topology.types[k])
        first, second, third = x[:, j] - x[:, i], x[:, k] - x[:, j], x[:, m] - x[:, k]
        left, right = torch.linalg.cross(first, second), torch.linalg.cross(second, third)
        length = second.norm(dim=-1)
        sine, cosine = length * (first * right).sum(-1), (left * right).sum(-1)
        phi = torch.atan2(sine, cosine)
        n = torch.arange(1, self.n_dihedral + 1, dtype=x.dtype, device=x.device)
        multiple = phi[..., None] * n  # (R, M, n)
        b, d = self.dihedral[kind].chunk(2, dim=-1)
        cos, sin = multiple.cos(), multiple.sin()
        energy = (b * cos + d * sin).sum(-1)
        slope = (n * (d * cos - b * sin)).sum(-1)[..., None]
        start = -length[..., None] / left.square().sum(-1, keepdim=True) * left
        end = length[..., None] / right.square().sum(-1, keepdim=True) * right
        square = second.square().sum(-1, keepdim=True)
        along_first = (first * second).sum(-1, keepdim=True) / square
        along_third = (third * second).sum(-1, keepdim=True) / square
        inner = -(1 + along_first) * start + along_third * end
        outer = -(1 + along_third) * end + along_first * start
        return energy, topology.dihedrals, slope[..., None] * torch.stack([start, inner, outer, end], dim=2)

    def _excluded(self, x: Tensor, topology: PriorTopology) -> tuple[Tensor, Tensor, Tensor]:
        i, j = topology.excluded.unbind(1)
        vector, r = _distance(x, i, j)
        energy = self.epsilon[0] * (self._mixed(topology, i, j) / r) ** 6
        return energy, topology.excluded, _pair_gradient(-6 * energy / r**2, vector)

    def _repulsion(self, x: Tensor, topology: PriorTopology) -> tuple[Tensor, Tensor, Tensor]:
        i, j = topology.distant.unbind(1)
        vector, r = _distance(x, i, j)
        ratio = self._mixed(topology, i, j) / r
        if self.repulsion == "power4":
            energy = self.epsilon[1] * ratio**4
            slope = -4 * energy / r
        else:
            sixth = ratio**6
            energy = 4 * self.epsilon[1] * (sixth**2 - sixth)
            slope = -24 * self.epsilon[1] * (2 * sixth**2 - sixth) / r
        on, off = _switch(r, self.cutoff - 3.0, self.cutoff)
        return energy * on, topology.distant, _pair_gradient((slope * on + energy * off) / r, vector)

    def _mixed(self, topology: PriorTopology, i: Tensor, j: Tensor) -> Tensor:
        sigma = self.sigma[topology.types]
        return 0.5 * (sigma[i] + sigma[j])


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


def _distance(x: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    vector = x[:, j] - x[:, i]
    return vector, vector.norm(dim=-1)


def _pair_gradient(slope_over_r: Tensor, vector: Tensor) -> Tensor:
    """(R, M, 2, 3) from (dE/dr)/r (R, M) and r_j − r_i (R, M, 3)."""
    pull = slope_over_r[..., None] * vector
    return torch.stack([-pull, pull], dim=2)


def _chebyshev(c: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Σ a_n T_n(c), n = 1 …, and its derivative: (R, M) from c (R, M) and a (M, n)."""
    before, now = torch.ones_like(c), c  # T
    slope_before, slope = torch.zeros_like(c), torch.ones_like(c)  # their derivatives
    energy, total = coefficients[:, 0] * now, coefficients[:, 0] * slope
    for n in range(1, coefficients.shape[1]):
        before, now, slope_before, slope = now, 2 * c * now - before, slope, 2 * now + 2 * c * slope - slope_before
        energy = energy + coefficients[:, n] * now
        total = total + coefficients[:, n] * slope
    return energy, total


def _switch(r: Tensor, start: float, stop: float) -> tuple[Tensor, Tensor]:
    """1 up to `start`, 0 from `stop` on, with two continuous derivatives between; and its slope."""
    u = ((r - start) / (stop - start)).clamp(0, 1)
    return 1 - u**3 * (10 - 15 * u + 6 * u**2), -30 * u**2 * (1 - u) ** 2 / (stop - start)
