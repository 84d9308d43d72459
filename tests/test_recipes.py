"""Recipes: keys are checked, values have types, and what is written can be run again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from distillase.ase_calcs.errors import InputError
from distillase.launch.config import build, dump_recipe, flatten, load_recipe, recipe_names, to_plain


def test_the_recipes_of_the_readme_are_there() -> None:
    assert {"default", "quickstart", "ethanol", "aspirin"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_being_written(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    path = tmp_path / "config.yaml"
    path.write_text(dump_recipe(recipe, "two\nlines"), encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", recipe_names())
def test_what_is_written_is_complete(name: str) -> None:
    """Every field of every section is in config.yaml, so a later change of a default does not change an old run."""
    recipe = load_recipe(name)
    written = yaml.safe_load(dump_recipe(recipe))
    for section in dataclasses.fields(recipe):
        value = getattr(recipe, section.name)
        if dataclasses.is_dataclass(value):
            assert set(written[section.name]) == {field.name for field in dataclasses.fields(value)}


def test_an_unknown_key_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(InputError, match=r"unknown key `cutof` in `model`; did you mean `cutoff`\?"):
        load_recipe("default", ["model.cutof=5"])
    with pytest.raises(InputError, match=r"unknown key `samplign`; did you mean `sampling`\?"):
        load_recipe("default", ["samplign.conformers=5"])
    with pytest.raises(InputError, match=r"in `sampling.md`; did you mean `timestep`\?"):
        load_recipe("default", ["sampling.md.timestp=5"])


def test_an_unknown_recipe_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(InputError, match=r"Unknown recipe `asprin`; did you mean `aspirin`\?"):
        load_recipe("asprin")
    with pytest.raises(InputError, match=r"no recipe file nowhere.yaml"):
        load_recipe("nowhere.yaml")


def test_a_value_of_the_wrong_type_names_its_key_and_what_is_allowed() -> None:
    with pytest.raises(InputError, match=r"`sampling.conformers` is 'many', but must be a valid integer"):
        load_recipe("default", ["sampling.conformers=many"])
    with pytest.raises(InputError, match=r"sampling.md.surface"):
        load_recipe("default", ["sampling.md.surface=uff"])
    with pytest.raises(InputError, match=r"sampling.*greater|sampling.*whole number"):
        load_recipe("default", ["sampling.conformers=-1"])
    with pytest.raises(InputError, match=r"`sampling`"):
        load_recipe("default", ["sampling=3"])


def test_yaml_reads_1e_3_as_a_string_and_we_as_a_number() -> None:
    assert load_recipe("default", ["sampling.rattle_sigma=1e-3"]).sampling.rattle_sigma == 1e-3


def test_on_and_off_are_words_and_true_and_false_are_not() -> None:
    assert load_recipe("default", ["training.compile=off"]).training.compile == "off"
    assert load_recipe("default", ["training.compile=on"]).training.compile == "on"
    assert load_recipe("default", ["training.tensorboard=false"]).training.tensorboard is False


def test_later_settings_win_and_leave_the_rest_alone() -> None:
    before = flatten(to_plain(load_recipe("default")))
    after = flatten(to_plain(load_recipe("default", ["sampling.md.stride=3", "sampling.md.stride=7"])))
    assert {key for key in before if before[key] != after[key]} == {"sampling.md.stride"}
    assert after["sampling.md.stride"] == 7


@pytest.mark.parametrize("setting", ["sampling.md.stride", "=3", "seed=[1"])
def test_a_setting_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(InputError, match="--set"):
        load_recipe("default", [setting])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "3\n"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        load_recipe(path)


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner | None = None
    names: tuple[str, ...] = ()


def test_keys_of_an_optional_section_are_checked_too() -> None:
    assert build(Outer, {"inner": {"width": 2}, "names": ["a"]}) == Outer(Inner(2), ("a",))
    assert build(Outer, {"inner": None}) == Outer()
    with pytest.raises(InputError, match="did you mean `width`"):
        build(Outer, {"inner": {"widht": 2}})
