"""`distillase ensemble`."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from made_backbones import SEQUENCE, atom_array, frames, write_h5, write_manifest, write_pdb

from distillase.datasets.proteins.backbones import read_backbones
from distillase.launch.cli import main


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_sources_of_all_kinds_become_one_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    p = frames(count=4)
    topology = write_pdb(tmp_path / "one.pdb", [atom_array(p, k) for k in range(4)])
    top = mdtraj.load_topology(str(topology))
    xyz = np.stack([p.positions[:, a.residue.index, ("N", "CA", "C", "O", "CB").index(a.name)] for a in top.atoms], 1)
    mdtraj.Trajectory(xyz / 10, top).save_xtc(str(tmp_path / "run.xtc"))
    write_h5(tmp_path / "e.h5", frames("GAPWLYVT"))
    manifest = write_manifest(tmp_path / "m.csv", [{"path": "e.h5", "name": "two", "sequence": "GAPWLYVT"}])
    out = tmp_path / "all.h5"
    code = run(
        "ensemble", "prepare", topology, manifest, f"moving={topology}", "--trajectory", f"moving={tmp_path}/run.xtc",
        "--stride", "2", "--out", out,
    )  # fmt: skip
    assert code == 0
    said = capsys.readouterr().out
    assert "10 conformations of 3 proteins" in said
    found = {q.name: q for q in read_backbones(out)}
    assert {name: len(q.positions) for name, q in found.items()} == {"one": 4, "two": 4, "moving": 2}
    assert found["moving"].sequence == SEQUENCE
    # A dataset is a source too, and the same protein from two of them is one ensemble.
    assert run("ensemble", "prepare", out, topology, "--out", tmp_path / "more.h5") == 0
    assert {q.name: len(q.positions) for q in read_backbones(tmp_path / "more.h5")}["one"] == 8


def test_sources_that_do_not_fit_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = write_pdb(tmp_path / "one.pdb", [atom_array(frames("AVL"), 0)])
    two = write_pdb(tmp_path / "two.pdb", [atom_array(frames("AVW"), 0)])
    out = tmp_path / "x.h5"
    for arguments, expected in (
        ((one, f"one={two}"), "names of their own"),
        ((one, two, "--trajectory", "run.xtc"), "there are 2 sources. Write NAME="),
        ((one, "--trajectory", "other=run.xtc"), "no source is called that"),
        ((tmp_path,), "no folder of"),
        ((tmp_path / "missing.pdb",), "cannot be read"),
        ((one, "--temperatures", "warm"), "in K"),
    ):
        assert run("ensemble", "prepare", *arguments, "--out", out) != 0
        assert expected in " ".join(capsys.readouterr().err.split())
    assert not out.exists()
