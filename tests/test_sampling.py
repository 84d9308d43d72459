"""Geometries: reproducible, physical where physics says what they must be, guarded, thinned, resumable."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes

from distillase.ase_calcs.errors import InputError
from distillase.ase_calcs.units import KB
from distillase.datasets.sampling import (
    MDConfig,
    SamplingConfig,
    descriptors,
    drop_duplicates,
    farthest_points,
    sample_geometries,
    sample_with_notes,
)
from distillase.datasets.sampling import jobs as jobs_module
from distillase.datasets.sampling.displacements import boltzmann_factor, displace_along_modes, hessian, rattle
from distillase.datasets.sampling.dynamics import run_trajectory
from distillase.datasets.sampling.guards import Guard
from distillase.datasets.structure import Structure


class Tethers(Calculator):
    """Every atom on a spring (eV/Å²) to its place on a grid 10 Å wide."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012
    stiffness = 5.0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        arms = self.atoms.positions - grid(len(self.atoms))
        self.results = {"energy": 0.5 * self.stiffness * (arms**2).sum(), "forces": -self.stiffness * arms}


class Spring(Calculator):
    """Two atoms on a spring of 30 eV/Å² that is 1 Å long."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012
    stiffness = 30.0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        arm = self.atoms.positions[1] - self.atoms.positions[0]
        length = np.linalg.norm(arm)
        force = self.stiffness * (length - 1.0) * arm / length
        self.results = {"energy": 0.5 * self.stiffness * (length - 1.0) ** 2, "forces": np.array([force, -force])}


class Repulsion(Calculator):
    """Drives atoms apart with a constant force: every molecule falls apart, and gets hot."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, force: float = 2.0):
        super().__init__()
        self.force = force

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        arms = self.atoms.positions - self.atoms.positions.mean(axis=0)
        lengths = np.linalg.norm(arms, axis=1, keepdims=True) + 1e-9
        self.results = {"energy": -self.force * lengths.sum(), "forces": self.force * arms / lengths}


def grid(count: int) -> np.ndarray:
    return 10.0 * np.array([[k % 8, k // 8, 0.0] for k in range(count)])


def ethanol() -> Structure:
    atoms = molecule("CH3CH2OH")
    return Structure(atoms.numbers, atoms.positions, group="ethanol", smiles="CCO")


def methane() -> Structure:
    atoms = molecule("CH4")
    return Structure(atoms.numbers, atoms.positions, group="methane", smiles="C")


def embedded(smiles: str, seed: int = 3) -> Structure:
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    mol = chem.AddHs(chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, seed) == 0
    numbers = np.array([a.GetAtomicNum() for a in mol.GetAtoms()])
    return Structure(numbers, mol.GetConformer().GetPositions(), group=smiles, smiles=smiles)


CHEAP = SamplingConfig(
    conformers=4,
    rattled=5,
    normal_modes=5,
    mode_surface="mmff94",
    md=MDConfig(n_frames=13, temperatures_K=(300.0, 600.0), stride=5, equilibration=10, surface="mmff94"),
)


def make(molecules, config=CHEAP, **options):
    pytest.importorskip("rdkit")
    return sample_geometries(molecules, config, **({"teacher": "mmff94", "seed": 1} | options))


def free_guard(count: int) -> Guard:
    return Guard(np.ones(count, dtype=int), None, 0.0, np.zeros((3, 3)), np.zeros(3, dtype=bool))


def as_bytes(structures) -> list[tuple[str, str, bytes]]:
    return [(s.group, s.origin, s.positions.tobytes()) for s in structures]


# --- one seed, one set ---------------------------------------------------------------------------------------------


def test_one_seed_gives_one_set_whatever_the_number_of_workers():
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    first = make([ethanol(), methane()])
    assert as_bytes(make([ethanol(), methane()], workers=2)) == as_bytes(first)
    assert as_bytes(make([ethanol(), methane()])) == as_bytes(first)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
    other = make([ethanol(), methane()], seed=2)
    assert not {p for _, _, p in as_bytes(other)[2:]} & {p for o, _, p in as_bytes(first)[2:] if "md" in o}


def test_a_molecule_gets_the_same_geometries_alone_and_in_company():
    alone = as_bytes(make([ethanol()]))
    together = as_bytes(make([methane(), ethanol()]))
    assert [row for row in together if row[0] == "ethanol"] == alone


def test_counts_and_origins():
    structures = make([ethanol()], replace(CHEAP, dedup_rmsd=0.0))
    counts = Counter(s.origin for s in structures)
    conformers = sum(n for origin, n in counts.items() if origin.startswith("conformer/"))
    assert 1 <= conformers <= 4
    assert counts["input"] == 1
    assert counts["rattle/000"] == counts["mode/000"] == 5
    # 13 frames over two temperatures and two replicas, each trajectory with a name of its own.
    md = {origin: n for origin, n in counts.items() if origin.startswith("md-")}
    assert md == {"md-300K/000": 4, "md-600K/000": 3, "md-300K/001": 3, "md-600K/001": 3}
    for structure in structures:
        assert structure.group == "ethanol"
        assert structure.smiles == "CCO"
        assert np.array_equal(structure.numbers, ethanol().numbers)
    assert len({s.key() for s in structures}) == len(structures)


def test_two_molecules_of_one_group_never_share_a_trajectory_name():
    other = replace(methane(), group="ethanol")
    owners: dict[str, set[int]] = {}
    for structure in make([ethanol(), other]):
        owners.setdefault(structure.origin, set()).add(len(structure))
    assert all(len(atoms) == 1 for origin, atoms in owners.items() if origin != "input")


def test_sampling_processes_do_not_load_torch():
    code = "import sys, distillase.datasets.sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- physics -------------------------------------------------------------------------------------------------------


def test_dynamics_is_canonical():
    """Springs: ⟨x²⟩ = k_B T/k, less 1/N for the centre of mass that is moved back."""
    count, temperature = 64, 400.0
    atoms = Atoms("H" * count, grid(count))
    config = MDConfig(n_frames=150, stride=20, equilibration=400, friction=0.05)
    frames, reason = run_trajectory(
        atoms,
        Tethers(),
        n_frames=150,
        temperature_K=temperature,
        config=config,
        guard=free_guard(count),
        rng=np.random.default_rng(0),
    )
    assert reason == ""
    assert frames.shape == (150, count, 3)
    expected = KB * temperature / Tethers.stiffness * (1.0 - 1.0 / count)
    # 28 800 numbers, correlated over a few frames: the standard error is about 1.5 %.
    assert ((frames - atoms.positions) ** 2).mean() == pytest.approx(expected, rel=0.05)
    np.testing.assert_allclose(frames.mean(axis=1), np.broadcast_to(atoms.positions.mean(axis=0), (150, 3)), atol=1e-9)


def test_normal_modes_of_a_spring():
    """⟨(r − r₀)²⟩ = k_B T/k whatever the masses, and neither the centre of mass nor the axis moves."""
    atoms = Atoms("HCl", [[0, 0, 0], [0.6, 0.8, 0]])
    second = hessian(atoms, Spring())
    axis = np.array([0.6, 0.8, 0.0])
    np.testing.assert_allclose(second[:3, :3], Spring.stiffness * np.outer(axis, axis), atol=1e-3)
    factor = boltzmann_factor(atoms, second, floor=1.0)
    frames, notes = displace_along_modes(
        atoms, factor, 4000, temperatures_K=(300.0,), guard=free_guard(2), rng=np.random.default_rng(0)
    )
    assert notes == []
    arms = frames[:, 1] - frames[:, 0]
    stretch = arms @ axis - 1.0
    assert stretch.mean() == pytest.approx(0.0, abs=2e-3)
    assert stretch.var() == pytest.approx(KB * 300.0 / Spring.stiffness, rel=0.07)  # three standard errors
    assert np.abs(arms - (arms @ axis)[:, None] * axis).max() < 1e-6
    centre = np.einsum("n,mnc->mc", atoms.get_masses(), frames - atoms.positions)
    assert np.abs(centre).max() < 1e-6


def test_normal_modes_share_the_energy_equally():
    """The harmonic energy is k_B T/2 for each of 3N − 6 modes, and grows with the temperature."""
    pytest.importorskip("rdkit")
    from distillase.ase_calcs.teachers import make_teacher
    from distillase.datasets.sampling.displacements import relax

    atoms = molecule("CH3OH")
    surface = make_teacher("mmff94")
    atoms.positions, converged = relax(atoms, surface)
    assert converged
    second = hessian(atoms, surface)
    factor = boltzmann_factor(atoms, second, floor=20.0)
    for temperature in (100.0, 1000.0):
        frames, _ = displace_along_modes(
            atoms, factor, 1500, temperatures_K=(temperature,), guard=free_guard(6), rng=np.random.default_rng(1)
        )
        steps = (frames - atoms.positions).reshape(len(frames), -1)
        energy = 0.5 * np.einsum("mi,ij,mj->m", steps, second, steps).mean()
        assert energy == pytest.approx((3 * 6 - 6) / 2 * KB * temperature, rel=0.04)  # standard error 1 %


def test_rattling_has_its_sigma_and_keeps_atoms_apart():
    atoms = molecule("CH4")
    guard = Guard.of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, min_distance=0.6)
    frames, notes = rattle(atoms.positions[None], 800, sigma=0.03, guard=guard, rng=np.random.default_rng(0))
    assert notes == []
    assert (frames - atoms.positions).std() == pytest.approx(0.03, rel=0.03)
    frames, notes = rattle(atoms.positions[None], 20, sigma=0.6, guard=guard, rng=np.random.default_rng(0))
    assert len(frames) < 20
    assert "given up" in notes[0]
    assert all(guard.fault(frame) == "" for frame in frames)


def test_butane_has_two_conformers():
    structures = make([embedded("CCCC")], SamplingConfig(conformers=30, dedup_rmsd=0.1))
    dihedrals = []
    for structure in structures:
        if structure.origin.startswith("conformer/"):
            angle = structure.to_atoms().get_dihedral(0, 1, 2, 3)
            dihedrals.append(min(angle, 360.0 - angle))
    # gauche⁺ and gauche⁻ are mirror images and count once; 180° and 65° ± 5° by any force field.
    assert sorted(dihedrals) == pytest.approx([65.0, 180.0], abs=5.0)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_conformers_keep_the_handedness_of_the_input(seed):
    def handedness(positions: np.ndarray) -> float:
        return float(np.sign(np.linalg.det(positions[[0, 2, 3]] - positions[1])))

    alanine = embedded("CC(N)C(=O)O", seed)  # the SMILES does not say which hand, the geometry does
    for mirrored in (False, True):
        sign = np.array([1.0, 1.0, -1.0 if mirrored else 1.0])
        start = replace(alanine, positions=alanine.positions * sign)
        hands = {handedness(s.positions) for s in make([start], SamplingConfig(conformers=6))}
        assert hands == {handedness(start.positions)}


def test_dynamics_on_the_teacher():
    pytest.importorskip("tblite")
    md = MDConfig(n_frames=4, temperatures_K=(500.0,), replicas=1, stride=5, equilibration=0)
    config = SamplingConfig(conformers=0, dedup_rmsd=0.0, md=md)
    once = make([ethanol()], config, teacher="gfn2-xtb")
    assert Counter(s.origin for s in once) == {"input": 1, "md-500K/000": 4}
    assert as_bytes(make([ethanol()], config, teacher="gfn2-xtb")) == as_bytes(once)


def test_a_crystal_is_rattled_and_run_on_its_teacher_without_rdkit():
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    copper = Structure(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, group="copper")
    config = SamplingConfig(
        rattled=3,
        normal_modes=2,
        dedup_rmsd=0.0,
        md=MDConfig(n_frames=4, temperatures_K=(300.0,), replicas=1, stride=5, equilibration=10),
    )
    structures = sample_geometries([copper], config, teacher="ase.calculators.emt:EMT", seed=0)
    counts = Counter(s.origin for s in structures)
    assert counts == {"input": 1, "rattle/000": 3, "mode/000": 2, "md-300K/000": 4}
    assert all(np.array_equal(s.cell, copper.cell) and s.pbc.all() for s in structures)
    on_mmff = replace(config, normal_modes=0, md=replace(config.md, surface="mmff94"))
    sample = sample_with_notes([copper], on_mmff, teacher="ase.calculators.emt:EMT", seed=0)
    assert any("periodic" in note for note in sample.notes)


# --- guards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "md", "says"),
    [
        (f"{__name__}:Repulsion?force=2.0", {}, "broke"),
        (f"{__name__}:Repulsion?force=200.0", {"stride": 1}, "force of 200 eV/Å"),
        ("gfn2-xtb?max_iterations=2", {}, "not converged"),
    ],
)
def test_a_trajectory_that_goes_wrong_is_cut_with_a_note(teacher, md, says):
    pytest.importorskip("tblite")
    config = MDConfig(**({"n_frames": 50, "temperatures_K": (300.0,), "replicas": 1, "equilibration": 0} | md))
    sample = sample_with_notes([methane()], SamplingConfig(conformers=0, md=config), teacher=teacher, seed=0)
    assert len(sample.notes) == 1
    assert "methane, md-300K/000: cut after" in sample.notes[0]
    assert says in sample.notes[0]
    bonds = [np.linalg.norm(s.positions[1:] - s.positions[0], axis=1).max() for s in sample.structures]
    assert max(bonds) < 1.6 * 1.09  # Å; nothing dissociated is kept


def test_the_guard_sees_clashes_breaks_and_new_bonds():
    atoms = molecule("H2O")
    guard = Guard.of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, min_distance=0.6)
    assert guard.fault(atoms.positions) == ""
    for shift, says in ((-0.5, "clash"), (1.5, "broke"), (np.nan, "finite")):
        moved = atoms.positions.copy()
        arm = moved[1] - moved[0]
        moved[1] += shift * arm / np.linalg.norm(arm)
        assert says in guard.fault(moved)
    near = atoms.positions.copy()
    near[2] = near[1] + [0.0, 0.0, 0.65]  # H–H, while O–H is still within reach
    near[2] += 0.15 * (near[0] - near[2])
    assert guard.fault(near) != ""


def test_an_open_shell_on_mmff94_is_a_note_not_a_crash():
    radical = Structure(np.array([6, 1, 1, 1]), molecule("CH3").positions, multiplicity=2, group="methyl")
    pytest.importorskip("rdkit")
    sample = sample_with_notes([radical, methane()], CHEAP, teacher="mmff94", seed=0)
    assert any("methyl" in note and "closed shells" in note for note in sample.notes)
    assert not any("methane" in note for note in sample.notes)


# --- thinning ------------------------------------------------------------------------------------------------------


def test_duplicates_are_found_behind_motion_reflection_and_relabelling():
    rng = np.random.default_rng(0)
    atoms = molecule("CH3CH2OH")
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    hydrogens = np.flatnonzero(atoms.numbers == 1)
    order = np.arange(len(atoms))
    order[hydrogens] = rng.permutation(hydrogens)
    turned = atoms.positions @ rotation.T + [1.0, 2.0, 3.0]
    bent = atoms.positions + rng.normal(0.0, 0.1, atoms.positions.shape)
    geometries = np.array([atoms.positions, turned, turned[order], bent, bent @ np.diag([1.0, 1.0, -1.0])])
    rows = descriptors(atoms.numbers, geometries)
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-12)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-12)
    assert drop_duplicates(rows, 0.02).tolist() == [0, 3]
    assert drop_duplicates(rows, 0.0).tolist() == [0, 1, 2, 3, 4]
    # A swap of unlike atoms is another geometry.
    swapped = atoms.positions.copy()
    swapped[[0, 2]] = swapped[[2, 0]]
    assert len(drop_duplicates(descriptors(atoms.numbers, np.array([atoms.positions, swapped])), 0.02)) == 2


def test_descriptors_of_a_crystal_use_the_nearest_image():
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True)
    moved = atoms.copy()
    moved.positions += [1.3, 0.2, -0.7]
    moved.wrap()
    rows = descriptors(
        atoms.numbers, np.array([atoms.positions, moved.positions]), cell=atoms.cell.array, pbc=atoms.pbc
    )
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-9)


def test_farthest_points_cover_what_there_is():
    line = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [10.0], [9.9]])
    assert farthest_points(line, 3).tolist() == [0, 5, 3]
    cloud = np.random.default_rng(0).normal(size=(300, 4))
    chosen = farthest_points(cloud, 30)
    assert len(set(chosen.tolist())) == 30
    distances = np.linalg.norm(cloud[:, None] - cloud[None], axis=2)
    radius = distances[:, chosen].min(axis=1).max()
    # Gonzalez: all chosen are at least the covering radius apart, which bounds it by twice the best one.
    apart = distances[np.ix_(chosen, chosen)][~np.eye(30, dtype=bool)].min()
    assert apart >= radius - 1e-9
    assert farthest_points(np.zeros((5, 3)), 3).tolist() == [0, 1, 2]
    assert farthest_points(cloud, 0).tolist() == list(range(300))


def test_selection_keeps_the_number_asked_for_of_every_molecule():
    counts = Counter(s.group for s in make([ethanol(), methane()], replace(CHEAP, select=7)))
    assert counts == {"ethanol": 7, "methane": 7}


# --- going on after an interruption --------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    whole = as_bytes(make([ethanol()]))
    done: list[str] = []
    perform = jobs_module.perform

    def until(limit):
        def counting(job, advance):
            if len(done) == limit:
                raise KeyboardInterrupt
            done.append(job.origin)
            return perform(job, advance)

        return counting

    monkeypatch.setattr(jobs_module, "perform", until(4))
    with pytest.raises(KeyboardInterrupt):
        make([ethanol()], cache_dir=tmp_path)
    monkeypatch.setattr(jobs_module, "perform", until(100))
    assert as_bytes(make([ethanol()], cache_dir=tmp_path)) == whole
    assert len(done) == len(set(done)) == 7  # conformers, rattling, modes, four trajectories: each once
    # A damaged file is as good as none; a key that changed finds nothing.
    victim = next(tmp_path.glob("md-300K-000*.npz"))
    victim.write_bytes(victim.read_bytes()[:100])
    assert as_bytes(make([ethanol()], cache_dir=tmp_path)) == whole
    assert done[7:] == ["md-300K/000"]
    make([ethanol()], replace(CHEAP, md=replace(CHEAP.md, friction=0.02)), cache_dir=tmp_path)
    assert sorted(done[8:]) == ["md-300K/000", "md-300K/001", "md-600K/000", "md-600K/001"]


class Recorder:
    """A progress that adds up."""

    def __init__(self):
        self.bars: list[list[float]] = []

    def task(self, description, total):
        from contextlib import contextmanager

        @contextmanager
        def bar():
            self.bars.append([total, 0.0])
            yield self

        return bar()

    def advance(self, amount=1.0, note=""):
        self.bars[-1][1] += amount

    def say(self, message):
        pass


@pytest.mark.parametrize("teacher", ["mmff94", f"{__name__}:Repulsion"])
def test_bars_end_full(teacher, tmp_path):
    config = CHEAP if teacher == "mmff94" else SamplingConfig(conformers=0, md=MDConfig(n_frames=40))
    for _ in range(2):  # the second time from the cache
        recorder = Recorder()
        make([methane()], config, teacher=teacher, progress=recorder, cache_dir=tmp_path)
        assert len(recorder.bars) == 2
        assert all(done == pytest.approx(total) for total, done in recorder.bars)


# --- configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MDConfig(n_frames=-1),
        lambda: MDConfig(n_frames=1.5),
        lambda: MDConfig(stride=0),
        lambda: MDConfig(timestep=5.0),
        lambda: MDConfig(temperatures_K=()),
        lambda: MDConfig(temperatures_K=(0.0,)),
        lambda: MDConfig(surface="gfn2-xtb"),
        lambda: MDConfig(friction=float("nan")),
        lambda: SamplingConfig(rattle_sigma=0.0),
        lambda: SamplingConfig(conformers=True),
        lambda: SamplingConfig(dedup_rmsd=-0.1),
        lambda: sample_geometries([], SamplingConfig(), teacher="mmff94", seed=0),
        lambda: sample_geometries([methane()], SamplingConfig(), teacher="mmff95", seed=0),
    ],
)
def test_what_cannot_be_sampled_is_refused(wrong):
    with pytest.raises(InputError):
        wrong()
