"""Self-learning HMC against the teacher's own Langevin dynamics: acceptance, distributions, teacher calls per sample.

    python benchmarks/slhmc.py --model runs/ethanol/model.safetensors --structure CCO --length 400
    python benchmarks/slhmc.py --model runs/aspirin/model.safetensors --structure "CC(=O)Oc1ccccc1C(=O)O" --length 200

Both sample 300 K. The reference is Langevin dynamics of the teacher at 0.5 fs, several seeds, each begun from its own
warm structure (`LangevinBAOAB`, whose fixed centre of mass leaves the others' temperature alone). Self-learning HMC
moves a batch of replicas by student trajectories of `--length` steps of 0.5 fs, one teacher energy each.

An effective sample is Geyer's, of the slowest observable: the potential energy and the cosine of one dihedral about
every bond that can turn. Distributions of bond lengths, angles and dihedrals (pooled by the elements that make them)
and of the potential energy are compared by Jensen–Shannon divergence (bits, 40 bins), leaving out one Langevin seed at
a time: once that seed, which is the noise floor, and once as many frames of self-learning HMC are held against the
other seeds. Langevin runs and samples are kept in `--work`, and not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.md.langevinbaoab import LangevinBAOAB
from ase.optimize import LBFGS
from md_speed import cpu_model

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.compiled import find_compiler
from distillase.ase_calcs.dynamics import ReplicaExchangeHMC, effective_sample_size
from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.readers import read_structures
from distillase.training.jumps.topology import Topology, dihedral_vectors, find_topology

STEP = 0.5  # fs
BINS = 40


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--structure", required=True, help="SMILES or file")
    parser.add_argument("--teacher", default="gfn2-xtb")
    parser.add_argument("--length", type=int, required=True, help="student steps of 0.5 fs for each teacher energy")
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--moves", type=int, default=100, help="of every replica")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--seeds", type=int, default=4, help="Langevin runs")
    parser.add_argument("--picoseconds", type=float, default=50.0, help="of each Langevin run")
    parser.add_argument("--friction", type=float, default=2.0, help="1/ps, of Langevin dynamics")
    parser.add_argument("--part", choices=("all", "langevin", "slhmc"), default="all")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and samples")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "slhmc.json")
    return parser.parse_args()


# --- samples ----------------------------------------------------------------------------------------------------------


def warm_start(atoms: Atoms, student: Any, temperature: float, seed: int) -> Atoms:
    """2 ps of the student from the minimum, its own momenta."""
    atoms = atoms.copy()
    atoms.calc = student
    LBFGS(atoms, logfile=None).run(fmax=0.02, steps=500)
    dyn = LangevinBAOAB(
        atoms, STEP * units.fs, temperature_K=temperature, T_tau=100 * units.fs, rng=np.random.default_rng(seed)
    )
    dyn.run(4000)
    return atoms


def langevin(atoms: Atoms, teacher: Any, arguments: argparse.Namespace, seed: int, path: Path) -> None:
    """One run of the teacher, a frame every 10 steps."""
    atoms.calc = teacher
    dyn = LangevinBAOAB(
        atoms, STEP * units.fs, temperature_K=arguments.temperature, T_tau=1000 / arguments.friction * units.fs,
        rng=np.random.default_rng(1000 + seed),
    )  # fmt: skip
    dyn.run(2000)
    began, positions, energies = time.perf_counter(), [], []
    for number, _ in enumerate(dyn.irun(round(1000 * arguments.picoseconds / STEP))):
        if number % 10 == 0:
            positions.append(atoms.get_positions())
            energies.append(atoms.get_potential_energy())
    np.savez(path, positions=positions, energies=energies, calls=number, seconds=time.perf_counter() - began)


def self_learning(atoms: Atoms, student: Any, teacher: Any, arguments: argparse.Namespace, path: Path) -> None:
    """A batch of replicas; a tenth of the moves first, which do not count."""
    starts = [warm_start(atoms, student, arguments.temperature, seed) for seed in range(4)]
    sampler = ReplicaExchangeHMC(
        [starts[i % 4] for i in range(arguments.replicas)], STEP * units.fs, teacher=teacher, student=student,
        length=arguments.length, temperatures_K=[arguments.temperature] * arguments.replicas, exchange_every=0, rng=7,
    )  # fmt: skip
    sampler.run(max(1, arguments.moves // 10))
    moves, accepted, calls = sampler.moves, sampler.accepted.copy(), sampler.teacher_calls
    began, positions, energies = time.perf_counter(), [], []
    for number in sampler.irun(arguments.moves):
        positions.append([replica.get_positions() for replica in sampler.replicas])
        energies.append(sampler.energies.copy())
        if number % 10 == 0:
            print(f"  {number - moves} moves, {time.perf_counter() - began:.0f} s", flush=True)
    np.savez(
        path, positions=positions, energies=energies, calls=sampler.teacher_calls - calls,
        acceptance=(sampler.accepted - accepted) / (sampler.moves - moves), seconds=time.perf_counter() - began,
    )  # fmt: skip


# --- what they are worth ----------------------------------------------------------------------------------------------


def turning(topology: Topology) -> np.ndarray:
    """(4, M) one dihedral about every bond with neighbours on both sides that is no part of a ring."""
    chosen: dict[tuple[int, int], np.ndarray] = {}
    for column in topology.dihedrals.T:
        j, k = int(column[1]), int(column[2])
        cut = topology.hops.copy() == 1
        cut[j, k] = cut[k, j] = False
        reached = np.zeros(len(cut), dtype=bool)
        reached[j] = True
        for _ in range(len(cut)):
            reached |= cut[reached].any(axis=0)
        if not reached[k]:
            chosen.setdefault((min(j, k), max(j, k)), column)
    return np.array(list(chosen.values())).T


def torsions(positions: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(T, N, 3), (4, M) → (T, M) angles in degrees."""
    found = [dihedral_vectors(torch.as_tensor(x), torch.as_tensor(indices)) for x in positions]
    vectors = torch.stack(found)
    return torch.rad2deg(torch.atan2(vectors[..., 1], vectors[..., 0])).numpy()


def effective(energies: np.ndarray, positions: np.ndarray, indices: np.ndarray) -> dict[str, float]:
    """Effective samples of each observable of one chain."""
    cosines = np.cos(np.deg2rad(torsions(positions, indices)))
    names = ["-".join(map(str, column)) for column in indices.T.tolist()]
    return {"energy": effective_sample_size(energies)} | {
        name: effective_sample_size(cosines[:, m]) for m, name in enumerate(names)
    }


def features(energies: np.ndarray, x: np.ndarray, numbers: np.ndarray, topology: Topology) -> dict[str, np.ndarray]:
    """Pooled values by kind: ``C-H`` bonds, ``C-C-O`` angles, dihedrals about a bond, the potential energy."""
    found: dict[str, list[np.ndarray]] = {"energy": [energies]}

    def add(kind: str, atoms: list[int], values: np.ndarray) -> None:
        names = [chemical_symbols[numbers[i]] for i in atoms]
        found.setdefault(f"{kind} " + "-".join(min(names, names[::-1])), []).append(values)

    for i, j in topology.bonds.T.tolist():
        add("bond", [i, j], np.linalg.norm(x[:, i] - x[:, j], axis=1))
    for i, j, k in topology.angles.T.tolist():
        a, b = x[:, i] - x[:, j], x[:, k] - x[:, j]
        cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        add("angle", [i, j, k], np.rad2deg(np.arccos(cosine.clip(-1, 1))))
    indices = turning(topology)
    for m, values in enumerate(torsions(x, indices).T):
        add("dihedral", indices[:, m].tolist(), values)
    return {name: np.concatenate(values) for name, values in found.items()}


def divergence(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen–Shannon, bits."""
    edges = np.linspace(min(a.min(), b.min()), max(a.max(), b.max()) + 1e-12, BINS + 1)
    p, q = (np.histogram(values, edges)[0] / len(values) for values in (a, b))
    m = 0.5 * (p + q)
    return float(sum(0.5 * (w[w > 0] * np.log2(w[w > 0] / m[w > 0])).sum() for w in (p, q)))


def compare(runs: list[dict[str, np.ndarray]], sample: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Divergence of a Langevin seed, and of as many values of the sample, from the other seeds: means over seeds."""
    rng, found = np.random.default_rng(0), {}
    for name in sample:
        floor, ours = [], []
        for left_out, run in enumerate(runs):
            others = np.concatenate([r[name] for number, r in enumerate(runs) if number != left_out])
            n = min(len(run[name]), len(sample[name]))  # of both: fewer values look more different
            floor.append(divergence(rng.choice(run[name], n, replace=False), others))
            ours.append(divergence(rng.choice(sample[name], n, replace=False), others))
        found[name] = {"floor": float(np.mean(floor)), "slhmc": float(np.mean(ours))}
    return found


def sampled(arguments: argparse.Namespace) -> dict[str, Any]:
    """What self-learning HMC says of itself."""
    ours = np.load(arguments.work / f"slhmc-{arguments.length}.npz")
    return {
        "structure": arguments.structure, "model": f"{arguments.model.parent.name}/{arguments.model.name}",
        "teacher": arguments.teacher, "femtoseconds_per_call": arguments.length * STEP,
        "acceptance": float(ours["acceptance"].mean()),
        "acceptance_of_replicas": [float(ours["acceptance"].min()), float(ours["acceptance"].max())],
        "moves": int(ours["calls"]),
    }  # fmt: skip


def compared(arguments: argparse.Namespace, numbers: np.ndarray, start: np.ndarray) -> dict[str, Any]:
    """Against the Langevin runs."""
    topology = find_topology(numbers, start)
    indices = turning(topology)
    runs = [np.load(arguments.work / f"langevin-{seed}.npz") for seed in range(arguments.seeds)]
    ours = np.load(arguments.work / f"slhmc-{arguments.length}.npz")
    per_run = [effective(run["energies"], run["positions"], indices) for run in runs]
    chains = [effective(ours["energies"][:, i], ours["positions"][:, i], indices) for i in range(arguments.replicas)]
    langevin_ess = {name: sum(found[name] for found in per_run) for name in per_run[0]}
    our_ess = {name: sum(found[name] for found in chains) for name in chains[0]}
    calls, our_calls = sum(int(run["calls"]) for run in runs), int(ours["calls"])
    shape = ours["positions"].shape
    flat = features(ours["energies"].ravel(), ours["positions"].reshape(-1, *shape[2:]), numbers, topology)
    kinds = compare([features(run["energies"], run["positions"], numbers, topology) for run in runs], flat)
    ratios = [k["slhmc"] / k["floor"] for k in kinds.values()]
    per_sample = {"langevin": calls / min(langevin_ess.values()), "slhmc": our_calls / min(our_ess.values())}
    seconds = sum(float(run["seconds"]) for run in runs)
    return {
        "friction_per_ps": arguments.friction,
        "teacher_calls": {"langevin": calls, "slhmc": our_calls},
        "effective_samples": {"langevin": langevin_ess, "slhmc": our_ess},
        "calls_per_effective_sample": per_sample, "fewer_calls": per_sample["langevin"] / per_sample["slhmc"],
        "seconds_per_effective_sample": {
            "langevin": seconds / min(langevin_ess.values()), "slhmc": float(ours["seconds"]) / min(our_ess.values()),
        },
        "divergence_over_floor": {"mean": float(np.mean(ratios)), "largest": float(np.max(ratios))},
        "divergence": kinds,
    }  # fmt: skip


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    structure = read_structures([arguments.structure]).structures[0]
    state = {"charge": structure.charge, "multiplicity": structure.multiplicity}
    student = PotentialCalculator(arguments.model, dtype="float32", compile="on" if find_compiler() else "off", **state)
    teacher = make_teacher(arguments.teacher, **state)
    atoms = structure.to_atoms()
    if arguments.part != "slhmc":
        for seed in range(arguments.seeds):
            path = arguments.work / f"langevin-{seed}.npz"
            if not path.is_file():
                print(f"Langevin, seed {seed}", flush=True)
                langevin(warm_start(atoms, student, arguments.temperature, seed), teacher, arguments, seed, path)
    if arguments.part != "langevin":
        path = arguments.work / f"slhmc-{arguments.length}.npz"
        if not path.is_file():
            self_learning(atoms, student, teacher, arguments, path)
    if arguments.part == "langevin":
        return
    found = sampled(arguments)
    if arguments.part == "all":
        found |= compared(arguments, structure.numbers, warm_start(atoms, student, arguments.temperature, 0).positions)
    print(json.dumps(found, indent=1))
    results = json.loads(arguments.out.read_text())["results"] if arguments.out.is_file() else []
    same = ("structure", "model", "femtoseconds_per_call")
    results = [r for r in results if any(r[key] != found[key] for key in same)] + [found]
    machine = f"{cpu_model()}, {os.cpu_count()} cores"
    arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
