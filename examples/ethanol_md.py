"""The shortest use of a student: an ordinary ASE script with one other line."""

from ase import units
from ase.build import molecule
from ase.md.langevin import Langevin

from distillase.ase_calcs import PotentialCalculator

atoms = molecule("CH3CH2OH")
atoms.calc = PotentialCalculator("runs/quickstart/model.safetensors")
dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False)
dynamics.attach(lambda: print(f"{atoms.get_potential_energy():.3f} eV  {atoms.get_temperature():.0f} K"), interval=200)
dynamics.run(1000)
