"""The network compiled for LAMMPS's `pair_style allegro` (github.com/mir-group/pair_nequip_allegro).

nequip writes a package of native code that the pair style loads, so that LAMMPS needs Python for the network no more.
Its inputs are positions, pairs and types alone: atoms of both ends are in LAMMPS's own lists.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from ..allegro import Allegro, default_dtype
from ..compiled import find_compiler
from ..errors import InputError, require
from .chains import Chains
from .model import BeadTopology, CoarseGrainedModel, bead_graph
from .residues import CODES

SUFFIX = ".nequip.pt2"


def compile_pair_allegro(model: CoarseGrainedModel, chains: Chains, positions: torch.Tensor, path: str | Path) -> Path:
    """Write the network of a force field as a package for `pair_style allegro`; takes about a minute.

    Energies are in eV, forces in eV/Å (`units metal`); types are named by one-letter codes.

    Parameters
    ----------
    model
        Whose network is an `Allegro`.
    chains, positions
        (N, 3) Å, beads that it is tried on. The package takes any number of beads and pairs.
    path
        Ends in ``.nequip.pt2``.

    Raises
    ------
    InputError
        There is no such network, no compiler, or the name is another.
    ImportError
        nequip and nequip-allegro are not installed.
    """
    network = model.network
    if not isinstance(network, Allegro):
        found = "no network" if network is None else f"a network of architecture `{network.architecture}`"
        raise InputError(f"The model has {found}; `pair_style allegro` takes an Allegro at one temperature.")
    path = Path(path)
    if not path.name.endswith(SUFFIX):
        raise InputError(f"`{path.name}` must end in `{SUFFIX}`, by which LAMMPS knows what it is.")
    if find_compiler() is None:
        raise InputError("A C++ compiler (c++, g++ or clang++) is needed to compile the network, and none was found.")
    purpose = "compile a network for LAMMPS"
    graph_model, scale_shift, settings, aot, keys, fields = (
        require(name, extra="allegro", purpose=purpose)
        for name in (
            "nequip.nn.graph_model", "nequip.nn", "allegro._compile", "nequip.utils.aot", "nequip.utils.aoti_metadata",
            "nequip.scripts._compile_utils",
        )
    )  # fmt: skip
    inner = copy.deepcopy(network.network)
    inner.do_derivatives = True
    for part in inner.modules():
        if isinstance(part, scale_shift.PerTypeScaleShift):
            part.scales = network.energy_scale.detach().double().reshape(1)
            part.has_scales = part.scales_shortcut = True
    names = [CODES[z - 1] for z in network.elements]
    described = {
        "model_dtype": str(network.dtype).removeprefix("torch."), "type_names": names, "r_max": network.cutoff,
    }  # fmt: skip
    with default_dtype(network.dtype):  # which the wrapper compares with
        wrapped = graph_model.GraphModel(inner, described).eval()
    graph = bead_graph(positions[None], BeadTopology.of(chains), network.cutoff, torch.float64)
    inputs, outputs = settings.PAIR_ALLEGRO_INPUTS, fields.LMP_OUTPUTS
    known = dict(zip(inputs, (positions.double(), graph.edges, network.species_of_number[graph.numbers]), strict=True))
    any_number = {
        "graph": torch.export.Dim.STATIC,
        **{name: torch.export.Dim(f"num_{name}s", min=2) for name in ("node", "edge")},
    }
    metadata = {k: str(v) for k, v in wrapped.metadata.items()}
    metadata |= {
        keys.NEQUIP_AOTI_INPUTS_KEY: keys.serialize_aoti_keys(inputs),
        keys.NEQUIP_AOTI_OUTPUTS_KEY: keys.serialize_aoti_keys(outputs),
    }
    # nequip compares the package with the network before it returns.
    aot.aot_export_model(
        wrapped, "cpu", inputs, outputs, known, any_number, str(path), {"aot_inductor.metadata": metadata}
    )
    return path
