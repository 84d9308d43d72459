"""What every potential must obey, in float64: gradients, symmetries, batches, odd cells; and NPT of a water box."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import thermalize_momenta
from potentials import MorsePotential, RepulsivePotential

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.graph import AtomGraph, batch_graphs
from distillase.ase_calcs.neighbors import graph_from_atoms
from distillase.ase_calcs.painn import (
    PaiNN,
    second_harmonics,
    tensor_times_tensor,
    tensor_times_vector,
    traceless_product,
)

ALL = ("energy", "forces", "stress", "charges", "dipole")


def painn(rank=2):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = PaiNN(
            [1, 6, 8], features=16, layers=3, cutoff=3.5, n_basis=8, rank=rank, charges=True, dtype=torch.float64
        )
        for embedding in (network.charge_embedding, network.spin_embedding):  # zero before training
            torch.nn.init.normal_(embedding.weight, std=0.1)
        network.energy_scale.fill_(1.7)
        return network.requires_grad_(False)


@pytest.fixture(
    scope="module",
    params=[lambda: painn(1), lambda: painn(2), lambda: MorsePotential([1, 6, 8], cutoff=3.5)],
    ids=["painn-rank1", "painn-rank2", "morse"],
)
def potential(request):
    return request.param()


def ethanol():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=0)
    return atoms


def slab():
    atoms = ethanol()
    atoms.cell, atoms.pbc = [[4.2, 0.5, 0], [-0.3, 4.5, 0.2], [0, 0, 11]], [True, True, False]
    return atoms


def left_handed():
    atoms = ethanol()
    atoms.cell, atoms.pbc = [[0, 5.1, 0.4], [4.9, 0.2, 0], [0.3, 0, 5.3]], True
    assert np.linalg.det(atoms.cell) < 0
    return atoms


def tiny():  # every atom sees many images of itself
    return Atoms("CO", [[0.1, 0, 0], [0.2, 1.0, 0.9]], cell=[[1.7, 0.1, 0], [0.2, 1.9, 0], [0, 0.3, 2.1]], pbc=True)


def outside():  # atoms far outside the cell
    atoms = left_handed()
    atoms.positions += np.random.default_rng(0).integers(-3, 4, size=(9, 3)) @ atoms.cell.array
    return atoms


def wire():
    return Atoms("HCO", [[0, 0, 0], [1.1, 0.2, 0], [2.2, -0.3, 0.4]], cell=[3.4, 0, 0], pbc=[True, False, False])


SYSTEMS = [ethanol, slab, left_handed, tiny, outside, wire]
systems = pytest.mark.parametrize("make", SYSTEMS, ids=lambda make: make.__name__)


def evaluate(potential, atoms, charge=0, multiplicity=1, properties=ALL):
    graph = graph_from_atoms(atoms, potential.cutoff, dtype=torch.float64, charge=charge, multiplicity=multiplicity)
    with torch.no_grad():
        return potential(graph, properties)


def energy(potential, atoms):
    return evaluate(potential, atoms, properties=("energy",)).energy.item()


def derivative(function, h):
    return (8 * (function(h) - function(-h)) - (function(2 * h) - function(-2 * h))) / (12 * h)


def close(a, b, atol=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol, rtol=1e-10)


def brute_force_graph(atoms, cutoff):
    """An `AtomGraph` whose edges come from trying all images, in no particular order within a centre."""
    pbc, cell, x = atoms.pbc, atoms.cell.array, atoms.positions
    reach = 12 if len(atoms) < 5 else 8
    rows = []
    for S in itertools.product(*(range(-reach, reach + 1) if periodic else (0,) for periodic in pbc)):
        vectors = x[None] + np.array(S) @ cell - x[:, None]
        rows += [(i, j, *S) for i, j in np.argwhere((vectors**2).sum(-1) < cutoff**2) if i != j or any(S)]
    rows = torch.tensor(sorted(rows, key=lambda row: (row[0], row[4], row[1])), dtype=torch.int64).reshape(-1, 5)
    reference = graph_from_atoms(atoms, cutoff, dtype=torch.float64)
    return AtomGraph(
        **{name: getattr(reference, name) for name in ("numbers", "positions", "cell", "pbc", "system")},
        edges=rows[:, :2].T.contiguous(),
        edge_shifts=rows[:, 2:].double(),
        charge=reference.charge,
        multiplicity=reference.multiplicity,
    )


@systems
def test_forces_are_the_gradient_of_the_energy(potential, make):
    atoms = make()
    forces = evaluate(potential, atoms).forces
    for atom, axis in itertools.product(range(min(len(atoms), 4)), range(3)):

        def moved(h, atom=atom, axis=axis):
            trial = atoms.copy()
            trial.positions[atom, axis] += h
            return energy(potential, trial)

        assert abs(derivative(moved, 1e-3) + forces[atom, axis].item()) < 1e-6  # eV/Å


@systems
def test_stress_is_the_strain_gradient_of_the_energy(potential, make):
    atoms = make()
    stress = evaluate(potential, atoms).stress[0]
    if atoms.cell.rank < 3:
        assert torch.isnan(stress).all()
        return
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        direction = np.zeros((3, 3))
        direction[a, b] += 0.5
        direction[b, a] += 0.5

        def strained(h, direction=direction):
            trial = atoms.copy()
            trial.set_cell(trial.cell.array @ (np.eye(3) + h * direction), scale_atoms=True)
            return energy(potential, trial)

        assert abs(derivative(strained, 5e-4) / atoms.get_volume() - stress[a, b].item()) < 1e-6  # eV/Å³
        assert stress[a, b] == stress[b, a]


@systems
@pytest.mark.parametrize("parity", [1, -1], ids=["rotation", "reflection"])
def test_rotations_and_reflections(potential, make, parity):
    rng = np.random.default_rng(7)
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q *= np.sign(np.diag(r))
    q *= parity * np.linalg.det(q)
    atoms = make()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ q)
    turned.positions = atoms.positions @ q
    before, after = evaluate(potential, atoms), evaluate(potential, turned)
    close(after.energy, before.energy)
    close(after.energies, before.energies)
    close(after.forces, before.forces @ torch.from_numpy(q))
    close(after.stress, q.T @ before.stress.numpy() @ q)
    if before.charges is not None:
        close(after.charges, before.charges)
        close(after.dipole, before.dipole @ torch.from_numpy(q))


@systems
def test_translations_and_lattice_shifts(potential, make):
    atoms = make()
    rng = np.random.default_rng(8)
    moved = atoms.copy()
    moved.positions += [11.0, -7.0, 3.0]
    moved.positions += np.where(atoms.pbc, rng.integers(-2, 3, size=(len(atoms), 3)), 0) @ atoms.cell.array
    before, after = evaluate(potential, atoms), evaluate(potential, moved)
    close(after.energies, before.energies)
    close(after.forces, before.forces)
    close(after.stress, before.stress)


@systems
def test_permutations(potential, make):
    atoms = make()
    order = np.random.default_rng(9).permutation(len(atoms))
    before, after = evaluate(potential, atoms), evaluate(potential, atoms[order])
    close(after.energies, before.energies[order])
    close(after.forces, before.forces[order])
    close(after.energy, before.energy)


@systems
def test_edges_of_a_brute_force_oracle_give_the_same(potential, make):
    atoms = make()
    with torch.no_grad():
        oracle = potential(brute_force_graph(atoms, potential.cutoff), ALL)
    got = evaluate(potential, atoms)
    close(got.energies, oracle.energies)
    close(got.forces, oracle.forces)
    close(got.stress, oracle.stress)


@systems
def test_forces_vanish_in_sum_and_torque(potential, make):
    atoms = make()
    forces = evaluate(potential, atoms).forces.numpy()
    close(forces.sum(axis=0), np.zeros(3))
    if not atoms.pbc.any():
        close(np.cross(atoms.positions, forces).sum(axis=0), np.zeros(3))


def test_a_supercell_is_the_cell_many_times(potential):
    cell, twice = tiny(), tiny() * (2, 1, 3)
    small, large = evaluate(potential, cell), evaluate(potential, twice)
    close(large.energy, 6 * small.energy)
    close(large.forces, np.tile(small.forces, (6, 1)))
    close(large.stress, small.stress)


def test_batch_equals_singles(potential):
    structures = [*(make() for make in SYSTEMS), Atoms("O")]
    states = [(0, 1), (1, 2), (0, 1), (-1, 2), (0, 3), (2, 1), (0, 1)]
    batch = batch_graphs(
        [
            graph_from_atoms(atoms, potential.cutoff, dtype=torch.float64, charge=q, multiplicity=m)
            for atoms, (q, m) in zip(structures, states, strict=True)
        ]
    )
    with torch.no_grad():
        many = potential(batch, ALL)
    start = 0
    for number, (atoms, (q, m)) in enumerate(zip(structures, states, strict=True)):
        one = evaluate(potential, atoms, q, m)
        part = slice(start, start + len(atoms))
        start += len(atoms)
        close(many.energy[number], one.energy[0])
        close(many.energies[part], one.energies)
        close(many.forces[part], one.forces)
        close(many.stress[number], one.stress[0])
        if one.charges is not None:
            close(many.charges[part], one.charges)
            close(many.dipole[number], one.dipole[0])
            close(one.charges.sum(), q)


def test_charge_and_multiplicity_matter(potential):
    energies = {evaluate(potential, ethanol(), q, m).energy.item() for q, m in [(0, 1), (1, 1), (0, 3), (-1, 1)]}
    assert len(energies) == 4


def test_one_atom_keeps_its_shapes_and_feels_nothing(potential):
    output = evaluate(potential, Atoms("C", [[1, 2, 3.0]]))
    assert output.energy.shape == output.energies.shape == (1,)
    assert output.energy.dtype == torch.float64
    assert torch.equal(output.forces, torch.zeros(1, 3, dtype=torch.float64))
    assert output.stress.shape == (1, 3, 3)


def test_atoms_beyond_the_cutoff_do_not_feel_each_other(potential):
    pair = Atoms("CO", [[0, 0, 0], [0, 0, potential.cutoff + 1e-9]])
    apart = evaluate(potential, Atoms("C")).energy + evaluate(potential, Atoms("O")).energy
    close(evaluate(potential, pair).energy, apart)


def test_energy_and_forces_are_continuous_at_the_cutoff(potential):
    def at(r):
        output = evaluate(potential, Atoms("CO", [[0, 0, 0], [0, 0, r]]))
        return output.energy.item(), output.forces.abs().max().item()

    inside, beyond = at(potential.cutoff - 1e-3), at(potential.cutoff + 1e-9)
    assert abs(inside[0] - beyond[0]) < 1e-6
    assert inside[1] < 1e-4
    assert beyond[1] == 0.0


def water_box(spacing):
    rng = np.random.default_rng(0)
    box = Atoms(cell=2 * spacing * np.eye(3), pbc=True)
    for corner in np.ndindex(2, 2, 2):
        one = molecule("H2O")
        one.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
        one.translate(spacing * np.array(corner))
        box += one
    return box


@pytest.mark.parametrize(
    ("potential_of", "atoms"),
    [
        (lambda: RepulsivePotential([1, 8]), water_box(3.1)),
        (painn, Atoms("O", cell=0.6 * np.eye(3), pbc=True)),  # so dense that the short-range repulsion rules
    ],
    ids=["repulsive", "painn"],
)
def test_what_repels_has_positive_pressure_and_so_negative_ase_stress(potential_of, atoms):
    atoms = atoms.copy()
    atoms.calc = PotentialCalculator(potential_of(), dtype="float64")
    larger = atoms.copy()
    larger.calc = atoms.calc
    larger.set_cell(atoms.cell.array * 1.0001, scale_atoms=True)
    work = larger.get_potential_energy() - atoms.get_potential_energy()
    assert work < 0  # expansion lowers the energy, so P = −dE/dV > 0 and the stress is negative
    stress = atoms.get_stress()
    assert stress.shape == (6,)
    assert (stress[:3] < 0).all()
    assert work / (larger.get_volume() - atoms.get_volume()) == pytest.approx(stress[:3].mean(), rel=2e-3)
    squeezed = atoms.copy()
    squeezed.calc = atoms.calc
    squeezed.set_cell(atoms.cell.array * 0.95, scale_atoms=True)
    assert squeezed.get_stress()[:3].sum() < stress[:3].sum()


def traceless(matrices):
    return matrices - np.trace(matrices, axis1=-2, axis2=-1)[..., None, None] / 3 * np.eye(3)


def components(matrices):
    """Symmetric traceless (…, 3, 3), times √3 → (5, …), by what `second_harmonics` of a⊗a is."""
    m = np.sqrt(3.0) * matrices
    return np.stack([m[..., 0, 1], m[..., 1, 2], 0.5 * np.sqrt(3) * m[..., 2, 2], m[..., 0, 2],
                     0.5 * (m[..., 0, 0] - m[..., 1, 1])])  # fmt: skip


def test_tensor_products_are_those_of_matrices():
    rng = np.random.default_rng(1)
    a, b, c, d, v = rng.normal(size=(5, 4, 3))

    def outer(x, y):
        return 0.5 * (x[:, :, None] * y[:, None, :] + y[:, :, None] * x[:, None, :])

    def column(x):  # (atoms, 3) → (3, atoms, one feature)
        return torch.from_numpy(x.T[:, :, None].copy())

    t, u = traceless(outer(a, b)), traceless(outer(c, d))
    made_t, made_u = traceless_product(column(a), column(b)), traceless_product(column(c), column(d))
    np.testing.assert_allclose(made_t[..., 0], components(t), atol=1e-13)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    np.testing.assert_allclose(second_harmonics(torch.from_numpy(a)).T, components(traceless(outer(a, a))), atol=1e-13)
    np.testing.assert_allclose(
        tensor_times_vector(made_t, column(v))[..., 0].T, np.sqrt(3) * np.einsum("nij,nj->ni", t, v), atol=1e-13
    )
    product = traceless(t @ u + u @ t)
    np.testing.assert_allclose(tensor_times_tensor(made_t, made_u)[..., 0], 1.5 * components(product), atol=1e-13)


def test_voigt_order_is_xx_yy_zz_yz_xz_xy():
    atoms = left_handed()
    potential = painn()
    matrix = evaluate(potential, atoms).stress[0].numpy()
    voigt = PotentialCalculator(potential).get_property("stress", atoms)
    expected = [matrix[0, 0], matrix[1, 1], matrix[2, 2], matrix[1, 2], matrix[0, 2], matrix[0, 1]]
    close(voigt, expected)
    atoms.calc = PotentialCalculator(potential)
    close(atoms.get_stress(voigt=False), matrix)


def test_npt_of_a_water_box_follows_the_pressure():
    """The same box under high and low pressure: the one under high pressure ends up smaller."""
    volumes = []
    for pressure in (0.0, 20.0):  # GPa
        atoms = water_box(2.6)
        atoms.calc = PotentialCalculator(painn(), dtype="float64")
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(1))
        md = NPTBerendsen(
            atoms,
            timestep=0.25 * units.fs,
            temperature_K=300,
            taut=10 * units.fs,
            pressure_au=pressure * units.GPa,
            taup=50 * units.fs,
            compressibility_au=0.01 / units.GPa,
        )
        md.run(60)
        assert np.isfinite(atoms.positions).all()
        assert 50 < atoms.get_temperature() < 5000
        volumes.append(atoms.get_volume())
        neighbors = atoms.calc.neighbors
        assert neighbors.n_builds < neighbors.n_updates / 2  # the skin survives a changing cell
    assert volumes[1] < 0.97 * volumes[0]


def test_npt_without_external_pressure_expands_what_repels():
    atoms = water_box(3.1)
    atoms.calc = PotentialCalculator(RepulsivePotential([1, 8]))
    volume = atoms.get_volume()
    thermalize_momenta(atoms, temperature_K=100, rng=np.random.default_rng(1))
    md = NPTBerendsen(
        atoms,
        timestep=0.25 * units.fs,
        temperature_K=100,
        taut=5 * units.fs,
        pressure_au=0.0,
        taup=50 * units.fs,
        compressibility_au=0.02 / units.GPa,
    )
    md.run(20)
    assert atoms.get_volume() > 1.02 * volume
