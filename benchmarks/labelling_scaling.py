"""Labels a second of two dask workers against those of one, through a scheduler as on a cluster.

    python benchmarks/labelling_scaling.py

Scheduler and workers are started by dask's command line, as on several machines, with the environment that
docs/labelling.md recommends. `distillase` labels rattled ethanol with GFN2-xTB on one worker, then on two, in turns,
with new structures. Only labelling counts, until every label is on the disk (not the start, nor putting the dataset
together). A bare loop of the same calculator in one process, then in two, shows what the machine gives.
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
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from md_speed import cpu_model

from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.labelling import LabelConfig, label_structures, worker_pool
from distillase.datasets.labelling.process import quiet_environment
from distillase.datasets.readers import read_structures
from distillase.datasets.structure import Structure


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecule", default="CCO", help="SMILES")
    parser.add_argument("--frames", type=int, default=8000, help="of a turn of one worker; two get twice as many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=18786)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "labelling_scaling.json")
    return parser.parse_args()


def rattled(molecule: Structure, n: int, seed: int) -> list[Structure]:
    rng = np.random.default_rng(seed)
    shape = (len(molecule), 3)
    return [
        Structure(molecule.numbers, molecule.positions + 0.05 * rng.normal(size=shape), group="benchmark")
        for _ in range(n)
    ]


def turn(structures: list[Structure], workers: int, port: int, folder: Path) -> float:
    """Labels a second."""
    environment = os.environ | quiet_environment()
    dask = [sys.executable, "-m", "dask"]
    address = f"tcp://127.0.0.1:{port}"
    where = ["--no-dashboard"]
    started = [
        subprocess.Popen([*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), *where], env=environment,
                         stderr=subprocess.DEVNULL),
        subprocess.Popen([*dask, "worker", address, "--nworkers", str(workers), "--nthreads", "1", *where,
                          "--local-directory", str(folder)], env=environment, stderr=subprocess.DEVNULL),
    ]  # fmt: skip
    try:
        config = LabelConfig(scheduler=address)
        with worker_pool(config) as pool:
            pool.client.wait_for_workers(workers)
            label_structures(structures[:100], folder / "warm", teacher="gfn2-xtb", config=config, pool=pool)
            result = label_structures(structures[100:], folder / "run", teacher="gfn2-xtb", config=config, pool=pool)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
    return result.n_labelled / (result.seconds - result.assembly_seconds)


def bare(structures: list[Structure]) -> float:
    """Energies and forces a second in a loop."""
    calculator, atoms = make_teacher("gfn2-xtb"), structures[0].to_atoms()
    began = time.perf_counter()
    for structure in structures:
        atoms.positions[:] = structure.positions
        calculator.single_point(atoms, ("energy", "forces"))  # type: ignore[attr-defined]
    return len(structures) / (time.perf_counter() - began)


def bare_ratio(molecule: Structure, frames: int) -> float:
    """Two loops at once against one."""
    speeds = []
    for processes in (1, 2):
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            list(pool.map(bare, [rattled(molecule, 100, k) for k in range(processes)]))  # they have begun
            speeds.append(sum(pool.map(bare, [rattled(molecule, frames, k) for k in range(processes)])))
    return speeds[1] / speeds[0]


def main() -> None:
    os.environ.update(quiet_environment())
    arguments = parse()
    molecule = read_structures([arguments.molecule]).structures[0]
    rows, seed = [], 0
    for number in range(arguments.rounds):
        speeds = []
        for workers in (1, 2):
            seed += 1
            with tempfile.TemporaryDirectory() as name:
                structures = rattled(molecule, arguments.frames * workers + 100, seed)
                speeds.append(turn(structures, workers, arguments.port, Path(name)))
            time.sleep(1)
        loops = bare_ratio(molecule, arguments.frames // 2)
        rows.append({"one": speeds[0], "two": speeds[1], "ratio": speeds[1] / speeds[0], "bare_ratio": loops})
        ratios = f"{rows[-1]['ratio']:.3f} times; bare loops {loops:.3f} times"
        print(f"round {number + 1}: {speeds[0]:.0f}/s, {speeds[1]:.0f}/s, {ratios}", flush=True)
    ratio = statistics.median(row["ratio"] for row in rows)
    print(f"two workers label {ratio:.2f} times as much as one")
    machine = f"{cpu_model()}, {os.cpu_count()} cores"
    settings = {k: v for k, v in vars(arguments).items() if k != "out"}
    arguments.out.write_text(
        json.dumps({"machine": machine, "settings": settings, "ratio": ratio, "rounds": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
