"""How much faster than all-atom dynamics is a coarse-grained force field? One core each, one after the other.

    python benchmarks/cg_speed.py --model runs/chignolin/model.safetensors --pdb 1uao.pdb

Explicit water (TIP3P, PME) and implicit water (OBC2, native), both amber14 in OpenMM with steps of 4 fs; the
coarse-grained force field with 1 to 128 replicas advanced together, with and without its network; and what its step
consists of.
Rounds go through all of them, and the median of the rounds is given: on a machine with other work the ratios are
worth more than the times.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from distillase.ase_calcs.errors import require
from distillase.ase_calcs.modelfile import load_coarse_grained
from distillase.ase_calcs.proteins.chains import Chains, read_beads_pdb
from distillase.ase_calcs.proteins.model import CoarseGrainedModel, bead_graph
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin
from distillase.datasets.proteins import read_protein
from distillase.datasets.proteins.system import SystemConfig, make_context, make_system
from distillase.training.report.speed import machine

KELVIN, STEP = 300.0, 4.0  # fs


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pdb", type=Path, required=True, help="all atoms")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each, in each round")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cg_speed.json")
    return parser.parse_args()


def all_atoms(pdb: Path, water: str) -> tuple[Callable[[], float], int]:
    """A function that advances a few steps and returns ns, and the number of atoms."""
    openmm = require("openmm", extra="proteins", purpose="measure all-atom dynamics")
    prepared = make_system(read_protein(pdb), SystemConfig(water=water))  # type: ignore[arg-type]
    integrator = openmm.LangevinMiddleIntegrator(KELVIN, 1.0, STEP / 1000)
    context = make_context(prepared.system, integrator)
    context.setPositions(prepared.positions / 10)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=100)
    context.setVelocitiesToTemperature(KELVIN, 1)
    steps = 20 if water != "obc2" else 200

    def advance() -> float:
        integrator.step(steps)
        context.getState(energy=True)  # waits for the end
        return steps * STEP * 1e-6

    return advance, len(prepared.positions)


def beads(
    model: CoarseGrainedModel, chains: Chains, start: np.ndarray, replicas: int, part: Any
) -> Callable[[], float]:
    dynamics = ReplicaLangevin(model, chains, np.repeat(start[None], replicas, 0), part=part)

    def advance() -> float:
        for _ in range(10):
            dynamics.step()
        return 10 * dynamics.timestep * 1e-6 * replicas

    return advance


def profile(
    model: CoarseGrainedModel, chains: Chains, start: np.ndarray, replicas: int, rounds: int
) -> dict[str, float]:
    """ms of a step of all replicas and of what it consists of."""
    rng = np.random.default_rng(0)
    x = torch.tensor(start + rng.normal(0, 0.2, (replicas, *start.shape)))
    topology, network = model.bind(chains), model.network
    dynamics = ReplicaLangevin(model, chains, x.numpy())
    parts: dict[str, Callable[[], Any]] = {
        "step": dynamics.step, "hybrid": lambda: model(x, topology), "prior": lambda: model.prior(x, topology.prior),
    }  # fmt: skip
    if network is not None:
        graph = bead_graph(x, topology, network.cutoff, network.dtype)
        parts |= {
            "edges": lambda: bead_graph(x, topology, network.cutoff, network.dtype), "network": lambda: network(graph),
        }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in parts}
    with torch.no_grad():
        for _ in range(4 * rounds):
            for name, call in parts.items():
                begun = time.perf_counter()
                for _ in range(5):
                    call()
                times[name].append((time.perf_counter() - begun) / 5 * 1000)
    found = {name: median(values) for name, values in times.items()}
    return {**found, "prior_share": found["prior"] / found["step"]}


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    model, atoms = load_coarse_grained(arguments.model), read_beads_pdb(arguments.pdb)
    chains = Chains.from_atoms(atoms)
    runs: dict[str, Callable[[], float]] = {}
    sizes = {}
    for water in ("tip3p", "obc2"):
        runs[water], sizes[water] = all_atoms(arguments.pdb, water)
    for replicas in arguments.replicas:
        for part in ("hybrid", "prior") if model.network is not None else ("prior",):
            runs[f"{part}, {replicas}"] = beads(model, chains, atoms.positions, replicas, part)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for advance in runs.values():
        advance()
    for _ in range(arguments.rounds):
        for name, advance in runs.items():
            begun, ns = time.perf_counter(), 0.0
            while time.perf_counter() - begun < arguments.seconds:
                ns += advance()
            speeds[name].append(ns / (time.perf_counter() - begun) * 86400)
    found = {
        "machine": machine(), "pdb": arguments.pdb.name, "atoms": sizes, "timestep_all_atoms_fs": STEP,
        "ns_per_day": {name: median(values) for name, values in speeds.items()},
        "times_explicit": {
            name: median(np.array(values) / np.array(speeds["tip3p"])) for name, values in speeds.items()
        },
        "times_implicit": {
            name: median(np.array(values) / np.array(speeds["obc2"])) for name, values in speeds.items()
        },
        "profile_ms": {
            str(n): profile(model, chains, atoms.positions, n, arguments.rounds) for n in arguments.replicas[:3]
        },
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
