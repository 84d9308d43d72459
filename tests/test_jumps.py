"""Jump networks: what they may not depend on, what they conserve, and that they learn the flow they are shown."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import units
from ase.build import molecule
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS
from jump_models import SpringJump, spring_run
from made_frames import frames
from scipy.spatial.transform import Rotation

from distillase.ase_calcs import PotentialCalculator
from distillase.ase_calcs.dynamics import LearnedJump
from distillase.ase_calcs.errors import DataError, InputError, ModelFileError, StructureError
from distillase.ase_calcs.jumps import EGNNJump, Jump, JumpGraph, PaiNNJump, TransformerJump, bond_hops, jump_graph
from distillase.ase_calcs.modelfile import load_jump, load_model, save_model
from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.store import write_dataset
from distillase.datasets.trajectory import Trajectory, read_frames
from distillase.launch.cli import main
from distillase.training.config import TrainConfig
from distillase.training.jumps.config import JumpDataConfig, JumpLossConfig, JumpModelConfig, JumpRecipe
from distillase.training.jumps.run import _fingerprint, hold_out, prepare_jump, train_jump
from distillase.training.jumps.tables import FlowTable, WindowTable
from distillase.training.jumps.task import FlowTask, JumpTask
from distillase.training.jumps.topology import dihedral_vectors, find_topology

NETWORKS = (PaiNNJump, EGNNJump, TransformerJump)
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def ethanol(seed: int = 0):
    """Numbers, masses, distorted positions, velocities (Å/fs) and bond-graph distances of ethanol."""
    rng, atoms = np.random.default_rng(seed), molecule("CH3CH2OH")
    x = atoms.positions + 0.05 * rng.normal(size=(9, 3))
    return atoms.numbers, atoms.get_masses(), x, 0.01 * rng.normal(size=(9, 3)), bond_hops(atoms.numbers, x)


def make(kind, dtype=torch.float64, **options):
    torch.manual_seed(1)
    network = kind((1, 6, 8), features=16, layers=2, force_head=True, longest=8.0, **options, dtype=dtype)
    network.velocity_scale.fill_(0.01)
    network.acceleration_scale.fill_(1e-3)
    network.mean_velocity_scale.fill_(5e-3)
    return network.eval()


def jump_of(network, numbers, masses, x, v, hops, interval: float = 4.0) -> Jump:
    with torch.no_grad():
        return network(jump_graph(numbers, masses, x, v, interval, cutoff=7.0, hops=hops, dtype=network.dtype))


def vectors(jump: Jump) -> tuple[np.ndarray, ...]:
    assert jump.forces is not None
    return tuple(t.double().numpy() for t in (jump.displacement, jump.velocity_change, jump.forces))


# ------------------------------------------------------------------------------------------------------------ symmetry


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", NETWORKS)
def test_jumps_turn_with_the_molecule(kind, dtype):
    """Rotation, reflection, translation and renumbering, also where displacements are cut to their largest length."""
    network = make(kind, dtype, max_displacement=0.02)
    numbers, masses, x, v, hops = ethanol()
    before = vectors(jump_of(network, numbers, masses, x, v, hops))
    lengths = np.linalg.norm(before[0], axis=1)
    assert (lengths > 0.015).any()  # the bound acts on some
    order = np.random.default_rng(3).permutation(9)
    for seed, sign in ((1, 1.0), (2, -1.0)):
        turn = sign * Rotation.random(random_state=seed).as_matrix()
        after = vectors(
            jump_of(network, numbers[order], masses[order], (x @ turn.T + 5.0)[order], (v @ turn.T)[order],
                    hops[np.ix_(order, order)])
        )  # fmt: skip
        for old, new in zip(before, after, strict=True):
            np.testing.assert_allclose(new, (old @ turn.T)[order], rtol=0, atol=TOLERANCE[dtype] * np.abs(old).max())


@pytest.mark.parametrize("kind", NETWORKS)
def test_momentum_and_centre_of_mass_are_conserved(kind):
    numbers, masses, x, v, hops = ethanol()
    v = v - (masses[:, None] * v).sum(axis=0) / masses.sum()
    displacement, change, _ = vectors(jump_of(make(kind), numbers, masses, x, v, hops))
    np.testing.assert_allclose(masses @ displacement, 0.0, atol=1e-13)
    np.testing.assert_allclose(masses @ change, 0.0, atol=1e-13)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_jump_grows_no_faster_than_the_velocities(kind):
    """Features would be polynomials of high degree in the velocities, and overflow, if they were not bounded."""
    network = make(kind, torch.float32)
    numbers, masses, x, v, hops = ethanol()
    sizes = []
    for factor in (1.0, 1e3, 1e4):
        jump = jump_of(network, numbers, masses, x, factor * v, hops)
        sizes.append(jump.velocity_change.norm())
        assert sizes[-1] < 10 * factor * sizes[0]


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_batch_is_its_singles_and_the_cutoff_is_smooth(kind):
    network = make(kind)
    graphs = []
    for seed, span in ((0, 2.0), (1, 8.0)):
        numbers, masses, x, v, hops = ethanol(seed)
        graphs.append(jump_graph(numbers, masses, x, v, span, cutoff=7.0, hops=hops, dtype=torch.float64))
    joined = {name: torch.cat([g.tensors()[name] for g in graphs], dim=-1 if name == "edges" else 0)
              for name in graphs[0].tensors()}  # fmt: skip
    n_edges = graphs[0].edges.shape[1]
    joined["edges"][:, n_edges:] += 9
    joined["system"][9:] = 1
    with torch.no_grad():
        together = vectors(network(JumpGraph(**joined)))
    for number, graph in enumerate(graphs):
        with torch.no_grad():
            alone = vectors(network(graph))
        for whole, single in zip(together, alone, strict=True):
            np.testing.assert_allclose(whole[9 * number : 9 * number + 9], single, atol=1e-12)
    numbers, masses, x, v, hops = ethanol()
    x = x.copy()
    found = []
    for far in (6.999999, 7.000001):  # the last hydrogen leaves the sight of the first carbon
        away = x[8] - x[0]
        x[8] = x[0] + away / np.linalg.norm(away) * far
        found.append(vectors(jump_of(network, numbers, masses, x, v, hops))[0])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6 * np.abs(found[0]).max() + 3e-8)


@pytest.mark.parametrize("kind", NETWORKS)
def test_no_time_no_jump(kind):
    """At t → 0 the mean velocity is the velocity."""
    network, (numbers, masses, x, v, hops) = make(kind), ethanol()
    v = v - (masses[:, None] * v).sum(axis=0) / masses.sum()
    displacement, change, _ = vectors(jump_of(network, numbers, masses, x, v, hops, interval=1e-6))
    np.testing.assert_allclose(displacement / 1e-6, v, atol=1e-8)
    np.testing.assert_allclose(change, 0.0, atol=1e-8)


def test_bonds_are_counted_along_the_chain():
    atoms = molecule("CH3CH2OH")
    hops = bond_hops(atoms.numbers, atoms.positions)
    carbon, oxygen = np.flatnonzero(atoms.numbers == 6), int(np.flatnonzero(atoms.numbers == 8)[0])
    assert sorted(hops[oxygen, carbon]) == [1, 2]
    assert (hops == hops.T).all()
    assert (np.diag(hops) == 0).all()
    topology = find_topology(atoms.numbers, atoms.positions)
    assert (topology.bonds.shape[1], topology.angles.shape[1], topology.dihedrals.shape[1]) == (8, 13, 12)


def test_the_sign_of_a_dihedral():
    """IUPAC: looking from the second atom to the third, clockwise from the first to the fourth is positive."""
    x = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.0], [math.cos(0.7), math.sin(0.7), 1.0]])
    found = dihedral_vectors(x, torch.arange(4)[:, None])[0]
    assert math.atan2(found[1], found[0]) == pytest.approx(0.7, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- model files


@pytest.mark.parametrize("kind", NETWORKS)
def test_files_give_the_same_network_back(tmp_path, kind):
    network, data = make(kind), ethanol()
    path = save_model(tmp_path / "jump.safetensors", network)
    again = load_jump(path)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for a, b in zip(vectors(jump_of(network, *data)), vectors(jump_of(again, *data)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)
    with pytest.raises(ModelFileError, match=r"holds a jump network: give it to `LearnedJump`"):
        load_model(path)
    with pytest.raises(ModelFileError, match="jump network"):
        PotentialCalculator(path)


def test_a_potential_is_no_jump_network(tmp_path):
    from distillase.ase_calcs import PaiNN

    path = save_model(tmp_path / "model.safetensors", PaiNN((1, 8), features=8, layers=1))
    with pytest.raises(ModelFileError, match="holds a potential: give it to `PotentialCalculator`"):
        load_jump(path)
    with pytest.raises(StructureError, match="not been trained on O; it knows H, C"):
        EGNNJump((1, 6), features=8, layers=1).species(torch.tensor([8]))


# ------------------------------------------------------------------------------------------------------------- learning


def drifting(n_frames: int = 11) -> Trajectory:
    """Water in free flight, turning nowhere, its centre of mass on its way."""
    atoms, rng = molecule("H2O"), np.random.default_rng(0)
    velocities = 0.01 * rng.normal(size=(3, 3)) + np.array([0.1, 0.0, 0.0])
    times = 0.5 * np.arange(n_frames)[:, None, None]
    return Trajectory(
        atoms.numbers, atoms.get_masses(), atoms.positions + times * velocities,
        np.broadcast_to(velocities, (n_frames, 3, 3)), 0.5, group="water", origin="a",
    )  # fmt: skip


def test_windows_hold_what_happens_between_two_frames():
    run = drifting()
    table = WindowTable([run], spans=[1.0, 2.0], cutoff=5.0, dtype=torch.float64)
    assert len(table) == 9 + 7
    batch = table.batch([0, 14])
    assert batch.interval.tolist() == [1.0, 2.0]
    still = run.velocities[0] - (run.masses @ run.velocities[0]) / run.masses.sum()
    np.testing.assert_allclose(batch.velocities[:3].numpy(), still, atol=1e-15)
    np.testing.assert_allclose(batch.displacement[3:].numpy(), 2.0 * still, atol=1e-14)
    np.testing.assert_allclose(batch.velocity_change.numpy(), 0.0, atol=1e-15)
    np.testing.assert_allclose(run.masses @ batch.positions[3:].numpy(), 0.0, atol=1e-12)
    assert bool(torch.isnan(batch.forces).all())
    with pytest.raises(DataError, match=r"1.2 fs is no multiple of the 0.5 fs"):
        WindowTable([run], spans=[1.2], cutoff=5.0)
    with pytest.raises(DataError, match="No trajectory is as long"):
        WindowTable([run], spans=[8.0], cutoff=5.0)


def test_every_other_window_is_played_backwards():
    """The same law of motion holds: atoms on springs obey the flow in closed form in both directions."""
    table = WindowTable([spring_run(0)], spans=[4.0], cutoff=7.0, dtype=torch.float64)
    batch, run = table.batch([0, 1]), spring_run(0)
    jump = SpringJump()(batch.graph)
    np.testing.assert_allclose(jump.displacement.numpy(), batch.displacement.numpy(), atol=1e-9)
    np.testing.assert_allclose(jump.velocity_change.numpy(), batch.velocity_change.numpy(), atol=1e-9)
    forward = run.velocities[table.windows[0, 1]]
    still = forward - (run.masses @ forward) / run.masses.sum()
    backward = run.velocities[table.windows[1, 1] + table.windows[1, 2]]
    np.testing.assert_allclose(batch.velocities[:9].numpy(), still, atol=1e-12)
    still = (run.masses @ backward) / run.masses.sum() - backward
    np.testing.assert_allclose(batch.velocities[9:].numpy(), still, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
def test_rotations_of_the_data_change_nothing(kind):
    """Turned all alike, or each by its own rotation, and turned differently for another seed."""
    runs, network = [spring_run(seed) for seed in range(2)], make(kind)
    found, positions = [], []
    for rotations, seed in (("off", 0), ("batch", 0), ("per_graph", 0), ("per_graph", 1)):
        table = WindowTable(runs, spans=[4.0], cutoff=7.0, rotations=rotations, seed=seed, dtype=torch.float64)
        task, batch = JumpTask(network, JumpLossConfig()), table.batch([0, 7, 30])
        found.append(task(batch.tensors(), task.counts(batch))[0].item())
        positions.append(batch.positions.numpy())
        np.testing.assert_array_equal(positions[-1], table.batch([0, 7, 30]).positions.numpy())
    np.testing.assert_allclose(found, found[0], rtol=1e-9)
    turns = [[Rotation.align_vectors(p[s], positions[0][s])[0].magnitude() for s in (slice(0, 9), slice(9, 18))]
             for p in positions]  # fmt: skip
    assert turns[1][0] == pytest.approx(turns[1][1], abs=1e-6)
    assert abs(turns[2][0] - turns[2][1]) > 1e-3
    assert abs(turns[2][0] - turns[3][0]) > 1e-3


def test_the_loss_does_not_depend_on_how_windows_fall_on_batches():
    table = WindowTable([spring_run(0)], spans=[4.0], cutoff=7.0, dtype=torch.float64)
    task = JumpTask(make(EGNNJump), JumpLossConfig())
    whole = table.batch([0, 1, 2, 3, 4])
    one, _ = task(whole.tensors(), task.counts(whole))
    parts = [table.batch([0, 1]), table.batch([2, 3, 4])]
    counts = torch.stack([task.counts(part) for part in parts]).sum(dim=0)
    two = sum(task(part.tensors(), counts)[0] for part in parts)
    assert two.item() == pytest.approx(one.item(), rel=1e-12)


def test_the_exact_flow_satisfies_the_mean_flow_identity():
    """Atoms on springs have a flow in closed form; its loss is zero, and that of another stiffness is not."""
    run = spring_run(0)
    table = FlowTable(
        [run], longest=8.0, temperatures_K=(300.0, 300.0), instant=0.25, cutoff=7.0, dtype=torch.float64
    )  # fmt: skip
    batch = table.batch(np.arange(24))
    assert 0 < int((batch.interval == 0).sum()) < 24
    found = []
    for stiffness in (1.0, 1.2):
        network = SpringJump(stiffness)
        task = FlowTask(network, JumpLossConfig(bonds=0, angles=0, dihedrals=0, kind="mse"))
        task.eval()
        _, sums = task(batch.tensors(), task.counts(batch))
        found.append(task.figures(sums))
    assert found[0]["velocity_share"] < 1e-10
    assert found[0]["displacement_rmse"] < 1e-12
    assert found[1]["velocity_share"] > 0.05
    # The velocities drawn are those of 300 K: Σ m v² = (3N − 3) k_B T on average, here over 24 × 24 values.
    kinetic = float((batch.masses[:, None] * (batch.velocities / units.fs) ** 2).sum()) / 24
    assert kinetic == pytest.approx(24 * units.kB * 300.0, rel=5 * math.sqrt(2 / 24**2))


def test_velocities_drawn_for_a_frame_do_not_depend_on_its_batch():
    """So that any number of processes train the same model; the next epoch draws others."""
    settings = {"longest": 8.0, "temperatures_K": (100.0, 400.0), "instant": 0.25, "cutoff": 7.0}
    table = FlowTable([spring_run(0)], **settings, dtype=torch.float64)
    together, alone = table.batch([2, 5, 9]), table.batch([5])
    np.testing.assert_array_equal(together.velocities[9:18].numpy(), alone.velocities.numpy())
    assert together.interval[1] == alone.interval[0]
    table.begin_epoch(1)
    assert np.abs(table.batch([5]).velocities.numpy() - alone.velocities.numpy()).max() > 1e-4


@pytest.fixture(scope="module")
def molecular() -> list[Trajectory]:
    """Ethanol under MMFF94, four short runs at about 300 K."""
    runs = []
    for seed in range(4):
        atoms, rng = molecule("CH3CH2OH"), np.random.default_rng(seed)
        atoms.calc = make_teacher("mmff94")
        LBFGS(atoms, logfile=None).run(fmax=0.05)
        thermalize_momenta(atoms, 600, rng=rng)
        Stationary(atoms)
        dyn = VelocityVerlet(atoms, 0.5 * units.fs)
        dyn.run(50)
        state = lambda atoms=atoms: (atoms.get_positions(), atoms.get_velocities() * units.fs, atoms.get_forces())  # noqa: E731
        frames = [state() for _ in dyn.irun(200)]
        x, v, forces = (np.array(column) for column in zip(*frames, strict=True))
        runs.append(Trajectory(atoms.numbers, atoms.get_masses(), x, v, 0.5, None, forces, "ethanol", str(seed)))
    return runs


@pytest.mark.parametrize(
    ("architecture", "source"),
    [("painn-jump", "windows"), ("egnn-jump", "windows"), ("transformer-jump", "windows"), ("egnn-jump", "flow")],
)
def test_networks_learn_a_flow(tmp_path, molecular, architecture, source):
    """In some seconds; a network that learned nothing would leave the whole change of velocity unexplained."""
    recipe = JumpRecipe(
        data=JumpDataConfig(source=source, k=(4,), timestep=0.5, longest=2.0, validation=0.25, every=4),
        model=JumpModelConfig(architecture=architecture, features=16, layers=2, rank=1, vectors=4),
        training=TrainConfig(
            max_epochs=12, batch_frames=8, batch_edges=10_000, lr=1e-2, compile="off", ema=0.9, warmup_steps=5,
            validate_every=12, tensorboard=False,
        ),
    )  # fmt: skip
    result = train_jump(molecular, tmp_path, recipe)
    found = result.metrics["validation"]
    assert found["velocity_share"] < 0.9
    assert load_jump(result.model).header.metrics["validation"] == found


def test_what_training_refuses(tmp_path):
    runs = [spring_run(seed) for seed in range(2)]
    with pytest.raises(DataError, match="one trajectory, and nothing to hold out"):
        train_jump(runs[:1], tmp_path)
    with pytest.raises(DataError, match="one molecule"):
        hold_out(runs, JumpRecipe(data=JumpDataConfig(by="group")))
    flow = JumpRecipe(data=JumpDataConfig(source="flow"))
    assert flow.loss.bonds == flow.loss.angles == flow.loss.dihedrals == 0
    with pytest.raises(DataError, match="needs forces"):
        train_jump([replace(run, forces=None) for run in runs], tmp_path, flow)
    with pytest.raises(InputError, match="cannot be compiled yet"):
        train_jump(runs, tmp_path, replace(JumpRecipe(), training=TrainConfig(compile="on")))


def test_a_checkpoint_belongs_to_its_forces_and_masses():
    """Flow training learns from forces: the same positions labelled by another teacher are another training."""
    recipe, run = JumpRecipe(data=JumpDataConfig(source="flow")), spring_run(0)
    others = [replace(run, forces=1.1 * run.forces), replace(run, masses=2 * run.masses), replace(run, forces=None)]
    assert len({_fingerprint(recipe, [other]) for other in (run, *others)}) == 4
    assert _fingerprint(recipe, [run]) == _fingerprint(recipe, [spring_run(0)])


def test_frozen_layers_stay_and_a_force_head_can_be_added(tmp_path):
    """The way from molecular mechanics to quantum chemistry: weights are taken over, the first layers kept."""
    runs = [spring_run(seed) for seed in range(2)]
    small = {"features": 8, "layers": 2, "rank": 1}
    short = TrainConfig(max_epochs=1, batch_frames=8, batch_edges=10_000, compile="off", tensorboard=False)
    first = JumpRecipe(
        data=JumpDataConfig(k=(4,), timestep=1.0, every=16), model=JumpModelConfig(**small), training=short
    )
    start = str(train_jump(runs, tmp_path / "mm", first).model)
    model = JumpModelConfig(**small, force_head=True, start_from=start, freeze_layers=1)
    second = train_jump(runs, tmp_path / "qm", replace(first, model=model)).model
    before, after = load_jump(start).state_dict(), load_jump(second).state_dict()
    for name in before:
        layer = name.split(".")[1] if name.split(".")[0] in ("messages", "updates") else ""
        if layer == "0":
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["messages.1.phi.weight"], after["messages.1.phi.weight"])
    moved = tmp_path / "start.safetensors"
    of_starts = []
    for other in (start, second):  # two networks under one name are two trainings
        moved.write_bytes(Path(other).read_bytes())
        of_starts.append(_fingerprint(replace(first, model=replace(model, start_from=str(moved))), runs))
    assert of_starts[0] != of_starts[1]
    assert after["readout.weight"].shape[0] == before["readout.weight"].shape[0] + 1
    with pytest.raises(InputError, match=r"`model.start_from` has .* must be the same"):
        prepare_jump(replace(first, model=replace(model, features=12)), runs)
    with pytest.raises(InputError, match="there are 2 layers"):
        replace(model, freeze_layers=3)
    assert Path(start).is_file()


# --------------------------------------------------------------------------------------------------------- command line


def test_from_the_command_line_to_a_jump(tmp_path, capsys):
    """Trajectories, a network from them, a network from a dataset's forces, and dynamics with each."""
    runs = tmp_path / "traj"
    made = ["trajectories", "O", "--teacher", "mmff94", "--integrator", "verlet", "-n", "3", "--picoseconds", "0.05"]
    assert main([*made, "--timestep", "0.5", "--interval", "0.5", "--equilibrate", "0", "--out", str(runs)]) == 0
    tiny = [
        "model.features=8", "model.layers=1", "model.rank=1", "training.max_epochs=1", "training.minutes=1",
        "training.tensorboard=false", "data.validation=0.3",
    ]  # fmt: skip
    for source, options in (("windows", ["data.k=[4]"]), ("flow", ["data.longest=2.0"])):
        out = tmp_path / source
        settings = [word for item in [*tiny, *options, f"data.source={source}"] for word in ("--set", item)]
        assert main(["train-jump", str(runs / "trajectories.h5"), *settings, "--out", str(out)]) == 0
        assert {"windows": "On held-out runs", "flow": "flow identity"}[source] in capsys.readouterr().out
        atoms = molecule("H2O")
        atoms.calc = make_teacher("mmff94")
        dyn = LearnedJump(atoms, 0.5 * units.fs, jump=out / "model.safetensors", k=4)
        dyn.run(2)
        assert dyn.counts.jumps + dyn.counts.fallbacks == 2
        assert load_jump(out / "model.safetensors").header.teacher.startswith("mmff94")
    assert main(["train-jump", "--out", str(tmp_path / "none")]) == 2
    assert "nothing to learn from" in capsys.readouterr().err
    assert main(["train-jump", "x.h5", "--set", "data.kk=3", "--out", str(tmp_path / "none")]) == 2
    assert "unknown key `kk` in `data`; did you mean `k`?" in capsys.readouterr().err
    assert main(["train-jump", "--recipe", "qm", "--print-config"]) == 0
    assert "max_displacement: 0.1" in capsys.readouterr().out


def test_frames_of_a_dataset_are_no_run():
    """Flow training takes any labelled set; frames of one origin with different atoms are kept apart."""
    pairs = [(s, found) for s, found, _ in frames(30) if found is not None and found.forces is not None]
    with tempfile.TemporaryDirectory() as folder:
        read = read_frames(write_dataset(Path(folder) / "set.h5", pairs, provenance={"teacher": "springs"}))
    assert sum(len(run) for run in read) == len(pairs)
    for run in read:
        assert run.interval == 0.0
        assert run.forces is not None
        assert run.forces.shape == run.positions.shape == (len(run), len(run.numbers), 3)
