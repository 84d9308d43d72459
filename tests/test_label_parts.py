"""Part files and the ledger: what they say, what they notice, and how a run reads many labels at once."""

from __future__ import annotations

import numpy as np
import pytest

from distillase.ase_calcs.errors import DataError
from distillase.datasets.labelling.config import LabelConfig, TeacherStamp
from distillase.datasets.labelling.parts import Ledger, Refusal, exclusive, write_part
from distillase.datasets.labelling.run import _greet
from distillase.datasets.labelling.worker import Greeting, Job
from distillase.datasets.structure import Structure


def test_a_changed_part_is_set_aside(tmp_path):
    stamp = TeacherStamp("t", "1", "{}")
    label = {
        "keys": np.arange(16, dtype=np.uint8).reshape(1, 16),
        "sizes": np.array([1]),
        "energy": np.array([-1.5]),
        "forces": np.zeros((1, 3)),
        "longest_force": np.zeros(1),
        "dipole": np.full((1, 3), np.nan),
    }
    with exclusive(tmp_path):
        part = write_part(tmp_path, "a-0", stamp, label, {})
        write_part(tmp_path, "b-0", stamp, {}, {b"\x01" * 16: Refusal("crash", "why")})
    ledger = Ledger.scan(tmp_path, stamp)
    key = bytes(range(16))
    assert ledger.labels(key).energy == -1.5
    assert ledger.labels(key).dipole is None
    assert ledger.refused == {b"\x01" * 16: Refusal("crash", "why")}
    for damage in (part.read_bytes()[:-7], part.read_bytes()[:200] + b"?" + part.read_bytes()[201:], b""):
        copy = tmp_path / part.name
        original = copy.read_bytes()
        copy.write_bytes(damage)
        torn = Ledger.scan(tmp_path, stamp)
        assert len(torn.damaged) == 1
        assert not torn.labelled
        copy.write_bytes(original)
    with pytest.raises(DataError, match=r"`t` \(1\).*`t` \(2\).*never mixed"):
        Ledger.scan(tmp_path, TeacherStamp("t", "2", "{}"))


def test_one_run_at_a_time(tmp_path):
    with exclusive(tmp_path), pytest.raises(DataError, match="Another run"), exclusive(tmp_path):
        pass


def test_many_labels_at_once_are_those_of_each(tmp_path):
    """Three parts, structures of one to four atoms asked for in any order, fields that some of them lack."""
    stamp, rng = TeacherStamp("t", "1", "{}"), np.random.default_rng(5)
    sizes, keys = rng.integers(1, 5, size=30), [bytes([i]) * 16 for i in range(30)]
    with exclusive(tmp_path):
        for part in range(3):
            own = slice(10 * part, 10 * part + 10)
            n = int(sizes[own].sum())
            arrays = {
                "keys": np.frombuffer(b"".join(keys[own]), dtype=np.uint8).reshape(-1, 16),
                "sizes": sizes[own],
                "energy": rng.normal(size=10),
                "forces": rng.normal(size=(n, 3)),
                "longest_force": np.ones(10),
            }
            if part > 0:
                arrays["charges"] = np.where(rng.uniform(size=n) < 0.1, np.nan, rng.normal(size=n))
                arrays["dipole"] = np.where(rng.uniform(size=(10, 3)) < 0.1, np.nan, 1.0)
            write_part(tmp_path, f"{part}", stamp, arrays, {})
    ledger = Ledger.scan(tmp_path, stamp)
    order = rng.permutation(30)[:25]
    offsets = np.concatenate([[0], np.cumsum(sizes[order])])
    columns = ledger.columns([keys[i] for i in order], offsets)
    missing = 0
    for row, i in enumerate(order):
        labels, atoms = ledger.labels(keys[i]), slice(offsets[row], offsets[row + 1])
        assert columns["energy"][row] == labels.energy
        np.testing.assert_array_equal(columns["forces"][atoms], labels.forces)
        for name, got in (("charges", columns["charges"][atoms]), ("dipole", columns["dipole"][row])):
            expected = getattr(labels, name)
            missing += expected is None
            np.testing.assert_array_equal(got, np.nan if expected is None else expected)
    assert 20 < missing < 50  # the whole first part, and some of the others
    assert "stress" not in columns


class _PoolOfOne:
    """A pool whose worker gives a prepared answer."""

    def __init__(self, answer: Greeting):
        self.answer, self.client = answer, self

    def run(self, *_: object) -> dict[str, Greeting]:
        return {"tcp://there": self.answer}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Greeting(TeacherStamp("t", "2", "{}"), True, ()), r"tcp://there has `t` \(2\).*this process `t` \(1\)"),
        (Greeting(TeacherStamp("t", "1", "{}"), False, ()), "tcp://there does not see .*common file system"),
    ],
)
def test_workers_that_differ_are_refused(tmp_path, answer, message):
    job = Job(tmp_path, TeacherStamp("t", "1", "{}"), LabelConfig())
    with exclusive(tmp_path), pytest.raises(DataError, match=message):
        _greet(_PoolOfOne(answer), job, Structure(np.array([1]), np.zeros((1, 3)), multiplicity=2))
