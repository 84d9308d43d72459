"""Self-learning HMC: the teacher's distribution whatever the student, known by quadrature; calls, restarts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from ase.cluster import Icosahedron
from ase.constraints import FixAtoms, FixBondLength

from distillase.ase_calcs.dynamics import ReplicaExchangeHMC, SelfLearningHMC, effective_sample_size
from distillase.ase_calcs.errors import InputError, TeacherError

FS = units.fs
T = 300.0
kT = units.kB * T


class Surface:
    """One atom on a surface of x and y in k_B T and Å, in a harmonic groove along z; forces by the chain rule given.

    No more of a calculator than the sampler needs: ASE's base class would take most of the time of these tests.
    """

    implemented_properties = ("energy", "forces")

    def __init__(self, function: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        self.function = function
        self.calls = 0
        self.results: dict = {}

    def get_property(self, name: str, atoms: Atoms) -> float | np.ndarray:
        self.calls += 1
        x, y, z = atoms.positions[0]
        u, ux, uy = self.function(x, y)
        self.results = {
            "energy": float(kT * (u + 5.0 * z * z)),
            "forces": -kT * np.array([[ux, uy, 10.0 * z]], dtype=float),
        }
        return self.results[name]

    def get_forces(self, atoms: Atoms) -> np.ndarray:
        return np.asarray(self.get_property("forces", atoms))


def harmonic(stiffness: float):
    return lambda x, y: (0.5 * stiffness * (x * x + y * y), stiffness * x, stiffness * y)


def double_well(barrier: float, tilt: float):
    return lambda x, y: (
        barrier * (x * x - 1) ** 2 + tilt * x + 2.0 * y * y, 4 * barrier * x * (x * x - 1) + tilt, 4.0 * y,
    )  # fmt: skip


def muller_brown(scale: float, shift: float = 0.0):
    """Müller and Brown, Theor. Chim. Acta 53, 75 (1979)."""
    a, b, c = np.array([-1.0, -1, -6.5, 0.7]), np.array([0.0, 0, 11, 0.6]), np.array([-10.0, -10, -6.5, 0.7])
    x0, y0 = np.array([1.0, 0, -0.5, -1]) + shift, np.array([0.0, 0.5, 1.5, 1])
    height = np.array([-200.0, -100, -170, 15]) * scale

    def surface(x, y):
        dx, dy = np.asarray(x)[..., None] - x0, np.asarray(y)[..., None] - y0
        terms = height * np.exp(a * dx * dx + b * dx * dy + c * dy * dy)
        return terms.sum(-1), (terms * (2 * a * dx + b * dy)).sum(-1), (terms * (b * dx + 2 * c * dy)).sum(-1)

    return surface


def expectation(function, value, limits=(-2.5, 2.5)) -> float:
    x, y = np.meshgrid(np.linspace(*limits, 801), np.linspace(*limits, 801), indexing="ij")
    u = function(x, y)[0]
    weight = np.exp(-(u - u.min()))
    return float((weight * value(x, y)).sum() / weight.sum())


def error_of_mean(values: np.ndarray) -> float:
    return float(values.std() / np.sqrt(effective_sample_size(values)))


SYSTEMS = {
    "harmonic, right student": (harmonic(30.0), harmonic(30.0), 12),
    "harmonic, student half as stiff": (harmonic(30.0), harmonic(15.0), 12),
    "tilted double well, student without tilt": (double_well(1.5, 0.3), double_well(1.0, 0.0), 10),
    "Müller-Brown, student shifted and flat": (muller_brown(0.03), muller_brown(0.02, 0.1), 14),
}


@pytest.mark.parametrize("persistence", [0.0, 0.8])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_teachers_distribution_is_sampled(system: str, persistence: float) -> None:
    teacher, student, length = SYSTEMS[system]
    atoms = Atoms("H", [(0.6, 0.1, 0.0)])
    atoms.calc = Surface(teacher)
    step = 2.5 * FS
    sampler = SelfLearningHMC(
        atoms,
        step,
        student=Surface(student),
        length=length,
        temperature_K=T,
        persistence=persistence,
        fixcm=False,
        rng=7,
    )
    sampler.run(100)
    sampler.reset_statistics()
    x = np.array([atoms.positions[0, :2].copy() for _ in sampler.irun(4000)])[1:]
    momenta = atoms.get_momenta()
    assert np.isfinite(momenta).all()
    for name, value in {
        "x": lambda x, y: x, "x²": lambda x, y: x * x, "xy": lambda x, y: x * y, "left": lambda x, y: (x < 0) * 1.0,
    }.items():  # fmt: skip
        chain = value(x[:, 0], x[:, 1])
        assert abs(chain.mean() - expectation(teacher, value)) < 5 * error_of_mean(chain), name
    assert effective_sample_size(x[:, 0]) > 50, "too short to tell"
    weights = np.exp(-np.array(sampler.differences))
    assert abs(weights.mean() - 1.0) < 5 * error_of_mean(weights)
    assert 0.3 < sampler.acceptance <= 1.0


def test_the_wrong_student_would_be_noticed() -> None:
    """What the tests above compare with is far from what the students themselves would give."""
    teacher, student, _ = SYSTEMS["tilted double well, student without tilt"]
    assert abs(expectation(teacher, lambda x, y: x) - expectation(student, lambda x, y: x)) > 0.2


def copper() -> Atoms:
    atoms = Icosahedron("Cu", 2)
    atoms.rattle(0.02, seed=1)
    atoms.calc = EMT()
    return atoms


def student() -> MorsePotential:
    return MorsePotential(epsilon=0.35, r0=2.6, rho0=4.5, rcut1=8.0, rcut2=9.0)


def sampler_of(atoms: Atoms, **changes) -> SelfLearningHMC:
    settings = {"student": student(), "length": 5, "temperature_K": 300.0, "rng": 3, **changes}
    return SelfLearningHMC(atoms, 4.0 * FS, **settings)


def test_a_move_costs_one_teacher_call_taken_or_not(tmp_path: Path) -> None:
    atoms = Atoms("H", [(0.3, 0.0, 0.0)])
    teacher = Surface(harmonic(30.0))
    atoms.calc = teacher
    sampler = SelfLearningHMC(
        atoms, 2.5 * FS, student=Surface(harmonic(6.0)), length=12, temperature_K=T, fixcm=False, rng=1,
        trajectory=str(tmp_path / "a.traj"), logfile=str(tmp_path / "log"),
    )  # fmt: skip
    sampler.run(200)
    assert 20 < sampler.accepted < 180
    assert sampler.moves == 200
    assert teacher.calls == sampler.teacher_calls == 201
    assert sampler.get_time() == pytest.approx(200 * 12 * 2.5 * FS)
    assert len((tmp_path / "log").read_text().splitlines()) == 202


class Walled(Surface):
    """Has no answer beyond x = 0.2 Å."""

    def get_property(self, name: str, atoms: Atoms) -> float | np.ndarray:
        if atoms.positions[0, 0] > 0.2:
            raise TeacherError("SCF not converged")
        return super().get_property(name, atoms)


@pytest.mark.parametrize("many", [False, True])
def test_where_the_teacher_has_no_answer_the_chain_does_not_go(many: bool) -> None:
    """The ensemble is that of a wall: a harmonic groove cut off at 0.2 Å, in x the mean of a truncated normal."""
    # A quarter of a period: every trajectory ends where nothing reminds of its start.
    atoms, free = Atoms("H", [(0.0, 0.0, 0.0)]), Surface(harmonic(30.0))
    if many:
        sampler = ReplicaExchangeHMC(
            [atoms] * 4, 2.5 * FS, teacher=Walled(harmonic(30.0)), student=free, length=7, temperatures_K=[T] * 4,
            exchange_every=0, fixcm=False, rng=1,
        )  # fmt: skip
        x = np.array([[r.positions[0, 0] for r in sampler.replicas] for _ in sampler.irun(500)])
    else:
        atoms.calc = Walled(harmonic(30.0))
        chain = SelfLearningHMC(atoms, 2.5 * FS, student=free, length=7, temperature_K=T, fixcm=False, rng=1)
        x = np.array([[atoms.positions[0, 0]] for _ in chain.irun(2000)])
    assert x.max() <= 0.2
    sigma = 30.0**-0.5
    grid = np.linspace(-8 * sigma, 0.2, 20001)
    weights = np.exp(-15.0 * grid**2)
    expected = float((grid * weights).sum() / weights.sum())
    error = x.std() / np.sqrt(sum(effective_sample_size(chain_of_one) for chain_of_one in x.T))
    assert abs(x.mean() - expected) < 5 * error
    assert expected < -2 * error


def test_the_centre_of_mass_rests_and_fixed_atoms_stay() -> None:
    free = copper()
    centre = free.get_center_of_mass()
    sampler_of(free).run(20)
    np.testing.assert_allclose(free.get_center_of_mass(), centre, atol=1e-10)
    fixed = copper()
    fixed.set_constraint(FixAtoms([0, 4]))
    before = fixed.positions.copy()
    sampler_of(fixed).run(20)
    np.testing.assert_array_equal(fixed.positions[[0, 4]], before[[0, 4]])
    assert np.abs(fixed.positions - before).max() > 0.01


def test_the_burn_in_finds_a_length_and_then_leaves_it() -> None:
    atoms = copper()
    sampler = sampler_of(atoms, length=200)
    sampler.burn_in(40, acceptance=0.9)
    length, step = sampler.length, sampler.dt
    assert sampler.moves == 0
    assert length != 200
    sampler.run(10)
    assert (sampler.length, sampler.dt) == (length, step)
    assert sampler.moves == 10


def test_a_resumed_chain_is_the_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    whole, first, second = copper(), copper(), copper()
    sampler_of(whole, persistence=0.5).run(21)
    sampler_of(first, persistence=0.5, restart=tmp_path / "run.npz").run(9)
    resumed = sampler_of(second, persistence=0.5, restart=tmp_path / "run.npz", rng=99)
    resumed.burn_in(5)
    resumed.run(12)
    np.testing.assert_array_equal(whole.positions, second.positions)
    np.testing.assert_array_equal(whole.get_momenta(), second.get_momenta())
    assert (resumed.moves, len(resumed.differences)) == (21, 21)


class Forgetful(EMT):
    """Forces that depend on how often they were asked for."""

    asked = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.asked += 1
        self.results["forces"] = self.results["forces"] + 0.01 * self.asked


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "1 or more"),
        ({"persistence": 1.0}, "below 1"),
        ({"temperature_K": 0.0}, "above 0"),
        ({"student": Forgetful()}, "same positions"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampler_of(copper(), **changes)


def test_constraints_that_break_reversibility_are_refused() -> None:
    atoms = copper()
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(InputError, match="FixBondLength"):
        sampler_of(atoms)
    with pytest.raises(InputError, match="no calculator"):
        sampler_of(molecule("H2O"))
    atoms = copper()
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    with pytest.raises(InputError, match="Every atom is fixed"):
        sampler_of(atoms)


def test_effective_sample_size_of_a_known_chain() -> None:
    rng, n, rho = np.random.default_rng(0), 200_000, 0.9
    noise, x = rng.normal(size=n), np.zeros(n)
    for k in range(1, n):
        x[k] = rho * x[k - 1] + noise[k]
    assert effective_sample_size(x) == pytest.approx(n * (1 - rho) / (1 + rho), rel=0.1)
    assert effective_sample_size(rng.normal(size=n)) == pytest.approx(n, rel=0.05)


class Batched(Surface):
    """A student that takes all replicas at once."""

    batches = 0

    def calculate_many(self, structures: list[Atoms], properties: list[str]) -> list[dict]:
        self.batches += 1
        return [{"forces": self.get_forces(atoms)} for atoms in structures]


@pytest.mark.parametrize("kind", [Surface, Batched])
def test_exchanges_cross_a_barrier_and_every_temperature_keeps_its_distribution(kind: type[Surface]) -> None:
    barrier, tilt = 6.0, 0.5  # k_B · 300 K
    teacher, wrong = Surface(double_well(barrier, tilt)), kind(double_well(5.0, 0.0))
    temperatures = [300.0, 500.0, 900.0, 1500.0]
    sampler = ReplicaExchangeHMC(
        [Atoms("H", [(-1.0, 0.0, 0.0)])] * 4, 2.5 * FS, teacher=teacher, student=wrong, length=8,
        temperatures_K=temperatures, fixcm=False, rng=11,
    )  # fmt: skip
    sampler.run(50)
    x = np.array([[a.positions[0, 0] for a in sampler.replicas] for _ in sampler.irun(3000)])
    for i, temperature in enumerate(temperatures):
        scale = T / temperature
        for value in (lambda x: (x > 0) * 1.0, lambda x: x * x):
            expected = expectation(
                lambda x, y, scale=scale: (scale * double_well(barrier, tilt)(x, y)[0],), lambda x, y, v=value: v(x)
            )
            chain = value(x[:, i])
            assert abs(chain.mean() - expected) < 5 * error_of_mean(chain), temperature
    assert effective_sample_size(x[:, 0]) > 50, "300 K alone would stay in its well"
    assert sampler.teacher_calls == teacher.calls == 4 * 3051
    assert (sampler.exchange_rate > 0.2).all()
    if kind is Batched:
        assert wrong.batches == 3050 * 9


def test_replicas_must_fit() -> None:
    water = molecule("H2O")
    settings = {"teacher": EMT(), "student": EMT(), "length": 5}
    with pytest.raises(InputError, match="2 replicas and 1 temperatures"):
        ReplicaExchangeHMC([water, water], 0.5 * FS, temperatures_K=[300], **settings)
    with pytest.raises(InputError, match="1 or more"):
        ReplicaExchangeHMC([water], 0.5 * FS, temperatures_K=[300], **{**settings, "length": 2.5})
    with pytest.raises(InputError, match="same atoms"):
        ReplicaExchangeHMC([water, molecule("CO2")], 0.5 * FS, temperatures_K=[300, 400], **settings)


def test_resumed_replicas_are_the_undisturbed_ones_to_the_last_bit(tmp_path: Path) -> None:
    def make(name: str, **changes) -> ReplicaExchangeHMC:
        settings = {"length": 5, "temperatures_K": [300.0, 400.0, 500.0], "fixcm": False, "rng": 5, **changes}
        return ReplicaExchangeHMC(
            [Atoms("H", [(0.1 * i, 0.0, 0.0)]) for i in range(3)], 2.5 * FS, teacher=Surface(double_well(4.0, 0.5)),
            student=Surface(double_well(3.0, 0.0)), restart=tmp_path / name, restart_interval=7, **settings,
        )  # fmt: skip

    whole = make("whole.npz")
    whole.run(40)
    make("half.npz").run(17)
    second = make("half.npz")
    assert second.moves == 17
    calls = second.teacher_calls
    second.run(23)
    assert second.teacher_calls - calls == 3 * 23  # nothing is computed twice
    for a, b in zip(whole.replicas, second.replicas, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
    for name in ("energies", "accepted", "tried", "exchanged"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(second, name))
    with pytest.raises(InputError, match="belongs to a run with length = 5; this one has length = 6"):
        make("half.npz", length=6)
    without = ReplicaExchangeHMC(
        second.replicas, 2.5 * FS, teacher=Surface(harmonic(1.0)), student=Surface(harmonic(1.0)), length=5,
        temperatures_K=[300.0] * 3,
    )  # fmt: skip
    with pytest.raises(InputError, match="There is no restart file"):
        without.save_restart()
