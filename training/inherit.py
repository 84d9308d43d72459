"""Weights of a finished network as the start of a new one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ase_calcs.errors import InputError


def inherit(network: Any, other: Any, *, growing: str = "") -> None:
    """Copy weights and constants of a finished network into a new one of the same kind.

    Elements that the new network does not have are left behind: rows (and columns) of what is stored per element are
    picked by element.

    Parameters
    ----------
    network, other
        New and finished: a `Potential` or a `JumpNetwork`.
    growing
        Modules whose name begins with this may have more outputs in the new network; those keep their fresh weights.

    Raises
    ------
    InputError
        Another architecture, missing elements, other widths.
    """
    missing = sorted(set(network.elements) - set(other.elements))
    if missing or other.architecture != network.architecture:
        raise InputError(
            f"`model.start_from` is a {other.architecture} for elements {list(other.elements)}; this recipe wants a "
            f"{network.architecture} for {list(network.elements)}. Start from a network of the same kind."
        )
    rows = [other.elements.index(z) for z in network.elements]
    mine, theirs = network.state_dict(), other.state_dict()
    for name in sorted(set(mine) ^ set(theirs)):
        whose, which = ("`model.start_from` has", "this recipe's") if name in theirs else ("This recipe has", "that")
        raise InputError(f"{whose} weights `{name}` that {which} network does not have.")
    for name, value in theirs.items():
        value = _of_elements(value, mine[name], rows, len(other.elements))
        if mine[name].shape == value.shape:
            mine[name].copy_(value)
        elif growing and name.startswith(growing) and mine[name].shape[1:] == value.shape[1:]:
            mine[name][: len(value)].copy_(value)  # what is new comes behind
        else:
            raise InputError(
                f"`model.start_from` has `{name}` of shape {tuple(value.shape)}, this recipe "
                f"{tuple(mine[name].shape)}: width, layers and basis must be the same."
            )


def _of_elements(value: Tensor, wanted: Tensor, rows: list[int], known: int) -> Tensor:
    """Without the elements that are not wanted, in every dimension that goes over elements."""
    for dim, (have, want) in enumerate(zip(value.shape, wanted.shape, strict=False)):
        if have == known and want == len(rows) != known:
            value = value[(slice(None),) * dim + (rows,)]
    return value
