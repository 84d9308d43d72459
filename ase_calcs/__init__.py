"""What an ASE script imports: graphs, networks, calculators, dynamics, teachers, model files.

>>> from distillase.ase_calcs import PotentialCalculator
>>> atoms.calc = PotentialCalculator("runs/aspirin/model.safetensors")

Names are imported when they are first used, so that labelling workers, which need teachers alone, never load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calculator import PotentialCalculator
    from .contract import check_calculator
    from .graph import AtomGraph
    from .modelfile import load_model, save_model
    from .painn import PaiNN
    from .potential import Potential
    from .proteins.calculator import CoarseGrainedCalculator
    from .proteins.chains import coarse_grained_atoms, read_beads_pdb
    from .teachers import make_teacher

_HOME = {
    "AtomGraph": "graph",
    "CoarseGrainedCalculator": "proteins.calculator",
    "PaiNN": "painn",
    "Potential": "potential",
    "PotentialCalculator": "calculator",
    "check_calculator": "contract",
    "coarse_grained_atoms": "proteins.chains",
    "load_model": "modelfile",
    "make_teacher": "teachers",
    "read_beads_pdb": "proteins.chains",
    "save_model": "modelfile",
}

__all__ = [
    "AtomGraph",
    "CoarseGrainedCalculator",
    "PaiNN",
    "Potential",
    "PotentialCalculator",
    "check_calculator",
    "coarse_grained_atoms",
    "load_model",
    "make_teacher",
    "read_beads_pdb",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
