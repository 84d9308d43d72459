"""`torchrun … -m distillase.launch.train runs/ethanol/config.yaml`: train in the folder of a recipe, on its dataset.

Short for ``distillase train runs/ethanol/dataset.h5 --recipe runs/ethanol/config.yaml --out runs/ethanol`` with the
same options, for schedulers that start a module in many processes.
"""

import sys
from pathlib import Path

from .cli import main


def arguments(words: list[str]) -> list[str]:
    """Those of `distillase train`, from a recipe and further options."""
    if not words or words[0].startswith("-"):
        return ["train", *(words or ["--help"])]
    folder = Path(words[0]).parent
    return ["train", str(folder / "dataset.h5"), "--recipe", words[0], "--out", str(folder), *words[1:]]


if __name__ == "__main__":
    sys.exit(main(arguments(sys.argv[1:])))
