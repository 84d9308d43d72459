"""The dataset file: what goes in comes out to the last bit, and what does not fit is refused."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillase.ase_calcs.errors import DataError, InputError
from distillase.datasets import schema, writer
from distillase.datasets.inspect import dataset_info, validate_dataset
from distillase.datasets.splits import split_indices
from distillase.datasets.store import Dataset, content_hash, write_dataset
from distillase.datasets.structure import Labels, Structure

h5py = pytest.importorskip("h5py")

WATER = np.array([[0.0, 0.0, 0.119], [0.0, 0.763, -0.477], [0.0, -0.763, -0.477]])


def spring(positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy and forces of springs between all atoms: no net force, no torque."""
    difference = positions[:, None] - positions[None]
    distance = np.linalg.norm(difference, axis=-1) + np.eye(len(positions))
    stretch = np.where(np.eye(len(positions)) > 0, 0.0, distance - 1.2)
    forces = -2.0 * (stretch / distance)[..., None] * difference
    return float(0.5 * (stretch**2).sum()), forces.sum(axis=1)


def frames(n: int = 30, seed: int = 0) -> list:
    """Molecules of 2 to 5 atoms: every third frame periodic with stress, every fifth without labels, odd extras."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        size = int(rng.integers(2, 6))
        # 8 + an even number of electrons in all, so that multiplicity 1 is right.
        numbers = np.array([8, 6, 8, 6, 8])[:size]
        positions = rng.normal(scale=0.1, size=(size, 3)) + 1.3 * np.arange(size)[:, None] * np.array([1.0, 0.3, 0.1])
        periodic = i % 3 == 0
        structure = Structure(
            numbers,
            positions,
            cell=np.eye(3) * 20.0 if periodic else np.zeros((3, 3)),
            pbc=np.full(3, periodic),
            charge=2 * (i % 2),
            multiplicity=1,
            group=f"molécule {size}",
            origin=f"md-500K/{i % 4:03d}",
            smiles="C/C=C\\C",
        )
        energy, forces = spring(positions)
        labels = Labels(
            energy,
            forces,
            stress=rng.normal(size=6) if periodic else None,
            charges=rng.normal(size=size),
            dipole=rng.normal(size=3),
        )
        extras = {}
        if i % 4 == 1:
            extras = {
                "velocities": rng.normal(size=(size, 3)),
                "temperature": np.float64(500.0),
                "hessian_rows": rng.normal(size=(2, 3 * size)),
                "hessian_row_index": np.array([0, 3 * size - 1]),
            }
        out.append((structure, None if i % 5 == 4 else labels, extras))
    return out


def assert_same_frame(got, expected) -> None:
    (s1, l1, e1), (s2, l2, e2) = got, expected
    for name in ("numbers", "positions", "cell", "pbc"):
        np.testing.assert_array_equal(getattr(s1, name), getattr(s2, name))
    assert s1.key() == s2.key()
    for name in ("charge", "multiplicity", "group", "origin", "smiles"):
        assert getattr(s1, name) == getattr(s2, name)
    assert (l1 is None) == (l2 is None)
    if l1 is not None:
        assert l1.energy == l2.energy
        for name in ("forces", "stress", "charges", "dipole", "energies"):
            a, b = getattr(l1, name), getattr(l2, name)
            assert (a is None) == (b is None), name
            if a is not None:
                np.testing.assert_array_equal(a, b)
    assert set(e1) == set(e2)
    for name in e1:
        np.testing.assert_array_equal(e1[name], e2[name])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "set.h5", frames(), provenance={"teacher": "springs", "seed": 0})


# ---------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("flush", [1, 4096])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_every_frame_comes_back_bit_for_bit(tmp_path, monkeypatch, flush, keep_bytes):
    monkeypatch.setattr(writer, "FRAMES_PER_FLUSH", flush)
    given_frames = frames(20)
    dataset = Dataset(write_dataset(tmp_path / "a.h5", given_frames, provenance={"a": [1, "é"]}), keep_bytes=keep_bytes)
    assert len(dataset) == 20
    assert dataset.provenance == {"a": [1, "é"]}
    for got, expected in zip(dataset.frames(), given_frames, strict=True):
        assert_same_frame(got, expected)
    assert_same_frame(next(dataset.frames([-1])), given_frames[-1])


def test_equal_frames_give_byte_equal_arrays_whatever_the_batches(tmp_path, monkeypatch):
    first = write_dataset(tmp_path / "a.h5", frames(20), provenance={"seed": 1})
    monkeypatch.setattr(writer, "FRAMES_PER_FLUSH", 3)
    second = write_dataset(tmp_path / "b.h5", iter(frames(20)), provenance={"seed": 2})
    with h5py.File(first) as a, h5py.File(second) as b:
        assert set(a) == set(b)
        for name in a:
            assert a[name][()].tobytes() == b[name][()].tobytes()
    assert Dataset(first).content_hash == Dataset(second).content_hash == Dataset(first).recompute_hash()
    other = write_dataset(tmp_path / "c.h5", frames(20, seed=9), provenance={"seed": 1})
    assert Dataset(other).content_hash != Dataset(first).content_hash


def test_missing_labels_are_nan_rows_and_absent_fields_are_absent(path):
    dataset = Dataset(path)
    assert "energies" not in dataset.fields
    unlabelled = [i for i, (_, labels, _) in enumerate(frames()) if labels is None]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(dataset.energy)), unlabelled)
    periodic_and_labelled = [i for i in range(30) if i % 3 == 0 and i % 5 != 4]
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(dataset.stress).all(axis=1)), periodic_and_labelled)
    assert dataset.numbers.dtype == np.int64
    with pytest.raises(DataError, match="has no `energies`"):
        _ = dataset.energies


def test_unlabelled_set(tmp_path):
    dataset = Dataset(write_dataset(tmp_path / "a.h5", [(s, None) for s, _, _ in frames()], provenance={}))
    assert dataset.labels(0) is None
    assert not dataset.fields & {"energy", "forces"}
    with pytest.raises(DataError, match="distillase label"):
        _ = dataset.forces


def test_labels_with_energy_only_or_forces_only(tmp_path):
    structure = Structure(np.array([8, 1, 1]), WATER)
    pairs = [(structure, Labels(-1.0, None)), (structure, Labels(None, np.ones((3, 3))))]
    dataset = Dataset(write_dataset(tmp_path / "a.h5", pairs, provenance={}))
    assert (dataset.labels(0).energy, dataset.labels(0).forces) == (-1.0, None)
    assert dataset.labels(1).energy is None
    np.testing.assert_array_equal(dataset.labels(1).forces, np.ones((3, 3)))


@settings(max_examples=20, deadline=None)
@given(
    names=st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8), min_size=1)
)
def test_any_text_survives(tmp_path_factory, names):
    target = tmp_path_factory.mktemp("text") / "a.h5"
    pairs = [(Structure(np.array([1]), np.zeros((1, 3)), group=name), None) for name in names]
    assert list(Dataset(write_dataset(target, pairs, provenance={})).group) == names


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("labels", "extras", "message"),
    [
        (Labels(float("nan"), np.zeros((3, 3))), {}, "`energy` is not finite"),
        (Labels(0.0, np.full((3, 3), np.inf)), {}, "`forces` is not finite"),
        (Labels(0.0, np.zeros((2, 3))), {}, r"`forces` has shape \(2, 3\), and must have \(3, 3\)"),
        (Labels(0.0, np.zeros((3, 3)), stress=np.zeros((3, 3))), {}, "`stress` has shape"),
        (Labels(0.0, np.zeros((3, 3))), {"velocity": np.zeros((3, 3))}, "does not know: velocity"),
        (Labels(0.0, np.zeros((3, 3))), {"hessian_rows": np.zeros((1, 9))}, "go together"),
        (
            Labels(0.0, np.zeros((3, 3))),
            {"hessian_rows": np.zeros((1, 9)), "hessian_row_index": [9]},
            "between 0 and 8",
        ),
    ],
)
def test_frames_that_do_not_fit_leave_no_file(tmp_path, labels, extras, message):
    structure = Structure(np.array([8, 1, 1]), WATER, group="water", origin="input")
    good = (structure, Labels(0.0, np.zeros((3, 3))))
    with pytest.raises(DataError, match=message) as caught:
        write_dataset(tmp_path / "a.h5", [good, (structure, labels, extras)], provenance={})
    assert "Frame 1 (water, input)" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_first_frame_that_does_not_fit_is_named(tmp_path, monkeypatch):
    """Frames are checked many at once; what is said must be what checking one by one would say."""
    monkeypatch.setattr("distillase.datasets.writer.FRAMES_PER_FLUSH", 5)
    structure = Structure(np.array([8, 1, 1]), WATER, group="water", origin="input")
    rows = [(structure, Labels(0.0, np.zeros((3, 3))), {}) for _ in range(12)]
    rows[7] = (structure, Labels(0.0, np.zeros((3, 3))), {"hessian_rows": np.zeros((1, 9)), "hessian_row_index": [9]})
    rows[8] = (structure, Labels(0.0, np.full((3, 3), np.nan)), {})
    with pytest.raises(DataError, match=r"Frame 7 \(water, input\): `hessian_row_index` must lie between 0 and 8"):
        write_dataset(tmp_path / "a.h5", rows, provenance={})
    rows[6] = (structure, Labels(np.zeros(1), np.zeros((3, 3))), {})
    with pytest.raises(DataError, match=r"Frame 6 \(water, input\): `energy` has shape \(1,\), and must have \(\)"):
        write_dataset(tmp_path / "a.h5", rows, provenance={})


def test_arrays_may_be_used_again_and_mixed_types_are_converted(tmp_path):
    positions, forces = WATER.copy(), np.zeros((3, 3))

    def moving():
        for step in range(4):
            kind = np.float32 if step == 2 else np.float64
            yield Structure(np.array([8, 1, 1]), positions), Labels(step, forces.astype(kind))
            positions[0, 0] += 1.0
            forces[:] += 0.5

    dataset = Dataset(write_dataset(tmp_path / "a.h5", moving(), provenance={}))
    assert np.array_equal(dataset.positions.reshape(4, 3, 3)[:, 0, 0], WATER[0, 0] + np.arange(4))
    assert np.array_equal(dataset.forces.reshape(4, 9)[:, 0], 0.5 * np.arange(4))
    assert np.array_equal(dataset.energy, np.arange(4.0))


def test_a_failed_write_keeps_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_dataset(path, (frames()[i // (i - 3)] for i in range(5)), provenance={})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_no_frames_numbers_out_of_range_and_bad_provenance(tmp_path):
    with pytest.raises(DataError, match="no frames"):
        write_dataset(tmp_path / "a.h5", [], provenance={})
    with pytest.raises(DataError, match="whole numbers"):
        write_dataset(tmp_path / "a.h5", [(Structure(np.array([300]), np.zeros((1, 3))), None)], provenance={})
    with pytest.raises(DataError, match="no atoms"):
        write_dataset(tmp_path / "a.h5", [(Structure(np.zeros(0, int), np.zeros((0, 3))), None)], provenance={})
    with pytest.raises(DataError, match="JSON"):
        write_dataset(tmp_path / "a.h5", frames(), provenance={"x": object()})


def damage(path: Path, change: Callable) -> Path:
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def _replace(file, name, values, unit=None):
    unit = unit or file[name].attrs["unit"]
    del file[name]
    file[name] = values
    file[name].attrs["unit"] = unit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: f["forces"].attrs.modify("unit", "kcal/mol/Å"),
            "has the unit 'kcal/mol/Å', and must have 'eV/Å'",
        ),
        (lambda f: f["energy"].attrs.__delitem__("unit"), "`energy` has the unit None"),
        (lambda f: _replace(f, "forces", f["forces"][:-1]), "`forces` has shape"),
        (lambda f: _replace(f, "charge", f["charge"][:].astype(float)), "`charge` holds float64"),
        (lambda f: _replace(f, "offsets", f["offsets"][:][::-1].copy()), "must rise from 0"),
        (lambda f: f.__delitem__("numbers"), "lacks the array"),
        (lambda f: f.attrs.__setitem__("version", 99), "version 99 of the dataset format; this distillase reads"),
        (lambda f: f.attrs.__setitem__("version", 0), "which never was"),
        (lambda f: f.attrs.__delitem__("version"), "does not say which version"),
        (lambda f: f.attrs.__setitem__("format", "something"), "not a distillase dataset"),
        (lambda f: f.attrs.__setitem__("provenance", "{"), "damaged"),
    ],
)
def test_wrong_units_lengths_types_and_versions_are_refused(path, change, message):
    damage(path, change)
    with pytest.raises(DataError, match=message) as caught:
        Dataset(path)
    assert "\n" not in str(caught.value)


def test_text_codes_outside_their_table_are_refused(path):
    damage(path, lambda f: f["group"].__setitem__(0, 1000))
    with pytest.raises(DataError, match="points outside"):
        _ = Dataset(path).group


def test_links_and_storage_outside_the_file_are_never_followed(path, tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(path) as file:
        values = file["positions"][:]
    with h5py.File(secret, "w") as file:
        file["positions"] = values
        file["positions"].attrs["unit"] = "Å"
    original = path.read_bytes()

    def external_link(file):
        del file["positions"]
        file["positions"] = h5py.ExternalLink(str(secret), "positions")

    def soft_link(file):
        file["positions2"] = file["positions"]
        del file["positions"]
        file["positions"] = h5py.SoftLink("/positions2")

    def virtual(file):
        del file["positions"]
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource(str(secret), "positions", values.shape)
        file.create_virtual_dataset("positions", layout).attrs["unit"] = "Å"

    def external_storage(file):
        del file["positions"]
        raw = tmp_path / "raw.bin"
        raw.write_bytes(values.tobytes())
        array = file.create_dataset("positions", values.shape, values.dtype, external=[(str(raw), 0, values.nbytes)])
        array.attrs["unit"] = "Å"

    for change, message in (
        (external_link, "ExternalLink"),
        (soft_link, "SoftLink"),
        (virtual, "in another file"),
        (external_storage, "in another file"),
    ):
        path.write_bytes(original)
        damage(path, change)
        with pytest.raises(DataError, match=message):
            Dataset(path)


def test_truncated_foreign_and_missing_files(path, tmp_path):
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"truncated|damaged"):
            Dataset(path)
    path.write_text("not HDF5")
    with pytest.raises(DataError, match="not a readable HDF5"):
        Dataset(path)
    with pytest.raises(DataError, match="There is no dataset file"):
        Dataset(tmp_path / "nowhere.h5")
    with pytest.raises(DataError, match="There is no dataset file"):
        Dataset(tmp_path)


def test_a_flipped_byte_in_an_array_is_noticed(path):
    with h5py.File(path) as file:
        chunk = file["positions"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(content)
    dataset = Dataset(path)
    with pytest.raises(DataError, match="`positions` cannot be read"):
        dataset.structure(0)
    with pytest.raises(DataError, match="damaged"):
        dataset.recompute_hash()


def test_older_versions_are_upgraded_step_by_step(path, monkeypatch):
    """A version 2 that calls forces by another name reads version 1 through its upgrade."""

    def upgrade_v1_to_v2(raw: schema.RawFile) -> schema.RawFile:
        raw.arrays["dipole"] = raw.arrays["dipole"][:] * 2.0
        return raw

    expected = 2.0 * Dataset(path).dipole
    monkeypatch.setattr(schema, "FORMAT_VERSION", 2)
    monkeypatch.setitem(schema.UPGRADES, 1, upgrade_v1_to_v2)
    np.testing.assert_array_equal(Dataset(path).dipole, expected)


def test_layout_of_version_1_is_what_it_was(tmp_path):
    """Change of names, types or order of the hash means a new version and an upgrade function."""
    structure = Structure(np.array([8, 1, 1]), WATER, group="O", origin="input", smiles="O")
    target = write_dataset(
        tmp_path / "a.h5", [(structure, Labels(-1.5, np.zeros((3, 3))))], provenance={"teacher": "t"}
    )
    with h5py.File(target) as file:
        assert {name: (file[name].dtype.str, file[name].shape, file[name].attrs["unit"]) for name in file} == {
            "cell": ("<f8", (1, 3, 3), "Å"),
            "charge": ("<i4", (1,), "e"),
            "energy": ("<f8", (1,), "eV"),
            "forces": ("<f8", (3, 3), "eV/Å"),
            "group": ("<i4", (1,), "1"),
            "group_names": ("|S1", (1,), "1"),
            "multiplicity": ("<i4", (1,), "1"),
            "numbers": ("|u1", (3,), "1"),
            "offsets": ("<i8", (2,), "1"),
            "origin": ("<i4", (1,), "1"),
            "origin_names": ("|S5", (1,), "1"),
            "pbc": ("|b1", (1, 3), "1"),
            "positions": ("<f8", (3, 3), "Å"),
            "smiles": ("<i4", (1,), "1"),
            "smiles_names": ("|S1", (1,), "1"),
        }
        assert json.loads(file.attrs["provenance"]) == {"teacher": "t"}
        assert file.attrs["version"] == 1
        assert file.attrs["content_hash"] == content_hash(file)
        assert all(file[name].compression == "gzip" for name in file)


# ------------------------------------------------------------------------------------------------------------ processes


def _sum_in_worker(dataset: Dataset, i: int) -> tuple[float, str]:
    return float(dataset.structure(i).positions.sum()), dataset.content_hash


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_datasets_travel_to_workers(path, method):
    dataset = Dataset(path, keep_bytes=0)
    dataset.structure(0)  # open in the parent, so that a fork inherits the handle
    with multiprocessing.get_context(method).Pool(1) as pool:
        got = pool.starmap(_sum_in_worker, [(dataset, i) for i in range(5)])
    assert got == [_sum_in_worker(dataset, i) for i in range(5)]


def test_a_file_replaced_in_the_meantime_is_noticed_in_the_worker(path):
    dataset = Dataset(path)
    packed = pickle.dumps(dataset)
    write_dataset(path, frames(seed=5), provenance={})
    with pytest.raises(DataError, match="replaced by another"):
        pickle.loads(packed)
    assert_same_frame(next(dataset.frames([3])), frames()[3])  # an open file stays what it was


def test_context_manager_closes_and_reopens(path):
    with Dataset(path) as dataset:
        expected = dataset.energy
    np.testing.assert_array_equal(dataset.energy, expected)
    dataset.close()
    dataset.close()


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
