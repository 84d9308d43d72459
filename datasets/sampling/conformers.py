"""Conformers by ETKDG (Riniker & Landrum 2015, 10.1021/acs.jcim.5b00654) with RDKit, optimised with MMFF94."""

from __future__ import annotations

import numpy as np

from ...ase_calcs.errors import TeacherError, require
from ...ase_calcs.teachers.topology import molecule_from_geometry
from ..structure import Structure
from .guards import Guard
from .selection import descriptors, drop_duplicates

_MMFF_STEPS = 2000


def embed_conformers(
    molecule: Structure, count: int, *, rmsd: float, min_distance: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Conformers that differ, lowest MMFF94 energy first, with the stereo of the given geometry.

    Parameters
    ----------
    molecule
        Its geometry gives bonds and stereo, together with its SMILES where it has one.
    count
        How many to embed; fewer come back where fewer differ.
    rmsd
        Å; conformers nearer than this are one (see `drop_duplicates`).
    min_distance
        See `SamplingConfig`.
    rng
        Seeds the embedding.

    Returns
    -------
    Positions (K, N, 3), Å, in the atom order of the structure, K ≤ count, and notes on what went otherwise.
    """
    nothing = np.empty((0, len(molecule), 3))
    seed = int(rng.integers(1, 2**31 - 1))
    if count == 0 or len(molecule) < 2:
        return nothing, []
    distance_geometry = require("rdkit.Chem.rdDistGeom", extra="train", purpose="embed conformers")
    helpers = require("rdkit.Chem.rdForceFieldHelpers", extra="train", purpose="embed conformers")
    try:
        rdkit_molecule = molecule_from_geometry(
            molecule.numbers, molecule.positions, charge=molecule.charge, smiles=molecule.smiles
        )
    except TeacherError as error:
        return nothing, [f"no conformers: {error}"]
    parameters = distance_geometry.ETKDGv3()
    parameters.randomSeed = seed
    parameters.numThreads = 1
    ids = list(distance_geometry.EmbedMultipleConfs(rdkit_molecule, count, parameters))
    if not ids:
        parameters.useRandomCoords = True
        ids = list(distance_geometry.EmbedMultipleConfs(rdkit_molecule, count, parameters))
    if not ids:
        return nothing, ["no conformers: RDKit could not embed the molecule"]
    notes = []
    energies = np.zeros(len(ids))
    if helpers.MMFFHasAllMoleculeParams(rdkit_molecule):
        optimised = helpers.MMFFOptimizeMoleculeConfs(rdkit_molecule, numThreads=1, maxIters=_MMFF_STEPS)
        energies = np.array([energy for _, energy in optimised])
    else:
        notes.append("MMFF94 has no parameters for it: conformers are left as ETKDG embeds them")
    positions = np.array([rdkit_molecule.GetConformer(i).GetPositions() for i in ids])
    positions = positions[np.argsort(energies, kind="stable")]
    guard = Guard.of(molecule.numbers, molecule.positions, molecule.cell, molecule.pbc, min_distance=min_distance)
    positions = positions[[i for i, geometry in enumerate(positions) if not guard.fault(geometry)]]
    if len(positions) == 0:
        return nothing, [*notes, "no conformers: none kept the bonds of the molecule"]
    return positions[drop_duplicates(descriptors(molecule.numbers, positions), rmsd)], notes
