"""`PotentialCalculator` behind ASE's protocol."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from potentials import Counting, MorsePotential
from safetensors.torch import save_file

from distillase.ase_calcs.calculator import PotentialCalculator
from distillase.ase_calcs.contract import check_calculator
from distillase.ase_calcs.errors import InputError, ModelFileError, StructureError
from distillase.ase_calcs.modelfile import HEADER_KEY, save_model
from distillase.ase_calcs.painn import PaiNN
from distillase.ase_calcs.potential import ModelHeader


@pytest.fixture
def calc():
    return PotentialCalculator(MorsePotential([1, 6, 8]))


@pytest.fixture
def ethanol(calc):
    atoms = molecule("CH3CH2OH")
    atoms.calc = calc
    return atoms


def painn(**kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PaiNN([1, 6, 8], features=8, layers=2, cutoff=3.5, n_basis=6, **kwargs)


def water_box(n=2, spacing=3.1):
    water = molecule("H2O")
    rng = np.random.default_rng(0)
    box = Atoms(cell=n * spacing * np.eye(3), pbc=True)
    for corner in np.ndindex(n, n, n):
        one = water.copy()
        one.euler_rotate(*rng.uniform(0, 360, 3), center="COM")
        one.translate(spacing * np.array(corner))
        box += one
    return box


# The contract -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "make", [lambda: MorsePotential([1, 6, 8]), lambda: painn(charges=True)], ids=["morse", "painn"]
)
def test_contract_holds_with_nothing_left_out(make, dtype):
    report = check_calculator(PotentialCalculator(make(), dtype=dtype))
    assert report.passed, str(report)
    left_out = {row.name for row in report.rows if row.passed is None and row.system.endswith("TTT")}
    assert left_out == set(), str(report)


@pytest.mark.parametrize("pbc", [(True, False, False), (True, True, False)])
def test_contract_holds_with_mixed_boundaries(calc, pbc):
    slab = molecule("CH3CH2OH", cell=[[3.9, 0.3, 0], [0, -4.2, 0.2], [0, 0, 9]], pbc=pbc)
    report = check_calculator(calc, slab)
    assert report.passed, str(report)


# Protocol -----------------------------------------------------------------------------------------------------------


def test_everything_is_derived_from_one_energy(ethanol, calc):
    energy = ethanol.get_potential_energy()
    assert energy == ethanol.get_potential_energy(force_consistent=True)
    assert energy == pytest.approx(ethanol.get_potential_energies().sum(), abs=1e-12)
    assert isinstance(energy, float)
    assert set(calc.results) <= set(calc.implemented_properties)


def test_stress_is_calculated_only_when_asked_and_then_with_the_forces():
    calc = Counting(MorsePotential([1, 8]))
    atoms = water_box(1)
    atoms.calc = calc
    atoms.get_potential_energy()
    assert calc.calls == [set()]
    atoms.positions[0] += 0.01
    atoms.get_forces()
    assert calc.calls[1:] == [{"forces"}]
    atoms.get_stress()
    assert calc.calls[2:] == [{"forces", "stress"}]
    for _ in range(3):  # from now on one evaluation per geometry
        atoms.positions[0] += 0.01
        atoms.get_forces()
        atoms.get_stress()
        atoms.get_potential_energy()
    assert calc.calls[3:] == 3 * [{"forces", "stress"}]
    for _ in range(4):  # and without stress again when nobody has asked for a while
        atoms.positions[0] += 0.01
        atoms.get_forces()
    assert calc.calls[-1] == {"forces"}


def test_stress_without_three_cell_vectors_is_refused_and_costs_nothing_else(ethanol):
    ethanol.get_forces()
    with pytest.raises(PropertyNotImplementedError, match="cell vectors"):
        ethanol.get_stress()
    ethanol.positions[0] += 0.1
    assert np.isfinite(ethanol.get_forces()).all()


def test_cached_atoms_are_a_copy_and_reset_forgets_them(ethanol, calc):
    with pytest.raises(StructureError, match="not seen any atoms"):
        calc.get_property("energy")
    energy = ethanol.get_potential_energy()
    assert calc.get_property("energy") == energy
    assert calc.atoms == ethanol
    assert calc.atoms is not ethanol
    assert calc.check_state(ethanol) == []
    ethanol.positions[0] += 0.1
    assert calc.check_state(ethanol) == ["positions"]
    calc.reset()
    assert calc.atoms is None
    assert calc.results == {}
    assert set(calc.check_state(ethanol)) == set(all_changes)


def test_an_error_leaves_no_stale_results(ethanol, calc):
    ethanol.get_forces()
    good = ethanol.positions.copy()
    ethanol.positions[0] = np.nan
    with pytest.raises(StructureError):
        ethanol.get_forces()
    assert calc.results == {}
    assert calc.get_property("energy", ethanol, allow_calculation=False) is None
    ethanol.positions[:] = good
    assert np.isfinite(ethanol.get_forces()).all()


def test_parameters_can_be_written_as_json_and_set(ethanol, calc):
    assert json.loads(json.dumps(calc.todict()))["model"] == "morse"
    neutral = ethanol.get_potential_energy()
    assert calc.set(charge=1) == {"charge": 1}
    assert ethanol.get_potential_energy() != neutral
    calc.set(charge=None, skin=1.0)
    assert calc.neighbors.skin == 1.0
    assert ethanol.get_potential_energy() == neutral
    with pytest.raises(InputError, match="did you mean `charge`"):
        calc.set(chrge=1)
    for wrong in ({"charge": 0.5}, {"multiplicity": 0}, {"skin": -1}):
        with pytest.raises(InputError):
            calc.set(**wrong)


def test_properties_can_be_exported(ethanol, calc):
    ethanol.get_forces()
    properties = calc.export_properties()
    assert properties["energy"] == ethanol.get_potential_energy()
    assert properties["forces"].shape == (9, 3)


def test_the_potential_given_is_copied_and_stays_trainable():
    potential = painn()
    calc = PotentialCalculator(potential)
    atoms = molecule("CH3CH2OH")
    before = calc.get_property("energy", atoms)
    assert all(p.requires_grad for p in potential.parameters())
    with torch.no_grad():
        for p in potential.parameters():
            p.add_(0.1)
    calc.reset()
    assert calc.get_property("energy", atoms) == before


def test_copies_do_not_share_anything_that_changes(ethanol, calc):
    forces = ethanol.get_forces()
    for twin in (copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))):
        other = ethanol.copy()
        other.calc = twin
        np.testing.assert_array_equal(other.get_forces(), forces)
        other.rattle(0.1)
        other.get_forces()
        assert calc.check_state(ethanol) == []
    np.testing.assert_array_equal(copy.deepcopy(ethanol).calc.results["forces"], forces)


def test_no_global_state_is_touched():
    rng, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    calc = PotentialCalculator(MorsePotential([1, 6, 8]))
    atoms = molecule("CH3CH2OH")
    calc.get_property("forces", atoms)
    assert torch.equal(rng, torch.get_rng_state())
    assert (dtype, threads) == (torch.get_default_dtype(), torch.get_num_threads())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    assert torch.is_grad_enabled()
    assert atoms.info == {}


@pytest.mark.parametrize("dtype", ["float32", "float64", torch.float64, None])
def test_a_model_file_gives_what_its_potential_gives(tmp_path, dtype):
    potential = painn()
    path = save_model(tmp_path / "model.safetensors", potential)
    atoms = molecule("CH3CH2OH")
    from_file = PotentialCalculator(path, dtype=dtype)
    from_memory = PotentialCalculator(potential, dtype=dtype)
    np.testing.assert_array_equal(from_file.get_property("forces", atoms), from_memory.get_property("forces", atoms))
    assert from_file.todict()["model"] == str(path)


def test_forces_far_from_the_origin_keep_their_precision():
    calc = PotentialCalculator(MorsePotential([1, 6, 8]), dtype="float32")
    atoms = molecule("CH3CH2OH")
    near = calc.get_property("forces", atoms)
    atoms.positions += [3000.0, -2000.0, 1000.0]
    np.testing.assert_allclose(calc.get_property("forces", atoms), near, atol=1e-4)


def test_an_eager_calculator_says_so(calc):
    assert not calc.compiled
    assert not copy.deepcopy(calc).compiled


def test_without_a_compiler_on_is_an_error_and_auto_stays_eager(monkeypatch, tmp_path):
    monkeypatch.setattr("distillase.ase_calcs.compiled.find_compiler", lambda: None)
    path = save_model(tmp_path / "model.safetensors", painn())
    assert not PotentialCalculator(path, compile="auto").compiled
    assert not PotentialCalculator(painn(), compile="auto").compiled
    with pytest.raises(InputError, match="compiler"):
        PotentialCalculator(painn(), compile="on")


@pytest.mark.compiler
def test_a_compiled_calculator_keeps_the_contract_and_gives_what_the_eager_one_gives(compiled_model):
    compiled = PotentialCalculator(compiled_model, compile="on")
    assert compiled.compiled
    eager = PotentialCalculator(compiled_model, compile="off")
    assert not eager.compiled
    for atoms in (molecule("CH3CH2OH"), water_box(1), Atoms("O"), Atoms("H2", [[0, 0, 0], [0, 0, 9]])):
        np.testing.assert_allclose(
            compiled.get_property("forces", atoms), eager.get_property("forces", atoms), atol=1e-9
        )
        energy = eager.get_property("energy", atoms)
        assert compiled.get_property("energy", atoms) == pytest.approx(energy, abs=1e-9)
    report = check_calculator(compiled)
    assert report.passed, str(report)
    with pytest.raises(StructureError, match="not been trained on N"):
        compiled.get_property("energy", molecule("NH3"))
    assert PotentialCalculator(compiled_model, compile="auto").compiled, "the package lies beside the model"
    assert not PotentialCalculator(compiled_model, dtype="float32", compile="auto").compiled


# Charge and multiplicity --------------------------------------------------------------------------------------------


def energy_of(atoms, **kwargs):
    return PotentialCalculator(MorsePotential([1, 6, 8]), **kwargs).get_property("energy", atoms)


def with_charges(values=None, moments=None, **info):
    atoms = molecule("CH3CH2OH")
    if values is not None:
        atoms.set_initial_charges(values)
    if moments is not None:
        atoms.set_initial_magnetic_moments(moments)
    atoms.info.update(info)
    return atoms


def test_charge_and_multiplicity_mean_the_same_from_every_source():
    partial = np.full(9, 1 / 9).round(3)  # sums to 0.999
    cation = energy_of(with_charges(), charge=1)
    assert cation != energy_of(with_charges())
    assert energy_of(with_charges(charge=1)) == cation
    assert energy_of(with_charges(charge=np.int64(1))) == cation
    assert energy_of(with_charges(values=partial)) == cation
    assert energy_of(with_charges(values=partial, charge=1), charge=1) == cation
    triplet = energy_of(with_charges(), multiplicity=3)
    assert triplet != energy_of(with_charges())
    assert energy_of(with_charges(multiplicity=3)) == triplet
    assert energy_of(with_charges(moments=[-1, -1, 0, 0, 0, 0, 0, 0, 0])) == triplet
    assert energy_of(with_charges(moments=[1, -1, 0, 0, 0, 0, 0, 0, 0])) == energy_of(with_charges())
    assert energy_of(with_charges(values=np.zeros(9), moments=np.zeros(9)), charge=1) == cation


@pytest.mark.parametrize(
    ("atoms", "kwargs", "message"),
    [
        (with_charges(charge=1), {"charge": 0}, "charge is contradictory"),
        (with_charges(values=[1] + 8 * [0], charge=0), {}, "charge is contradictory"),
        (with_charges(values=[1] + 8 * [0]), {"charge": -1}, "charge is contradictory"),
        (with_charges(multiplicity=1), {"multiplicity": 3}, "multiplicity is contradictory"),
        (with_charges(moments=[2] + 8 * [0], multiplicity=1), {}, "multiplicity is contradictory"),
        (with_charges(values=[0.4] + 8 * [0]), {}, "not a whole number"),
        (with_charges(charge=0.5), {}, "not a whole number"),
        (with_charges(charge="plus"), {}, "not a whole number"),
    ],
)
def test_contradictions_and_fractions_are_errors(atoms, kwargs, message):
    with pytest.raises(StructureError, match=message):
        energy_of(atoms, **kwargs)


def test_changing_the_charge_on_the_same_atoms_recalculates(ethanol):
    neutral = ethanol.get_potential_energy()
    ethanol.info["charge"] = 1
    cation = ethanol.get_potential_energy()
    ethanol.info["multiplicity"] = 2
    radical_cation = ethanol.get_potential_energy()
    del ethanol.info["charge"], ethanol.info["multiplicity"]
    ethanol.set_initial_charges([1] + 8 * [0])
    ethanol.set_initial_magnetic_moments([1] + 8 * [0])
    assert ethanol.get_potential_energy() == radical_cation
    assert len({neutral, cation, radical_cation}) == 3


def test_states_that_were_not_in_the_training_data_are_refused():
    potential = MorsePotential([1, 6, 8])
    potential.header = ModelHeader(teacher="gfn2-xtb", charges=(0, 1), multiplicities=(1, 2))
    calc = PotentialCalculator(potential)
    atoms = molecule("CH3CH2OH")
    assert np.isfinite(calc.get_property("energy", atoms))
    for info, message in [
        ({"charge": -1}, "charge is -1, but the model was trained on charge 0, 1"),
        ({"multiplicity": 3}, "multiplicity is 3"),
        ({"charge": 1}, "cannot have multiplicity 1"),
    ]:
        atoms.info = info
        with pytest.raises(StructureError, match=message):
            calc.get_property("energy", atoms)
        with pytest.raises(StructureError, match=message):
            calc.calculate_many([atoms])
    atoms.info = {"charge": 1, "multiplicity": 2}
    assert np.isfinite(calc.get_property("energy", atoms))


# Errors for people --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms("CN", [[0, 0, 0], [0, 0, 1.2]]), "not been trained on N.* It knows H, C, O"),
        (Atoms(), "no atoms"),
        (Atoms("CO", [[0, 0, 0], [0, 0, np.nan]]), "atom 1"),
        (Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], pbc=True), "lattice vector"),
        (Atoms("CO", [[0, 0, 0], [0, 0, 0]]), "on top of each other"),
    ],
)
def test_structures_that_cannot_be_calculated(calc, atoms, message):
    atoms.calc = calc
    for _ in range(2):
        with pytest.raises(StructureError, match=message):
            atoms.get_forces()


def test_wrong_files(tmp_path):
    missing, text = tmp_path / "missing.safetensors", tmp_path / "text.safetensors"
    text.write_text("not a model")
    foreign, newer = tmp_path / "foreign.safetensors", tmp_path / "newer.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    save_file({"a": torch.zeros(1)}, newer, metadata={HEADER_KEY: json.dumps({"format_version": 999})})
    for path, message in [
        (missing, "no model file"),
        (text, "could not be read"),
        (foreign, "not one"),
        (newer, "999"),
    ]:
        with pytest.raises(ModelFileError, match=message):
            PotentialCalculator(path)


@pytest.mark.parametrize(
    "kwargs", [{"dtype": "float23"}, {"dtype": torch.int64}, {"device": "no-such"}, {"compile": "yes"}, {"skin": -1.0}]
)
def test_wrong_arguments(kwargs):
    with pytest.raises(InputError):
        PotentialCalculator(MorsePotential([1]), **kwargs)


def test_model_must_be_a_path_or_a_potential():
    with pytest.raises(InputError, match="Linear"):
        PotentialCalculator(torch.nn.Linear(1, 1))


# Many at once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_edges", [1, 60, 100_000])
def test_batches_equal_singles_whatever_their_size(max_edges):
    calc = PotentialCalculator(painn(charges=True), dtype="float64")
    cation = molecule("CH4")
    cation.info["charge"] = 1
    structures = [molecule("CH3CH2OH"), Atoms("O"), cation, molecule("H2O"), Atoms("H2", [[0, 0, 0], [0, 0, 9]])]
    many = calc.calculate_many(structures, ["energy", "forces", "energies", "charges", "dipole"], max_edges=max_edges)
    assert calc.results == {}
    for atoms, got in zip(structures, many, strict=True):
        assert list(got) == ["energy", "forces", "energies", "charges", "dipole"]
        for name, value in got.items():
            np.testing.assert_allclose(value, calc.get_property(name, atoms), atol=1e-10)


def test_batches_of_periodic_structures_have_stress(calc):
    boxes = [water_box(1), bulk("C", cubic=True), water_box(2)]
    for atoms, got in zip(boxes, calc.calculate_many(boxes, ["stress", "energy"]), strict=True):
        np.testing.assert_allclose(got["stress"], calc.get_property("stress", atoms), atol=1e-12)


def test_batches_stay_within_their_bounds():
    calc = Counting(MorsePotential([1, 6, 8]))
    sizes = []
    original = calc._evaluate
    calc._evaluate = lambda graph, properties: (sizes.append(graph.edges.shape[1]), original(graph, properties))[1]
    ethanol = molecule("CH3CH2OH")
    calc.calculate_many([ethanol])
    one = sizes.pop()
    calc.calculate_many(10 * [ethanol], max_edges=3 * one)
    assert sizes == [3 * one, 3 * one, 3 * one, one]


def test_an_error_in_a_batch_says_which_structure(calc):
    with pytest.raises(StructureError, match="Structure 1 of the list"):
        calc.calculate_many([molecule("H2O"), molecule("NH3")])
    with pytest.raises(PropertyNotImplementedError):
        calc.calculate_many([molecule("H2O")], ["stress"])
    with pytest.raises(PropertyNotImplementedError):
        calc.calculate_many([molecule("H2O")], ["magmoms"])
    assert calc.calculate_many([]) == []


def test_small_molecules_are_computed_on_one_thread(monkeypatch):
    """And the caller's number of threads is put back, also after an error; large graphs keep it."""
    seen = []
    calculator = PotentialCalculator(PaiNN((1, 6, 8), features=8, layers=1))
    network = calculator._network

    def spy(graph, properties):
        seen.append((graph.edges.shape[1], torch.get_num_threads()))
        if len(seen) == 3:
            raise RuntimeError("broken")
        return network(graph, properties)

    monkeypatch.setattr(calculator, "_network", spy)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        small = molecule("CH3CH2OH")
        calculator.calculate_many([small], ["energy"])
        calculator.calculate_many([small] * 40, ["energy"])
        with pytest.raises(RuntimeError, match="broken"):
            calculator.calculate_many([small], ["energy"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [threads for _, threads in seen] == [1, 2, 1]
    assert seen[1][0] > 2000 > seen[0][0]
