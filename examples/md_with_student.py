"""Relax a molecule with the student, run MD, and look at what it costs and whether it conserves energy.

python examples/md_with_student.py runs/quickstart/model.safetensors
"""

import argparse
import time

import numpy as np
from ase import units
from ase.build import molecule
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from distillase.ase_calcs import PotentialCalculator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model", help="a model file")
parser.add_argument("--structure", default="", help="any file that ASE reads (default: ethanol)")
parser.add_argument("--steps", type=int, default=2000, help="steps of 0.5 fs, of each run (default: 2000)")
arguments = parser.parse_args()

atoms = read(arguments.structure) if arguments.structure else molecule("CH3CH2OH")
# float64, so that what is left of the drift is the network's and not of rounding.
atoms.calc = PotentialCalculator(arguments.model, dtype="float64")

LBFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
print(f"relaxed: {atoms.get_potential_energy():.4f} eV, largest force {np.abs(atoms.get_forces()).max():.3f} eV/Å")

rng = np.random.default_rng(0)
thermalize_momenta(atoms, temperature_K=300, rng=rng)
langevin = Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, rng=rng, fixcm=False)
start = time.perf_counter()
langevin.run(arguments.steps)
seconds = time.perf_counter() - start
print(f"Langevin: {arguments.steps / seconds:.0f} steps/s, {atoms.get_temperature():.0f} K at the end")

energies = []
verlet = VelocityVerlet(atoms, 0.5 * units.fs)
verlet.attach(lambda: energies.append(atoms.get_total_energy()), interval=10)
verlet.run(arguments.steps)
picoseconds = np.arange(len(energies)) * 10 * 0.5e-3
slope = np.polyfit(picoseconds, energies, 1)[0]
print(f"NVE, {picoseconds[-1]:.1f} ps: total energy drifts by {1000 * slope / len(atoms):+.4f} meV/atom/ps")
