"""Allegro through `nequip-allegro`: strictly local, equivariant, with tensor products of edge features.

Source: Musaelian et al., *Learning local equivariant representations for large-scale atomistic dynamics*,
10.1038/s41467-023-36329-y. The network is that package's own, unchanged; here it is built without the global state that
its builder asks for (it would set torch's default type), and given edge vectors instead of positions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .errors import InputError, require
from .potential import AtomicTerms, Potential

_BUILDING = threading.Lock()
_HANDED_LAYERS = 2
_SPAN = 6  # splines that overlap


class Allegro(Potential):
    """Allegro.

    Parameters
    ----------
    elements
        Atomic numbers (or 1 + residue types).
    cutoff
        Å.
    l_max
        Highest order of spherical harmonics.
    parity
        Whether tensor features of both parities are kept. Without them it is faster, and cannot build what changes
        its sign under reflection.
    handed
        Whether a structure and its mirror image may have different energies, as chains of amino acids on one bead each
        do, whose other atoms are what makes them handed. Everything counts as even then, and triple products of edges
        are scalars, for which two layers are needed. Not for atoms: theirs are the same.
    layers
        Tensor-product layers.
    scalar_features, tensor_features
        Channels.
    n_basis
        Bessel functions, or splines.
    embedding
        Of an edge. ``types``: Bessel functions of its length, multiplied by what belongs to either end. ``pairs``:
        splines of its length that every pair of types has of its own; for few types, or much data.
    mlp
        Width of every hidden layer.
    mean_neighbors
        Average number of neighbours in the data, by which sums over edges are divided (as its square root).
    dtype
        Of the network.

    Charge and multiplicity are not looked at.
    """

    architecture: ClassVar[str] = "allegro"

    def __init__(
        self,
        elements: Sequence[int],
        *,
        cutoff: float = 12.0,
        l_max: int = 1,
        parity: bool = True,
        handed: bool = False,
        layers: int = 1,
        scalar_features: int = 32,
        tensor_features: int = 8,
        n_basis: int = 12,
        embedding: Literal["types", "pairs"] = "types",
        mlp: int = 32,
        mean_neighbors: float = 10.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(elements, cutoff)
        for name, value, least in (("l_max", l_max, 1), ("layers", layers, 1), ("n_basis", n_basis, 1)):
            if value < least:
                raise InputError(f"`{name}` is {value}; it must be {least} or more.")
        if handed and layers < _HANDED_LAYERS:
            raise InputError(
                f"`handed` needs two layers or more, and `layers` is {layers}: with one, no feature tells a structure "
                "from its mirror image."
            )
        self.l_max, self.parity, self.layers, self.handed = int(l_max), bool(parity), int(layers), bool(handed)
        self.scalar_features, self.tensor_features = int(scalar_features), int(tensor_features)
        if embedding not in ("types", "pairs"):
            raise InputError(f"`embedding` is {embedding!r}; allowed are 'types' and 'pairs'.")
        self.embedding = embedding
        self.n_basis, self.mlp, self.mean_neighbors = int(n_basis), int(mlp), float(mean_neighbors)
        models = require("allegro.model.allegro_models", extra="allegro", purpose="build Allegro networks")
        embeddings = require("allegro.nn", extra="allegro", purpose="build Allegro networks")
        o3 = require("e3nn.o3", extra="allegro", purpose="build Allegro networks")
        harmonics = o3.Irreps.spherical_harmonics(self.l_max, p=-1)
        allowed = o3.Irreps([(1, (k, p)) for k in range(self.l_max + 1) for p in (1, -1)]) if parity else harmonics
        if self.handed:
            harmonics = allowed = o3.Irreps([(1, (k, 1)) for k in range(self.l_max + 1)])
        embed: dict[str, Any] = {
            "_target_": f"{embeddings.__name__}.TwoBodyBesselScalarEmbed", "num_bessels": self.n_basis,
        }  # fmt: skip
        if embedding == "pairs":
            embed = {
                "_target_": f"{embeddings.__name__}.TwoBodySplineScalarEmbed",
                "num_splines": self.n_basis, "spline_span": min(_SPAN, self.n_basis),
            }  # fmt: skip
        with default_dtype(dtype):
            # The function below its decorator, which wants the global state.
            self.network = models.FullAllegroModel.__wrapped__(
                r_max=self.cutoff,
                type_names=[f"t{z}" for z in self.elements],
                irreps_edge_sh=repr(harmonics),
                tensor_track_allowed_irreps=allowed,
                radial_chemical_embed=embed,
                radial_chemical_embed_dim=self.scalar_features,
                scalar_embed_mlp_hidden_layers_width=self.mlp,
                num_layers=self.layers,
                num_scalar_features=self.scalar_features,
                num_tensor_features=self.tensor_features,
                allegro_mlp_hidden_layers_width=self.mlp,
                readout_mlp_hidden_layers_width=self.mlp,
                avg_num_neighbors=self.mean_neighbors,
                do_derivatives=False,
            )  # fmt: skip
        self.energy_scale = self.energy_scale.to(dtype)

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Keyword arguments that build this network again."""
        names = (
            "cutoff", "l_max", "parity", "handed", "layers", "scalar_features", "tensor_features", "n_basis",
            "embedding", "mlp", "mean_neighbors",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def atomic_terms(
        self, species: Tensor, edges: Tensor, vectors: Tensor, charge: Tensor, multiplicity: Tensor
    ) -> AtomicTerms:
        """See `Potential.atomic_terms`."""
        data = {
            "atom_types": species,
            "edge_index": edges,
            "edge_vectors": vectors,
            "edge_lengths": vectors.norm(dim=-1),
            "pos": vectors.new_zeros(species.shape[0], 3),  # asked for the number of atoms
        }
        return AtomicTerms(self.network(data)["atomic_energy"].reshape(-1).to(vectors.dtype))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default type while e3nn and nequip build; put back, and by one thread at a time."""
    with _BUILDING:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
