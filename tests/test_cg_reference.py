"""All-atom reference dynamics of proteins: what is built and simulated, and that interruptions change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from distillase.ase_calcs.errors import InputError, StructureError
from distillase.ase_calcs.proteins.geometry import dihedrals
from distillase.ase_calcs.units import KB, KJ_PER_MOL, NM
from distillase.datasets.proteins import ReferenceConfig, SystemConfig, build_sequence, read_protein, run_reference
from distillase.datasets.proteins.build import AllAtom, alpha_carbons, build_unfolded, mirror_images
from distillase.datasets.proteins.frames import dynamics_pieces, open_dynamics, open_reference, reference_pieces
from distillase.datasets.proteins.mapping import rigid_pairs
from distillase.datasets.proteins.reference import _Runner, _State, ladder
from distillase.datasets.proteins.system import constrained_pairs, make_system, use_native_born

openmm = pytest.importorskip("openmm")
pytest.importorskip("pdbfixer")
pytest.importorskip("PeptideBuilder")
pytest.importorskip("mdtraj")


def context(system, platform: str = "Reference"):
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform))


def energy_and_forces(system, positions: np.ndarray) -> tuple[float, np.ndarray]:
    made = context(system)
    made.setPositions(positions / NM)
    state = made.getState(energy=True, forces=True)
    return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value


def test_a_sequence_becomes_a_protein_of_l_amino_acids() -> None:
    protein = build_sequence("GYDPETGTWG")
    assert protein.sequence == "GYDPETGTWG"
    assert len(protein.positions) == 138
    assert mirror_images(protein.topology, protein.positions) == []
    # The extended chain: Cα of neighbours 3.8 Å apart, trans throughout.
    x = protein.positions[alpha_carbons(protein.topology)]
    assert np.linalg.norm(np.diff(x, axis=0), axis=1) == pytest.approx(3.8, abs=0.05)
    assert np.linalg.norm(x[-1] - x[0]) > 28.0


def test_mirror_images_are_noticed(tmp_path) -> None:
    protein = build_sequence("AYG")
    mirrored = AllAtom(protein.topology, protein.positions * [1.0, 1.0, -1.0])
    assert mirror_images(mirrored.topology, mirrored.positions) == ["ALA 1", "TYR 2"]
    path = tmp_path / "d.pdb"
    path.write_text(mirrored.pdb())
    with pytest.raises(StructureError, match="D-amino acids"):
        read_protein(path)


def test_a_pdb_file_is_completed_and_gaps_are_refused(tmp_path) -> None:
    text = build_sequence("GYDPE").pdb()
    lines = [line for line in text.splitlines() if line.startswith("ATOM")]
    heavy = [line for line in lines if line[76:78].strip() != "H" and line[12:16].strip() not in ("CZ", "OH")]
    (tmp_path / "heavy.pdb").write_text("\n".join([*heavy, "END"]))
    protein = read_protein(tmp_path / "heavy.pdb")
    assert len(protein.positions) == len(build_sequence("GYDPE").positions)
    assert any("2 heavy atoms added" in note for note in protein.notes)
    seqres = "SEQRES   1 A    5  GLY TYR ASP PRO GLU"
    gap = [line for line in lines if line[22:26].strip() != "3"]
    (tmp_path / "gap.pdb").write_text("\n".join([seqres, *gap, "END"]))
    with pytest.raises(StructureError, match="missing"):
        read_protein(tmp_path / "gap.pdb")
    (tmp_path / "silent.pdb").write_text("\n".join([*gap, "END"]))  # most files do not say what they lack
    with pytest.raises(StructureError, match="missing between TYR 2 and PRO 4"):
        read_protein(tmp_path / "silent.pdb")
    from openmm import app

    silent = app.PDBFile(str(tmp_path / "silent.pdb"))
    with (tmp_path / "silent.cif").open("w") as file:
        app.PDBxFile.writeFile(silent.topology, silent.positions, file, keepIds=True)
    with pytest.raises(StructureError, match="missing between TYR 2 and PRO 4"):
        read_protein(tmp_path / "silent.cif")
    (tmp_path / "rubbish.cif").write_text("nothing")
    with pytest.raises(InputError, match="no mmCIF file"):
        read_protein(tmp_path / "rubbish.cif")
    with pytest.raises(InputError, match="X"):
        build_sequence("GXG")


def test_unfolded_chains_differ_and_do_not_overlap() -> None:
    chains = [build_unfolded("GYDPETGTWG", np.random.default_rng(seed)) for seed in (1, 2)]
    beads = [protein.positions[alpha_carbons(protein.topology)] for protein in chains]
    assert np.abs(dihedrals(beads[0][None]) - dihedrals(beads[1][None])).max() > 0.3
    for x in beads:
        distances = np.linalg.norm(x[:, None] - x, axis=-1)
        assert distances[np.triu_indices(10, 3)].min() > 4.2


def test_native_born_is_the_model_that_it_replaces() -> None:
    from openmm import app

    protein = build_sequence("AYDW")
    field = app.ForceField("amber14/protein.ff14SB.xml", "implicit/obc2.xml")
    slow = field.createSystem(protein.topology, nonbondedMethod=app.NoCutoff)
    fast = field.createSystem(protein.topology, nonbondedMethod=app.NoCutoff)
    use_native_born(fast)
    one, other = energy_and_forces(slow, protein.positions), energy_and_forces(fast, protein.positions)
    assert other[0] == pytest.approx(one[0], rel=1e-6)
    assert np.abs(other[1] - one[1]).max() < 1e-5 * np.abs(one[1]).max()
    with pytest.raises(StructureError, match="0 CustomGBForces"):
        use_native_born(fast)


def test_hydrogens_are_heavy_and_their_bonds_rigid() -> None:
    protein = build_sequence("AG")
    system = make_system(protein).system
    hydrogens = [a.index for a in protein.topology.atoms() if a.element.symbol == "H"]
    assert len(constrained_pairs(system)) == len(hydrogens)
    assert {system.getParticleMass(k)._value for k in hydrogens} == {3.0}
    total = sum(system.getParticleMass(k)._value for k in range(system.getNumParticles()))
    assert total == pytest.approx(sum(a.element.mass._value for a in protein.topology.atoms()), abs=0.02)


def test_explicit_water_is_beside_the_protein_and_the_same_each_time() -> None:
    prepared = make_system(build_sequence("AG"), SystemConfig(water="tip3p", padding=5.0))
    assert prepared.n_protein == len(build_sequence("AG").positions)
    assert prepared.topology.getNumAtoms() > prepared.n_protein + 3 * 40
    assert prepared.system.usesPeriodicBoundaryConditions()
    again = make_system(build_sequence("AG"), SystemConfig(water="tip3p", padding=5.0))
    assert np.array_equal(again.positions, prepared.positions)


def test_rungs_of_the_ladder() -> None:
    rungs = ladder((300.0,), 353)
    assert rungs[0] == 300.0
    assert rungs[-1] == 500.0
    ratios = np.diff(np.log(rungs))
    assert ratios == pytest.approx(ratios[0])
    assert len(rungs) == 6
    assert {300.0, 350.0, 400.0, 500.0} <= set(ladder((300.0, 350.0, 400.0), 353))


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cg") / "exchange"
    config = ReferenceConfig(nanoseconds=0.06, temperatures=(300.0,), starts=("extended",), exchange=True)
    return run_reference(build_sequence("AG"), folder, config, seed=3), config


def test_frames_hold_the_forces_of_their_positions(exchanged) -> None:
    folder, _ = exchanged
    system = openmm.XmlSerializer.deserialize((folder / "system.xml").read_text())
    piece = next(iter(reference_pieces(folder, (300.0,))))
    for k in (0, 7):
        _, forces = energy_and_forces(system, piece.positions[k].astype(float))
        # The frame's forces are those of the CPU platform, whose nonbonded terms are in single precision.
        assert np.abs(piece.forces[k] - forces * KJ_PER_MOL / NM).max() < 2e-3


def test_temperatures_exchange_and_stay_in_order(exchanged) -> None:
    folder, _ = exchanged
    files = sorted((folder / "frames" / "extended-exchange").glob("*.npz"))
    assert len(files) == 4
    with np.load(files[-1]) as data:
        attempts, successes = data["state_exchanges"].T
        velocities = data["state_velocities"]
    assert attempts.sum() >= 20
    assert 0.1 < successes.sum() / attempts.sum() < 0.9
    energies = np.concatenate([np.load(file)["energies"] for file in files[1:]], axis=1)
    assert (np.diff(energies.mean(1)) > 0).all()
    system = openmm.XmlSerializer.deserialize((folder / "system.xml").read_text())
    assert velocities.shape[1] == system.getNumParticles()


def test_exchanges_leave_the_canonical_ensembles_as_they_are() -> None:
    """Two rungs of a harmonic degree of freedom: fresh canonical energies, exchanged, stay canonical; the velocities
    that come along take the temperature of their new rung."""
    rng, kelvin = np.random.default_rng(0), (300.0, 360.0)
    runner = object.__new__(_Runner)
    runner.rng = rng
    runner.job = type("Job", (), {"temperatures": kelvin})()
    kt = KB * np.array(kelvin) / KJ_PER_MOL
    found, before, accepted = [], [], 0
    for _ in range(20_000):
        energies = rng.gamma(4.0, kt)  # eight harmonic coordinates
        state = _State(np.zeros((2, 1, 3)), np.ones((2, 1, 3)), np.zeros((2, 3, 3)), np.zeros((1, 2)), 0.0)
        state.positions[:, 0, 0] = energies
        before.append(energies.copy())
        runner._exchange(state, energies)
        assert np.array_equal(state.positions[:, 0, 0], energies)
        if state.exchanges[0, 1]:
            accepted += 1
            assert state.velocities[:, 0, 0] == pytest.approx([np.sqrt(300 / 360), np.sqrt(360 / 300)], rel=1e-12)
        found.append(energies.copy())
    mean, error = np.mean(found, 0), np.std(found, 0) / np.sqrt(len(found))
    assert (np.abs(mean - 4 * kt) < 4 * error).all()
    spread = np.std(found, 0)
    assert spread == pytest.approx(2 * kt, rel=0.03)
    # The rule of Metropolis, from the same energies.
    beta = 1 / kt
    wanted = np.minimum(1, np.exp((beta[0] - beta[1]) * (np.array(before)[:, 0] - np.array(before)[:, 1]))).mean()
    assert accepted / len(found) == pytest.approx(wanted, abs=0.015)


def test_an_interrupted_reference_goes_on_bit_by_bit(exchanged, tmp_path) -> None:
    whole, config = exchanged
    protein, part = build_sequence("AG"), tmp_path / "part"
    shorter = ReferenceConfig(nanoseconds=0.02, temperatures=(300.0,), starts=("extended",), exchange=True)
    run_reference(protein, part, shorter, seed=3)
    assert len(list(part.glob("frames/*/*.npz"))) == 2
    run_reference(protein, part, config, seed=3)
    for one, other in zip(sorted(whole.glob("frames/*/*.npz")), sorted(part.glob("frames/*/*.npz")), strict=True):
        with np.load(one) as a, np.load(other) as b:
            for name in ("positions", "forces", "state_positions", "state_velocities"):
                assert (name in a) == (name in b)
                if name in a:
                    assert np.array_equal(a[name], b[name])
    moved = AllAtom(protein.topology, protein.positions * 1.01)
    with pytest.raises(InputError, match="structure"):
        run_reference(moved, part, config, seed=3)
    with pytest.raises(InputError, match="seed: 3 there, 4 now"):
        run_reference(protein, part, config, seed=4)
    with pytest.raises(InputError, match=r"nanoseconds: 0\.06 there"):
        run_reference(protein, part, shorter, seed=3)


def test_starts_are_what_they_say(tmp_path) -> None:
    text = build_sequence("AAAAAA", torsions=[(-63.0, -43.0)] * 6).pdb()
    (tmp_path / "helix.pdb").write_text(text)
    protein = read_protein(tmp_path / "helix.pdb")
    config = ReferenceConfig(
        nanoseconds=0.02, temperatures=(300.0,), starts=("folded", "pulled", "extended"), equilibrate=2.0
    )
    folder = run_reference(protein, tmp_path / "out", config, workers=2)
    source = open_reference(folder)
    assert source.sequence == "AAAAAA"
    reach = {}
    for name in config.starts:
        with np.load(folder / "frames" / f"{name}-300K" / "00000.npz") as data:
            ends = data["state_positions"][0][source.beads[[0, -1]]] * NM
        reach[name] = np.linalg.norm(ends[1] - ends[0])
    assert reach["pulled"] > reach["folded"] + 2.0
    pieces = list(reference_pieces(folder))
    assert {piece.origin for piece in pieces} == {f"{name}-300K" for name in config.starts}
    assert pieces[0].positions.shape == (20, len(protein.positions), 3)
    # The System's rigid bonds are those that the frames show.
    found = rigid_pairs(np.concatenate([piece.positions for piece in pieces]))
    assert sorted(map(tuple, found.tolist())) == sorted(tuple(sorted(pair)) for pair in source.pairs.tolist())
    with pytest.raises(InputError, match="no frames at"):
        next(iter(reference_pieces(folder, (350.0,))))


def test_dynamics_of_others(tmp_path) -> None:
    import mdtraj

    protein = build_sequence("GYD")
    (tmp_path / "top.pdb").write_text(protein.pdb())
    rng = np.random.default_rng(0)
    x = protein.positions + rng.normal(0, 0.1, (25, len(protein.positions), 3))
    forces = rng.normal(0, 1, x.shape)
    np.save(tmp_path / "f.npy", forces)
    top = mdtraj.load_topology(str(tmp_path / "top.pdb"))
    for name in ("run.xtc", "run.dcd", "run.trr"):
        mdtraj.Trajectory(x / NM, top).save(str(tmp_path / name))
        (piece,) = dynamics_pieces(tmp_path / "top.pdb", tmp_path / name, tmp_path / "f.npy", "kJ/mol/nm", 310.0)
        assert piece.positions == pytest.approx(x, abs=0.006)
        assert piece.forces == pytest.approx(forces * KJ_PER_MOL / NM, abs=1e-12)
        assert piece.temperature == 310.0
    source = open_dynamics(tmp_path / "top.pdb")
    assert source.sequence == "GYD"
    assert source.pairs is None
    np.save(tmp_path / "short.npy", forces[:20])
    with pytest.raises(InputError, match="cannot be read as a trajectory"):
        list(dynamics_pieces(tmp_path / "top.pdb", tmp_path / "none.xtc", tmp_path / "f.npy", "eV/A", 310.0))
    with pytest.raises(InputError, match="One force for every atom"):
        list(dynamics_pieces(tmp_path / "top.pdb", tmp_path / "run.xtc", tmp_path / "short.npy", "eV/A", 310.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"starts": ("melted",)}, "melted"),
        ({"interval": 3.0}, "divide 20"),
        ({"timestep": 3.0}, "whole number of steps"),
        ({"temperatures": (300.0, 300.0)}, "different"),
        ({"starts": ("extended", "extended")}, "each start once"),
        ({"starts": ("pulled",), "system": SystemConfig(water="tip3p")}, "out of its box"),
        ({"exchange": True, "system": SystemConfig(water="tip3p")}, "explicit water"),
    ],
)
def test_settings_that_make_no_sense(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        ReferenceConfig(**settings)
