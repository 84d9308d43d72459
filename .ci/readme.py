"""Run every command of README.md in order, and its Python blocks as scripts.

Usage: .venv/bin/python .ci/readme.py

Only fenced blocks marked ```bash and ```python are commands; they run exactly as written in the root of the
repository, except that lines beginning with `git clone`, `cd`, `pip install` or `make test` (which .ci/run has run)
are passed over. A block preceded by the comment <!-- long: … --> is not run here; the comment says
where it is. `distillase` and `python` are those of `.venv`. The folders that the commands write, runs/quickstart and
runs/small, are removed first: what an older version made there would be refused.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIP = ("git clone", "cd ", "pip install", "make test")  # `make test` has just been run by .ci/run
BLOCK = re.compile(r"(?P<mark><!-- long:[^>]*-->\n)?```(?P<kind>bash|python)\n(?P<body>.*?)```", re.DOTALL)


def commands(text: str) -> list[tuple[str, str]]:
    """(kind, command) for every command that is run; a trailing backslash joins lines, `#` begins a comment."""
    found = []
    for match in BLOCK.finditer(text):
        if match["mark"]:
            continue
        if match["kind"] == "python":
            found.append(("python", match["body"]))
            continue
        for line in match["body"].replace("\\\n", " ").splitlines():
            line = re.sub(r"\s+#.*$|^#.*$", "", line).strip()
            if line and not line.startswith(SKIP):
                found.append(("bash", line))
    return found


def main() -> int:
    """Run them; returns the number that failed."""
    python = ROOT / ".venv/bin/python"
    failed = 0
    for folder in ("quickstart", "small"):
        shutil.rmtree(ROOT / "runs" / folder, ignore_errors=True)
    for kind, command in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        print(f"README: {command if kind == 'bash' else 'the Python block'}", flush=True)
        start = time.monotonic()
        if kind == "python":
            done = subprocess.run([str(python), "-c", command], cwd=ROOT)
        else:
            # Shell functions and not PATH: the installed script's first line breaks where the path has a space.
            prelude = 'distillase() { "$PY" -m distillase.launch "$@"; }; python() { "$PY" "$@"; }; '
            environment = {**os.environ, "PY": str(python)}
            done = subprocess.run(["bash", "-ec", prelude + command], cwd=ROOT, env=environment)
        print(f"README: exit code {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main()))
