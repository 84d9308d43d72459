"""Neighbour lists against a brute-force oracle, matscipy, and each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from distillase.ase_calcs.errors import InputError, StructureError
from distillase.ase_calcs.neighbors import (
    SkinNeighborList,
    graph_from_arrays,
    graph_from_atoms,
    neighbor_list,
    periodic_frame,
)


def brute_force(positions, cell, pbc, cutoff):
    """Set of (i, j, Sx, Sy, Sz) by trying every image that could matter."""
    frame = periodic_frame(cell, np.asarray(pbc))
    heights = 1 / np.linalg.norm(np.linalg.inv(frame), axis=0)
    spread = np.ptp(positions @ np.linalg.inv(frame), axis=0) if len(positions) else np.zeros(3)
    reach = [int(np.ceil(cutoff / heights[a] + spread[a])) + 1 if pbc[a] else 0 for a in range(3)]
    found = set()
    for S in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = positions[None] + np.array(S) @ np.where(np.asarray(pbc)[:, None], cell, 0) - positions[:, None]
        for i, j in np.argwhere(np.linalg.norm(vectors, axis=2) < cutoff):
            if i != j or any(S):
                found.add((int(i), int(j), *S))
    return found


def as_set(edges):
    return set(map(tuple, np.column_stack(edges).tolist()))


def random_cell(rng, smallest=1.2, largest=9.0):
    while True:
        cell = rng.normal(size=(3, 3))  # either handedness
        cell *= rng.uniform(smallest, largest) / np.abs(np.linalg.det(cell)) ** (1 / 3)
        if (1 / np.linalg.norm(np.linalg.inv(cell), axis=0)).min() > 1.2:
            return cell


def random_system(rng):
    pbc = rng.random(3) < 0.6
    cell = random_cell(rng)
    if rng.random() < 0.3:
        cell[~pbc] = 0.0
    n = int(rng.integers(1, 9))
    positions = rng.uniform(-1.0, 1.5, size=(n, 3)) @ random_cell(rng, 2.0, 4.0)
    return positions, cell, pbc


@pytest.mark.parametrize("seed", range(250))
def test_random_cells_agree_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    positions, cell, pbc = random_system(rng)
    cutoff = rng.uniform(0.8, 3.5)
    edges = neighbor_list(positions, cell, pbc, cutoff)
    assert as_set(edges) == brute_force(positions, cell, pbc, cutoff)
    assert len(edges[0]) == len(as_set(edges)), "an edge is listed twice"


@pytest.mark.parametrize("seed", range(60))
def test_random_cells_agree_with_matscipy(seed):
    matscipy = pytest.importorskip("matscipy.neighbours", reason="matscipy is the second oracle")
    rng = np.random.default_rng(1000 + seed)
    cell = random_cell(rng, 4.0, 9.0)
    pbc = rng.random(3) < 0.7
    positions = rng.random((int(rng.integers(2, 30)), 3)) @ cell  # inside the cell, where matscipy is sure
    i, j, S = matscipy.neighbour_list("ijS", positions=positions, cell=cell, pbc=pbc, cutoff=4.5)
    assert as_set(neighbor_list(positions, cell, pbc, 4.5)) == as_set((i, j, S))


def test_edges_are_sorted_by_centre_neighbour_and_shift_and_come_in_both_directions():
    rng = np.random.default_rng(3)
    for _ in range(50):
        edges = neighbor_list(*random_system(rng), 4.0)
        rows = np.column_stack(edges).tolist()
        assert rows == sorted(rows)
        assert {(j, i, -a, -b, -c) for i, j, a, b, c in as_set(edges)} == as_set(edges)
        assert all(array.dtype == np.int64 for array in edges)


def test_self_images_in_a_cell_smaller_than_the_cutoff():
    i, j, S = neighbor_list(np.zeros((1, 3)), 1.0 * np.eye(3), np.array([True] * 3), 3.5)
    assert (i == 0).all()
    assert (j == 0).all()
    assert len(i) == sum(0 < a * a + b * b + c * c < 12.25 for a, b, c in itertools.product(range(-4, 5), repeat=3))
    assert np.abs(S).sum(axis=1).min() == 1  # never the atom itself


def test_one_atom_and_far_atoms_have_no_edges():
    for positions in (np.zeros((1, 3)), np.array([[0, 0, 0], [1e4, 0, 0.0]])):
        i, j, S = neighbor_list(positions, np.zeros((3, 3)), np.array([False] * 3), 5.0)
        assert (i.shape, j.shape, S.shape) == ((0,), (0,), (0, 3))


def test_no_atoms_gives_no_edges():
    assert len(neighbor_list(np.zeros((0, 3)), np.eye(3), np.array([True] * 3), 2.0)[0]) == 0


def test_wrapping_an_atom_changes_shifts_but_not_distances():
    rng = np.random.default_rng(4)
    cell, pbc = random_cell(rng, 4, 6), np.array([True] * 3)
    positions = rng.random((6, 3)) @ cell
    jumps = rng.integers(-3, 4, size=(6, 3)) @ cell

    def distances(x):
        i, j, S = neighbor_list(x, cell, pbc, 4.0)
        return np.sort(np.linalg.norm(x[j] + S @ cell - x[i], axis=1))

    np.testing.assert_allclose(distances(positions + jumps), distances(positions), atol=1e-12)


def test_non_periodic_rows_of_the_cell_do_not_matter():
    rng = np.random.default_rng(5)
    positions = rng.normal(scale=3, size=(8, 3))
    pbc = np.array([True, False, True])
    cell = random_cell(rng, 4, 6)
    other = cell.copy()
    other[1] = [np.nan, 0, 0]
    assert as_set(neighbor_list(positions, cell, pbc, 4.0)) == as_set(neighbor_list(positions, other, pbc, 4.0))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (np.zeros((3, 3)), "periodic direction"),
        (np.array([[1, 0, 0], [2, 0, 0], [0, 0, 1.0]]), "linearly dependent"),
        (np.full((3, 3), np.nan), "NaN"),
    ],
)
def test_pbc_without_a_usable_cell_is_an_error(cell, message):
    with pytest.raises(StructureError, match=message):
        neighbor_list(np.zeros((2, 3)), cell, np.array([True] * 3), 3.0)


def test_nan_positions_are_an_error_that_names_the_atom():
    positions = np.zeros((3, 3))
    positions[2, 1] = np.nan
    for update in (
        lambda x: neighbor_list(x, np.eye(3), np.array([False] * 3), 3.0),
        lambda x: SkinNeighborList(3.0, 1.0).update(x, np.eye(3), np.array([False] * 3)),
    ):
        with pytest.raises(StructureError, match="atom 2"):
            update(positions)


def assert_same_as_fresh(skin_list, positions, cell, pbc):
    pairs, shifts = skin_list.update(positions, cell, pbc)
    i, j, S = neighbor_list(positions, cell, pbc, skin_list.cutoff)
    np.testing.assert_array_equal(pairs, [i, j])
    np.testing.assert_array_equal(shifts, S)


@pytest.mark.parametrize("seed", range(40))
def test_skin_list_equals_fresh_lists_over_drift_strain_and_wrapping(seed):
    rng = np.random.default_rng(seed)
    positions, cell, pbc = random_system(rng)
    skin_list = SkinNeighborList(3.0, rng.choice([0.0, 0.3, 1.0]))
    for _ in range(40):
        event = rng.random()
        if event < 0.6:
            positions = positions + rng.normal(scale=0.05, size=positions.shape)
        elif event < 0.75:  # a barostat: cell and positions together
            strain = np.eye(3) + rng.normal(scale=0.02, size=(3, 3))
            cell, positions = cell @ strain, positions @ strain
        elif event < 0.85:  # the cell alone
            cell = cell @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3)))
        elif event < 0.95:  # one atom is wrapped
            jump = np.where(pbc, rng.integers(-2, 3, size=3), 0)
            positions = positions.copy()
            positions[rng.integers(len(positions))] += jump @ np.where(pbc[:, None], cell, 0)
        else:
            pbc = pbc & (rng.random(3) < 0.8)
        assert_same_as_fresh(skin_list, positions, cell, pbc)


def test_cell_change_moves_far_images_and_the_skin_list_notices():
    # An image S away moves by S @ dC. With positions at the origin no atom is displaced at all, and a check of
    # displacements alone would keep the old list.
    pbc = np.array([True] * 3)
    skin_list = SkinNeighborList(3.0, 0.5)
    assert_same_as_fresh(skin_list, np.zeros((1, 3)), 3.6 * np.eye(3), pbc)
    assert skin_list.update(np.zeros((1, 3)), 3.6 * np.eye(3), pbc).pairs.shape == (2, 0)
    assert_same_as_fresh(skin_list, np.zeros((1, 3)), 2.9 * np.eye(3), pbc)
    assert skin_list.update(np.zeros((1, 3)), 2.9 * np.eye(3), pbc).pairs.shape == (2, 6)


def test_skin_list_is_reused_for_small_moves_and_small_strains():
    rng = np.random.default_rng(7)
    cell, pbc = 12 * np.eye(3), np.array([True] * 3)
    positions = rng.random((50, 3)) @ cell
    skin_list = SkinNeighborList(4.0, 1.0)
    for step in range(40):
        strain = (1 + 1e-4 * step) * np.eye(3)
        skin_list.update(positions @ strain + 0.01 * rng.normal(size=positions.shape), cell @ strain, pbc)
    assert skin_list.n_builds == 1
    assert skin_list.n_updates == 40


def test_skin_list_forgets_after_an_error_and_when_atoms_are_added():
    pbc = np.array([False] * 3)
    skin_list = SkinNeighborList(3.0, 1.0)
    positions = np.array([[0, 0, 0], [1, 0, 0.0]])
    assert_same_as_fresh(skin_list, positions, np.zeros((3, 3)), pbc)
    with pytest.raises(StructureError):
        skin_list.update(positions * np.nan, np.zeros((3, 3)), pbc)
    assert_same_as_fresh(skin_list, positions, np.zeros((3, 3)), pbc)
    assert_same_as_fresh(skin_list, np.vstack([positions, [0, 1, 0]]), np.zeros((3, 3)), pbc)


def test_skin_list_keeps_its_own_copy_of_the_positions():
    positions = np.array([[0, 0, 0], [3.6, 0, 0.0]])
    skin_list = SkinNeighborList(3.0, 0.5)
    skin_list.update(positions, np.zeros((3, 3)), np.array([False] * 3))
    positions[1, 0] = 1.0  # in place, as optimisers do
    assert_same_as_fresh(skin_list, positions, np.zeros((3, 3)), np.array([False] * 3))


@pytest.mark.parametrize(("cutoff", "skin"), [(0, 1), (-1, 1), (np.nan, 1), (3, -0.1), (3, np.inf)])
def test_impossible_cutoff_or_skin_is_an_error(cutoff, skin):
    with pytest.raises(InputError):
        SkinNeighborList(cutoff, skin)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_graph_has_the_shapes_dtypes_and_vectors_of_its_contract(dtype):
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [5.2, 0.93, 0]], cell=[6, 6, 6], pbc=True)
    graph = graph_from_atoms(atoms, 2.0, dtype=dtype, charge=-1, multiplicity=2)
    assert graph.positions.dtype == graph.cell.dtype == graph.edge_shifts.dtype == graph.charge.dtype == dtype
    assert graph.numbers.dtype == graph.edges.dtype == graph.system.dtype == torch.int64
    assert graph.cell.shape == (1, 3, 3)
    assert graph.pbc.shape == (1, 3)
    assert graph.charge.tolist() == [-1.0]
    assert graph.multiplicity.tolist() == [2.0]
    i, j, S = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 2.0)
    expected = atoms.positions[j] + S @ atoms.cell.array - atoms.positions[i]
    np.testing.assert_allclose(graph.edge_vectors().numpy(), expected, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert any(S.any(axis=1)), "the test should have an edge across the boundary"


def test_graph_does_not_share_memory_with_the_atoms():
    atoms = molecule("CH3CH2OH")
    graph = graph_from_arrays(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, 5.0, dtype=torch.float64)
    before = graph.positions.clone()
    atoms.positions += 1.0
    atoms.numbers[:] = 1
    assert torch.equal(graph.positions, before)
    assert (graph.numbers != 1).any()
