"""Structures in: what is accepted, completed and refused, and that nothing a file holds stops the run."""

from __future__ import annotations

import gzip
import io
import tarfile

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom

from distillase.ase_calcs.errors import DataError, InputError
from distillase.datasets.readers import read_structures


def mol_3d(smiles: str, *, hydrogens: bool = True, sanitize: bool = True) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=7) == 0
    return mol if hydrogens else Chem.RemoveHs(mol)


def sdf(*mols: Chem.Mol | str) -> str:
    blocks = [mol if isinstance(mol, str) else Chem.MolToMolBlock(mol) for mol in mols]
    return "".join(f"{block.rstrip()}\n$$$$\n" for block in blocks)


def bare_block(lines: list[str], bonds: list[str] = (), tail: str = "", dimension: str = "3D") -> str:
    """A V2000 record written by hand: what no careful writer would let through."""
    head = [
        "",
        f"  {'test':18}{dimension}",
        "",
        f"{len(lines):3d}{len(bonds):3d}  0  0  0  0  0  0  0  0999 V2000",
    ]
    return "\n".join([*head, *lines, *bonds, *([tail] if tail else []), "M  END", ""])


def atom(x: float, y: float, z: float, symbol: str, valence: int = 0) -> str:
    return f"{x:10.4f}{y:10.4f}{z:10.4f} {symbol:<3} 0  0  0  0  0 {valence:2d}  0  0  0  0  0  0"


def test_smiles_become_complete_molecules():
    structures = read_structures(["CCO", "[NH4+]", "CC(=O)[O-]", "[CH3]"]).structures
    assert [len(s) for s in structures] == [9, 5, 7, 4]
    assert [s.charge for s in structures] == [0, 1, -1, 0]
    assert [s.multiplicity for s in structures] == [1, 1, 1, 2]
    assert structures[0].group == structures[0].smiles == "CCO"
    assert all(s.origin == "input" for s in structures)


def test_one_seed_one_geometry():
    first, again, other = (read_structures(["CC(O)CN"], seed=seed).structures[0] for seed in (3, 3, 4))
    assert np.array_equal(first.positions, again.positions)
    assert not np.allclose(first.positions, other.positions)


def test_smi_file(tmp_path):
    path = tmp_path / "set.smi"
    path.write_text("smiles name\nCCO ethanol\n\n# a comment\nnonsense bad\nC1CC1\tring\n")
    intake = read_structures([path])
    assert [s.smiles for s in intake.structures] == ["CCO", "C1CC1"]
    assert [(r.record, r.name) for r in intake.refusals] == [(2, "bad")]


@pytest.mark.parametrize("smiles", ["CC(N)C(=O)O", "c1ccccc1C#N", "C[N+](C)(C)CC([O-])=O", "OC1CCCCC1Cl"])
def test_implicit_hydrogens_become_atoms_and_heavy_atoms_stay_bit_for_bit(tmp_path, smiles):
    heavy = mol_3d(smiles, hydrogens=False)
    path = tmp_path / "heavy.sdf"
    path.write_text(sdf(heavy))
    written = Chem.MolFromMolFile(str(path), removeHs=False)
    (structure,) = read_structures([path]).structures
    n = written.GetNumAtoms()
    assert np.array_equal(structure.positions[:n], written.GetConformer().GetPositions())
    assert (structure.numbers[n:] == 1).all()
    assert len(structure) == Chem.AddHs(heavy).GetNumAtoms()
    distances = np.linalg.norm(structure.positions[n:, None] - structure.positions[None, :n], axis=-1).min(axis=1)
    assert ((distances > 0.93) & (distances < 1.15)).all()  # X–H bond lengths, Å
    hydrogens = structure.positions[n:]
    between = np.linalg.norm(hydrogens[:, None] - hydrogens[None], axis=-1)[np.triu_indices(len(hydrogens), 1)]
    assert between.min() > 1.4


def test_given_hydrogens_stay_and_only_missing_ones_come(tmp_path):
    full = Chem.RWMol(mol_3d("OCC"))
    full.RemoveAtom(full.GetNumAtoms() - 1)  # a methyl hydrogen
    path = tmp_path / "partly.sdf"
    path.write_text(sdf(full.GetMol()))
    given = Chem.MolFromMolFile(str(path), removeHs=False).GetConformer().GetPositions()
    intake = read_structures([path])
    (structure,) = intake.structures
    assert len(structure) == 9
    assert np.array_equal(structure.positions[:8], given)
    assert any("1 hydrogen added" in note for note in intake.notes)


def test_2d_drawings_are_embedded_with_their_charge_and_stereo(tmp_path):
    drawn = Chem.MolFromSmiles("C[C@H]([NH3+])C(=O)N/C=C/Cl")
    from rdkit.Chem import rdDepictor

    rdDepictor.Compute2DCoords(drawn)
    Chem.WedgeMolBonds(drawn, drawn.GetConformer())
    path = tmp_path / "flat.sdf"
    path.write_text(sdf(drawn))
    (structure,) = read_structures([path]).structures
    assert structure.charge == 1
    assert structure.smiles == Chem.MolToSmiles(drawn)
    assert np.abs(structure.positions[:, 2]).max() > 0.5
    assert len(structure) == Chem.AddHs(drawn).GetNumAtoms()


def test_flat_is_not_always_a_drawing(tmp_path):
    """Benzene lies in a plane; a sp3 carbon with four neighbours in the plane is a drawing whatever its flag says."""
    ring = [(1.39 * np.cos(k * np.pi / 3), 1.39 * np.sin(k * np.pi / 3), 0.0) for k in range(6)]
    bonds = [f"{k + 1:3d}{(k + 1) % 6 + 1:3d}  4  0" for k in range(6)]
    path = tmp_path / "benzene.sdf"
    path.write_text(sdf(bare_block([atom(*x, "C") for x in ring], bonds)))
    (structure,) = read_structures([path]).structures
    assert np.allclose(structure.positions[:6], np.round(ring, 4), atol=0)

    cross = [(0, 0), (1.5, 0), (-1.5, 0), (0, 1.5), (0, -1.5)]
    lines = [atom(x, y, 0, "C") for x, y in cross]
    path.write_text(sdf(bare_block(lines, [f"  1{k:3d}  1  0" for k in range(2, 6)])))
    intake = read_structures([path])
    assert np.abs(intake.structures[0].positions[:, 2]).max() > 0.5
    assert any("flat drawing" in note for note in intake.notes)


@pytest.mark.parametrize(
    ("written", "read", "charge"),
    [
        ("CCN([O-])[O-]", "CC[N+](=O)[O-]", 0),
        ("CO[N+]([O-])[O-]", "CO[N+](=O)[O-]", 0),
        ("CN(=O)=O", "C[N+](=O)[O-]", 0),
        ("CS(C)([O-])[O-]", "CS(C)(=O)=O", 0),
        ("CS([O-])([O-])[O-]", "CS(=O)(=O)[O-]", -1),
        ("C[P](C)(C)[O-]", "CP(C)(C)=O", 0),
        ("CN(C)(C)C", "C[N+](C)(C)C", 1),
        ("CN(C)(C)[O-]", "C[N+](C)(C)[O-]", 0),
        ("CN=N#N", "CN=[N+]=[N-]", 0),
        ("CN#C", "[C-]#[N+]C", 0),
    ],
)
def test_misdrawn_charges_are_mended_with_a_note(written, read, charge):
    intake = read_structures([written])
    (structure,) = intake.structures
    assert structure.smiles == Chem.CanonSmiles(read)
    assert structure.charge == charge
    if Chem.MolFromSmiles(written) is None or Chem.CanonSmiles(written) != structure.smiles:
        assert any("drawn" in note or "bonds" in note for note in intake.notes)


@pytest.mark.parametrize("smiles", ["CC(=O)[O-]", "C[NH3+]", "[O-][n+]1ccccc1", "C[N+](C)(C)CC(=O)[O-]", "[C-]#[N+]C"])
def test_usual_ions_are_not_called_suspicious(smiles):
    assert not [note for note in read_structures([smiles]).notes if "suspicious" in note]


@pytest.mark.parametrize("smiles", ["[O-]C(=O)CC(=O)[O-]", "C[CH2+]", "[NH3+]CC[NH3+]", "[CH3-]"])
def test_suspicious_charges_are_said(smiles):
    intake = read_structures([smiles])
    assert intake.structures, intake.refusals
    assert any("suspicious charge" in note for note in intake.notes)


@pytest.mark.parametrize(
    ("smiles", "word"),
    [
        ("CC(=O)O.[Na+]", "disconnected"),
        ("[Na+]", "single atom"),
        ("C[Zn]C", "Zn"),
        ("*CC", "dummy"),
        ("[CH2]", "radical electrons"),
        ("O=O", "triplet"),
        ("CC(C)(C)(C)C", "C2"),
        ("c1cccc1", "aromatic"),
    ],
)
def test_refusals_name_the_reason(smiles, word):
    intake = read_structures([smiles])
    assert not intake.structures
    assert word in intake.refusals[0].reason


def test_sdf_refusals_leave_the_other_records_alone(tmp_path):
    good = mol_3d("CO")
    far = atom(0, 0, 0, "C"), atom(9, 0, 0.1, "C")
    records = {
        "none": bare_block([]),
        "garbage": "not\na\nmol block\nat all\n",
        "single hydrogen": bare_block([atom(1, 1, 1, "H")]),
        "bonds and no hydrogens": bare_block(list(far)),
        "long": bare_block(list(far), ["  1  2  1  0"]),
        "finite": bare_block([atom(0, 0, 0, "C"), atom(0, 0, 1, "O").replace("0.0000", "   nan", 1)], ["  1  2  1  0"]),
        "open valence": bare_block([atom(0, 0, 0, "C", 1), atom(0, 0, 1.5, "C", 1)], ["  1  2  1  0"]),
        "element is unknown": bare_block([atom(0, 0, 0, "Xx"), atom(0, 0, 1, "O")], ["  1  2  1  0"]),
    }
    path = tmp_path / "mixed.sdf"
    path.write_text(sdf(good, *records.values(), good))
    intake = read_structures([path])
    assert len(intake.structures) == 2
    assert [refusal.record for refusal in intake.refusals] == list(range(2, 2 + len(records)))
    assert all(refusal.reason and "unforeseen" not in refusal.reason for refusal in intake.refusals)
    for refusal, word in zip(intake.refusals, records, strict=True):
        if word not in ("none", "garbage", "finite", "element is unknown"):
            assert word in refusal.reason


def test_overlapping_atoms_are_refused(tmp_path):
    """The two ends of pentane folded onto each other: every bond has its length, and yet it cannot be."""
    mol = mol_3d("CCCCC")
    mol.GetConformer().SetAtomPosition(4, [x + 0.3 for x in mol.GetConformer().GetAtomPosition(0)])
    path = tmp_path / "clash.sdf"
    path.write_text(sdf(mol))
    (refusal,) = read_structures([path]).refusals
    assert "bond" in refusal.reason or "clash" in refusal.reason


def test_a_record_without_bonds_is_bonded_only_where_every_electron_fits(tmp_path):
    mol = mol_3d("CC(=O)NC")
    positions = mol.GetConformer().GetPositions()
    lines = [atom(*x, a.GetSymbol()) for a, x in zip(mol.GetAtoms(), positions, strict=True)]
    path = tmp_path / "nobonds.sdf"
    path.write_text(sdf(bare_block(lines), bare_block(lines[:-1])))
    intake = read_structures([path])
    assert [s.smiles for s in intake.structures] == ["CNC(C)=O"]
    assert [r.record for r in intake.refusals] == [2]
    assert "odd number of electrons" in intake.refusals[0].reason


def test_sdf_multiplicity_field_and_parity(tmp_path):
    block = Chem.MolToMolBlock(mol_3d("CO"))
    path = tmp_path / "spin.sdf"
    path.write_text("".join(f"{block}> <multiplicity>\n{value}\n\n$$$$\n" for value in ("3", "2", "x")))
    intake = read_structures([path])
    assert [s.multiplicity for s in intake.structures] == [3]
    assert [r.record for r in intake.refusals] == [2, 3]
    assert "odd multiplicity" in intake.refusals[0].reason


def test_compressed_archived_and_folders(tmp_path):
    text = sdf(mol_3d("CO"), mol_3d("CCO")).encode()
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.sdf.gz").write_bytes(gzip.compress(text))
    with tarfile.open(folder / "b.tar.gz", "w:gz") as archive:
        for name, data in (("x/b.sdf", text), ("x/README", b"hello"), ("x/a.smi", b"CN amine")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    (folder / "broken.sdf.gz").write_bytes(gzip.compress(text)[:-20])
    intake = read_structures([folder])
    assert [s.smiles for s in intake.structures] == ["CO", "CCO", "CN", "CO", "CCO"]
    assert [(r.record, r.source.endswith("broken.sdf.gz")) for r in intake.refusals] == [(0, True)]


def test_wrong_arguments_stop_at_once(tmp_path):
    (tmp_path / "x.doc").write_text("")
    for wrong in ("nothere.sdf", "not smiles", str(tmp_path / "x.doc"), ""):
        with pytest.raises(InputError):
            read_structures([wrong])


def test_a_set_without_hydrogen_is_refused_unless_allowed():
    with pytest.raises(DataError, match="allow-no-hydrogen"):
        read_structures(["ClC(Cl)(Cl)Cl", "FC(F)(F)F"])
    assert len(read_structures(["ClC(Cl)(Cl)Cl"], allow_no_hydrogen=True).structures) == 1
    assert len(read_structures(["ClC(Cl)(Cl)Cl", "C"]).structures) == 2


@pytest.mark.parametrize("smiles", ["CC(=O)Nc1ccc(O)cc1", "C[N+](=O)[O-]", "FC(Br)I", "[O-]C(=O)C[NH3+]"])
def test_smiles_and_geometry_of_a_structure_agree(smiles):
    """Teachers and samplers lay the SMILES onto the geometry; the two must be one molecule."""
    from distillase.ase_calcs.teachers.topology import molecule_from_geometry

    (structure,) = read_structures([smiles]).structures
    mol = molecule_from_geometry(
        structure.numbers, structure.positions, charge=structure.charge, smiles=structure.smiles
    )
    assert [a.GetAtomicNum() for a in mol.GetAtoms()] == structure.numbers.tolist()
    assert Chem.MolToSmiles(Chem.RemoveHs(mol), isomericSmiles=False) == Chem.CanonSmiles(smiles, useChiral=False)
