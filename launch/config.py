"""Recipes: everything `distillase distill` can be told, as one tree of frozen dataclasses read from YAML.

A recipe file states only what differs from ``recipes/default.yaml``; what a run really used is written complete into
its ``config.yaml``, which is itself a recipe. Keys are checked before values, so a slip of the pen is answered with
the name that was probably meant.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ..ase_calcs.errors import InputError, did_you_mean
from ..datasets.labelling import LabelConfig
from ..datasets.sampling import SamplingConfig
from ..training.config import ModelConfig, SplitConfig, TrainConfig
from ..training.jumps.config import JumpRecipe
from ..training.proteins.config import BeadRecipe
from ..training.report.config import ReportConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run produces.

    Attributes
    ----------
    molecules
        Files (.smi .sdf .sdf.gz .mol .xyz .extxyz .db .pdb .h5) and SMILES.
    teacher
        Name of the teacher with its options, e.g. ``"gfn2-xtb?accuracy=0.1"``.
    seed
        Seed of sampling, splitting and training.
    allow_no_hydrogen
        Accept a set of molecules without a single hydrogen.
    sampling, labelling, split, model, training, report
        The stages; every key is described where its class is defined.
    """

    molecules: tuple[str, ...] = ()
    teacher: str = "gfn2-xtb"
    seed: int = 0
    allow_no_hydrogen: bool = False
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    labelling: LabelConfig = field(default_factory=LabelConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    report: ReportConfig = field(default_factory=ReportConfig)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, so that `compile: off` is the word and not False; and 1e-3 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: plain values only


def recipe_names(folder: str = "recipes") -> list[str]:
    """Names of the recipes that come with distillase; those of jump networks are in ``jump_recipes``."""
    entries = resources.files(__package__) / folder
    return sorted(entry.name.removesuffix(".yaml") for entry in entries.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(source: str | Path = "default", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path, over the defaults, and apply ``key.sub=value`` overrides.

    Parameters
    ----------
    source
        A name from `recipe_names` or the path of a YAML file.
    overrides
        Items such as ``"training.max_epochs=50"``; the value is read as YAML.

    Raises
    ------
    InputError
        If there is no such recipe, a key is unknown (with the key that was probably meant) or a value is not allowed.
    """
    return build(Recipe, _recipe_tree("recipes", source, overrides))


def load_jump_recipe(source: str | Path = "default", overrides: Sequence[str] = ()) -> JumpRecipe:
    """As `load_recipe`, for jump networks: ``default``, ``mm``, ``qm`` or a file."""
    return build(JumpRecipe, _recipe_tree("jump_recipes", source, overrides))


def load_bead_recipe(source: str | Path = "default", overrides: Sequence[str] = ()) -> BeadRecipe:
    """As `load_recipe`, for coarse-grained proteins: ``default``, ``large`` or a file."""
    return build(BeadRecipe, _recipe_tree("cg_recipes", source, overrides))


def _recipe_tree(folder: str, source: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    tree = _read_named(folder, "default")
    if source != "default":
        tree = _merged(tree, _read_recipe(folder, source))
    for override in overrides:
        tree = _merged(tree, _parse_override(override))
    return tree


def build(kind: type, tree: Mapping[str, Any], where: str = "") -> Any:
    """Make a frozen dataclass from plain values, checking keys first and then types.

    Raises
    ------
    InputError
        One sentence per key or value that is not allowed.
    """
    problems = list(_unknown_keys(kind, tree, where))
    if problems:
        raise InputError("\n".join(problems))
    try:
        return TypeAdapter(kind).validate_python(dict(tree))
    except ValidationError as error:
        raise InputError("\n".join(_describe(item, where) for item in error.errors())) from error


def to_plain(value: Any) -> Any:
    """A dataclass tree as dicts, lists, numbers and strings, ready for YAML and JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def dump_recipe(recipe: Recipe | JumpRecipe | BeadRecipe, header: str = "") -> str:
    """The complete recipe as YAML, with `header` as comment lines before it."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True, width=120)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_named(folder: str, name: str) -> dict[str, Any]:
    text = (resources.files(__package__) / folder / f"{name}.yaml").read_text(encoding="utf-8")
    return _parse_yaml(text, f"recipe `{name}`")


def _read_recipe(folder: str, source: str | Path) -> dict[str, Any]:
    names = recipe_names(folder)
    if str(source) in names:
        return _read_named(folder, str(source))
    path = Path(source)
    if path.is_file():
        try:
            return _parse_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The recipe {path} could not be read: {error}.") from error
    if path.suffix in (".yaml", ".yml"):
        raise InputError(f"There is no recipe file {path}. Recipes that come along: {', '.join(names)}.")
    raise InputError(f"Unknown recipe `{source}`{did_you_mean(str(source), names)}")


def _parse_yaml(text: str, name: str) -> dict[str, Any]:
    try:
        tree = _read_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{name} must hold keys and values (`teacher: gfn2-xtb`), not {type(tree).__name__}.")
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"`--set {text}` is not of the form key.sub=value, e.g. --set training.max_epochs=50.")
    try:
        tree: Any = _read_yaml(value)
    except yaml.YAMLError as error:
        raise InputError(f"The value of `--set {text}` is not valid YAML: {error}") from error
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return tree


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`; mappings are merged, everything else is replaced."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def _unknown_keys(kind: type, tree: Mapping[str, Any], where: str) -> typing.Iterator[str]:
    hints = typing.get_type_hints(kind)
    for key, value in tree.items():
        if key not in hints:
            place = f" in `{where.rstrip('.')}`" if where else ""
            yield f"unknown key `{key}`{place}{did_you_mean(str(key), hints)}"
            continue
        inner = _dataclass_in(hints[key])
        if inner is not None and isinstance(value, Mapping):
            yield from _unknown_keys(inner, value, f"{where}{key}.")


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that a field holds, also in `X | None`."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint
    for argument in typing.get_args(hint):
        if dataclasses.is_dataclass(argument) and isinstance(argument, type):
            return argument
    return None


def _describe(item: Mapping[str, Any], where: str) -> str:
    """One pydantic error as a sentence: where, what was got, what is allowed."""
    key = where + ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"`{key}` is {item['input']!r}, but must be {message}."
