"""Conversion: nothing is lost, units are right, and labels that nobody asked for are not silently left out."""

from __future__ import annotations

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase import units as ase_units
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import atomic_masses

from distillase.ase_calcs.errors import DataError, InputError
from distillase.datasets.convert import convert_file, merge_datasets, split_dataset
from distillase.datasets.foreign import ImportOptions
from distillase.datasets.store import Dataset, write_dataset
from distillase.datasets.structure import Labels, Structure

pytest.importorskip("h5py")

KJ_PER_MOL = 1.0 / 96.48533212  # eV; CODATA 2018, an independent figure
KCAL_PER_MOL = 4.184 * KJ_PER_MOL


def molecule_frames(n: int = 12, *, one_molecule: bool = False, periodic: bool = True, seed: int = 0) -> list:
    """Water and methanol-like atoms with every label; some frames periodic, charged, unlabelled or with velocities."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(n):
        numbers = np.array([8, 1, 1] if one_molecule or i % 2 else [6, 8, 1, 1, 1, 1])
        size = len(numbers)
        box = periodic and i % 3 == 0
        structure = Structure(
            numbers,
            rng.normal(scale=3.0, size=(size, 3)),
            cell=10 * np.eye(3) + rng.normal(scale=0.3, size=(3, 3)) if box else np.zeros((3, 3)),
            pbc=np.array([box, box, False]),
            charge=i % 3 - 1,
            multiplicity=1 + (i % 3 != 1),
            group="water" if size == 3 else "C/C=C\\C [12]",
            origin=f"md-500K/{i % 2:03d}",
            smiles="" if i % 4 else "C[N+](C)=C\\O",
        )
        labels = Labels(
            float(rng.normal()) - 100,
            rng.normal(size=(size, 3)),
            stress=rng.normal(size=6) if box else None,
            charges=rng.normal(size=size),
            dipole=rng.normal(size=3),
            energies=rng.normal(size=size),
        )
        extras = {"velocities": 0.01 * rng.normal(size=(size, 3)), "temperature": np.float64(300 + i)} if i % 2 else {}
        out.append((structure, None if i == 5 else labels, extras))
    return out


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "set.h5", molecule_frames(), provenance={"teacher": "random"})


def assert_arrays_equal(a: Dataset, b: Dataset, skip: tuple[str, ...] = (), rtol: float = 0.0) -> None:
    assert a.fields - set(skip) == b.fields - set(skip)
    np.testing.assert_array_equal(a.offsets, b.offsets)
    for name in sorted(a.fields - set(skip)):
        if a.array(name).dtype.kind == "f":
            np.testing.assert_allclose(a.array(name), b.array(name), rtol=rtol, atol=0, equal_nan=True, err_msg=name)
        else:
            np.testing.assert_array_equal(a.array(name), b.array(name), err_msg=name)


# --------------------------------------------------------------------------------------------------------- round trips


def test_extxyz_round_trip_keeps_every_bit(dataset, tmp_path):
    there = convert_file(dataset, tmp_path / "a.xyz")
    back = convert_file(there.path, tmp_path / "back.h5")
    assert (back.n_frames, back.n_energy, back.n_forces) == (12, 11, 11)
    assert back.notes == ("1 of 12 frames have no energy", "1 of 12 frames have no forces")
    assert_arrays_equal(Dataset(dataset), Dataset(back.path))
    assert Dataset(back.path).content_hash == Dataset(dataset).content_hash


def test_extxyz_is_read_by_ase_as_it_stands(dataset, tmp_path):
    convert_file(dataset, tmp_path / "a.xyz")
    reference = Dataset(dataset)
    for i, atoms in enumerate(ase.io.read(tmp_path / "a.xyz", index=":")):
        structure, labels = reference.structure(i), reference.labels(i)
        np.testing.assert_array_equal(atoms.positions, structure.positions)
        np.testing.assert_array_equal(atoms.pbc, structure.pbc)
        assert (atoms.info["charge"], atoms.info["multiplicity"]) == (structure.charge, structure.multiplicity)
        if labels is not None:
            assert atoms.get_potential_energy() == labels.energy
            np.testing.assert_array_equal(atoms.get_forces(), labels.forces)
            np.testing.assert_array_equal(atoms.get_dipole_moment(), labels.dipole)
            if labels.stress is not None:
                np.testing.assert_array_equal(atoms.get_stress(), labels.stress)


def test_ase_database_round_trip(dataset, tmp_path):
    back = convert_file(convert_file(dataset, tmp_path / "a.db").path, tmp_path / "back.h5")
    assert_arrays_equal(Dataset(dataset), Dataset(back.path))
    with ase.db.connect(tmp_path / "a.db") as database:
        velocities = database.get_atoms(2).get_velocities() * ase_units.fs
    np.testing.assert_allclose(velocities, Dataset(dataset).extras(1)["velocities"], rtol=1e-14)


def test_npz_round_trip_in_nm_and_kj_per_mol(tmp_path):
    frames = molecule_frames(one_molecule=True)
    source = write_dataset(tmp_path / "w.h5", frames, provenance={})
    npz = convert_file(source, tmp_path / "w.npz").path
    arrays = dict(np.load(npz))
    assert {"positions", "velocities", "forces", "energies", "temperature", "atom_types", "masses"} <= set(arrays)
    structure, labels, extras = frames[1]
    np.testing.assert_allclose(arrays["positions"][1], structure.positions / 10.0, rtol=1e-15)
    np.testing.assert_allclose(arrays["velocities"][1], extras["velocities"] * 100.0, rtol=1e-15)  # Å/fs → nm/ps
    np.testing.assert_allclose(arrays["energies"][1], labels.energy / KJ_PER_MOL, rtol=1e-7)
    np.testing.assert_allclose(arrays["forces"][1], labels.forces * 10 / KJ_PER_MOL, rtol=1e-7)
    np.testing.assert_array_equal(arrays["atom_types"], [8, 1, 1])
    np.testing.assert_allclose(arrays["masses"], [15.999, 1.008, 1.008], rtol=1e-4)
    assert arrays["temperature"][1] == 301
    back = Dataset(convert_file(npz, tmp_path / "back.h5", options=ImportOptions(group="water")).path)
    skip = ("stress", "charges", "dipole", "energies", "origin", "smiles")  # the schema has no room for these
    assert_arrays_equal(Dataset(source), back, skip=skip, rtol=4e-16)


def test_npz_holds_one_molecule(dataset, tmp_path):
    with pytest.raises(DataError, match="holds one molecule"):
        convert_file(dataset, tmp_path / "a.npz")
    assert not list(tmp_path.glob("*npz*"))


# ------------------------------------------------------------------------------------------------------ other people's


def write_named_xyz(path, n: int = 4) -> list[Atoms]:
    rng = np.random.default_rng(0)
    images = []
    for i in range(n):
        atoms = Atoms("OH2", rng.normal(size=(3, 3)), cell=[50, 50, 50], pbc=False)
        atoms.info |= {"energy_xtb": -5.0 - i, "Comp": f"W{i // 2}", "charge": -1, "multiplicity": 2}
        atoms.arrays["forces_xtb"] = rng.normal(size=(3, 3))
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return images


def test_labels_under_other_names_are_an_error_until_named(tmp_path):
    images = write_named_xyz(tmp_path / "a.xyz")
    target = tmp_path / "a.h5"
    with pytest.raises(DataError, match=r"None of the 4 frames .* energy and forces.*energy_xtb, forces_xtb"):
        convert_file(tmp_path / "a.xyz", target)
    assert not target.exists()
    with pytest.raises(DataError, match="has forces"):
        convert_file(tmp_path / "a.xyz", target, options=ImportOptions(energy_key="energy_xtb"))
    options = ImportOptions(energy_key="energy_xtb", forces_key="forces_xtb", group_key="Comp")
    assert convert_file(tmp_path / "a.xyz", target, options=options, teacher="GFN2-xTB").n_forces == 4
    dataset = Dataset(target)
    np.testing.assert_array_equal(dataset.energy, [-5, -6, -7, -8])
    np.testing.assert_allclose(dataset.forces[:3], images[0].arrays["forces_xtb"], atol=1e-8)
    assert list(dataset.group) == ["W0", "W0", "W1", "W1"]
    assert set(dataset.charge) == {-1}
    assert set(dataset.multiplicity) == {2}
    assert not dataset.cell.any()  # a box without periodicity is dropped
    assert dataset.provenance["teacher"] == "GFN2-xTB"
    assert len(dataset.provenance["source"]["sha256"]) == 64
    assert convert_file(tmp_path / "a.xyz", target, need="nothing").n_energy == 0
    with pytest.raises(DataError, match="no entry `molecule`"):
        convert_file(tmp_path / "a.xyz", target, options=ImportOptions(group_key="molecule"), need="nothing")


def test_energy_without_forces_needs_to_be_said(tmp_path):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
    atoms.info["dft_energy"] = -1.1
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    options = ImportOptions(energy_key="dft_energy", energy_unit="hartree")
    with pytest.raises(DataError, match="--need energy"):
        convert_file(tmp_path / "a.xyz", tmp_path / "a.h5", options=options)
    convert_file(tmp_path / "a.xyz", tmp_path / "a.h5", options=options, need="energy")
    assert Dataset(tmp_path / "a.h5").energy[0] == pytest.approx(-1.1 * 27.211386, rel=1e-7)
    assert Dataset(tmp_path / "a.h5").labels(0).forces is None


def test_forces_of_constrained_atoms_are_those_of_the_calculator(tmp_path):
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.0]], constraint=FixAtoms([0]))
    atoms.calc = EMT()
    atoms.get_forces()
    expected = atoms.calc.results["forces"].copy()
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms)
    convert_file(tmp_path / "a.db", tmp_path / "a.h5")
    np.testing.assert_array_equal(Dataset(tmp_path / "a.h5").forces, expected)


def test_momenta_become_velocities_in_angstrom_per_femtosecond(tmp_path):
    atoms = Atoms("Ar", calculator=None)
    atoms.set_velocities([[0.01 / ase_units.fs, 0, 0]])  # 0.01 Å/fs
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms)
    convert_file(tmp_path / "a.db", tmp_path / "a.h5", need="nothing")
    np.testing.assert_allclose(Dataset(tmp_path / "a.h5").velocities, [[0.01, 0, 0]], rtol=1e-14)


def test_database_labels_in_data_and_charge_from_atoms(tmp_path):
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], charges=[-1, 0])
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms, data={"energy_U0": np.array([-75.8])})
    options = ImportOptions(energy_key="energy_U0", energy_unit="hartree")
    convert_file(tmp_path / "a.db", tmp_path / "a.h5", options=options, need="energy")
    dataset = Dataset(tmp_path / "a.h5")
    assert (dataset.charge[0], dataset.multiplicity[0]) == (-1, 1)
    assert dataset.energy[0] == pytest.approx(-75.8 * 27.211386, rel=1e-7)


def test_labels_that_are_not_finite_are_missing_and_told_of(tmp_path):
    images = []
    for energy in (float("nan"), -1.0):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.74]])
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((2, 3)))
        images.append(atoms)
    ase.io.write(tmp_path / "a.xyz", images, format="extxyz")
    result = convert_file(tmp_path / "a.xyz", tmp_path / "a.h5")
    assert (result.n_energy, result.n_forces) == (1, 2)
    assert "1 frames: `energy` not finite, taken as missing" in result.notes


def write_rmd17_like(path, **more) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "coords": rng.normal(size=(5, 3, 3)),
        "energies": rng.normal(size=5) - 1000,
        "forces": rng.normal(size=(5, 3, 3)),
        "nuclear_charges": np.array([8, 1, 1], dtype=np.uint8),
        **more,
    }
    np.savez(path, **arrays)
    return arrays


def test_npz_of_others_needs_its_units(tmp_path):
    arrays = write_rmd17_like(tmp_path / "rmd17.npz")
    with pytest.raises(InputError, match="does not say its length unit"):
        convert_file(tmp_path / "rmd17.npz", tmp_path / "a.h5")
    with pytest.raises(InputError, match="did you mean `kcal/mol`"):
        convert_file(
            tmp_path / "rmd17.npz", tmp_path / "a.h5", options=ImportOptions(length_unit="Å", energy_unit="kcalmol")
        )
    options = ImportOptions(length_unit="Å", energy_unit="kcal/mol", charge=1, multiplicity=2)
    convert_file(tmp_path / "rmd17.npz", tmp_path / "a.h5", options=options)
    dataset = Dataset(tmp_path / "a.h5")
    np.testing.assert_array_equal(dataset.positions, arrays["coords"].reshape(-1, 3))
    np.testing.assert_allclose(dataset.energy, arrays["energies"] * KCAL_PER_MOL, rtol=1e-7)
    np.testing.assert_allclose(dataset.forces, arrays["forces"].reshape(-1, 3) * KCAL_PER_MOL, rtol=1e-7)
    assert set(dataset.group) == {"H2O"}
    assert (dataset.charge[0], dataset.multiplicity[0]) == (1, 2)


def test_npz_types_must_go_with_masses(tmp_path):
    base = {"positions": np.zeros((1, 3, 3)) + np.arange(3)[:, None], "energies": [0.0], "forces": np.zeros((1, 3, 3))}
    masses = atomic_masses[[8, 1, 1]]
    np.savez(tmp_path / "index.npz", atom_types=[1, 2, 2], masses=masses, **base)
    with pytest.raises(DataError, match="not indices into a list of types"):
        convert_file(tmp_path / "index.npz", tmp_path / "a.h5")
    np.savez(tmp_path / "symbols.npz", atom_types=np.array(["O", "H", "H"]), masses=masses, **base)
    assert convert_file(tmp_path / "symbols.npz", tmp_path / "a.h5").notes == ()
    np.testing.assert_array_equal(Dataset(tmp_path / "a.h5").numbers, [8, 1, 1])
    np.savez(tmp_path / "hmr.npz", atom_types=[8, 1, 1], masses=masses + np.array([-4.0, 2.0, 2.0]), **base)
    assert "repartitioned" in convert_file(tmp_path / "hmr.npz", tmp_path / "a.h5").notes[0]


@pytest.mark.parametrize("name", ["a.xyz", "a.npz", "a.db", "a.h5"])
def test_damaged_files_are_one_paragraph(tmp_path, name):
    (tmp_path / name).write_bytes(b"5\nrubbish\nC 0 0\n\x00\xff")
    with pytest.raises(DataError) as caught:
        convert_file(tmp_path / name, tmp_path / "out.h5")
    assert name in str(caught.value)
    assert not (tmp_path / "out.h5").exists()


def test_pickled_npz_is_not_opened(tmp_path):
    np.savez(tmp_path / "a.npz", positions=np.array([object()]), atom_types=[1])
    with pytest.raises(DataError, match="NPZ file of plain arrays"):
        convert_file(tmp_path / "a.npz", tmp_path / "out.h5")


def test_wrong_requests(dataset, tmp_path):
    with pytest.raises(InputError, match="known suffixes"):
        convert_file(dataset, tmp_path / "a.foo")
    with pytest.raises(InputError, match="same file"):
        convert_file(dataset, dataset)
    with pytest.raises(InputError, match="drop the options"):
        convert_file(dataset, tmp_path / "a.xyz", options=ImportOptions(charge=1))
    with pytest.raises(DataError, match="There is no file"):
        convert_file(tmp_path / "none.xyz", tmp_path / "a.h5")


# ----------------------------------------------------------------------------------------------------- merge and split


def test_merge_drops_duplicates_and_prefers_labels(tmp_path):
    frames = molecule_frames(12)
    a = write_dataset(tmp_path / "a.h5", frames[:8], provenance={"teacher": "t", "seed": 1})
    b = write_dataset(tmp_path / "b.h5", frames[4:], provenance={"teacher": "t", "seed": 2})
    labelled = (frames[5][0], Labels(-1.0, np.zeros((len(frames[5][0]), 3))))
    c = write_dataset(tmp_path / "c.h5", [labelled], provenance={"teacher": "t"})
    result = merge_datasets([a, b, c], tmp_path / "m.h5")
    assert (result.n_frames, result.n_duplicates, result.n_conflicts) == (12, 5, 0)
    merged = Dataset(tmp_path / "m.h5")
    assert {s.key() for s, _ in merged} == {s.key() for s, _, _ in frames}
    assert all(labels is not None for _, labels in merged)
    assert merged.provenance["teacher"] == "t"
    assert "seed" not in merged.provenance
    assert [entry["file"] for entry in merged.provenance["merged_from"]] == ["a.h5", "b.h5", "c.h5"]


def test_merge_refuses_mixed_teachers_and_contradictions(tmp_path):
    frames = molecule_frames(6)
    a = write_dataset(tmp_path / "a.h5", frames, provenance={"teacher": "gfn2-xtb"})
    b = write_dataset(tmp_path / "b.h5", frames, provenance={"teacher": "gfn1-xtb"})
    with pytest.raises(DataError, match=r"different teachers \(a.h5: gfn2-xtb; b.h5: gfn1-xtb\)"):
        merge_datasets([a, b], tmp_path / "m.h5")
    assert merge_datasets([a, b], tmp_path / "m.h5", teachers="any").n_duplicates == 6
    unlabelled = write_dataset(tmp_path / "u.h5", [(s, None) for s, _, _ in molecule_frames(3, seed=4)], provenance={})
    assert merge_datasets([a, unlabelled], tmp_path / "m.h5").n_frames == 9
    structure, labels, _ = frames[0]
    other = [(structure, Labels(labels.energy + 0.01, labels.forces))]
    c = write_dataset(tmp_path / "c.h5", other, provenance={"teacher": "gfn2-xtb"})
    with pytest.raises(DataError, match="not the same teacher or settings"):
        merge_datasets([a, c], tmp_path / "m.h5")
    assert merge_datasets([a, c], tmp_path / "m.h5", teachers="any").n_conflicts == 1
    with pytest.raises(InputError, match="at least two"):
        merge_datasets([a], tmp_path / "m.h5")
    with pytest.raises(InputError, match="one of the files"):
        merge_datasets([a, b], a)


def test_split_writes_parts_that_sum_to_the_whole(tmp_path):
    frames = molecule_frames(12)
    source = write_dataset(tmp_path / "s.h5", frames, provenance={"teacher": "t"})
    parts = split_dataset(source, tmp_path / "parts", fractions={"train": 0.5, "test": 0.5}, seed=1)
    assert parts == {name: tmp_path / "parts" / f"s-{name}.h5" for name in ("train", "test")}
    keys = [{s.key() for s, _ in Dataset(path)} for path in parts.values()]
    assert keys[0] | keys[1] == {s.key() for s, _, _ in frames}
    assert not keys[0] & keys[1]
    assert not set(Dataset(parts["train"]).group) & set(Dataset(parts["test"]).group)
    assert Dataset(parts["test"]).provenance["split"]["content_hash"] == Dataset(source).content_hash


# -------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def cli(monkeypatch, tmp_path):
    typer_testing = pytest.importorskip("typer.testing")
    from distillase.launch.dataset_cli import dataset_app

    monkeypatch.chdir(tmp_path)
    return lambda *arguments: typer_testing.CliRunner().invoke(dataset_app, arguments)


def test_commands(cli, dataset):
    shown = cli("info", "set.h5")
    assert shown.exit_code == 0
    assert "12 in 2 group(s)" in shown.stdout
    assert "forces in eV/Å (11 frames)" in shown.stdout
    assert "12 frames, 11 with energy, 11 with forces" in cli("convert", "set.h5", "out.xyz").stdout
    assert cli("convert", "out.xyz", "back.h5").exit_code == 0
    assert "12 duplicates dropped" in cli("merge", "set.h5", "set.h5", "--out", "m.h5").stdout
    split = cli("split", "set.h5", "--fractions", "train=0.5,test=0.5")
    assert "set-train.h5" in split.stdout
    checked = cli("validate", "set.h5")
    assert checked.exit_code == 2  # random forces have a net force
    assert "Verdict: fail" in checked.stdout
    assert "net force" in checked.stdout
    assert cli("validate", "set.h5", "--json").stdout.lstrip().startswith("{")


def test_command_errors_reach_the_entry_point(cli, dataset):
    assert isinstance(cli("split", "set.h5", "--fractions", "train:1").exception, InputError)
    assert isinstance(cli("convert", "set.h5", "a.xyz", "--need", "all").exception, InputError)
    assert isinstance(cli("info", "nothing.h5").exception, DataError)
