"""What a user may set about labelling, what comes back, and whose word a label is."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ...ase_calcs.errors import InputError, check_at_least, check_positive
from ...ase_calcs.teachers import parse_teacher, teacher_settings, teacher_version


@dataclass(frozen=True)
class TlsConfig:
    """Files for a scheduler that speaks TLS; without them dask's own configuration (`distributed.comm.tls`) holds.

    Attributes
    ----------
    ca
        Certificates that the scheduler's must be signed by, PEM.
    cert, key
        This client's certificate and its key, PEM.
    """

    ca: str = ""
    cert: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        given = [name for name in ("ca", "cert", "key") if getattr(self, name)]
        if given and len(given) < 3:
            raise InputError(f"`tls` has {' and '.join(given)} only; give `ca`, `cert` and `key`, or none of them.")


@dataclass(frozen=True)
class LabelConfig:
    """How structures are labelled and which are refused.

    Attributes
    ----------
    workers
        Single-threaded worker processes; 0 is one per core that this process may use. With ``scheduler: slurm`` as many
        are asked for, and 0 is not allowed. Ignored with a `scheduler` address, whose workers are used as they come and
        go.
    max_force
        eV/Å. A structure with a longer force on any atom is refused (after it was labelled; a later run with a higher
        ceiling takes it without calling the teacher again).
    min_distance
        As a fraction of the sum of the two covalent radii; a structure with two atoms closer than that is refused
        before the teacher sees it.
    timeout_s
        Seconds a teacher may take for one structure. A teacher that takes longer, even one that hangs in compiled code,
        is killed, and the structure refused. It is noticed after between 1 and 1.25 times this long.
    batch_seconds
        A worker writes its labels at least this often, in seconds of work: what a power cut can cost each worker.
    crash_retries
        How often a structure whose worker died is tried again, alone, before it is refused.
    retry_refused
        Ask the teacher again about structures that it refused in an earlier run in the same folder.
    calculator
        ``"reused"``: one calculator for all structures of one charge and multiplicity, ``reset()`` before each one.
        ``"fresh"``: a new calculator for every structure, for one that remembers the last structure through a reset.
        The built-in teachers remember nothing.
    scheduler
        ``"local"``: worker processes on this machine. Else the address of a dask scheduler, ``"tcp://host:8786"``,
        whose workers run with one thread each and see the output folder; ``"tls://host:8786"`` for one that wants
        certificates. ``"slurm"``: jobs of workers under SLURM, through dask-jobqueue.
    tls
        Certificates for a ``tls://`` scheduler; no other uses them.
    slurm
        Options of `dask_jobqueue.SLURMCluster` for ``scheduler: slurm``: ``cores`` and ``memory`` of a job, ``queue``,
        ``account``, ``walltime``, ``job_extra_directives``, …; what is not given comes from dask's configuration.
    """

    workers: int = 0
    max_force: float = 100.0
    min_distance: float = 0.5
    timeout_s: float = 600.0
    batch_seconds: float = 1.0
    crash_retries: int = 2
    retry_refused: bool = False
    calculator: Literal["reused", "fresh"] = "reused"
    scheduler: str = "local"
    tls: TlsConfig = field(default_factory=TlsConfig)
    slurm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_force", "timeout_s", "batch_seconds"):
            check_positive(name, getattr(self, name))
        for name in ("workers", "crash_retries", "min_distance"):
            check_at_least(name, getattr(self, name), 0)
        if self.calculator not in ("reused", "fresh"):
            raise InputError(f"`calculator` is `{self.calculator}`; allowed are `reused` and `fresh`.")
        if self.scheduler not in ("local", "slurm") and "://" not in self.scheduler:
            raise InputError(
                f"`scheduler` is `{self.scheduler}`; write `local`, `slurm` or an address like `tcp://host:8786`."
            )
        if self.scheduler == "slurm" and self.workers == 0:
            raise InputError("With `scheduler: slurm` say how many `workers` to ask for.")


@dataclass(frozen=True)
class LabelResult:
    """What became of the structures.

    Attributes
    ----------
    dataset
        Path of the assembled ``dataset.h5``.
    refused
        (index in the input, key, reason) of every structure that is not in the dataset, in the input's order.
    n_labelled
        Structures the teacher was asked about in this run and answered.
    n_reused
        Structures whose label was already there from an earlier run.
    seconds
        Wall-clock time without start-up: hashing, labelling, assembly.
    startup_seconds
        Until every worker had imported and made its teacher; 0 where a running pool was given or none was needed.
    assembly_seconds
        The part of `seconds` that went into putting the dataset file together.
    """

    dataset: Path
    refused: list[tuple[int, str, str]]
    n_labelled: int
    n_reused: int
    seconds: float
    startup_seconds: float
    assembly_seconds: float


@lru_cache
def _version(name: str) -> str:
    return teacher_version(name)  # half a second for a `module:Class`: it reads every installed package's file list


@dataclass(frozen=True)
class TeacherStamp:
    """Whose word a label is: part files carry it, and a folder holds the labels of one teacher only.

    Attributes
    ----------
    name
        Canonical name with options, e.g. ``"gfn2-xtb?accuracy=0.01"``.
    version
        Package and version, e.g. ``"tblite 0.7.0"``.
    settings
        Every option with defaults filled in, as JSON.
    """

    name: str
    version: str
    settings: str

    @classmethod
    def of(cls, teacher: str) -> TeacherStamp:
        """The stamp of a teacher as this process would make it.

        Raises
        ------
        InputError
            Unknown teacher or option, or one whose labels would depend on their order (``guess='warm'``,
            ``topology='first'``).
        """
        spec = parse_teacher(teacher)
        settings = teacher_settings(teacher)
        if spec.builtin and settings.get("guess", "cold") != "cold":
            raise InputError(
                f"Teacher `{teacher}`: with a warm SCF guess a label depends on the structure before it, so that the "
                "same structures in another order get other forces. Leave out `guess` to label."
            )
        if spec.builtin and settings.get("topology", "each") != "each":
            raise InputError(
                f"Teacher `{teacher}`: with the bonds of the first structure a label depends on which structure that "
                "was. Leave out `topology` to label."
            )
        if not spec.builtin:
            # The version of a plain module is its __version__, which is known only once it is imported.
            importlib.import_module(spec.name.partition(":")[0])
        return cls(str(spec), _version(spec.name), json.dumps(settings, sort_keys=True))

    def describe(self) -> str:
        """`name (version)`, for messages."""
        return f"`{self.name}` ({self.version})"

    def to_json(self) -> dict[str, Any]:
        """As it is written into part files."""
        return {"name": self.name, "version": self.version, "settings": self.settings}
