"""The force field in LAMMPS is the one in ASE."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import units

from distillase.ase_calcs.allegro import Allegro
from distillase.ase_calcs.errors import InputError, StructureError
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import Chains, coarse_grained_atoms, extended_chain
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.residues import CODES

pytest.importorskip("allegro")
lammps_module = pytest.importorskip("distillase.ase_calcs.proteins.lammps")
try:
    lammps_module.import_lammps()
except ImportError:
    pytest.skip("LAMMPS is not installed", allow_module_level=True)

SEQUENCE = "GYDPETGTWG:AKP"
QUIET = ("-log", "none", "-screen", "none")


def model() -> CoarseGrainedModel:
    small = {"scalar_features": 8, "tensor_features": 4, "n_basis": 6, "mlp": 8}
    part = Allegro(range(1, 21), dtype=torch.float64, **small)
    network = {"architecture": "allegro", "hyperparameters": part.hyperparameters}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = CoarseGrainedModel(
            range(1, 21), network=network, dtype=torch.float64,
            prior={"classes": {"bonds": ["GY", "DP"], "angles": ["G", "P"], "dihedrals": ["GX", "XX", "PX"]}},
        )  # fmt: skip
        with torch.no_grad():
            for parameter, spread in ((made.prior.angle, 0.1), (made.prior.dihedral, 0.1), (made.prior.length, 0.03)):
                parameter += spread * torch.randn(parameter.shape, dtype=torch.float64)
        made.network.energy_scale.fill_(0.05)  # fresh weights pull hard
    return made.requires_grad_(False)


def configurations(n: int) -> np.ndarray:
    return extended_chain(SEQUENCE, angle=110, dihedral=60) + np.random.default_rng(0).normal(0, 0.3, (n, 13, 3))


def test_energies_and_forces_are_those_of_ase(tmp_path) -> None:
    made, x = model(), configurations(20)
    calculator = CoarseGrainedCalculator(made)
    folder = lammps_module.write_lammps(made, coarse_grained_atoms(SEQUENCE, x[0]), tmp_path)
    lammps = lammps_module.open_lammps(folder, QUIET)
    constant = lammps_module.constant_of_lammps(made, Chains.from_sequence(SEQUENCE))
    for positions in x:
        atoms = coarse_grained_atoms(SEQUENCE, positions)
        atoms.calc = calculator
        lammps.scatter_atoms("x", 1, 3, (positions.size * lammps_double())(*positions.ravel()))
        lammps.command("run 0 post no")
        forces = np.array(lammps.gather_atoms("f", 1, 3)).reshape(-1, 3)
        assert np.abs(forces - atoms.get_forces()).max() < 1e-6 * np.abs(atoms.get_forces()).max()
        energy = lammps.get_thermo("pe") - constant
        assert energy == pytest.approx(atoms.get_potential_energy(), rel=1e-6)
    lammps.close()


def lammps_double():
    import ctypes

    return ctypes.c_double


def test_energy_is_conserved_in_lammps_to_second_order(tmp_path) -> None:
    made, atoms = model(), coarse_grained_atoms(SEQUENCE, extended_chain(SEQUENCE))
    spread = {}
    for step in (5.0, 2.5):
        lammps = lammps_module.open_lammps(
            lammps_module.write_lammps(made, atoms, tmp_path / str(step), timestep=step), QUIET
        )
        totals = []
        for _ in range(20):
            lammps.command(f"run {int(125 / step)} post no")
            totals.append(lammps.get_thermo("etotal"))
        lammps.close()
        spread[step] = np.ptp(totals)
    assert spread[2.5] < 0.001  # eV, of 2 eV of kinetic energy
    assert spread[5.0] / spread[2.5] == pytest.approx(4.0, rel=0.4)


def test_the_folder_runs_by_itself(tmp_path) -> None:
    atoms = coarse_grained_atoms(SEQUENCE, configurations(1)[0])
    folder = lammps_module.write_lammps(model(), atoms, tmp_path / "a folder", temperature_K=300.0)
    words = [sys.executable, "run.py", "20"]
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (folder / "frames.lammpstrj").read_text().count("TIMESTEP") >= 1


def test_bad_input_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="cg lammps"):
        lammps_module.open_lammps(tmp_path)
    atoms = coarse_grained_atoms("AG", extended_chain("AG"))
    atoms.pbc = True
    with pytest.raises(StructureError, match="periodic"):
        lammps_module.write_lammps(model(), atoms, tmp_path)
    pair = coarse_grained_atoms("A:G", extended_chain("A:G"))
    with pytest.raises(StructureError, match="No two beads"):
        lammps_module.write_lammps(model(), pair, tmp_path)
    with pytest.raises(InputError, match="positive"):
        lammps_module.write_lammps(model(), coarse_grained_atoms("AG", extended_chain("AG")), tmp_path, seed=0)
    with pytest.raises(StructureError, match="residues A"):
        lammps_module.write_lammps(CoarseGrainedModel([6]), coarse_grained_atoms("AG", extended_chain("AG")), tmp_path)


def test_velocities_are_at_the_temperature_with_all_their_momenta(tmp_path) -> None:
    atoms = coarse_grained_atoms(SEQUENCE, extended_chain(SEQUENCE))
    folder = lammps_module.write_lammps(model(), atoms, tmp_path, temperature_K=300.0)
    lammps = lammps_module.open_lammps(folder, QUIET)
    lammps.command("run 0 post no")
    velocities = np.array(lammps.gather_atoms("v", 1, 3)).reshape(-1, 3) * 1e-3  # Å/fs
    kinetic = 0.5 * (atoms.get_masses()[:, None] * velocities**2).sum() / units.fs**2
    assert kinetic == pytest.approx(1.5 * 13 * units.kB * 300, rel=1e-5)
    assert lammps.get_thermo("temp") == pytest.approx(300.0, rel=1e-6)
    lammps.close()


def test_the_command(tmp_path, capsys) -> None:
    from distillase.ase_calcs.modelfile import save_model
    from distillase.launch.cli import main

    path = save_model(tmp_path / "model.safetensors", model())
    assert main(["cg", "lammps", str(path), "GYDPE", "--out", str(tmp_path / "run"), "--temperature", "0"]) == 0
    assert "5 beads for LAMMPS" in capsys.readouterr().out
    assert "langevin" not in (tmp_path / "run" / "in.beads").read_text()


@pytest.mark.compiler
def test_the_network_compiled_for_lammps_is_the_network(tmp_path) -> None:
    made, x = model(), configurations(4)
    x[2:] *= 1.6  # fewer pairs within the cutoff
    folder = lammps_module.write_lammps(made, coarse_grained_atoms(SEQUENCE, x[0]), tmp_path, pair_allegro=True)
    lines = (folder / "in.beads").read_text().splitlines()
    assert "pair_coeff * * network.nequip.pt2 A D E G K P T W Y" in lines
    assert lines.index("special_bonds lj/coul 1 1 1") < lines.index("pair_style allegro")
    compiled = torch._inductor.aoti_load_package(str(folder / "network.nequip.pt2"))
    named = compiled.get_metadata()["type_names"].split()
    chains = Chains.from_sequence(SEQUENCE)
    topology = made.bind(chains)
    types = torch.tensor([named.index(CODES[t]) for t in chains.types])
    counts = set()
    for positions in x:
        near = np.linalg.norm(positions[:, None] - positions, axis=-1) < float(compiled.get_metadata()["r_max"])
        edges = torch.tensor(np.stack(np.nonzero(near & ~np.eye(13, dtype=bool))))
        counts.add(edges.shape[1])
        energies, forces, _ = compiled(torch.tensor(positions), edges, types)
        # What is left for `fix external`, and the pair style, are everything together.
        rest, pull = lammps_module.rest_of_forces(made, positions, topology, network=False)
        every, pulls = lammps_module.rest_of_forces(made, positions, topology)
        assert float(energies.sum()) + rest == pytest.approx(every, rel=1e-9)
        assert np.abs(forces.numpy() + pull - pulls).max() < 1e-9 * np.abs(pulls).max()
    assert len(counts) > 1
    with pytest.raises(InputError, match="without `pair_style allegro`"):
        lammps_module.open_lammps(folder, QUIET)


def test_a_network_that_lammps_cannot_have_is_refused(tmp_path) -> None:
    atoms = coarse_grained_atoms("AG", extended_chain("AG"))
    with pytest.raises(InputError, match="has no network"):
        lammps_module.write_lammps(CoarseGrainedModel(range(1, 21)), atoms, tmp_path, pair_allegro=True)
