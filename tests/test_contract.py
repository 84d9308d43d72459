"""`check_calculator`: sound calculators pass it, and every kind of broken one is caught by name."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from distillase.ase_calcs.contract import ContractError, check_calculator
from distillase.ase_calcs.errors import DistillaseError, InputError

MOLECULE, CRYSTAL = molecule("H2O"), bulk("Cu", cubic=True)


@pytest.mark.parametrize(
    ("calc", "atoms"),
    [
        (EMT(), None),
        (EMT(), [MOLECULE, CRYSTAL]),
        (LennardJones(sigma=3.4, epsilon=0.01, rc=8, smooth=True), bulk("Ar", cubic=True)),
        (LennardJones(sigma=3.0, epsilon=0.01, rc=6, smooth=True), bulk("Ar", a=4.5)),  # cell smaller than cutoff
    ],
)
def test_sound_calculators_pass(calc, atoms):
    report = check_calculator(calc, atoms)
    assert report.passed, str(report)
    assert report.failures == ()
    assert "all hold" in str(report)


class Broken(EMT):
    """EMT with one fault."""

    implemented_properties: ClassVar = ["energy", "forces", "stress", "energies", "free_energy"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=tuple(all_changes)):
        super().calculate(atoms, list(properties), list(system_changes))
        self.results = {name: self.results[name] for name in self.implemented_properties if name in self.results}
        self.spoil(atoms)

    def spoil(self, atoms):
        pass


class ForcesOff(Broken):
    def spoil(self, atoms):
        self.results["forces"] = 1.001 * self.results["forces"]


class ForcesOfAnotherSign(Broken):
    def spoil(self, atoms):
        self.results["forces"] = -self.results["forces"]


class StressOfAnotherSign(Broken):
    def spoil(self, atoms):
        if "stress" in self.results:
            self.results["stress"] = -self.results["stress"]


class StressInAnotherOrder(Broken):
    def spoil(self, atoms):
        if "stress" in self.results:
            self.results["stress"] = self.results["stress"][[0, 1, 2, 5, 4, 3]]


class StressPerAtom(Broken):
    def spoil(self, atoms):
        if "stress" in self.results:
            self.results["stress"] = self.results["stress"] * atoms.get_volume()


class KnowsUpFromDown(Broken):
    def spoil(self, atoms):  # a field that acts on differences, so translations do not see it
        z = atoms.positions[:, 2] - atoms.positions[:, 2].mean()
        self.results["energy"] = self.results["free_energy"] = self.results["energy"] + 0.01 * float((z**2).sum())
        self.results["forces"] = self.results["forces"] - 0.02 * np.outer(z, [0, 0, 1])


class KnowsWhereTheOriginIs(Broken):
    def spoil(self, atoms):
        x = atoms.positions
        self.results["energy"] = self.results["free_energy"] = self.results["energy"] + 0.01 * float((x**2).sum())
        self.results["forces"] = self.results["forces"] - 0.02 * x


class CountsTheFirstAtomTwice(Broken):
    def spoil(self, atoms):
        other = atoms.copy()
        del other[0]
        spared = EMT().get_property("energy", other)
        self.results["energy"] = self.results["free_energy"] = self.results["energy"] + 0.01 * spared


class ForgetsToWrap(Broken):
    def spoil(self, atoms):
        outside = np.abs(atoms.get_scaled_positions(wrap=False) // 1).sum()
        self.results["energy"] = self.results["free_energy"] = self.results["energy"] + 0.01 * float(outside)


class Drifts(Broken):
    def spoil(self, atoms):
        self.n = getattr(self, "n", 0) + 1
        self.results["energy"] = self.results["free_energy"] = self.results["energy"] + 1e-5 * self.n


class EnergiesMissSome(Broken):
    def spoil(self, atoms):
        self.results["energies"] = 0.5 * self.results["energies"]


class Annotates(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        result = super().get_property(name, atoms, allow_calculation)
        atoms.info["calculated"] = True
        return result


class Moves(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        result = super().get_property(name, atoms, allow_calculation)
        atoms.arrays["positions"] = np.round(atoms.positions, 9)
        return result


class GivesTensors(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        result = super().get_property(name, atoms, allow_calculation)
        return torch.tensor(result, dtype=torch.float64) if name == "forces" else result


class GivesSinglePrecision(Broken):
    def spoil(self, atoms):
        self.results["forces"] = self.results["forces"].astype(np.float32)


class GivesAnArrayAsEnergy(Broken):
    def spoil(self, atoms):
        self.results["energy"] = np.array([self.results["energy"]])


class SqueezesOneAtom(Broken):
    def spoil(self, atoms):
        self.results["forces"] = np.squeeze(self.results["forces"])


class HandsOutItsBuffer(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        result = super().get_property(name, atoms, allow_calculation)
        return self.results[name] if result is not None else None


class IgnoresSmallMoves(Broken):
    def check_state(self, atoms, tol=1e-15):
        return super().check_state(atoms, tol=0.05)


class NeverRecalculates(Broken):
    def check_state(self, atoms, tol=1e-15):
        return [] if self.results and len(atoms) == len(self.atoms) else list(all_changes)


class AlwaysRecalculates(Broken):
    def calculation_required(self, atoms, properties):
        return True


class IgnoresChargeInItsCache(Broken):
    def spoil(self, atoms):
        shift = 0.1 * atoms.info.get("charge", 0)
        self.results["energy"] = self.results["free_energy"] = self.results["energy"] + shift
        self.results["energies"] = self.results["energies"] + shift / len(atoms)


class GivesUnknownProperties(Broken):
    def get_property(self, name, atoms=None, allow_calculation=True):
        return 0.0 if name not in self.implemented_properties else super().get_property(name, atoms, allow_calculation)


class SharesItsResultsWithCopies(Broken):
    def __deepcopy__(self, memo):
        return self


class BatchesInReverse(Broken):
    def calculate_many(self, structures, properties):
        order = [structures[1], structures[0], structures[2]]
        return [{name: self.get_property(name, atoms) for name in properties} for atoms in order]


GRADIENT, STRESS = "forces are the gradient of the energy", "stress is the strain gradient of the energy"
CACHE, BARE = "changes of the atoms are noticed", "nothing is calculated unless allowed"
SUM, UNTOUCHED = "atomic energies sum to the energy", "atoms are not changed"
SHAPES = "results are finite NumPy float64 of the right shape"


TURN, SHIFT = "rotation turns forces and changes no energy", "shifts by lattice vectors change nothing"
ONE, AGAIN = "one atom keeps its shapes", "a second calculation gives the same"
COPY, BATCH = "a deep copy is equal and independent", "a batch equals its singles"
ORDER = "the order of properties does not matter"
MOVE, SWAP = "translation changes nothing", "permutation of atoms permutes forces"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # NumPy about tensors, which are the fault in question
@pytest.mark.parametrize(
    ("calc", "caught", "also"),
    [
        (ForcesOff(), {GRADIENT}, set()),
        (ForcesOfAnotherSign(), {GRADIENT}, set()),
        (StressOfAnotherSign(), {STRESS}, set()),
        (StressInAnotherOrder(), {STRESS, TURN}, set()),
        (StressPerAtom(), {STRESS}, set()),
        (KnowsUpFromDown(), {TURN}, {SHIFT, STRESS, SUM}),
        (KnowsWhereTheOriginIs(), {MOVE}, {SHIFT, STRESS, SUM}),
        (CountsTheFirstAtomTwice(), {SWAP}, {GRADIENT, STRESS, SUM, ONE}),
        (ForgetsToWrap(), {SHIFT}, {MOVE, TURN, SUM, GRADIENT, STRESS}),
        (Drifts(), {AGAIN}, {SUM, GRADIENT, STRESS, SWAP, TURN, MOVE, SHIFT, CACHE, BATCH, COPY, ORDER}),
        (EnergiesMissSome(), {SUM}, set()),
        (Annotates(), {UNTOUCHED}, set()),
        (Moves(), {UNTOUCHED}, {CACHE, BARE, COPY, MOVE, "results are copies"}),
        (GivesTensors(), {SHAPES}, {ONE}),
        (GivesSinglePrecision(), {SHAPES}, {ONE}),
        (GivesAnArrayAsEnergy(), {SHAPES}, {ONE, SUM}),
        (SqueezesOneAtom(), {ONE}, set()),
        (HandsOutItsBuffer(), {"results are copies"}, set()),
        (IgnoresSmallMoves(), {CACHE, BARE}, set()),
        (NeverRecalculates(), {CACHE, BARE}, set()),
        (AlwaysRecalculates(), {BARE}, set()),
        (IgnoresChargeInItsCache(), {CACHE}, set()),
        (GivesUnknownProperties(), {"unknown properties are refused"}, set()),
        (SharesItsResultsWithCopies(), {COPY}, set()),
        (BatchesInReverse(), {BATCH}, set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Broken) else "",
)
def test_broken_calculators_are_caught_by_name(calc, caught, also):
    """One fault fails its own check, and at most checks of what follows from it."""
    report = check_calculator(calc, [MOLECULE, CRYSTAL])
    failed = {row.name for row in report.failures}
    assert caught <= failed <= caught | also, str(report)


def test_failures_raise_only_when_asked():
    report = check_calculator(ForcesOff(), MOLECULE)
    assert not report.passed
    row = report.failures[0]
    assert row.measured > row.tolerance
    assert "FAILED  forces are the gradient" in str(report)
    with pytest.raises(ContractError, match="FAILED  forces are the gradient"):
        check_calculator(ForcesOff(), MOLECULE, raise_on_failure=True)
    assert issubclass(ContractError, DistillaseError)
    assert issubclass(ContractError, AssertionError)
    assert check_calculator(EMT(), MOLECULE, raise_on_failure=True).passed


def test_a_tolerance_can_be_widened_for_loose_calculators():
    assert check_calculator(ForcesOff(), MOLECULE, tolerance_scale=1e5).passed
    assert not check_calculator(ForcesOff(), MOLECULE, tolerance_scale=10).passed


def test_what_does_not_apply_says_why():
    notes = {row.name: row.note for row in check_calculator(EMT(), MOLECULE).rows if row.passed is None}
    assert notes["shifts by lattice vectors change nothing"] == "not periodic"
    assert "no calculate_many" in notes["a batch equals its singles"]


def test_a_calculator_that_raises_fails_with_its_message():
    report = check_calculator(EMT(), Atoms("Fe2", [[0, 0, 0], [0, 0, 2]]))
    assert all("NotImplementedError" in row.note for row in report.failures)
    assert report.failures


def test_the_same_seed_measures_the_same_and_the_atoms_given_are_left_alone():
    atoms = MOLECULE.copy()
    first, second = check_calculator(EMT(), atoms, seed=3), check_calculator(EMT(), atoms, seed=3)
    assert str(first) == str(second)
    assert atoms == MOLECULE
    assert atoms.calc is None


def test_calculators_without_anything_to_check_are_an_error():
    with pytest.raises(InputError, match="energy and forces"):
        check_calculator(SinglePointCalculator(MOLECULE, energy=1.0), MOLECULE)
    with pytest.raises(InputError, match="precision"):
        check_calculator(EMT(), MOLECULE, precision="float16")
