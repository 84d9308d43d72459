"""Somebody else's data: alanine dipeptide as five backbone beads, with the data set that CGnet published.

    python benchmarks/alanine_dipeptide.py --data ala2_coordinates.npy ala2_forces.npy --out runs/ala2

10 000 frames of C, N, Cα, C, N in explicit water at 300 K, 10 ps apart, with forces in kcal/mol/Å (Wang et al.,
10.1021/acscentsci.8b00913). No bead is a residue here: five letters stand for five kinds of atoms, and the prior goes
without excluded volume and repulsion, which are made for beads 3.8 Å apart. Prior, forces alone, and relative entropy
after it: Jensen–Shannon divergence of the (φ, ψ) distribution beside that between halves of the data, and the root mean
square difference of free energies where the data have any.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillase.ase_calcs.modelfile import load_coarse_grained, save_model
from distillase.ase_calcs.proteins.chains import Chains
from distillase.ase_calcs.proteins.geometry import dihedrals
from distillase.ase_calcs.proteins.model import CoarseGrainedModel, Part
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from distillase.ase_calcs.units import KB, KCAL_PER_MOL
from distillase.datasets.proteins.beads import BeadFrames
from distillase.launch.progress import make_progress
from distillase.training.dynamics_report.metrics import jensen_shannon
from distillase.training.proteins.config import (
    BeadNetworkConfig,
    BeadRecipe,
    RelativeEntropyConfig,
    first_stage,
    second_stage,
)
from distillase.training.proteins.prior_fit import PriorConfig, fit_prior
from distillase.training.proteins.relative_entropy import minimise_relative_entropy
from distillase.training.proteins.run import assemble, split_frames, train_beads
from distillase.training.proteins.task import BeadTable
from distillase.training.report.speed import machine

BEADS = "AGAPA"  # so that φ and ψ are of different classes: the prior tells glycine, proline and the rest apart
KELVIN = 300.0
EDGES = np.linspace(-np.pi, np.pi, 37)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs=2, required=True, metavar=("COORDINATES", "FORCES"))
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--replicas", type=int, default=64)
    parser.add_argument("--picoseconds", type=float, default=200.0, help="of each; the first fifth is left out")
    parser.add_argument("--epochs", type=int, default=30, help="of the first stage; half as many of the second")
    parser.add_argument("--updates", type=int, default=1000, help="of the relative entropy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "alanine_dipeptide.json")
    return parser.parse_args()


def surface(x: np.ndarray) -> np.ndarray:
    """(36, 36) counts over φ and ψ."""
    phi, psi = dihedrals(x).T
    return np.histogram2d(phi, psi, bins=[EDGES, EDGES])[0]


def compared(counts: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Divergence in bits; RMS difference of free energies (kcal/mol) over bins with ten or more frames, up to 3
    kcal/mol above the lowest; shares of the left-handed and the helical basin."""
    p, q = (c / c.sum() for c in (counts + 0.5, reference + 0.5))
    energies = [-KB * KELVIN / KCAL_PER_MOL * np.log(v) for v in (p, q)]
    known = (reference >= 10) & (energies[1] - energies[1].min() < 3.0)
    difference = (energies[0] - energies[1])[known]
    difference -= difference.mean()
    phi = np.degrees(0.5 * (EDGES[1:] + EDGES[:-1]))
    right = (phi > 0) & (phi < 130)
    helical = (phi > -110) & (phi < 40)
    return {
        "divergence_bits": jensen_shannon(counts.ravel(), reference.ravel()),
        "free_energy_rms_kcal": float(np.sqrt((difference**2).mean())),
        "left_handed": float(counts[right].sum() / counts.sum()),
        "helical": float(counts[~right][:, helical].sum() / counts.sum()),
    }


def simulated(model: CoarseGrainedModel, part: Part, frames: BeadFrames, arguments: argparse.Namespace) -> Any:
    chosen = np.linspace(0, len(frames.positions) - 1, arguments.replicas).astype(int)
    config = SimulationConfig(
        picoseconds=arguments.picoseconds, temperature_K=KELVIN, interval=0.5, least_distance=0.8, largest_force=200.0
    )
    dynamics = ReplicaLangevin(
        model, Chains.from_sequence(BEADS), frames.positions[chosen], config, seed=arguments.seed, part=part
    )
    result = dynamics.run()
    kept = result.positions[len(result.positions) // 5 :].reshape(-1, len(BEADS), 3)
    return result, kept[np.isfinite(kept).all((1, 2))]


def sampled_alike(
    model: CoarseGrainedModel,
    training: list[BeadFrames],
    base: BeadRecipe,
    arguments: argparse.Namespace,
    progress: Any,
) -> CoarseGrainedModel:
    """The force field after its relative entropy has been minimised, the one it began with unchanged."""
    recipe = dataclasses.replace(base, relative_entropy=RelativeEntropyConfig(steps=arguments.updates))
    network = copy.deepcopy(model.network).requires_grad_(True)
    table = BeadTable(
        model.prior, training, cutoff=recipe.network.cutoff, loss=recipe.loss, dtype=torch.float32, seed=recipe.seed
    )
    minimise_relative_entropy(
        model.prior, network, training, table, recipe, arguments.out / "relative-entropy", progress=progress
    )
    made = assemble(model.prior, network, network.elements, KELVIN)
    save_model(arguments.out / "relative-entropy" / "model.safetensors", made)
    return made


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    positions, forces = (np.load(file).astype(float) for file in arguments.data)
    frames = BeadFrames(
        "ala2", BEADS, positions, forces * KCAL_PER_MOL, np.full(len(positions), KELVIN),
        np.full(len(positions), "one"),
    )  # fmt: skip
    begun, progress = time.time(), make_progress()
    base = BeadRecipe(
        seed=arguments.seed, first=first_stage(max_epochs=arguments.epochs),
        second=second_stage(max_epochs=arguments.epochs // 2), prior=PriorConfig(excluded=0.0, distant=0.0),
        network=BeadNetworkConfig(cutoff=8.0), relative_entropy=RelativeEntropyConfig(steps=0),
    )  # fmt: skip
    training, _, _ = split_frames([frames], (), base.validation)
    prior = fit_prior(training, KELVIN, base.prior, progress=progress).prior
    result = train_beads([frames], prior, arguments.out, base, progress=progress)
    by_forces = load_coarse_grained(result.path)
    by_both = sampled_alike(by_forces, training, base, arguments, progress)
    reference = surface(positions)
    half = len(positions) // 2
    found: dict[str, Any] = {
        "machine": machine(), "replicas": arguments.replicas, "picoseconds": arguments.picoseconds,
        "halves_of_the_data": compared(surface(positions[:half]), surface(positions[half:])),
        "data": compared(reference, reference), "force_fields": {},
    }  # fmt: skip
    surfaces = {"data": reference}
    for name, model, part in (
        ("prior", by_forces, "prior"), ("forces", by_forces, "hybrid"), ("relative entropy", by_both, "hybrid"),
    ):  # fmt: skip
        run, kept = simulated(model, part, frames, arguments)  # type: ignore[arg-type]
        surfaces[name] = surface(kept)
        found["force_fields"][name] = {
            **compared(surfaces[name], reference), "survived": run.survivors,
            "temperature_K": float(run.temperatures.mean()), "timestep_fs": run.timestep,
        }  # fmt: skip
        print(name, json.dumps(found["force_fields"][name]))
    found["validation"] = result.metrics["validation"]
    found["seconds"] = time.time() - begun
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1) + "\n")
    draw(surfaces, arguments.out / "surfaces.svg")


def draw(surfaces: dict[str, np.ndarray], path: Path) -> None:
    """Free-energy surfaces side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(surfaces), 3.4), layout="constrained")
    for axis, (name, counts) in zip(figure.subplots(1, len(surfaces)), surfaces.items(), strict=True):
        with np.errstate(divide="ignore"):
            energy = -KB * KELVIN / KCAL_PER_MOL * np.log(counts / counts.max())
        grid = np.degrees(EDGES)
        axis.pcolormesh(grid, grid, np.where(np.isfinite(energy), energy, np.nan).T, vmin=0, vmax=5)
        axis.set(title=name, xlabel="φ, °", ylabel="ψ, °", aspect="equal")
    figure.savefig(path)


if __name__ == "__main__":
    main()
