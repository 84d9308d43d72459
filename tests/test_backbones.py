"""Backbones: geometry by construction, reading, completing, keeping."""

from __future__ import annotations

import math
from pathlib import Path

import biotite.structure as structure
import h5py
import mdtraj
import numpy as np
import pytest
import torch
from ase import Atoms
from biotite.structure.io import pdb, pdbx
from made_backbones import SEQUENCE, atom_array, frames, made, rotations, write_h5, write_manifest, write_pdb

from distillase.ase_calcs.errors import DataError, InputError, StructureError
from distillase.ase_calcs.proteins import backbone as bb
from distillase.ase_calcs.proteins.backbone import (
    ATOMS,
    CA,
    CB,
    OMEGA,
    PHI,
    PSI,
    C,
    Frames,
    N,
    O,
    angle,
    build_backbone,
    dihedral,
    ideal,
    torsions_defined,
    torsions_of,
)
from distillase.ase_calcs.proteins.geometry import dihedrals
from distillase.datasets.proteins.backbones import (
    BackboneFrames,
    completed,
    read_backbones,
    starts_of,
    with_gaps,
    write_backbones,
)
from distillase.datasets.proteins.beads import read_beads
from distillase.datasets.proteins.frames import types_of
from distillase.datasets.proteins.manifest import read_ensemble, read_manifest
from distillase.datasets.proteins.structures import read_structure, read_trajectory


def wrapped(x: torch.Tensor) -> torch.Tensor:
    return torch.remainder(x + math.pi, 2 * math.pi) - math.pi


def test_a_built_backbone_has_the_torsions_it_was_built_from():
    _, torsions, x = made()
    starts = torch.as_tensor(starts_of(SEQUENCE))
    off = wrapped(torsions_of(x, starts) - torsions)[torsions_defined(starts).expand_as(torsions)]
    assert off.abs().max() < 1e-12
    assert (torsions_of(x, starts)[:, ~torsions_defined(starts)] == 0).all()


def test_a_built_backbone_has_the_bonds_and_angles_of_engh_and_huber():
    types, _, x = made()
    joined = ~torch.as_tensor(starts_of(SEQUENCE))[1:]
    after = types[1:][joined]
    here, there = x[:, :-1][:, joined], x[:, 1:][:, joined]

    def bond(kind: str, a: torch.Tensor, b: torch.Tensor, kinds: torch.Tensor) -> None:
        assert ((a - b).norm(dim=-1) - ideal(kind, kinds, a)).abs().max() < 1e-12, kind

    def bend(kind: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, kinds: torch.Tensor) -> None:
        assert (angle(a, b, c) - ideal(kind, kinds, a)).abs().max() < 1e-12, kind

    n, ca, c, o, cb = (x[:, :, k] for k in (N, CA, C, O, CB))
    bond("N-CA", n, ca, types)
    bond("CA-C", ca, c, types)
    bond("C-O", c, o, types)
    bond("CA-CB", ca, cb, types)
    bond("C-N", here[:, :, C], there[:, :, N], after)
    bend("N-CA-C", n, ca, c, types)
    bend("CA-C-O", ca, c, o, types)
    bend("N-CA-CB", n, ca, cb, types)
    bend("C-CA-CB", c, ca, cb, types)
    bend("CA-C-N", here[:, :, CA], here[:, :, C], there[:, :, N], after)
    bend("C-N-CA", here[:, :, C], there[:, :, N], there[:, :, CA], after)
    # Cα, C, O and the next N lie in a plane, O opposite to N.
    flat = wrapped(dihedral(here[:, :, N], here[:, :, CA], here[:, :, C], here[:, :, O]) - math.pi)
    psi = dihedral(here[:, :, N], here[:, :, CA], here[:, :, C], there[:, :, N])
    assert wrapped(flat - psi).abs().max() < 1e-12


def test_the_table_of_geometry_is_of_the_residue_it_says():
    kinds = torch.as_tensor(types_of("GAPVL"))
    like = torch.zeros((), dtype=torch.float64)
    assert ideal("C-N", kinds, like).tolist() == [1.329, 1.329, 1.341, 1.329, 1.329]
    assert ideal("CA-CB", kinds, like).tolist() == [1.530, 1.521, 1.530, 1.540, 1.530]
    assert torch.rad2deg(bb.spread("N-CA-C", kinds, like)).tolist() == pytest.approx([2.9, 2.8, 2.5, 2.8, 2.8])
    planar = sum(ideal(kind, kinds[1:2], like) for kind in ("CA-C-O", "O-C-N", "CA-C-N"))
    assert torch.rad2deg(planar).item() == pytest.approx(360.0)


def test_built_residues_are_all_left_handed():
    _, _, x = made(count=32)
    n, c, cb = (x[..., k, :] - x[..., CA, :] for k in (N, C, CB))
    volume = (torch.linalg.cross(n, c) * cb).sum(-1)
    assert (volume > 2.0).all()  # Å³; 2.6 in crystals


def test_angles_at_the_alpha_carbon_can_be_given():
    types, torsions, _ = made("GAPWLYVT")
    bends = torch.full(torsions.shape[:-1], math.radians(105.0), dtype=torch.float64)
    x = build_backbone(types, torsions, bends=bends)
    assert (angle(x[..., N, :], x[..., CA, :], x[..., C, :]) - bends).abs().max() < 1e-12
    assert (angle(x[..., N, :], x[..., CA, :], x[..., CB, :]) - ideal("N-CA-CB", types, x)).abs().max() < 1e-12


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13])
def test_the_prefix_product_places_atoms_as_one_after_the_other_does(length: int):
    types, torsions, _ = made("GAPWLYVTKDEPS"[:length])
    x = build_backbone(types, torsions)
    like = torsions[..., 0]
    for k in range(1, length):
        t = types[k]
        n = bb.place(
            x[:, k - 1, N], x[:, k - 1, CA], x[:, k - 1, C],
            *(ideal(kind, t, like) for kind in ("C-N", "CA-C-N")), torsions[:, k - 1, PSI],
        )  # fmt: skip
        ca = bb.place(
            x[:, k - 1, CA], x[:, k - 1, C], n, *(ideal(kind, t, like) for kind in ("N-CA", "C-N-CA")),
            torsions[:, k - 1, OMEGA],
        )  # fmt: skip
        c = bb.place(x[:, k - 1, C], n, ca, *(ideal(kind, t, like) for kind in ("CA-C", "N-CA-C")), torsions[:, k, PHI])
        assert (torch.stack([n, ca, c], 1) - x[:, k, :3]).abs().max() < 1e-11


def test_a_batch_is_as_one_by_one_and_parts_are_as_alone():
    types, torsions, x = made()
    starts = torch.as_tensor(starts_of(SEQUENCE))
    begin = bb.frames_of(x)
    for k in range(len(x)):
        one = build_backbone(types, torsions[k], starts=starts, begin=Frames(begin.rotation[k], begin.origin[k]))
        assert (one - x[k]).abs().max() < 1e-12
    alone = build_backbone(types[:8], torsions[:, :8], begin=Frames(begin.rotation[:, :8], begin.origin[:, :8]))
    assert (alone - x[:, :8])[..., :7, :, :].abs().max() < 1e-12


def test_positions_have_the_gradients_of_finite_differences():
    types, torsions, _ = made("GPW", count=1)
    bends = ideal("N-CA-C", types, torsions).clone()
    torch.autograd.gradcheck(
        lambda t, b: build_backbone(types, t, bends=b), (torsions[0].requires_grad_(), bends.requires_grad_())
    )


def test_torsions_do_not_turn_with_the_protein_and_change_sign_in_the_mirror():
    _, _, x = made()
    starts = torch.as_tensor(starts_of(SEQUENCE))
    own = torsions_of(x, starts)
    assert wrapped(torsions_of(x @ rotations(1)[0] + 7.0, starts) - own).abs().max() < 1e-11
    mirror = x * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert wrapped(torsions_of(mirror, starts) + own).abs().max() < 1e-11


def test_dihedrals_have_the_sign_that_ase_and_beads_have():
    x = np.random.default_rng(3).normal(size=(4, 3)) * 2
    ours = dihedral(*torch.as_tensor(x)).item()
    assert math.degrees(ours) % 360 == pytest.approx(Atoms("C4", x).get_dihedral(0, 1, 2, 3), abs=1e-9)
    assert ours == pytest.approx(dihedrals(x[None])[0, 0], abs=1e-12)


def test_missing_oxygens_and_beta_carbons_are_built_where_they_belong():
    _, _, x = made()
    lacking = x.numpy().copy()
    lacking[:, :, O] = np.nan
    lacking[1:, 3, CB] = np.nan
    whole, built = completed(SEQUENCE, lacking)
    last = np.append(starts_of(SEQUENCE)[1:], True)
    assert np.abs(whole - x.numpy())[:, ~last].max() < 1e-11
    assert built[:, O].all()
    assert built[:, CB].tolist() == [k in (0, 3) for k in range(12)]
    # The O at the end of a part: where it turns to is not known, how far it is from C and Cα is.
    ends = torch.as_tensor(whole[:, last])
    assert ((ends[:, :, O] - ends[:, :, C]).norm(dim=-1) - 1.231).abs().max() < 1e-11
    lacking[0, 1, CA] = np.nan
    with pytest.raises(DataError, match="Residue 2 lacks"):
        completed(SEQUENCE, lacking)


def test_gaps_are_where_peptide_bonds_are_too_long():
    x = frames().positions
    assert with_gaps(SEQUENCE.replace(":", ""), np.zeros(12), x) == SEQUENCE
    assert with_gaps("GA", np.array([0, 1]), x[:, :2]) == "G:A"


def test_a_dataset_of_backbones_comes_back(tmp_path: Path):
    some = [frames(), frames("WW", "other", count=2)]
    write_backbones(tmp_path / "b.h5", some, {"note": 1})
    found = read_backbones(tmp_path / "b.h5")
    assert [(p.name, p.sequence) for p in found] == [("made", SEQUENCE), ("other", "WW")]
    for one, other in zip(some, found, strict=True):
        centred = one.positions - one.positions.mean(axis=(1, 2), keepdims=True)
        assert np.abs(centred - other.positions).max() < 1e-12
        assert (one.built == other.built).all()
        assert (one.origins == other.origins).all()
        assert (other.temperatures == 300).all()
    assert len(found[0].select(np.array([1, 3])).positions) == 2
    with pytest.raises(DataError, match="atoms, not of beads"):
        read_beads(tmp_path / "b.h5")
    with pytest.raises(DataError, match="name of its own"):
        write_backbones(tmp_path / "c.h5", [some[0], some[0]], {})
    with pytest.raises(DataError, match="needed are"):
        BackboneFrames("x", "GG", some[0].positions, some[0].built, some[0].temperatures, some[0].origins)


@pytest.mark.parametrize("suffix", [".pdb", ".cif", ".bcif"])
def test_models_of_a_structure_file_are_read(tmp_path: Path, suffix: str):
    p = frames()
    path = tmp_path / f"x{suffix}"
    stack = structure.stack([atom_array(p, k) for k in range(4)])
    if suffix == ".pdb":
        file = pdb.PDBFile()
        file.set_structure(stack)
    else:
        file = pdbx.CIFFile() if suffix == ".cif" else pdbx.BinaryCIFFile()
        pdbx.set_structure(file, stack)
    file.write(path)
    found = read_structure(path)
    assert (found.name, found.sequence) == ("x", SEQUENCE)
    assert found.origins.tolist() == ["model 1", "model 2", "model 3", "model 4"]
    assert np.argwhere(found.built).tolist() == [[0, CB]]
    off = np.abs(found.positions - p.positions)
    off[:, 0, CB] = 0
    assert off.max() < (6e-4 if suffix == ".pdb" else 1e-4)


def test_residues_that_some_model_lacks_leave_a_gap(tmp_path: Path):
    p = frames("AVLIYWT")
    whole, lacking = atom_array(p, 0), atom_array(p, 1)
    lacking = lacking[~((lacking.res_id == 3) & (lacking.atom_name == "N"))]
    found = read_structure(write_pdb(tmp_path / "x.pdb", [whole, lacking]))
    assert found.sequence == "AV:IYWT"
    assert len(found.positions) == 2


def test_modified_residues_are_what_they_were_made_from_and_others_are_refused(tmp_path: Path):
    p = frames("AMLS")
    found = read_structure(write_pdb(tmp_path / "x.pdb", [atom_array(p, 0, {1: "MSE", 3: "SEP"})]))
    assert found.sequence == "AMLS"
    with pytest.raises(StructureError, match="not known: XYZ"):
        read_structure(write_pdb(tmp_path / "y.pdb", [atom_array(p, 0, {2: "XYZ"})]))


def test_of_alternate_locations_the_one_with_the_higher_occupancy_is_read(tmp_path: Path):
    p = frames("AVL")
    path = write_pdb(tmp_path / "x.pdb", [atom_array(p, 0)])
    lines = []
    for line in path.read_text().splitlines():
        if line.startswith("ATOM") and line[12:16].strip() == "O" and int(line[22:26]) == 2:
            moved = f"{float(line[30:38]) + 1:8.3f}"
            lines += [
                f"{line[:16]}A{line[17:30]}{moved}{line[38:54]}  0.30{line[60:]}",
                f"{line[:16]}B{line[17:54]}  0.70{line[60:]}",
            ]
        else:
            lines.append(line)
    path.write_text("\n".join(lines) + "\n")
    assert np.abs(read_structure(path).positions[0, 1, O] - p.positions[0, 1, O]).max() < 6e-4


def test_files_that_are_no_backbones_are_refused(tmp_path: Path):
    p = frames("AVL")
    alpha = atom_array(p, 0)
    with pytest.raises(StructureError, match="no residue with N"):
        read_structure(write_pdb(tmp_path / "ca.pdb", [alpha[alpha.atom_name == "CA"]]))
    with pytest.raises(InputError, match="no format"):
        read_structure(tmp_path / "x.gro")
    with pytest.raises(InputError, match="cannot be read"):
        read_structure(tmp_path / "missing.pdb")
    (tmp_path / "bad.cif").write_text("nothing here")
    with pytest.raises(InputError, match="cannot be read"):
        read_structure(tmp_path / "bad.cif")


def test_a_trajectory_is_read(tmp_path: Path):
    p = frames(count=6)
    topology = write_pdb(tmp_path / "top.pdb", [atom_array(p, 0)])
    top = mdtraj.load_topology(str(topology))
    order = [(a.residue.index, ATOMS.index(a.name)) for a in top.atoms]
    xyz = np.stack([p.positions[:, r, a] for r, a in order], axis=1)
    mdtraj.Trajectory(xyz / 10, top).save_dcd(str(tmp_path / "run.dcd"))
    found = read_trajectory(topology, tmp_path / "run.dcd", stride=2)
    assert found.sequence == SEQUENCE
    assert found.origins.tolist() == ["run"] * 3
    off = np.abs(found.positions - p.positions[::2])
    off[:, 0, CB] = 0
    assert off.max() < 1e-4
    with pytest.raises(InputError, match="cannot be read"):
        read_trajectory(topology, tmp_path / "missing.dcd")


@pytest.mark.parametrize("omega_before", [False, True])
def test_ensembles_of_a_manifest_are_read(tmp_path: Path, omega_before: bool):
    p = frames("GAPWLYVT")
    write_h5(tmp_path / "e.h5", p, omega_before=omega_before)
    manifest = write_manifest(tmp_path / "m.csv", [{"path": "e.h5", "name": "one", "sequence": "GAPWLYVT"}])
    (found,) = read_manifest(manifest)
    assert (found.name, found.sequence) == ("one", "GAPWLYVT")
    assert found.built[:, [O, CB]].all()
    assert not found.built[:, [N, CA, C]].any()
    assert np.abs(found.positions - p.positions)[:, :-1].max() < 1e-5


def test_masked_residues_of_an_ensemble_are_a_gap(tmp_path: Path):
    p = frames("GAPWLYVT")
    path = write_h5(tmp_path / "e.h5", p)
    with h5py.File(path, "a") as file:
        file["mask_ca"][:, 3] = 0
        file["coords_N"][0, 3] = np.nan
        file.attrs["sequence"] = "GAPWLYVT"
    assert read_ensemble(path).sequence == "GAP:LYVT"


def test_ensembles_that_contradict_themselves_are_refused(tmp_path: Path):
    p = frames("GAPWLYVT")
    with pytest.raises(DataError, match="sine and cosine, in this order"):
        read_ensemble(write_h5(tmp_path / "swapped.h5", p, swap=True), sequence="GAPWLYVT")
    path = write_h5(tmp_path / "e.h5", p)
    with pytest.raises(DataError, match="has 0 residues"):
        read_ensemble(path)
    with pytest.raises(DataError, match="has 3 residues"):
        read_ensemble(path, sequence="GAP")
    with h5py.File(path, "a") as file:
        del file["coords_C"]
    with pytest.raises(DataError, match="has no coords_C"):
        read_ensemble(path, sequence="GAPWLYVT")
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        read_ensemble(tmp_path / "missing.h5", sequence="GG")
    with pytest.raises(InputError, match="column `path`"):
        read_manifest(write_manifest(tmp_path / "m.csv", [{"where": "e.h5"}]))
    with pytest.raises(InputError, match="cannot be read as a CSV"):
        read_manifest(tmp_path / "missing.csv")
