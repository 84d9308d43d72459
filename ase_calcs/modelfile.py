"""Model files: one `*.safetensors` with a JSON header, and no pickle anywhere on the loading path.

The header holds the format version, architecture, hyper-parameters, elements, cutoff, units, dtype and `ModelHeader`.
Old files are brought up to date by a chain of `upgrade_vN_to_vN+1` functions; golden files of every version stay in
``tests/golden``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from .allegro import Allegro
from .errors import InputError, ModelFileError, did_you_mean
from .jumps import EGNNJump, JumpNetwork, PaiNNJump, TransformerJump
from .painn import PaiNN
from .potential import ModelHeader, Potential
from .proteins.model import CoarseGrainedModel
from .proteins.split import EnergyEntropy

FORMAT_VERSION = 1
HEADER_KEY = "distillase"
ARCHITECTURES: dict[str, Callable[..., Potential]] = {
    kind.architecture: kind for kind in (PaiNN, Allegro, EnergyEntropy)
}
JUMPS: dict[str, Callable[..., JumpNetwork]] = {
    kind.architecture: kind for kind in (PaiNNJump, EGNNJump, TransformerJump)
}
COARSE: dict[str, Callable[..., CoarseGrainedModel]] = {CoarseGrainedModel.architecture: CoarseGrainedModel}
# What a file can hold, and who takes it.
KINDS: tuple[tuple[Mapping[str, Callable[..., Any]], str], ...] = (
    (ARCHITECTURES, "a potential: give it to `PotentialCalculator`"),
    (JUMPS, "a jump network: give it to `LearnedJump`"),
    (COARSE, "a coarse-grained force field: give it to `CoarseGrainedCalculator`"),
)
UNITS = {"energy": "eV", "length": "Å", "charge": "e"}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# upgrade_vN_to_vN+1(header, tensors) → (header, tensors), keyed by N.
UPGRADES: dict[int, Callable[[dict, dict], tuple[dict, dict]]] = {}


def build_potential(
    architecture: str, elements: tuple[int, ...], hyperparameters: dict[str, Any], *, dtype: torch.dtype
) -> Potential:
    """A network with fresh weights. Raises InputError for an unknown architecture or hyper-parameter."""
    return _build(ARCHITECTURES, architecture, elements, hyperparameters, dtype)


def build_jump(
    architecture: str, elements: tuple[int, ...], hyperparameters: dict[str, Any], *, dtype: torch.dtype
) -> JumpNetwork:
    """A jump network with fresh weights; errors as of `build_potential`."""
    return _build(JUMPS, architecture, elements, hyperparameters, dtype)


def _build(
    known: Mapping[str, Callable[..., Any]],
    architecture: str,
    elements: tuple[int, ...],
    hyperparameters: dict[str, Any],
    dtype: torch.dtype,
) -> Any:
    if architecture not in known:
        raise InputError(f"Unknown architecture `{architecture}`{did_you_mean(architecture, known)}")
    try:
        return known[architecture](elements, **hyperparameters, dtype=dtype)
    except TypeError as error:
        raise InputError(f"The hyper-parameters of `{architecture}` do not fit: {error}.") from error


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def save_model(
    path: str | Path, potential: Potential | JumpNetwork | CoarseGrainedModel, header: ModelHeader | None = None
) -> Path:
    """Write a model file atomically (temporary name, fsync, rename); returns its path.

    `header` defaults to the potential's own.
    """
    path = Path(path)
    header = potential.header if header is None else header
    meta = {
        "format_version": FORMAT_VERSION,
        "architecture": potential.architecture,
        "hyperparameters": potential.hyperparameters,
        "elements": list(potential.elements),
        "cutoff": potential.cutoff,
        "units": UNITS,
        "dtype": dtype_name(potential.dtype),
        **dataclasses.asdict(header),
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in potential.state_dict().items()}
    data = to_bytes(tensors, metadata={HEADER_KEY: json.dumps(meta, sort_keys=True)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def read_header(path: str | Path) -> dict[str, Any]:
    """The JSON header of a model file as it stands. Raises ModelFileError where there is none."""
    return _read(Path(path), tensors=False)[0]


def load_model(
    path: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu"
) -> Potential:
    """Load a potential, ready for prediction (``eval`` mode, parameters frozen).

    Parameters
    ----------
    path
        A file written by `save_model`.
    dtype
        ``float32``, ``float64`` or None for the file's own.
    device
        Where to put it.

    Raises
    ------
    ModelFileError
        Not a model file, damaged, or of a newer format.
    """
    return _load(Path(path), ARCHITECTURES, dtype, device)


def load_jump(
    path: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu"
) -> JumpNetwork:
    """Load a jump network; arguments and errors are those of `load_model`."""
    return _load(Path(path), JUMPS, dtype, device)


def load_coarse_grained(
    path: str | Path, *, dtype: torch.dtype | str | None = None, device: torch.device | str = "cpu"
) -> CoarseGrainedModel:
    """Load a coarse-grained force field; arguments and errors are those of `load_model`."""
    return _load(Path(path), COARSE, dtype, device)


def _load(
    path: Path,
    known: Mapping[str, Callable[..., Any]],
    dtype: torch.dtype | str | None,
    device: torch.device | str,
) -> Any:
    header, tensors = _read(path, tensors=True)
    header, tensors = _upgrade(path, header, tensors)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"Unknown dtype `{dtype}`{did_you_mean(dtype, DTYPES)}")
        dtype = DTYPES[dtype]
    for kind, other in KINDS:
        if header.get("architecture") in kind and kind is not known:
            raise ModelFileError(f"{path} holds {other} (architecture `{header['architecture']}`).")
    try:
        network = _build(
            known,
            header["architecture"],
            tuple(header["elements"]),
            header["hyperparameters"],
            dtype or DTYPES[header["dtype"]],
        )
        network.load_state_dict(tensors)
        network.header = _model_header(header)
    except (InputError, KeyError, RuntimeError, TypeError) as error:
        raise ModelFileError(
            f"The model file {path} does not fit this version of distillase: {error}. Load it with the version that "
            "wrote it, or train it again."
        ) from error
    return network.to(device).eval().requires_grad_(False)


def model_hash(path: str | Path) -> str:
    """Hash of a model file's bytes (32 hex digits); names caches that belong to it."""
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()


def _model_header(header: dict[str, Any]) -> ModelHeader:
    values = {field.name: header[field.name] for field in dataclasses.fields(ModelHeader)}
    values["charges"] = tuple(values["charges"])
    values["multiplicities"] = tuple(values["multiplicities"])
    return ModelHeader(**values)


def _read(path: Path, *, tensors: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise ModelFileError(f"There is no model file at {path}. Give the path of a `model.safetensors`.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER_KEY not in metadata:
                raise ModelFileError(
                    f"{path} is a safetensors file, but not one that distillase wrote (no `{HEADER_KEY}` header). "
                    "Give the path of a `model.safetensors` that `distillase train` or `distil` made."
                )
            header = json.loads(metadata[HEADER_KEY])
            values = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise ModelFileError(
            f"{path} could not be read as a model file: {error}. It is damaged or of another kind; model files are "
            "written by `distillase train` and end in .safetensors."
        ) from error
    return header, values


def _upgrade(path: Path, header: dict, tensors: dict) -> tuple[dict, dict]:
    version = header.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ModelFileError(f"The header of {path} has no valid format version (got {version!r}); it is damaged.")
    if version > FORMAT_VERSION:
        raise ModelFileError(
            f"The model file {path} has format {version}, and this version of distillase reads formats up to "
            f"{FORMAT_VERSION}. Upgrade it: pip install --upgrade distillase."
        )
    for step in range(version, FORMAT_VERSION):
        header, tensors = UPGRADES[step](header, tensors)
    return header, tensors
