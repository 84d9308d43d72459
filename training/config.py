"""What a recipe can say about the student and its training. Every key is described here, the most important first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..ase_calcs.errors import InputError, check_at_least, check_positive


@dataclass(frozen=True)
class ModelConfig:
    """The student.

    Attributes
    ----------
    architecture
        Name in `distillase.ase_calcs.modelfile.ARCHITECTURES`.
    features
        Width of the network; wider is more accurate and slower.
    layers
        Message–update pairs. Each carries information one cutoff further.
    cutoff
        Å; atoms further apart than this see each other only through others.
    n_basis
        Radial functions.
    rank
        Highest rank of the features: 1, vectors as in the PaiNN paper, or 2, which needs fewer labels for the same
        error and costs more per step.
    charges
        Also predict partial charges and dipoles; give `loss.charges` or `loss.dipole` a weight with it.
    dtype
        Arithmetic of the network; sums over atoms are in float64 either way.
    start_from
        A model file whose weights training begins with, of the same settings as above: a student of a cheap teacher
        needs few labels of a dear one.
    """

    architecture: str = "painn"
    features: int = 32
    layers: int = 2
    cutoff: float = 5.0
    n_basis: int = 16
    rank: int = 2
    charges: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    start_from: str = ""

    def __post_init__(self) -> None:
        for name in ("features", "layers", "n_basis", "rank"):
            check_at_least(f"model.{name}", getattr(self, name), 1)
        check_positive("model.cutoff", self.cutoff)


@dataclass(frozen=True)
class SplitConfig:
    """Which frames are trained on.

    Attributes
    ----------
    by
        What stays together: ``trajectory`` (for a student of these very molecules), ``group`` (whole molecules are
        held out: for a student that shall generalise to others) or ``frame``.
    validation, test
        Shares of the frames.
    """

    by: Literal["trajectory", "group", "frame"] = "trajectory"
    validation: float = 0.05
    test: float = 0.1

    def __post_init__(self) -> None:
        check_positive("split.validation", self.validation)
        check_positive("split.test", self.test)
        if self.validation + self.test >= 1:
            raise InputError(
                f"`split.validation` and `split.test` are {self.validation} and {self.test}; together they must leave "
                "something to train on."
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights and shape of the loss; a weight of zero leaves a term out.

    Attributes
    ----------
    forces, energy
        Weights of the force error per atom (eV/Å) and of the energy error per atom of a structure (eV).
    angle
        Weight of 1 − cos θ between predicted and reference force, over atoms whose reference force exceeds
        `angle_threshold`.
    angle_threshold
        eV/Å; the direction of a smaller force is not trained on.
    kind
        ``norm``: length of the error vector; ``mse``: its square; ``huber``: squared below `huber_delta`, linear above.
    huber_delta
        eV/Å for forces, eV per atom for energies.
    stress, charges, dipole
        Weights of the errors in eV/Å³, e and e·Å.
    """

    forces: float = 1.0
    energy: float = 1.0
    angle: float = 0.0
    angle_threshold: float = 0.1
    kind: Literal["norm", "mse", "huber"] = "norm"
    huber_delta: float = 0.01
    stress: float = 0.0
    charges: float = 0.0
    dipole: float = 0.0

    def __post_init__(self) -> None:
        for name in ("forces", "energy", "angle", "stress", "charges", "dipole"):
            check_at_least(f"training.loss.{name}", getattr(self, name), 0.0)
        if self.forces + self.energy + self.stress == 0:
            raise InputError("`training.loss` has no weight on forces, energy or stress: nothing would be learned.")
        check_positive("training.loss.huber_delta", self.huber_delta)
        check_positive("training.loss.angle_threshold", self.angle_threshold)


@dataclass(frozen=True)
class EngineConfig:
    """Who carries out the steps. Under torchrun all processes share every step, whatever stands here.

    Attributes
    ----------
    zero
        Stage of DeepSpeed's ZeRO: 1 divides the optimizer's state among processes, 2 the gradients too. 0, the default,
        keeps both whole on each and needs no DeepSpeed: a student is a fraction of a megabyte.
    device
        ``cpu``, ``cuda``, or ``auto``: a GPU for each process where there are GPUs.
    """

    zero: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.zero == 3:
            raise InputError(
                "`training.engine.zero` is 3, which divides the weights too and gathers them during a pass. Forces are "
                "a gradient inside the forward pass, and differentiating them again through gathered weights fails in "
                "DeepSpeed. Take 0, 1 or 2."
            )
        if isinstance(self.zero, bool) or self.zero not in (0, 1, 2):
            raise InputError(f"`training.engine.zero` is {self.zero!r}; it is 0, 1 or 2.")


@dataclass(frozen=True)
class TrainConfig:
    """How the student is trained.

    Attributes
    ----------
    minutes
        Wall-clock time of training, compilation included; the learning rate follows it. None: `max_epochs` alone
        decides, and two runs with one seed are then identical to the last bit.
    max_epochs
        Passes over the training set, whichever of the two comes first.
    batch_edges
        Batches are filled by edges (pairs within the cutoff), which is what costs time and memory.
    batch_frames
        At most this many structures in a batch.
    accumulate
        Batches per step. Several processes share them, so that a step is the same on any number of processes; give each
        enough to do: with 8 GPUs and one batch for each, 8.
    lr
        Highest learning rate.
    optimizer
        ``muon`` (orthogonalized steps), ``adamw`` from torch, ``adabelief`` or ``yogi`` from `pytorch-optimizer`,
        ``sgd``.
    weight_decay
        Decoupled.
    schedule
        After the warm-up: ``cosine`` to `lr_final`·lr, ``plateau`` (halved when validation does not improve for
        `plateau_patience` validations) or ``constant``.
    warmup_steps, lr_final, plateau_patience
        See `schedule`.
    clip
        Largest norm of the gradient; 0 switches clipping off.
    ema
        Decay per step of the running average of the weights that is validated and saved; 0 switches it off.
    validate_every
        Epochs between validations.
    early_stop
        Stop after this many validations without a better one; 0: never.
    precision
        ``full``, or ``bf16`` for matrix products in bfloat16.
    compile
        ``auto``: a compiled training step where a C++ compiler is found and training is long enough to pay for it;
        ``on``: compile or fail; ``off``.
    threads
        Threads of the train loop; 0 leaves torch's own setting.
    checkpoint_seconds
        A checkpoint is written after the first epoch that ends this long after the last one.
    tensorboard, wandb
        Extra logs beside ``metrics.jsonl``.
    loss
        Weights and shape of the loss.
    engine
        For several processes.
    """

    minutes: float | None = None
    max_epochs: int = 500
    batch_edges: int = 4000
    batch_frames: int = 4
    accumulate: int = 1
    lr: float = 4e-3
    optimizer: Literal["muon", "adamw", "adabelief", "yogi", "sgd"] = "muon"
    weight_decay: float = 0.0
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_steps: int = 100
    lr_final: float = 1e-3
    plateau_patience: int = 10
    clip: float = 10.0
    ema: float = 0.9995
    validate_every: int = 4
    early_stop: int = 0
    precision: Literal["full", "bf16"] = "full"
    compile: Literal["auto", "on", "off"] = "auto"
    threads: int = 0
    checkpoint_seconds: float = 30.0
    tensorboard: bool = True
    wandb: bool = False
    loss: LossConfig = field(default_factory=LossConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        if self.minutes is not None:
            check_positive("training.minutes", self.minutes)
        for name in ("max_epochs", "batch_edges", "batch_frames", "accumulate", "validate_every", "plateau_patience"):
            check_at_least(f"training.{name}", getattr(self, name), 1)
        for name in ("weight_decay", "warmup_steps", "clip", "early_stop", "threads", "checkpoint_seconds"):
            check_at_least(f"training.{name}", getattr(self, name), 0)
        check_positive("training.lr", self.lr)
        if not 0 <= self.ema < 1:
            raise InputError(f"`training.ema` is {self.ema}; it must be at least 0 and below 1.")
        if not 0 <= self.lr_final <= 1:
            raise InputError(f"`training.lr_final` is {self.lr_final}; it is a fraction of `training.lr`, 0 to 1.")
