"""Mean forces on beads that are held still."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.proteins.chains import Chains
from distillase.ase_calcs.proteins.prior import Prior, PriorTopology
from distillase.datasets.proteins.alike import AllAtomFrames, most_alike
from distillase.datasets.proteins.mean_force import (
    MeanForceConfig,
    MeanForces,
    average,
    force_error,
)


def forces(runs: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two beads with a known mean, whose noise is mostly that of three other atoms with mean zero."""
    rng = np.random.default_rng(seed)
    others = rng.normal(0, 1, (runs, n, 3, 3))
    mixing = np.array([[1.0, -0.5, 0.2], [0.3, 0.8, -1.0]])
    mean = np.array([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1]])
    return mean + np.einsum("bm,rtmd->rtbd", mixing, others) + rng.normal(0, 0.1, (runs, n, 2, 3)), others


def test_control_variates_keep_the_mean_and_lower_the_error() -> None:
    mean = np.array([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1]])
    runs = [forces(4, 200, seed) for seed in range(40)]
    plain = [average(on_beads, None) for on_beads, _ in runs]
    better = [average(*run) for run in runs]
    # Unbiased: over many runs the mean of means is the mean, within its own error.
    scatter = np.std([m for m, _ in better], axis=0, ddof=1)
    assert np.abs(np.mean([m for m, _ in better], axis=0) - mean).max() < 4 * scatter.max() / np.sqrt(40)
    # And the errors that are given are the errors that are made.
    said = np.sqrt(np.mean([e**2 for _, e in better]))
    assert said == pytest.approx(np.sqrt(np.mean([(m - mean) ** 2 for m, _ in better])), rel=0.12)
    assert said < 0.15 * np.sqrt(np.mean([e**2 for _, e in plain]))


def test_the_error_of_a_model_is_not_that_of_the_means() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 1, (400, 10, 3))
    noise = rng.normal(0, 0.3, truth.shape)
    found = MeanForces(truth, truth + noise, np.full_like(truth, 0.3), np.full_like(truth, 0.3))
    exact, spread = force_error(truth, found)
    assert exact < 4 * spread or exact < 0.03
    error, spread = force_error(truth + 0.5, found)
    assert error == pytest.approx(0.5, abs=4 * spread)
    assert spread < 0.02


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="too few samples"):
        MeanForceConfig(picoseconds=1.0)


def test_mean_forces_of_a_peptide(tmp_path) -> None:
    """The Cα–Cα bond: pushed together, beads are pushed apart; and the same command computes nothing twice."""
    pytest.importorskip("openmm")
    pytest.importorskip("pdbfixer")
    from distillase.datasets.proteins import ReferenceConfig, build_sequence, run_reference
    from distillase.datasets.proteins.mean_force import mean_forces

    reference = ReferenceConfig(nanoseconds=0.02, temperatures=(300.0,), starts=("extended",))
    folder = run_reference(build_sequence("AGA"), tmp_path / "reference", reference)
    config = MeanForceConfig(configurations=4, picoseconds=8.0, apart=5.0, equilibrate=1.0)
    found = mean_forces(folder, tmp_path / "mean", config)
    assert found.forces.shape == (4, 3, 3)
    assert np.sqrt((found.errors**2).mean()) < 0.5 * np.sqrt((found.raw_errors**2).mean())
    # Nothing pulls at the molecule as a whole, within the errors.
    total, error = found.forces.sum(1), np.sqrt((found.errors**2).sum(1))
    assert (np.abs(total) < 6 * error).all()
    # Along the bonds the mean force is that of a spring between Cα atoms, about 180 kcal/mol/Å² about 3.86 Å.
    bond = np.diff(found.positions, axis=1)
    length = np.linalg.norm(bond, axis=-1)
    first = (found.forces[:, 0] * bond[:, 0]).sum(-1) / length[:, 0]
    assert np.corrcoef(first, length[:, 0])[0, 1] > 0.9
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "mean").glob("*.npz")}
    again = mean_forces(folder, tmp_path / "mean", config)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert np.array_equal(again.forces, found.forces)
    with pytest.raises(InputError, match="other settings"):
        mean_forces(folder, tmp_path / "mean", config, seed=1)
    with pytest.raises(DataError, match="20 frames"):
        mean_forces(folder, tmp_path / "more", MeanForceConfig(configurations=21))
    prior = Prior().requires_grad_(False)
    import torch

    predicted = prior(torch.tensor(found.positions), PriorTopology.of(Chains.from_sequence("AGA"))).forces.numpy()
    error_of_prior, _ = force_error(predicted, found)
    error_of_nothing, _ = force_error(np.zeros_like(predicted), found)
    assert error_of_prior < error_of_nothing


def test_runs_begin_in_frames_that_are_alike_and_apart() -> None:
    """Beads that repeat every ten frames, turned, once mirrored; a fifth atom says which frame it is."""
    rng = np.random.default_rng(0)
    shapes = 4 * rng.normal(size=(10, 4, 3))
    beads, run = np.tile(shapes, (6, 1, 1)), np.repeat([0, 1], 30)
    beads[30:40, :, 0] *= -1  # the first ten frames of the second run
    turned = Rotation.random(60, random_state=0)
    others = np.arange(60)[:, None, None] * np.array([[1.0, 0, 0]])  # tells which frame it is
    atoms = np.stack([r.apply(np.concatenate([x, o])) for r, x, o in zip(turned, beads, others, strict=True)])
    frames = AllAtomFrames(atoms.astype(np.float32), run, np.tile(np.arange(30), 2))
    begin = most_alike(shapes[:3], frames, np.arange(4), 3, apart=10.0)
    assert begin.shape == (3, 3, 5, 3)
    assert np.abs(begin[:, :, :4] - shapes[:3, None]).max() < 1e-4  # not the mirror image
    for k, chosen in enumerate(begin):
        found = sorted(round(float(np.linalg.norm(x[4]))) for x in chosen)
        assert set(found) <= {k, k + 10, k + 20, k + 40, k + 50}
        assert len(set(found)) == 3
        assert min(np.diff(found)) >= 10
    one = most_alike(shapes[:1], frames.select(np.arange(12)), np.arange(4), 3, apart=15.0)
    assert np.array_equal(one[0, 0], one[0, 1])  # there is only one
    last = most_alike(shapes[:1], frames.select(np.array([0, 10])), np.arange(4), 2, apart=11.0)
    assert np.array_equal(last[0, 0], last[0, 1])
    assert frames.runs()[1].tolist() == list(range(30, 60))


def test_a_hopeless_beginning_ends_at_once(tmp_path) -> None:
    """Not after hours: configurations that blow up are left out one by one, but not all of them."""
    pytest.importorskip("openmm")
    pytest.importorskip("pdbfixer")
    from distillase.datasets.proteins import ReferenceConfig, build_sequence, run_reference
    from distillase.datasets.proteins.mean_force import mean_forces_from

    reference = ReferenceConfig(nanoseconds=0.02, temperatures=(300.0,), starts=("extended",))
    protein = build_sequence("AGA")
    folder = run_reference(protein, tmp_path / "reference", reference)
    config = MeanForceConfig(picoseconds=4.0, equilibrate=1.0)
    in_one_place = np.zeros((12, 2, len(protein.positions), 3))
    with pytest.raises(DataError, match="None of the first 8 configurations"):
        mean_forces_from(in_one_place, np.zeros((12, 3, 3)), folder, tmp_path / "mean", config)


def test_configurations_that_all_atoms_cannot_bear_are_left_out(tmp_path) -> None:
    """They stay as they are: what was computed of the others must not wait for them."""
    from distillase.datasets.proteins.mean_force import load_mean_forces

    for k, value in enumerate((1.0, np.nan)):
        arrays = {name: np.full((3, 3), value) for name in ("forces", "errors", "raw_errors")}
        np.savez(tmp_path / f"{k:04d}.npz", positions=np.zeros((3, 3)), **arrays)
    assert load_mean_forces(tmp_path).forces.shape == (1, 3, 3)
    (tmp_path / "0000.npz").unlink()
    with pytest.raises(DataError, match="strained"):
        load_mean_forces(tmp_path)


def test_a_strained_configuration_is_written_down_as_such_and_other_errors_are_not(tmp_path, monkeypatch) -> None:
    openmm = pytest.importorskip("openmm")
    from distillase.datasets.proteins import mean_force

    target = np.zeros((3, 3))
    job = mean_force._Job(tmp_path / "0000.npz", target[None], target, np.arange(3), "", MeanForceConfig(), 0)

    def run(error: Exception) -> None:
        def fail(*words: object) -> None:
            raise error

        monkeypatch.setattr(mean_force, "_sample", fail)
        mean_force._run(job, lambda amount: None)

    for strained in (DataError("blew up"), openmm.OpenMMException("Particle coordinate is NaN.")):
        run(strained)
        with np.load(job.file) as data:
            assert all(np.isnan(data[name]).all() for name in ("forces", "errors", "raw_errors"))
        job.file.unlink()
    with pytest.raises(openmm.OpenMMException, match="memory"):
        run(openmm.OpenMMException("out of memory"))
    assert not job.file.exists()
