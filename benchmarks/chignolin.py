"""A coarse-grained force field of chignolin against the all-atom dynamics it was made from.

    python benchmarks/chignolin.py --model runs/chignolin/model.safetensors --picoseconds 2000

What is compared lies in benchmarks/references: mapped frames of replica-exchange dynamics at 300 K (amber14, OBC2; two
ladders, one begun folded and one extended), mean forces on frozen configurations, and the native structure. The
commands that made them are in benchmarks/references/README.md. For the prior alone and for prior and network: how many
of the replicas live, temperature, shortest distance; Jensen–Shannon divergence (bits) of all Cα distances, angles and
dihedrals beside that between the two ladders of the reference; native contacts, the share that is folded and its free
energy; error of mean forces; ns a day.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distillase.ase_calcs.modelfile import load_coarse_grained
from distillase.ase_calcs.proteins.calculator import CoarseGrainedCalculator
from distillase.ase_calcs.proteins.chains import Chains, coarse_grained_atoms, read_beads_pdb
from distillase.ase_calcs.proteins.geometry import angles, dihedrals
from distillase.ase_calcs.proteins.model import CoarseGrainedModel
from distillase.ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from distillase.ase_calcs.units import KB, KCAL_PER_MOL
from distillase.datasets.proteins.beads import BeadFrames, load_npz
from distillase.datasets.proteins.mean_force import MeanForces, force_error
from distillase.training.dynamics_report.metrics import histogram, jensen_shannon

HERE = Path(__file__).parent
KELVIN = 300.0
EDGES = {
    "distances": np.linspace(3.0, 30.0, 55),
    "angles": np.linspace(0.0, np.pi, 37),
    "dihedrals": np.linspace(-np.pi, np.pi, 37),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--replicas", type=int, default=32)
    parser.add_argument(
        "--picoseconds", type=float, default=1000.0, help="of each replica; the first fifth is left out"
    )
    parser.add_argument("--parts", nargs="+", default=["prior", "hybrid"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--references", type=Path, default=HERE / "references")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "chignolin.json")
    return parser.parse_args()


class Judge:
    """The reference, and what configurations are compared by."""

    def __init__(self, folder: Path) -> None:
        (self.frames,) = load_npz(folder / "chignolin-300K.npz")
        native = read_beads_pdb(folder / "chignolin.pdb").positions
        self.pairs = np.array(np.triu_indices(len(native), 1))
        self.native = np.linalg.norm(native[self.pairs[0]] - native[self.pairs[1]], axis=1)
        self.contacts = (self.native < 8.0) & (self.pairs[1] - self.pairs[0] > 2)
        with np.load(folder / "chignolin-mean-forces.npz") as data:
            self.mean_forces = MeanForces(**{name: data[name].astype(float) for name in data.files})

    def ladders(self) -> tuple[BeadFrames, BeadFrames]:
        """The frames of the two ladders of the reference."""
        names = sorted({origin.split("-")[0] for origin in self.frames.origins})
        first, second = (np.char.startswith(self.frames.origins, name) for name in names)
        return self.frames.select(first), self.frames.select(second)

    def distances(self, x: np.ndarray) -> np.ndarray:
        """(T, P) Å of all pairs."""
        return np.linalg.norm(x[:, self.pairs[0]] - x[:, self.pairs[1]], axis=-1)

    def divergence(self, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        """Mean over coordinates of the Jensen–Shannon divergence of their distributions, bits."""
        found = {}
        for name, measure in (("distances", self.distances), ("angles", angles), ("dihedrals", dihedrals)):
            one, other = measure(a), measure(b)
            columns = zip(one.T, other.T, strict=True)
            edges = EDGES[name]
            found[name] = float(np.mean([jensen_shannon(histogram(p, edges), histogram(q, edges)) for p, q in columns]))
        return found

    def folded(self, x: np.ndarray) -> dict[str, float]:
        """Native contacts (smooth, β = 5/Å, λ = 1.2), and the free energy of unfolding at Q = 0.6, kcal/mol."""
        q = (1 / (1 + np.exp(5 * (self.distances(x)[:, self.contacts] - 1.2 * self.native[self.contacts])))).mean(1)
        share = float((q > 0.6).mean())
        cost = KB * KELVIN * np.log(share / (1 - share)) / KCAL_PER_MOL if 0 < share < 1 else float("nan")
        return {"q": float(q.mean()), "folded": share, "unfolding_kcal": float(cost)}

    def forces(self, model: CoarseGrainedModel, part: str) -> tuple[float, float]:
        """Error of mean forces and its standard error, kcal/mol/Å per component."""
        structures = [coarse_grained_atoms(self.frames.sequence, x) for x in self.mean_forces.positions]
        results = CoarseGrainedCalculator(model, part=part).calculate_many(structures)  # type: ignore[arg-type]
        error, spread = force_error(np.stack([r["forces"] for r in results]), self.mean_forces)
        return error / KCAL_PER_MOL, spread / KCAL_PER_MOL


def simulated(judge: Judge, model: CoarseGrainedModel, part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Replicas that begin at frames spread over the reference."""
    frames = judge.frames
    start = frames.positions[np.linspace(0, len(frames.positions) - 1, arguments.replicas).astype(int)]
    config = SimulationConfig(picoseconds=arguments.picoseconds, temperature_K=KELVIN)
    chains = Chains.from_sequence(frames.sequence)
    result = ReplicaLangevin(model, chains, start, config, seed=arguments.seed, part=part).run()  # type: ignore[arg-type]
    kept = result.positions[len(result.positions) // 5 :].reshape(-1, len(chains), 3)
    kept = kept[np.isfinite(kept).all((1, 2))]
    return {
        "survived": result.survivors,
        "troubles": [vars(trouble) for trouble in result.troubles],
        "temperature_K": float(result.temperatures.mean()),
        "shortest_A": float(result.shortest.min()),
        "divergence_bits": judge.divergence(kept, frames.positions),
        **judge.folded(kept),
        "mean_force_error_kcal": judge.forces(model, part),
        "timestep_fs": result.timestep,
        "ns_per_day": float(result.steps.sum() * result.timestep * 1e-6 / result.seconds * 86400),
    }


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    begun, judge, model = time.time(), Judge(arguments.references), load_coarse_grained(arguments.model)
    one, other = judge.ladders()
    nothing = MeanForces(**vars(judge.mean_forces))
    zero, _ = force_error(np.zeros_like(nothing.forces), nothing)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, one thread",
        "replicas": arguments.replicas,
        "picoseconds": arguments.picoseconds,
        "reference": {
            "frames": len(judge.frames.positions),
            "divergence_of_ladders_bits": judge.divergence(one.positions, other.positions),
            "all": judge.folded(judge.frames.positions),
            "ladders": [judge.folded(p.positions) for p in (one, other)],
            "mean_force_rms_kcal": zero / KCAL_PER_MOL,
            "mean_force_noise_kcal": float(np.sqrt((judge.mean_forces.errors**2).mean())) / KCAL_PER_MOL,
        },
        "parts": {},
    }
    print(json.dumps(found["reference"], indent=1))
    for part in arguments.parts:
        found["parts"][part] = simulated(judge, model, part, arguments)
        print(part, json.dumps(found["parts"][part], indent=1))
        found["seconds"] = time.time() - begun
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
