"""The prior of coarse-grained proteins, and dynamics on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import units
from ase.md.langevin import Langevin

from distillase.ase_calcs.errors import DataError, InputError, ModelFileError, StructureError
from distillase.ase_calcs.modelfile import load_coarse_grained, load_model, save_model
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import (
    Chains,
    coarse_grained_atoms,
    extended_chain,
    read_beads_pdb,
    write_pdb,
)
from distillase.ase_calcs.proteins.geometry import angles, dihedrals
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.prior import TERMS, Prior, PriorTopology
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig, recommended_timestep
from distillase.ase_calcs.units import FS, KB, KCAL_PER_MOL
from distillase.datasets.proteins.beads import BeadFrames
from distillase.training.proteins.prior_fit import PriorConfig, fit_prior, invert

SEQUENCE = "GYDPETGTWGAAGPW:KLE"


def prior(repulsion: str = "power4") -> Prior:
    """All terms switched on, each class with parameters of its own."""
    made = Prior(
        repulsion=repulsion,  # type: ignore[arg-type]
        classes={"bonds": ["GY", "DP"], "angles": ["G", "P"], "dihedrals": ["GX", "XX", "PX"]},
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter, spread in ((made.angle, 0.1), (made.dihedral, 0.1), (made.excess, 0.3), (made.length, 0.05)):
            parameter += spread * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made.requires_grad_(False)


def configurations(n: int = 3, spread: float = 0.8) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.tensor(extended_chain(SEQUENCE) + rng.normal(0, spread, (n, 18, 3)))


def model(**settings: object) -> CoarseGrainedModel:
    made = CoarseGrainedModel(range(1, 21), **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        made.prior.angle[:, 1] = 0.1  # cos 2θ: prefers right angles
    return made


@pytest.mark.parametrize("repulsion", ["power4", "lj12-6"])
def test_forces_are_the_gradient(repulsion: str) -> None:
    x = configurations().requires_grad_()
    output = prior(repulsion)(x, PriorTopology.of(Chains.from_sequence(SEQUENCE)))
    (gradient,) = torch.autograd.grad(output.energy.sum(), x)
    assert set(output.energies) == set(TERMS)
    assert all(float(e.detach().abs().max()) > 1e-6 for e in output.energies.values())
    torch.testing.assert_close(output.forces, -gradient, rtol=0, atol=1e-11)


@pytest.mark.parametrize("splines", [16, 64])
def test_forces_of_splines_are_the_gradient_and_continuous(splines: int) -> None:
    rng = np.random.default_rng(3)
    x = np.cumsum(rng.normal(0, 2.2, (400, 7, 3)), axis=1)
    frames = BeadFrames("walk", "GAPKLEA", x, np.zeros_like(x), np.full(400, 300.0), np.full(400, "one"))
    made = Prior(splines=splines)
    invert(made, [frames], KB * 300)
    made.requires_grad_(False)
    topology = PriorTopology.of(Chains.from_sequence("GAPKLEA"))
    y = torch.tensor(x[:20]).requires_grad_()
    output = made(y, topology, ("angles", "dihedrals"))
    (gradient,) = torch.autograd.grad(output.energy.sum(), y)
    torch.testing.assert_close(output.forces, -gradient, rtol=0, atol=1e-11)
    assert float(output.forces.detach().abs().max()) > 1e-3
    # Forces change no faster than the curvature allows, across the borders of intervals and through ±180°.
    turn = np.linspace(-200, 200, 4001)
    chain = np.stack([extended_chain("GAPK", angle=100.0, dihedral=t) for t in turn])
    short = PriorTopology.of(Chains.from_sequence("GAPK"))
    forces = made(torch.tensor(chain), short, ("dihedrals",)).forces
    assert float(forces.diff(dim=0).norm(dim=-1).max()) < 0.1 * float(forces.norm(dim=-1).max())


def test_forces_of_every_term_vanish_together_and_have_no_torque() -> None:
    x = configurations()
    forces = prior()(x, PriorTopology.of(Chains.from_sequence(SEQUENCE))).forces
    assert float(forces.sum(1).abs().max()) < 1e-11
    assert float(torch.linalg.cross(x, forces).sum(1).abs().max()) < 1e-9


def test_only_dihedrals_tell_left_from_right() -> None:
    x, topology = configurations(), PriorTopology.of(Chains.from_sequence(SEQUENCE))
    there, mirrored = prior()(x, topology).energies, prior()(-x, topology).energies
    for name in TERMS:
        same = torch.allclose(there[name], mirrored[name], rtol=0, atol=1e-12)
        assert same == (name != "dihedrals")


def test_dihedrals_have_the_sign_of_iupac_and_the_prior_sees_the_same_ones() -> None:
    # A right-handed α-helix has Cα dihedrals near +50°.
    turn = np.radians(100.0) * np.arange(8)
    helix = np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(8)], axis=1)[None]
    assert np.degrees(dihedrals(helix)) == pytest.approx(50.0, abs=2.0)
    made = Prior()
    with torch.no_grad():
        made.dihedral[:, 0], made.dihedral[:, made.n_dihedral] = 0.3, 0.2
        energy = made(torch.tensor(helix), PriorTopology.of(Chains.from_sequence("A" * 8))).energies["dihedrals"]
    phi = dihedrals(helix)
    assert float(energy) == pytest.approx(float((0.3 * np.cos(phi) + 0.2 * np.sin(phi)).sum()), abs=1e-12)


def test_angles_are_the_series_that_is_documented() -> None:
    x, made = configurations(1), prior()
    chains = Chains.from_sequence(SEQUENCE)
    types = chains.types[chains.angles[:, 1]]
    theta = np.array([angles(x.numpy()[:, run])[0, 0] for run in chains.angles])
    coefficients = made.angle[made.angles_class[torch.as_tensor(types)]].numpy()
    wanted = sum(coefficients[:, n] * np.cos((n + 1) * theta) for n in range(made.n_angle))
    energy = made(x, PriorTopology.of(chains)).energies["angles"]
    assert float(energy) == pytest.approx(float(wanted.sum()), abs=1e-12)


def test_three_beads_on_a_line_have_finite_forces() -> None:
    x = torch.tensor([[[0.0, 0, 0], [3.8, 0, 0], [7.6, 0, 0]]], dtype=torch.float64)
    output = prior()(x, PriorTopology.of(Chains.from_sequence("AGA")))
    assert bool(torch.isfinite(output.forces).all())
    # Nothing pulls beside the line, but the repulsion along it.
    assert float(output.forces[..., 1:].abs().max()) == 0.0


def test_who_is_whose_neighbour() -> None:
    chains = Chains.from_sequence(SEQUENCE)
    assert (len(chains.bonds), len(chains.angles), len(chains.dihedrals)) == (14 + 2, 13 + 1, 12)
    assert [9, 15] not in chains.excluded.tolist()  # in different chains
    assert [9, 15] in chains.distant.tolist()
    separation = np.diff(chains.excluded, axis=1)
    assert separation.min() == 2
    assert separation.max() == 5
    pairs = {tuple(p) for part in (chains.bonds, chains.excluded, chains.distant) for p in part.tolist()}
    assert len(pairs) == 18 * 17 // 2  # every pair is in one of them, and in one only
    assert chains.sequence == SEQUENCE


def test_beads_of_a_pdb_file_know_where_a_chain_is_broken(tmp_path) -> None:
    x = extended_chain("GYDPE")
    x[3:] += [0.0, 0.0, 5.0]
    path = tmp_path / "broken.pdb"
    path.write_text(write_pdb("GYDPE", [x, x + 1.0]))
    atoms = read_beads_pdb(path, 1)
    assert Chains.from_atoms(atoms).sequence == "GYD:PE"
    assert atoms.positions == pytest.approx(x + 1.0, abs=6e-4)
    assert atoms.get_masses() == pytest.approx([57.052, 163.176, 115.088, 97.117, 129.115])
    with pytest.raises(StructureError, match="2 models"):
        read_beads_pdb(path, 2)
    # Two chains without names whose numbers begin again; and 30 of them, for which letters do not suffice.
    both = write_pdb("GYD:PE", [extended_chain("GYD:PE")])
    path.write_text("\n".join(line[:21] + " " + line[22:] for line in both.splitlines()))
    assert Chains.from_atoms(read_beads_pdb(path)).sequence == "GYD:PE"
    many = ":".join(["AG"] * 30)
    path.write_text(write_pdb(many, [extended_chain(many)]))
    assert Chains.from_atoms(read_beads_pdb(path)).sequence == many
    # Of two locations of an atom the first is taken.
    lines = write_pdb("GY", [extended_chain("GY")]).splitlines()
    first, second = (lines[2][:16] + letter + lines[2][17:] for letter in "AB")
    path.write_text("\n".join([*lines[:2], first, second, *lines[3:]]))
    assert len(read_beads_pdb(path)) == 2


def test_a_calculator_gives_components_and_batches_equal_singles(tmp_path) -> None:
    path = save_model(tmp_path / "prior.safetensors", model())
    calculator = CoarseGrainedCalculator(path)
    structures = [coarse_grained_atoms(SEQUENCE, x) for x in configurations().numpy()]
    structures.insert(1, coarse_grained_atoms("GYDPE", extended_chain("GYDPE")))
    many = calculator.calculate_many(structures)
    for atoms, together in zip(structures, many, strict=True):
        atoms.calc = calculator
        assert together["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        assert together["forces"] == pytest.approx(atoms.get_forces(), abs=1e-10)
        assert set(together["components"]) == set(TERMS)
        assert sum(together["components"].values()) == pytest.approx(together["energy"], abs=1e-12)
    loaded = load_coarse_grained(path)
    assert loaded.prior.length.dtype == torch.float64
    with pytest.raises(ModelFileError, match="CoarseGrainedCalculator"):
        load_model(path)


def test_another_residue_at_the_same_place_is_another_energy() -> None:
    made = model(prior={"classes": {"bonds": [], "angles": ["G"], "dihedrals": []}})
    with torch.no_grad():
        made.prior.angle[1, 1] = 0.5
    atoms = coarse_grained_atoms("AAA", extended_chain("AAA"))
    atoms.calc = CoarseGrainedCalculator(made)
    before = atoms.get_potential_energy()
    atoms.arrays["residuetypes"][1] = 5  # glycine
    assert abs(atoms.get_potential_energy() - before) > 0.01


def test_results_of_many_are_not_taken_for_those_of_one() -> None:
    made = model(prior={"classes": {"bonds": [], "angles": ["G"], "dihedrals": []}})
    with torch.no_grad():
        made.prior.angle[1, 1] = 0.5
    one, other = (coarse_grained_atoms(s, extended_chain(s)) for s in ("AAA", "AGA"))
    calculator = CoarseGrainedCalculator(made)
    one.calc = other.calc = calculator
    before = one.get_potential_energy()
    wanted = calculator.calculate_many([other])[0]["energy"]
    assert other.get_potential_energy() == pytest.approx(wanted, abs=1e-12)
    assert abs(wanted - before) > 0.01


def test_the_prior_stays_in_double_precision() -> None:
    made = model().to(torch.float32)
    assert made.prior.length.dtype == torch.float64
    mine = model()
    CoarseGrainedCalculator(mine.train())
    assert mine.training  # the calculator has a copy of its own


def test_bad_input_is_refused_with_a_reason() -> None:
    made = CoarseGrainedModel([1, 2], prior={})
    calculator = CoarseGrainedCalculator(made)
    atoms = coarse_grained_atoms("GYD", extended_chain("GYD"))
    atoms.calc = calculator
    with pytest.raises(StructureError, match="residues D, G, Y"):
        atoms.get_potential_energy()
    with pytest.raises(InputError, match="J, Z"):
        Chains.from_sequence("AZJ")
    plain = coarse_grained_atoms("AC", extended_chain("AC"))
    del plain.arrays["residuetypes"]
    plain.calc = calculator
    with pytest.raises(StructureError, match="residuetypes"):
        plain.get_potential_energy()
    periodic = coarse_grained_atoms("AC", extended_chain("AC"))
    periodic.pbc = True
    periodic.calc = calculator
    with pytest.raises(StructureError, match="periodic"):
        periodic.get_potential_energy()
    with pytest.raises(InputError, match="prior alone"):
        CoarseGrainedCalculator(made, part="network")
    with pytest.raises(InputError, match="part is 'priro'"):
        ReplicaLangevin(model(), Chains.from_sequence("AG"), extended_chain("AG")[None], part="priro")  # type: ignore[arg-type]


def test_a_committee_says_where_it_differs() -> None:
    one, other = model(), model()
    with torch.no_grad():
        other.prior.length += 0.1
    with_network = model()
    with_network.network = torch.nn.Identity()  # stands for one
    with pytest.raises(InputError, match="others are a prior alone"):
        CoarseGrainedCalculator([one, with_network])
    atoms = coarse_grained_atoms("GYDPE", extended_chain("GYDPE"))
    atoms.calc = CoarseGrainedCalculator([one, other])
    with pytest.warns(UserWarning, match="unlike the training data"):
        mean = atoms.get_forces()
    singles = [CoarseGrainedCalculator(m).calculate_many([atoms])[0]["forces"] for m in (one, other)]
    assert mean == pytest.approx(np.mean(singles, axis=0), abs=1e-12)
    wanted = np.linalg.norm(singles[0] - singles[1], axis=1) / 2
    assert atoms.calc.results["forces_std"] == pytest.approx(wanted, abs=1e-12)


def test_replicas_are_at_the_temperature_and_sample_the_bond() -> None:
    """Two beads: the bond's distribution is known, r² exp(−k (r − r₀)²/2kT), and so is its kinetic energy."""
    made = model()
    config = SimulationConfig(picoseconds=80, friction=0.02, interval=0.25)
    result = ReplicaLangevin(
        made, Chains.from_sequence("AG"), np.repeat(extended_chain("AG")[None], 256, 0), config
    ).run()
    r = np.linalg.norm(result.positions[40:, :, 1] - result.positions[40:, :, 0], axis=-1).ravel()
    k, kt = 154.5 * KCAL_PER_MOL, KB * 300
    grid = np.linspace(3.0, 4.7, 2001)
    weight = grid**2 * np.exp(-0.5 * k * (grid - 3.84) ** 2 / kt)
    mean = (weight * grid).sum() / weight.sum()
    spread = np.sqrt((weight * (grid - mean) ** 2).sum() / weight.sum())
    assert r.mean() == pytest.approx(mean, abs=5 * spread / np.sqrt(len(r) / 4))
    assert r.std() == pytest.approx(spread, rel=0.015)
    assert result.temperatures.mean() == pytest.approx(300.0, rel=0.003)
    assert result.survivors == 1.0


def test_without_friction_energy_is_conserved() -> None:
    chains = Chains.from_sequence("GYDPETGTWG")
    start = extended_chain("GYDPETGTWG")[None]
    dynamics = ReplicaLangevin(model(), chains, start, SimulationConfig(friction=0.0), seed=3)

    def total() -> float:
        kinetic = 0.5 * float((dynamics.masses * dynamics.v**2).sum())
        return kinetic + float(dynamics.output.energy)

    before, drift = total(), []
    for _ in range(2000):
        dynamics.step()
        drift.append(total() - before)
    assert np.abs(drift).max() < 0.02  # eV, of 0.4 eV of kinetic energy
    assert abs(np.mean(drift[-500:]) - np.mean(drift[:500])) < 0.004


def test_the_recommended_step_is_a_twelfth_of_the_fastest_period() -> None:
    atoms = coarse_grained_atoms("AG", extended_chain("AG"))
    reduced = 71.079 * 57.052 / (71.079 + 57.052)
    period = 2 * np.pi * np.sqrt(reduced / (154.5 * KCAL_PER_MOL)) / FS
    step = recommended_timestep(model(), Chains.from_atoms(atoms))
    assert step == np.floor(period / 12)
    assert CoarseGrainedCalculator(model()).timestep(atoms) == step


def test_a_replica_in_trouble_ends_and_the_others_go_on() -> None:
    chains = Chains.from_sequence("GYDPETGTWG")
    start = np.repeat(extended_chain("GYDPETGTWG")[None], 3, 0)
    start[1, 9] = start[1, 0] + [0.5, 0, 0]  # two beads on top of each other
    config = SimulationConfig(picoseconds=5, interval=0.5)
    result = ReplicaLangevin(model(), chains, start, config, seed=1).run()
    (trouble,) = result.troubles
    assert trouble.replica == 1
    assert "eV/Å" in trouble.reason or "within" in trouble.reason
    assert np.isnan(result.positions[-1, 1]).all()
    assert np.isfinite(result.positions[:, [0, 2]]).all()
    assert result.survivors == pytest.approx(2 / 3)


def test_langevin_of_ase_runs_on_beads() -> None:
    atoms = coarse_grained_atoms("GYDPETGTWG", extended_chain("GYDPETGTWG"))
    atoms.calc = CoarseGrainedCalculator(model())
    rng = np.random.default_rng(0)
    dynamics = Langevin(atoms, 10 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng)
    dynamics.run(300)
    bonds = np.linalg.norm(np.diff(atoms.positions, axis=0), axis=1)
    assert bonds == pytest.approx(3.84, abs=0.35)


@pytest.fixture(scope="module")
def sampled() -> tuple[CoarseGrainedModel, BeadFrames]:
    """Frames of a known prior: what a fit must find again."""
    made = model()
    with torch.no_grad():
        made.prior.angle[:] = torch.tensor([0.05, 0.08, 0.02, 0.0, 0.0, 0.0])
        made.prior.dihedral[:, :2] = torch.tensor([0.02, -0.015])
        made.prior.dihedral[:, 4:6] = torch.tensor([0.03, 0.01])
    chains = Chains.from_sequence("GYDPETGTWG")
    config = SimulationConfig(picoseconds=60, friction=0.01, interval=0.5)
    start = np.repeat(extended_chain("GYDPETGTWG")[None], 64, 0)
    result = ReplicaLangevin(made, chains, start, config, seed=5).run()
    x = result.positions[20:].reshape(-1, 10, 3)
    with torch.no_grad():
        forces = made.prior(torch.tensor(x), PriorTopology.of(chains)).forces.numpy()
    noisy = forces + np.random.default_rng(1).normal(0, 0.1, forces.shape)
    return made, BeadFrames("test", "GYDPETGTWG", x, noisy, np.full(len(x), 300.0), np.full(len(x), "a"))


def test_terms_can_be_left_out(sampled) -> None:
    frames = sampled[1].select(np.arange(200))
    fit = fit_prior([frames], 300.0, PriorConfig(excluded=0.0, distant=2.5, steps=2))
    output = fit.prior(torch.tensor(frames.positions[:5]), PriorTopology.of(Chains.from_sequence(frames.sequence)))
    assert float(output.energies["excluded"].abs().max()) == 0.0
    assert bool(torch.isfinite(output.forces).all())
    assert float(fit.prior.epsilon[1]) == pytest.approx(2.5 * KCAL_PER_MOL)
    with pytest.raises(InputError, match="12 intervals"):
        PriorConfig(splines=3)


def test_boltzmann_inversion_finds_bonds_again(sampled) -> None:
    _, frames = sampled
    fresh = Prior()
    invert(fresh, [frames], KB * 300)
    assert float(fresh.stiffness[0].detach()) == pytest.approx(154.5 * KCAL_PER_MOL, rel=0.03)
    # Angles and repulsion pull at bonds a little: that is what force matching is for.
    assert float(fresh.length[0].detach()) == pytest.approx(3.84, abs=0.02)


def test_force_matching_finds_the_prior_again(sampled) -> None:
    made, frames = sampled
    fit = fit_prior([frames], 300.0, PriorConfig(samples=10**9, hold=1e-6, frames=4000))
    assert fit.rms_force["matching"] == pytest.approx(0.1, rel=0.01)  # the noise
    assert fit.rms_force["matching"] <= fit.rms_force["inversion"] < 0.5 * fit.rms_force["total"]
    assert float(fit.prior.stiffness[0]) == pytest.approx(154.5 * KCAL_PER_MOL, rel=0.005)
    assert float(fit.prior.length[0]) == pytest.approx(3.84, abs=0.002)
    with torch.no_grad():
        x, topology = torch.tensor(frames.positions[::50]), PriorTopology.of(Chains.from_sequence("GYDPETGTWG"))
        difference = fit.prior(x, topology).forces - made.prior(x, topology).forces
    assert float(difference.square().mean().sqrt()) < 0.01  # a tenth of the noise
    assert float(fit.prior.sigma.min()) > 2.5


@pytest.mark.parametrize("sequence", ["AG", "AGA"])
def test_short_chains_have_a_prior_without_what_they_lack(sequence) -> None:
    start = np.repeat(extended_chain(sequence)[None], 64, 0)
    config = SimulationConfig(picoseconds=10, friction=0.02, interval=0.5)
    x = ReplicaLangevin(model(), Chains.from_sequence(sequence), start, config).run().positions[4:]
    x = x.reshape(-1, len(sequence), 3)
    with torch.no_grad():
        forces = model().prior(torch.tensor(x), PriorTopology.of(Chains.from_sequence(sequence))).forces.numpy()
    fit = fit_prior([BeadFrames("s", sequence, x, forces, np.full(len(x), 300.0), np.full(len(x), "a"))], 300.0)
    assert float(fit.prior.stiffness[-1]) == pytest.approx(154.5 * KCAL_PER_MOL, rel=0.001)
    assert float(fit.prior.dihedral.abs().max()) < 1e-6


def test_one_bead_diffuses() -> None:
    result = ReplicaLangevin(
        model(), Chains.from_sequence("A"), np.zeros((4, 1, 3)), SimulationConfig(picoseconds=5)
    ).run()
    assert np.isinf(result.shortest).all()
    assert not result.troubles


def test_frames_are_as_far_apart_as_is_said() -> None:
    config = SimulationConfig(picoseconds=1, timestep=11.0, interval=0.1)
    start = extended_chain("AG")[None]
    result = ReplicaLangevin(model(), Chains.from_sequence("AG"), start, config).run()
    assert result.interval == pytest.approx(0.099)
    assert len(result.positions) == 10


def test_too_few_frames_and_broken_chains_are_refused(sampled) -> None:
    _, frames = sampled
    with pytest.raises(DataError, match="hundred"):
        fit_prior([frames.select(np.arange(50))], 300.0)
    scattered = frames.positions[:200] * np.random.default_rng(0).uniform(0.2, 3, (200, 10, 1))
    broken = BeadFrames(
        "b", frames.sequence, scattered, frames.forces[:200], frames.temperatures[:200], frames.origins[:200]
    )
    with pytest.raises(DataError, match=r"neighbour|stiffness"):
        fit_prior([broken], 300.0)
