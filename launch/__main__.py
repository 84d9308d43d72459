"""`python -m distillase.launch` is `distillase`, for places where the installed script cannot be started."""

import sys

from .cli import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
