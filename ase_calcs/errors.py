"""Errors written for people: what was got, what is allowed, what to do.

The command line prints the message of a `DistillaseError` as one paragraph and exits with code 2; in a script they are
ordinary exceptions. Anything else that escapes is a bug in distillase.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterable
from types import ModuleType


class DistillaseError(Exception):
    """Base class of every error that a user can cause and mend."""


class InputError(DistillaseError, ValueError):
    """An argument, option or recipe key is not allowed."""


class StructureError(DistillaseError, ValueError):
    """A structure cannot be used: no atoms, NaN positions, an element the model has not seen, an impossible charge."""


class DataError(DistillaseError, ValueError):
    """A dataset file is damaged, has other units, or does not fit its purpose."""


class ModelFileError(DistillaseError, ValueError):
    """A model file is damaged, of a newer format, or not a model file at all."""


class TeacherError(DistillaseError, RuntimeError):
    """A teacher could not label a structure; the message is the reason that is recorded."""


class MissingDependency(DistillaseError, ImportError):
    """An optional package is needed and not installed."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency where it is used.

    Parameters
    ----------
    module
        Name of the module to import, e.g. ``"rdkit.Chem"``.
    extra
        The extra of distillase that brings it, e.g. ``"train"``.
    purpose
        What it is needed for, as it completes "… is needed to".

    Raises
    ------
    MissingDependency
        With the pip line that adds it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise MissingDependency(
            f"The package `{package}` is needed to {purpose}, and could not be imported ({error}). "
            f'Install it with: pip install "distillase[{extra}]"'
        ) from error


def check_positive(name: str, value: float) -> None:
    """Refuse a setting that is not a finite number above zero; `name` is the key as its user writes it."""
    if not 0 < value < math.inf:
        raise InputError(f"`{name}` is {value!r}; it must be a number above 0.")


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse a setting below `least`, and NaN."""
    if not value >= least:
        raise InputError(f"`{name}` is {value!r}; it must be {least:g} or more.")


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean …?` if a word is close to one of the allowed ones, else the list of what is allowed."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; allowed are: {', '.join(f'`{a}`' for a in allowed)}."
