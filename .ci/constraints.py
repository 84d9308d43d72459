"""Write the constraints for everything that is installed after torch.

Usage: python .ci/constraints.py constraints.txt .venv/constraints.txt

torch and what it brought with it (sympy, setuptools, …) are pinned as installed, so that no later package replaces the
build that was chosen; the rest is pinned as constraints.txt says. With the default build the two agree.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def canonical(name: str) -> str:
    """A project name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_with(name: str) -> dict[str, str]:
    """Name and version of a package and of everything installed that it requires, directly or not."""
    found: dict[str, str] = {}
    queue = [canonical(name)]
    while queue:
        package = queue.pop()
        if package in found:
            continue
        try:
            here = distribution(package)
        except PackageNotFoundError:  # wanted by another platform or by an extra
            continue
        found[package] = here.version
        for requirement in here.requires or []:
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            if match and "extra ==" not in requirement:
                queue.append(canonical(match.group()))
    return found


def main() -> None:
    """Read the first file, write the second."""
    source, target = map(Path, sys.argv[1:3])
    pins = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line:
            name, version = line.split("==")
            pins[canonical(name)] = version
    pins |= installed_with("torch")
    target.write_text("".join(f"{name}=={version}\n" for name, version in sorted(pins.items())), encoding="utf-8")


if __name__ == "__main__":
    main()
