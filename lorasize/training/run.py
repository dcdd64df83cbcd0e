"""Training a planned adapter to its end: growing it when it stalls, and going on after an interruption.

A checkpoint holds everything that later steps depend on: a run that was killed and continues from it ends with the same
adapter as a run that was not. It is taken between epochs, at most every `CHECKPOINT_SECONDS`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorasize import models
from lorasize.artifacts.events import Measuring, Noted
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import TrainingDivergedError
from lorasize.law.transition import batches_factor
from lorasize.models import adapters
from lorasize.records import (
    LAW_STEPS,
    MARGIN,
    MARGIN_16_BITS,
    AdapterSpec,
    Drift,
    Escalation,
    Method,
    Outcome,
    Plan,
    StepReport,
)
from lorasize.training.checkpoint import Checkpoint
from lorasize.training.control import OtherText, other_text, shown_drift
from lorasize.training.evaluation import Evaluation
from lorasize.training.fast_path import FastPath
from lorasize.training.growth import at_rank, bounded_spec, larger
from lorasize.training.interrupts import Deferred
from lorasize.training.neighbours import with_neighbours
from lorasize.training.run_state import Fallback, FirstRun, Progress, RunState
from lorasize.training.stall import PATIENCE, Stall
from lorasize.training.trainer import Trainer, TrainingOptions

if TYPE_CHECKING:
    from peft import PeftModel

_TIGHTENING = (
    "Text that training does not watch moved by {:.2f} times what it may: training on, what it watches held tighter."
)
_SPREAD = "Under a bound on drift: rank {} in {} layers, {:,} parameters, which can keep other text as it is."
# Not tuned: docs/decisions/0008-nothing-lost-nothing-harmed.md
CHECKPOINT_SECONDS = 5.0  # between two checkpoints at least
CHECKPOINT_SHARE = 20.0  # times what one takes, too
_RETRIES = 3  # after a loss that is not a number
_TIGHTENED = 3  # times, for text that nobody watched and that moved by more than the bound; not tuned
# Not tuned: after so many epochs, or so many times the steps predicted at most, an adapter counts as stalled.
_LEAST_EPOCHS = 200
_TIMES_PREDICTED = 3


@dataclass(frozen=True)
class Loading:
    """How to load the base, beside what the plan says of it.

    Attributes:
        attn: Attention kernel; `auto` is the plan's, else the best that the model has here.
        device_map: How to spread it over devices (`models.placement`); None: all on one.
    """

    attn: str = "auto"
    device_map: str | None = None


@dataclass(frozen=True)
class ApplyOptions:
    """How to apply a plan.

    Attributes:
        method: Training objective.
        threshold: Every target token's p must exceed this.
        margin: Added to the threshold in training, so that small differences in decoding lose no token. None means
            `usual_margin`, and more where the proof measures that decoding needs it.
        max_steps: Optimiser steps at most, escalations included.
        time_limit: Seconds of training at most; None for no limit.
        escalate: Grow the adapter when training stalls.
        seed: Of the adapter's initial values.
        device: Where to train and decode.
        loading: How to load the base, beside what the plan says of it.
        retain: File with text of the user's that must not suffer, beside the texts that come with the package.
        base_adapter: Adapter folder to start from; None for a fresh adapter, or the one that the plan names.
        max_drift: Nats per token that loss and predictions on other text may move by; infinite for no bound: then
            drift is only measured. None for that of the plan. Where the plan has none, such an adapter sits on more
            layers than the plan's (`bounded_spec`).
    """

    method: Method = "memft"
    threshold: float = 0.5
    margin: float | None = None
    max_steps: int = 3000
    time_limit: float | None = None
    escalate: bool = True
    seed: int = 0
    device: str = "auto"
    loading: Loading = Loading()
    retain: Path | None = None
    base_adapter: Path | None = None
    max_drift: float | None = None


def usual_margin(dtype: torch.dtype, threshold: float) -> float:
    """How far above the threshold to train where nobody says: further in 16 bits, whose decoding moves p by more."""
    return MARGIN if dtype == torch.float32 else min(MARGIN_16_BITS, (1.0 - threshold) / 2.0)


@dataclass
class _LastSave:
    """The trainer's last good state, when it was saved, and how many seconds that took."""

    checkpoint: Checkpoint = field(init=False)
    at: float = 0.0
    seconds: float = 0.0

    @property
    def is_old(self) -> bool:
        """Whether it is time for another."""
        return time.perf_counter() - self.at > max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * self.seconds)


@dataclass(kw_only=True)
class Session:
    """One apply: the adapter as it grows, and what happened to it.

    Attributes:
        base: The base model.
        encoded: The corpus.
        plan: What to train.
        options: How to train.
        notify: Told of each step, of each growth of the adapter, and of what takes longer with this model.
        retained: Text of the user's that must not suffer.
        start: The adapter folder to start from.
        save: Takes the checkpoints.
        adapted: The model with the adapter as it is now.
        state: What happened so far.
        final: The last full look.
    """

    base: models.BaseModel
    encoded: Sequence[EncodedPassage]
    plan: Plan
    options: ApplyOptions
    notify: Callable[[StepReport | Escalation | Measuring | Noted], None] = lambda event: None
    retained: str = ""
    start: Path | None = None
    save: Callable[[Checkpoint], None] = lambda checkpoint: None
    adapted: PeftModel = field(init=False)
    state: RunState = field(init=False)
    final: Evaluation = field(init=False)
    _last_save: _LastSave = field(init=False, default_factory=_LastSave)

    def __post_init__(self) -> None:
        """Nothing has happened yet."""
        assert self.plan.adapter is not None
        margin = self.options.margin
        usual = usual_margin(self.base.dtype, self.options.threshold)
        self.state = RunState(self._begins_as, usual if margin is None else margin)

    @property
    def bound(self) -> float | None:
        """Nats per token that other text may move by; None for no bound."""
        asked = self.options.max_drift
        return self.plan.max_drift if asked is None else asked if math.isfinite(asked) else None

    def run(self, checkpoint: Checkpoint | None = None) -> None:
        """Train from a checkpoint, if there is one, until memorised or a budget ends; grow the adapter on the way."""
        if checkpoint is not None:
            self.state = RunState.from_checkpoint(checkpoint, self._at_rank)
        spec = self.state.spec
        self.adapted = adapters.attach(self.base.model, spec.site, spec.rank, self.options.seed)
        if checkpoint is None and self.start is not None:
            adapters.start_from(self.adapted, self.start)
        if self._may_go_on():
            self.state = replace(self.state, outcome=None)
        if checkpoint is not None and self.state.outcome is not None:
            _put(self.adapted, checkpoint.numbered("parameter"))
            self.final = Evaluation(checkpoint.tensors["latest"])
            return
        self._last_save.at = time.perf_counter()
        with Deferred() as signals:
            while self._train(signals, checkpoint) is Outcome.STALLED and (grown := self._larger()) is not None:
                checkpoint = None
                self._grow(grown)

    def train_on(self, margin: float) -> None:
        """Train on for a larger margin; the adapter stays as it was where that is not reached."""
        parameters = [p.detach().clone() for p in adapters.parameters(self.adapted).values()]
        fallback = Fallback(self.state.margin, parameters)
        self.state = replace(self.state, fallback=fallback, margin=margin, outcome=None)
        self._last_save.at = time.perf_counter()
        with Deferred() as signals:
            self._train(signals, None)

    def _may_go_on(self) -> bool:
        """Whether training ended by a limit that has been raised since."""
        steps, seconds = self.options.max_steps, self.options.time_limit
        more_time = seconds is None or seconds > self.state.seconds
        if self.state.outcome is Outcome.TIME_LIMIT:
            return more_time
        return self.state.outcome is Outcome.STEP_BUDGET_EXHAUSTED and steps > self.state.steps

    def _train(self, signals: Deferred, checkpoint: Checkpoint | None) -> Outcome:
        """Train the adapter as it is, from a checkpoint if there is one."""
        # Before the clock starts: statistics are taken once for each model.
        other = other_text(self.base, self.adapted, self.retained, self.bound, self.notify)
        started = time.perf_counter() - self.state.seconds
        trainer, progress = self._begun(checkpoint, other)
        self._last_save.checkpoint = trainer.state().copy()
        ended, drift = self._harmless(trainer, lambda: self._follow(trainer, progress, started, signals))
        if self.state.fallback is not None and ended is not Outcome.MEMORIZED:
            ended, drift = self._fall_back(self.state.fallback), None
        self.final = trainer.full_look()
        if self.state.first is None:
            self.state = replace(self.state, first=self._first(ended, progress, trainer))
        if ended is not Outcome.STALLED or self._larger() is None:
            drift = drift or self._drift(trainer.path)
            drift = with_neighbours(drift, self.base, self.adapted, self.encoded, trainer.path)
            self.state = replace(self.state, outcome=ended, drift=drift)
            self._save(trainer, progress)
        return ended

    def _begun(self, checkpoint: Checkpoint | None, other: OtherText | None) -> tuple[Trainer, Progress]:
        """A trainer of the adapter as it is, where the checkpoint was taken if there is one."""
        options = self.options
        before = self.state.steps if checkpoint is None else checkpoint.state["progress"]["before"]
        trainer = Trainer(
            self.adapted,
            self.encoded,
            other=other,
            options=TrainingOptions(
                method=options.method,
                threshold=options.threshold,
                margin=self.state.margin,
                max_steps=options.max_steps - before,
                seed=options.seed,
            ),
        )
        if checkpoint is not None:
            trainer.restore(Checkpoint(checkpoint.tensors, checkpoint.state["trainer"]))
            return trainer, Progress.from_json(checkpoint.state["progress"])
        if self.state.before is None:
            if (spec := self.state.spec) != (planned := self.plan.adapter) and planned is not None:
                self.notify(Noted(_SPREAD.format(spec.rank, len(spec.layers_to_transform), spec.n_parameters)))
            for note in trainer.notes:
                self.notify(Noted(note))
            self.state = replace(self.state, before=trainer.evaluate())
        epoch = trainer.steps_per_epoch
        stall = Stall(limit=max(_LEAST_EPOCHS * epoch, self._step_limit()), patience=PATIENCE * epoch)
        return trainer, Progress(before, self.state.n_read, stall)

    def _step_limit(self) -> int:
        predicted = self.plan.prediction
        return round(_TIMES_PREDICTED * predicted.steps.hi) if predicted is not None else self.options.max_steps

    def _harmless(self, trainer: Trainer, train: Callable[[], Outcome]) -> tuple[Outcome, Drift | None]:
        """Train; where text that nobody watched moved by more than the bound, train on with the watched held tighter.

        Returns how it ended, and what became of that text where the adapter is as it was then. Where training on leads
        nowhere, the adapter is again the one that held every token.
        """
        held: list[Tensor] = []
        while (ended := self._persistently(trainer, train)) is Outcome.MEMORIZED:
            drift, control = self._drift(trainer.path), trainer.control
            if control is None or not drift.broken or not control.harms or control.tightened >= _TIGHTENED:
                return ended, drift
            self.notify(Noted(_TIGHTENING.format(drift.share_of_bound)))
            held = [p.detach().clone() for p in adapters.parameters(self.adapted).values()]
            control.tighten(drift.share_of_bound)
        if held and (ended is not Outcome.STALLED or self._larger() is None):
            _put(self.adapted, held)
            return Outcome.MEMORIZED, None
        return ended, None

    def _persistently(self, trainer: Trainer, train: Callable[[], Outcome]) -> Outcome:
        """Train; after a loss that is not a number, from the last good state at half the rate, some times over.

        Raises:
            TrainingDivergedError: that did not help, and there is no adapter to fall back on.
        """
        for _ in range(_RETRIES):
            try:
                return train()
            except TrainingDivergedError:
                trainer.retreat(self._last_save.checkpoint)
        return train() if self.state.fallback is None else Outcome.STALLED

    def _follow(self, trainer: Trainer, progress: Progress, started: float, signals: Deferred) -> Outcome:
        """Let the trainer take steps and report each, until one ends the training of this adapter."""

        def between_epochs() -> None:
            self.state = replace(self.state, seconds=time.perf_counter() - started)
            if signals.waiting or self._last_save.is_old:
                if trainer.sane:  # a checkpoint must be good to go back to
                    self._save(trainer, progress)
                signals.obey()

        for report in trainer.steps(between_epochs):
            self.state = replace(
                self.state,
                steps=progress.before + report.step,
                seconds=time.perf_counter() - started,
                n_read=progress.read + trainer.n_read,
            )
            self.notify(report.model_copy(update={"step": self.state.steps, "seconds": self.state.seconds}))
            if (ended := self._ended(report, progress, trainer)) is not None:
                return ended
        return Outcome.STEP_BUDGET_EXHAUSTED

    def _ended(self, report: StepReport, progress: Progress, trainer: Trainer) -> Outcome | None:
        """How this report ends the training of this adapter, if it does."""
        options = self.options
        if report.evaluated:
            return Outcome.MEMORIZED if trainer.passed else Outcome.STEP_BUDGET_EXHAUSTED
        if options.time_limit is not None and self.state.seconds > options.time_limit:
            return Outcome.TIME_LIMIT
        if self.state.steps < options.max_steps and progress.stall.seen(report.step, report, harmed=trainer.harmed):
            return Outcome.STALLED
        if progress.early is None and report.step >= LAW_STEPS * self._batches_factor(trainer):
            progress.early = report.loss
        return None

    def _fall_back(self, fallback: Fallback) -> Outcome:
        """Return to the adapter that passed at a smaller margin."""
        self.state = replace(self.state, settled=True, margin=fallback.margin)
        _put(self.adapted, fallback.parameters)
        return Outcome.MEMORIZED

    def _drift(self, path: FastPath) -> Drift:
        """What training did to texts that it never looked at."""
        bound = self.bound
        found = shown_drift(self.base, self.adapted, path, self.retained, bounded=bound is not None)
        return found.model_copy(update={"bound": bound})

    def _first(self, ended: Outcome, progress: Progress, trainer: Trainer) -> FirstRun:
        stubborn = self.final.n_below(self.options.threshold)
        steps = (self.state.steps - progress.before) / self._batches_factor(trainer)
        return FirstRun(ended, self.final.mean_loss, stubborn, steps, progress.early)

    def _batches_factor(self, trainer: Trainer) -> float:
        """Steps of this corpus ÷ those of one batch. Under a bound their number does not matter."""
        return batches_factor(trainer.steps_per_epoch) if self.bound is None else 1.0

    def _larger(self) -> AdapterSpec | None:
        """The adapter to grow to; None where it may not grow."""
        if not self.options.escalate or self.state.fallback is not None:
            return None
        return larger(self.state.spec, self.plan, models.linear_shapes(self.base.model))

    def _grow(self, spec: AdapterSpec) -> None:
        state = self.state
        seed = self.options.seed + len(state.escalations) + 1
        self.adapted = adapters.grow(self.adapted, spec.site, spec.rank, seed)
        escalation = Escalation(**{"from": f"rank {state.spec.rank}"}, to=f"rank {spec.rank}", step=state.steps)
        self.state = replace(state, spec=spec, escalations=(*state.escalations, escalation))
        self.notify(escalation)

    def _at_rank(self, rank: int) -> AdapterSpec:
        return at_rank(self._begins_as, rank, models.linear_shapes(self.base.model))

    @property
    def _begins_as(self) -> AdapterSpec:
        """The plan's adapter; under a bound on drift a fresh one on more layers."""
        assert self.plan.adapter is not None
        if self.bound is None or self.plan.max_drift is not None or self.start is not None:
            return self.plan.adapter
        return bounded_spec(self.plan, self.base.n_layers, models.linear_shapes(self.base.model))

    def _save(self, trainer: Trainer, progress: Progress) -> None:
        """Have a checkpoint taken, and keep the trainer's part of it to go back to."""
        began, taken = time.perf_counter(), trainer.state()
        own = {"trainer": taken.state, "progress": progress.to_json()}
        self.save(Checkpoint({**taken.tensors, **self.state.tensors()}, own | self.state.to_json()))
        self._last_save.checkpoint = taken.copy()
        self._last_save.at = time.perf_counter()
        self._last_save.seconds = self._last_save.at - began


@torch.no_grad()
def _put(adapted: PeftModel, values: Sequence[Tensor]) -> None:
    """Give the adapter's parameters these values."""
    for parameter, value in zip(adapters.parameters(adapted).values(), values, strict=True):
        parameter.copy_(value)
