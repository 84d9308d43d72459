"""What stands between schnetpack 2.1.1 and a current torch, mended from outside."""

from __future__ import annotations

import logging
import os
import typing
from types import ModuleType


def import_schnetpack() -> ModuleType:
    """schnetpack, imported under a torch that is newer than it."""
    import torch.utils.data.dataloader as dataloader

    if not hasattr(dataloader, "T_co"):  # imported by schnetpack and gone from torch
        dataloader.T_co = typing.TypeVar("T_co", covariant=True)
    # schnetpack keeps models as whole pickled objects, which torch.load has refused since 2.6 unless told otherwise.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    import schnetpack

    logging.getLogger("schnetpack").setLevel(logging.WARNING)
    return schnetpack
