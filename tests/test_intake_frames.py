"""Frames in: xyz, ASE db and PDB, where charge and spin come from what the file says; and the composition check."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.db import connect
from ase.io import write

from distillase.ase_calcs.errors import DataError, StructureError
from distillase.datasets.composition import composition_check
from distillase.datasets.frames import prepare_frame
from distillase.datasets.readers import read_structures
from distillase.datasets.structure import Structure

NH4 = Atoms("NH4", [[0, 0, 0], [0.6, 0.6, 0.6], [-0.6, -0.6, 0.6], [0.6, -0.6, -0.6], [-0.6, 0.6, -0.6]])


def with_info(atoms: Atoms, **info: object) -> Atoms:
    atoms = atoms.copy()
    atoms.info.update(info)
    return atoms


def state(atoms: Atoms) -> tuple[int, int]:
    structure = prepare_frame(atoms).structure
    return structure.charge, structure.multiplicity


def test_charge_and_multiplicity_from_info():
    assert state(with_info(NH4, charge=1)) == (1, 1)
    assert state(with_info(molecule("H2O"), charge="-1")) == (-1, 2)
    assert state(with_info(molecule("OH"), multiplicity=2)) == (0, 2)
    assert state(with_info(molecule("O2"), multiplicity=3)) == (0, 3)
    charged = NH4.copy()
    charged.set_initial_charges([0.2] * 5)
    assert state(charged) == (1, 1)
    polarised = molecule("O2")
    polarised.set_initial_magnetic_moments([1.0, 1.0])
    assert state(polarised) == (0, 3)


@pytest.mark.parametrize(("spin", "multiplicity"), [(1, 1), (0, 1), (3, 3), (2, 3)])
def test_spin_is_read_by_parity(spin, multiplicity):
    """Of 2S and 2S+1 only one is possible for a number of electrons."""
    assert state(with_info(Atoms("O2", [[0, 0, 0], [0, 0, 1.2]]), spin=spin)) == (0, multiplicity)


@pytest.mark.parametrize(
    ("info", "word"),
    [
        ({}, "odd number"),
        ({"charge": 0}, ""),
        ({"charge": 1, "multiplicity": 2}, "cannot have multiplicity 2"),
        ({"charge": 1, "total_charge": 0}, "contradicts itself about the charge"),
        ({"charge": 0.5}, "not a whole number"),
        ({"charge": "plus"}, "not a whole number"),
        ({"charge": True}, "has no value"),
        ({"charge": 1, "multiplicity": 1, "spin": 2}, "contradicts itself about the multiplicity"),
        ({"charge": 12}, "too few"),
    ],
)
def test_impossible_or_silent_states_are_refused(info, word):
    """Ammonium without its charge runs through GFN2 without complaint; it must not get that far."""
    if not word:  # said to be neutral: a radical, and taken as one
        assert state(with_info(NH4, **info)) == (0, 2)
        return
    with pytest.raises(StructureError, match=word):
        prepare_frame(with_info(NH4, **info))


def test_initial_charges_against_info():
    charged = with_info(NH4, charge=0, multiplicity=2)
    charged.set_initial_charges([1, 0, 0, 0, 0])
    with pytest.raises(StructureError, match="initial_charges"):
        prepare_frame(charged)


@pytest.mark.parametrize(
    ("atoms", "word"),
    [
        (Atoms(), "no atoms"),
        (Atoms("H"), "single hydrogen"),
        (Atoms("Ar"), "single atom"),
        (Atoms("HF", [[0, 0, 0], [0, 0, np.nan]]), "not finite"),
        (Atoms("HF", [[0, 0, 0], [0, 0, 0.2]]), "clash"),
        (Atoms("XH", [[0, 0, 0], [0, 0, 1]]), "no known element"),
        (Atoms("OH2", [[0, 0, 0], [0, 0, 0.97], [0.97, 0, 0]], pbc=True), "cell"),
        (Atoms("He2", [[0, 0, 0], [0, 0, 4.8]], cell=[5, 5, 5], pbc=True), "periodic images"),
    ],
)
def test_bad_geometry_is_refused(atoms, word):
    with pytest.raises(StructureError, match=word):
        prepare_frame(atoms)


def test_periodic_and_boxed():
    crystal = prepare_frame(bulk("NaCl", "rocksalt", a=5.6)).structure
    assert crystal.pbc.all()
    assert np.abs(crystal.cell).max() > 1
    boxed = molecule("CH4", vacuum=5.0)
    boxed.pbc = False
    assert not prepare_frame(boxed).structure.cell.any()
    slab = molecule("CH4")
    slab.set_cell([6, 6, 0])
    slab.pbc = (True, True, False)
    assert prepare_frame(slab).structure.pbc.tolist() == [True, True, False]


def test_frame_is_not_touched():
    atoms = with_info(molecule("CH4"), charge=0)
    before = atoms.copy()
    prepare_frame(atoms)
    assert atoms == before
    assert atoms.info == before.info


def test_xyz_file_goes_on_after_a_bad_frame(tmp_path):
    path = tmp_path / "set.xyz"
    write(path, [with_info(molecule("CH4"), charge=0), with_info(NH4, charge=1, name="ammonium")], format="extxyz")
    bad = "2\nbad element\nH0 0 0 0\nH 0 0 1\n0\nempty\n1\nno numbers\nH x y z\n2\ncharge 1\nH 0 0 0\nF 0 0 1\n"
    path.write_text(path.read_text() + bad + "2\nplain comment, a=b c\nH 0 0 0\nF 0 0 0.92\n3\ncut short\nH 0 0 0\n")
    intake = read_structures([path])
    assert [s.group for s in intake.structures] == ["CH4", "ammonium", "HF"]
    assert [s.charge for s in intake.structures] == [0, 1, 0]
    assert [r.record for r in intake.refusals] == [3, 4, 5, 6, 8]
    assert all("unforeseen" not in r.reason for r in intake.refusals)


def test_ase_db(tmp_path):
    path = tmp_path / "set.db"
    with connect(path) as database:
        database.write(molecule("CH4"))
        database.write(NH4, charge=1, name="ammonium")
        database.write(NH4)
    intake = read_structures([path])
    assert [(s.charge, s.group) for s in intake.structures] == [(0, "CH4"), (1, "ammonium")]
    assert [r.record for r in intake.refusals] == [3]
    (tmp_path / "broken.db").write_text("no database")
    assert read_structures([tmp_path / "broken.db"]).refusals[0].record == 0


def peptide(smiles_sequence: str, *, charged: bool) -> str:
    """A PDB file of a peptide as RDKit writes it, hydrogens and all."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    mol = Chem.MolFromSequence(smiles_sequence)
    if charged:
        for a in mol.GetAtoms():
            name = a.GetPDBResidueInfo().GetName().strip()
            if name in ("NZ", "OXT", "OD2") or (name == "N" and a.GetDegree() == 1):
                a.SetFormalCharge(1 if a.GetSymbol() == "N" else -1)
        Chem.SanitizeMol(mol)
    mol = Chem.AddHs(mol, addResidueInfo=True)
    assert rdDistGeom.EmbedMolecule(mol, randomSeed=1) == 0
    return Chem.MolToPDBBlock(mol, flavor=4)


@pytest.mark.parametrize(
    ("sequence", "charged", "charge"), [("GKA", True, 1), ("GKA", False, 0), ("DGH", True, -1), ("RGF", False, 0)]
)
def test_pdb_charge_follows_the_hydrogens(tmp_path, sequence, charged, charge):
    path = tmp_path / "peptide.pdb"
    path.write_text(peptide(sequence, charged=charged))
    intake = read_structures([path])
    assert intake.structures, intake.refusals
    assert intake.structures[0].charge == charge


def test_pdb_models_and_refusals(tmp_path):
    block = "".join(
        line + "\n" for line in peptide("GA", charged=True).splitlines() if line.startswith(("ATOM", "HETATM"))
    )
    heavy = "".join(line + "\n" for line in block.splitlines() if line[76:78].strip() != "H")
    lines = block.splitlines(keepends=True)
    amide = next(k for k, line in enumerate(lines) if line[12:16].strip() == "N" and line[22:26].strip() == "2")
    x = np.array([float(lines[amide][30 + 8 * k : 38 + 8 * k]) for k in range(3)])
    on_amide = next(
        k
        for k, line in enumerate(lines)
        if line[76:78].strip() == "H"
        and np.linalg.norm(x - [float(line[30 + 8 * m : 38 + 8 * m]) for m in range(3)]) < 1.1
    )
    one_missing = "".join(line for k, line in enumerate(lines) if k != on_amide)
    no_elements = "".join(line[:76].rstrip("\n") + "\n" for line in lines)
    path = tmp_path / "models.pdb"
    path.write_text(
        "".join(
            f"MODEL     {k:4d}\n{b}ENDMDL\n" for k, b in enumerate((block, heavy, block, one_missing, no_elements), 1)
        )
        + "END\n"
    )
    intake = read_structures([path])
    assert len(intake.structures) == 2  # and no empty frame after ENDMDL
    assert [r.record for r in intake.refusals] == [2, 4, 5]
    for refusal, word in zip(intake.refusals, ("PDBFixer", "hydrogens are missing", "columns 77-78"), strict=True):
        assert word in refusal.reason


def water(n: int) -> list[Structure]:
    return [prepare_frame(molecule("H2O")).structure for _ in range(n)]


def test_composition_counts():
    methanol = prepare_frame(molecule("CH3OH")).structure
    composition = composition_check([*water(2), methanol])
    rows = {row.symbol: row for row in composition.rows}
    assert {symbol: row.count for symbol, row in rows.items()} == {"H": 8, "C": 1, "O": 3}
    assert composition.hydrogen_fraction == pytest.approx(8 / 12)
    assert composition.hydrogen_per_carbon == 8.0
    assert composition.atoms_per_structure == (3, 3.0, 6)
    assert rows["H"].structures == 3
    assert rows["H"].most == 4
    assert composition.n_groups == 2
    assert "H" in composition.table()


def test_composition_warns_of_misread_and_missing_hydrogens():
    holmium = Structure(np.array([6, 67, 1, 1, 1]), np.zeros((5, 3)), group="x")
    assert any("Ho" in warning and "H0" in warning for warning in composition_check([holmium]).warnings)
    polar_only = Structure(np.array([6] * 8 + [8, 1]), np.zeros((10, 3)), group="y")
    assert any("hydrogens missing" in warning for warning in composition_check([polar_only]).warnings)
    bare = Structure(np.array([6, 6, 8]), np.zeros((3, 3)), group="z")
    assert "z" in composition_check([*water(1), bare]).without_hydrogen
    assert not composition_check(water(3)).warnings


def test_no_hydrogen_at_all():
    bare = Structure(np.array([6, 6, 8]), np.zeros((3, 3)))
    with pytest.raises(DataError, match="hydrogen"):
        composition_check([bare])
    assert composition_check([bare], allow_no_hydrogen=True).hydrogen_fraction == 0.0
    metal = Structure(np.array([29]), np.zeros((1, 3)), cell=np.eye(3) * 3, pbc=np.ones(3, dtype=bool))
    assert composition_check([metal]).n_atoms == 1
    with pytest.raises(DataError, match="no structures"):
        composition_check([])
