"""Trajectories in files: round trips through HDF5 and NPZ, and the command line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.data import atomic_masses

from distillase.ase_calcs.errors import DataError
from distillase.datasets.convert import convert_file, split_dataset
from distillase.datasets.foreign import ImportOptions
from distillase.datasets.store import Dataset
from distillase.datasets.structure import Structure
from distillase.datasets.trajectory import (
    Trajectory,
    read_npz,
    read_trajectories,
    write_npz,
    write_trajectories,
)
from distillase.launch.cli import main

pytest.importorskip("h5py")
from trajectory_runs import (
    SHORT,
    calculators,  # noqa: F401 (a fixture)
    run,
    springs,
)

# ------------------------------------------------------------------------------------------------------- round trips


def assert_same(mine: Trajectory, other: Trajectory, rtol: float = 0.0) -> None:
    assert (mine.group, mine.origin, mine.smiles) == (other.group, other.origin, other.smiles)
    assert (mine.charge, mine.multiplicity, mine.interval) == (other.charge, other.multiplicity, other.interval)
    assert dict(mine.settings) == dict(other.settings)
    for name in ("numbers", "masses", "positions", "velocities", "energies", "forces", "cell", "pbc"):
        np.testing.assert_allclose(getattr(mine, name), getattr(other, name), rtol=rtol, atol=0, err_msg=name)


def made(group: str = "C/C=C\\O", origin: str = "verlet-300K/000", seed: int = 0, **changes) -> Trajectory:
    rng = np.random.default_rng(seed)
    numbers = np.array([8, 1, 1])
    return Trajectory(
        numbers, atomic_masses[numbers], rng.normal(size=(7, 3, 3)), 0.01 * rng.normal(size=(7, 3, 3)), 2.5,
        energies=rng.normal(size=7), forces=rng.normal(size=(7, 3, 3)), group=group, origin=origin,
        charge=-1, multiplicity=2, smiles="[OH2-]", settings={"teacher": "none", "timestep": 0.5, "seed": 2**100},
        **changes,
    )  # fmt: skip


def test_npz_and_dataset_round_trips(tmp_path):
    repartitioned = atomic_masses[[8, 1, 1]] + np.array([-4.0, 2.0, 2.0])
    trajectories = [
        replace(made(), masses=repartitioned),
        replace(made(origin="b", seed=1), masses=repartitioned, settings={"stopped": "at 3 fs"}),
    ]
    for path in (write_trajectories(tmp_path / "t.h5", trajectories), write_npz(tmp_path / "t.npz", trajectories)):
        for mine, other in zip(read_trajectories(path), trajectories, strict=True):
            assert_same(mine, other, rtol=0 if path.suffix == ".h5" else 1e-15)
    assert len(read_npz(tmp_path / "t.npz")) == 2
    keys = set(np.load(tmp_path / "t.npz"))
    assert {"positions", "velocities", "forces", "energies", "temperature", "atom_types", "masses"} <= keys
    # Through `dataset convert`, one molecule to a file, several molecules to a folder.
    back = convert_file(tmp_path / "t.npz", tmp_path / "back.h5").path
    for mine, other in zip(read_trajectories(back), trajectories, strict=True):
        assert_same(mine, other, rtol=1e-15)
    box = {"cell": 9.0 * np.eye(3) + 0.1, "pbc": np.array([True, True, False])}
    several = [*trajectories, made("other", seed=2, **box)]
    write_trajectories(tmp_path / "many.h5", several, provenance={"teacher": "none"})
    convert_file(tmp_path / "many.h5", tmp_path / "npz")
    assert [path.name for path in sorted((tmp_path / "npz").iterdir())] == ["C_C_C_O.npz", "other.npz"]
    again = convert_file(tmp_path / "npz", tmp_path / "again.h5").path
    assert Dataset(again).provenance["teacher"] == "none"
    for mine, other in zip(read_trajectories(again), several, strict=True):
        assert_same(mine, replace(other, settings={"teacher": "none", **other.settings}), rtol=1e-15)


def test_labels_that_are_not_known_stay_unknown(tmp_path):
    bare = replace(made(), energies=None, forces=None)
    for path in (write_trajectories(tmp_path / "t.h5", [bare]), write_npz(tmp_path / "t.npz", [bare])):
        (found,) = read_trajectories(path)
        assert found.energies is None
        assert found.forces is None


def test_npz_of_others_is_a_trajectory_once_its_interval_is_known(tmp_path):
    trajectory, path = made(), tmp_path / "foreign.npz"
    np.savez(path, positions=trajectory.positions / 10, velocities=trajectory.velocities * 100, atom_types=[8, 1, 1])
    with pytest.raises(DataError, match="how much time lies between its frames"):
        read_trajectories(path)
    (found,) = read_trajectories(path, interval=4.0)
    np.testing.assert_allclose(found.velocities, trajectory.velocities, rtol=1e-15)
    assert (found.group, found.origin, found.interval, found.forces) == ("H2O", "foreign", 4.0, None)
    target = convert_file(path, tmp_path / "f.h5", options=ImportOptions(interval=4.0), need="nothing").path
    assert read_trajectories(target)[0].interval == 4.0
    np.savez(tmp_path / "still.npz", positions=trajectory.positions, atom_types=[8, 1, 1])
    with pytest.raises(DataError, match="has no velocities"):
        read_trajectories(tmp_path / "still.npz", interval=4.0)


def test_gaps_and_doubles_are_refused(tmp_path):
    path = write_trajectories(tmp_path / "t.h5", [made(), made(origin="b", seed=1)])
    parts = split_dataset(path, by="trajectory", fractions={"a": 0.5, "b": 0.5})
    assert [len(read_trajectories(part)) for part in parts.values()] == [1, 1]
    with pytest.raises(DataError, match="gaps cannot be used"):
        read_trajectories(split_dataset(path, by="frame", fractions={"a": 0.5, "b": 0.5})["a"])
    with pytest.raises(DataError, match="Two trajectories"):
        write_trajectories(tmp_path / "t.h5", [made(), made()])


def test_a_crystal_keeps_its_box(tmp_path):
    atoms = bulk("Cu", cubic=True)
    copper = Structure(atoms.numbers, atoms.positions, cell=atoms.cell.array, pbc=atoms.pbc, group="copper")
    run(tmp_path, [copper], replace(SHORT, trajectories=1), "ase.calculators.emt:EMT")
    (trajectory,) = read_trajectories(tmp_path)
    np.testing.assert_array_equal(trajectory.cell, atoms.cell.array)
    assert trajectory.pbc.all()
    assert trajectory.settings["degrees_of_freedom"] == 9


# -------------------------------------------------------------------------------------------------- the command line


def command(*arguments) -> int:
    return main(["trajectories", *map(str, arguments)])


def test_the_command(tmp_path, capsys):
    out = tmp_path / "run"
    options = [
        "--teacher",
        "mmff94",
        "--integrator",
        "verlet",
        "--picoseconds",
        "0.05",
        "--equilibrate",
        "0.05",
        "-n",
        "2",
    ]
    assert command("CCO", "O", *options, "--workers", "1", "--out", out) == 0
    printed = capsys.readouterr().out
    assert "drift, meV/atom/ps" in printed
    assert "verlet-300K/001" in printed
    trajectories = read_trajectories(out)
    assert [(t.group, t.smiles, len(t)) for t in trajectories] == [("CCO", "CCO", 6)] * 2 + [("O", "O", 6)] * 2
    starts = [t.positions[0] for t in trajectories[:2]]
    assert np.abs(starts[0] - starts[1]).max() > 0.1, "the second starts from a conformer"
    provenance = Dataset(out / "trajectories.h5").provenance
    assert (provenance["teacher"], provenance["seed"]) == ("mmff94", 0)
    assert provenance["teacher_version"].startswith("rdkit")
    assert provenance["trajectories"][0]["seconds"] > 0

    assert command("CCO", "O", *options, "--workers", "1", "--out", out) == 0
    assert "finished already" in capsys.readouterr().out
    assert command("CCO", "O", *options, "--friction", "0.02", "--out", out) == 2
    assert "friction: 0.01 there, 0.02 now" in capsys.readouterr().err
    assert command("CCO", *options, "--interval", "0.7", "--out", out) == 2
    assert "take 0.5 or 1 fs" in capsys.readouterr().err
    assert command(*options, "--out", out / "none") == 2
    assert "There are no molecules" in capsys.readouterr().err


def test_the_exit_code_says_that_some_ended_early(tmp_path, capsys):
    options = ["--picoseconds", "0.1", "--interval", "1", "--equilibrate", "0", "--workers", "1", "--out", tmp_path]
    assert command("O", "C", "--teacher", springs(fail=50, atoms=3), "--allow-no-hydrogen", *options) == 2
    message = capsys.readouterr().err
    assert "1 of 2 trajectories ended before their time, the first of them O, langevin-300K/000, at 24.5 fs" in message
    assert "SCF not converged" in message
    assert [len(t) for t in read_trajectories(tmp_path)] == [25, 101]
