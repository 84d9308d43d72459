"""The dataset file: what goes in comes out to the last bit, and what does not fit is refused."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_frames import WATER, damage, frames

from distillase.ase_calcs.errors import DataError
from distillase.datasets import schema, writer
from distillase.datasets.store import Dataset, content_hash, write_dataset
from distillase.datasets.structure import Labels, Structure
from distillase.datasets.writer import FrameTable

h5py = pytest.importorskip("h5py")


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


def table_of(some) -> FrameTable:
    """The same frames as columns."""
    structures, labels = [s for s, _, _ in some], [found for _, found, _ in some]

    def rows(name: str, shape) -> list[np.ndarray]:
        values = [None if found is None else getattr(found, name) for found in labels]
        return [np.full(shape(s), np.nan) if v is None else v for s, v in zip(structures, values, strict=True)]

    columns = {name: np.concatenate([getattr(s, name) for s in structures]) for name in ("numbers", "positions")}
    for name in ("cell", "pbc", "charge", "multiplicity"):
        columns[name] = np.array([getattr(s, name) for s in structures])
    columns |= {name: [getattr(s, name) for s in structures] for name in ("group", "origin", "smiles")}
    for name, tail in (("forces", (3,)), ("charges", ()), ("energies", ())):
        columns[name] = np.concatenate(rows(name, lambda s, tail=tail: (len(s), *tail)))
    for name, tail in (("energy", ()), ("stress", (6,)), ("dipole", (3,))):
        columns[name] = np.array(rows(name, lambda _, tail=tail: tail))
    return FrameTable(np.array([len(s) for s in structures]), columns)


def test_a_table_is_written_as_its_frames_are(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "FRAMES_PER_FLUSH", 7)
    some = [(structure, labels, {}) for structure, labels, _ in frames(20)]
    one = write_dataset(tmp_path / "a.h5", some, provenance={})
    # Single frames before, between and after tables; a first table without any label.
    unlabelled = [(s, None, {}) for s, _, _ in some]
    two = write_dataset(tmp_path / "b.h5", [table_of(some[:9]), *some[9:12], table_of(some[12:])], provenance={})
    with h5py.File(one) as a, h5py.File(two) as b:
        assert set(a) == set(b)
        for name in a:
            assert (a[name].chunks, a[name].dtype) == (b[name].chunks, b[name].dtype)
            assert a[name][()].tobytes() == b[name][()].tobytes(), name
    mixed = [*unlabelled[:5], *some[5:]]
    three = write_dataset(tmp_path / "c.h5", [table_of(mixed[:5]), table_of(mixed[5:])], provenance={})
    assert Dataset(three).content_hash == Dataset(write_dataset(tmp_path / "d.h5", mixed, provenance={})).content_hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("cell"), "has no cell"),
        (lambda c: c.update(colour=np.zeros(6)), "does not know: colour"),
        (lambda c: c.update(charge=np.full(6, 0.5)), "`charge` of a table must be whole numbers"),
        (lambda c: c.update(smiles=["O"]), "`smiles` of a table has 1 entries for 6 frames"),
        (lambda c: c.update(forces=c["forces"][:-1]), "`forces` of a table of frames is float64 of shape"),
        (lambda c: c["positions"].__setitem__((4, 1), np.inf), "Frame 1: `positions` is not finite"),
        (lambda c: c["forces"].__setitem__((7, 0), np.nan), "Frame 2: `forces` is not finite"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, change, message):
    table = table_of([(Structure(np.array([8, 1, 1]), WATER), Labels(-1.0, np.ones((3, 3))), {})] * 6)
    change(table.columns)
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "t.h5", [table], provenance={})
    assert not list(tmp_path.iterdir())


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
