"""ASE MD step on one core: the default student, SchNetPack's PaiNN of the same width, one ANI network, GFN2-xTB.

    python benchmarks/md_speed.py                                   # ethanol, aspirin, atorvastatin; 15 rounds
    python benchmarks/md_speed.py --molecules aspirin --rounds 3    # a quick look
    python benchmarks/md_speed.py --model aspirin=runs/aspirin/model.safetensors

Every calculator sits in a process of its own, pinned to one core and single-threaded, SchNetPack and torchani in
virtual environments of their own (made on first use, see `--venvs`). They take turns, A B C … A B C …, every second
round in the opposite order, because other work on a machine comes and goes; only one of them ever runs. What is timed
is `ase.md.verlet.VelocityVerlet`, 0.5 fs, 300 K, everything a user pays for included: integrator, cache check,
neighbour list, network. Medians over the rounds; ratios are medians of the ratios within a round. Processor time is
kept beside wall-clock: they agree on a quiet machine.

Speed does not depend on weights, so without `--model` the student has fresh ones, as SchNetPack's and ANI's have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from venvs import TORCH, default_folder, peer_python

from distillase.ase_calcs.modelfile import save_model
from distillase.datasets.readers import read_structures
from distillase.datasets.structure import Structure
from distillase.training.config import ModelConfig
from distillase.training.run import fresh_potential

WORKER = Path(__file__).parent / "peers" / "md_worker.py"
RESULTS = Path(__file__).parent / "results"
STUDENT = ModelConfig()  # the default student
FEATURES, LAYERS, CUTOFF = STUDENT.features, 3, STUDENT.cutoff  # SchNetPack: the same width, its own number of layers
MOLECULES = {
    "ethanol": "CCO",
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "atorvastatin": "CC(C)c1c(C(=O)Nc2ccccc2)c(-c2ccccc2)c(-c2ccc(F)cc2)n1CC[C@@H](O)C[C@@H](O)CC(=O)O",
}
SINGLE_THREADED = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)


@dataclass(frozen=True)
class Engine:
    """A row of the table: what it is called, which environment it runs in, what the worker is told."""

    label: str
    worker: str
    venv: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def engines(model: Path) -> dict[str, Engine]:
    spk = {"features": FEATURES, "layers": LAYERS, "cutoff": CUTOFF}
    return {
        "compiled": Engine("distillase student, compiled", "distillase", None, {"model": str(model), "compile": "on"}),
        "eager": Engine("distillase student, eager", "distillase", None, {"model": str(model), "compile": "off"}),
        "schnetpack": Engine("SchNetPack PaiNN", "schnetpack", "schnetpack", {**spk, "skin": 0.0}),
        "schnetpack-skin": Engine("SchNetPack PaiNN, skin list", "schnetpack", "schnetpack", {**spk, "skin": 1.0}),
        "ani": Engine("one ANI network", "torchani", "torchani", {"jit": False}),
        "ani-jit": Engine("one ANI network, TorchScript", "torchani", "torchani", {"jit": True}),
        "gfn2": Engine("GFN2-xTB, our teacher", "teacher", None, {"name": "gfn2-xtb"}),
        "tblite": Engine("GFN2-xTB, tblite.ase", "tblite"),
    }


class Worker:
    """A process with one calculator, idle unless asked."""

    def __init__(self, engine: Engine, python: Path, structure: Structure, core: int | None, segment: int) -> None:
        self.engine = engine
        env = {**os.environ, **SINGLE_THREADED, "TORCHANI_NO_WARN_EXTENSIONS": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [str(python), str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        task = {
            "engine": engine.worker,
            "options": engine.options,
            "numbers": structure.numbers.tolist(),
            "positions": structure.positions.tolist(),
            "charge": structure.charge,
            "core": core,
            "segment": segment,
        }
        self.about = self.ask(json.dumps(task))["about"]
        self.steps = 1

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.engine.label}: the process ended with code {self.process.wait()}; see above.")
        return json.loads(answer)

    def run(self, steps: int) -> tuple[float, float]:
        """Milliseconds per step: wall-clock, processor."""
        answer = self.ask(str(steps))
        return 1000 * answer["wall"] / steps, 1000 * answer["cpu"] / steps

    def warm_up(self, seconds: float) -> None:
        """Caches and compilers; sets how many steps fill a turn of this length."""
        for steps in (3, 10):
            milliseconds, _ = self.run(steps)
            if steps * milliseconds > 1000 * seconds:
                break
        self.steps = max(3, round(1000 * seconds / milliseconds))
        wall, cpu = self.run(self.steps)
        self.steps = max(3, round(1000 * seconds / min(wall, max(cpu, 1e-3))))

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(workers: dict[str, Worker], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Rounds of turns; milliseconds per step of each."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers) if number % 2 == 0 else reversed(list(workers)):
            times[name].append(workers[name].run(workers[name].steps))
    return times


def summarise(times: dict[str, list[tuple[float, float]]], workers: dict[str, Worker]) -> dict[str, Any]:
    first = next(iter(times))
    rows = {}
    for name, values in times.items():
        wall, cpu = zip(*values, strict=True)
        ratios = [value[0] / base[0] for value, base in zip(values, times[first], strict=True)]
        cpu_ratios = [value[1] / base[1] for value, base in zip(values, times[first], strict=True)]
        rows[name] = {
            "label": workers[name].engine.label,
            "about": workers[name].about,
            "steps_per_turn": workers[name].steps,
            "ms_per_step": statistics.median(wall),
            "cpu_ms_per_step": statistics.median(cpu),
            "ratio": statistics.median(ratios),
            "cpu_ratio": statistics.median(cpu_ratios),
            "rounds_wall_ms": wall,
            "rounds_cpu_ms": cpu,
        }
    return rows


def measure_molecule(
    name: str, model: Path, pythons: dict[str, Path], arguments: argparse.Namespace
) -> tuple[int, dict[str, Any]]:
    structure = read_structures([MOLECULES.get(name, name)], seed=0).structures[0]
    workers: dict[str, Worker] = {}
    try:
        for key, engine in engines(model).items():
            if key not in arguments.engines:
                continue
            python = pythons[engine.venv] if engine.venv else Path(sys.executable)
            print(f"{name}: starting {engine.label}", file=sys.stderr, flush=True)
            workers[key] = Worker(engine, python, structure, arguments.core, arguments.segment)
            workers[key].warm_up(arguments.seconds)
        return len(structure), summarise(measure(workers, arguments.rounds), workers)
    finally:
        for worker in workers.values():
            worker.stop()


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per calculator, two columns per molecule."""
    molecules = results["molecules"]
    heads = [f"{name}, {entry['atoms']} atoms: ms/step | ratio" for name, entry in molecules.items()]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|---:|" * len(heads)]
    for key, row in next(iter(molecules.values()))["engines"].items():
        cells = [row["label"]]
        for entry in molecules.values():
            values = entry["engines"][key]
            cells += [f"{values['ms_per_step']:.2f}", f"{values['ratio']:.1f}×"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def notes(results: dict[str, Any]) -> str:
    lines = [
        f"{results['machine']}; Python {results['python']}, torch {results['torch']}. {results['rounds']} rounds, "
        "medians; one core, one thread, ASE's velocity Verlet. The ratio is to the first row.",
        "",
    ]
    rows = next(iter(results["molecules"].values()))["engines"].values()
    return "\n".join([*lines, *(f"- {row['label']}: {row['about']}" for row in rows)])


def fresh_student(folder: Path) -> Path:
    """A model file of the default shape, whose weights are those of a network before training."""
    folder.mkdir(parents=True, exist_ok=True)
    potential = fresh_potential(STUDENT, (1, 6, 7, 8, 9), seed=0)
    return save_model(folder / "default-student.safetensors", potential)


def cpu_model() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", default=list(MOLECULES), help="names above, SMILES or files")
    parser.add_argument("--model", nargs="+", default=[], help="trained students, as molecule=model.safetensors")
    parser.add_argument("--engines", nargs="+", default=list(engines(Path())), choices=list(engines(Path())))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of a turn")
    parser.add_argument("--segment", type=int, default=50, help="steps between returns to the start")
    parser.add_argument("--core", type=int, default=(os.cpu_count() or 1) - 1, help="to pin to; -1: none")
    parser.add_argument("--venvs", type=Path, default=default_folder(), help="folder of the peers' environments")
    parser.add_argument("--torch", default=TORCH, help="what pip is asked for there")
    parser.add_argument("--out", type=Path, default=RESULTS / "md_speed.json")
    arguments = parser.parse_args()
    arguments.core = None if arguments.core < 0 else arguments.core
    return arguments


def main() -> None:
    import torch

    arguments = parse()
    needed = {e.venv for key, e in engines(Path()).items() if e.venv and key in arguments.engines}
    pythons = {name: peer_python(name, arguments.venvs, arguments.torch) for name in sorted(needed)}
    models = dict(item.split("=", 1) for item in arguments.model)
    results: dict[str, Any] = {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rounds": arguments.rounds,
        "seconds_per_turn": arguments.seconds,
        "load_average_before": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "molecules": {},
    }
    for name in arguments.molecules:
        model = Path(models[name]) if name in models else fresh_student(arguments.venvs / "students")
        atoms, rows = measure_molecule(name, model, pythons, arguments)
        results["molecules"][name] = {
            "smiles": MOLECULES.get(name, name),
            "atoms": atoms,
            "student": "trained" if name in models else "fresh weights",
            "engines": rows,
        }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    arguments.out.with_suffix(".md").write_text(table(results) + "\n\n" + notes(results) + "\n")
    print(table(results))
    print()
    print(notes(results))


if __name__ == "__main__":
    main()
