"""Labelling: nothing crashes a run, nothing labelled is lost, and a label depends on its structure alone."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule

from distillase.ase_calcs.errors import DataError, InputError
from distillase.ase_calcs.teachers import make_teacher
from distillase.datasets.labelling import LabelConfig, check_structures, label_structures, worker_pool
from distillase.datasets.labelling.config import TeacherStamp
from distillase.datasets.labelling.parts import Ledger
from distillase.datasets.store import Dataset
from distillase.datasets.structure import Structure

# A harmonic calculator that notes every call in a side file, and misbehaves where the first atom's x says so.
CALCULATORS = """
import ctypes, os, time
import numpy as np
from ase.calculators.calculator import Calculator, CalculationFailed

HANG, CRASH, FAIL, BUG, NAN, PULL = 101.0, 102.0, 103.0, 104.0, 105.0, 106.0


class Springs(Calculator):
    implemented_properties = ["energy", "forces", "charges", "dipole", "energies"]

    def __init__(self, log="", seconds=0.0, stiffness=1.0):
        super().__init__()
        self.log, self.seconds, self.stiffness = log, seconds, stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        start = time.perf_counter()
        time.sleep(self.seconds)
        x = self.atoms.positions
        self.misbehave(x[0, 0])
        energies = 0.5 * self.stiffness * ((x - x.mean(axis=0)) ** 2).sum(axis=1)
        self.results = {
            "energy": energies.sum(), "energies": energies, "forces": -self.stiffness * (x - x.mean(axis=0)),
            "charges": np.zeros(len(x)), "dipole": np.zeros(3),
        }
        if x[0, 0] == NAN:
            self.results["forces"][0] = np.nan
        if x[0, 0] == PULL:
            self.results["forces"][0] = 150.0
        log = self.log or os.environ.get("SPRINGS_LOG", "")
        if log:
            line = f"{os.getpid()} {time.perf_counter() - start:.6f} {x[0].tobytes().hex()}\\n"
            with open(log, "ab", buffering=0) as file:
                file.write(line.encode())

    def misbehave(self, flag):
        if flag == HANG:
            ctypes.PyDLL(None).sleep(1000)  # in C, and holding Python's lock
        if flag == CRASH:
            ctypes.string_at(0)
        if flag == FAIL:
            raise CalculationFailed("SCF not converged in 250 cycles")
        if flag == BUG:
            raise KeyError("oops")
"""
FLAGS = {"hang": 101.0, "crash": 102.0, "fail": 103.0, "bug": 104.0, "nan": 105.0, "pull": 106.0}

KILLED_SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_labelling_frames import frames
from distillase.datasets.labelling import LabelConfig, label_structures

class Say:
    def say(self, message): print(message, flush=True)
    def task(self, description, total):
        from distillase.ase_calcs.progress import SilentProgress
        return SilentProgress().task(description, total)

config = LabelConfig(workers=2, batch_seconds=float(sys.argv[4]))
label_structures(frames(sys.argv[3]), Path(sys.argv[2]), teacher=sys.argv[3], config=config, progress=Say())
"""
# The script and the test make the same frames.
FRAMES = """
import numpy as np
from ase.build import molecule
from distillase.datasets.structure import Structure

def frames(teacher):
    ethanol, rng = molecule("CH3CH2OH"), np.random.default_rng(5)
    n = 500 if teacher.startswith("gfn2") else 240
    return [
        Structure(ethanol.numbers, ethanol.positions + 0.03 * rng.normal(size=(9, 3)), group="CCO", smiles="CCO")
        for _ in range(n)
    ]
"""


def ethanol(n: int, seed: int = 0) -> list[Structure]:
    atoms, rng = molecule("CH3CH2OH"), np.random.default_rng(seed)
    return [
        Structure(
            atoms.numbers, atoms.positions + 0.03 * rng.normal(size=(9, 3)), group="ethanol", origin=f"rattle/{i}"
        )
        for i in range(n)
    ]


def flagged(structure: Structure, kind: str) -> Structure:
    """The structure moved so that the test calculator misbehaves on it."""
    shift = [FLAGS[kind] - structure.positions[0, 0], 0.0, 0.0]
    positions = structure.positions + shift
    positions[0, 0] = FLAGS[kind]
    return replace(structure, positions=positions)


@pytest.fixture(scope="module")
def calculators(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calculators")
    (folder / "springs_for_labelling.py").write_text(CALCULATORS)
    (folder / "test_labelling_frames.py").write_text(FRAMES)
    (folder / "script.py").write_text(KILLED_SCRIPT)
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def pool(calculators):
    with worker_pool(LabelConfig(workers=2)) as running:
        yield running


def springs(log: Path | None = None, **options) -> str:
    if log is not None:
        options["log"] = f"'{log}'"
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return "springs_for_labelling:Springs" + (f"?{query}" if query else "")


def calls(log: Path) -> Counter:
    """How often the test calculator was asked about each structure."""
    return Counter(line.split()[2] for line in log.read_text().splitlines()) if log.exists() else Counter()


def first_atom(structure: Structure) -> str:
    return structure.positions[0].tobytes().hex()


def arrays(path: Path) -> dict[str, bytes]:
    with Dataset(path) as dataset:
        contents = {name: np.asarray(dataset.array(name)) for name in sorted(dataset.fields)}
    return {name: repr(a.tolist()).encode() if a.dtype == object else a.tobytes() for name, a in contents.items()}


def test_the_local_scheduler_listens_on_the_loopback_interface_only(pool):
    """Its web server too, on any free port: 8787, the default, may be another cluster's, and dask would warn."""
    scheduler = pool.client.cluster.scheduler
    assert scheduler.address.startswith("tcp://127.0.0.1:")
    assert scheduler.http_server.address == "127.0.0.1"
    assert scheduler.http_server.port != 8787


# --- guards -----------------------------------------------------------------------------------------------------------


def test_guards_name_the_reason():
    config = LabelConfig()
    good = ethanol(1)[0]
    ammonium = Structure(
        np.array([7, 1, 1, 1, 1]), np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0.0]])
    )
    clash = replace(good, positions=np.where(np.arange(9)[:, None] == 1, good.positions[0] + 0.05, good.positions))
    nan = replace(good, positions=np.where(np.arange(9)[:, None] == 3, np.nan, good.positions))
    empty = Structure(np.zeros(0, dtype=int), np.zeros((0, 3)))
    atom = Structure(np.array([2]), np.zeros((1, 3)))
    structures = [good, ammonium, replace(ammonium, charge=1), clash, nan, empty, atom]
    reasons = check_structures(structures, config)
    assert [bool(reason) for reason in reasons] == [False, True, False, True, True, True, False]
    assert "11 electrons" in reasons[1]
    assert "C0–C1" in reasons[3]
    assert "0.087 Å" in reasons[3]  # 0.05·√3
    assert "not finite" in reasons[4]


def test_minimum_distance_sees_periodic_images():
    copper = bulk("Cu", cubic=True)
    crystal = Structure(copper.numbers, copper.positions, copper.cell.array, copper.pbc)
    # Two atoms 0.1 Å apart across the boundary, 9.9 Å apart inside the cell.
    periodic = np.ones(3, dtype=bool)
    across = Structure(np.array([18, 18]), np.array([[0.05, 5, 5], [9.95, 5, 5]]), np.eye(3) * 10, periodic)
    # An atom on top of its own image.
    squeezed = Structure(np.array([18]), np.zeros((1, 3)), np.diag([0.3, 10, 10]), periodic)
    flat = Structure(np.array([18]), np.zeros((1, 3)), np.zeros((3, 3)), periodic)
    reasons = check_structures([crystal, across, squeezed, flat, replace(across, pbc=np.zeros(3, bool))], LabelConfig())
    assert [bool(reason) for reason in reasons] == [False, True, True, True, False]
    assert "0.100 Å" in reasons[1]
    assert "no volume" in reasons[3]


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_the_teachers_whatever_the_order(tmp_path, pool):
    rng = np.random.default_rng(3)
    water = molecule("H2O")
    cations = [
        Structure(
            np.array([8, 1, 1, 1]), np.array([[0, 0, 0.1], [0.95, 0, 0], [-0.5, 0.8, 0], [-0.5, -0.8, 0]]), charge=1
        )
    ]
    radicals = [
        Structure(np.array([8, 1]), np.array([[0, 0, 0], [0, 0, 0.97 + 0.02 * i]]), multiplicity=2) for i in range(3)
    ]
    waters = [Structure(water.numbers, water.positions + 0.02 * rng.normal(size=(3, 3))) for _ in range(20)]
    structures = ethanol(40) + waters + cations + radicals
    one = label_structures(structures, tmp_path / "one", teacher="gfn2-xtb", pool=pool)
    order = rng.permutation(len(structures))
    other = label_structures([structures[i] for i in order], tmp_path / "two", teacher="gfn2-xtb", pool=pool)
    with Dataset(one.dataset) as first, Dataset(other.dataset) as second:
        assert len(first) == len(structures)
        for place, index in enumerate(order):
            a, b = first.labels(int(index)), second.labels(place)
            structure = structures[index]
            calculator = make_teacher("gfn2-xtb", structure.charge, structure.multiplicity)
            atoms = structure.to_atoms()
            assert a.energy == b.energy == calculator.get_property("energy", atoms)
            for name in ("forces", "charges", "dipole", "energies"):
                np.testing.assert_array_equal(getattr(a, name), calculator.get_property(name, atoms))
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert first.provenance["teacher"] == "gfn2-xtb"
        assert first.provenance["teacher_version"].startswith("tblite ")


def test_equal_structures_are_labelled_once_and_labels_are_reused(tmp_path, pool):
    log = tmp_path / "log"
    structures = ethanol(30)
    doubled = structures + structures[:10]
    result = label_structures(doubled, tmp_path / "out", teacher=springs(log), pool=pool)
    assert result.n_labelled == 30
    assert set(calls(log).values()) == {1}
    with Dataset(result.dataset) as dataset:
        assert len(dataset) == 40
        np.testing.assert_array_equal(dataset.labels(3).forces, dataset.labels(33).forces)
    more = label_structures(doubled + ethanol(5, seed=9), tmp_path / "out", teacher=springs(log), pool=pool)
    assert (more.n_labelled, more.n_reused) == (5, 30)
    assert set(calls(log).values()) == {1}


def test_only_the_lost_part_is_labelled_again(tmp_path, pool):
    log = tmp_path / "log"
    structures = ethanol(40)
    result = label_structures(structures, tmp_path, teacher=springs(log), pool=pool)
    before = arrays(result.dataset)
    part = max((tmp_path / "labels").glob("*.npz"), key=lambda path: path.stat().st_size)
    with np.load(part) as content:
        lost = len(content["keys"])
    part.write_bytes(part.read_bytes()[:-100])
    again = label_structures(structures, tmp_path, teacher=springs(log), pool=pool)
    assert again.n_labelled == lost
    assert sum(calls(log).values()) == 40 + lost
    assert arrays(again.dataset) == before


def test_another_teacher_in_the_same_folder_is_refused(tmp_path, pool):
    label_structures(ethanol(3), tmp_path, teacher=springs(stiffness=1.0), pool=pool)
    with pytest.raises(DataError, match=r"stiffness=1\.0.*stiffness=2\.0.*another output folder"):
        label_structures(ethanol(3), tmp_path, teacher=springs(stiffness=2.0), pool=pool)


def test_a_warm_guess_is_refused(tmp_path):
    with pytest.raises(InputError, match="warm SCF guess"):
        label_structures(ethanol(3), tmp_path, teacher="gfn2-xtb?guess=warm")


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_refusals_are_rows_with_a_reason(tmp_path, pool):
    structures = ethanol(30)
    kinds = {4: "fail", 9: "bug", 14: "nan", 19: "pull", 24: "fail"}
    structures = [flagged(s, kinds[i]) if i in kinds else s for i, s in enumerate(structures)]
    structures[2] = replace(structures[2], multiplicity=2)
    log = tmp_path / "log"
    result = label_structures(structures, tmp_path, teacher=springs(log), pool=pool)
    reasons = {index: reason for index, _, reason in result.refused}
    assert sorted(reasons) == [2, *sorted(kinds)]
    assert "26 electrons" in reasons[2]
    assert "SCF not converged" in reasons[4]
    assert "KeyError: 'oops'" in reasons[9]
    assert "not finite" in reasons[14]
    assert "259.8 eV/Å on atom 0" in reasons[19]  # 150·√3
    with open(tmp_path / "refused.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == sorted(reasons)
    assert rows[1]["origin"] == "rattle/4"
    assert [row["key"] for row in rows] == [structures[i].key() for i in sorted(reasons)]
    with Dataset(result.dataset) as dataset:
        kept = [s for i, s in enumerate(structures) if i not in reasons]
        np.testing.assert_array_equal(dataset.positions, np.concatenate([s.positions for s in kept]))
    # A higher ceiling needs no teacher; what is settled is not asked again, an unexpected exception is.
    before = sum(calls(log).values())
    higher = label_structures(structures, tmp_path, teacher=springs(log), config=LabelConfig(max_force=300), pool=pool)
    assert [index for index, _, _ in higher.refused] == [2, 4, 9, 14, 24]
    assert sum(calls(log).values()) == before


def test_all_refused_is_an_error(tmp_path, pool):
    structures = [flagged(s, "fail") for s in ethanol(4)]
    with pytest.raises(DataError, match=r"None of 4 structures.*4× SCF not converged"):
        label_structures(structures, tmp_path, teacher=springs(), pool=pool)
    assert not (tmp_path / "dataset.h5").exists()


def test_hanging_and_crashing_teachers_cost_only_their_structure(tmp_path, pool):
    """The teacher hangs in C holding Python's lock, or dies of a segmentation fault: the other structures are kept."""
    kinds = {7: "hang", 13: "crash"}
    structures = [flagged(s, kinds[i]) if i in kinds else s for i, s in enumerate(ethanol(40))]
    log = tmp_path / "log"
    config = LabelConfig(timeout_s=2.5, crash_retries=1)
    result = label_structures(structures, tmp_path, teacher=springs(log), config=config, pool=pool)
    reasons = {index: reason for index, _, reason in result.refused}
    assert sorted(reasons) == [7, 13]
    assert reasons[7] == "time-out: no answer within 2.5 s"
    assert reasons[13] == "the worker process died 2 times on it (Segmentation fault)"
    assert result.n_labelled == 38
    again = label_structures(structures, tmp_path, teacher=springs(log), config=config, pool=pool)
    assert (again.n_labelled, again.n_reused, again.refused) == (0, 38, result.refused)


# --- processes --------------------------------------------------------------------------------------------------------


def test_workers_are_single_threaded_and_small_and_leave_no_trace(pool):
    def look() -> tuple[dict[str, str | None], bool, int]:
        import os
        import sys

        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_MAX_ACTIVE_LEVELS")
        return {name: os.environ.get(name) for name in names}, "torch" in sys.modules, os.getpid()

    pool.client.wait_for_workers(2)  # one may still be starting again after the test before
    answers = pool.client.run(look)
    assert len({pid for _, _, pid in answers.values()}) == 2
    for environment, has_torch, _ in answers.values():
        assert set(environment.values()) == {"1"}
        assert not has_torch
    assert "PYTHONHASHSEED" not in os.environ or os.environ["PYTHONHASHSEED"] != "6640"
    assert not [h for h in logging.getLogger().handlers if "distributed" in type(h).__module__]
    assert all(address.startswith("tcp://127.0.0.1:") for address in answers)


def test_a_scheduler_address_is_used(tmp_path, pool):
    config = LabelConfig(scheduler=pool.client.scheduler.address)
    result = label_structures(ethanol(12), tmp_path, teacher=springs(), config=config)
    assert result.n_labelled == 12
    assert pool.size == 2  # they are not ours to stop


def start(folder: Path, out: Path, teacher: str, batch_seconds: float, log: Path | None = None) -> subprocess.Popen:
    command = [sys.executable, "script.py", str(folder), str(out), teacher, str(batch_seconds)]
    environment = {**os.environ, "SPRINGS_LOG": str(log or "")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A shell starts background jobs with SIGINT ignored, and a child would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def kill_tree(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def parts(out: Path) -> list[Path]:
    return list((out / "labels").glob("*.npz"))


def wait_for_new_part(process: subprocess.Popen, out: Path, known: int) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and len(parts(out)) <= known:
        assert time.monotonic() < deadline, "no label in a minute"
        time.sleep(0.005)


def test_kill_9_loses_no_label(tmp_path, calculators, pool):
    """Whatever the moment: nothing durable is recomputed, a worker loses at most a batch, the dataset is the same."""
    from test_labelling_frames import frames  # as the killed process makes them

    batch_seconds, teacher = 0.2, springs(seconds=0.005)
    structures = frames(teacher)
    keys = {first_atom(s): bytes.fromhex(s.key()) for s in structures}
    reference = arrays(label_structures(structures, tmp_path / "reference", teacher=teacher, pool=pool).dataset)
    out, stamp, rng = tmp_path / "out", TeacherStamp.of(teacher), np.random.default_rng()
    durable: set[bytes] = set()
    for attempt in range(3):
        log = tmp_path / f"log{attempt}"
        process = start(calculators, out, teacher, batch_seconds, log)
        if attempt == 1:
            time.sleep(rng.uniform(0.0, 2.0))  # anywhere, most often while starting
        else:
            wait_for_new_part(process, out, len(parts(out)))
            time.sleep(rng.uniform(0.0, 0.2))
        kill_tree(process)
        after = Ledger.scan(out / "labels", stamp).known() if (out / "labels").exists() else set()
        check_run(log, keys, before=durable, after=after, batch_seconds=batch_seconds)
        durable = after
    log = tmp_path / "last"
    process = start(calculators, out, teacher, batch_seconds, log)
    message, _ = process.communicate(timeout=60)
    assert process.returncode == 0, message
    assert f"{len(durable)} of {len(structures)} structures have their label already" in message.decode()
    check_run(log, keys, before=durable, after=set(keys.values()), batch_seconds=batch_seconds)
    assert 0 < len(durable) < len(structures)
    assert arrays(out / "dataset.h5") == reference


def check_run(
    log: Path, keys: dict[str, bytes], *, before: set[bytes], after: set[bytes], batch_seconds: float
) -> None:
    asked = [line.split() for line in log.read_text().splitlines() if line.count(" ") == 2] if log.exists() else []
    assert not {keys[name] for _, _, name in asked} & before  # nothing durable was asked again
    assert before <= after  # nothing durable went away
    for worker in {pid for pid, _, _ in asked}:
        lost = [float(seconds) for pid, seconds, name in asked if pid == worker and keys[name] not in after]
        assert sum(lost) <= batch_seconds + max(lost, default=0.0)


def test_kill_9_with_xtb(tmp_path, calculators, pool):
    from test_labelling_frames import frames

    structures = frames("gfn2-xtb")
    reference = label_structures(structures, tmp_path / "reference", teacher="gfn2-xtb", pool=pool)
    process = start(calculators, tmp_path / "out", "gfn2-xtb", 0.1)
    wait_for_new_part(process, tmp_path / "out", 3)
    kill_tree(process)
    durable = len(Ledger.scan(tmp_path / "out" / "labels", TeacherStamp.of("gfn2-xtb")).labelled)
    result = label_structures(structures, tmp_path / "out", teacher="gfn2-xtb", pool=pool)
    assert result.n_reused == durable > 0
    assert result.n_labelled == len(structures) - durable
    assert arrays(result.dataset) == arrays(reference.dataset)


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path, calculators):
    process = start(calculators, tmp_path, springs(seconds=0.02), 0.2)
    wait_for_new_part(process, tmp_path, 0)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, _ = process.communicate(timeout=30)
    text = output.decode()
    assert "the same command goes on from there" in text
    assert text.count("Traceback") <= 1  # the KeyboardInterrupt that the script does not catch
    assert text.rstrip().endswith("KeyboardInterrupt")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not list((tmp_path / "labels").glob("tmp"))
