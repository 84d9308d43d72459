"""The validation report: whether a student can be trusted, for a person who looks rather than reads.

Nothing heavier than numpy is imported until `write_report` is called.
"""

from .config import ReportConfig
from .write import write_report

__all__ = ["ReportConfig", "write_report"]
