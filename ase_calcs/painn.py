"""PaiNN: equivariant message passing with scalar and vector features.

Source: Schütt, Unke, Gastegger, *Equivariant message passing for the prediction of tensorial properties and molecular
spectra*, ICML 2021 (arXiv 2102.03150). Differences: Bessel functions with a C² cutoff; the first message has no vectors
to mix and the last update none to keep, so those filters do not exist; a short-range repulsion takes over where the
training data end; total charge and multiplicity enter the embedding; optional features of rank two beside the vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from .errors import InputError
from .layers import RadialBasis, ShortRange, sum_over_neighbours
from .potential import AtomicTerms, Potential


class Message(nn.Module):
    """Equations 7 and 8 of the paper: Δs_i = Σ_j φ_s∘W_s, Δv_i = Σ_j v_j φ_vv∘W_vv + r̂_ij φ_vs∘W_vs.

    With ``rank=2`` also Δt_i = Σ_j Y₂(r̂_ij) φ_ts∘W_ts, and, as for the vectors, t_j φ_tt∘W_tt.
    """

    def __init__(self, features: int, n_basis: int, *, rank: int, first: bool) -> None:
        super().__init__()
        parts = (1 + rank) if first else (1 + 2 * rank)
        self.features = features
        self.hidden = nn.Linear(features, features)
        self.phi = nn.Linear(features, parts * features)
        # No bias: the basis carries the cutoff, so that a filter without bias vanishes smoothly at it.
        self.filter = nn.Linear(n_basis, parts * features, bias=False)

    def forward(
        self, s: Tensor, tensors: list[Tensor], basis: Tensor, harmonics: list[Tensor], edges: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Scalars (N, F), tensors [(3, N, F), (5, N, F)] (empty in the first layer), basis (E, K), harmonics
        [(E, 3), (E, 5)] → new scalars and tensors.
        """
        centre, neighbour = edges[0], edges[1]
        phi = self.phi(silu(self.hidden(s)))  # (N, parts·F)
        weights = phi.index_select(0, neighbour) * self.filter(basis)
        weights = weights.split(self.features, dim=-1)  # (E, F) each
        new = []
        for k, harmonic in enumerate(harmonics):
            message = harmonic[:, :, None] * weights[1 + k][:, None, :]  # (E, 2l+1, F)
            if tensors:
                # Rows are gathered and summed whole: along edges the component comes second.
                theirs = tensors[k].transpose(0, 1).contiguous().index_select(0, neighbour)
                message = message + theirs * weights[1 + len(harmonics) + k][:, None, :]
            summed = sum_over_neighbours(message, centre, s).transpose(0, 1)
            new.append(tensors[k] + summed if tensors else summed.contiguous())
        return s + sum_over_neighbours(weights[0], centre, s), new


class Update(nn.Module):
    """Equations 9 and 10: mixes scalars and vectors of one atom through ⟨Uv, Vv⟩ and ‖Vv‖.

    With ``rank=2`` the same for t, and the products that couple vectors v and tensors T: T·v, a vector; T·T′ and v ⊗ v,
    traceless and symmetric; and with them two more invariants, v·T·v and T:T·T′.
    """

    def __init__(self, features: int, *, rank: int, last: bool) -> None:
        super().__init__()
        self.features = features
        self.last = last
        self.mix = nn.ModuleList(nn.Linear(features, 2 * features, bias=False) for _ in range(rank))
        self.hidden = nn.Linear((1 + rank) * features, features)
        to_scalars = 2 if rank == 1 else 5
        to_tensors = 0 if last else (1 if rank == 1 else 5)
        self.gates = nn.Linear(features, (to_scalars + to_tensors) * features)

    def forward(self, s: Tensor, tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Scalars (N, F) and tensors [(3, N, F), (5, N, F)] → new ones."""
        pairs = [mix(t).split(self.features, dim=-1) for mix, t in zip(self.mix, tensors, strict=True)]
        norms = [torch.sqrt((v * v).sum(dim=0) + 1e-8) for _, v in pairs]  # (N, F); smooth at zero
        gates = iter(self.gates(silu(self.hidden(torch.cat([s, *norms], dim=-1)))).split(self.features, dim=-1))
        invariants = [(u * v).sum(dim=0) for u, v in pairs]
        updates = [[u] for u, _ in pairs]  # what the tensors of each rank are updated with
        if len(pairs) == 2:
            (u_v, v_v), (u_t, v_t) = pairs
            turned, squared = tensor_times_vector(u_t, v_v), tensor_times_tensor(u_t, v_t)
            invariants += [(turned * u_v).sum(dim=0), (squared * u_t).sum(dim=0)]
            if not self.last:
                updates[0].append(turned)
                updates[1] += [squared, traceless_product(u_v, v_v)]
        s = s + next(gates)
        for invariant in invariants:
            s = s + next(gates) * invariant
        if self.last:
            return s, [u for u, _ in pairs]
        new = []
        for t, terms in zip(tensors, updates, strict=True):
            for term in terms:
                t = t + next(gates) * term
            new.append(t)
        return s, new


SQRT3 = math.sqrt(3.0)


def second_harmonics(r: Tensor) -> Tensor:
    """(E, 3) unit vectors → (E, 5): the traceless part of r̂ ⊗ r̂ in an orthogonal basis, of norm one."""
    x, y, z = r[:, 0], r[:, 1], r[:, 2]
    return torch.stack(
        [SQRT3 * x * y, SQRT3 * y * z, 1.5 * z * z - 0.5, SQRT3 * x * z, 0.5 * SQRT3 * (x * x - y * y)], dim=1
    )


def traceless_product(a: Tensor, b: Tensor) -> Tensor:
    """(3, N, F), (3, N, F) → (5, N, F): symmetric traceless part of a ⊗ b, in the basis of `second_harmonics`."""
    ax, ay, az = a[0], a[1], a[2]
    bx, by, bz = b[0], b[1], b[2]
    half = 0.5 * SQRT3
    return torch.stack(
        [
            half * (ax * by + ay * bx),
            half * (ay * bz + az * by),
            az * bz - 0.5 * (ax * bx + ay * by),
            half * (ax * bz + az * bx),
            half * (ax * bx - ay * by),
        ],
        dim=0,
    )


def tensor_times_vector(t: Tensor, v: Tensor) -> Tensor:
    """(5, N, F), (3, N, F) → (3, N, F): the matrix with components `t` in the basis of `second_harmonics` times v."""
    xx, yy, zz, xy, yz, xz = _matrix(t)
    x, y, z = v[0], v[1], v[2]
    return torch.stack([xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z], dim=0)


def tensor_times_tensor(t: Tensor, u: Tensor) -> Tensor:
    """(5, N, F), (5, N, F) → (5, N, F): traceless part of T·U + U·T, in the basis of `second_harmonics`."""
    t_xx, t_yy, t_zz, t_xy, t_yz, t_xz = _matrix(t)
    u_xx, u_yy, u_zz, u_xy, u_yz, u_xz = _matrix(u)
    xx = t_xx * u_xx + t_xy * u_xy + t_xz * u_xz  # half the diagonal of the sum, whose two terms are equal there
    yy = t_xy * u_xy + t_yy * u_yy + t_yz * u_yz
    zz = t_xz * u_xz + t_yz * u_yz + t_zz * u_zz
    xy = t_xx * u_xy + t_xy * (u_yy + u_xx) + t_xz * u_yz + t_yy * u_xy + t_yz * u_xz
    yz = t_xy * u_xz + t_yy * u_yz + t_yz * (u_zz + u_yy) + t_xz * u_xy + t_zz * u_yz
    xz = t_xx * u_xz + t_xy * u_yz + t_xz * (u_zz + u_xx) + t_yz * u_xy + t_zz * u_xz
    half = 0.5 * SQRT3
    return torch.stack([half * xy, half * yz, zz - 0.5 * (xx + yy), half * xz, half * (xx - yy)], dim=0)


def _matrix(t: Tensor) -> tuple[Tensor, ...]:
    """(5, N, F) → xx, yy, zz, xy, yz, xz (N, F) of the matrix it stands for, times √3."""
    xy, yz, zz, xz, xx_yy = (t[k] for k in range(5))
    third = zz / SQRT3
    return xx_yy - third, -(xx_yy + third), 2.0 * third, xy, yz, xz


class PaiNN(Potential):
    """PaiNN as a `Potential`.

    Parameters
    ----------
    elements
        Atomic numbers.
    features
        Width F.
    layers
        Message–update pairs.
    cutoff
        Å.
    n_basis
        Radial functions.
    rank
        1: vectors, as in the paper. 2: also traceless symmetric tensors of rank two (five components), which see the
        angles between neighbours more sharply: better forces from few labels, at about twice the cost.
    charges
        Also predict partial charges and dipoles (from charges and atomic dipole vectors).
    dtype
        Of parameters and arithmetic.
    """

    architecture: ClassVar[str] = "painn"

    def __init__(
        self,
        elements: Sequence[int],
        *,
        features: int = 32,
        layers: int = 3,
        cutoff: float = 5.0,
        n_basis: int = 16,
        rank: int = 1,
        charges: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(elements, cutoff)
        if rank not in (1, 2):
            raise InputError(f"`rank` is {rank}; PaiNN has vectors (1) or vectors and rank-two tensors (2).")
        self.rank = rank
        self._hyperparameters = {
            "features": features,
            "layers": layers,
            "cutoff": cutoff,
            "n_basis": n_basis,
            "rank": rank,
            "charges": charges,
        }
        n_species = len(self.elements)
        self.embedding = nn.Embedding(n_species, features)
        # The state of the whole structure shifts the embedding of each element: linear in charge and in 2S.
        self.charge_embedding = nn.Embedding(n_species, features)
        self.spin_embedding = nn.Embedding(n_species, features)
        nn.init.zeros_(self.charge_embedding.weight)
        nn.init.zeros_(self.spin_embedding.weight)
        self.radial = RadialBasis(n_basis, self.cutoff)
        self.short_range = ShortRange(self.elements)
        self.messages = nn.ModuleList(Message(features, n_basis, rank=rank, first=k == 0) for k in range(layers))
        self.updates = nn.ModuleList(Update(features, rank=rank, last=k == layers - 1) for k in range(layers))
        self.readout = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 1))
        self.charge_readout = nn.Sequential(nn.Linear(features, features), nn.SiLU(), nn.Linear(features, 1))
        self.dipole_readout = nn.Linear(features, 1, bias=False)
        if not charges:
            del self.charge_readout, self.dipole_readout
        # Constants are computed in float64 and rounded once.
        self.to(dtype)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments of the constructor besides ``elements``."""
        return dict(self._hyperparameters)

    def atomic_terms(
        self, species: Tensor, edges: Tensor, vectors: Tensor, charge: Tensor, multiplicity: Tensor
    ) -> AtomicTerms:
        """See `Potential.atomic_terms`."""
        centre, neighbour = edges[0], edges[1]
        distances = torch.sqrt((vectors * vectors).sum(dim=-1))  # (E,)
        directions = vectors / distances[:, None]  # (E, 3)
        seen, repulsion = self.short_range(distances, (species[centre], species[neighbour]))
        basis = self.radial(seen)  # (E, K)

        s = self.embedding(species)  # (N, F)
        s = s + charge[:, None] * self.charge_embedding(species)
        s = s + (multiplicity[:, None] - 1.0) * self.spin_embedding(species)
        harmonics = [directions, second_harmonics(directions)][: self.rank]
        tensors: list[Tensor] = []  # vectors (3, N, F) and rank-two tensors (5, N, F)
        for message, update in zip(self.messages, self.updates, strict=True):
            s, tensors = message(s, tensors, basis, harmonics, edges)
            s, tensors = update(s, tensors)

        energies = self.readout(s).squeeze(-1)  # (N,)
        # The repulsion is in eV already; the base class multiplies by the energy scale.
        energies = energies + sum_over_neighbours(repulsion, centre, s) / self.energy_scale
        if not self._hyperparameters["charges"]:
            return AtomicTerms(energies)
        return AtomicTerms(
            energies, charges=self.charge_readout(s).squeeze(-1), dipoles=self.dipole_readout(tensors[0]).squeeze(-1).T
        )
