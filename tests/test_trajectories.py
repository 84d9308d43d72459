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
from ase.build import molecule

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.progress import SilentProgress
from distillase.datasets.convert import convert_file
from distillase.datasets.sampling import TrajectoryConfig
from distillase.datasets.sampling.trajectory_job import degrees_of_freedom, thermalise
from distillase.datasets.store import Dataset
from distillase.datasets.trajectory import (
    read_trajectories,
)

pytest.importorskip("h5py")
from trajectory_runs import (
    IDEAL_GAS,
    KILLED_SCRIPT,
    LANGEVIN,
    R_GAS,
    SHORT,
    calculators,  # noqa: F401 (a fixture)
    chain,
    neutral,
    run,
    same,
    springs,
    water,
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


def test_killed_runs_go_on_bit_by_bit(tmp_path, calculators):  # noqa: F811 (the fixture)
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
