"""Molecules, calculators and runs that the tests of trajectories share."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from ase.build import molecule

from distillase.datasets.sampling import TrajectoryConfig, run_trajectories
from distillase.datasets.store import Dataset
from distillase.datasets.structure import Structure

pytest.importorskip("h5py")

R_GAS = 8.31446261815324e-3  # kJ/mol/K, CODATA 2018: not the constants of the code

# Springs between all atoms; slow, interrupted, failing or buggy after so many calls where it is told to be.
CALCULATORS = """
import os, time
import numpy as np
from ase.calculators.calculator import Calculator, CalculationFailed

class Springs(Calculator):
    implemented_properties = ["energy", "forces"]

    def __init__(self, log="", fail=0, bug=0, atoms=0):
        super().__init__()
        self.log, self.calls, self.only = log, 0, atoms
        self.seconds = float(os.environ.get("SPRINGS_SECONDS", 0.0))
        self.fail, self.bug = fail, bug and not os.environ.get("SPRINGS_MENDED")
        self.interrupt = int(os.environ.get("SPRINGS_INTERRUPT", 0))

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        time.sleep(self.seconds)
        if len(self.atoms) == (self.only or len(self.atoms)):
            self.misbehave()
        x = self.atoms.positions
        arms = x[:, None] - x[None]
        lengths = np.sqrt((arms**2).sum(axis=-1)) + np.eye(len(x))
        stretch = np.where(np.eye(len(x)) > 0, 0.0, lengths - 1.2)
        forces = -2.0 * (stretch / lengths)[..., None] * arms
        self.results = {"energy": 0.5 * (stretch**2).sum(), "forces": forces.sum(axis=1)}
        if self.log:
            with open(self.log, "ab", buffering=0) as file:
                file.write(b".")

    def misbehave(self):
        if self.fail and self.calls > self.fail:
            raise CalculationFailed("SCF not converged in 250 cycles")
        if self.bug and self.calls > 60:
            raise KeyError("oops")
        if self.interrupt and self.calls > self.interrupt:
            raise KeyboardInterrupt


class Cliff(Springs):
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if self.calls > 60:
            self.results["forces"] = 1e3 * self.results["forces"]
"""

KILLED_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import trajectory_runs as t
from distillase.datasets.sampling import run_trajectories

if __name__ == "__main__":
    run_trajectories([t.water(), t.chain()], Path(sys.argv[2]), teacher=sys.argv[3], config=t.SHORT, seed=5, workers=2)
"""


@pytest.fixture(scope="module", autouse=True)
def calculators(tmp_path_factory):
    """A module that workers can import too."""
    folder = tmp_path_factory.mktemp("calculators")
    (folder / "test_trajectories_calculators.py").write_text(CALCULATORS)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


def springs(kind: str = "Springs", **options) -> str:
    said = "&".join(f"{key}={value!r}" for key, value in options.items())
    return f"test_trajectories_calculators:{kind}" + (f"?{said}" if said else "")


IDEAL_GAS = "ase.calculators.idealgas:IdealGas"


def water() -> Structure:
    atoms = molecule("H2O")
    return Structure(atoms.numbers, atoms.positions, group="water", smiles="O")


def chain() -> Structure:
    """Two oxygens and two carbons; charged so that the charge has to travel."""
    positions = 1.2 * np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.85, 0], [0.5, 0.3, 0.8]])
    return Structure(np.array([8, 6, 6, 8]), positions, group="C/C=C\\O", charge=2, multiplicity=3)


SHORT = TrajectoryConfig(
    "verlet", 300.0, 0.5, picoseconds=0.1, interval=2.0, equilibrate=0.02, trajectories=2, conformers=0
)
LANGEVIN = replace(SHORT, integrator="langevin")


def run(folder, molecules=None, config=SHORT, teacher=None, **options):
    options = {"seed": 5, "workers": 1} | options
    return run_trajectories(molecules or [neutral()], folder, teacher=teacher or springs(), config=config, **options)


def neutral() -> Structure:
    return replace(chain(), charge=0, multiplicity=1)


def told(records) -> list[dict]:
    """Records without what a clock measured."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def same(result, other) -> bool:
    return (
        Dataset(result.path).content_hash == Dataset(other.path).content_hash
        and told(result.records) == told(other.records)
        and Dataset(result.path).recompute_hash() == Dataset(result.path).content_hash
    )
