"""A network whose energy depends on temperature as a free energy does: W(T) = U − T S.

Beads are what is left when everything else has been averaged out, so their energy is a free energy. With U and S that
do not depend on temperature it is a straight line in T, through W(T₀) with the slope −S, and that is all a temperature
is allowed to do here: two networks, W(T₀) and −T₀ S, and no network with the temperature among its inputs, whose energy
need not be a free energy at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..potential import AtomicTerms, Potential


class EnergyEntropy(Potential):
    """Two networks of one architecture: W = W(T₀) + (T/T₀ − 1) · (−T₀ S).

    Parameters
    ----------
    elements
        1 + residue types.
    base
        Architecture of both, a name in `distillase.ase_calcs.modelfile.ARCHITECTURES`.
    options
        Keyword arguments of `base`.
    dtype
        Of both networks.

    In the place of charges, which beads do not have, `atomic_terms` and `predict` take T/T₀ − 1.
    """

    architecture: ClassVar[str] = "energy-entropy"

    def __init__(
        self,
        elements: Sequence[int],
        *,
        base: str = "allegro",
        options: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from ..modelfile import build_potential

        self.base, self.options = base, dict(options or {})
        known = tuple(int(z) for z in elements)
        free = build_potential(base, known, self.options, dtype=dtype)
        super().__init__(elements, free.cutoff)
        self.free = free
        self.entropy = build_potential(base, known, self.options, dtype=dtype)
        self.energy_scale = self.energy_scale.to(dtype)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments that build this network again."""
        return {"base": self.base, "options": self.options}

    def atomic_terms(
        self, species: Tensor, edges: Tensor, vectors: Tensor, charge: Tensor, multiplicity: Tensor
    ) -> AtomicTerms:
        """See `Potential.atomic_terms`; `charge` (N,) is T/T₀ − 1 at every bead."""
        nothing = torch.zeros_like(charge)
        energies = self.free.atomic_terms(species, edges, vectors, nothing, multiplicity).energies
        # At T₀ itself the second network is not asked, and costs nothing.
        if self.training or bool(charge.any()):
            slope = self.entropy.atomic_terms(species, edges, vectors, nothing, multiplicity).energies
            energies = energies + charge * slope
        return AtomicTerms(energies)
