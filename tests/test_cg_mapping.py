"""Force maps onto beads, and datasets of beads."""

from __future__ import annotations

import numpy as np
import pytest

from distillase.ase_calcs.errors import DataError
from distillase.datasets.proteins.beads import (
    BeadFrames,
    load_npz,
    read_beads,
    save_npz,
    write_beads,
    write_mapped,
)
from distillase.datasets.proteins.frames import Piece, Source
from distillase.datasets.proteins.mapping import (
    ForceMapper,
    check_map,
    map_forces,
    rigid_clusters,
    rigid_pairs,
    root_mean_square,
)
from distillase.datasets.store import Dataset

BEADS = np.array([0, 4])
PAIRS = np.array([[0, 1], [2, 3], [4, 5]])  # atom 6 is free


def forces(n: int = 400, seed: int = 0) -> np.ndarray:
    """Of seven atoms, correlated, so that some sums are less noisy than others."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(0, 1, (7, 7))
    return np.einsum("ab,tbd->tad", mixing, rng.normal(0, 1, (n, 7, 3)))


def mapper() -> ForceMapper:
    made = ForceMapper(BEADS, PAIRS, 7)
    made.add(forces()[:150])
    made.add(forces()[150:])
    return made


def test_rigid_bonds_are_found_in_rounded_coordinates() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.5, (60, 4, 3)) + 3.0 * np.arange(4)[None, :, None]
    direction = rng.normal(0, 1, (60, 3))
    x[:, 1] = x[:, 0] + 1.01 * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    assert rigid_pairs(np.round(x, 2)).tolist() == [[0, 1]]  # as XTC files round
    with pytest.raises(DataError, match="ten"):
        rigid_pairs(x[:3])


def test_clusters() -> None:
    assert rigid_clusters(7, PAIRS).tolist() == [0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("kind", ["basic", "optimal"])
def test_maps_keep_the_three_conditions(kind) -> None:
    weights = mapper().solve(kind)
    check_map(weights, BEADS, PAIRS, tolerance=1e-12)
    if kind == "basic":
        assert weights.tolist() == [[1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]]


def test_the_optimal_map_is_the_minimum() -> None:
    """No small admissible change lowers the mean square."""
    weights, f = mapper().solve("optimal"), forces()
    best = (map_forces(f, weights) ** 2).sum((0, 2))
    rng = np.random.default_rng(2)
    for _ in range(30):
        change = np.zeros_like(weights)
        change[:, [2, 3]] = rng.normal(0, 1e-2, (2, 1))
        change[:, 6] = rng.normal(0, 1e-2, 2)
        assert ((map_forces(f, weights + change) ** 2).sum((0, 2)) > best).all()


def test_the_optimal_map_solves_the_constrained_problem_of_its_paper() -> None:
    """Against a general solver of the same problem: minimise |W F|² subject to the linear conditions (KKT)."""
    f = forces().transpose(1, 0, 2).reshape(7, -1)
    gram = f @ f.T
    for bead, own in enumerate(BEADS):
        conditions, values = [], []
        for other in BEADS:
            row = np.zeros(7)
            row[other] = 1.0
            conditions.append(row)
            values.append(float(other == own))
        for i, j in PAIRS:
            row = np.zeros(7)
            row[i], row[j] = 1.0, -1.0
            conditions.append(row)
            values.append(0.0)
        a = np.array(conditions)
        kkt = np.block([[gram, a.T], [a, np.zeros((len(a), len(a)))]])
        solution = np.linalg.solve(kkt, np.concatenate([np.zeros(7), values]))[:7]
        assert mapper().solve("optimal")[bead] == pytest.approx(solution, abs=1e-6)


def test_wrong_maps_are_refused() -> None:
    weights = mapper().solve("optimal")
    other = weights.copy()
    other[0, 4] = other[0, 5] = 0.1
    with pytest.raises(DataError, match="own Cα"):
        check_map(other, BEADS, PAIRS)
    other = weights.copy()
    other[0, 2] += 0.1
    with pytest.raises(DataError, match="Atoms 2 and 3"):
        check_map(other, BEADS, PAIRS)
    with pytest.raises(DataError, match="bind two Cα"):
        ForceMapper(BEADS, np.array([[0, 4]]), 7)


def source(pairs: np.ndarray | None = PAIRS) -> Source:
    return Source("tiny", "A:G", BEADS, 7, pairs, {"by": "hand"})


def test_mapped_frames_become_a_dataset(tmp_path) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, (400, 7, 3)) + 50.0
    pieces = [Piece(x[:250], forces()[:250], 300.0, "a"), Piece(x[250:], forces()[250:], 350.0, "b")]
    result = write_mapped(tmp_path / "beads.h5", source(), lambda: pieces)
    assert result.frames == 400
    assert result.rms["optimal"][0] < result.rms["basic"][0]
    (frames,) = read_beads(result.path)
    assert (frames.name, frames.sequence) == ("tiny", "A:G")
    assert frames.forces == pytest.approx(map_forces(forces(), result.weights), abs=1e-12)
    distance = np.linalg.norm(x[:, 4] - x[:, 0], axis=1)
    assert np.linalg.norm(frames.positions[:, 1] - frames.positions[:, 0], axis=1) == pytest.approx(distance, abs=1e-12)
    assert np.abs(frames.positions.mean(1)).max() < 1e-9  # centred
    assert frames.temperatures.tolist() == [300.0] * 250 + [350.0] * 150
    assert set(frames.origins) == {"a 300.0 K", "b 350.0 K"}
    with Dataset(result.path) as data:
        assert data.provenance["map"] == "optimal"
        assert data.provenance["constraints"] == 3


def test_npz_with_masks_comes_back(tmp_path) -> None:
    rng = np.random.default_rng(0)

    def frames(name: str, sequence: str, n: int) -> BeadFrames:
        length = len(sequence.replace(":", ""))
        return BeadFrames(
            name, sequence, np.cumsum(rng.normal(0, 1, (n, length, 3)), 1), rng.normal(0, 1, (n, length, 3)),
            np.full(n, 300.0), np.array([f"run {k % 2}" for k in range(n)]),
        )  # fmt: skip

    proteins = [frames("long", "GYDPE:TG", 5), frames("short", "AWG", 4)]
    back = load_npz(save_npz(tmp_path / "beads.npz", proteins))
    for before, after in zip(proteins, back, strict=True):
        assert (after.name, after.sequence) == (before.name, before.sequence)
        assert after.positions == pytest.approx(before.positions, abs=1e-5)
        assert after.forces == pytest.approx(before.forces, abs=1e-6)
        assert after.origins.tolist() == before.origins.tolist()
    write_beads(tmp_path / "beads.h5", back, {"source": "test"})
    again = read_beads(tmp_path / "beads.h5")
    assert [len(p.positions) for p in again] == [5, 4]
    assert again[0].sequence == "GYDPE:TG"


def test_npz_of_others_in_other_units(tmp_path) -> None:
    species = np.array([[6, 20, 0], [6, 20, 0], [1, 2, 3]])  # GY, GY, ACD
    arrays = {"R": np.ones((3, 3, 3)), "F": np.full((3, 3, 3), 1.0), "species": species, "mask": species > 0}
    np.savez(tmp_path / "x.npz", **arrays)
    first, second = load_npz(tmp_path / "x.npz", force_unit="kcal/mol/A")
    assert (first.sequence, second.sequence) == ("GY", "ACD")
    assert first.forces == pytest.approx(0.0433641, rel=1e-5)
    np.savez(tmp_path / "y.npz", R=arrays["R"], F=arrays["F"])
    with pytest.raises(DataError, match="no array species"):
        load_npz(tmp_path / "y.npz")
    arrays["mask"] = species > 1
    arrays["species"] = species + 1
    np.savez(tmp_path / "z.npz", **arrays)
    with pytest.raises(DataError, match="1 to 20"):
        load_npz(tmp_path / "z.npz")


def test_chains_that_a_box_cuts_are_refused(tmp_path) -> None:
    x = 3.8 * np.arange(4)[None, :, None] * np.array([1.0, 0, 0]) + np.zeros((3, 1, 1))
    x[1, 2:] -= [30.0, 0, 0]
    cut = BeadFrames("cut", "GYDP", x, np.zeros_like(x), np.full(3, 300.0), np.full(3, "a"))
    with pytest.raises(DataError, match=r"beads 1 and 2 .* in frame 1"):
        write_beads(tmp_path / "cut.h5", [cut], {})
    write_beads(tmp_path / "broken.h5", [BeadFrames("cut", "GY:DP", x, cut.forces, cut.temperatures, cut.origins)], {})


def test_files_that_are_no_npz_are_refused(tmp_path) -> None:
    for content in (b"", b"PK\x03\x04 and no more"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as NPZ"):
            load_npz(tmp_path / "x.npz")


def test_a_dataset_of_atoms_is_not_one_of_beads(tmp_path) -> None:
    from ase.build import molecule

    from distillase.datasets.structure import Structure
    from distillase.datasets.writer import write_dataset

    water = molecule("H2O")
    structure = Structure(
        numbers=water.numbers, positions=water.positions, cell=np.zeros((3, 3)), pbc=np.zeros(3, bool), charge=0,
        multiplicity=1, group="water", origin="", smiles="",
    )  # fmt: skip
    path = write_dataset(tmp_path / "water.h5", [(structure, None)], provenance={})
    with pytest.raises(DataError, match="cg map"):
        read_beads(path)


def test_a_map_of_few_frames_does_not_fit_their_noise() -> None:
    """Forces of many atoms on two beads, of fewer frames than there are atoms: drawn towards the basic map."""
    rng = np.random.default_rng(4)
    n_atoms, beads = 60, np.array([0, 30])
    mixing = np.eye(n_atoms)
    mixing[0, 1:5], mixing[30, 31:35] = -0.5, -0.5  # what four atoms feel is felt by the bead with the other sign
    few, others, many = (rng.normal(0, 1, (n, n_atoms, 3)).transpose(0, 2, 1) @ mixing.T for n in (12, 12, 3000))
    made, held, unseen = (ForceMapper(beads, np.zeros((0, 2)), n_atoms) for _ in range(3))
    for mapper_, frames_ in ((made, few), (held, others), (unseen, many)):
        mapper_.add(frames_.transpose(0, 2, 1))

    def noise(weights: np.ndarray) -> float:
        return root_mean_square([map_forces(many.transpose(0, 2, 1), weights)])

    ridge = made.best_ridge(held)
    assert ridge > 1e-3
    assert noise(made.solve("optimal", ridge)) < 0.95 * noise(made.solve("basic"))
    assert noise(made.solve("optimal")) > noise(made.solve("basic"))
    # With frames enough there is nothing to draw it with, and the sum of both parts is the whole.
    both = ForceMapper(beads, np.zeros((0, 2)), n_atoms)
    both.add(few.transpose(0, 2, 1))
    both.add(many.transpose(0, 2, 1))
    rest = both.without(made)
    assert rest.n_frames == 3000
    assert np.allclose(rest.solve("optimal"), unseen.solve("optimal"), atol=1e-9)
    assert rest.best_ridge(unseen) < 1e-3
