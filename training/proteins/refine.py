"""Refining: where networks that differ by their seed disagree, all-atom dynamics is asked, and they learn the answer.

A round trains a committee, simulates the mean of it, takes the frames on which the members' forces differ most,
averages the forces there with the Cα atoms held still (`mean_forces_at`), and trains again with these. Everything is
kept as it comes, so that an interrupted refinement goes on, and one of more rounds begins where fewer have ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ...ase_calcs.errors import DataError, InputError, check_at_least, check_positive
from ...ase_calcs.modelfile import load_coarse_grained
from ...ase_calcs.progress import Progress, SilentProgress
from ...ase_calcs.proteins.chains import Chains
from ...ase_calcs.proteins.committee import Committee
from ...ase_calcs.proteins.prior import Prior
from ...ase_calcs.proteins.simulate import ReplicaLangevin, SimulationConfig
from ...datasets.lock import locked
from ...datasets.proteins.alike import squared_differences
from ...datasets.proteins.beads import BeadFrames
from ...datasets.proteins.frames import open_reference, reference_pieces
from ...datasets.proteins.mean_force import (
    MeanForceConfig,
    MeanForces,
    as_frames,
    force_error,
    load_mean_forces,
    mean_forces_at,
)
from ...datasets.writer import atomic_write
from .config import BeadRecipe
from .run import fingerprint_of, nearer_to, split_frames, train_beads

SETTINGS = "refine.json"
_QUANTILE = 0.9  # of the deviation on training frames, above which a frame is flagged unless a threshold is given
_SAMPLE = 2000  # training frames that are looked at for it
_CLOSER = 0.3  # Å, that beads may come closer than in these: what is strained more blows up when atoms are put onto it
_AT_ONCE = 500  # frames


@dataclass(frozen=True)
class RefineConfig:
    """How many, how long and which.

    Attributes
    ----------
    members
        Networks of a committee, two or more.
    rounds
        Of exploring, labelling and training again.
    budget
        Configurations of each protein that are labelled in a round, at most.
    picoseconds
        Of each replica that explores.
    replicas
        Of each protein.
    interval
        ps between the frames that are looked at.
    threshold
        eV/Å; a frame is flagged if the standard deviation of the members' forces on one of its beads is larger. None:
        the largest but a tenth of those on training frames, for each protein and committee anew.
    least_difference
        Å, root mean square over distances between beads, by which labelled configurations differ at least.
    labels
        How forces are averaged; the temperature is that of the recipe, and `configurations` and `last` are not used.
    """

    members: int = 3
    rounds: int = 1
    budget: int = 30
    picoseconds: float = 100.0
    replicas: int = 32
    interval: float = 1.0
    threshold: float | None = None
    least_difference: float = 0.3
    labels: MeanForceConfig = field(default_factory=MeanForceConfig)

    def __post_init__(self) -> None:
        if self.members < 2:
            raise InputError(f"`members` is {self.members}; a committee needs 2 or more, as one agrees with itself.")
        for name in ("rounds", "budget", "replicas"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("picoseconds", "interval"):
            check_positive(name, getattr(self, name))
        check_at_least("least_difference", self.least_difference, 0.0)
        if self.threshold is not None:
            check_positive("threshold", self.threshold)


@dataclass(frozen=True)
class Visited:
    """Where the replicas of one protein have been.

    Attributes
    ----------
    positions
        (M, B, 3) Å, frames of all replicas up to their ends.
    deviations
        (M,) eV/Å, of each frame the largest of its beads.
    threshold
        eV/Å, above which frames are flagged.
    replicas
        How many there were.
    ended
        Which of them ended early, when, and why.
    """

    positions: np.ndarray
    deviations: np.ndarray
    threshold: float
    replicas: int
    ended: tuple[str, ...]

    @property
    def flagged(self) -> np.ndarray:
        """(F,) frames above the threshold."""
        return np.flatnonzero(self.deviations > self.threshold)


@dataclass(frozen=True)
class Refined:
    """What one round did for one protein.

    Attributes
    ----------
    name
        Of the protein.
    visited, flagged, labelled
        How many frames.
    deviations
        eV/Å, mean over the flagged frames, of the committee before and of the one after.
    errors
        eV/Å per component, of the two committees against the new mean forces, each with its standard error; None where
        nothing was labelled. The second was trained on them.
    """

    name: str
    visited: int
    flagged: int
    labelled: int
    deviations: tuple[float, float]
    errors: tuple[tuple[float, float], tuple[float, float]] | None


def check_references(proteins: Sequence[BeadFrames], references: Mapping[str, Path], recipe: BeadRecipe) -> None:
    """Refuse references that cannot label what is learned.

    Raises
    ------
    InputError
        There is none; or one is in explicit water, of another sequence, has not the recipe's temperature, or is of a
        protein that is held out.
    DataError
        A folder holds no reference, or one without frames.
    """
    if not references:
        raise InputError("There is no reference to label with: name the folder of `cg reference` with --reference.")
    known = {p.name: p for p in proteins}
    for name, folder in references.items():
        if name not in known:
            raise InputError(f"There is no protein {name} in the data; there are {', '.join(known)}.")
        if name in recipe.hold_out:
            raise InputError(f"{name} is held out (`hold_out`), so nothing is learned of it. Leave its reference out.")
        source = open_reference(folder, name)
        if source.sequence != known[name].sequence:
            raise InputError(
                f"The reference in {folder} is of {source.sequence}, and {name} in the dataset is "
                f"{known[name].sequence}. Give the reference of the same protein."
            )
        if source.record["system"]["water"] != "obc2":
            raise InputError(
                f"The reference in {folder} is in explicit water ({source.record['system']['water']}), where the water "
                "would have to follow the beads. Mean forces need implicit water (`cg reference --water obc2`)."
            )
        if next(reference_pieces(folder, (recipe.temperature,)), None) is None:
            raise DataError(f"The reference in {folder} has no frames at {recipe.temperature:g} K yet.")


def refine(
    proteins: Sequence[BeadFrames],
    prior: Prior,
    references: Mapping[str, Path],
    folder: str | Path,
    recipe: BeadRecipe | None = None,
    config: RefineConfig | None = None,
    *,
    means: Sequence[BeadFrames] = (),
    dataset_hash: str = "",
    workers: int = 1,
    progress: Progress | None = None,
) -> Iterator[list[Refined]]:
    """Do the rounds one after the other; what is done already is read.

    The last committee explores too, which shows whether it is stable and what it would flag. Its models are
    ``model-0.safetensors`` and so on in `folder`.

    Parameters
    ----------
    proteins, prior, means, dataset_hash
        As in `train_beads`.
    references
        Name of a protein → folder of `run_reference`; the others are learned from, but not explored.
    folder
        Gets ``round-R/member-K``, ``round-R/exploration….npz`` and ``round-R/mean-forces…``.
    recipe
        How each member is trained; member k has its seed plus k.
    config
        How many, how long and which.
    workers
        Processes that label.

    Yields
    ------
    list of Refined
        After each round in which anything was labelled, one for each reference.

    Raises
    ------
    InputError
        As `check_references`; or `folder` holds a refinement with other settings.
    DataError
        All replicas of a protein ended before their first frame.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            "Refining takes one process, which starts workers for what takes long. Run it without torchrun."
        )
    recipe, config = recipe or BeadRecipe(), config or RefineConfig()
    config = dataclasses.replace(config, labels=dataclasses.replace(config.labels, temperature=recipe.temperature))
    check_references(proteins, references, recipe)
    folder = Path(folder)
    with locked(folder, "refining"):
        _claim(folder, fingerprint_of([*proteins, *means], prior, recipe), references, config)
        run = _Run(proteins, prior, references, folder, recipe, config, dataset_hash, workers, progress)
        yield from run.rounds(list(means))


def _claim(folder: Path, learned: str, references: Mapping[str, Path], config: RefineConfig) -> None:
    """Write down what a folder is for, and refuse another refinement there; more or fewer rounds are the same one."""
    settings = {"training": learned, "references": sorted(references), **dataclasses.asdict(config)}
    settings.pop("rounds")
    path = folder / SETTINGS
    if path.is_file():
        known = json.loads(path.read_text())
        other = [name for name, value in settings.items() if known.get(name) != value]
        if other:
            names = ["data, mean forces, prior or recipe" if name == "training" else f"`{name}`" for name in other]
            raise InputError(
                f"{folder} holds a refinement with other settings ({', '.join(names)}). Give the old ones, or name "
                "another folder with --out."
            )
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1))


class _Run:
    """One refinement in its folder."""

    def __init__(
        self,
        proteins: Sequence[BeadFrames],
        prior: Prior,
        references: Mapping[str, Path],
        folder: Path,
        recipe: BeadRecipe,
        config: RefineConfig,
        dataset_hash: str,
        workers: int,
        progress: Progress | None,
    ) -> None:
        self.proteins, self.prior, self.references = proteins, prior, references
        self.folder, self.recipe, self.config = folder, recipe, config
        self.dataset_hash, self.workers, self.progress = dataset_hash, workers, progress or SilentProgress()
        parts = split_frames(proteins, recipe.hold_out, recipe.validation)
        self.training, self.validation = ({p.name: p for p in part} for part in parts[:2])

    def rounds(self, means: list[BeadFrames]) -> Iterator[list[Refined]]:
        """All of them; `means` grows."""
        committee, paths = self.train(0, means)
        for number in range(self.config.rounds):
            visited = {name: self.explore(number, name, committee) for name in self.references}
            chosen = {name: self.choose(name, found, means) for name, found in visited.items()}
            if not any(map(len, chosen.values())):
                why = (
                    "no frame that is flagged is new"
                    if any(len(v.flagged) for v in visited.values())
                    else "nothing is flagged"
                )
                self.progress.say(f"round {number}: {why}, so nothing is labelled and this committee is the last.")
                break
            labels = {name: self.label(number, name, x) for name, x in chosen.items() if len(x)}
            for name, found in labels.items():
                means.append(as_frames(found, name, self.training[name].sequence, self.recipe.temperature))
            before = committee
            committee, paths = self.train(number + 1, means)
            yield [compare(name, visited[name], labels.get(name), self.chains(name), before, committee)
                for name in self.references]  # fmt: skip
        else:
            for name in self.references:
                self.explore(self.config.rounds, name, committee)
        for k, path in enumerate(paths):
            with atomic_write(self.folder / f"model-{k}.safetensors") as temporary:
                shutil.copyfile(path, temporary)

    def chains(self, name: str) -> Chains:
        """Of a protein."""
        return Chains.from_sequence(self.training[name].sequence)

    def at(self, number: int, what: str, name: str, ending: str = "") -> Path:
        """Where a round keeps something of a protein, whose name goes without saying if it is the only one."""
        suffix = "" if len(self.references) == 1 else "-" + name.replace("/", "_")
        return self.folder / f"round-{number}" / f"{what}{suffix}{ending}"

    def train(self, number: int, means: Sequence[BeadFrames]) -> tuple[Committee, list[Path]]:
        """The committee that a round begins with, and its model files."""
        paths = []
        for k in range(self.config.members):
            self.progress.say(f"round {number}, member {k}")
            paths.append(
                train_beads(
                    self.proteins, self.prior, self.folder / f"round-{number}" / f"member-{k}",
                    dataclasses.replace(self.recipe, seed=self.recipe.seed + k), means=means,
                    dataset_hash=self.dataset_hash, progress=self.progress,
                ).path
            )  # fmt: skip
        return Committee([load_coarse_grained(path) for path in paths]), paths

    def explore(self, number: int, name: str, committee: Committee) -> Visited:
        """Simulate a protein with the committee, or read what was simulated."""
        file = self.at(number, "exploration", name, ".npz")
        if not file.is_file():
            found = self._explore(number, name, committee)
            with atomic_write(file) as temporary, open(temporary, "wb") as target:
                np.savez_compressed(target, **{**vars(found), "ended": np.array(found.ended, dtype=str)})
        # Read in either case: what is labelled shall not depend on whether there was an interruption.
        with np.load(file) as data:
            visited = Visited(
                data["positions"].astype(float), data["deviations"], float(data["threshold"]), int(data["replicas"]),
                tuple(data["ended"].tolist()),
            )  # fmt: skip
        self.progress.say(
            f"round {number}, {name}: {len(visited.flagged)} of {len(visited.positions)} frames visited are above "
            f"{visited.threshold:.3f} eV/Å"
        )
        if visited.ended:
            first = "; ".join(visited.ended[:3])
            self.progress.say(
                f"  {len(visited.ended)} of {visited.replicas} replicas ended early, and their frames up to there are "
                f"used: {first}{'; …' if len(visited.ended) > 3 else ''}"
            )
        return visited

    def _explore(self, number: int, name: str, committee: Committee) -> Visited:
        config, chains = self.config, self.chains(name)
        frames = self._sample(name)
        begin = frames[np.linspace(0, len(frames) - 1, config.replicas).astype(int)]
        settings = SimulationConfig(
            picoseconds=config.picoseconds, temperature_K=self.recipe.temperature, interval=config.interval
        )
        seed = self.recipe.seed + 1000 * number + list(self.references).index(name)
        dynamics = ReplicaLangevin(committee, chains, begin, settings, seed=seed)
        with self.progress.task(f"exploring {name}, ps", config.picoseconds * config.replicas) as task:
            result = dynamics.run(task.advance)
        ended = tuple(f"replica {t.replica} after {t.picoseconds:.1f} ps: {t.reason}" for t in result.troubles)
        visited = result.positions[np.isfinite(result.positions).all((2, 3))].astype(np.float32)
        if not len(visited):
            raise DataError(
                f"All replicas of {name} ended before their first frame ({'; '.join(ended[:3])}): the committee is not "
                "stable at all. More decoys (`loss.decoys`) help, or a weight on `loss.magnitude`."
            )
        threshold = config.threshold
        if threshold is None:
            threshold = float(np.quantile(deviations_of(committee, chains, frames), _QUANTILE))
        return Visited(visited, deviations_of(committee, chains, visited), threshold, config.replicas, ended)

    def _sample(self, name: str) -> np.ndarray:
        """Training frames at the recipe's temperature, at equal intervals, not too many."""
        frames = self.training[name].at(self.recipe.temperature).positions
        return frames[np.linspace(0, len(frames) - 1, min(len(frames), _SAMPLE)).astype(int)]

    def choose(self, name: str, visited: Visited, means: Sequence[BeadFrames]) -> np.ndarray:
        """(C, B, 3) Å: configurations to label."""
        x, deviations = visited.positions[visited.flagged], visited.deviations[visited.flagged]
        usable = _shortest(x) > _shortest(self._sample(name)).min() - _CLOSER
        trained, validated = self.training[name].positions, self.validation[name].positions
        for first in range(0, len(x), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            usable[part] &= nearer_to(trained, validated, x[part])
        if not usable.all():
            self.progress.say(
                f"  {len(x) - usable.sum()} of them lie nearest to validation frames or have beads closer than in the "
                "data, and are not labelled"
            )
        x, deviations = x[usable], deviations[usable]
        known = [p.positions for p in means if p.name == name]
        labelled = np.concatenate([x[:0], *known])
        return x[choose_different(
            x, deviations, labelled, budget=self.config.budget, least_difference=self.config.least_difference
        )]  # fmt: skip

    def label(self, number: int, name: str, positions: np.ndarray) -> MeanForces:
        """Mean forces there; those that are done already are read."""
        folder = self.at(number, "mean-forces", name)
        if len(list(folder.glob("[0-9]*.npz"))) == len(positions):
            known = load_mean_forces(folder)
            # These stay what they are when the reference grows, and would begin from other frames of it.
            if np.array_equal(known.positions, positions):
                return known
        return mean_forces_at(
            positions, self.references[name], folder, self.config.labels, seed=self.recipe.seed + number,
            workers=self.workers, progress=self.progress,
        )  # fmt: skip


def deviations_of(committee: Committee, chains: Chains, positions: np.ndarray) -> np.ndarray:
    """(M,) eV/Å: of configurations (M, B, 3), the largest deviation of any bead."""
    x = torch.as_tensor(positions.astype(float), device=committee.device)
    return np.asarray(committee.forces(x, committee.bind(chains))[1].amax(1).numpy(force=True), dtype=float)


def choose_different(
    positions: np.ndarray,
    deviations: np.ndarray,
    labelled: np.ndarray,
    *,
    budget: int,
    least_difference: float,
) -> np.ndarray:
    """Farthest-point selection by the distances between beads.

    Parameters
    ----------
    positions
        (M, B, 3) Å, to choose from.
    deviations
        (M,) the one with the largest is first if nothing has been labelled yet.
    labelled
        (L, B, 3) Å, which the others shall differ from as well.
    budget
        How many at most.
    least_difference
        Å, by which each differs from every other and from what is labelled.

    Returns
    -------
    (C,) int
        In the order of choosing.
    """
    difference = np.full(len(positions), np.inf)
    if len(labelled) and len(positions):
        difference = np.sqrt(squared_differences(positions, labelled).min(1))
    chosen: list[int] = []
    while len(chosen) < min(budget, len(positions)):
        far = difference if np.isfinite(difference).all() else deviations
        k = int(far.argmax())
        if difference[k] <= least_difference:
            break
        chosen.append(k)
        difference = np.minimum(difference, np.sqrt(squared_differences(positions, positions[[k]])[:, 0]))
        difference[k] = 0.0  # exactly, whatever the rounding
    return np.array(chosen, dtype=int)


def compare(
    name: str, visited: Visited, labels: MeanForces | None, chains: Chains, before: Committee, after: Committee
) -> Refined:
    """Two committees on the frames that the first one flagged, and on those of them that were labelled."""
    flagged = visited.positions[visited.flagged]
    deviations = [float(deviations_of(one, chains, flagged).mean()) if len(flagged) else 0.0 for one in (before, after)]
    errors = None
    if labels is not None:
        x = torch.as_tensor(labels.positions)
        each = [force_error(one.forces(x, one.bind(chains))[0].numpy(force=True), labels) for one in (before, after)]
        errors = each[0], each[1]
    n_labelled = 0 if labels is None else len(labels.positions)
    return Refined(
        name, len(visited.positions), len(flagged), n_labelled, (deviations[0], deviations[1]), errors
    )  # fmt: skip


def _shortest(positions: np.ndarray) -> np.ndarray:
    """(M,) Å, the shortest distance between two beads of each configuration (M, B, 3)."""
    i, j = np.triu_indices(positions.shape[1], 1)
    found = np.empty(len(positions))
    for first in range(0, len(positions), _AT_ONCE):
        x = positions[first : first + _AT_ONCE]
        found[first : first + _AT_ONCE] = np.linalg.norm(x[:, i] - x[:, j], axis=-1).min(1)
    return found
