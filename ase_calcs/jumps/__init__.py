"""Jump networks: where atoms are, and how fast, k steps later."""

from .base import Jump, JumpNetwork
from .egnn import EGNNJump
from .graph import JumpGraph, bond_hops, jump_graph
from .painn import PaiNNJump
from .transformer import TransformerJump

__all__ = [
    "EGNNJump",
    "Jump",
    "JumpGraph",
    "JumpNetwork",
    "PaiNNJump",
    "TransformerJump",
    "bond_hops",
    "jump_graph",
]
