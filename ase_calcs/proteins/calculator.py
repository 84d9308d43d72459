"""`CoarseGrainedCalculator`: a force field with one bead per residue as an ASE calculator."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from ..errors import InputError, StructureError
from ..evaluation import few_threads
from ..modelfile import load_coarse_grained
from .chains import Chains
from .model import BeadOutput, BeadTopology, CoarseGrainedModel, Part
from .simulate import recommended_timestep


class CoarseGrainedCalculator(Calculator):
    """Energy and forces of beads, with their components, from a prior and a network.

    >>> atoms = read_beads_pdb("1uao.pdb")
    >>> atoms.calc = CoarseGrainedCalculator("runs/chignolin/model.safetensors")

    Run it with ``Langevin(atoms, 10 * units.fs, temperature_K=300, friction=0.001 / units.fs, fixcm=False)``;
    `timestep` says which step suits these chains.

    Parameters
    ----------
    model
        A model file, a `CoarseGrainedModel`, which is copied, or several of them: a committee, whose mean is taken.
    part
        ``"hybrid"``, or ``"prior"`` or ``"network"`` alone.
    temperature_K
        At which forces are mean forces, for a model that knows temperatures; None: the one it was trained for.
    device
        ``"cpu"``, ``"cuda"``, …
    warn_above
        eV/Å; a committee whose members differ by more on some bead (standard deviation) gives a warning, once for each
        set of chains. None never warns.

    Attributes
    ----------
    models
        The force fields.

    Raises
    ------
    ModelFileError
        Wrong, damaged or newer model file.
    StructureError
        From a calculation: no beads, residues that were not in the training data, periodic boundaries, forces that
        are not finite.

    Beside ASE's properties, ``results`` has ``components`` (name → eV) and, for a committee, ``forces_std`` (N,) eV/Å.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]  # type: ignore[misc]

    def __init__(
        self,
        model: str | Path | CoarseGrainedModel | Sequence[str | Path | CoarseGrainedModel],
        *,
        part: Part = "hybrid",
        temperature_K: float | None = None,
        device: str | torch.device = "cpu",
        warn_above: float | None = 0.2,
    ) -> None:
        super().__init__()
        if part not in get_args(Part):
            raise InputError(f"part is {part!r}; allowed are {', '.join(map(repr, get_args(Part)))}.")
        several = model if isinstance(model, Sequence) and not isinstance(model, str | Path) else [model]
        self.models = [self._loaded(one, device) for one in several]
        if not self.models:
            raise InputError("There is no model: give a model file, or several for a committee.")
        if part == "network" and any(one.network is None for one in self.models):
            raise InputError("`part='network'`, but the model is a prior alone.")
        if len({one.network is None for one in self.models}) > 1:
            raise InputError("Some members of the committee have a network and others are a prior alone.")
        kelvins = {one.temperature for one in self.models}
        if len(kelvins) > 1:
            raise InputError(f"The members of a committee hold at one temperature; these are for {sorted(kelvins)} K.")
        other = temperature_K is not None and abs(temperature_K - self.models[0].temperature) > 1e-6
        if other and not all(one.knows_temperature for one in self.models):
            raise InputError(
                f"`temperature_K` is {temperature_K:g}, and this force field holds at {kelvins.pop():g} K alone. Train "
                "one with `network.energy_entropy=true` on frames of several temperatures."
            )
        self.part: Part = part
        self.temperature_K = temperature_K
        self.warn_above = warn_above
        self._key = b""
        self._topologies: list[BeadTopology] = []
        self._warned = False

    @staticmethod
    def _loaded(model: str | Path | CoarseGrainedModel, device: str | torch.device) -> CoarseGrainedModel:
        if isinstance(model, str | Path):
            return load_coarse_grained(model, device=device)
        if not isinstance(model, CoarseGrainedModel):
            raise InputError(f"model is a {type(model).__name__}; give a model file or a CoarseGrainedModel.")
        return deepcopy(model).to(device).eval()

    @property
    def temperature(self) -> float:
        """K, at which the forces are mean forces."""
        return self.models[0].temperature if self.temperature_K is None else self.temperature_K

    def timestep(self, atoms: Atoms) -> float:
        """A step that suits these chains, fs: a twelfth of the fastest bond's period."""
        return recommended_timestep(self.models[0], Chains.from_atoms(atoms))

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed, residue types and chains among it."""
        changed = super().check_state(atoms, tol)
        return changed if changed or self.atoms is None or _key(self.atoms) == _key(atoms) else ["numbers"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results`` for these beads; see `ase.calculators.calculator.Calculator.calculate`."""
        super().calculate(atoms, properties, system_changes)
        if self.atoms is None:
            raise StructureError("There are no atoms to calculate.")
        self.results = self._results(self.evaluate([self.atoms]), 0)

    def calculate_many(self, structures: Sequence[Atoms]) -> list[dict[str, Any]]:
        """Results of many configurations; those of the same chains are evaluated together.

        Returns
        -------
        list of dict
            As ``results``, in the order of `structures`.
        """
        found: list[dict[str, Any]] = [{} for _ in structures]
        groups: dict[bytes, list[int]] = {}
        for k, atoms in enumerate(structures):
            groups.setdefault(_key(atoms), []).append(k)
        for members in groups.values():
            output = self.evaluate([structures[k] for k in members])
            for place, k in enumerate(members):
                found[k] = self._results(output, place)
        return found

    def evaluate(self, structures: Sequence[Atoms]) -> list[BeadOutput]:
        """What every member says of configurations of the same chains."""
        atoms = structures[0]
        if len(atoms) == 0:
            raise StructureError("There are no beads to calculate.")
        for one in structures:
            if one.pbc.any():
                raise StructureError("Beads in a periodic cell are not implemented. Set `atoms.pbc = False`.")
            if not np.isfinite(one.positions).all():
                raise StructureError("Positions are NaN or infinite: the run has blown up. Use a shorter time step.")
        key = _key(atoms)
        if not self._topologies or key != self._key:
            chains = Chains.from_atoms(atoms)
            self._topologies = [model.bind(chains) for model in self.models]
            self._key, self._warned = key, False
        positions = torch.as_tensor(np.stack([one.positions for one in structures]), device=self.models[0].device)
        with torch.no_grad(), few_threads(self._topologies[0].pairs):
            return [
                model(positions, topology, self.part, self.temperature_K)
                for model, topology in zip(self.models, self._topologies, strict=True)
            ]

    def _results(self, outputs: Sequence[BeadOutput], k: int) -> dict[str, Any]:
        forces = np.stack([output.forces[k].numpy(force=True) for output in outputs])
        components = {
            name: float(np.mean([float(output.energies[name][k]) for output in outputs]))
            for name in outputs[0].energies
        }
        energy = sum(components.values())
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise StructureError("Energy or forces are not finite: two beads are probably on top of each other.")
        results: dict[str, Any] = {
            "energy": energy, "free_energy": energy, "forces": forces.mean(0), "components": components,
        }  # fmt: skip
        if len(outputs) > 1:
            results["forces_std"] = np.sqrt(((forces - forces.mean(0)) ** 2).sum(-1).mean(0))
            self._warn(float(results["forces_std"].max()))
        return results

    def _warn(self, spread: float) -> None:
        if self.warn_above is None or spread <= self.warn_above or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"The members of the committee differ by {spread:.2f} eV/Å on a bead, more than {self.warn_above} eV/Å: "
            "this configuration is unlike the training data.",
            stacklevel=4,
        )


def _key(atoms: Atoms) -> bytes:
    return b"|".join(
        np.ascontiguousarray(atoms.arrays[name]).tobytes()
        for name in ("residuetypes", "chains")
        if name in atoms.arrays
    )
