"""The resonance advisor against what the dynamics then does, and against the analytic map of one oscillator."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from distillase.ase_calcs.dynamics import MTSVelocityVerlet, resonance
from distillase.ase_calcs.dynamics.resonance import judge, springs
from distillase.ase_calcs.errors import InputError

FS = units.fs
LENGTH = 0.96  # Å
STIFF = 48.0  # eV/Å², an O–H bond


class Bonds(Calculator):
    """Harmonic bonds of a given stiffness and length."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (ASE's own way)

    def __init__(self, *bonds: tuple[int, int, float]) -> None:
        super().__init__()
        self.bonds = bonds
        self.calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        forces, energy = np.zeros((len(self.atoms), 3)), 0.0
        for i, j, stiffness in self.bonds:
            r = self.atoms.positions[j] - self.atoms.positions[i]
            stretch = np.linalg.norm(r) - LENGTH
            energy += 0.5 * stiffness * stretch**2
            pull = stiffness * stretch * r / np.linalg.norm(r)
            forces[i] += pull
            forces[j] -= pull
        self.results = {"energy": energy, "forces": forces}


def hydroxyl() -> Atoms:
    return Atoms("OH", [(0, 0, 0), (0, 0, LENGTH)])


def half_period(stiffness: float = STIFF) -> float:
    m = hydroxyl().get_masses()
    return np.pi / np.sqrt(stiffness * (1 / m[0] + 1 / m[1]))


def analytic_growth(timestep: float, k: int, error: float) -> float:
    """ln of the larger eigenvalue of the map of one oscillator, from its trace."""
    omega2 = (np.pi / half_period()) ** 2
    inner2 = (1 - error) * omega2
    dt = timestep / k
    verlet = np.array(
        [[1 - 0.5 * inner2 * dt**2, dt], [-inner2 * dt * (1 - 0.25 * inner2 * dt**2), 1 - 0.5 * inner2 * dt**2]]
    )
    kick = np.array([[1.0, 0.0], [-0.5 * timestep * (omega2 - inner2), 1.0]])
    trace = abs(np.trace(kick @ np.linalg.matrix_power(verlet, k) @ kick)) / 2
    return float(np.arccosh(trace)) if trace > 1 else 0.0


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.985, 0.99, 1.003, 1.5, 1.98])
def test_growth_is_that_of_the_analytic_oscillator(ratio: float) -> None:
    error, k, timestep = 0.03, 16, ratio * half_period()
    at = springs(hydroxyl(), teacher=Bonds((0, 1, STIFF)), student=Bonds((0, 1, (1 - error) * STIFF)))
    assert len(at.teacher) == 1
    growth, _ = at.growth(timestep, k)
    assert max(growth, 0.0) == pytest.approx(analytic_growth(timestep, k, error), abs=1e-5)


def amplitude_growth(timestep: float, k: int, student: Calculator) -> float:
    """1/ps, from a run."""
    atoms = hydroxyl()
    atoms.calc = Bonds((0, 1, STIFF))
    atoms.positions[1, 2] += 1e-6
    dyn = MTSVelocityVerlet(atoms, timestep, inner=student, k=k)
    energies = [atoms.get_total_energy() for _ in dyn.irun(200)]
    # Of the beats of a stable oscillation only the height counts.
    return 0.5 * np.log(max(energies[150:200]) / max(energies[50:100])) / (100 * timestep / (1000 * FS))


def test_the_verdict_is_what_the_dynamics_then_does() -> None:
    student = Bonds((0, 1, 0.97 * STIFF))
    found = {}
    for ratio in (0.6, 0.95, 0.99):
        timestep = ratio * half_period()
        verdict = resonance(hydroxyl(), timestep, teacher=Bonds((0, 1, STIFF)), student=student, k=16)
        found[ratio] = verdict
        assert amplitude_growth(timestep, 16, student) == pytest.approx(verdict.growth, rel=0.02, abs=0.1)
    assert [found[r].verdict for r in found] == ["stable", "risky", "unstable"]
    assert found[0.99].half_period == pytest.approx(half_period() / FS, rel=1e-3)
    assert found[0.99].wavenumber == pytest.approx(1e15 / (2 * half_period() / FS) / (100 * units._c), rel=1e-3)
    assert set(found[0.99].moving) == {0, 1}
    assert "H1" in str(found[0.99])
    assert np.isnan(found[0.6].wavenumber)


def test_a_perfect_student_never_resonates() -> None:
    at = springs(hydroxyl(), teacher=Bonds((0, 1, STIFF)), student=Bonds((0, 1, STIFF)))
    for ratio in np.linspace(0.3, 3.0, 10):
        assert judge(at, ratio * half_period(), 32).verdict == "stable"


def test_the_stiffest_modes_alone_cost_two_calls_each_and_find_the_same() -> None:
    atoms = molecule("CH3CH2OH")
    student = EMT()

    class Stiffer(EMT):
        """EMT with the O–H bond 5 % of `STIFF` stiffer."""

        calls = 0

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
            super().calculate(atoms, properties, system_changes)
            type(self).calls += 1
            extra = Bonds((2, 3, 0.05 * STIFF))
            self.results = dict(self.results)
            self.results["forces"] = self.results["forces"] + extra.get_forces(self.atoms)

    whole = springs(atoms, teacher=Stiffer(), student=student)
    assert whole.teacher.shape == (21, 21)
    Stiffer.calls = 0
    part = springs(atoms, teacher=Stiffer(), student=student, stiff_modes=6)
    assert Stiffer.calls == 12
    top = np.linalg.eigvalsh(whole.teacher)[-3:]
    np.testing.assert_allclose(np.linalg.eigvalsh(part.teacher)[-3:], top, rtol=5e-3)
    with pytest.raises(InputError, match="21 vibrations"):
        springs(atoms, teacher=Stiffer(), student=student, stiff_modes=22)


def test_neither_the_atoms_nor_translations_and_rotations_are_touched() -> None:
    atoms = molecule("H2O")
    before = atoms.positions.copy()
    at = springs(atoms, teacher=EMT(), student=EMT())
    np.testing.assert_array_equal(atoms.positions, before)
    assert atoms.calc is None
    assert at.basis.shape == (9, 3)
    assert springs(Atoms("CO", [(0, 0, 0), (0, 0, 1.1)]), teacher=EMT(), student=EMT()).basis.shape == (6, 1)
