"""The loop: optimiser steps until one full look finds every target token above the threshold.

A step is cheap because of what it leaves out: frozen layers below the adapter are not run, mastered tokens get no
backward pass, and mastered passages leave the batch and come back for a look at growing intervals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import TrainingDivergedError
from lorasize.losses.batches import Batch
from lorasize.losses.frozen_layers import notes_on
from lorasize.losses.token_losses import TokenLosses
from lorasize.models.adapters import base_of, parameters
from lorasize.models.placement import is_spread
from lorasize.records import BATCH_TOKENS, BOUNDED_STEP_TOKENS, Method, StepReport
from lorasize.training.checkpoint import Checkpoint
from lorasize.training.control import OtherText, control_of
from lorasize.training.evaluation import Evaluation, LastLosses
from lorasize.training.fast_path import FastPath, fast_path
from lorasize.training.objectives import Objective, curriculum_share
from lorasize.training.passes import Passes
from lorasize.training.pieces import Pieces
from lorasize.training.precision import coarse_products, has_coarse_products
from lorasize.training.rate import Schedule, adam, calmed, rate_of
from lorasize.training.resting import Resting
from lorasize.training.state import TrainerState

if TYPE_CHECKING:
    from peft import PeftModel

_CLIP = 1.0  # gradient norm; with and without: docs/log/recipe.md#no-clipping-and-other-small-changes-negative
_MANY = 8  # passages from which memft-sw means the paper's curriculum instead of its window; not tuned

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Watch = Callable[[Batch, TokenLosses], None]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        method: The objective.
        threshold: Every target token's p must exceed this.
        margin: Added to the threshold before a token counts as passed: decoding moves logits a little.
        max_steps: Optimiser steps at most.
        learning_rate: Of Adam while many tokens are stubborn; that of `rate_of` when None.
        batch_tokens: Positions in one batch, unless one passage is longer. One optimiser step takes one batch, or under
            a bound several: BOUNDED_STEP_TOKENS positions.
        seed: Order of batches and passages.
    """

    method: Method = "memft"
    threshold: float = 0.5
    margin: float = 0.02
    max_steps: int = 1000
    learning_rate: float | None = None
    batch_tokens: int = BATCH_TOKENS
    seed: int = 0

    @property
    def passing(self) -> float:
        """The p above which a token has passed."""
        return self.threshold + self.margin

    @property
    def passing_loss(self) -> float:
        """The loss below which a token has passed, nats."""
        return -math.log(self.passing)


class Trainer:
    """One adapter, one corpus: the batches, the optimiser, and what is known of each token.

    Attributes:
        options: How it trains.
        control: What the adapter does to other text; None where nobody looks.
    """

    def __init__(
        self,
        adapted: PeftModel,
        encoded: Sequence[EncodedPassage],
        options: TrainingOptions,
        other: OtherText | None = None,
        *,
        optimizer: MakeOptimizer | None = None,
        rate: Schedule | None = None,
        objective: Objective | None = None,
        watch: Watch = lambda batch, losses: None,
    ) -> None:
        """Run the frozen layers once.

        Args:
            adapted: The model with its adapter.
            encoded: The corpus.
            options: How to train.
            other: Text that is not trained on, and the bound on what happens to it.
            optimizer: Makes the optimiser of the adapter's parameters; the recipe's Adam when None.
            rate: The learning rate of each step; the recipe's `Rate` when None.
            objective: Weighs the tokens; that of the method when None.
            watch: Told of every look at a batch, in steps and in full looks.

        Raises:
            ModelError: the model's logits are no numbers.
        """
        self.options = options
        self._parameters = list(parameters(adapted).values())
        self._path = fast_path(adapted, encoded, options.batch_tokens)
        self.control = None if other is None else control_of(adapted, self._path, other, encoded)
        self._last = LastLosses(passage.n_tokens for passage in encoded)
        self._generator = torch.Generator().manual_seed(options.seed)
        order = torch.randperm(len(encoded), generator=self._generator).tolist()
        self._state = TrainerState(order, Resting.none(len(encoded)), coarse=True)
        # Its threshold is where tokens pass: one released below that could never pass.
        weighed = objective or Objective(options.method, options.passing, many=len(encoded) >= _MANY)
        self._passes = Passes(self._path, self._parameters, weighed, spread=is_spread(base_of(adapted)))
        self._optimizer = (optimizer or adam)(self._parameters)
        allowed = None if self.control is None else self.control.allowed_rate
        self._rate = rate or rate_of(options.learning_rate, allowed=allowed, n_batches=self.steps_per_epoch)
        self._pieces = Pieces(self._parameters)
        self._watch = watch

    @property
    def path(self) -> FastPath:
        """How the corpus runs through the model."""
        return self._path

    @property
    def _step_tokens(self) -> int:
        """Positions in one optimiser step, about."""
        return max(self.options.batch_tokens, BOUNDED_STEP_TOKENS if self._bounded else 0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps that one look at everything takes, about."""
        return math.ceil(sum(batch.ids.numel() for batch in self._path.batches) / self._step_tokens)

    @property
    def notes(self) -> tuple[str, ...]:
        """What takes longer with this model than with others, and why."""
        return notes_on(self._path.suffix)

    @property
    def n_read(self) -> int:
        """Target tokens that steps have read so far, each as often as it was read."""
        return self._state.n_read

    @property
    def sane(self) -> bool:
        """Whether the adapter is made of numbers. A step may spoil it, which only the next look would find."""
        return all(bool(parameter.isfinite().all()) for parameter in self._parameters)

    @property
    def passed(self) -> bool:
        """Whether every token passed when last looked at, and the bound on drift is kept."""
        return self._last_passed and not self.harmed

    @property
    def _last_passed(self) -> bool:
        return self._last.largest < self.options.passing_loss

    @property
    def harmed(self) -> bool:
        """Whether the bound on drift is broken, by what was last measured."""
        return self.control is not None and self.control.harmed

    @property
    def _bounded(self) -> bool:
        """Whether there is a bound on what happens to other text."""
        return self.control is not None and self.control.bound is not None

    @property
    def known(self) -> Evaluation:
        """What is known of each token from when it was last looked at."""
        return Evaluation(self._last.losses.clone())

    def evaluate(self) -> Evaluation:
        """Look at every target token with the adapter as it is. This does not change which passages rest."""
        with torch.no_grad(), self._path.suffix.entered():
            for batch in self._path.batches:
                self._pieces.run(batch, self._look)
        return self.known

    def full_look(self) -> Evaluation:
        """Evaluate as a part of training: it counts as an epoch on all passages, after which mastered ones rest."""
        found = self.evaluate()
        self._end_full_look()
        return found

    def steps(self, between_epochs: Callable[[], None] = lambda: None) -> Iterator[StepReport]:
        """Train. The last report has `evaluated` set: either every token passed then, or the step budget had ended.

        Args:
            between_epochs: Called before each epoch, where `state` is complete.

        Raises:
            TrainingDivergedError: a loss is not a number.
        """
        started = time.perf_counter()
        self._look_first()
        while not (confirmed := self._confirm_passed()) and self._state.step < self.options.max_steps:
            between_epochs()
            before = self._state.step
            for part in self._parts():
                stepped, n_active = self._update(part)
                if stepped:
                    yield self._report(n_active, started, evaluated=False)
                if self._state.step >= self.options.max_steps:
                    break
            self._state.resting.epoch += 1
            self._state.idle += self._state.step == before and not self.passed
        if not confirmed:
            self.full_look()
        if self.control is not None and not self.control.fresh:
            self.control.measure()
        yield self._report(0, started, evaluated=True)

    def state(self) -> Checkpoint:
        """Everything that later steps depend on; `restore` gives it to a trainer of the same adapter and corpus."""
        tensors = {f"parameter.{k}": p.detach() for k, p in enumerate(self._parameters)}
        for k, kept in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{k}.{name}": value for name, value in kept.items()}
        tensors |= {"latest": self._last.losses, "generator": self._generator.get_state()}
        tensors |= self._path.shortlists.tensors()
        control = None if self.control is None else self.control.to_json()
        others: dict[str, Any] = {"windows": self._passes.objective.remembered(), "control": control}
        others["shortlists"] = self._path.shortlists.to_json()
        return Checkpoint(tensors, self._state.to_json() | others)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue where `state` was taken."""
        tensors, state = checkpoint.tensors, checkpoint.state
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "adam":
                number, _, moment = rest.partition(".")
                moments.setdefault(int(number), {})[moment] = value
        with torch.no_grad():
            for parameter, value in zip(self._parameters, checkpoint.numbered("parameter"), strict=True):
                parameter.copy_(value)
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
        self._optimizer.zero_grad()  # of a step that broke off
        self._last.losses = tensors["latest"].clone()
        self._generator.set_state(tensors["generator"])
        self._state = TrainerState.from_json(state)
        self._passes.objective.remember(state["windows"])
        self._path.shortlists.restore(state["shortlists"], tensors)
        if self.control is not None:
            self.control.restore(state["control"])

    def retreat(self, checkpoint: Checkpoint) -> None:
        """Go back to a good state, and continue from there at half the learning rate."""
        slowed = self._state.slowed / 2.0
        self.restore(checkpoint.copy())  # it may be needed again
        self._state.slowed = slowed

    def _look_first(self) -> None:
        """Look at every token before the first epoch, if nobody has."""
        if math.isinf(self._last.largest):
            self.evaluate()
        if self._state.resting.epoch == 0:
            self._end_full_look()

    def _end_full_look(self) -> None:
        """An epoch in which everything was looked at is over."""
        self._let_rest(range(len(self._state.order)))
        self._state.resting.epoch += 1

    def _let_rest(self, passages: Sequence[int]) -> None:
        """Passages were just looked at: let the mastered ones rest."""
        for passage in passages:
            self._state.resting.note(passage, float(self._last.of(passage).max()))

    def _confirm_passed(self) -> bool:
        """If all tokens passed when last looked at: whether they still do in one full look, and no harm was done."""
        if not self.passed:
            return False
        self.full_look()
        if self.control is not None and self._bounded and self._last_passed:
            self.control.judge()
        self._state.coarse = self._state.coarse and self._last_passed  # else coarse looks could pass for ever
        return self.passed

    def _parts(self) -> Iterator[list[Batch]]:
        """One epoch: all that is due, in parts of a few batches at most, one for each optimiser step."""
        part: list[Batch] = []
        for index in torch.randperm(len(self._path.batches), generator=self._generator).tolist():
            due = self._due_part(self._path.batches[index])
            if due is None:
                continue
            if part and sum(b.ids.numel() for b in part) + due.ids.numel() > self._step_tokens:
                yield part
                part = []
            part.append(due)
        if part:
            yield part

    def _due_part(self, batch: Batch) -> Batch | None:
        """The rows to look at now: not resting and, for memft-sw on many records, inside the curriculum."""
        state, share = self._state, 1.0
        if self.options.method == "memft-sw" and self._passes.objective.many:
            share = curriculum_share((state.step + state.idle) / self.options.max_steps)
        inside = [state.order[p] < share * len(state.order) for p in batch.passages]
        harmed = self.harmed  # then none rests: the pull takes from all of them
        keep = [k for k, p in enumerate(batch.passages) if inside[k] and (harmed or state.resting.is_due(p))]
        if keep and self._passes.whole_batches:
            return batch
        return batch.select(keep) if keep else None

    def _update(self, part: Sequence[Batch]) -> tuple[bool, int]:
        """Look at a part and take a step on the tokens with weight: whether it was taken, and on how many tokens."""
        coarse = self._state.coarse and has_coarse_products(self._parameters[0].device)
        with self._path.suffix.entered(), coarse_products(coarse):
            n_active, total = self._accumulated(part)
            if not n_active and self.options.method == "memft-ot":  # as published, with nothing stubborn in a step
                n_active, total = self._accumulated(part, every=True)
            harmed = self.harmed
            if total:
                for parameter in self._parameters:
                    if parameter.grad is not None:
                        parameter.grad /= total
            if self.control is not None:
                with self._passes.orderly():
                    self.control.pull()
        stepped = (n_active > 0 or harmed) and not self.passed
        if stepped:
            self._take_step()
        self._optimizer.zero_grad()
        return stepped, n_active if stepped else 0

    def _take_step(self) -> None:
        """One step of the optimiser along the gradient as it is."""
        torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP)
        share = self._last.share_from(self.options.passing_loss)
        self._state.fewest = min(self._state.fewest, share)
        if self._bounded:
            share = calmed(share, self._state.fewest)
        for group in self._optimizer.param_groups:
            group["lr"] = self._state.slowed * self._rate(self._state.step, share)
        self._optimizer.step()
        self._state.step += 1
        if self.control is not None:
            share = self._last.share_from(self.options.passing_loss)
            self.control.stepped(float(self._last.losses.mean()), share, self.steps_per_epoch)

    def _accumulated(self, part: Sequence[Batch], *, every: bool = False) -> tuple[int, float]:
        """The gradient of a part on the parameters; how many tokens have weight, and the sum of their weights."""
        work = partial(self._accumulate, every=every)
        weights = [found for batch in part for found in self._pieces.run(batch, work)]
        self._state.n_read += sum(map(len, weights))
        return sum(int((w > 0).sum()) for w in weights), sum(float(w.sum()) for w in weights)

    def _accumulate(self, batch: Batch, *, every: bool = False) -> Tensor:
        """Add the gradient of Σ weight·loss of a batch to the parameters; its tokens' weights, all 1 for `every`."""
        looked = self._passes.learn(batch, self._state.step if self._state.coarse else None, every=every)
        self._note(batch, looked.losses)
        self._let_rest(batch.passages)
        return looked.weights

    def _look(self, batch: Batch) -> Tensor:
        """Note the losses of a batch, and return them."""
        losses = self._passes.look(batch)
        self._note(batch, losses)
        return losses.loss

    def _note(self, batch: Batch, losses: TokenLosses) -> None:
        """Remember each token's loss."""
        if not bool(torch.isfinite(losses.loss).all()):
            step = self._state.step
            raise TrainingDivergedError(f"the loss is not a number at step {step}", step=step)
        self._watch(batch, losses)
        for passage, piece in zip(batch.passages, losses.loss.split(list(batch.lengths)), strict=True):
            self._last.note(passage, piece)

    def _report(self, n_active: int, started: float, *, evaluated: bool) -> StepReport:
        seen = Evaluation(self._last.losses)
        return StepReport(
            step=self._state.step,
            loss=seen.mean_loss,
            n_tokens=len(self._last),
            n_stubborn=seen.n_below(self.options.threshold),
            n_active=n_active,
            min_probability=seen.min_probability,
            seconds=time.perf_counter() - started,
            evaluated=evaluated,
            drift=None if self.control is None else self.control.moved,
        )
