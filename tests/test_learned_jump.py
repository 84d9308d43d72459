"""`LearnedJump`: with an exact jump it follows the exact motion; guards, fall-back and their accounts; restarts."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from jump_models import HOME, OMEGA, SpringJump, Springs

from distillase.ase_calcs.dynamics import JumpForces, LearnedJump, SelfLearningHMC
from distillase.ase_calcs.errors import InputError, StructureError, TeacherError
from distillase.ase_calcs.jumps import EGNNJump, Jump, PaiNNJump
from distillase.ase_calcs.modelfile import save_model


def warm(seed: int = 0, temperature_K: float = 300.0) -> Atoms:
    """Ethanol on springs, away from home, its centre of mass at rest."""
    atoms, rng = HOME.copy(), np.random.default_rng(seed)
    masses = atoms.get_masses()
    thermal = np.sqrt(units.kB * temperature_K / masses)[:, None]
    away, v = (rng.standard_normal((9, 3)) * thermal for _ in range(2))
    atoms.positions += (away - masses @ away / masses.sum()) / (OMEGA / units.fs)
    atoms.set_velocities(v - masses @ v / masses.sum())
    atoms.calc = Springs()
    return atoms


def exact(atoms: Atoms, time: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions and velocities (ASE units) after `time` fs."""
    away, v, w = atoms.positions - HOME.positions, atoms.get_velocities(), OMEGA / units.fs
    c, s = np.cos(OMEGA * time), np.sin(OMEGA * time)
    return HOME.positions + away * c + v / w * s, v * c - w * away * s


class WildJump(SpringJump):
    """Throws atoms apart by `size` Å."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, graph) -> Jump:
        step = self.size * torch.as_tensor(np.random.default_rng(0).normal(size=(9, 3)))
        return Jump(step, torch.zeros_like(step))


def test_an_exact_jump_gives_the_exact_motion():
    """The only error is the corrector's, of third order in the small step."""
    errors = []
    for small in (0.5, 0.25):
        atoms = warm()
        k = round(10 / small) - 1
        x, v = exact(atoms, 100.0)
        dyn = LearnedJump(atoms, small * units.fs, jump=SpringJump(), k=k)
        dyn.run(10)
        assert dyn.get_time() == pytest.approx(100.0 * units.fs)
        errors.append(np.abs(atoms.positions - x).max())
        np.testing.assert_allclose(atoms.get_velocities(), v, atol=2e-3)
        assert dyn.counts.jumps == 10
    assert errors[0] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(8.0, rel=0.1)


def test_one_gradient_for_each_jump_and_all_are_counted():
    atoms = warm()
    dyn = LearnedJump(atoms, 0.5 * units.fs, jump=SpringJump(), k=8)
    dyn.run(20)
    assert asdict(dyn.counts) == {
        "jumps": 20,
        "reduced": 0,
        "refused": 0,
        "fallbacks": 0,
        "teacher_gradients": 21,
        "network_calls": 20,
        "bonds": 0,
        "energy": 0,
        "temperature": 0,
    }  # fmt: skip  (one more for the energy at the start, with which the first jump is compared)
    assert atoms.calc.calls == 21


def test_without_a_network_only_the_corrector_moves():
    """The control: one small step of position Verlet for each step of the run."""
    atoms, free = warm(), warm()
    LearnedJump(atoms, 0.5 * units.fs, jump=None, k=8).run(5)
    x, p, m = free.get_positions(), free.get_momenta(), free.get_masses()[:, None]
    for _ in range(5):
        x = x + 0.25 * units.fs * p / m
        free.positions = x
        p = p + 0.5 * units.fs * free.get_forces()
        x = x + 0.25 * units.fs * p / m
    np.testing.assert_allclose(atoms.positions, x, atol=1e-13)
    np.testing.assert_allclose(atoms.get_momenta(), p, atol=1e-13)


def test_what_the_guards_refuse_is_done_by_the_teacher():
    """Five halvings of a wild jump are refused, then k + 1 steps of the teacher follow, all of it counted."""
    atoms, free = warm(), warm()
    dyn = LearnedJump(atoms, 0.5 * units.fs, jump=WildJump(100.0), k=3)
    dyn.run(1)
    assert (dyn.counts.jumps, dyn.counts.refused, dyn.counts.fallbacks, dyn.counts.bonds) == (0, 5, 1, 5)
    assert dyn.counts.teacher_gradients == 4
    LearnedJump(free, 0.5 * units.fs, jump=None, k=1).run(4)
    np.testing.assert_allclose(atoms.positions, free.positions, atol=1e-13)
    # A smaller one passes after some halvings.
    atoms = warm()
    dyn = LearnedJump(atoms, 0.5 * units.fs, jump=WildJump(0.4), k=3)
    dyn.run(1)
    assert (dyn.counts.jumps, dyn.counts.reduced, dyn.counts.fallbacks) == (1, 1, 0)
    assert dyn.counts.refused == dyn.counts.bonds + dyn.counts.energy + dyn.counts.temperature > 0


@pytest.mark.parametrize(
    ("guard", "options"), [("energy", {"max_energy_rise": 1e-3}), ("temperature", {"max_heating": 0.2})]
)
def test_each_guard_can_refuse(guard, options):
    atoms = warm()
    if guard == "energy":
        atoms.positions = HOME.positions  # from the bottom every way leads up
    dyn = LearnedJump(atoms, 0.5 * units.fs, jump=SpringJump(), k=19, **options)
    dyn.run(1)
    assert getattr(dyn.counts, guard) > 0


def test_a_teacher_without_an_answer_refuses_the_jump():
    class Fussy(Springs):
        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            if np.abs(atoms.positions - HOME.positions).max() > 0.6:
                raise TeacherError("too far")
            super().calculate(atoms, properties, system_changes)

    atoms = warm()
    atoms.calc = Fussy()
    dyn = LearnedJump(atoms, 0.5 * units.fs, jump=WildJump(0.35), k=3, max_strain=10.0, max_energy_rise=100.0)
    dyn.run(3)
    assert dyn.counts.energy > 0
    assert np.isfinite(atoms.positions).all()


@pytest.mark.parametrize("answer", ["raises", "nan"])
def test_a_teacher_that_fails_in_a_fall_back_ends_the_run_where_it_stood(answer):
    """There is nothing left to fall back on: no free flight at zero force, and no jump compared with infinity."""

    class Dying(Springs):
        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            if self.calls > 3 and answer == "raises":
                raise TeacherError("SCF not converged")
            if self.calls > 3:
                self.results["energy"] = np.nan

    atoms = warm()
    atoms.calc = Dying()
    x, p = atoms.get_positions(), atoms.get_momenta()
    dyn = LearnedJump(atoms, 0.5 * units.fs, jump=WildJump(100.0), k=5)
    with pytest.raises(TeacherError, match=r"not converged|not finite"):
        dyn.run(1)
    np.testing.assert_array_equal(atoms.positions, x)
    np.testing.assert_array_equal(atoms.get_momenta(), p)
    with pytest.raises(InputError, match="`max_energy_rise` is -1"):
        LearnedJump(warm(), 0.5 * units.fs, jump=None, k=5, max_energy_rise=-1)


def test_the_thermostat_thermalizes_and_leaves_the_centre_of_mass():
    atoms = warm(temperature_K=900.0)
    drift = np.array([0.01, -0.02, 0.005])
    atoms.set_velocities(atoms.get_velocities() + drift)
    dyn = LearnedJump(
        atoms, 1.0 * units.fs, jump=SpringJump(), k=9, temperature_K=300.0, friction=0.02 / units.fs, rng=4,
        max_heating=10.0,
    )  # fmt: skip
    dyn.run(100)
    found = []
    for _ in dyn.irun(1500):
        found.append(dyn._temperature(atoms.get_momenta()))  # noqa: PERF401
    assert np.mean(found) == pytest.approx(300.0, rel=0.05)


def test_a_resumed_run_is_the_undisturbed_one(tmp_path):
    def make(path, atoms):
        return LearnedJump(
            atoms, 0.5 * units.fs, jump=WildJump(0.3), k=3, temperature_K=300.0, friction=0.01 / units.fs, rng=2,
            restart=path, restart_interval=5,
        )  # fmt: skip

    whole = warm()
    make(tmp_path / "whole.npz", whole).run(20)
    first = warm()
    make(tmp_path / "half.npz", first).run(10)
    second = warm()
    resumed = make(tmp_path / "half.npz", second)
    resumed.run(10)
    np.testing.assert_array_equal(second.positions, whole.positions)
    np.testing.assert_array_equal(second.get_momenta(), whole.get_momenta())
    assert resumed.counts.jumps + resumed.counts.fallbacks == 20


def test_what_is_refused(tmp_path):
    make = lambda atoms, **options: LearnedJump(atoms, 0.5 * units.fs, **{"jump": None, "k": 2} | options)  # noqa: E731
    with pytest.raises(InputError, match="belong together"):
        make(warm(), temperature_K=300.0)
    with pytest.raises(InputError, match="`k` is 0"):
        make(warm(), k=0)
    with pytest.raises(InputError, match="trained for up to 200 fs"):
        make(warm(), jump=SpringJump(), k=500)
    with pytest.raises(StructureError, match="not been trained on O"):
        make(warm(), jump=EGNNJump((1, 6), features=8, layers=1))
    with pytest.raises(InputError, match="no calculator"):
        make(HOME.copy())
    fixed = warm()
    fixed.set_constraint(FixAtoms([0]))
    crystal = bulk("Cu", cubic=True)
    crystal.calc = EMT()
    for atoms in (fixed, crystal):
        with pytest.raises(InputError, match="no constraints and no periodic boundaries"):
            make(atoms)
    path = save_model(tmp_path / "jump.safetensors", PaiNNJump((1, 6, 8), features=8, layers=1, longest=8.0))
    assert make(warm(), jump=path, k=16).jump is not None


# ----------------------------------------------------------------------------------------------- Metropolis proposals


def test_an_unconstrained_jump_is_no_metropolis_proposal():
    with pytest.raises(InputError, match="neither reversible nor does it keep volumes"):
        SelfLearningHMC(warm(), 1.0 * units.fs, student=SpringJump(), length=5, temperature_K=300.0)


def test_shears_of_a_jump_network_sample_the_teachers_ensemble():
    """An exact network as student of a teacher 1.1 times as stiff: ⟨exp(−βΔH)⟩ = 1 and ⟨U⟩ = 3(N − 1)/2 k_B T."""
    atoms = warm()
    atoms.calc = Springs(1.1)
    student = JumpForces(SpringJump(), interval=3.0)
    sampler = SelfLearningHMC(atoms, 3.0 * units.fs, student=student, length=4, temperature_K=300.0, rng=3)
    energies = [atoms.get_potential_energy() for _ in sampler.irun(1500)]
    weights = np.exp(-np.array(sampler.differences))
    blocks = weights.reshape(-1, 50).mean(axis=1)
    assert abs(weights.mean() - 1.0) < 5 * blocks.std(ddof=1) / np.sqrt(len(blocks))
    blocks = np.array(energies)[1:].reshape(-1, 50).mean(axis=1)
    expected = 12 * units.kB * 300.0
    assert abs(blocks.mean() - expected) < 5 * blocks.std(ddof=1) / np.sqrt(len(blocks))
    assert 0.5 < sampler.acceptance < 1.0


def test_forces_of_a_network_at_rest_are_its_acceleration():
    atoms = warm()
    forces = JumpForces(SpringJump()).get_forces(atoms)
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-12)
