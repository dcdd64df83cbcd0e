"""Training a planned adapter to its end: growing it when it stalls, and going on after an interruption.

A checkpoint holds everything that the steps to come depend on, so that a run which was killed and goes on ends with the
same adapter as one which was not. It is taken between epochs, at most every `_EVERY` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import TrainingDivergedError
from lorasize.losses.neutral import windows
from lorasize.models import adapters
from lorasize.records import (
    BYTES_PER_PARAMETER,
    LAW_STEPS,
    MARGIN,
    AdapterSpec,
    Drift,
    Escalation,
    Method,
    Outcome,
    Plan,
    StepReport,
)
from lorasize.training.checkpoint import Checkpoint
from lorasize.training.interrupts import Deferred
from lorasize.training.stall import PATIENCE, Stall
from lorasize.training.trainer import Evaluation, Trainer, TrainingOptions

if TYPE_CHECKING:
    from peft import PeftModel

_MAX_RANK = 256  # to which an adapter grows
_EVERY = 5.0  # seconds between two checkpoints at least
_RETRIES = 3  # after a loss that is not a number
_SHARE = 20.0  # times what one takes, too


@dataclass(frozen=True)
class ApplyOptions:
    """How to apply a plan.

    Attributes:
        method: Training objective.
        threshold: Every target token's p must exceed this.
        margin: Added to the threshold in training, so that decoding's small differences lose no token; when None,
            `MARGIN`, and more where the proof measures that decoding needs it.
        max_steps: Optimiser steps at most, escalations included.
        time_limit: Seconds of training at most; None for no limit.
        escalate: Grow the adapter when training stalls.
        seed: Of the adapter's initial values.
        device: Where to train and decode.
        retain: File with text that must not suffer; a neutral text that comes with the package when None.
        base_adapter: Adapter folder to start from; None for a fresh adapter, or the one that the plan names.
        max_drift: Nats per token that the loss on it may grow by; None where it is only measured.
    """

    method: Method = "memft"
    threshold: float = 0.5
    margin: float | None = None
    max_steps: int = 3000
    time_limit: float | None = None
    escalate: bool = True
    seed: int = 0
    device: str = "auto"
    retain: Path | None = None
    base_adapter: Path | None = None
    max_drift: float | None = None


@dataclass(frozen=True)
class FirstRun:
    """How training the planned adapter, before any growth, ended."""

    outcome: Outcome
    mean_loss: float  # nats per target token
    n_stubborn: int
    epochs: float
    early_loss: float | None  # nats per token after LAW_STEPS epochs, of a run that went on


@dataclass(frozen=True)
class Held:
    """An adapter that passed: the margin it was trained for, and its parameters."""

    margin: float
    parameters: Sequence[Tensor]


@dataclass
class _Progress:
    """What is known of training the adapter as it is now."""

    before: int  # steps of smaller adapters
    read: int  # target tokens that those read
    stall: Stall
    early: float | None = None  # loss after LAW_STEPS epochs

    def state(self) -> dict[str, Any]:
        return {"before": self.before, "read": self.read, "stall": asdict(self.stall), "early": self.early}


@dataclass
class Session:
    """One apply: the adapter as it grows, and what happened to it. `keep` takes its checkpoints."""

    base: models.BaseModel
    encoded: Sequence[EncodedPassage]
    plan: Plan
    options: ApplyOptions
    notify: Callable[[StepReport | Escalation], None]
    retained: str = ""  # text that must not suffer
    start: Path | None = None  # the adapter folder to start from
    keep: Callable[[Checkpoint], None] = lambda checkpoint: None
    adapted: PeftModel = field(init=False)
    spec: AdapterSpec = field(init=False)
    escalations: list[Escalation] = field(default_factory=list)
    outcome: Outcome | None = None  # None while training goes on
    final: Evaluation = field(init=False)
    before: Evaluation | None = None  # of the base model
    steps: int = 0
    n_read: int = 0  # target tokens that these steps read
    seconds: float = 0.0
    first: FirstRun | None = None  # of the planned adapter
    drift: Drift | None = None
    margin: float = field(init=False)  # that training is for now
    held: Held | None = None  # what passed at a smaller margin, while a larger one is trained for
    settled: bool = False  # whether a larger margin was tried in vain
    _good: Checkpoint = field(init=False)  # of the trainer, to go back to
    _kept: float = 0.0  # when the last checkpoint was taken
    _keeping: float = 0.0  # how long that took

    def run(self, found: Checkpoint | None = None) -> None:
        """Train until memorised or a budget ends, growing the adapter on the way; from a checkpoint if there is one."""
        assert self.plan.adapter is not None
        self.spec = self.plan.adapter
        self.margin = MARGIN if self.options.margin is None else self.options.margin
        if found is not None:
            self._take_up(found)
        self.adapted = adapters.attach(self.base.model, self.spec.site, self.spec.rank, self.options.seed)
        if found is None and self.start is not None:
            adapters.start_from(self.adapted, self.start)
        if self._may_go_on():
            self.outcome = None
        if found is not None and self.outcome is not None:
            _put(self.adapted, found.numbered("parameter"))
            self.final = Evaluation(found.tensors["latest"])
            return
        self._kept = time.perf_counter()
        with Deferred() as signals:
            while self._train(signals, found) is Outcome.STALLED and self._may_grow():
                found = None
                self._grow()

    def train_on(self, margin: float) -> None:
        """Train on for a larger margin; the adapter stays as it was where that is not reached."""
        self.held = Held(self.margin, [p.detach().clone() for p in adapters.parameters(self.adapted).values()])
        self.margin, self.outcome, self._kept = margin, None, time.perf_counter()
        with Deferred() as signals:
            self._train(signals, None)

    def _may_go_on(self) -> bool:
        """Whether training had ended by a limit that allows for more now."""
        steps, seconds = self.options.max_steps, self.options.time_limit
        more_time = self.outcome is Outcome.TIME_LIMIT and (seconds is None or seconds > self.seconds)
        return more_time or (self.outcome is Outcome.STEP_BUDGET_EXHAUSTED and steps > self.steps)

    def _train(self, signals: Deferred, found: Checkpoint | None) -> Outcome:
        """Train the adapter as it is, from a checkpoint if there is one."""
        started = time.perf_counter() - self.seconds
        trainer, progress = self._begun(found)

        def between_epochs() -> None:
            self.seconds = time.perf_counter() - started
            if signals.waiting or time.perf_counter() - self._kept > max(_EVERY, _SHARE * self._keeping):
                self._keep(trainer, progress)
                signals.obey()

        def listen() -> Outcome:
            for report in trainer.steps(between_epochs):
                self.steps, self.seconds = progress.before + report.step, time.perf_counter() - started
                self.n_read = progress.read + trainer.n_read
                self.notify(report.model_copy(update={"step": self.steps, "seconds": self.seconds}))
                if ended := self._ended(report, progress, trainer):
                    return ended
            return Outcome.STEP_BUDGET_EXHAUSTED

        self._good = trainer.state().copy()
        ended = self._persistently(listen, trainer)
        if self.held is not None and ended is not Outcome.MEMORIZED:
            ended, self.settled, self.margin = Outcome.MEMORIZED, True, self.held.margin
            _put(self.adapted, self.held.parameters)
        self.final = trainer.evaluate()
        if (kept := trainer.retained) is not None:
            nats = kept.measure()
            self.drift = Drift(before=kept.before, after=kept.before + nats, nats=nats, bound=self.options.max_drift)
        self.first = self.first or self._first(ended, progress, trainer.steps_per_epoch)
        if ended is not Outcome.STALLED or not self._may_grow():
            self.outcome = ended
            self._keep(trainer, progress)
        return ended

    def _persistently(self, train: Callable[[], Outcome], trainer: Trainer) -> Outcome:
        """Train; after a loss that is not a number, from the last good state at half the rate, some times over.

        Raises:
            TrainingDivergedError: that did not help.
        """
        for _ in range(_RETRIES):
            try:
                return train()
            except TrainingDivergedError:
                trainer.retreat(self._good)
        return train() if self.held is None else Outcome.STALLED  # what is held is good

    def _begun(self, found: Checkpoint | None) -> tuple[Trainer, _Progress]:
        options, state = self.options, {} if found is None else found.state["progress"]
        before, read = state.get("before", self.steps), state.get("read", self.n_read)
        trainer = Trainer(
            self.adapted,
            self.encoded,
            retained=windows(self.retained, self.base.tokenizer, self.base.max_positions - 1),
            options=TrainingOptions(
                method=options.method,
                threshold=options.threshold,
                margin=self.margin,
                max_steps=options.max_steps - before,
                seed=options.seed,
                max_drift=options.max_drift,
            ),
        )
        epoch = trainer.steps_per_epoch
        stall = Stall(limit=max(200 * epoch, self._step_limit()), patience=PATIENCE * epoch)
        if found is None:
            self.before = self.before or trainer.evaluate()
            return trainer, _Progress(before, read, stall)
        trainer.restore(Checkpoint(found.tensors, found.state["trainer"]))
        return trainer, _Progress(before, read, Stall(**state["stall"]), state["early"])

    def _ended(self, report: StepReport, progress: _Progress, trainer: Trainer) -> Outcome | None:
        """How this report ends the training of this adapter, if it does."""
        options = self.options
        if report.evaluated:
            return Outcome.MEMORIZED if trainer.passed else Outcome.STEP_BUDGET_EXHAUSTED
        if options.time_limit is not None and self.seconds > options.time_limit:
            return Outcome.TIME_LIMIT
        if self.steps < options.max_steps and progress.stall.seen(report.step, report):
            return Outcome.STALLED
        if progress.early is None and report.step >= LAW_STEPS * trainer.steps_per_epoch:
            progress.early = report.loss
        return None

    def _first(self, ended: Outcome, progress: _Progress, epoch: int) -> FirstRun:
        stubborn = self.final.n_below(self.options.threshold)
        epochs = (self.steps - progress.before) / epoch
        return FirstRun(ended, self.final.mean_loss, stubborn, epochs, progress.early)

    def _step_limit(self) -> int:
        predicted = self.plan.prediction
        return round(3 * predicted.steps.hi) if predicted is not None else self.options.max_steps

    def _may_grow(self) -> bool:
        may = self.options.escalate and self.held is None and self.spec.rank < _MAX_RANK
        return may and not self._over_budget(self._at_rank(self._next_rank()))

    def _over_budget(self, spec: AdapterSpec) -> bool:
        """Whether an adapter breaks a budget of the plan."""
        size = {"rank": spec.rank, "parameters": spec.n_parameters, "bytes": spec.bytes}
        return any(b.level == "error" and size.get(b.id, 0) > b.limit for b in self.plan.budgets)

    def _next_rank(self) -> int:
        return min(_MAX_RANK, self.spec.rank + max(1, self.spec.rank // 2))

    def _grow(self) -> None:
        rank = self._next_rank()
        self.adapted = adapters.grow(self.adapted, self.spec.site, rank, self.options.seed + len(self.escalations) + 1)
        step = Escalation(**{"from": f"rank {self.spec.rank}"}, to=f"rank {rank}", step=self.steps)
        self.escalations.append(step)
        self.spec = self._at_rank(rank)
        self.notify(step)

    def _at_rank(self, rank: int) -> AdapterSpec:
        n_parameters = adapters.count_parameters(models.linear_shapes(self.base.model), self.spec.site, rank)
        changes = {"rank": rank, "lora_alpha": rank, "n_parameters": n_parameters}
        changes["bytes"] = n_parameters * BYTES_PER_PARAMETER
        density = self.spec.bits_per_parameter * self.spec.n_parameters / n_parameters
        return self.spec.model_copy(update={**changes, "bits_per_parameter": density})

    def _keep(self, trainer: Trainer, progress: _Progress) -> None:
        began, taken = time.perf_counter(), trainer.state()
        assert self.before is not None
        state = {
            "trainer": taken.state,
            "progress": progress.state(),
            "rank": self.spec.rank,
            "escalations": [e.model_dump(by_alias=True) for e in self.escalations],
            "outcome": self.outcome,
            "steps": self.steps,
            "n_read": self.n_read,
            "seconds": self.seconds,
            "first": None if self.first is None else asdict(self.first),
            "drift": None if self.drift is None else self.drift.model_dump(),
            "margin": self.margin,
            "settled": self.settled,
            "held": None if self.held is None else self.held.margin,
        }
        held = [] if self.held is None else self.held.parameters
        kept = {f"held.{k}": parameter for k, parameter in enumerate(held)}
        self.keep(Checkpoint({**taken.tensors, **kept, "before": self.before.losses}, state))
        self._good = taken.copy()
        self._kept = time.perf_counter()
        self._keeping = self._kept - began

    def _take_up(self, found: Checkpoint) -> None:
        state = found.state
        self.spec = self._at_rank(state["rank"])
        self.escalations = [Escalation(**e) for e in state["escalations"]]
        self.outcome = Outcome(state["outcome"]) if state["outcome"] else None
        self.steps, self.n_read, self.seconds = state["steps"], state["n_read"], state["seconds"]
        self.margin, self.settled = state["margin"], state["settled"]
        self.held = None if state["held"] is None else Held(state["held"], found.numbered("held"))
        self.before = Evaluation(found.tensors["before"])
        self.drift = None if state["drift"] is None else Drift(**state["drift"])
        if (first := state["first"]) is not None:
            self.first = FirstRun(**first | {"outcome": Outcome(first["outcome"])})


@torch.no_grad()
def _put(adapted: PeftModel, values: Sequence[Tensor]) -> None:
    """Give the adapter's parameters these values."""
    for parameter, value in zip(adapters.parameters(adapted).values(), values, strict=True):
        parameter.copy_(value)
