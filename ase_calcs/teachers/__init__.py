"""Teachers: the expensive calculators that label structures, made by name from one registry.

Nothing here imports torch, so a process that only labels stays small. The packages behind the teachers (tblite, RDKit,
PySCF, OpenMM) are imported when a teacher is made.
"""

from .registry import (
    TeacherSpec,
    check_electron_count,
    make_teacher,
    parse_teacher,
    teacher_files,
    teacher_names,
    teacher_settings,
    teacher_version,
)

__all__ = [
    "TeacherSpec",
    "check_electron_count",
    "make_teacher",
    "parse_teacher",
    "teacher_files",
    "teacher_names",
    "teacher_settings",
    "teacher_version",
]
