"""What a recipe can say about a coarse-grained force field. The defaults are small enough for a laptop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...ase_calcs.errors import InputError, check_at_least, check_positive
from ..config import EngineConfig, TrainConfig
from .prior_fit import PriorConfig


@dataclass(frozen=True)
class BeadNetworkConfig:
    """The network on top of the prior.

    Attributes
    ----------
    architecture
        ``allegro``, or any other name in `distillase.ase_calcs.modelfile.ARCHITECTURES`.
    cutoff
        Å.
    options
        Further keyword arguments of the architecture, e.g. ``{"layers": 4, "l_max": 2}``. An Allegro has two layers and
        is `handed`, if nothing else is said.
    energy_entropy
        Whether the network is two, for energy and entropy, whose free energy depends on temperature (see
        `distillase.ase_calcs.proteins.split`). It learns from frames of all temperatures then.
    dtype
        Arithmetic of the network.
    """

    architecture: str = "allegro"
    cutoff: float = 12.0
    options: dict[str, Any] = field(default_factory=dict)
    energy_entropy: bool = False
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        check_positive("network.cutoff", self.cutoff)


@dataclass(frozen=True)
class BeadLossConfig:
    """What is minimised: the mean squared difference of forces, whose minimum is the mean force whatever the noise.

    Attributes
    ----------
    magnitude
        Weight of the mean square of the network's own forces: it then says little where the data say little.
    smoothness
        Å², weight of the squared change of the network's forces per squared displacement, (F(x + δ) − F(x))²/δ², with
        random δ: forces then vary slowly where data are few. It takes as long as a second evaluation.
    decoys
        Configurations, as a share of the frames, at which the network shall say nothing: there the prior is alone,
        which is stable. One half is moved off the data by `decoy_noise`, in the other two beads are closer than in any
        frame.
    decoy_noise
        Å, standard deviation on every coordinate.
    decoy_weight
        Of a decoy against a frame.
    frame_noise
        eV/Å per component, thermal noise of the forces of a single frame; a mean force counts as many frames as
        have its error together.
    most_frames
        And at most as many as this.
    smooth_functions
        Functions, at most, of a smooth energy that is fitted to the forces of each protein in closed form; the network
        learns its forces instead of the noisy ones. 0: forces as they are.
    """

    magnitude: float = 0.0
    smoothness: float = 0.0
    decoys: float = 0.1
    decoy_noise: float = 0.5
    decoy_weight: float = 0.3
    frame_noise: float = 0.35
    most_frames: float = 100.0
    smooth_functions: int = 4000

    def __post_init__(self) -> None:
        for name in ("magnitude", "smoothness", "decoys", "decoy_weight", "smooth_functions"):
            check_at_least(f"loss.{name}", getattr(self, name), 0.0)
        for name in ("decoy_noise", "frame_noise", "most_frames"):
            check_positive(f"loss.{name}", getattr(self, name))


@dataclass(frozen=True)
class RelativeEntropyConfig:
    """The last stage, in which the force field learns to sample what the frames sample.

    Attributes
    ----------
    steps
        Updates, over all proteins in turn; 0 leaves the stage out.
    replicas
        Of each protein, and frames they are compared with at each update.
    md_steps
        Of the replicas between two updates.
    lr, lr_final
        Rate of Adam, and the share of it at the end.
    force_weight
        Of the forces' log-likelihood; 1 is what it is for forces as they are. Smooth forces know more of each frame's
        mean force than its own force does.
    force_frames
        Forces of how many frames an update looks at.
    ema
        Decay of the average of the weights.
    clip
        Largest norm of a gradient, nats.
    checkpoint_seconds
        Between checkpoints.
    """

    steps: int = 500
    replicas: int = 64
    md_steps: int = 20
    lr: float = 1e-3
    lr_final: float = 0.05
    force_weight: float = 10.0
    force_frames: int = 128
    ema: float = 0.997
    clip: float = 10.0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("replicas", "md_steps", "lr", "lr_final", "force_frames", "clip", "checkpoint_seconds"):
            check_positive(f"relative_entropy.{name}", getattr(self, name))
        for name in ("steps", "force_weight"):
            check_at_least(f"relative_entropy.{name}", getattr(self, name), 0.0)
        if not 0 <= self.ema < 1:
            raise InputError(f"`relative_entropy.ema` is {self.ema}; it must lie from 0 to below 1.")


def first_stage(**changes: Any) -> TrainConfig:
    """AdaBelief with a high rate that falls to a fifth."""
    settings: dict[str, Any] = {
        "optimizer": "adabelief", "lr": 1e-2, "lr_final": 0.2, "max_epochs": 60, "clip": 5.0, "weight_decay": 1e-5,
        "warmup_steps": 50, "batch_frames": 64, "batch_edges": 50_000, "compile": "off", "ema": 0.999, "threads": 1,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


def second_stage(**changes: Any) -> TrainConfig:
    """Yogi, which moves little where gradients are mostly noise."""
    settings: dict[str, Any] = {
        "optimizer": "yogi", "lr": 1e-3, "lr_final": 0.05, "max_epochs": 30, "clip": 4.0, "weight_decay": 1e-5,
        "warmup_steps": 50, "batch_frames": 64, "batch_edges": 50_000, "compile": "off", "ema": 0.999, "threads": 1,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


@dataclass(frozen=True)
class BeadRecipe:
    """Prior, network and training.

    Attributes
    ----------
    temperature
        K; frames of this temperature are learned from, with `network.energy_entropy` those of others too.
    hold_out
        Proteins that are kept out of prior and network altogether.
    validation
        Share of each run's frames, its last ones, that training is judged by.
    seed
        Of initial weights, batches and decoys.
    first, second
        Stages of training, the second from the best weights of the first.
    prior, network, loss, relative_entropy, engine
        See there.
    """

    temperature: float = 300.0
    hold_out: tuple[str, ...] = ()
    validation: float = 0.1
    seed: int = 0
    prior: PriorConfig = field(default_factory=PriorConfig)
    network: BeadNetworkConfig = field(default_factory=BeadNetworkConfig)
    loss: BeadLossConfig = field(default_factory=BeadLossConfig)
    first: TrainConfig = field(default_factory=first_stage)
    second: TrainConfig = field(default_factory=second_stage)
    relative_entropy: RelativeEntropyConfig = field(default_factory=RelativeEntropyConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)
        if not 0 < self.validation < 0.5:
            raise InputError(f"`validation` is {self.validation}; it must lie between 0 and 0.5.")
        for stage in self.stages:
            if stage.compile == "on":
                raise InputError("`compile: on` is not implemented for networks on beads. Take `off`.")

    @property
    def stages(self) -> tuple[TrainConfig, TrainConfig]:
        """Both, in their order."""
        return self.first, self.second
