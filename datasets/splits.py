"""Splitting a dataset into training, validation and test parts without tearing correlated frames apart.

Frames of one molecule, and even more so frames of one trajectory, resemble each other; a test set that shares them with
the training set flatters the student. So whole groups are dealt out by default, whole trajectories when asked, and
single frames only when asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..ase_calcs.errors import DataError, InputError, did_you_mean

if TYPE_CHECKING:
    from .store import Dataset

SplitBy = Literal["group", "trajectory", "frame"]

DEFAULT_FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}

# Tries of the random deal; the one nearest to the fractions is kept.
TRIES = 64


def split_indices(
    frames: Dataset | tuple[Sequence[str] | np.ndarray, Sequence[str] | np.ndarray],
    *,
    by: SplitBy = "group",
    fractions: Mapping[str, float] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Deal the frames of a dataset out to named parts.

    Parameters
    ----------
    frames
        A dataset, or its arrays (group, origin) of length F.
    by
        What stays together: ``"group"`` (a molecule), ``"trajectory"`` (one origin of one group) or ``"frame"``
        (nothing: neighbouring frames of one trajectory may land in training and test).
    fractions
        Share of the frames for each part, summing to 1; default 0.8 / 0.1 / 0.1 for train, validation, test. Shares
        are met as nearly as whole groups allow, and every part gets at least one.
    seed
        The same seed and the same groups give the same parts.

    Returns
    -------
    dict
        Part → sorted int64 indices of its frames. Each frame is in exactly one part.

    Raises
    ------
    InputError
        An unknown `by`, or fractions that are not positive or do not sum to 1.
    DataError
        Fewer groups (trajectories, frames) than parts.
    """
    shares = dict(DEFAULT_FRACTIONS if fractions is None else fractions)
    _check_arguments(by, shares)
    group, origin = frames if isinstance(frames, tuple) else (frames.group, frames.origin)
    if len(group) != len(origin):
        raise InputError(f"`group` has {len(group)} entries and `origin` {len(origin)}; they must be equally many.")
    units = _units(group, origin, by)
    sizes = np.bincount(units)
    if len(sizes) < len(shares):
        raise DataError(_too_few(len(sizes), len(shares), by))
    rng = np.random.default_rng(seed)
    targets = np.array(list(shares.values())) * len(units)
    if sizes.max() == sizes.min():
        part_of_unit = _deal_equal(len(sizes), targets / sizes[0], rng)
    else:
        part_of_unit = _deal_unequal(sizes, targets, rng)
    part = part_of_unit[units]
    return {name: np.flatnonzero(part == k).astype(np.int64) for k, name in enumerate(shares)}


def _check_arguments(by: str, shares: Mapping[str, float]) -> None:
    if by not in ("group", "trajectory", "frame"):
        raise InputError(f"A split cannot be `by: {by}`{did_you_mean(str(by), ('group', 'trajectory', 'frame'))}")
    if not shares or any(not share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        text = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise InputError(f"The fractions of a split must be positive and sum to 1; got {text or 'none'}.")


def _too_few(n_units: int, n_parts: int, by: str) -> str:
    noun = {"group": "group(s) (molecules)", "trajectory": "trajectory(ies)", "frame": "frame(s)"}[by]
    advice = {
        "group": "split one molecule's data with `by: trajectory`, or add molecules",
        "trajectory": "sample more trajectories, or split with `by: frame` and know that neighbouring frames leak "
        "from training into test",
        "frame": "label more frames, or ask for fewer parts",
    }[by]
    return f"The dataset has {n_units} {noun}, too few for {n_parts} parts; {advice}."


def _units(group: Sequence[str] | np.ndarray, origin: Sequence[str] | np.ndarray, by: str) -> np.ndarray:
    """(F,) index of what each frame stays with, numbered by name so that the order of the frames does not matter."""
    if by == "frame":
        return np.arange(len(group))
    names = [str(g) for g in group] if by == "group" else list(zip(map(str, group), map(str, origin), strict=True))
    number = {name: k for k, name in enumerate(sorted(set(names)))}  # type: ignore[type-var]
    return np.array([number[name] for name in names])


def _deal_equal(n_units: int, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Part of each unit when all have the same size: largest remainders, at least one each, then a shuffle."""
    counts = np.maximum(np.floor(targets + 1e-9).astype(int), 1)
    while counts.sum() < n_units:
        counts[np.argmax(targets - counts)] += 1
    while counts.sum() > n_units:
        spare = np.where(counts > 1, counts - targets, -np.inf)
        counts[np.argmax(spare)] -= 1
    return rng.permutation(np.repeat(np.arange(len(counts)), counts))


def _deal_unequal(sizes: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Part of each unit: random deals to whichever part lacks most, improved by single moves; the best of several.

    The order is random rather than largest-first, which would put the largest molecules into training every time.
    """
    best, best_miss = np.zeros(0, dtype=int), np.inf
    for _ in range(TRIES if len(sizes) <= 2000 else 2):
        order = rng.permutation(len(sizes))
        part = np.full(len(sizes), -1)
        lack = targets.astype(float).copy()
        empty = np.ones(len(targets), dtype=bool)
        for position, unit in enumerate(order):
            must_fill = len(order) - position <= empty.sum()
            k = int(np.argmax(np.where(empty, lack, -np.inf) if must_fill else lack))
            part[unit] = k
            lack[k] -= sizes[unit]
            empty[k] = False
        _improve(part, sizes, lack)
        miss = float(np.abs(lack).sum())
        if miss < best_miss - 1e-9:
            best, best_miss = part, miss
    return best


def _improve(part: np.ndarray, sizes: np.ndarray, lack: np.ndarray) -> None:
    """Move single units between parts while that brings the shares nearer; never empties a part. In place."""
    for _ in range(len(sizes)):
        movable = np.bincount(part, minlength=len(lack))[part] > 1
        # change[u, k]: change of the sum of |lack| if unit u went to part k.
        change = (np.abs(lack[part] + sizes) - np.abs(lack[part]))[:, None] + (
            np.abs(lack[None, :] - sizes[:, None]) - np.abs(lack)[None, :]
        )
        change[np.arange(len(part)), part] = 0.0
        change[~movable] = 0.0
        unit, k = np.unravel_index(int(np.argmin(change)), change.shape)
        if change[unit, k] > -1e-9:
            return
        lack[part[unit]] += sizes[unit]
        lack[k] -= sizes[unit]
        part[unit] = k
