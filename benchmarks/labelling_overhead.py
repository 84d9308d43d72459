"""What `label_structures` costs over bare loops of the same calculator, one on each core.

    python benchmarks/labelling_overhead.py                       # 20 000 ethanol frames, GFN2-xTB, 5 rounds
    python benchmarks/labelling_overhead.py --frames 2000 --rounds 3

A bare loop is the least there can be: one calculator, positions into one `Atoms`, `calculate`, results kept in memory.
Bare loops and labeller take turns on the same cores, every second round in the opposite order, because other work on a
machine comes and goes. Workers are warm; their start-up is printed apart, and so is the assembly of the dataset file.
CPU seconds of all processes together are given beside the wall-clock: they say the same with less noise.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distillase.ase_calcs.progress import ProgressTask, SilentProgress
from distillase.datasets.labelling import LabelConfig, WorkerPool, label_structures, worker_pool
from distillase.datasets.labelling.process import SINGLE_THREADED
from distillase.datasets.structure import Structure

SEED, SIGMA = 7, 0.05  # Å


@dataclass(frozen=True)
class Round:
    """Seconds of one round: bare loops, labels durable, dataset assembled."""

    bare: float
    labelled: float
    assembled: float
    bare_cpu: float
    labelled_cpu: float
    assembled_cpu: float


def make_positions(n: int) -> tuple[np.ndarray, np.ndarray]:
    from ase.build import molecule

    ethanol, rng = molecule("CH3CH2OH"), np.random.default_rng(SEED)
    return ethanol.numbers, ethanol.positions + SIGMA * rng.normal(size=(n, len(ethanol), 3))


# --- the bare loop, in a process of its own ---------------------------------------------------------------------------


def bare_loop(teacher: str, n: int) -> None:
    """Answer lines "start stop step" on standard input with the seconds and CPU seconds for those frames."""
    from ase import Atoms
    from ase.calculators.calculator import all_changes

    from distillase.ase_calcs.teachers import make_teacher

    numbers, positions = make_positions(n)
    calculator = make_teacher(teacher)
    atoms = Atoms(numbers, positions[0])
    calculator.calculate(atoms, ["energy", "forces"], all_changes)
    print("ready", flush=True)
    for line in sys.stdin:
        frames = slice(*(int(word) for word in line.split()))
        results = []
        wall, cpu = time.perf_counter(), time.process_time()
        for x in positions[frames]:
            atoms.positions[:] = x
            calculator.calculate(atoms, ["energy", "forces"], all_changes)
            results.append(calculator.results)
        print(time.perf_counter() - wall, time.process_time() - cpu, flush=True)


class BareLoops:
    """As many bare loops as there are workers."""

    def __init__(self, teacher: str, n: int, workers: int):
        command = [sys.executable, __file__, "--bare", "--teacher", teacher, "--frames", str(n)]
        self.n = n
        self.processes = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **SINGLE_THREADED},
            )
            for _ in range(workers)
        ]
        for process in self.processes:
            assert process.stdout is not None
            process.stdout.readline()

    def run(self) -> tuple[float, float]:
        """Mean wall-clock seconds of the loops (kinder to them than the longest), and their CPU seconds together."""
        for start, process in enumerate(self.processes):
            assert process.stdin is not None
            process.stdin.write(f"{start} {self.n} {len(self.processes)}\n")
            process.stdin.flush()
        answers = [[float(word) for word in p.stdout.readline().split()] for p in self.processes if p.stdout]
        return statistics.mean(a[0] for a in answers), sum(a[1] for a in answers)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


# --- the labeller -----------------------------------------------------------------------------------------------------


class CpuAtEnd:
    """A progress that notes this process's CPU seconds when labelling ends and assembly begins."""

    cpu = 0.0

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[ProgressTask]:
        with SilentProgress().task(description, total) as task:
            yield task
        self.cpu = time.process_time()

    def say(self, message: str) -> None:
        pass


def label(structures: list[Structure], teacher: str, pool: WorkerPool) -> tuple[float, float, float, float]:
    """Seconds until every label is durable, until the dataset is assembled, and the CPU seconds of each."""
    progress = CpuAtEnd()
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="overhead-") as folder:
        workers = sum(pool.client.run(time.process_time).values())
        client = time.process_time()
        result = label_structures(structures, Path(folder), teacher=teacher, pool=pool, progress=progress)
        client_end = time.process_time()
        workers = sum(pool.client.run(time.process_time).values()) - workers
        assert result.n_labelled == len(structures), result.refused[:3]
    durable = result.seconds - result.assembly_seconds
    return durable, result.seconds, workers + progress.cpu - client, workers + client_end - client


def cpu_model() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def measure(frames: int, rounds: int, teacher: str, workers: int) -> tuple[list[Round], float]:
    numbers, positions = make_positions(frames)
    structures = [Structure(numbers, x, group="ethanol", origin="rattle/000", smiles="CCO") for x in positions]
    bare = BareLoops(teacher, frames, workers)
    measured: list[Round] = []
    try:
        start = time.perf_counter()
        with worker_pool(LabelConfig(workers=workers)) as pool:
            label(structures[: 20 * workers], teacher, pool)
            startup = time.perf_counter() - start
            for number in range(rounds):
                if number % 2 == 0:
                    wall, cpu = bare.run()
                    labelled, assembled, labelled_cpu, assembled_cpu = label(structures, teacher, pool)
                else:
                    labelled, assembled, labelled_cpu, assembled_cpu = label(structures, teacher, pool)
                    wall, cpu = bare.run()
                measured.append(Round(wall, labelled, assembled, cpu, labelled_cpu, assembled_cpu))
                print_round(number, measured[-1])
    finally:
        bare.stop()
    return measured, startup


def percent(over: float, base: float) -> float:
    return 100.0 * (over / base - 1.0)


def print_round(number: int, r: Round) -> None:
    if number == 0:
        print("round   bare loops   labelled   overhead   + dataset   overhead   CPU overhead   + dataset")
    print(
        f"{number + 1:5d}   {r.bare:8.2f} s {r.labelled:8.2f} s {percent(r.labelled, r.bare):+8.1f} % "
        f"{r.assembled:9.2f} s {percent(r.assembled, r.bare):+8.1f} % {percent(r.labelled_cpu, r.bare_cpu):+12.1f} % "
        f"{percent(r.assembled_cpu, r.bare_cpu):+9.1f} %",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--teacher", default="gfn2-xtb")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "labelling_overhead.json")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        bare_loop(arguments.teacher, arguments.frames)
        return
    machine = f"{cpu_model()}, {os.cpu_count()} cores"
    print(f"{arguments.frames} ethanol frames, {arguments.teacher}, {arguments.workers} workers, {machine}")
    rounds, startup = measure(arguments.frames, arguments.rounds, arguments.teacher, arguments.workers)
    medians = {
        "labelled": statistics.median(percent(r.labelled, r.bare) for r in rounds),
        "with_dataset": statistics.median(percent(r.assembled, r.bare) for r in rounds),
        "labelled_cpu": statistics.median(percent(r.labelled_cpu, r.bare_cpu) for r in rounds),
        "with_dataset_cpu": statistics.median(percent(r.assembled_cpu, r.bare_cpu) for r in rounds),
    }
    print(
        f"median overhead: {medians['labelled']:+.1f} % until every label is durable, "
        f"{medians['with_dataset']:+.1f} % with the dataset assembled "
        f"(CPU seconds: {medians['labelled_cpu']:+.1f} %, {medians['with_dataset_cpu']:+.1f} %); "
        f"start-up of the workers, not counted: {startup:.1f} s"
    )
    arguments.out.parent.mkdir(exist_ok=True)
    report = {
        "machine": machine,
        "python": platform.python_version(),
        "teacher": arguments.teacher,
        "frames": arguments.frames,
        "workers": arguments.workers,
        "startup_seconds": startup,
        "median_overhead_percent": medians,
        "rounds": [asdict(r) for r in rounds],
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
