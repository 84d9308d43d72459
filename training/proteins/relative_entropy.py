"""Relative entropy: the force field samples what the frames sample.

Forces on beads are nearly all thermal noise, while the frames themselves are drawn from the distribution that the force
field shall have. The relative entropy between both falls along

    ∂S/∂w = (⟨∂U/∂w⟩ of frames − ⟨∂U/∂w⟩ of the force field) / kT

(Shell, 10.1063/1.2992060), the gradient of maximum likelihood. The second mean is taken over replicas that go on under
the force field as it changes (persistent contrastive divergence, Tieleman 2008). Forces stay in the loss, as what they
are: observations with Gaussian noise, so that both are log-likelihoods in the same unit and nothing has to be weighed.

The prior is not changed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ase_calcs.errors import DataError, InputError
from ...ase_calcs.potential import Potential
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.model import BeadTopology, CoarseGrainedModel, bead_graph
from ...ase_calcs.proteins.prior import Prior
from ...ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from ...ase_calcs.units import KB
from ...datasets.proteins.beads import BeadFrames
from ..checkpoint import load_checkpoint, remove_checkpoints, save_checkpoint
from ..optimizers import ExponentialAverage
from .config import BeadRecipe, RelativeEntropyConfig
from .metrics import divergence, pair_distances
from .task import INDEX, BeadTable, BeadTask

HISTORY = "history.json"
_LOOK_EVERY = 50  # updates of a protein, between lines of the history
_NEARER = 0.7  # than any two beads in the frames
_MOST_RESTARTS = 0.05  # of all replicas at an update, on average since the last line
_LEAST_UPDATES = 5  # over which that average is taken


@dataclass
class _Ensemble:
    """One protein: its frames, and the replicas under the force field."""

    protein: BeadFrames
    topology: BeadTopology
    dynamics: ReplicaLangevin
    recent: list[np.ndarray]
    restarts: int = 0


def minimise_relative_entropy(
    prior: Prior,
    potential: Potential,
    proteins: Sequence[BeadFrames],
    table: BeadTable,
    recipe: BeadRecipe,
    folder: Path,
    *,
    fingerprint: str = "",
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Go on training a network, in place, and leave the average of its weights in it.

    Parameters
    ----------
    prior
        Of the force field.
    potential
        Trained on forces.
    proteins
        Training frames.
    table
        Forces to learn from, with mean forces and decoys.
    recipe
        Its ``relative_entropy`` says how.
    folder
        For checkpoints and the history.
    fingerprint
        Of data and settings; a checkpoint with another one is refused.

    Returns
    -------
    list of dict
        One for each line of the history: update, protein, divergences of what the replicas sampled since the last line
        from the frames, how many were started again.

    Raises
    ------
    DataError
        The force field became unstable.
    """
    run = _Run(prior, potential, proteins, table, recipe, folder, fingerprint)
    progress = progress or SilentProgress()
    if not run.resume():
        progress.say(f"the checkpoint in {folder.name} is of other settings: this stage begins anew")
    with progress.task("relative entropy, updates", run.config.steps) as task:
        task.advance(run.step)
        while run.step < run.config.steps:
            line = run.update()
            task.advance(1)
            if line is not None:
                progress.say(_said(line))
    run.finish()
    return run.history


def _said(line: dict[str, Any]) -> str:
    kinds = ", ".join(f"{name} {value:.3f}" for name, value in line["divergence"].items())
    return f"relative entropy, update {line['update']}, {line['protein']}: divergence (bits) {kinds}"


class _Run:
    def __init__(
        self,
        prior: Prior,
        potential: Potential,
        proteins: Sequence[BeadFrames],
        table: BeadTable,
        recipe: BeadRecipe,
        folder: Path,
        fingerprint: str,
    ) -> None:
        self.config: RelativeEntropyConfig = recipe.relative_entropy
        self.potential, self.table, self.folder, self.fingerprint = potential, table, folder, fingerprint
        self.task = BeadTask(potential, recipe.loss)
        self.noise = recipe.loss.frame_noise
        self.kt = KB * recipe.temperature
        self.places = sum(len(p.positions) for p in proteins)
        self.device = potential.device
        folder.mkdir(parents=True, exist_ok=True)
        model = CoarseGrainedModel(potential.elements, prior=prior.hyperparameters, temperature=recipe.temperature)
        model.prior = deepcopy(prior).to(self.device)
        model.network = potential  # the live one: replicas follow its weights
        self.rng = np.random.default_rng(recipe.seed)
        self.ensembles = []
        for number, protein in enumerate(proteins):
            chains = Chains.from_sequence(protein.sequence)
            start = protein.positions[self.rng.choice(len(protein.positions), self.config.replicas)]
            # What no frame comes near is wrong; frames of other beads than Cα may be closer than those ever are.
            closest = float(pair_distances(protein.positions).min()) if len(chains) > 1 else np.inf
            ordinary = SimulationConfig().least_distance
            config = SimulationConfig(temperature_K=recipe.temperature, least_distance=min(ordinary, _NEARER * closest))
            dynamics = ReplicaLangevin(model, chains, start, config, seed=recipe.seed + number)
            self.ensembles.append(_Ensemble(protein, dynamics.topology, dynamics, []))
        self.optimizer = torch.optim.Adam(potential.parameters(), lr=self.config.lr, betas=(0.5, 0.99))
        self.average = ExponentialAverage(potential, self.config.ema)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.saved = time.monotonic()

    def update(self) -> dict[str, Any] | None:
        """One step of the optimizer; a line of the history, where one is due."""
        number = self.step // len(self.ensembles)
        ensemble = self.ensembles[self.step % len(self.ensembles)]
        self._advance(ensemble)
        share = self.step / max(1, self.config.steps - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self.config.lr_final**share
        self.task.train()
        frames = ensemble.protein.positions
        chosen = torch.as_tensor(frames[self.rng.choice(len(frames), self.config.replicas)], device=self.device)
        sampled = ensemble.dynamics.x
        energies = self._energies(torch.cat([chosen, sampled]), ensemble.topology)
        known, own = energies.split(self.config.replicas)
        total = (known.mean() - own.mean()) / self.kt + self.config.force_weight * self._force_loss()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.potential.parameters(), self.config.clip)
        self.optimizer.step()
        self.average.update()
        self.step += 1
        ensemble.recent.append(sampled.cpu().numpy().copy())
        self._check(ensemble)
        line = self._line(ensemble) if (number + 1) % _LOOK_EVERY == 0 else None
        if time.monotonic() - self.saved > self.config.checkpoint_seconds:
            self.save()
        return line

    def finish(self) -> None:
        """Leave the averaged weights in the network, and the history beside the checkpoint."""
        for ensemble in self.ensembles:
            if ensemble.recent:
                self._line(ensemble)
        self.save()
        self.average.swap()
        self.task.eval()
        (self.folder / HISTORY).write_text(json.dumps(self.history, indent=1))

    def save(self) -> None:
        """Everything that the next update depends on."""
        save_checkpoint(
            self.folder,
            {
                "fingerprint": self.fingerprint, "step": self.step, "history": self.history,
                "potential": self.potential.state_dict(), "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(), "rng": json.dumps(self.rng.bit_generator.state),
                "ensembles": [
                    {
                        "x": e.dynamics.x, "v": e.dynamics.v, "generator": e.dynamics.generator.get_state(),
                        "recent": torch.as_tensor(np.array(e.recent)), "restarts": e.restarts,
                    }
                    for e in self.ensembles
                ],
            },
        )  # fmt: skip
        self.saved = time.monotonic()

    def resume(self) -> bool:
        """Go on from a checkpoint, if there is one; False if it was of other settings, and is removed."""
        try:
            state = load_checkpoint(self.folder, self.fingerprint)
        except InputError:  # what was learned from forces is the same, or its own stages would have refused
            remove_checkpoints(self.folder)
            return False
        if state is None:
            return True
        self.step, self.history = state["step"], state["history"]
        self.potential.load_state_dict(state["potential"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        for mine, saved in zip(self.ensembles, state["ensembles"], strict=True):
            mine.dynamics.x, mine.dynamics.v = saved["x"].to(self.device), saved["v"].to(self.device)
            mine.dynamics.generator.set_state(saved["generator"])
            mine.recent, mine.restarts = list(saved["recent"].numpy()), saved["restarts"]
        return True

    def _advance(self, ensemble: _Ensemble) -> None:
        """The replicas go on with the weights as they are now; those that went wrong begin at a frame again."""
        dynamics = ensemble.dynamics
        self.task.eval()
        self.potential.requires_grad_(False)
        dynamics.output = dynamics.evaluate(dynamics.x)
        for _ in range(self.config.md_steps):
            dynamics.step()
        self.potential.requires_grad_(True)
        for k in dynamics.wrong().nonzero().flatten().tolist():
            frame = ensemble.protein.positions[int(self.rng.integers(len(ensemble.protein.positions)))]
            dynamics.place(k, frame)
            ensemble.restarts += 1

    def _energies(self, positions: Tensor, topology: BeadTopology) -> Tensor:
        """(R,) eV of the network."""
        graph = bead_graph(positions, topology, self.potential.cutoff, self.potential.dtype)
        vectors = graph.positions[graph.edges[1]] - graph.positions[graph.edges[0]]
        terms, _ = self.potential.predict(
            self.potential.species(graph.numbers), graph.system, graph.edges, vectors, graph.charge,
            graph.multiplicity, derivatives=False, create_graph=False,
        )  # fmt: skip
        return terms.energies.new_zeros(len(positions)).index_add(0, graph.system, terms.energies)

    def _force_loss(self) -> Tensor:
        """− log-likelihood of all forces (estimated from some), for each frame whose positions are looked at; nats.

        A mean force of weight w has the variance of w frames' mean, so Σ w |ΔF|²/2σ² holds for both.
        """
        drawn = min(self.config.force_frames, len(self.table))
        batch = self.table.batch(self.rng.choice(len(self.table), drawn, replace=False)).to(self.device)
        counts = self.task.counts(batch)
        mean, _ = self.task(batch.tensors(), counts)  # divided by the sum of weights
        total = mean * counts[INDEX["weight"]].to(mean.dtype)
        return total * (len(self.table) / drawn) / (self.places * 2 * self.noise**2)

    def _check(self, ensemble: _Ensemble) -> None:
        """End a training that has gone astray. Nothing is saved: what there is on disk is older."""
        pieces = self.config.replicas * max(len(ensemble.recent), _LEAST_UPDATES)
        if ensemble.restarts > _MOST_RESTARTS * pieces:
            raise DataError(
                f"The force field of {ensemble.protein.name} became unstable while its relative entropy was minimised "
                f"(update {self.step}): of {self.config.replicas * len(ensemble.recent)} pieces of dynamics "
                f"{ensemble.restarts} had to begin again. A smaller `relative_entropy.lr` helps, or more weight on "
                "forces (`relative_entropy.force_weight`); what was learned from forces is kept."
            )

    def _line(self, ensemble: _Ensemble) -> dict[str, Any]:
        sampled = np.concatenate(ensemble.recent)
        line = {
            "update": self.step, "protein": ensemble.protein.name,
            "divergence": divergence(sampled, ensemble.protein.positions),
            "restarts": ensemble.restarts,
        }  # fmt: skip
        self.history.append(line)
        ensemble.recent, ensemble.restarts = [], 0
        return line
