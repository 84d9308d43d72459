"""What the readers make of real SDF files: accepted, refused and why, with charges, against what is known of the files.

    python benchmarks/intake.py --data ../shared/data/molecules/sdf

Ends with code 1 if an expectation fails. `--write` also writes the table to benchmarks/results/intake.md.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from rdkit import Chem, rdBase

from distillase.datasets.composition import composition_check
from distillase.datasets.readers import Intake, read_structures

RESULTS = Path(__file__).parent / "results" / "intake.md"


class Expectations:
    """Collects facts that must hold."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.held = 0

    def check(self, fact: bool, what: str) -> None:
        if fact:
            self.held += 1
        else:
            self.failed.append(what)


def reference(text: str) -> Chem.Mol | None:
    """RDKit's own reading of one record, implicit hydrogens kept so; None where it refuses."""
    with rdBase.BlockLogs():
        return Chem.MolFromMolBlock(text, sanitize=True, removeHs=False)


def records(path: Path) -> list[str]:
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            members = sorted((m for m in archive.getmembers() if m.name.endswith(".sdf")), key=lambda m: m.name)
            return [archive.extractfile(member).read().decode() for member in members]
    return [block for block in re.split(r"^\$\$\$\$.*\n?", path.read_text(), flags=re.M) if block.strip()]


def charges(intake: Intake) -> str:
    count = collections.Counter(structure.charge for structure in intake.structures)
    return ", ".join(f"{q:+d}: {n}" for q, n in sorted(count.items())) or "–"


def accepted_records(intake: Intake, total: int) -> list[int]:
    """0-based records of a single file that were accepted, in order."""
    refused = {refusal.record for refusal in intake.refusals}
    return [number - 1 for number in range(1, total + 1) if number not in refused]


def check_against_rdkit(expect: Expectations, path: Path, intake: Intake) -> None:
    """Charge, isomeric SMILES and heavy positions against RDKit's plain reading of the same record."""
    texts = records(path)
    for index, structure in zip(accepted_records(intake, len(texts)), intake.structures, strict=True):
        mol = reference(texts[index])
        where = f"{path.name} record {index + 1}"
        if mol is None:
            continue
        expect.check(structure.charge == Chem.GetFormalCharge(mol), f"{where}: charge is not RDKit's")
        full = Chem.AddHs(mol)
        expect.check(len(structure) == full.GetNumAtoms(), f"{where}: not hydrogen-complete")
        wanted = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
        expect.check(structure.numbers[: len(wanted)].tolist() == wanted, f"{where}: atoms reordered")
        if mol.GetConformer().Is3D():
            same = np.array_equal(structure.positions[: len(wanted)], mol.GetConformer().GetPositions())
            expect.check(same, f"{where}: input atoms were moved")
        else:
            drawn = Chem.MolToSmiles(Chem.RemoveHs(mol))
            open_centres = Chem.FindMolChiralCenters(mol, includeUnassigned=True, useLegacyImplementation=False)
            open_bonds = "=" in drawn and structure.smiles.count("/") + structure.smiles.count("\\") > 0
            if all(tag != "?" for _, tag in open_centres) and not open_bonds:
                expect.check(structure.smiles == drawn, f"{where}: drawn {drawn}, built {structure.smiles}")


def finite_and_even(expect: Expectations, name: str, intake: Intake) -> None:
    for structure in intake.structures:
        electrons = int(structure.numbers.sum()) - structure.charge
        expect.check((electrons + structure.multiplicity) % 2 == 1, f"{name}: parity of {structure.group}")
        expect.check(bool(np.isfinite(structure.positions).all()), f"{name}: positions of {structure.group}")


# What each PoseBusters file is, from reading it: a word of the reason, or None for "accepted" and its charge.
POSEBUSTERS: dict[str, tuple[str | None, int]] = {
    "mol_065_ideal": (None, 0),
    "mol_065_left": (None, 0),
    "mol_065_right": (None, 0),
    "mol_14gs_0_out": ("open valences", 0),
    "mol_1a30_clash_2": (None, -2),
    "mol_1a30_clash_3": (None, -2),
    "mol_1afs_87_out": ("open valences", 0),
    "mol_1afs_94_out": ("open valences", 0),
    "mol_1jn2_3_out": ("open valences", 0),
    "mol_1jn2_62_out": ("open valences", 0),
    "mol_2bm2_ligand": (None, 0),
    "mol_3WRB_1_GDE_0_ligand_pred": (None, 0),
    "mol_AWJ_ideal": (None, 0),
    "mol_CGB": (None, 0),
    "mol_O2U_ideal": (None, 0),
    "mol_PIP_ideal": (None, 0),
    "mol_PIP_wrong": (None, 1),
    "mol_PM2": (None, 0),
    "mol_RQ3_x00": (None, 0),
    "mol_RQ3_x01": (None, 0),
    "mol_RQ3_x10": (None, 0),
    "mol_TMO": (None, 0),
    "mol_calcium": ("single atom", 0),
    "mol_cholesterol": (None, 0),
    "mol_disconnected_atoms": ("12 disconnected pieces", 0),
    "mol_issue_67": (None, -1),
    "mol_single_hydrogen": ("single hydrogen", 0),
}


def check_posebusters(expect: Expectations, name: str, intake: Intake) -> None:
    reason, charge = POSEBUSTERS.get(name, ("?", 0))
    if reason is None:
        expect.check(
            not intake.refusals and all(s.charge == charge for s in intake.structures), f"{name}: not accepted"
        )
    else:
        fits = intake.refusals and all(reason in refusal.reason for refusal in intake.refusals)
        expect.check(bool(fits) and not intake.structures, f"{name}: expected a refusal with `{reason}`")


def check_sets(expect: Expectations, name: str, intake: Intake) -> None:
    """What is known of each file from its source."""
    n, refused = len(intake.structures), intake.refusals
    if name.startswith("freesolv"):
        expect.check(n == 642 and not refused, f"{name}: 642 accepted, got {n}")
        expect.check(all(s.charge == 0 and s.multiplicity == 1 for s in intake.structures), f"{name}: neutral singlets")
        nitro = {note.split(":")[0] for note in intake.notes if "nitro group" in note}
        expect.check(len(nitro) == 37, f"{name}: 37 molecules with mended nitro groups, got {len(nitro)}")
    elif name.startswith("spice"):
        atoms = [r for r in refused if "single atom" in r.reason]
        expect.check(len(atoms) == len(refused), f"{name}: only single atoms are refused")
        expect.check(n + len(refused) == 395, f"{name}: 395 records, got {n + len(refused)}")
    elif name.startswith("rdkit_bace"):
        expect.check(n == 200, f"{name}: 200 accepted, got {n}")
        expect.check(sum(s.charge != 0 for s in intake.structures) == 115, f"{name}: 115 charged")
    elif name.startswith("rdkit_cdk2"):
        expect.check(n == 47 and sum(s.charge != 0 for s in intake.structures) == 8, f"{name}: 47, of them 8 charged")
    elif name.startswith("rdkit_NCI"):
        expect.check([r.record for r in refused] == [1, 2], f"{name}: the two copper complexes refused")
        expect.check(all("Cu" in r.reason for r in refused), f"{name}: copper named")
    elif name == "diffsbdd_fragments.sdf":
        expect.check(n == 0 and "disconnected" in refused[0].reason, f"{name}: two pieces refused")
    elif name == "diffsbdd_3rfm_B_CFF.sdf":
        expect.check(n == 1 and (intake.structures[0].numbers == 1).sum() == 10, f"{name}: caffeine with its 10 H")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the SDF files")
    parser.add_argument("--write", action="store_true", help="write the table to benchmarks/results/intake.md")
    arguments = parser.parse_args()
    expect = Expectations()
    lines = ["| file | accepted | refused | charges | CPU s | reasons |", "|---|---|---|---|---|---|"]
    everything = []
    paths = sorted(arguments.data.glob("*.sdf")) + sorted(arguments.data.glob("*.tar.gz"))
    for path in [*paths, *sorted((arguments.data / "posebusters").glob("*.sdf"))]:
        began = time.process_time()
        intake = read_structures([path], seed=0, allow_no_hydrogen=True)
        seconds = time.process_time() - began
        everything += intake.structures
        finite_and_even(expect, path.name, intake)
        if path.parent.name == "posebusters":
            check_posebusters(expect, path.stem, intake)
        else:
            check_sets(expect, path.name, intake)
        if not path.name.endswith(".tar.gz"):
            check_against_rdkit(expect, path, intake)
        # Which atoms differs from record to record; one line for all.
        reasons = collections.Counter(
            re.sub(r"\d+ (open valence)s? at [^:]*", r"\1s", r.reason) for r in intake.refusals
        )
        told = "; ".join((f"{count}× " if count > 1 else "") + reason for reason, count in reasons.most_common(3))
        lines.append(
            f"| {path.name} | {len(intake.structures)} | {len(intake.refusals)} | {charges(intake)} "
            f"| {seconds:.1f} | {told} |"
        )
        print(lines[-1], flush=True)
    print(composition_check(everything).table())
    print(f"\n{expect.held} expectations held, {len(expect.failed)} failed")
    for failure in expect.failed[:40]:
        print("FAILED", failure)
    if arguments.write:
        head = "Intake of real SDF files: `python benchmarks/intake.py --data ../shared/data/molecules/sdf --write`\n"
        tail = f"{expect.held} expectations held, {len(expect.failed)} failed."
        table = composition_check(everything).table()
        RESULTS.write_text("\n".join([head, *lines, "", tail, "", "```", table, "```", ""]), encoding="utf-8")
    return 1 if expect.failed else 0


if __name__ == "__main__":
    sys.exit(main())
