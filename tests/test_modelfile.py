"""Model files: exact round trips, golden files of every format, errors for people; and what PaiNN does in a clash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from safetensors.torch import save_file
from torch.utils import cpp_extension

from distillase.ase_calcs import modelfile
from distillase.ase_calcs.compiled import CompiledPotential, let_torch_link, package_path
from distillase.ase_calcs.errors import InputError, ModelFileError, StructureError
from distillase.ase_calcs.modelfile import FORMAT_VERSION, HEADER_KEY, load_model, read_header, save_model
from distillase.ase_calcs.neighbors import graph_from_atoms
from distillase.ase_calcs.painn import PaiNN
from distillase.ase_calcs.potential import ModelHeader, Potential

GOLDEN = Path(__file__).parent / "golden"
ETHANOL = molecule("CH3CH2OH")


def small(dtype: torch.dtype = torch.float32, **kwargs: object) -> PaiNN:
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    potential = PaiNN((1, 6, 8), **{"features": 8, "layers": 2, "n_basis": 6, "cutoff": 4.0, **kwargs}, dtype=dtype)
    torch.random.set_rng_state(generator)
    potential.atomic_energies.copy_(torch.tensor([-10.123456789, -1000.987654321, -2000.5]))
    return potential


def predict(potential: Potential, atoms: Atoms = ETHANOL) -> tuple[float, np.ndarray]:
    with torch.no_grad():
        output = potential(graph_from_atoms(atoms, potential.cutoff, dtype=potential.dtype))
    assert output.forces is not None
    return output.energy.item(), output.forces.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    potential = small(dtype)
    header = ModelHeader(
        teacher="gfn2-xtb", charges=(-1, 0), multiplicities=(1,), metrics={"test": {"force_mae": 0.01}}
    )
    loaded = load_model(save_model(tmp_path / "m.safetensors", potential, header))
    assert loaded.header == header
    assert loaded.dtype == dtype
    assert loaded.elements == (1, 6, 8)
    assert predict(loaded)[0] == predict(potential)[0]
    assert np.array_equal(predict(loaded)[1], predict(potential)[1])
    assert list(tmp_path.iterdir()) == [tmp_path / "m.safetensors"]


def test_reference_energies_stay_float64_in_a_float32_network() -> None:
    potential = small(torch.float64)
    exact = potential.atomic_energies.clone()
    assert torch.equal(potential.to(torch.float32).atomic_energies, exact)
    assert potential.dtype == torch.float32


def test_constants_are_rounded_once_when_a_model_is_loaded_in_another_dtype(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.safetensors", small())
    wide = load_model(path, dtype="float64")
    assert torch.equal(wide.radial.wavenumbers, small(torch.float64).radial.wavenumbers)  # type: ignore[union-attr]
    assert predict(wide)[0] == pytest.approx(predict(small())[0], abs=1e-5)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.safetensors")), ids=lambda p: p.stem)
def test_golden_files_still_predict_what_they_did(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    energy, forces = predict(load_model(path, dtype="float64"))
    assert energy == pytest.approx(expected["energy"], abs=1e-9)
    assert np.allclose(forces, expected["forces"], rtol=0, atol=1e-9)


def test_there_is_a_golden_file_of_every_format() -> None:
    versions = {read_header(path)["format_version"] for path in GOLDEN.glob("*.safetensors")}
    assert versions == set(range(1, FORMAT_VERSION + 1)), "bump the version? Then add a golden file and an upgrade."
    assert set(modelfile.UPGRADES) == set(range(1, FORMAT_VERSION))


def test_the_header_of_the_newest_format_has_the_keys_of_its_golden_file(tmp_path: Path) -> None:
    golden = read_header(GOLDEN / f"painn-v{FORMAT_VERSION}.safetensors")
    now = read_header(save_model(tmp_path / "m.safetensors", small()))
    assert set(now) == set(golden), "The header changed: bump FORMAT_VERSION and write an upgrade."
    assert set(now["hyperparameters"]) == set(golden["hyperparameters"])


def write_with_header(path: Path, **changes: object) -> Path:
    header = read_header(save_model(path, small())) | changes
    tensors = {name: t.contiguous() for name, t in small().state_dict().items()}
    save_file(tensors, str(path), metadata={HEADER_KEY: json.dumps(header)})
    return path


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no model file"):
        load_model(tmp_path / "missing.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("hello")
    with pytest.raises(ModelFileError, match="could not be read"):
        load_model(text)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(2)}, str(foreign))
    with pytest.raises(ModelFileError, match="not one that distillase wrote"):
        load_model(foreign)
    with pytest.raises(ModelFileError, match="Upgrade it"):
        load_model(write_with_header(tmp_path / "new.safetensors", format_version=FORMAT_VERSION + 1))
    with pytest.raises(ModelFileError, match="architecture"):
        load_model(write_with_header(tmp_path / "arch.safetensors", architecture="pain"))
    good = save_model(tmp_path / "good.safetensors", small())
    good.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="could not be read"):
        load_model(good)
    with pytest.raises(InputError, match="did you mean `float32`"):
        load_model(save_model(tmp_path / "g.safetensors", small()), dtype="float23")


def test_an_unknown_element_is_named() -> None:
    with pytest.raises(StructureError, match=r"has not been trained on N\. It knows H, C, O"):
        predict(small(), molecule("NH3"))


@pytest.mark.parametrize("pair", [("H", "H"), ("C", "O"), ("O", "H"), ("C", "C")])
def test_a_clash_always_repels(pair: tuple[str, str]) -> None:
    """Whatever the network has learned: below the closest distance seen in training two atoms push each other apart."""
    potential = small(torch.float64)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(2.0)  # a wild network
    closest = torch.full((3, 3), 1.1, dtype=torch.float64)
    potential.short_range.set_closest_distances(closest)
    inner = 0.98 * 1.1
    for r in np.linspace(0.15, potential.short_range.FLAT * inner, 30):
        _, forces = predict(potential, Atoms("".join(pair), [[0, 0, 0], [0, 0, r]]))
        assert forces[1, 2] > 0
        assert forces[0, 2] == pytest.approx(-forces[1, 2], rel=1e-9)


def test_the_clamp_joins_smoothly() -> None:
    clamp = small(torch.float64).short_range.clamp
    inner = torch.tensor(1.0, dtype=torch.float64)
    for border in (0.8, 1.0):
        r = torch.tensor([border - 1e-6, border + 1e-6], dtype=torch.float64, requires_grad=True)
        value = clamp(r, inner)
        (slope,) = torch.autograd.grad(value.sum(), r, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), r)
        assert value[0].item() == pytest.approx(value[1].item(), abs=3e-6)
        assert slope[0].item() == pytest.approx(slope[1].item(), abs=1e-9)
        assert curvature[0].item() == pytest.approx(curvature[1].item(), abs=1e-3)
    far = torch.tensor([1.5, 4.0], dtype=torch.float64)
    assert torch.allclose(clamp(far, inner), far, rtol=0, atol=1e-15)


def test_energy_and_forces_vanish_smoothly_at_the_cutoff() -> None:
    potential = small(torch.float64)
    alone = predict(potential, Atoms("C", [[0, 0, 0]]))[0] + predict(potential, Atoms("O", [[0, 0, 0]]))[0]
    energy, forces = predict(potential, Atoms("CO", [[0, 0, 0], [0, 0, 4.0 - 1e-4]]))
    assert energy == pytest.approx(alone, abs=1e-9)
    assert np.abs(forces).max() < 1e-6


def test_charge_and_multiplicity_change_the_energy_when_trained_to() -> None:
    potential = small(torch.float64)
    with torch.no_grad():
        potential.charge_embedding.weight.normal_()
    energies = set()
    for charge in (0, 1):
        graph = graph_from_atoms(ETHANOL, 4.0, dtype=torch.float64, charge=charge)
        with torch.no_grad():
            energies.add(potential(graph).energy.item())
    assert len(energies) == 2


def test_torch_links_where_it_is_installed_in_a_path_with_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(cpp_extension.TORCH_LIB_PATH)
    spaced = tmp_path / "a folder"
    spaced.symlink_to(here)
    monkeypatch.setattr(cpp_extension, "TORCH_LIB_PATH", str(spaced))
    let_torch_link()
    assert " " not in cpp_extension.TORCH_LIB_PATH
    assert Path(cpp_extension.TORCH_LIB_PATH).resolve() == here.resolve()


@pytest.mark.compiler
def test_the_compiled_package_equals_the_network_for_any_size(compiled_model: Path) -> None:
    potential = load_model(compiled_model)
    stamp = package_path(potential, compiled_model).stat().st_mtime_ns
    compiled = CompiledPotential(potential, compiled_model)
    box = molecule("H2O", vacuum=1.0, pbc=True)
    for atoms in (ETHANOL, molecule("CO2"), molecule("C6H6"), box, Atoms("O"), Atoms("H2", [[0, 0, 0], [0, 0, 9]])):
        graph = graph_from_atoms(atoms, potential.cutoff, dtype=torch.float64)
        with torch.no_grad():
            expected = potential(graph, ("energy", "forces", "stress"))
        found = compiled(graph, ("energy", "forces", "stress"))
        for name, value in vars(expected).items():
            assert torch.allclose(getattr(found, name), value, rtol=1e-10, atol=1e-10, equal_nan=True), name
    assert compiled.package.stat().st_mtime_ns == stamp  # found beside the model, not made again
