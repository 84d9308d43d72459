"""`PotentialCalculator`: a distilled potential as an ASE calculator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from .electronic_state import check_electronic_state, electronic_state
from .errors import DistillaseError, InputError, StructureError, did_you_mean
from .evaluation import State, as_results, few_threads, one_of_batch, possible_properties, state_key, state_of
from .graph import AtomGraph, batch_graphs
from .modelfile import dtype_name
from .neighbors import EdgeArrays, SkinNeighborList, graph_from_arrays, moved_graph
from .network import CompileMode, choose_network, predicts_charges, prepare_potential
from .potential import Potential, PotentialOutput

# Barostats use stress at every second or third geometry of theirs.
_PATIENCE = 4
_SETTABLE = ("charge", "multiplicity", "skin")


class _Static(NamedTuple):
    key: tuple  # `State.key` without the positions
    edges: EdgeArrays
    graph: AtomGraph


class PotentialCalculator(Calculator):
    """Energy, forces, stress, and charges and dipole where the model has them, from a `Potential`.

    >>> atoms.calc = PotentialCalculator("runs/aspirin/model.safetensors")

    Total charge and multiplicity come from the constructor, else from ``atoms.info["charge"]`` and
    ``atoms.info["multiplicity"]``, else from the sums of initial charges and magnetic moments
    (multiplicity = |Σm| + 1), else they are 0 and 1. Sources that contradict each other are an error, and so is a state
    that the training data did not have. Both are part of what results depend on: changing them recalculates.

    Results are recalculated when positions, cell, numbers, pbc, charge or multiplicity differ at all. Forces and stress
    are calculated when asked for; a property that was asked for is calculated along at the next few geometries, so
    that a barostat, which asks for forces first and for stress later, pays for one evaluation.

    Parameters
    ----------
    model
        Path of a model file, or a `Potential`, which is copied (training it further does not change the calculator).
    device
        ``"cpu"``, ``"cuda"``, …
    dtype
        ``"float32"``, ``"float64"`` or None for the model's own.
    charge, multiplicity
        Total charge in e and spin multiplicity 2S+1 of every structure, or None to read them from the atoms.
    compile
        ``"off"``: the network as it stands. ``"on"``: compiled ahead of time, several times faster on small molecules;
        the first use compiles for one to two minutes, needs a C++ compiler, and leaves a package beside the model
        file that later uses load in milliseconds. ``"auto"``: that package if it is there, else the network as it
        stands. `compiled` says which it became.
    skin
        Å; the neighbour list is kept until an edge could be missed (`SkinNeighborList`).

    Attributes
    ----------
    potential
        The network in use.
    elements, cutoff, dtype
        Its atomic numbers, cutoff in Å, and floating-point type.
    neighbors
        The `SkinNeighborList`; ``neighbors.n_builds`` of ``neighbors.n_updates`` calls remade the list.

    Raises
    ------
    ModelFileError
        Wrong, damaged or newer model file.
    InputError
        An unknown device, dtype, compile mode or parameter.
    StructureError
        From a calculation: no atoms, NaN positions, an element, charge or multiplicity that was not in the training
        data, periodic boundaries without a cell, sources of the charge that contradict each other.
    """

    def __init__(
        self,
        model: str | Path | Potential,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        charge: int | None = None,
        multiplicity: int | None = None,
        compile: CompileMode = "auto",
        skin: float = 0.5,
    ) -> None:
        self._state: State | None = None
        self.potential = prepare_potential(model, device, dtype)
        self.neighbors = SkinNeighborList(self.potential.cutoff, skin)
        self.results: dict[str, Any] = {}
        self._static: _Static | None = None  # of the last graph; what has not changed is used again
        self._wanted: dict[str, int] = {}  # property → for how many more geometries it is calculated along
        if compile not in get_args(CompileMode):
            raise InputError(f"compile is {compile!r}; allowed are 'off', 'auto' and 'on'.")
        self._compile: CompileMode = compile
        self._model = Path(model) if isinstance(model, str | Path) else None
        self._network = choose_network(self.potential, self._model, compile)
        self.implemented_properties = ["energy", "free_energy", "forces", "energies", "stress"]
        if predicts_charges(self.potential):
            self.implemented_properties += ["charges", "dipole"]
        super().__init__()
        self.parameters.update(
            model=str(model) if isinstance(model, str | Path) else self.potential.architecture,
            device=str(device),
            dtype=dtype_name(self.potential.dtype),
            compile=compile,
        )
        self.set(charge=charge, multiplicity=multiplicity, skin=skin)

    # What the model is ---------------------------------------------------------------------------------------------

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers the model was trained on."""
        return self.potential.elements

    @property
    def cutoff(self) -> float:
        """Å."""
        return self.potential.cutoff

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network; energies are summed in float64."""
        return self.potential.dtype

    @property
    def compiled(self) -> bool:
        """Whether a compiled network is in use."""
        return self._network is not self.potential

    # ASE's protocol ------------------------------------------------------------------------------------------------

    @property
    def atoms(self) -> Atoms | None:
        """A copy of the atoms of the last calculation, with their charge and multiplicity in ``info``."""
        # ASE keeps `atoms.copy()`, which costs as much as a small network; arrays are kept, and atoms made when asked.
        if self._state is None:
            return None
        numbers, positions, cell, pbc, charge, multiplicity, _ = self._state
        info = {"charge": charge, "multiplicity": multiplicity}
        return Atoms(numbers, positions, cell=cell, pbc=pbc, info=info)

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        self._state = None if atoms is None else state_of(atoms, self._electronic_state(atoms))

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Change ``charge``, ``multiplicity`` or ``skin``; results are dropped if anything changed."""
        for name in kwargs:
            if name not in _SETTABLE:
                raise InputError(
                    f"`{name}` cannot be set{did_you_mean(name, _SETTABLE)} Make a new calculator for anything else."
                )
        for name in ("charge", "multiplicity"):
            value = kwargs.get(name)
            if value is not None and (value != int(value) or (name == "multiplicity" and value < 1)):
                raise InputError(f"{name} is {value!r}; a whole number{' of at least 1' * (name[0] == 'm')} is needed.")
        changed = super().set(**kwargs)
        if "skin" in changed:
            self.neighbors = SkinNeighborList(self.potential.cutoff, changed["skin"])
        if changed:
            self.reset()
        return changed

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What changed since the last calculation, in ASE's words; compares exactly, whatever `tol`."""
        old = self._state
        if old is None:
            return list(all_changes)
        new = state_key(atoms, self._electronic_state(atoms))
        if new == old.key:
            return []
        names = ("positions", "numbers", "cell", "pbc", "initial_charges", "initial_magmoms")
        return [name for name, was, now in zip(names, old.key, new, strict=True) if was != now]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """One property, calculated if it must be; arrays are copies. See `ase.calculators.calculator.Calculator`."""
        if name not in self.implemented_properties:
            raise PropertyNotImplementedError(f"{name} is not among {', '.join(self.implemented_properties)}.")
        if atoms is not None and (changes := self.check_state(atoms)):
            self._wanted = {name: left - 1 for name, left in self._wanted.items() if left > 1}
            self.reset()
        else:
            changes = []
        if name not in self.results and not allow_calculation:
            return None
        self._wanted[name] = _PATIENCE
        if name not in self.results:
            if atoms is None:
                atoms = self.atoms
                if atoms is None:
                    raise StructureError("The calculator has not seen any atoms yet; pass them, or set atoms.calc.")
            self.calculate(atoms, [name], changes)
        result = self.results[name]
        return result.copy() if isinstance(result, np.ndarray) else result

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results`` for these atoms; see `ase.calculators.calculator.Calculator.calculate`."""
        if atoms is None:
            atoms = self.atoms
            if atoms is None:
                raise StructureError("The calculator has not seen any atoms yet; pass them, or set atoms.calc.")
        wanted: AbstractSet[str] = {*properties, *self._wanted}
        self._state, self.results = None, {}  # an error below must leave nothing behind
        state = state_of(atoms, self._electronic_state(atoms))
        wanted = possible_properties(wanted, set(properties), state)
        graph = self._graph(state)
        output = self._evaluate(graph, ("forces", "stress") if "stress" in wanted else tuple(wanted & {"forces"}))
        self.results = as_results(output, state, wanted)
        self._state = state

    # Many structures -----------------------------------------------------------------------------------------------

    def calculate_many(
        self,
        structures: Sequence[Atoms],
        properties: Sequence[str] = ("energy", "forces"),
        *,
        max_edges: int = 100_000,
        max_atoms: int = 10_000,
    ) -> list[dict[str, Any]]:
        """Properties of many structures, batched; equal to one calculation each, up to rounding.

        Parameters
        ----------
        structures
            Any sizes and cells, mixed.
        properties
            Names from `implemented_properties`.
        max_edges, max_atoms
            A batch is closed before it would exceed either, which bounds the memory: a float32 network of width F with
            L layers needs about 30·F·L bytes per edge. A single larger structure is a batch of its own.

        Returns
        -------
        list of dict
            One per structure, in order, with the properties asked for. `calc.results` is left alone.

        Raises
        ------
        StructureError
            As a single calculation, with the position of the structure in the list.
        PropertyNotImplementedError
            A property the model does not have, or stress without three cell vectors.
        """
        for name in properties:
            if name not in self.implemented_properties:
                raise PropertyNotImplementedError(f"{name} is not among {', '.join(self.implemented_properties)}.")
        derivatives = tuple({"forces", "stress"} & set(properties))
        done: list[dict[str, Any]] = []
        for states, graphs in self._batches(structures, set(properties), max_edges, max_atoms):
            output = self._evaluate(batch_graphs(graphs), derivatives)
            start = 0
            for number, state in enumerate(states):
                atoms = slice(start, start + len(state.numbers))
                start = atoms.stop
                results = as_results(one_of_batch(output, number, atoms), state, set(properties))
                done.append({name: results[name] for name in properties})
        return done

    def _batches(
        self, structures: Sequence[Atoms], wanted: AbstractSet[str], max_edges: int, max_atoms: int
    ) -> Iterator[tuple[list[State], list[AtomGraph]]]:
        states: list[State] = []
        graphs: list[AtomGraph] = []
        n_edges = n_atoms = 0
        for index, atoms in enumerate(structures):
            try:
                state = state_of(atoms, self._electronic_state(atoms))
                self._check(state)
                possible_properties(wanted, wanted, state)
                graph = graph_from_arrays(
                    *state[:4], self.cutoff, *state[4:6], dtype=self.dtype, device=self.potential.device
                )
            except DistillaseError as error:
                raise type(error)(f"Structure {index} of the list: {error}") from error
            edges = graph.edges.shape[1]
            if graphs and (n_edges + edges > max_edges or n_atoms + len(state.numbers) > max_atoms):
                yield states, graphs
                states, graphs, n_edges, n_atoms = [], [], 0, 0
            states.append(state)
            graphs.append(graph)
            n_edges += edges
            n_atoms += len(state.numbers)
        if graphs:
            yield states, graphs

    # From atoms to the network -------------------------------------------------------------------------------------

    def _electronic_state(self, atoms: Atoms) -> tuple[int, int]:
        return electronic_state(atoms, self.parameters["charge"], self.parameters["multiplicity"])

    def _check(self, state: State) -> None:
        if len(state.numbers) == 0:
            raise StructureError("There are no atoms to calculate.")
        self.potential.species(torch.as_tensor(state.numbers, device=self.potential.device))
        check_electronic_state(state.numbers, state.charge, state.multiplicity, self.potential.header)

    def _graph(self, state: State) -> AtomGraph:
        """The graph of one structure; what has not changed since the last call is not made again."""
        if len(state.numbers) == 0:
            raise StructureError("There are no atoms to calculate.")
        edges = self.neighbors.update(state.positions, state.cell, state.pbc)
        known = self._static
        if known is not None and known.key == state.key[1:]:
            graph = moved_graph(known.graph, state.centred(), None if edges is known.edges else edges)
        else:
            if known is None or (known.key[0], known.key[3:]) != (state.key[1], state.key[4:]):
                self._check(state)  # not for a cell that a barostat changed
            graph = graph_from_arrays(
                state.numbers,
                state.centred(),
                state.cell,
                state.pbc,
                self.cutoff,
                *state[4:6],
                dtype=self.dtype,
                device=self.potential.device,
                edges=edges,
            )
        self._static = _Static(state.key[1:], edges, graph)
        return graph

    def _evaluate(self, graph: AtomGraph, properties: Sequence[str]) -> PotentialOutput:
        """The network, eager or compiled; nothing else here knows which."""
        with torch.no_grad(), few_threads(graph.edges):
            return self._network(graph, properties)

    def __deepcopy__(self, memo: dict[int, Any]) -> PotentialCalculator:
        """A calculator of its own in all that changes; the frozen network is shared, which makes NEB images cheap."""
        memo[id(self.potential)] = self.potential
        memo[id(self._network)] = self._network
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: deepcopy(value, memo) for name, value in self.__dict__.items()})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_network"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Machine code cannot be pickled; it is loaded (or, for a model that has no file, compiled) again.
        self.__dict__.update(state)
        self._network = choose_network(self.potential, self._model, self._compile)
