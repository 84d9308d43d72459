"""Labelling: a teacher's word on every structure, across all cores, and never lost once written.

`label_structures` is the whole of it. See docs/labelling.md for what it guarantees and how.
"""

from .config import LabelConfig, LabelResult
from .guards import check_structures
from .parts import Ledger
from .pool import WorkerPool, worker_pool
from .run import label_structures

__all__ = ["LabelConfig", "LabelResult", "Ledger", "WorkerPool", "check_structures", "label_structures", "worker_pool"]
