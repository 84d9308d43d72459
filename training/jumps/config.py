"""What a recipe can say about a jump network and how it learns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...ase_calcs.errors import InputError, check_at_least, check_positive
from ..config import TrainConfig


@dataclass(frozen=True)
class JumpModelConfig:
    """The network.

    Attributes
    ----------
    architecture
        ``painn-jump``, ``egnn-jump`` or ``transformer-jump``.
    features, layers, n_basis
        Width, message layers, radial functions.
    cutoff
        Å.
    max_displacement
        Å; a longer displacement of an atom is shortened to this length.
    force_head
        Also predict the teacher's forces at the start of the jump.
    heads
        Of the attention of ``transformer-jump``.
    vectors
        Per atom, of ``egnn-jump`` and ``transformer-jump``.
    rank
        Of the features of ``painn-jump``, 1 or 2.
    start_from
        A jump network's file whose weights are taken over; the settings above must be its own.
    freeze_layers
        That many of the first message layers keep the weights of `start_from`.
    """

    architecture: Literal["painn-jump", "egnn-jump", "transformer-jump"] = "painn-jump"
    features: int = 64
    layers: int = 3
    n_basis: int = 16
    cutoff: float = 7.0
    max_displacement: float = 2.5
    force_head: bool = False
    heads: int = 4
    vectors: int = 8
    rank: int = 2
    start_from: str = ""
    freeze_layers: int = 0

    def __post_init__(self) -> None:
        for name in ("features", "layers", "n_basis", "heads", "vectors", "rank"):
            check_at_least(f"model.{name}", getattr(self, name), 1)
        for name in ("cutoff", "max_displacement"):
            check_positive(f"model.{name}", getattr(self, name))
        if not 0 <= self.freeze_layers <= self.layers:
            raise InputError(f"`model.freeze_layers` is {self.freeze_layers}; there are {self.layers} layers.")
        if self.freeze_layers and not self.start_from:
            raise InputError("`model.freeze_layers` without `model.start_from` would freeze weights that know nothing.")


@dataclass(frozen=True)
class JumpDataConfig:
    """What is learned from.

    Attributes
    ----------
    source
        ``windows``: where atoms are k steps later, from trajectories. ``flow``: mean-flow consistency, from positions
        and forces alone (any labelled dataset), for every jump up to `longest`.
    timestep
        fs, of the small steps that k counts.
    k
        Jumps are k small steps long; several values are learned together.
    longest
        fs, of the jumps of ``flow``.
    temperatures_K
        From these velocities are drawn for ``flow``.
    instant
        Share of the examples of ``flow`` with no duration, where the network is a plain force field.
    every
        A window begins every so many frames; for ``flow``, one frame in so many is used.
    rotations
        ``per_graph`` or ``batch``: windows are turned at random, each by its own rotation or all by one; ``off``. The
        networks are equivariant, and learn the same with and without: this is there to show it.
    by
        Validation holds out whole ``trajectory`` runs, or whole molecules (``group``).
    validation
        Share of the runs or molecules that are held out.
    """

    source: Literal["windows", "flow"] = "windows"
    timestep: float = 0.5
    k: tuple[int, ...] = (8,)
    longest: float = 10.0
    temperatures_K: tuple[float, float] = (200.0, 500.0)
    instant: float = 0.5
    every: int = 1
    rotations: Literal["off", "batch", "per_graph"] = "off"
    by: Literal["trajectory", "group"] = "trajectory"
    validation: float = 0.1

    def __post_init__(self) -> None:
        check_positive("data.timestep", self.timestep)
        check_positive("data.longest", self.longest)
        check_at_least("data.every", self.every, 1)
        if not self.k or any(k < 1 for k in self.k):
            raise InputError(f"`data.k` is {list(self.k)}; it needs one or more whole numbers, 1 or more.")
        if not 0 < self.validation < 1 or not 0 <= self.instant <= 1:
            raise InputError("`data.validation` must be above 0 and below 1, `data.instant` from 0 to 1.")
        if not 0 < self.temperatures_K[0] <= self.temperatures_K[1]:
            raise InputError(f"`data.temperatures_K` is {list(self.temperatures_K)}; write [lowest, highest], above 0.")

    @property
    def t_max(self) -> float:
        """Longest jump, fs."""
        return self.longest if self.source == "flow" else max(self.k) * self.timestep


@dataclass(frozen=True)
class JumpLossConfig:
    """Weights; every term is in units of its own spread in the training set, and structure in those given here.

    Attributes
    ----------
    displacement, velocity, forces
        Of the jump, and of the force head.
    bonds, angles, dihedrals
        Of the structure after the jump, against the true one: in units of 0.02 Å, 0.05 and 0.1 rad. With ``source:
        flow`` there is no true one, and they are 0 whatever is given here.
    kind
        ``norm``: length of the error; ``mse``: its square, whose best answer to a random target is the mean.
    """

    displacement: float = 1.0
    velocity: float = 1.0
    forces: float = 1.0
    bonds: float = 0.1
    angles: float = 0.1
    dihedrals: float = 0.1
    kind: Literal["norm", "mse"] = "norm"

    def __post_init__(self) -> None:
        for name in ("displacement", "velocity", "forces", "bonds", "angles", "dihedrals"):
            check_at_least(f"loss.{name}", getattr(self, name), 0.0)
        if self.displacement + self.velocity == 0:
            raise InputError("`loss` has no weight on displacement or velocity: no jump would be learned.")


@dataclass(frozen=True)
class JumpRecipe:
    """Everything that decides what a jump network becomes.

    Attributes
    ----------
    seed
        Of split, weights, order and velocities.
    data, model, loss
        See their classes.
    training
        As for potentials; its `loss` is not used.
    """

    seed: int = 0
    data: JumpDataConfig = field(default_factory=JumpDataConfig)
    model: JumpModelConfig = field(default_factory=JumpModelConfig)
    loss: JumpLossConfig = field(default_factory=JumpLossConfig)
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(batch_frames=64, batch_edges=100_000, lr=2e-3, compile="off")
    )

    def __post_init__(self) -> None:
        if self.data.source == "flow" and self.loss.bonds + self.loss.angles + self.loss.dihedrals > 0:
            # The target of mean-flow training is a rate; there is no structure after the jump to compare with.
            object.__setattr__(self, "loss", JumpLossConfig(**vars(self.loss) | dict.fromkeys(STRUCTURE, 0.0)))


STRUCTURE = ("bonds", "angles", "dihedrals")
