"""A potential as one ahead-of-time compiled function of any number of atoms and edges.

Energy and forces are traced together with `make_fx` into a graph without autograd, exported with dynamic sizes, and
compiled by AOTInductor into a package that holds machine code and weights and loads in milliseconds. The package lies
beside the model file and is named by what it depends on: weights, the code of the network, dtype, torch, processor.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import layers
from .errors import InputError
from .graph import AtomGraph
from .modelfile import dtype_name
from .potential import (
    AtomicTerms,
    Potential,
    PotentialOutput,
    conserve_charge,
    edge_forces,
    edge_stress,
    molecular_dipole,
)

# Sizes for tracing. They differ from each other and from every width in use: equal sizes become one symbol.
STRUCTURES, ATOMS, EDGES = 7, 211, 1009
Kernel = Callable[..., Sequence[Tensor]]


def find_compiler() -> str | None:
    """Path of a C++ compiler, or None."""
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    return None


def let_torch_link() -> None:
    """Make torch's compilers work where torch is installed in a path with a space.

    torch (2.13) does not quote the folder of its libraries when it calls the linker. Where that folder has a space in
    it, torch is given a link to it that has none, until this process ends; elsewhere nothing is done.
    """
    from torch.utils import cpp_extension

    libraries = str(cpp_extension.TORCH_LIB_PATH)
    if not any(c.isspace() for c in libraries):
        return
    place = next((p for p in (tempfile.gettempdir(), str(Path.home())) if not any(c.isspace() for c in p)), None)
    folder = tempfile.mkdtemp(prefix="distillase-", dir=place)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = Path(folder) / "lib"
    link.symlink_to(libraries, target_is_directory=True)
    cpp_extension.TORCH_LIB_PATH = str(link)


class CompiledPotential:
    """Drop-in for ``potential(graph, properties)`` in prediction, without gradients.

    Graphs of one atom or without edges go through the network as it stands: sizes 0 and 1 were not traced.

    Parameters
    ----------
    potential
        On the CPU.
    model
        The file it was loaded from; the package is kept beside it (or, where that folder cannot be written to, in a
        temporary folder for this process). None: compiled for this process only.

    Attributes
    ----------
    package
        Path of the compiled package.

    Raises
    ------
    InputError
        No C++ compiler, or a potential on another device.
    """

    def __init__(self, potential: Potential, model: str | Path | None = None) -> None:
        if potential.device.type != "cpu":
            raise InputError(
                f"Compilation ahead of time works on the CPU for now; this potential is on {potential.device}. "
                "Use compile='off' there."
            )
        self.potential = potential
        self.package = self._find_or_compile(None if model is None else Path(model))
        self._kernel: Kernel = torch._inductor.aoti_load_package(str(self.package))

    def __call__(self, graph: AtomGraph, properties: Sequence[str] = ("energy", "forces")) -> PotentialOutput:
        """See `Potential.forward`; everything comes back detached."""
        if graph.numbers.shape[0] < 2 or graph.edges.shape[1] < 2:
            with torch.no_grad():
                return self.potential(graph, properties)
        species = self.potential.species_of_number[graph.numbers]
        energy, energies, forces, gradient, *extra = self._kernel(
            species,
            graph.system,
            graph.edges,
            graph.edge_shifts,
            graph.positions,
            graph.cell,
            graph.charge,
            graph.multiplicity,
        )
        stress = charges = dipole = None
        if "stress" in properties:
            stress = edge_stress(gradient, graph.edge_vectors(), graph)
        if extra:
            charges = conserve_charge(extra[0], graph)
            dipole = molecular_dipole(charges, extra[1], graph)
        return PotentialOutput(energy, energies, forces, stress, charges, dipole)

    # ------------------------------------------------------------------------------------------------- the package

    def _find_or_compile(self, model: Path | None) -> Path:
        if model is not None:
            beside = package_path(self.potential, model)
            if beside.is_file():
                return beside
            if os.access(model.parent, os.W_OK):
                temporary = beside.with_name(f".{os.getpid()}.{beside.name}")
                self._compile(temporary)
                temporary.replace(beside)
                return beside
        self._folder = tempfile.TemporaryDirectory(prefix="distillase-")
        package = Path(self._folder.name) / "potential.pt2"
        self._compile(package)
        return package

    def _compile(self, package: Path) -> None:
        if find_compiler() is None:
            raise InputError(
                "compile='on' needs a C++ compiler, and none was found (c++, g++, clang++). Install one, or use "
                "compile='auto' or 'off'."
            )
        from torch.fx.experimental.proxy_tensor import make_fx

        let_torch_link()
        example = _example(self.potential)
        graph = make_fx(
            lambda *inputs: self._functional(*inputs), tracing_mode="symbolic", _allow_non_fake_inputs=True
        )(*example)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        b, n, e = (torch.export.Dim(name, min=1, max=2**31 - 1) for name in ("structures", "atoms", "edges"))
        sizes: tuple[dict[int, Any], ...] = ({0: n}, {0: n}, {1: e}, {0: e}, {0: n}, {0: b}, {0: b}, {0: b})
        with torch.no_grad():
            exported = torch.export.export(graph, example, dynamic_shapes=(sizes,) if _packed(graph) else sizes)
            torch._inductor.aoti_compile_and_package(
                exported,
                package_path=str(package),
                # How many threads is decided when it runs, not where it was compiled.
                inductor_configs={"cpp.dynamic_threads": True},
            )

    def _functional(
        self,
        species: Tensor,
        system: Tensor,
        edges: Tensor,
        shifts: Tensor,
        positions: Tensor,
        cell: Tensor,
        charge: Tensor,
        multiplicity: Tensor,
    ) -> tuple[Tensor, ...]:
        """Tensors in, (energy, energies, forces, edge gradient[, charges, atomic dipoles]) out."""
        with torch.enable_grad():
            lattice = (shifts[:, :, None] * cell[system[edges[0]]]).sum(dim=1)
            vectors = (positions[edges[1]] - positions[edges[0]] + lattice).detach().requires_grad_()
            terms, gradient = self.potential.predict(
                species, system, edges, vectors, charge, multiplicity, derivatives=True, create_graph=False
            )
        if gradient is None:
            raise RuntimeError("derivatives were asked for")
        forces = edge_forces(gradient, edges, positions)
        energy = torch.zeros_like(charge, dtype=torch.float64).index_add(0, system, terms.energies)
        return (energy, terms.energies.detach(), forces, gradient, *_extra(terms))


def package_path(potential: Potential, model: str | Path) -> Path:
    """Where the compiled package of a model file lies, for this potential's dtype, this torch and this processor."""
    model = Path(model)
    return model.with_name(f"{model.stem}.{_key(potential)}.pt2")


def _extra(terms: AtomicTerms) -> tuple[Tensor, ...]:
    if terms.charges is None or terms.dipoles is None:
        return ()
    return terms.charges.detach(), terms.dipoles.detach()


def _packed(graph: torch.fx.GraphModule) -> bool:
    """Whether the traced module takes its inputs as ``*args`` (export then wants one tuple of sizes)."""
    import inspect

    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(graph.forward).parameters.values())


def _example(potential: Potential) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    dtype = potential.dtype
    return (
        torch.arange(ATOMS) % len(potential.elements),
        torch.arange(ATOMS) % STRUCTURES,
        torch.randint(ATOMS, (2, EDGES), generator=generator),
        torch.zeros(EDGES, 3, dtype=dtype),
        5.0 * torch.rand(ATOMS, 3, generator=generator, dtype=dtype),
        torch.zeros(STRUCTURES, 3, 3, dtype=dtype),
        torch.zeros(STRUCTURES, dtype=dtype),
        torch.ones(STRUCTURES, dtype=dtype),
    )


def _key(potential: Potential) -> str:
    """Hash of all that the machine code depends on: weights, code, hyper-parameters, dtype, torch, processor."""
    digest = hashlib.blake2b(digest_size=8)
    for module in (layers.__name__, Potential.__module__, type(potential).__module__, __name__):
        source = getattr(sys.modules[module], "__file__", None)
        digest.update(Path(source).read_bytes() if source else module.encode())
    for name, tensor in sorted(potential.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else b"")
        digest.update(repr(tensor.item()).encode() if tensor.ndim == 0 else b"")
    facts = (
        potential.architecture,
        sorted(potential.hyperparameters.items()),
        potential.elements,
        dtype_name(potential.dtype),
        torch.__version__,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
    )
    digest.update(repr(facts).encode())
    return digest.hexdigest()
