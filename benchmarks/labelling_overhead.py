"""What `label_structures` costs over bare loops of the same calculator, one on each core.

    python benchmarks/labelling_overhead.py                       # 20 000 ethanol frames, GFN2-xTB, 5 rounds
    python benchmarks/labelling_overhead.py --frames 2000 --rounds 3

A bare loop is the least there can be: one calculator, positions into one `Atoms`, `calculate`, results kept in memory.

Other work on a machine comes and goes, and a label takes 10 % longer in one second than in the next. So both are under
way at the same time, and stopped (SIGSTOP) and continued (SIGCONT) in turns of half a second: both have all cores in
their turns and see the same seconds of the machine. The labeller's time is the sum of its turns until every label is
durable, and until the dataset file is written; a bare loop's time per frame is that of its turns in between. Workers
are warm, their start-up is printed apart. The labeller's clock goes on while it is stopped, so its batches are given
two seconds by that clock: one of work, as by default.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import platform
import select
import signal
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
from md_speed import cpu_model

from distillase.ase_calcs.progress import ProgressTask, SilentProgress
from distillase.datasets.labelling import LabelConfig, label_structures, worker_pool
from distillase.datasets.labelling.process import SINGLE_THREADED
from distillase.datasets.structure import Structure

SEED, SIGMA = 7, 0.05  # Å
TURN = 0.5  # s


@dataclass(frozen=True)
class Round:
    """Seconds of one round for all frames: bare loops on all cores, labels durable, dataset assembled."""

    bare: float
    labelled: float
    assembled: float


def make_positions(n: int) -> tuple[np.ndarray, np.ndarray]:
    from ase.build import molecule

    ethanol, rng = molecule("CH3CH2OH"), np.random.default_rng(SEED)
    return ethanol.numbers, ethanol.positions + SIGMA * rng.normal(size=(n, len(ethanol), 3))


# --- the two programs that take turns ---------------------------------------------------------------------------------


def bare_loop(teacher: str, n: int, counter: Path) -> None:
    """Label the same frames again and again until killed; the number so far is in the first 8 bytes of `counter`."""
    from ase import Atoms
    from ase.calculators.calculator import all_changes

    from distillase.ase_calcs.teachers import make_teacher

    numbers, positions = make_positions(n)
    calculator = make_teacher(teacher)
    atoms = Atoms(numbers, positions[0])
    calculator.calculate(atoms, ["energy", "forces"], all_changes)
    with open(counter, "r+b") as file:
        count = np.frombuffer(mmap.mmap(file.fileno(), 8), dtype=np.int64)
    print("ready", flush=True)
    while True:
        results = []
        for x in positions:
            atoms.positions[:] = x
            calculator.calculate(atoms, ["energy", "forces"], all_changes)
            results.append(calculator.results)
            count[0] += 1


class SayDurable:
    """A progress that says when labelling ends and assembly begins."""

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[ProgressTask]:
        with SilentProgress().task(description, total) as task:
            yield task
        print("durable", flush=True)

    def say(self, message: str) -> None:
        pass


def labeller(teacher: str, n: int, workers: int) -> None:
    """For every line of standard input: label all frames, say "durable", then "assembled"."""
    numbers, positions = make_positions(n)
    structures = [Structure(numbers, x, group="ethanol", origin="rattle/000", smiles="CCO") for x in positions]
    config = LabelConfig(workers=workers, batch_seconds=2 * LabelConfig().batch_seconds)
    start = time.perf_counter()
    with worker_pool(config) as pool, tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        label_structures(structures[: 20 * workers], Path(folder) / "warm", teacher=teacher, pool=pool)
        print(f"ready {time.perf_counter() - start}", flush=True)
        for line in sys.stdin:
            out = Path(folder) / line.strip()
            result = label_structures(structures, out, teacher=teacher, config=config, pool=pool, progress=SayDurable())
            assert result.n_labelled == len(structures), result.refused[:3]
            print("assembled", flush=True)


# --- taking turns -----------------------------------------------------------------------------------------------------


class Program:
    """This script in another role, with a process group of its own: it and its children stop and go together."""

    def __init__(self, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **SINGLE_THREADED},
            process_group=0,
        )

    def send(self, signal_number: int) -> None:
        os.killpg(self.process.pid, signal_number)

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def line(self, timeout: float | None = None) -> str | None:
        """The next line it says; None if there is none within `timeout` seconds."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            return None
        line = b""
        while not line.endswith(b"\n"):  # unbuffered: `select` must not miss what a buffer has swallowed
            byte = os.read(self.process.stdout.fileno(), 1)
            if not byte:
                raise SystemExit(f"{sys.argv[0]}: a program of the benchmark ended early.")
            line += byte
        return line.decode().strip()

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()


class Bare:
    """As many bare loops as there are workers, stopped but for their turns."""

    def __init__(self, teacher: str, n: int, workers: int, folder: Path):
        self.counters = [folder / f"count-{i}" for i in range(workers)]
        self.programs = []
        for counter in self.counters:
            counter.write_bytes(bytes(8))
            program = Program("--role", "bare", "--teacher", teacher, "--frames", str(n), "--counter", str(counter))
            self.programs.append(program)
            program.line()
            program.send(signal.SIGSTOP)

    def frames(self) -> int:
        return sum(int.from_bytes(counter.read_bytes(), "little") for counter in self.counters)

    def turn(self) -> float:
        start = time.perf_counter()
        for program in self.programs:
            program.send(signal.SIGCONT)
        time.sleep(TURN)
        for program in self.programs:
            program.send(signal.SIGSTOP)
        return time.perf_counter() - start


def one_round(number: int, frames: int, labelling: Program, bare: Bare) -> Round:
    """Turns until the labeller has its dataset; it is running when called, with nothing to do, and when left."""
    seconds, marks = 0.0, {}
    bare_seconds, bare_frames = 0.0, bare.frames()
    labelling.send(signal.SIGSTOP)
    labelling.write(f"round-{number}")
    while "assembled" not in marks:
        start = now = time.perf_counter()
        labelling.send(signal.SIGCONT)
        while "assembled" not in marks and now - start < TURN:
            said = labelling.line(max(0.0, TURN - (now - start)))
            now = time.perf_counter()
            if said is not None:
                marks[said] = seconds + now - start
        labelling.send(signal.SIGSTOP)
        seconds += time.perf_counter() - start
        bare_seconds += bare.turn()
    labelling.send(signal.SIGCONT)
    bare_frames = bare.frames() - bare_frames
    return Round(bare_seconds / bare_frames * frames, marks["durable"], marks["assembled"])


def measure(frames: int, rounds: int, teacher: str, workers: int) -> tuple[list[Round], float]:
    measured: list[Round] = []
    labelling = Program("--role", "labeller", "--teacher", teacher, "--frames", str(frames), "--workers", str(workers))
    with tempfile.TemporaryDirectory() as folder:
        bare = None
        try:
            startup = float((labelling.line() or "").split()[1])
            bare = Bare(teacher, frames, workers, Path(folder))
            bare.turn()
            for number in range(rounds):
                measured.append(one_round(number, frames, labelling, bare))
                print_round(number, measured[-1])
        finally:
            labelling.send(signal.SIGCONT)
            assert labelling.process.stdin is not None
            labelling.process.stdin.close()  # it ends, and takes its workers and its folder with it
            for program in bare.programs if bare else ():
                program.kill()
            labelling.process.wait()
    return measured, startup


def percent(over: float, base: float) -> float:
    return 100.0 * (over / base - 1.0)


def print_round(number: int, r: Round) -> None:
    if number == 0:
        print("round   bare loops   labels durable   overhead   dataset written   overhead")
    print(
        f"{number + 1:5d}   {r.bare:8.2f} s {r.labelled:14.2f} s {percent(r.labelled, r.bare):+8.1f} % "
        f"{r.assembled:15.2f} s {percent(r.assembled, r.bare):+8.1f} %",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--teacher", default="gfn2-xtb")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "labelling_overhead.json")
    parser.add_argument("--role", choices=("bare", "labeller"), help=argparse.SUPPRESS)
    parser.add_argument("--counter", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "bare":
        bare_loop(arguments.teacher, arguments.frames, arguments.counter)
        return
    if arguments.role == "labeller":
        labeller(arguments.teacher, arguments.frames, arguments.workers)
        return
    machine = f"{cpu_model()}, {os.cpu_count()} cores"
    print(f"{arguments.frames} ethanol frames, {arguments.teacher}, {arguments.workers} workers, {machine}")
    rounds, startup = measure(arguments.frames, arguments.rounds, arguments.teacher, arguments.workers)
    medians = {
        "labelled": statistics.median(percent(r.labelled, r.bare) for r in rounds),
        "with_dataset": statistics.median(percent(r.assembled, r.bare) for r in rounds),
    }
    print(
        f"median overhead: {medians['labelled']:+.1f} % until every label is durable, {medians['with_dataset']:+.1f} % "
        f"until the dataset is written; start-up of the workers, not counted: {startup:.1f} s"
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
