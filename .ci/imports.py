"""Check that imports point one way: launch → training → datasets → ase_calcs.

Usage: python .ci/imports.py [repository]

Reads the source, so it also sees imports inside functions. Inside the four folders imports of one another are relative.
"""

import ast
import sys
from pathlib import Path

ORDER = ("ase_calcs", "datasets", "training", "launch")  # each may import those before it


def problems_in(path: Path, root: Path) -> list[str]:
    """One line per import of a file that points the wrong way or is not relative."""
    parts = path.relative_to(root).with_suffix("").parts
    package = parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        targets: list[tuple[str, ...]] = []
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            if node.level > len(package) + 1:
                found.append(f"{path}:{node.lineno}: the relative import leaves distillase")
                continue
            stem = above + tuple((node.module or "").split(".") if node.module else ())
            targets = [stem] if stem else [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if any(name.split(".")[0] == "distillase" for name in names):
                found.append(
                    f"{path}:{node.lineno}: imports inside distillase are relative (`from ..ase_calcs import …`)"
                )
        found += [
            f"{path}:{node.lineno}: {parts[0]} must not import {target[0]}"
            for target in targets
            if target[0] in ORDER and ORDER.index(target[0]) > ORDER.index(parts[0])
        ]
    return found


def check(root: Path) -> list[str]:
    """Problems in all four folders."""
    return [
        line for folder in ORDER for path in sorted((root / folder).rglob("*.py")) for line in problems_in(path, root)
    ]


if __name__ == "__main__":
    lines = check(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
    print("\n".join(lines) or f"imports point one way: {' → '.join(reversed(ORDER))}")
    sys.exit(bool(lines))
