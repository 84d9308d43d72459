"""What a label costs with each teacher, in one process and side by side.

    python benchmarks/teachers.py                                     # ethanol: gfn2-xtb gfn2-xtb@xtb gfn-ff mmff94
    python benchmarks/teachers.py --structure peptide.pdb openmm:amber14 "openmm:amber14?platform=CPU" gfn-ff

Every round labels one frame with each teacher in turn, so that all see the same seconds of the machine; the median of
the rounds is given, and its ratio to the first teacher's. The first label of each (imports, start of a process,
parameter files) is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import read

from distillase.ase_calcs.teachers import make_teacher, teacher_version

SEED, SIGMA = 7, 0.03  # Å


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teachers", nargs="*", default=["gfn2-xtb", "gfn2-xtb@xtb", "gfn-ff", "mmff94"])
    parser.add_argument("--structure", default="CH3CH2OH", help="a file, or a molecule of ase.build.molecule")
    parser.add_argument("--charge", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    known = Path(arguments.structure).exists()
    atoms = read(arguments.structure) if known else molecule(arguments.structure)
    assert isinstance(atoms, Atoms)
    calculators = [make_teacher(name, arguments.charge) for name in arguments.teachers]
    for calculator in calculators:
        calculator.get_property("forces", atoms)
    rng, seconds = np.random.default_rng(SEED), [[] for _ in calculators]
    for _ in range(arguments.rounds):
        frame = atoms.copy()
        frame.positions += SIGMA * rng.normal(size=frame.positions.shape)
        for calculator, times in zip(calculators, seconds, strict=True):
            start = time.perf_counter()
            calculator.get_property("forces", frame)
            times.append(time.perf_counter() - start)
    medians = [statistics.median(times) for times in seconds]
    print(f"{atoms.get_chemical_formula()}, {len(atoms)} atoms, {arguments.rounds} rounds")
    for name, median in zip(arguments.teachers, medians, strict=True):
        print(f"{name:40} {1e3 * median:8.2f} ms  {median / medians[0]:6.2f} ×  {teacher_version(name)}")


if __name__ == "__main__":
    main()
