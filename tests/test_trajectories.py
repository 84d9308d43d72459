"""Trajectories: frames of one instant in the right units, no gap and no difference after a kill, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.data import atomic_masses

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.progress import SilentProgress
from distillase.datasets.convert import convert_file, split_dataset
from distillase.datasets.foreign import ImportOptions
from distillase.datasets.sampling import TrajectoryConfig, run_trajectories
from distillase.datasets.sampling.trajectory_job import degrees_of_freedom, thermalise
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

R_GAS = 8.31446261815324e-3  # kJ/mol/K, CODATA 2018: not the constants of the code

# Springs between all atoms; slow, interrupted, failing or buggy after so many calls where it is told to be.
CALCULATORS = """
import os, time
import numpy as np
from ase.calculators.calculator import Calculator, CalculationFailed

class Springs(Calculator):
    implemented_properties = ["energy", "forces"]

    def __init__(self, log="", fail=0, bug=0, atoms=0):
        super().__init__()
        self.log, self.calls, self.only = log, 0, atoms
        self.seconds = float(os.environ.get("SPRINGS_SECONDS", 0.0))
        self.fail, self.bug = fail, bug and not os.environ.get("SPRINGS_MENDED")
        self.interrupt = int(os.environ.get("SPRINGS_INTERRUPT", 0))

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        time.sleep(self.seconds)
        if len(self.atoms) == (self.only or len(self.atoms)):
            self.misbehave()
        x = self.atoms.positions
        arms = x[:, None] - x[None]
        lengths = np.sqrt((arms**2).sum(axis=-1)) + np.eye(len(x))
        stretch = np.where(np.eye(len(x)) > 0, 0.0, lengths - 1.2)
        forces = -2.0 * (stretch / lengths)[..., None] * arms
        self.results = {"energy": 0.5 * (stretch**2).sum(), "forces": forces.sum(axis=1)}
        if self.log:
            with open(self.log, "ab", buffering=0) as file:
                file.write(b".")

    def misbehave(self):
        if self.fail and self.calls > self.fail:
            raise CalculationFailed("SCF not converged in 250 cycles")
        if self.bug and self.calls > 60:
            raise KeyError("oops")
        if self.interrupt and self.calls > self.interrupt:
            raise KeyboardInterrupt


class Cliff(Springs):
    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if self.calls > 60:
            self.results["forces"] = 1e3 * self.results["forces"]
"""

KILLED_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_trajectories as t
from distillase.datasets.sampling import run_trajectories

if __name__ == "__main__":
    run_trajectories([t.water(), t.chain()], Path(sys.argv[2]), teacher=sys.argv[3], config=t.SHORT, seed=5, workers=2)
"""


@pytest.fixture(scope="module", autouse=True)
def calculators(tmp_path_factory):
    """A module that workers can import too."""
    folder = tmp_path_factory.mktemp("calculators")
    (folder / "test_trajectories_calculators.py").write_text(CALCULATORS)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


def springs(kind: str = "Springs", **options) -> str:
    said = "&".join(f"{key}={value!r}" for key, value in options.items())
    return f"test_trajectories_calculators:{kind}" + (f"?{said}" if said else "")


IDEAL_GAS = "ase.calculators.idealgas:IdealGas"


def water() -> Structure:
    atoms = molecule("H2O")
    return Structure(atoms.numbers, atoms.positions, group="water", smiles="O")


def chain() -> Structure:
    """Two oxygens and two carbons; charged so that the charge has to travel."""
    positions = 1.2 * np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.85, 0], [0.5, 0.3, 0.8]])
    return Structure(np.array([8, 6, 6, 8]), positions, group="C/C=C\\O", charge=2, multiplicity=3)


SHORT = TrajectoryConfig(
    "verlet", 300.0, 0.5, picoseconds=0.1, interval=2.0, equilibrate=0.02, trajectories=2, conformers=0
)
LANGEVIN = replace(SHORT, integrator="langevin")


def run(folder, molecules=None, config=SHORT, teacher=None, **options):
    options = {"seed": 5, "workers": 1} | options
    return run_trajectories(molecules or [neutral()], folder, teacher=teacher or springs(), config=config, **options)


def neutral() -> Structure:
    return replace(chain(), charge=0, multiplicity=1)


def told(records) -> list[dict]:
    """Records without what a clock measured."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def same(result, other) -> bool:
    return (
        Dataset(result.path).content_hash == Dataset(other.path).content_hash
        and told(result.records) == told(other.records)
        and Dataset(result.path).recompute_hash() == Dataset(result.path).content_hash
    )


# ------------------------------------------------------------------------------------------------- units and physics


def test_a_free_particle_moves_by_its_stored_velocity(tmp_path):
    result = run(tmp_path, [water()], replace(SHORT, equilibrate=0.0), IDEAL_GAS)
    for trajectory in read_trajectories(tmp_path):
        moved = np.diff(trajectory.positions, axis=0)
        np.testing.assert_allclose(moved, trajectory.velocities[:-1] * 2.0, rtol=0, atol=1e-12)
        assert np.abs(moved).max() > 1e-3
    # nm and nm/ps, as the file has them: the same flight.
    npz = np.load(convert_file(result.path, tmp_path / "water.npz").path)
    assert npz["interval"] == pytest.approx(2.0e-3)  # ps
    moved = np.diff(npz["positions"][:51], axis=0)
    np.testing.assert_allclose(moved, npz["velocities"][:50] * npz["interval"], rtol=0, atol=1e-13)


def test_temperature_is_that_of_the_stored_velocities(tmp_path):
    run(tmp_path, [water(), neutral()], LANGEVIN, IDEAL_GAS)
    dataset, trajectories = Dataset(tmp_path / "trajectories.h5"), read_trajectories(tmp_path)
    stored = np.split(dataset.temperature, 4)
    for trajectory, temperatures in zip(trajectories, stored, strict=True):
        np.testing.assert_allclose(trajectory.temperatures, temperatures, rtol=1e-10)
        degrees = 3 * len(trajectory.numbers) - 3
        assert trajectory.settings["degrees_of_freedom"] == degrees
        # u (Å/fs)² is 10⁴ kJ/mol.
        twice = 1e4 * (trajectory.masses[:, None] * trajectory.velocities**2).sum(axis=(1, 2))
        np.testing.assert_allclose(temperatures, twice / (degrees * R_GAS), rtol=1e-6)
        assert 20 < temperatures.mean() < 1500


def test_npz_energies_are_those_of_its_masses_and_velocities(tmp_path):
    run(tmp_path, [water()])
    npz = np.load(convert_file(tmp_path / "trajectories.h5", tmp_path / "water.npz").path)
    kinetic = 0.5 * (npz["masses"][:, None] * npz["velocities"] ** 2).sum(axis=(1, 2))  # u (nm/ps)² is kJ/mol
    total = (npz["energies"] + kinetic).reshape(2, -1)
    assert np.ptp(total, axis=1).max() < 0.01 * np.ptp(kinetic)
    np.testing.assert_allclose(2 * kinetic / (3 * R_GAS), npz["temperature"], rtol=1e-6)  # 9 − 3 − 3 move


def test_everything_in_a_frame_belongs_to_one_instant(tmp_path):
    """Total energy of velocity Verlet is constant to second order, with velocities of the step and not between two."""
    run(tmp_path)
    for trajectory in read_trajectories(tmp_path):
        kinetic, potential = trajectory.kinetic_energies, trajectory.energies
        fluctuation = np.ptp(potential + kinetic)
        assert fluctuation < 0.01 * np.ptp(kinetic)
        assert abs(trajectory.settings["energy_drift"]) < 20  # meV/atom/ps, over 0.1 ps
        # Forces are the gradient at the stored positions: they do the work between two frames.
        work = 0.5 * ((trajectory.forces[1:] + trajectory.forces[:-1]) * np.diff(trajectory.positions, axis=0)).sum(
            (1, 2)
        )
        np.testing.assert_allclose(-np.diff(potential), work, atol=0.05 * np.abs(np.diff(potential)).max())
        acceleration = trajectory.forces / trajectory.masses[:, None] * (1.0 / 103.642696)  # eV/Å/u in Å/fs²
        half_a_step_off = replace(trajectory, velocities=trajectory.velocities - 0.25 * acceleration)
        assert np.ptp(potential + half_a_step_off.kinetic_energies) > 5 * fluctuation


def test_net_momentum_and_rotation_are_gone(tmp_path):
    for config in (SHORT, LANGEVIN):
        run(tmp_path / config.integrator, config=config)
        for trajectory in read_trajectories(tmp_path / config.integrator):
            momenta = trajectory.masses[:, None] * trajectory.velocities
            scale = np.abs(momenta).max()
            np.testing.assert_allclose(momenta.sum(axis=1), 0, atol=1e-12 * scale)
            if config is SHORT:
                np.testing.assert_allclose(np.cross(trajectory.positions, momenta).sum(axis=1), 0, atol=1e-10 * scale)


def test_what_is_left_of_the_momenta_has_the_temperature():
    for name, degrees in (("H2O", 3), ("CO2", 4), ("N2", 1), ("H", 3)):
        atoms, rng, kinetic = molecule(name), np.random.default_rng(0), []
        for _ in range(1500):
            thermalise(atoms, 300.0, rng)
            kinetic.append(atoms.get_kinetic_energy())
        masses = atoms.get_masses()
        assert degrees_of_freedom(SHORT, atoms.positions, masses, atoms.pbc) == degrees
        expected = 0.5 * degrees * R_GAS / 96.48533 * 300
        assert np.mean(kinetic) == pytest.approx(expected, rel=6 * np.sqrt(2 / (degrees * 1500)))


def test_langevin_keeps_its_temperature(tmp_path):
    config = TrajectoryConfig("langevin", 400.0, 1.0, 4.0, 4.0, friction=0.05, equilibrate=0.1, conformers=0)
    run(tmp_path, config=config)
    (trajectory,) = read_trajectories(tmp_path)
    assert len(trajectory) == 1001
    assert trajectory.temperatures.mean() == pytest.approx(400, rel=0.15)  # four standard errors


# ----------------------------------------------------------------------------------------------- going on, and kills


def test_killed_runs_go_on_bit_by_bit(tmp_path, calculators):
    teacher = springs(charge_from_info=True)
    whole = run(tmp_path / "whole", [water(), chain()], teacher=teacher)
    (tmp_path / "script.py").write_text(KILLED_SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(calculators), *sys.path]),
        "SPRINGS_SECONDS": "0.02",
    }
    command = [sys.executable, tmp_path / "script.py", Path(__file__).parent, tmp_path / "killed", teacher]
    process = subprocess.Popen([str(part) for part in command], env=environment, start_new_session=True)
    states = tmp_path / "killed" / "trajectories"
    try:
        deadline = time.monotonic() + 60
        while len(list(states.glob("*.npz"))) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3)  # some frames beyond the state
        assert process.poll() is None, "it was to be killed in the midst of its work"
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "killed" / "trajectories.h5").exists()
    steps = [json.loads(str(np.load(path)["state"]))["step"] for path in states.glob("*.npz")]
    assert len(steps) == 2
    assert all(0 < step < SHORT.steps for step in steps)
    assert same(run(tmp_path / "killed", [water(), chain()], teacher=teacher), whole)


@pytest.mark.parametrize("config", [SHORT, LANGEVIN], ids=["verlet", "langevin"])
def test_interrupted_runs_go_on_bit_by_bit_from_their_last_step(config, tmp_path, monkeypatch):
    """Both trajectories are cut, the first in the equilibration; each resumption asks once more for the forces."""
    config = replace(config, picoseconds=0.05)  # 140 steps
    whole = run(tmp_path / "whole", config=config)
    monkeypatch.setattr("distillase.datasets.sampling.trajectory_job._SAVE_SECONDS", -1.0)
    log, cuts = tmp_path / "log", 0
    for limit in (30, 100, 100):  # calls of one calculator until Ctrl-C
        monkeypatch.setenv("SPRINGS_INTERRUPT", str(limit))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", config=config, teacher=springs(log=str(log)))
        cuts += 1
    monkeypatch.delenv("SPRINGS_INTERRUPT")
    result = run(tmp_path / "cut", config=config, teacher=springs(log=str(log)))
    assert log.stat().st_size == 2 * (config.steps + 1) + cuts
    assert Dataset(result.path).content_hash == Dataset(whole.path).content_hash


class Interrupting(SilentProgress):
    """Ctrl-C when so many steps are told."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def task(self, description, total):
        yield self

    def advance(self, amount=1.0, note=""):
        self.left -= amount
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [SHORT.equilibration_steps, SHORT.equilibration_steps + 1, SHORT.steps])
def test_no_frame_is_lost_or_doubled_where_phases_meet(after, tmp_path, monkeypatch):
    """A cut before the first frame, before the step after it, and between the last step and its frame."""
    config = replace(SHORT, trajectories=1)
    whole = run(tmp_path / "whole", config=config)
    monkeypatch.setattr("distillase.datasets.sampling.trajectory_job._SAVE_SECONDS", -1.0)
    monkeypatch.setattr("distillase.datasets.sampling.trajectory_job._REPORT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config=config, progress=Interrupting(after))
    assert same(run(tmp_path / "cut", config=config), whole)


def test_finished_trajectories_are_not_computed_again_and_runs_can_be_extended(tmp_path):
    log = tmp_path / "calls"
    teacher = springs(log=str(log))
    first = run(tmp_path / "out", config=SHORT, teacher=teacher)
    calls = log.stat().st_size
    assert calls == sum(record["teacher_gradients"] for record in first.records) == 2 * (SHORT.steps + 1)
    written = first.path.stat().st_mtime_ns
    assert same(run(tmp_path / "out", config=SHORT, teacher=teacher), first)
    assert (log.stat().st_size, first.path.stat().st_mtime_ns) == (calls, written)
    first.path.unlink()
    assert same(run(tmp_path / "out", config=SHORT, teacher=teacher), first)
    assert log.stat().st_size == calls

    longer = replace(SHORT, picoseconds=0.12, trajectories=3)
    extended = run(tmp_path / "out", config=longer, teacher=teacher)
    assert log.stat().st_size - calls == 2 * 41 + longer.steps + 1  # the first forces are asked for again
    assert same(extended, run(tmp_path / "direct", config=longer, teacher=teacher))


def test_the_number_of_workers_and_company_change_nothing(tmp_path):
    alone = read_trajectories(run(tmp_path / "alone", [neutral()]).path)
    both = read_trajectories(run(tmp_path / "both", [water(), neutral()], workers=2).path)
    for mine, other in zip(alone, both[2:], strict=True):
        np.testing.assert_array_equal(mine.positions, other.positions)
        np.testing.assert_array_equal(mine.velocities, other.velocities)
    assert len({t.positions.tobytes() for t in both}) == 4


# --------------------------------------------------------------------------------------------------- what goes wrong


def test_a_refusal_keeps_what_there_is_and_the_others_go_on(tmp_path):
    result = run(tmp_path, [water(), neutral()], teacher=springs(fail=120, atoms=4))
    assert [record["frames"] for record in result.records[:2]] == [51, 51]
    assert len(result.stopped) == 2
    for record in result.stopped:
        assert record["stopped"] == "at 39.5 fs: SCF not converged in 250 cycles"
        assert record["frames"] == 20  # 0 to 38 fs
    whole = read_trajectories(run(tmp_path / "whole", [neutral()]).path)
    cut = read_trajectories(tmp_path)
    assert [len(t) for t in cut] == [51, 51, 20, 20]
    np.testing.assert_array_equal(cut[2].positions, whole[0].positions[:20])


def test_a_trajectory_that_blows_up_ends_with_a_reason(tmp_path):
    result = run(tmp_path, teacher=springs("Cliff"), config=replace(SHORT, trajectories=1, max_force=30.0))
    (record,) = result.stopped
    assert "eV/Å" in record["stopped"] or "heated up" in record["stopped"]
    assert 0 < record["frames"] == len(read_trajectories(tmp_path)[0]) <= 10


def test_an_unforeseen_error_is_tried_again(tmp_path, monkeypatch):
    result = run(tmp_path, teacher=springs(bug=1))
    assert result.stopped[0]["stopped"].endswith("unforeseen KeyError: 'oops'")
    monkeypatch.setenv("SPRINGS_MENDED", "1")
    again = run(tmp_path, teacher=springs(bug=1))
    assert not again.stopped
    assert Dataset(again.path).content_hash == Dataset(run(tmp_path / "whole").path).content_hash


def test_nothing_at_all_is_one_paragraph(tmp_path):
    with pytest.raises(DataError, match=r"None of 2 trajectories came to its first frame: 2× .*has charge 1.*[^.]\.$"):
        run(tmp_path, [replace(neutral(), charge=1, multiplicity=2)], teacher=springs())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"interval": 0.7}, "not a multiple of the time step, 0.5 fs; take 0.5 or 1 fs"),
        ({"picoseconds": 0.005, "interval": 2.0}, "not a multiple of the interval"),
        ({"integrator": "verle"}, "did you mean `verlet`"),
        ({"timestep": -1.0}, "`timestep`"),
        ({"trajectories": 0}, "`trajectories`"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(InputError, match=message):
        TrajectoryConfig(**change)


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
