"""One calculator in ASE's velocity Verlet, in a process of its own that takes its turns by request.

Driven by ``benchmarks/md_speed.py``. Runs inside any environment that has ASE and the calculator: nothing else is
imported at the top. The first line on standard input is a JSON object with ``engine``, ``options``, ``numbers``,
``positions``, ``charge``, ``core``, ``segment``; the answer is a JSON object with ``ready`` and ``about``. Each further
line is a number of steps, answered with ``steps``, ``wall`` and ``cpu`` (seconds).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

TIMESTEP, TEMPERATURE, SEED = 0.5, 300.0, 1  # fs, K


def make_distillase(atoms: Atoms, charge: int, options: dict[str, Any]) -> tuple[Any, str]:
    from distillase.ase_calcs.calculator import PotentialCalculator

    calculator = PotentialCalculator(options["model"], compile=options["compile"], charge=charge)
    settings = ", ".join(f"{key}={value}" for key, value in calculator.potential.hyperparameters.items())
    return calculator, f"PaiNN {settings}, {'compiled' if calculator.compiled else 'eager'}"


def make_teacher(atoms: Atoms, charge: int, options: dict[str, Any]) -> tuple[Any, str]:
    from distillase.ase_calcs.teachers import make_teacher, teacher_version

    return make_teacher(options["name"], charge, 1), f"{teacher_version(options['name'])}, cold SCF guess"


def make_tblite(atoms: Atoms, charge: int, options: dict[str, Any]) -> tuple[Any, str]:
    from importlib.metadata import version

    from tblite.ase import TBLite

    calculator = TBLite(method="GFN2-xTB", charge=charge, multiplicity=1, verbosity=0)
    return calculator, f"tblite {version('tblite')}, its own calculator, SCF restarts from the last step"


def make_schnetpack(atoms: Atoms, charge: int, options: dict[str, Any]) -> tuple[Any, str]:
    import torch
    from schnetpack_import import import_schnetpack

    spk = import_schnetpack()
    from schnetpack.interfaces import SpkCalculator
    from schnetpack.transform import AddOffsets, CastTo64, MatScipyNeighborList, SkinNeighborList

    cutoff, features, skin = options["cutoff"], options["features"], options["skin"]
    torch.manual_seed(SEED)
    model = spk.model.NeuralNetworkPotential(
        representation=spk.representation.PaiNN(
            n_atom_basis=features,
            n_interactions=options["layers"],
            radial_basis=spk.nn.GaussianRBF(n_rbf=20, cutoff=cutoff),
            cutoff_fn=spk.nn.CosineCutoff(cutoff),
        ),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(n_in=features, output_key="energy"), spk.atomistic.Forces()],
        postprocessors=[CastTo64(), AddOffsets("energy", add_mean=True)],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = options.get("model") or str(Path(folder) / "model")
        if not options.get("model"):
            torch.save(model, path)
        neighbors = MatScipyNeighborList(cutoff=cutoff)
        calculator = SpkCalculator(
            path,
            neighbor_list=SkinNeighborList(neighbors, cutoff_skin=skin) if skin else neighbors,
            energy_unit="kcal/mol",
            position_unit="Ang",
            dtype=torch.float32,
        )
    about = f"SchNetPack {spk.__version__} PaiNN, {features} features, {options['layers']} interactions, {cutoff} Å, "
    lists = f"SkinNeighborList({skin} Å) over MatScipyNeighborList" if skin else "MatScipyNeighborList"
    return calculator, about + lists


def make_torchani(atoms: Atoms, charge: int, options: dict[str, Any]) -> tuple[Any, str]:
    import torch
    import torchani
    from torchani.arch import Assembler
    from torchani.utils import SYMBOLS_2X

    torch.manual_seed(SEED)
    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols(SYMBOLS_2X)
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(radial="ani2x", angular="ani2x", strategy="pyaev")
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_neighborlist("all_pairs")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    model = assembler.assemble(1)
    model.requires_grad_(False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "final" in name:  # weights at random would tear the molecule apart
                parameter *= 1e-3
    calculator = model.ase(jit=options["jit"])
    about = "one network of the shape of ANI-2x, weights at random (the wheel ships none)"
    return calculator, f"torchani {torchani.__version__}, {about}{', TorchScript' if options['jit'] else ''}"


ENGINES = {
    "distillase": make_distillase,
    "teacher": make_teacher,
    "tblite": make_tblite,
    "schnetpack": make_schnetpack,
    "torchani": make_torchani,
}


class Runner:
    """MD in segments that all begin at the same geometry and velocities.

    So an untrained network, which does not hold a molecule together, stays near its geometry too. Atoms then fly
    straight on, and neighbour lists with a skin are remade more often than under a trained one. Returns are not timed.
    """

    def __init__(self, atoms: Atoms, segment: int) -> None:
        rng = np.random.default_rng(SEED)
        thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=rng)
        Stationary(atoms)
        ZeroRotation(atoms)
        self.atoms, self.segment, self.done = atoms, segment, 0
        self.start = atoms.get_positions(), atoms.get_momenta()
        self.dynamics = VelocityVerlet(atoms, timestep=TIMESTEP * units.fs)

    def run(self, steps: int) -> tuple[float, float]:
        """Seconds of wall-clock and of processor time."""
        wall = cpu = 0.0
        while steps:
            if self.done % self.segment == 0:
                self.atoms.positions[:], self.done = self.start[0], 0
                self.atoms.set_momenta(self.start[1])
                self.atoms.get_forces()
            now = min(steps, self.segment - self.done)
            began = time.perf_counter(), time.process_time()
            self.dynamics.run(now)
            wall += time.perf_counter() - began[0]
            cpu += time.process_time() - began[1]
            steps -= now
            self.done += now
        if not np.isfinite(self.atoms.positions).all():
            raise SystemExit("the molecule has exploded")
        return wall, cpu


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    task = json.loads(sys.stdin.readline())
    if hasattr(os, "sched_setaffinity") and task["core"] is not None:
        os.sched_setaffinity(0, {task["core"]})
    if task["engine"] not in ("tblite", "teacher"):
        import torch

        torch.set_num_threads(1)
    atoms = Atoms(task["numbers"], task["positions"])
    atoms.calc, about = ENGINES[task["engine"]](atoms, task["charge"], task["options"])
    runner = Runner(atoms, task["segment"])
    runner.run(1)
    print(json.dumps({"ready": True, "about": about}), file=answers, flush=True)
    for line in sys.stdin:
        steps = int(line)
        wall, cpu = runner.run(steps)
        print(json.dumps({"steps": steps, "wall": wall, "cpu": cpu}), file=answers, flush=True)


if __name__ == "__main__":
    main()
