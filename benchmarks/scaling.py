"""Training in one process and in several: structures a second, and where the time goes.

    python benchmarks/scaling.py --processes 1 2
    python benchmarks/scaling.py --memory --frames 64 --steps 5 --rounds 1 --compile off --out memory.json

Weak scaling: a step takes `--frames` conformations of aspirin for each process, one thread each. Labels are random
numbers: only speed is measured. Processes are started by torchrun. Everything takes turns for `--rounds` rounds: all
see the same machine, and medians are compared. Shares are those of the busiest process. Communication contains the
wait for the slowest process; of a compiled step, "forward" is all of energies, forces and gradients.

As many trainings at once that know nothing of each other show what the machine gives at most: cores share memory.

Memory is what a process takes at the worst moment, in MB, beside what `distillase launch plan` says of it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from md_speed import cpu_model
from torch import Tensor

from distillase.datasets.readers import read_structures
from distillase.datasets.store import Dataset, write_dataset
from distillase.datasets.structure import Labels
from distillase.training.batches import EdgeBudgetSampler, FrameTable, SharedTable
from distillase.training.config import LossConfig, ModelConfig, SplitConfig, TrainConfig
from distillase.training.engine import TorchEngine
from distillase.training.optimizers import ExponentialAverage
from distillase.training.plan import measure as take_steps
from distillase.training.plan import plan
from distillase.training.run import keep_freed_memory, prepare_potential
from distillase.training.task import PotentialTask
from distillase.training.world import World, join_world

STAGES = ("data", "forward", "backward", "communication")
WARM = 20  # steps


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--frames", type=int, default=4, help="structures of each process in a step")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("full", "bf16"), default="full")
    parser.add_argument("--memory", action="store_true", help="compare with the plan; for large batches")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_frames(path: Path) -> None:
    """1 024 rattled aspirins."""
    structure = read_structures(["CC(=O)Oc1ccccc1C(=O)O"]).structures[0]
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(1024):
        atoms = structure.to_atoms()
        atoms.rattle(0.05, rng=rng)
        labels = Labels(energy=float(rng.normal()), forces=rng.normal(size=(len(atoms), 3)))
        frames.append((replace(structure, positions=atoms.positions), labels))
    write_dataset(path, frames, provenance={"teacher": "random numbers"})


def highest_memory() -> float:
    """MB that this process has ever taken."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return 1024e-6 * int(line.split()[1])


class Clock:
    """Adds up the time spent in functions."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def __call__(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*words: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*words, **named)
            finally:
                self.seconds[stage] += time.perf_counter() - began

        return timed


def work(arguments: argparse.Namespace) -> None:
    """What every process does: steps of a training, timed."""
    torch.set_num_threads(1)
    keep_freed_memory()
    folder: Path = arguments.worker
    with join_world(arguments.device) as world, Dataset(folder / "frames.h5") as data:
        config, model = settings_of(arguments, world.size)
        frames = np.arange(len(data))
        table: FrameTable | SharedTable
        if world.size == 1:
            table = FrameTable(data, frames, cutoff=model.cutoff)
        else:
            table = SharedTable(data, frames, world, folder, cutoff=model.cutoff)
        elements = tuple(sorted({int(z) for z in np.unique(data.numbers)}))
        potential = prepare_potential(model, elements, table, seed=0).to(world.device(arguments.device))
        engine = TorchEngine(PotentialTask(potential, LossConfig()), config, table.batch([0, 1]), world)
        average = ExponentialAverage(engine.task, 0.999)
        sampler = EdgeBudgetSampler(
            table.edge_counts, batch_edges=config.batch_edges, batch_frames=config.batch_frames, seed=0
        )
        counts = engine.task.counts_of_frames(table)
        assert counts is not None
        clock, warm = Clock(), min(WARM, arguments.steps)
        for name in ("sum", "sum_together", "largest", "agree"):
            setattr(World, name, clock("communication", getattr(World, name)))
        engine._forward = clock("forward", engine._forward)  # type: ignore[assignment]
        Tensor.backward = clock("backward", Tensor.backward)  # type: ignore[method-assign]
        batch_of = clock("data", lambda step: [table.batch(f) for f in sampler.of_rank(step, world)])
        steps = [step for epoch in range(100) for step in sampler.steps(epoch, world.size) if len(step) == world.size]
        for number, step in enumerate(steps[: warm + arguments.steps]):
            if number == warm:
                world.wait()
                clock.seconds = dict.fromkeys(STAGES, 0.0)
                began = time.perf_counter()
            engine.step(batch_of(step), 1e-4, counts[np.concatenate(step)].sum(dim=0))
            average.update()
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        structures = arguments.steps * arguments.frames * world.size
        shares = {stage: spent / seconds for stage, spent in clock.seconds.items()}
        found = {"structures_per_second": structures / seconds, "shares": shares | {"rest": 1 - sum(shares.values())}}
        found["memory"] = highest_memory()
        (folder / f"found-{world.rank}.json").write_text(json.dumps(found))
        world.wait()


def settings_of(arguments: argparse.Namespace, processes: int) -> tuple[TrainConfig, ModelConfig]:
    config = TrainConfig(
        batch_frames=arguments.frames, batch_edges=10**9, accumulate=processes, compile=arguments.compile,
        precision=arguments.precision,
    )  # fmt: skip
    return config, ModelConfig(features=arguments.features)


def planned(arguments: argparse.Namespace, dataset: Path) -> dict[int, dict[str, float]]:
    """MB of each process, by the number of processes."""
    config, model = settings_of(arguments, 1)
    found = take_steps(dataset, model, config, SplitConfig(by="frame", validation=0.002, test=0.002))
    parts = ("program", "activations", "memory")
    needs = {n: plan(found, settings_of(arguments, n)[0], n)[0] for n in arguments.processes}
    return {n: {name: getattr(need, name) / 1e6 for name in parts} for n, need in needs.items()}


def measure(processes: int, folder: Path, *, apart: bool = False) -> dict[str, Any]:
    """One turn: of one training by all processes, or (`apart`) of one by each of them."""
    each = 1 if apart else processes
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={each}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running, places = [], []
    for number in range(processes if apart else 1):
        place = folder / f"{processes}-{'apart' if apart else 'together'}-{number}"
        place.mkdir(exist_ok=True)
        if not (place / "frames.h5").exists():
            (place / "frames.h5").symlink_to(folder / "frames.h5")
        words = [str(Path(__file__).resolve()), *sys.argv[1:], "--worker", str(place)]
        running.append(subprocess.Popen([*command, *words], env=environment, stderr=subprocess.DEVNULL))
        places.append(place)
    if any(process.wait() for process in running):
        raise SystemExit("A process of the benchmark failed.")
    found = [json.loads((place / f"found-{rank}.json").read_text()) for place in places for rank in range(each)]
    if apart:
        return {"structures_per_second": sum(f["structures_per_second"] for f in found)}
    return min(found, key=lambda f: f["shares"]["communication"])  # the busiest waits least


def main() -> None:
    arguments = parse()
    if arguments.worker:
        work(arguments)
        return
    turns: dict[int, list[dict[str, Any]]] = {processes: [] for processes in arguments.processes}
    apart: dict[int, list[float]] = {processes: [] for processes in arguments.processes}
    with tempfile.TemporaryDirectory() as name:
        dataset = Path(name) / "frames.h5"
        write_frames(dataset)
        expected = planned(arguments, dataset) if arguments.memory else {}
        for number in range(arguments.rounds):
            for processes in arguments.processes:
                found = measure(processes, Path(name))
                turns[processes].append(found)
                best = found if processes == 1 else measure(processes, Path(name), apart=True)
                apart[processes].append(best["structures_per_second"])
                shares = ", ".join(f"{stage} {100 * part:.1f} %" for stage, part in found["shares"].items())
                speeds = f"{found['structures_per_second']:.0f}/s, apart {apart[processes][-1]:.0f}/s"
                print(f"round {number + 1}: {processes} processes {speeds}; {shares}", flush=True)
        one = [found["structures_per_second"] for found in turns[arguments.processes[0]]]
        results = []
        for processes, found in turns.items():
            ratios = [f["structures_per_second"] / alone for f, alone in zip(found, one, strict=True)]
            results.append({
                "processes": processes,
                "structures_per_second": statistics.median(f["structures_per_second"] for f in found),
                "times_the_first": statistics.median(ratios),
                "range": [min(ratios), max(ratios)],
                "apart_times_the_first": statistics.median(a / b for a, b in zip(apart[processes], one, strict=True)),
                "memory": max(f["memory"] for f in found),
                "planned_memory": expected.get(processes, {}),
                "shares": {
                    stage: statistics.median(f["shares"][stage] for f in found) for stage in (*STAGES, "rest")
                },
            })  # fmt: skip
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{cpu_model()}, {os.cpu_count()} cores"
    settings = {k: v for k, v in vars(arguments).items() if k not in ("out", "worker", "processes")}
    print(json.dumps(results, indent=1))
    arguments.out.write_text(
        json.dumps({"machine": machine, "settings": settings, "results": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
