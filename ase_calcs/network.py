"""Which network a calculator evaluates: loaded or copied, frozen, on its device, eager or compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from .compiled import CompiledPotential, package_path
from .errors import InputError, did_you_mean
from .graph import AtomGraph
from .modelfile import ARCHITECTURES, DTYPES, build_potential, load_model
from .neighbors import graph_from_arrays
from .potential import Potential, PotentialOutput

CompileMode = Literal["off", "auto", "on"]
Network = Callable[[AtomGraph, Sequence[str]], PotentialOutput]


def prepare_potential(
    model: str | Path | Potential, device: str | torch.device, dtype: str | torch.dtype | None
) -> Potential:
    """A frozen network of our own on the right device."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"Unknown dtype `{dtype}`{did_you_mean(dtype, DTYPES)}")
        dtype = DTYPES[dtype]
    if dtype is not None and dtype not in DTYPES.values():
        raise InputError(f"dtype is {dtype}; allowed are {', '.join(DTYPES)}.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"Device {str(device)!r} cannot be used: {error}. `device='cpu'` works everywhere.") from error
    if isinstance(model, str | Path):
        return load_model(model, dtype=dtype, device=device)
    if not isinstance(model, Potential):
        raise InputError(f"model is a {type(model).__name__}; give the path of a model file, or a Potential.")
    if dtype not in (None, model.dtype) and ARCHITECTURES.get(model.architecture) is type(model):
        # Built anew, constants are exact in float64; converted, they would keep the rounding of float32.
        twin = build_potential(model.architecture, model.elements, model.hyperparameters, dtype=dtype)
        twin.load_state_dict(model.state_dict())
        twin.header = model.header
    else:
        twin = deepcopy(model).to(dtype=dtype or model.dtype)
    return twin.to(device).eval().requires_grad_(False)


def predicts_charges(potential: Potential) -> bool:
    """Whether its outputs have charges and dipoles; asks for one atom."""
    one_atom = graph_from_arrays(
        np.array(potential.elements[:1]),
        np.zeros((1, 3)),
        np.zeros((3, 3)),
        np.zeros(3, dtype=bool),
        potential.cutoff,
        dtype=potential.dtype,
        device=potential.device,
    )
    with torch.no_grad():
        return potential(one_atom, ("energy",)).charges is not None


def choose_network(potential: Potential, model: Path | None, compile: CompileMode) -> Network:
    """What evaluates the potential: itself, or its compiled twin with the same signature.

    `model` is the file the potential came from, beside which the compiled package is kept.
    """
    found = model is not None and potential.device.type == "cpu" and package_path(potential, model).is_file()
    if compile == "on" or (compile == "auto" and found):
        return CompiledPotential(potential, model)
    return potential
