"""Learned jumps on molecules the network has not seen: structure, temperature, and every gradient that was spent.

    python benchmarks/learned_jump.py --train CCO CCN CC=O ... --test COC CCC ... --teacher mmff94 --timestep 2 --k 8

Every training molecule gives Langevin trajectories of the teacher (`distillase trajectories`), from which a jump
network is trained (`distillase train-jump`); molecules are held out for validation as a whole. Then, for every test
molecule and every seed, from the same start and at the same thermostat:

- reference: the teacher's own Langevin dynamics at the small step, one gradient each;
- jump: `LearnedJump`, one gradient every k + 1 small steps when no guard refuses;
- control: the same corrector without a network (`jump=None`), for as many gradients.

Errors are root mean squares over bonds (angles) of the difference of their mean lengths (sizes) from the mean of the
reference seeds; the reference's own column leaves out one seed at a time: the noise floor.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.optimize import LBFGS
from md_speed import cpu_model

from distillase.ase_calcs.dynamics import LearnedJump, MTSLangevin
from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.readers import read_structures
from distillase.datasets.structure import Structure
from distillase.launch.cli import main as distillase
from distillase.training.jumps.topology import Topology, find_topology


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, help="SMILES")
    parser.add_argument("--test", nargs="+", required=True, help="SMILES, none of them in --train")
    parser.add_argument("--teacher", default="mmff94")
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--friction", type=float, default=1e-4, help="1/fs, in training and in test")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="of every test run, and of training runs")
    parser.add_argument("--runs", type=int, default=2, help="training trajectories of each molecule")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=20.0, help="of training")
    parser.add_argument("--architecture", default="painn-jump")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learned_jump.json")
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> Path:
    """The network's file; what is there already is not made again."""
    runs, folder = arguments.work / "trajectories", arguments.work / arguments.architecture
    step = str(arguments.timestep)
    made = distillase(
        ["trajectories", *arguments.train, "--teacher", arguments.teacher, "--timestep", step, "--interval", step,
         "--picoseconds", str(arguments.picoseconds), "--friction", str(arguments.friction), "-n", str(arguments.runs),
         "--temperature", str(arguments.temperature), "--out", str(runs)]
    )  # fmt: skip
    if made != 0:
        raise SystemExit(made)
    model = folder / "model.safetensors"
    if not model.is_file():
        settings = [
            f"data.timestep={step}", f"data.k=[{arguments.k}]", "data.by=group", "data.every=3",
            f"model.architecture={arguments.architecture}", f"training.minutes={arguments.minutes}",
        ]  # fmt: skip
        words = [word for setting in settings for word in ("--set", setting)]
        made = distillase(["train-jump", str(runs / "trajectories.h5"), *words, "--out", str(folder)])
        if made != 0:
            raise SystemExit(made)
    return model


def start(structure: Structure, teacher: Any, temperature: float, seed: int) -> Atoms:
    atoms = structure.to_atoms()
    atoms.calc = teacher
    LBFGS(atoms, logfile=None).run(fmax=0.02, steps=500)
    thermalize_momenta(atoms, 2 * temperature, rng=np.random.default_rng(seed))
    Stationary(atoms)
    return atoms


def follow(atoms: Atoms, dyn: Any, steps: int, every: int, topology: Topology) -> dict[str, Any]:
    """Mean bond lengths, angles and temperature after a fifth of the steps."""
    dyn.run(steps // 5)
    lengths, angles, temperatures = [], [], []
    (i, j), (a, b, c) = topology.bonds, topology.angles
    for number, _ in enumerate(dyn.irun(steps)):
        if number % every:
            continue
        x = atoms.positions
        lengths.append(np.linalg.norm(x[i] - x[j], axis=1))
        u, v = x[a] - x[b], x[c] - x[b]
        cosine = (u * v).sum(axis=1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        angles.append(np.rad2deg(np.arccos(cosine.clip(-1, 1))))
        temperatures.append(atoms.get_kinetic_energy() * 2 / units.kB / (3 * len(atoms) - 3))
    return {
        "bonds": np.mean(lengths, axis=0),
        "angles": np.mean(angles, axis=0),
        "temperature": float(np.mean(temperatures)),
    }


def one_molecule(smiles: str, model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    structure = read_structures([smiles]).structures[0]
    teacher = make_teacher(
        arguments.teacher, structure.charge, structure.multiplicity, smiles=structure.smiles
    )  # fmt: skip
    step, k = arguments.timestep, arguments.k
    steps = round(1000 * arguments.picoseconds / step)
    jumps = steps // (k + 1)
    thermostat = {"temperature_K": arguments.temperature, "friction": arguments.friction / units.fs}
    found: dict[str, list[dict[str, Any]]] = {"reference": [], "jump": [], "control": []}
    counts: dict[str, int] = {}
    for seed in range(arguments.seeds):
        for kind in found:
            atoms = start(structure, teacher, arguments.temperature, seed)
            topology = find_topology(structure.numbers, atoms.positions)
            if kind == "reference":
                # One inner step per outer step is Langevin dynamics of the teacher alone.
                dyn: Any = MTSLangevin(atoms, step * units.fs, inner=teacher, k=1, rng=seed, **thermostat)
                found[kind].append(follow(atoms, dyn, steps, 5, topology))
                continue
            dyn = LearnedJump(
                atoms, step * units.fs, jump=model if kind == "jump" else None, k=k, rng=seed, **thermostat
            )  # fmt: skip
            found[kind].append(follow(atoms, dyn, jumps, 1, topology))
            if kind == "jump":
                for name, value in vars(dyn.counts).items():
                    counts[name] = counts.get(name, 0) + value
    gradients = counts["teacher_gradients"] / arguments.seeds
    row: dict[str, Any] = {"gradients_saved": 1.2 * steps / gradients, "counts": counts}
    references = found["reference"]
    for kind, runs in found.items():
        for name in ("bonds", "angles"):
            errors = []
            for seed, run in enumerate(runs):
                others = [r[name] for number, r in enumerate(references) if kind != "reference" or number != seed]
                errors.append(float(np.sqrt(np.mean((run[name] - np.mean(others, axis=0)) ** 2))))
            row[f"{kind}_{name}"] = float(np.mean(errors))
        row[f"{kind}_temperature"] = float(np.mean([run["temperature"] for run in runs]))
    return row


def main() -> None:
    arguments = parse()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = train(arguments)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items() if k not in ("work", "out")}
    report: dict[str, Any] = {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "settings": settings,
        "molecules": {},
    }
    print("molecule          calls saved   RMSE of mean bonds, Å (reference, jump, control)   angles, °   T, K")
    for smiles in arguments.test:
        row = one_molecule(smiles, model, arguments)
        report["molecules"][smiles] = row
        three = ("reference", "jump", "control")
        print(
            f"{smiles:16s} {row['gradients_saved']:10.1f}× "
            + "  ".join(f"{row[f'{kind}_bonds']:.4f}" for kind in three)
            + "    "
            + "  ".join(f"{row[f'{kind}_angles']:.2f}" for kind in three)
            + "    "
            + "  ".join(f"{row[f'{kind}_temperature']:.0f}" for kind in three),
            flush=True,
        )
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
