"""Building blocks that networks share: gather/scatter verbs, radial basis, cutoff, short-range repulsion."""

from __future__ import annotations

import math

import numpy as np
import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from . import units

# e²/(4πε₀) in eV·Å. ASE's Hartree·Bohr is the same constant.
COULOMB = units.HARTREE * units.BOHR


def sum_over_neighbours(messages: Tensor, centre: Tensor, n_atoms: Tensor) -> Tensor:
    """Sum edge quantities (E, …) on their central atoms → (N, …); `n_atoms` is any tensor with first dimension N.

    The number of atoms travels as the shape of a tensor and never as a Python integer, so that traced graphs keep a
    dynamic atom count.
    """
    out = messages.new_zeros((n_atoms.shape[0], *messages.shape[1:]))
    return out.index_add(0, centre, messages)


def polynomial_cutoff(x: Tensor, p: int = 6) -> Tensor:
    """Envelope of Gasteiger et al. (DimeNet, ICLR 2020): 1 at x = 0, 0 for x ≥ 1 with two vanishing derivatives."""
    x = x.clamp(max=1.0)
    xp = x**p
    return 1.0 - xp * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * (p * (p + 1) / 2)))


class RadialBasis(nn.Module):
    """Bessel functions times a smooth cutoff: √(2/rc)·sin(nπr/rc)/r · f(r/rc), n = 1 … n_basis.

    Source: Gasteiger, Groß, Günnemann, *Directional message passing for molecular graphs*, ICLR 2020.
    """

    wavenumbers: Tensor

    def __init__(self, n_basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        # Not a buffer of the model file: it follows from the hyper-parameters.
        wavenumbers = torch.arange(1, n_basis + 1, dtype=torch.float64) * (math.pi / cutoff)
        self.register_buffer("wavenumbers", wavenumbers, persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """(E,) distances in Å → (E, n_basis)."""
        envelope = polynomial_cutoff(distances / self.cutoff) * (math.sqrt(2 / self.cutoff) / distances)
        return torch.sin(distances[:, None] * self.wavenumbers) * envelope[:, None]


class ShortRange(nn.Module):
    """What happens when two atoms come closer than any training structure: they repel.

    Two parts, both with per-element-pair radii taken from the training data:

    - `clamp` turns a distance into the one the network sees. Below ``inner`` it flattens out (twice continuously
      differentiable, constant below 0.8·inner), so that the network, which knows nothing there, exerts no radial force.
    - `energies` is the screened nuclear repulsion of Ziegler, Biersack and Littmark (1985), switched off smoothly at
      ``outer``; it decreases monotonically, so a clash never attracts.
    """

    MARGIN = 0.98  # `inner` is this share of the closest distance seen
    UNSEEN = 0.75  # and a pair that was never seen is taken to have come this near, in bond lengths
    FLAT = 0.8  # the network sees a constant distance below FLAT·inner
    ZBL_C = (0.1818, 0.5099, 0.2802, 0.02817)
    ZBL_A = (3.2, 0.9423, 0.4029, 0.2016)
    # All (S, S), one entry per pair of elements.
    strength: Tensor  # eV·Å
    screening: Tensor  # Å
    bond: Tensor  # Å, sum of covalent radii
    inner: Tensor  # Å
    outer: Tensor  # Å

    def __init__(self, elements: tuple[int, ...]) -> None:
        super().__init__()
        z = torch.tensor(elements, dtype=torch.float64)
        radii = torch.from_numpy(np.array([covalent_radii[e] for e in elements]))
        bond = radii[:, None] + radii[None, :]
        screening = 0.46850 / (z[:, None] ** 0.23 + z[None, :] ** 0.23)  # Å; 0.8854 a₀ / (Zi^0.23 + Zj^0.23)
        self.register_buffer("strength", COULOMB * z[:, None] * z[None, :], persistent=False)
        self.register_buffer("screening", screening, persistent=False)
        self.register_buffer("bond", bond, persistent=False)
        # Before any data is seen: nothing closer than three quarters of a bond has been seen.
        self.register_buffer("inner", self.UNSEEN * bond)
        self.register_buffer("outer", bond.clone())

    def set_closest_distances(self, closest: Tensor) -> None:
        """Take (S, S) closest distances seen in training, Å; pairs that were never seen are infinite or NaN."""
        closest = torch.where(torch.isfinite(closest), closest, self.UNSEEN * self.bond).to(self.bond)
        self.inner.copy_(self.MARGIN * torch.minimum(closest, 4.0 * self.bond))
        # A pair that never comes near (two non-bonded H) is walled off where the data end, not at a bond length.
        self.outer.copy_(torch.maximum(self.bond, self.inner))

    def closest_distances(self) -> Tensor:
        """(S, S) what `set_closest_distances` was given, Å; infinite for pairs that were never seen."""
        closest = self.inner / self.MARGIN
        return torch.where(torch.isclose(closest, self.UNSEEN * self.bond), torch.inf, closest)

    def forward(self, distances: Tensor, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(E,) distances and the species of both ends → (E,) distances the network sees, (E,) repulsion in eV."""
        return self.clamp(distances, self.inner[pair]), self.energies(distances, pair)

    def clamp(self, r: Tensor, inner: Tensor) -> Tensor:
        """Distance seen by the network: r above `inner`, flat below FLAT·inner, C² in between."""
        width = (1.0 - self.FLAT) * inner
        x = ((r - self.FLAT * inner) / width).clamp(0.0, 1.0)
        return inner + width * (x * x * x * (1.0 - 0.5 * x) - 0.5) + torch.relu(r - inner)

    def energies(self, r: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        """Repulsion of every directed edge, eV: half of the pair's energy."""
        x = r / self.screening[pair]
        terms = (c * torch.exp(-a * x) for c, a in zip(self.ZBL_C, self.ZBL_A, strict=True))
        phi = sum(terms, start=x.new_zeros(()))
        return 0.5 * self.strength[pair] / r * phi * polynomial_cutoff(r / self.outer[pair])
