"""Splits that never leak, what `dataset info` counts, and what `dataset validate` notices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_frames import WATER, damage, frames, spring

from distillase.ase_calcs.errors import DataError, InputError
from distillase.datasets.inspect import dataset_info, validate_dataset
from distillase.datasets.splits import split_indices
from distillase.datasets.store import Dataset, write_dataset
from distillase.datasets.structure import Labels, Structure

h5py = pytest.importorskip("h5py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set.h5", frames(), provenance={"teacher": "springs", "seed": 0})


# --------------------------------------------------------------------------------------------------------------- splits


def random_names(seed: int, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    group = np.repeat([f"m{i}" for i in range(n_groups)], rng.integers(1, 40, n_groups))
    return group, np.array([f"md/{k}" for k in rng.integers(0, 6, len(group))])


@pytest.mark.parametrize("by", ["group", "trajectory", "frame"])
@pytest.mark.parametrize("n_groups", [3, 4, 25, 150])
def test_splits_never_leak_and_lose_nothing(by, n_groups):
    group, origin = random_names(1, n_groups)
    parts = split_indices((group, origin), by=by, seed=3)
    assert list(parts) == ["train", "validation", "test"]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(group)))
    assert all(len(indices) > 0 for indices in parts.values())
    together = {"group": group, "trajectory": np.char.add(group, origin), "frame": np.arange(len(group))}[by]
    seen = [set(together[indices].tolist()) for indices in parts.values()]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_split_is_deterministic_and_blind_to_the_order_of_frames():
    group, origin = random_names(2, 30)
    first = split_indices((group, origin), seed=7)
    again = split_indices((group, origin), seed=7)
    assert all(np.array_equal(first[k], again[k]) for k in first)
    other = split_indices((group, origin), seed=8)
    assert any(set(group[first[k]]) != set(group[other[k]]) for k in first)
    order = np.random.default_rng(0).permutation(len(group))
    shuffled = split_indices((group[order], origin[order]), seed=7)
    assert all(set(group[order][shuffled[k]]) == set(group[first[k]]) for k in first)


def test_fractions_are_met_as_nearly_as_groups_allow():
    group, origin = random_names(3, 100)
    for seed in range(5):
        parts = split_indices((group, origin), seed=seed, fractions={"train": 0.7, "test": 0.3})
        assert abs(len(parts["train"]) - 0.7 * len(group)) <= 1.5
    equal = np.repeat([f"m{i}" for i in range(10)], 7)
    assert [len(v) for v in split_indices((equal, equal)).values()] == [56, 7, 7]
    frames_only = np.array(["m"] * 1003)
    counts = [len(v) for v in split_indices((frames_only, frames_only), by="frame").values()]
    assert counts in ([802, 100, 101], [803, 100, 100], [802, 101, 100])


def test_the_largest_group_is_not_always_trained_on():
    sizes = np.array([20] + [10] * 30)
    group = np.repeat([f"m{i:02d}" for i in range(len(sizes))], sizes)
    fractions = {"train": 0.5, "test": 0.5}
    in_train = [0 in split_indices((group, group), seed=s, fractions=fractions)["train"] for s in range(40)]
    assert 8 < sum(in_train) < 32


def test_split_refusals(path):
    one = np.array(["m"] * 10), np.array(["a"] * 5 + ["b"] * 5)
    with pytest.raises(DataError, match="by: trajectory"):
        split_indices(one)
    with pytest.raises(DataError, match="by: frame"):
        split_indices(one, by="trajectory")
    assert len(split_indices(one, by="trajectory", fractions={"train": 0.5, "test": 0.5})["train"]) == 5
    with pytest.raises(InputError, match="did you mean `group`"):
        split_indices(one, by="groups")
    for wrong in ({"train": 0.8}, {"train": 1.2, "test": -0.2}, {}, {"train": float("nan")}):
        with pytest.raises(InputError, match="sum to 1"):
            split_indices(one, by="frame", fractions=wrong)
    assert sum(len(v) for v in split_indices(Dataset(path)).values()) == 30


# ------------------------------------------------------------------------------------------------- info and validation


def test_info_counts(path):
    info = dataset_info(path)
    assert (info.n_frames, info.periodic, info.labelled["energy"], info.labelled["stress"]) == (30, 10, 24, 8)
    assert info.charges == {0: 15, 2: 15}
    assert sum(info.elements.values()) == info.n_atoms
    assert info.hydrogen_fraction == 0.0
    assert info.n_groups == len({s.group for s, _, _ in frames()})
    assert info.labelled["hessian_rows"] == sum(i % 4 == 1 for i in range(30))
    assert info.units["forces"] == "eV/Å"


def waters(n: int = 40, seed: int = 0) -> list[tuple[Structure, Labels]]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        positions = WATER + rng.normal(scale=0.05, size=(3, 3))
        out.append((Structure(np.array([8, 1, 1]), positions, group=f"w{i % 4}"), Labels(*spring(positions))))
    return out


def verdict(tmp_path: Path, pairs: list, **kwargs) -> tuple[str, set[str]]:
    found = validate_dataset(write_dataset(tmp_path / "v.h5", pairs, provenance={}), **kwargs)
    return found.verdict, {finding.check for finding in found.findings if finding.verdict != "ok"}


def test_sound_data_is_ok(tmp_path):
    found = validate_dataset(write_dataset(tmp_path / "v.h5", waters(), provenance={}))
    assert (found.verdict, found.findings) == ("ok", [])
    assert found.statistics["net force, net over gross"] < 1e-14
    assert found.statistics["net torque, net over gross"] < 1e-14
    assert found.statistics["hydrogen fraction"] == pytest.approx(2 / 3)
    assert found.compositions[0][:2] == ("H2O", 40)


def test_unlabelled_data_is_ok(tmp_path):
    assert verdict(tmp_path, [(s, None) for s, _ in waters()]) == ("ok", set())


def test_swapped_atoms_exert_a_torque_and_a_missing_atom_a_net_force(tmp_path):
    swapped = [(s, Labels(x.energy, x.forces[[1, 2, 0]])) for s, x in waters()]
    assert verdict(tmp_path, swapped) == ("fail", {"net torque"})
    missing = [
        (Structure(s.numbers[:2], s.positions[:2], group=s.group, charge=1), Labels(x.energy, x.forces[:2]))
        for s, x in waters()
    ]
    assert "net force" in verdict(tmp_path, missing)[1]


def test_outlier_clash_duplicate_leak_parity_large_force_and_lost_hydrogen(tmp_path):
    base = waters()
    structure, labels = base[5]
    far = [*base[:5], (structure, Labels(labels.energy + 5.0, labels.forces)), *base[6:]]
    assert verdict(tmp_path, far) == ("warn", {"energy outliers"})
    near = structure.positions.copy()
    near[1] = near[0] + 0.1
    clash = Structure(structure.numbers, near, group="w1")
    assert "clashes" in verdict(tmp_path, [*base, (clash, Labels(*spring(near)))])[1]
    across = structure.positions + np.array([[0.0, 0, 0], [0, 0, 0], [0, 12.0, 0]])
    boxed = Structure(structure.numbers, across, np.diag([12.0] * 3), np.ones(3, bool))
    assert verdict(tmp_path, [(boxed, None)]) == ("ok", set())
    wrapped = np.array([[0.1, 5, 5], [11.9, 5, 5]])  # 0.2 Å apart through the boundary
    assert verdict(tmp_path, [(Structure(np.array([1, 1]), wrapped, np.eye(3) * 12, np.ones(3, bool)), None)]) == (
        "warn",
        {"clashes"},
    )
    assert verdict(tmp_path, [*base, base[0]]) == ("warn", {"duplicates"})
    copied = Structure(structure.numbers, structure.positions, group="another")
    assert verdict(tmp_path, [*base, (copied, labels)]) == ("warn", {"duplicates", "leaks"})
    radical = Structure(structure.numbers, structure.positions + 0.01, charge=1, group="w1")
    assert verdict(tmp_path, [*base, (radical, labels)]) == ("warn", {"electrons"})
    pushed = [(s, Labels(x.energy, 1000 * x.forces)) for s, x in base]
    assert verdict(tmp_path, pushed) == ("warn", {"large forces"})
    naked = [(Structure(np.array([6, 8]), np.array([[0, 0, 0], [0, 0, 1.15]])), None)]
    assert verdict(tmp_path, naked) == ("warn", {"hydrogens"})


def test_energies_of_mixed_units_are_noticed(tmp_path):
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(60):
        numbers = np.array([6] * (1 + i % 5) + [1] * (4 + 2 * (i % 3)))
        positions = rng.normal(scale=4.0, size=(len(numbers), 3))
        energy = -50.0 * (numbers == 6).sum() - 13.0 * (numbers == 1).sum()
        scale = 1 / 27.2 if i == 17 else 1.0
        structure = Structure(numbers, positions, group=str(i))
        pairs.append((structure, Labels(scale * energy, np.zeros((len(numbers), 3)))))
    assert "atomic energies" in verdict(tmp_path, pairs)[1]


def test_values_changed_after_writing_fail(path):
    damage(path, lambda f: f["energy"].__setitem__(0, 7.0))
    found = validate_dataset(path)
    assert found.verdict == "fail"
    assert [f.check for f in found.findings if f.verdict == "fail"] == ["content hash"]


def test_partly_missing_labels_fail(path):
    damage(path, lambda f: f["forces"].__setitem__((0, 0), np.nan))
    assert {f.check for f in validate_dataset(path).findings if f.verdict == "fail"} == {
        "content hash",
        "finite values",
    }
