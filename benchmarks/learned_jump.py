"""Learned jumps on molecules the network has not seen: structure, temperature, motion, and every gradient spent.

    python benchmarks/learned_jump.py --train CC CCC CO ... --test CCO CCN ... --timestep 0.5 --k 8 --work runs/jumps
    python benchmarks/learned_jump.py --teacher mmff94 --timestep 2 --k 4 --train ... --test ... --work runs/jumps-mm

Every training molecule gives trajectories of the teacher at constant energy (`distillase trajectories`), whose windows
are no random targets, and from them a jump network is trained (`distillase train-jump`); whole molecules are held out
for validation. Then, for every test molecule and seed, from one warm start and with the same thermostat:

- reference: the teacher's own Langevin dynamics at the small step, one gradient each;
- jump: `LearnedJump`, one gradient for k + 1 small steps when no guard refuses;
- control: the same corrector without a network (`jump=None`), for as many gradients. It is a slow but sound Langevin
  dynamics, in which only every (k + 1)th femtosecond that the clock counts has happened: its averages are right, and
  its motion is what gives it away.

Errors are root mean squares over bonds (angles) of the difference of their mean lengths (sizes) from the mean of the
reference seeds; the reference's own column leaves out one seed at a time: the noise floor. Motion is the root mean
square change of the dihedrals about all bonds that turn over ten jumps' time, relative to the reference's.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.optimize import LBFGS
from md_speed import cpu_model
from slhmc import torsions, turning

from distillase.ase_calcs.dynamics import LearnedJump
from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.readers import read_structures
from distillase.datasets.structure import Structure
from distillase.launch.cli import main as distillase
from distillase.training.jumps.topology import Topology, find_topology


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True, help="SMILES")
    parser.add_argument("--test", nargs="+", required=True, help="SMILES, none of them in --train")
    parser.add_argument("--teacher", default="gfn2-xtb")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--friction", type=float, default=0.005, help="1/fs, of the test runs")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="of every test run")
    parser.add_argument("--runs", type=int, default=2, help="training trajectories of each molecule")
    parser.add_argument("--training-picoseconds", type=float, default=1.5, help="of each of them")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=25.0, help="of training")
    parser.add_argument("--architecture", default="painn-jump")
    parser.add_argument("--source", choices=("windows", "flow"), default="windows", help="see `data.source`")
    parser.add_argument("--set", nargs="*", default=[], help="further keys of the recipe, KEY=VALUE")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "learned_jump.json")
    return parser.parse_args()


def train(arguments: argparse.Namespace) -> Path:
    """The network's file; what is there already is not made again."""
    runs, folder = arguments.work / "trajectories", arguments.work / f"{arguments.architecture}-{arguments.source}"
    step, span = str(arguments.timestep), arguments.k * arguments.timestep
    model = folder / "model.safetensors"
    if model.is_file():
        return model
    made = distillase(
        ["trajectories", *arguments.train, "--teacher", arguments.teacher, "--timestep", step, "--interval", step,
         "--picoseconds", str(arguments.training_picoseconds), "--integrator", "verlet", "--equilibrate", "1",
         "-n", str(arguments.runs), "--temperature", str(arguments.temperature), "--out", str(runs)]
    )  # fmt: skip
    settings = [
        f"data.timestep={step}", f"data.k=[{arguments.k}]", "data.by=group", "data.every=3",
        f"data.source={arguments.source}", f"data.longest={span}", f"model.architecture={arguments.architecture}",
        "model.cutoff=5.0", "training.batch_frames=32", f"training.minutes={arguments.minutes}", *arguments.set,
    ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    made = made or distillase(["train-jump", str(runs / "trajectories.h5"), *words, "--out", str(folder)])
    if made != 0:
        raise SystemExit(made)
    return model


def start(structure: Structure, teacher: Any, arguments: argparse.Namespace, seed: int) -> Atoms:
    """2 ps of the teacher with a strong thermostat, from the minimum."""
    atoms = structure.to_atoms()
    atoms.calc = teacher
    LBFGS(atoms, logfile=None).run(fmax=0.02, steps=500)
    thermalize_momenta(atoms, 2 * arguments.temperature, rng=np.random.default_rng(seed))
    Stationary(atoms)
    langevin(atoms, arguments, 0.01, 1000 + seed).run(round(2000 / arguments.timestep))
    return atoms


def langevin(atoms: Atoms, arguments: argparse.Namespace, friction: float, seed: int) -> Any:
    """Of the teacher alone."""
    return LangevinBAOAB(
        atoms, arguments.timestep * units.fs, temperature_K=arguments.temperature, T_tau=units.fs / friction,
        rng=np.random.default_rng(seed),
    )  # fmt: skip


def follow(atoms: Atoms, dyn: Any, steps: int, every: int, topology: Topology) -> dict[str, Any]:
    """Mean bond lengths, angles and temperature, and how far dihedrals turn in ten frames."""
    lengths, angles, temperatures, frames = [], [], [], []
    (i, j), (a, b, c) = topology.bonds, topology.angles
    began = time.perf_counter()
    for number, _ in enumerate(dyn.irun(steps)):
        if number % every:
            continue
        x = atoms.positions
        lengths.append(np.linalg.norm(x[i] - x[j], axis=1))
        u, v = x[a] - x[b], x[c] - x[b]
        cosine = (u * v).sum(axis=1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1)
        angles.append(np.rad2deg(np.arccos(cosine.clip(-1, 1))))
        masses = atoms.get_masses()[:, None]
        p = atoms.get_momenta()
        p -= masses / masses.sum() * p.sum(axis=0)  # the reference's thermostat moves the centre of mass too
        temperatures.append((p**2 / masses).sum() / units.kB / (3 * len(atoms) - 3))
        frames.append(x.copy())
    turned = np.deg2rad(torsions(np.array(frames), turning(topology)))
    change = np.angle(np.exp(1j * (turned[10:] - turned[:-10])))
    return {
        "bonds": np.mean(lengths, axis=0),
        "angles": np.mean(angles, axis=0),
        "temperature": float(np.mean(temperatures)),
        "motion": float(np.sqrt(np.mean(change**2))),
        "seconds": time.perf_counter() - began,
    }


def one_molecule(smiles: str, model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    structure = read_structures([smiles]).structures[0]
    teacher = make_teacher(
        arguments.teacher, structure.charge, structure.multiplicity, smiles=structure.smiles
    )  # fmt: skip
    step, k = arguments.timestep, arguments.k
    jumps = round(1000 * arguments.picoseconds / step / (k + 1))
    thermostat = {"temperature_K": arguments.temperature, "friction": arguments.friction / units.fs}
    found: dict[str, list[dict[str, Any]]] = {"reference": [], "jump": [], "control": []}
    counts: dict[str, int] = {}
    for seed in range(arguments.seeds):
        warm = start(structure, teacher, arguments, seed)
        topology = find_topology(structure.numbers, warm.positions)
        for kind in found:
            atoms = warm.copy()
            atoms.calc = teacher
            if kind == "reference":
                dyn = langevin(atoms, arguments, arguments.friction, seed)
                found[kind].append(follow(atoms, dyn, jumps * (k + 1), k + 1, topology))
                continue
            dyn = LearnedJump(
                atoms, step * units.fs, jump=model if kind == "jump" else None, k=k, rng=seed, **thermostat
            )  # fmt: skip
            found[kind].append(follow(atoms, dyn, jumps, 1, topology))
            if kind == "jump":
                for name, value in vars(dyn.counts).items():
                    counts[name] = counts.get(name, 0) + value
    gradients = counts["teacher_gradients"] / arguments.seeds
    row: dict[str, Any] = {"gradients_saved": jumps * (k + 1) / gradients, "counts": counts}
    references = found["reference"]
    for kind, runs in found.items():
        for name in ("bonds", "angles"):
            errors = []
            for seed, run in enumerate(runs):
                others = [r[name] for number, r in enumerate(references) if kind != "reference" or number != seed]
                errors.append(float(np.sqrt(np.mean((run[name] - np.mean(others, axis=0)) ** 2))))
            row[f"{kind}_{name}"] = float(np.mean(errors))
        for name in ("temperature", "motion", "seconds"):
            row[f"{kind}_{name}"] = float(np.mean([run[name] for run in runs]))
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
    three = ("reference", "jump", "control")
    print("each: reference, jump, control")
    print("molecule   calls saved   RMSE of mean bonds, Å     of mean angles, °      T, K            motion")
    for smiles in arguments.test:
        row = one_molecule(smiles, model, arguments)
        report["molecules"][smiles] = row
        columns = (("bonds", "{:.4f}"), ("angles", "{:5.2f}"), ("temperature", "{:3.0f}"))
        cells = [" ".join(form.format(row[f"{kind}_{name}"]) for kind in three) for name, form in columns]
        cells.append(" ".join(f"{row[f'{kind}_motion'] / row['reference_motion']:.2f}" for kind in three))
        print(f"{smiles:12s} {row['gradients_saved']:7.1f}×   " + "     ".join(cells), flush=True)
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
