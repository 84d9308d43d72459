"""Amino acids as beads: their types, names and masses."""

from __future__ import annotations

CODES = "ACDEFGHIKLMNPQRSTVWY"  # a bead's type is its place in here

THREE_LETTER = {
    "A": "ALA", "C": "CYS", "D": "ASP", "E": "GLU", "F": "PHE", "G": "GLY", "H": "HIS", "I": "ILE", "K": "LYS",
    "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER", "T": "THR", "V": "VAL",
    "W": "TRP", "Y": "TYR",
}  # fmt: skip

# Names that force fields and structure files give to the same residues in other states of protonation.
NAMES = {name: code for code, name in THREE_LETTER.items()} | {
    "ASH": "D", "GLH": "E", "HID": "H", "HIE": "H", "HIP": "H", "HSD": "H", "HSE": "H", "HSP": "H", "LYN": "K",
    "CYX": "C", "CYM": "C",
}  # fmt: skip

# u, of a residue within a chain: the amino acid less one water, average isotopic masses.
MASSES = {
    "A": 71.079, "C": 103.143, "D": 115.088, "E": 129.115, "F": 147.176, "G": 57.052, "H": 137.141, "I": 113.159,
    "K": 128.174, "L": 113.159, "M": 131.197, "N": 114.104, "P": 97.117, "Q": 128.131, "R": 156.188, "S": 87.078,
    "T": 101.105, "V": 99.132, "W": 186.213, "Y": 163.176,
}  # fmt: skip
