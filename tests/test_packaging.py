"""The installed package is whole: every folder is listed, typed, and brings its data files."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("ase_calcs", "datasets", "training", "launch")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def python_packages() -> list[Path]:
    """Folders with Python files below the four, relative to the repository."""
    found = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    return sorted(path.relative_to(ROOT) for path in found)


def test_every_package_is_listed_and_no_other() -> None:
    wanted = {f"distillase.{'.'.join(path.parts)}" for path in python_packages()}
    assert set(SETUPTOOLS["packages"]) == wanted


def test_package_dirs_lead_to_the_folders() -> None:
    directories = SETUPTOOLS["package-dir"]
    for package in SETUPTOOLS["packages"]:
        top = ".".join(package.split(".")[:2])
        rest = package.removeprefix(top).strip(".").split(".")
        path = Path(directories.get(package, "/".join([directories[top], *filter(None, rest)])))
        assert (ROOT / path / "__init__.py").is_file(), f"{package} has no {path}/__init__.py"


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_typed(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()
    assert (resources.files(f"distillase.{folder}") / "py.typed").is_file()


def test_every_data_file_is_installed() -> None:
    """A file beside the code that is no code must match a package-data pattern of the package that holds it."""
    patterns = SETUPTOOLS["package-data"]
    packages = {path: f"distillase.{'.'.join(path.parts)}" for path in python_packages()}
    missing = []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            if path.is_dir() or path.suffix in (".py", ".pyc") or "__pycache__" in path.parts or path.suffix == ".md":
                continue
            owner = next(parent for parent in relative.parents if parent in packages)
            inside = relative.relative_to(owner).as_posix()
            globs = [*patterns.get("*", []), *patterns.get(packages[owner], [])]
            # setuptools' `*` does not cross a slash, fnmatch's does.
            if not any(fnmatch(inside, glob) and inside.count("/") == glob.count("/") for glob in globs):
                missing.append(str(relative))
    assert not missing, f"not in [tool.setuptools.package-data]: {missing}"


def test_constraints_pin_every_dependency() -> None:
    """`make` installs known versions: each requirement, of each extra that it uses, has a line in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    names = {canonical(name) for name in pins}
    project = PROJECT["project"]
    wanted = list(project["dependencies"])
    for extra in ("xtb", "train", "dask", "dft", "openmm", "xtb-python", "proteins", "allegro", "lammps", "dev"):
        wanted += project["optional-dependencies"][extra]
    requirements = {canonical(re.match(r"[\w.-]+", item).group()) for item in wanted}  # type: ignore[union-attr]
    assert requirements <= names, f"not pinned: {requirements - names}"
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values()), "a pin must hold on every machine"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(
        r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )  # SMILES look like links
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"({page.name})" not in index] == ["index.md"]


def test_licence_is_the_whole_apache_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
