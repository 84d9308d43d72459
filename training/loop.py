"""The one train loop. It knows batches, an engine and a clock; what is learned is the task's business."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..ase_calcs.errors import InputError
from ..ase_calcs.progress import Progress, ProgressTask, SilentProgress
from .batches import EdgeBudgetSampler
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .engine import Engine, OutOfMemory
from .loggers import MetricsLog
from .optimizers import ExponentialAverage, Schedule
from .task import TaskTable
from .world import World

_CLOCK_S = 0.1


@dataclass
class LoopState:
    """Where a training stands; all of it is in the checkpoint.

    Attributes
    ----------
    epoch, batch
        Epoch and the next batch in it.
    step
        Optimizer steps done.
    seconds
        Time spent training and validating, over all interruptions.
    sums
        Sums of the training batches since the last validation.
    best
        Lowest validation score, with its weights and figures.
    stale
        Validations since the best.
    largest_batch, largest_evaluated
        Edges in a batch that memory holds, once it has run out, in training and in validation; 0 before.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    steps_summed: int = 0
    best: float = float("inf")
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    best_figures: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    largest_batch: int = 0
    largest_evaluated: int = 0
    finished: bool = False


class TrainLoop:
    """Runs an engine over a training set until epochs, minutes or patience are used up.

    Parameters
    ----------
    engine
        Carries out steps.
    training, validation
        Frames.
    config
        The recipe's `training`.
    folder
        Where checkpoints and metrics go.
    fingerprint
        Of dataset, split, model and recipe; a checkpoint with another one is refused.
    spent
        Seconds this call has spent already (reading, compiling); they count towards `TrainConfig.minutes`.
    largest_batch
        Edges that memory is known to hold, where that is less than the recipe's budget; 0 where it is not.
    """

    def __init__(
        self,
        engine: Engine,
        training: TaskTable,
        validation: TaskTable,
        config: TrainConfig,
        folder: Path,
        *,
        seed: int,
        fingerprint: str,
        progress: Progress,
        spent: float = 0.0,
        largest_batch: int = 0,
    ) -> None:
        self.engine, self.training, self.validation = engine, training, validation
        self.config, self.folder, self.fingerprint, self.progress = config, folder, fingerprint, progress
        budget = {"batch_edges": config.batch_edges, "batch_frames": config.batch_frames, "seed": seed}
        self.world = engine.world
        self.sampler = EdgeBudgetSampler(training.edge_counts, **budget)
        self.schedule = Schedule(config)
        self.ema = ExponentialAverage(engine.task, config.ema) if config.ema > 0 else None
        self.state = LoopState(
            sums=torch.zeros(len(engine.task.sum_names), dtype=torch.float64), largest_batch=largest_batch,
            largest_evaluated=largest_batch,
        )  # fmt: skip
        self._counts = engine.task.counts_of_frames(training) if self.world.size > 1 else None
        self._loss = engine.task.sum_names.index("loss")
        self._spent = spent
        self._clock = 0.0
        self._saved_at = 0.0
        self._stride, self._steps_since = 1, 0  # between two looks at the clock
        self._asked_to_stop = self._stopping = False  # this process; any of them

    def run(self, after_step: Callable[[LoopState], None] | None = None) -> LoopState:
        """Train, or go on training, to the end; the task then holds the best weights.

        `after_step` is called after every step; whatever it raises ends the run, the checkpoint before it stands.
        """
        with self._signals():
            return self._run_to_the_end(after_step)

    def _run_to_the_end(self, after_step: Callable[[LoopState], None] | None) -> LoopState:
        resumed = self._resume()
        log = MetricsLog(self.folder, self.config, resume_step=self.state.step) if self.world.is_first else None
        total = 60 * self.config.minutes if self.config.minutes else self.config.max_epochs
        try:
            with self.progress.task("training", total) as bar:
                if resumed:
                    self.progress.say(
                        f"training goes on at epoch {self.state.epoch}, step {self.state.step}, "
                        f"{self.state.seconds:.0f} s done"
                    )
                self._run(bar, log, after_step)
        except KeyboardInterrupt:
            if not self._stopping:  # else it has been saved already, by all processes together
                self._save()
            raise
        finally:
            if log is not None:
                log.close()
        self.engine.task.load_state_dict(self.state.best_weights)
        return self.state

    def _run(self, bar: ProgressTask, log: MetricsLog | None, after_step: Callable[[LoopState], None] | None) -> None:
        state, config = self.state, self.config
        self._clock = time.monotonic() - state.seconds - self._spent
        self._saved_at = state.seconds
        drawn = 0.0
        while not state.finished:
            batches = self.sampler.epoch(state.epoch)
            self.training.begin_epoch(state.epoch)
            while state.batch < len(batches) and not self._out_of_time():
                chosen = batches[state.batch : state.batch + config.accumulate]
                self._step(chosen, (state.epoch + state.batch / len(batches)) / config.max_epochs)
                state.batch += len(chosen)
                if after_step is not None:
                    after_step(state)
                self._stop_if_asked()
                self._save_if_due()
                drawn = self._draw(bar, drawn, len(batches))
            state.epoch, state.batch = state.epoch + 1, 0
            over = self._out_of_time() or state.epoch >= config.max_epochs
            if over or state.epoch % config.validate_every == 0:
                self._validate(log, bar)
                over = over or 0 < config.early_stop <= state.stale
            state.finished = over
            if not over:
                self._stop_if_asked()
        self._save()

    def _stop_if_asked(self) -> None:
        """All processes together, and none before the checkpoint is there: the first to leave may end the job."""
        if self._stopping:
            self._save()
            self.world.wait()
            raise KeyboardInterrupt

    def _step(self, chosen: list[np.ndarray], progress: float) -> None:
        state = self.state
        if self.config.minutes:
            progress = max(progress, state.seconds / (60 * self.config.minutes))
        lr = self.schedule.lr(state.step, progress)
        sums = self._engine_step(chosen, lr)
        if self.ema is not None:
            self.ema.update()
        state.sums += sums.cpu()
        state.step += 1
        state.steps_summed += 1
        self._read_clock(now=False)

    def _engine_step(self, chosen: list[np.ndarray], lr: float) -> Tensor:
        """One step; where memory runs out, again with batches of half as many edges, as all later ones then are."""
        state = self.state
        counts = None if self._counts is None else self._counts[np.concatenate(chosen)].sum(dim=0)
        while True:
            mine = self.sampler.of_rank(chosen, self.world, state.largest_batch)
            try:
                return self.engine.step([self.training.batch(frames) for frames in mine], lr, counts)[0]
            except OutOfMemory as error:
                state.largest_batch = halved(mine, chosen, self.sampler.edge_counts, self.world, error, self.progress)

    def _read_clock(self, *, now: bool = True) -> None:
        """By the first process's clock: learning rate, end and checkpoints are the same on all.

        Several processes need a message for that. Unless it has to be `now` they exchange one about every
        `_CLOCK_S`, after a number of steps that follows from the clock they have agreed on.
        """
        self._steps_since += 1
        if self.world.size > 1 and not now and self._steps_since < self._stride:
            return
        before = self.state.seconds
        self.state.seconds, self._stopping = self.world.agree(time.monotonic() - self._clock, self._asked_to_stop)
        step_seconds = (self.state.seconds - before) / self._steps_since
        # One short step, the last of an epoch say, must not make a long wait of many.
        self._stride = int(min(max(_CLOCK_S / max(step_seconds, 1e-4), 1), 100, 2 * self._stride))
        self._steps_since = 0

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While training, SIGTERM means: finish this step, write a checkpoint, end. So does Ctrl-C where there are
        several processes, which have to do it together; alone, a process need not wait for the step.

        It is what torchrun and schedulers send before they kill.
        """
        wanted = [signal.SIGTERM, signal.SIGINT] if self.world.size > 1 else [signal.SIGTERM]
        if threading.current_thread() is not threading.main_thread():
            wanted = []  # Python handles signals in the main thread alone

        def note(*_: Any) -> None:
            self._asked_to_stop = True

        before = {number: signal.signal(number, note) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _out_of_time(self) -> bool:
        return self.config.minutes is not None and self.state.seconds >= 60 * self.config.minutes

    def _validate(self, log: MetricsLog | None, bar: ProgressTask) -> None:
        state = self.state
        if self.ema is not None:
            self.ema.swap()
        sums, state.largest_evaluated = evaluate_table(
            self.engine, self.validation, self.config, state.largest_evaluated, self.progress
        )
        score = float(sums[self._loss])
        found = self.engine.task.figures(sums) | {"loss": score}
        if score < state.best:
            state.best, state.best_figures, state.stale = score, found, 0
            state.best_weights = {name: t.detach().cpu().clone() for name, t in self.engine.task.state_dict().items()}
        else:
            state.stale += 1
        if self.ema is not None:
            self.ema.swap()
        self.schedule.validated(score)
        loss = float(state.sums[self._loss]) / max(state.steps_summed, 1)
        trained = self.engine.task.figures(state.sums) | {"loss": loss}
        self._read_clock()
        row = {
            "step": state.step,
            "epoch": state.epoch,
            "seconds": round(state.seconds, 2),
            "lr": self.schedule.lr(state.step, self._progress()),
            "train": trained,
            "validation": found,
        }
        if log is not None:
            log.write(row)
        state.sums, state.steps_summed = torch.zeros_like(state.sums), 0
        bar.advance(0.0, self.engine.task.headline(found))

    def _progress(self) -> float:
        by_epochs = self.state.epoch / self.config.max_epochs
        return max(by_epochs, self.state.seconds / (60 * self.config.minutes)) if self.config.minutes else by_epochs

    def _draw(self, bar: ProgressTask, drawn: float, n_batches: int) -> float:
        state = self.state
        done = state.seconds if self.config.minutes else state.epoch + state.batch / n_batches
        bar.advance(done - drawn)
        return done

    # -------------------------------------------------------------------------------------------- checkpoints

    def _save_if_due(self) -> None:
        if self.state.seconds - self._saved_at >= self.config.checkpoint_seconds:
            self._save()

    def _save(self) -> None:
        engine = self.engine.state_dict()  # of all processes
        if self.world.is_first:
            save_checkpoint(
                self.folder,
                {
                    "fingerprint": self.fingerprint,
                    "engine": engine,
                    "ema": self.ema.state_dict() if self.ema is not None else None,
                    "schedule": self.schedule.state_dict(),
                    "loop": dict(vars(self.state)),
                },
            )
        self._saved_at = self.state.seconds

    def _resume(self) -> bool:
        """From what the first process finds: folders need not be shared, and need not be equally old."""
        here = load_checkpoint(self.folder, self.fingerprint) if self.world.is_first else None
        found: dict[str, Any] | None = self.world.share_object(here)
        if found is None:
            return False
        self.engine.load_state_dict(found["engine"])
        if self.ema is not None:
            self.ema.load_state_dict(found["ema"])
        self.schedule.load_state_dict(found["schedule"])
        saved = found["loop"]
        for name in ("largest_batch", "largest_evaluated"):
            saved[name] = min((edges for edges in (getattr(self.state, name), saved[name]) if edges), default=0)
        self.state = LoopState(**saved)
        return True


def evaluate_table(
    engine: Engine, table: TaskTable, config: TrainConfig, largest: int = 0, progress: Progress | None = None
) -> tuple[Tensor, int]:
    """Sums over a whole table with the weights as they are, on the CPU, and the edges in a batch that memory held.

    Without a backward pass batches may be four times as large as in training; where memory runs out they are halved.
    """
    sampler = EdgeBudgetSampler(
        table.edge_counts, batch_edges=4 * config.batch_edges, batch_frames=4 * config.batch_frames, seed=0
    )
    batches = sampler.in_order()
    while True:
        mine = sampler.of_rank(batches, engine.world, largest)
        try:
            return engine.evaluate([table.batch(frames) for frames in mine]).cpu(), largest
        except OutOfMemory as error:
            largest = halved(mine, batches, sampler.edge_counts, engine.world, error, progress or SilentProgress())


def halved(
    mine: list[np.ndarray],
    together: list[np.ndarray],
    edge_counts: np.ndarray,
    world: World,
    error: OutOfMemory,
    progress: Progress,
) -> int:
    """Half the edges of the largest of all processes' batches, of which memory could not hold one.

    Raises
    ------
    InputError
        That was a single structure.
    """
    before = int(world.largest(max((int(edge_counts[frames].sum()) for frames in mine), default=0)))
    most = int(edge_counts[np.concatenate(together)].max())
    if before <= most:
        raise InputError(
            f"A batch of a single structure ({most} edges) does not fit into memory: {error}. Train a smaller network "
            "(`model.features`, `model.layers`), lower `model.cutoff`, or leave the largest structures out."
        ) from error
    after = max(before // 2, most)
    progress.say(f"out of memory with batches of {before} edges: they are made of {after} from now on")
    return after
