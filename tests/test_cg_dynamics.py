"""Beads in other people's dynamics: multiple time steps, PLUMED, and an observer that looks after them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import units
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from distillase.ase_calcs.dynamics import MTSLangevin, MTSVelocityVerlet
from distillase.ase_calcs.errors import InputError
from distillase.ase_calcs.layers import polynomial_cutoff, sum_over_neighbours
from distillase.ase_calcs.potential import AtomicTerms, Potential
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import Chains, coarse_grained_atoms, extended_chain
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.watch import BeadWatch, UnstableBeads


class Attraction(Potential):
    """Stands for a network: smooth, and every pair has a minimum near 5.5 Å."""

    architecture = "attraction"

    def __init__(self, elements) -> None:  # type: ignore[no-untyped-def]
        super().__init__(elements, 9.0)
        self.double()

    @property
    def hyperparameters(self) -> dict[str, object]:
        return {}

    def atomic_terms(self, species, edges, vectors, charge, multiplicity) -> AtomicTerms:  # type: ignore[no-untyped-def]
        r = vectors.norm(dim=-1)
        pair = -0.06 * torch.exp(-((r - 5.5) ** 2)) * polynomial_cutoff(r / self.cutoff)
        return AtomicTerms(sum_over_neighbours(pair, edges[0], species))


def hybrid() -> CoarseGrainedModel:
    model = CoarseGrainedModel(range(1, 21))
    model.network = Attraction(model.elements)
    return model.requires_grad_(False)


def calls(calculator: CoarseGrainedCalculator) -> list[int]:
    """How often its network is asked: a list of one number that counts."""
    counted = [0]
    calculator.models[0].network.register_forward_hook(lambda *_: counted.__setitem__(0, counted[0] + 1))
    return counted


def peptide(model: CoarseGrainedModel, sequence: str = "GYDPETG"):  # type: ignore[no-untyped-def]
    atoms = coarse_grained_atoms(sequence, extended_chain(sequence))
    atoms.calc = CoarseGrainedCalculator(model)
    return warm(atoms)


def warm(atoms, kelvin: float = 300.0):  # type: ignore[no-untyped-def]
    spread = np.sqrt(units.kB * kelvin * atoms.get_masses())[:, None]
    atoms.set_momenta(spread * np.random.default_rng(1).normal(size=(len(atoms), 3)))
    return atoms


def test_multiple_time_steps_follow_the_hybrid_with_fewer_calls_of_the_network() -> None:
    """Bonds are stiff and the network is smooth: prior inside, hybrid outside."""
    model, prior = hybrid(), CoarseGrainedCalculator(hybrid(), part="prior")
    steps, k, inner = 75, 4, 5.0 * units.fs
    plain, nested, without = (peptide(model) for _ in range(3))
    every, some = calls(plain.calc), calls(nested.calc)
    without.calc = CoarseGrainedCalculator(model, part="prior")
    energies = []
    dynamics = MTSVelocityVerlet(nested, k * inner, inner=prior, k=k)
    dynamics.attach(lambda: energies.append(nested.get_total_energy()))
    dynamics.run(steps)
    for atoms in (plain, without):
        VelocityVerlet(atoms, inner).run(steps * k)
    assert (some[0], every[0]) == (steps + 1, steps * k + 1)
    assert np.ptp(energies) < 0.02 * nested.get_kinetic_energy()
    # Both went the same way, which is not that of the prior alone.
    apart = np.abs(nested.positions - plain.positions).max()
    assert apart < 0.05 * np.abs(without.positions - plain.positions).max()


def mean_distance(part: str) -> float:
    """⟨r₁₃⟩ of three beads at 300 K, over all triangles with sides a, b, d: the volume element is a b d."""
    model, chains = hybrid(), Chains.from_sequence("AGA")
    bond = np.linspace(3.5, 4.25, 24)
    a, b, d = (g.ravel() for g in np.meshgrid(bond, bond, np.linspace(2.5, 8.4, 120)))
    possible = a + b > d
    a, b, d = a[possible], b[possible], d[possible]
    x = np.zeros((len(a), 3, 3))
    x[:, 1, 0] = (a**2 + d**2 - b**2) / (2 * d)
    x[:, 1, 1] = np.sqrt(np.maximum(0.0, a**2 - x[:, 1, 0] ** 2))
    x[:, 2, 0] = d
    with torch.no_grad():
        energy = model(torch.as_tensor(x), model.bind(chains), part).energy.numpy()  # type: ignore[arg-type]
    weight = a * b * d * np.exp(-(energy - energy.min()) / (units.kB * 300))
    return float((weight * d).sum() / weight.sum())


def test_multiple_time_steps_sample_the_distribution_of_the_hybrid() -> None:
    """Many chains of three beads in one set of atoms, far from each other."""
    model, copies = hybrid(), 32
    x = np.concatenate([extended_chain("AGA") + np.array([0.0, 0.0, 100.0 * k]) for k in range(copies)])
    atoms = coarse_grained_atoms(":".join(["AGA"] * copies), x)
    atoms.calc = CoarseGrainedCalculator(model)
    counter = calls(atoms.calc)
    dynamics = MTSLangevin(
        warm(atoms), 36 * units.fs, inner=CoarseGrainedCalculator(model, part="prior"), k=3, temperature_K=300,
        friction=0.01 / units.fs, fixcm=False, rng=3,
    )  # fmt: skip
    found: list[np.ndarray] = []
    dynamics.attach(
        lambda: found.append(
            np.linalg.norm(np.diff(atoms.positions.reshape(copies, 3, 3)[:, [0, 2]], axis=1), axis=-1)
        ),
        interval=3,
    )
    dynamics.run(350)
    assert counter[0] == 351
    each = np.array(found[15:]).mean((0, 2))
    error = each.std(ddof=1) / np.sqrt(copies)
    assert each.mean() == pytest.approx(mean_distance("hybrid"), abs=4 * error)
    assert abs(mean_distance("prior") - mean_distance("hybrid")) > 6 * error  # the network has a say


def test_the_watch_ends_what_blows_up_and_keeps_the_frames_before(tmp_path) -> None:
    atoms = peptide(hybrid())
    rng = np.random.default_rng(0)
    dynamics = Langevin(atoms, 10 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng)
    watch = BeadWatch(dynamics, temperature_K=300, keep=3, path=tmp_path / "good.extxyz")
    dynamics.attach(watch, interval=5)
    dynamics.run(40)
    good = atoms.positions.copy()
    assert len(watch.frames) == 3
    assert 2.5 < watch.shortest < 4.2
    assert len(watch.temperatures) == 9
    atoms.positions[5] = atoms.positions[1] + [0.6, 0.0, 0.0]
    with pytest.raises(UnstableBeads, match=r"two beads came within 0\.\d+ Å.*last good frame is of 0\.4 ps"):
        watch()
    assert np.array_equal(watch.frames[-1].positions, good)
    kept = read(tmp_path / "good.extxyz", ":")
    assert len(kept) == 3
    assert kept[-1].positions == pytest.approx(good, abs=1e-6)
    assert kept[-1].get_momenta() == pytest.approx(watch.frames[-1].get_momenta(), abs=1e-6)


def test_the_watch_sees_heat_forces_and_nan() -> None:
    for change, message in (
        (lambda a: a.set_momenta(6 * a.get_momenta()), "the beads are at"),
        (lambda a: a.positions.__setitem__(0, a.positions[0] + [-8.0, 0.0, 0.0]), "a force of"),
        (lambda a: a.set_momenta(np.full((7, 3), np.nan)), "not finite"),
    ):
        atoms = peptide(hybrid())
        watch = BeadWatch(MTSVelocityVerlet(atoms, units.fs, inner=atoms.calc, k=1), temperature_K=300)
        watch()
        change(atoms)
        with pytest.raises(UnstableBeads, match=message):
            watch()
    with pytest.raises(InputError, match="largest_force"):
        BeadWatch(watch.dynamics, largest_force=0.0)


def test_a_run_with_a_step_that_is_far_too_long_is_ended() -> None:
    atoms = peptide(hybrid())
    dynamics = Langevin(atoms, 90 * units.fs, temperature_K=300, friction=0.001 / units.fs, fixcm=False)
    dynamics.attach(BeadWatch(dynamics, temperature_K=300), interval=1)
    with pytest.raises(UnstableBeads, match="shorter time step"):
        dynamics.run(200)


@pytest.fixture
def plumed():  # type: ignore[no-untyped-def]
    """The calculator, if the package and the library behind it are there."""
    package = pytest.importorskip("plumed")
    try:
        package.Plumed()
    except RuntimeError as error:
        pytest.skip(f"PLUMED's library is not there: {error}")
    return pytest.importorskip("ase.calculators.plumed").Plumed


def test_metadynamics_by_plumed_deposits_hills_on_beads(plumed, tmp_path) -> None:
    """Hills at the distances where the chain was, and their energy is what is added to the force field's."""
    atoms = peptide(hybrid())
    free, hills = atoms.calc, tmp_path / "HILLS"
    script = [
        f"UNITS LENGTH=A TIME={1 / (1000 * units.fs)} ENERGY={units.mol / units.kJ}",
        "d: DISTANCE ATOMS=1,7 NOPBC",
        f"METAD ARG=d SIGMA=0.5 HEIGHT=0.02 PACE=10 FILE={hills}",
    ]
    kt, step = 300 * units.kB, 10 * units.fs
    atoms.calc = plumed(calc=free, input=script, timestep=step, atoms=atoms, kT=kt, log=str(tmp_path / "log"))
    rng = np.random.default_rng(0)
    dynamics = Langevin(atoms, step, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng)
    watch = BeadWatch(dynamics, temperature_K=300)
    dynamics.attach(watch, interval=10)
    distances: list[float] = []
    dynamics.attach(lambda: distances.append(atoms.get_distance(0, 6)), interval=10)
    dynamics.run(105)
    bias = atoms.get_potential_energy() - free.get_potential_energy(atoms)
    atoms.calc.plumed.finalize()
    deposited = np.loadtxt(hills)
    assert deposited[:, 1] == pytest.approx(distances[1:], abs=1e-4)
    here = atoms.get_distance(0, 6)
    wanted = (0.02 * np.exp(-((here - deposited[:, 1]) ** 2) / (2 * 0.5**2))).sum()
    assert bias == pytest.approx(wanted, rel=0.05, abs=1e-3)
    assert bias > 0.02
    assert len(watch.temperatures) == 11
