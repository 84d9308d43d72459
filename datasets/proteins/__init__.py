"""All-atom reference dynamics of proteins, and what becomes of them with one bead per residue."""

from .build import AllAtom, build_sequence, read_protein
from .reference import ReferenceConfig, run_reference
from .system import SystemConfig

__all__ = ["AllAtom", "ReferenceConfig", "SystemConfig", "build_sequence", "read_protein", "run_reference"]
