"""The loop: optimiser steps until one full look finds every target token above the threshold.

What a step costs is kept down by what it does not do: frozen layers below the adapter are not run, mastered tokens get
no backward pass, and mastered passages leave the batch and come back for a look at growing intervals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError, TrainingDivergedError
from lorasize.losses.batches import Batch, check_entry, make_batches
from lorasize.losses.frozen_layers import Suffix
from lorasize.losses.head import checked_head
from lorasize.losses.token_losses import TokenLosses, loss_and_gradient, token_losses
from lorasize.models.adapters import base_of, first_adapted_layer, parameters
from lorasize.records import BATCH_TOKENS, Method, StepReport
from lorasize.training.checkpoint import Checkpoint
from lorasize.training.objectives import Objective, curriculum_share
from lorasize.training.precision import bfloat16_products, has_bfloat16_products
from lorasize.training.retain import retain

if TYPE_CHECKING:
    from peft import PeftModel

_BETAS = (0.9, 0.95)
_CLIP = 1.0  # gradient norm
_CALM = 0.4  # the rate falls with the root of the share of stubborn tokens, once that is below this
_SLOWEST = 0.05  # of the rate, at least
_RESTING = 0.9  # a passage rests once every token of it is above this
_MAX_INTERVAL = 8  # looks at a resting passage are at most this many epochs apart
# Of a trainer's state, what is no tensor.
_PLAIN = ("due", "interval", "order", "coarse", "epoch", "step", "idle", "slowed", "n_read")
_MANY = 8  # passages from which memft-sw means the paper's curriculum instead of its window


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        method: The objective.
        threshold: Every target token's p must exceed this.
        margin: Added to the threshold before a token counts as passed: decoding moves logits a little.
        max_steps: Optimiser steps at most.
        learning_rate: Of Adam while many tokens are stubborn.
        batch_tokens: Positions in one optimiser step, unless one passage is longer; a smaller corpus is one full batch.
        seed: Order of batches and passages.
        max_drift: Nats per token that the loss on retained text may grow by; None where it is only measured.
    """

    method: Method = "memft"
    threshold: float = 0.5
    margin: float = 0.02
    max_steps: int = 1000
    learning_rate: float = 0.06
    batch_tokens: int = BATCH_TOKENS
    seed: int = 0
    max_drift: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """One full look: loss of every target token, passage by passage, shape (token,), nats."""

    losses: Tensor

    @property
    def mean_loss(self) -> float:
        """Nats per target token."""
        return float(self.losses.mean())

    @property
    def min_probability(self) -> float:
        """The smallest p of any target token."""
        return math.exp(-float(self.losses.max()))

    def n_below(self, probability: float) -> int:
        """Target tokens with p at or below `probability`."""
        return int((self.losses >= -math.log(probability)).sum())


class Trainer:
    """One adapter, one corpus: holds the batches, the optimiser and what is known of each token."""

    def __init__(
        self,
        adapted: PeftModel,
        encoded: Sequence[EncodedPassage],
        options: TrainingOptions,
        retained: Sequence[EncodedPassage] = (),
    ) -> None:
        """Run the frozen layers once. `retained` are windows of text that must not suffer.

        Raises:
            ModelError: entering the model above its frozen layers, or its LM head, does not give its own output.
        """
        self.options = options
        base = base_of(adapted)
        first = first_adapted_layer(adapted)
        self._parameters = list(parameters(adapted).values())
        self._suffix = Suffix(base, first)
        self._batches = make_batches(base, encoded, first, options.batch_tokens, self._parameters[0].device)
        with adapted.disable_adapter():  # a trained one makes more of bfloat16's differences than the check allows
            self._head = checked_head(base, self._batches[-1].ids)
            check_entry(base, self._suffix, self._batches[-1])
        bound = options.max_drift
        self.retained = retain(adapted, self._suffix, self._head, retained, first, bound) if retained else None
        self._offsets = list(accumulate((passage.n_tokens for passage in encoded), initial=0))
        self._latest = torch.full((self._offsets[-1],), math.inf)  # loss of each token when last looked at, nats
        self._due = [0] * len(encoded)  # epoch at which each passage is looked at again
        self._interval = [1] * len(encoded)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._order = torch.randperm(len(encoded), generator=self._generator).tolist()
        passing = options.threshold + options.margin  # a token released below this could never pass
        self._objective = Objective(options.method, passing, many=len(encoded) >= _MANY)
        self._optimizer = torch.optim.Adam(self._parameters, lr=options.learning_rate, betas=_BETAS)
        self._coarse = has_bfloat16_products(self._parameters[0].device)  # until a full look contradicts it
        self._room: float = math.inf  # positions that fit into memory at once
        self._slowed = 1.0  # of the learning rate, after a loss that was not a number
        self._epoch = 0
        self._step = 0
        self._n_read = 0  # target tokens that steps have read
        self._idle = 0  # epochs without a step, all that the curriculum lets in being mastered

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps that one look at everything takes, about."""
        return math.ceil(sum(batch.ids.numel() for batch in self._batches) / self.options.batch_tokens)

    @property
    def n_read(self) -> int:
        """Target tokens that steps have read so far, each as often as it was read."""
        return self._n_read

    def evaluate(self) -> Evaluation:
        """A full look at every target token with the adapter as it is."""
        with torch.no_grad(), self._suffix.entered():
            for batch in self._batches:
                self._in_pieces(batch, self._look)
        self._epoch += 1
        return Evaluation(self._latest.clone())

    def steps(self, between_epochs: Callable[[], None] = lambda: None) -> Iterator[StepReport]:
        """Train. The last report has `evaluated` set: either every token passed then, or the step budget had ended.

        Args:
            between_epochs: Called where `state` tells all there is to tell.

        Raises:
            TrainingDivergedError: a loss is not a number.
        """
        started = time.perf_counter()
        if math.isinf(float(self._latest.max())):
            self.evaluate()
        while self._step < self.options.max_steps and not self._proven():
            between_epochs()
            before = self._step
            for part in self._parts():
                n_active = self._update(part)
                if n_active:
                    yield self._report(n_active, started, evaluated=False)
                if self._step >= self.options.max_steps:
                    break
            self._epoch += 1
            self._idle += self._step == before and not self.passed
        self.evaluate()
        if self.retained is not None:
            self.retained.measure()
        yield self._report(0, started, evaluated=True)

    def state(self) -> Checkpoint:
        """Everything that steps to come depend on; `restore` gives it to a trainer of the same adapter and corpus."""
        tensors = {f"parameter.{k}": p.detach() for k, p in enumerate(self._parameters)}
        for k, kept in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{k}.{name}": value for name, value in kept.items()}
        tensors |= {"latest": self._latest, "generator": self._generator.get_state()}
        plain = {name: getattr(self, f"_{name}") for name in _PLAIN}
        kept = None if self.retained is None else self.retained.state()
        return Checkpoint(tensors, plain | {"windows": self._objective.remembered(), "retained": kept})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where `state` was taken."""
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
        self._latest = tensors["latest"].clone()
        self._generator.set_state(tensors["generator"])
        for name in _PLAIN:
            setattr(self, f"_{name}", state[name])
        self._objective.remember(state["windows"])
        if self.retained is not None:
            self.retained.restore(state["retained"])

    def retreat(self, checkpoint: Checkpoint) -> None:
        """Go back to a good state, and on from there at half the learning rate."""
        slowed = self._slowed / 2.0
        self.restore(checkpoint)
        self._slowed = slowed

    def _proven(self) -> bool:
        """Whether all tokens passed when last looked at, and still do in one full look, and no harm was done."""
        if not self.passed:
            return False
        if self.retained is not None and self.retained.bound is not None:
            self.retained.measure()
        self.evaluate()
        passed = float(self._latest.max()) < self._limit
        self._coarse = self._coarse and passed  # else a look could pass what a full look does not, for ever
        return self.passed

    @property
    def _limit(self) -> float:
        """The loss below which a token has passed, nats."""
        return -math.log(self.options.threshold + self.options.margin)

    @property
    def passed(self) -> bool:
        """Whether every token passed when last looked at, and the bound on drift is kept."""
        harmed = self.retained is not None and self.retained.harmed
        return float(self._latest.max()) < self._limit and not harmed

    def _parts(self) -> Iterator[list[Batch]]:
        """One epoch: all that is due, in parts of at most `batch_tokens` positions, one for each optimiser step."""
        part: list[Batch] = []
        for index in torch.randperm(len(self._batches), generator=self._generator).tolist():
            due = self._due_part(self._batches[index])
            if due is None:
                continue
            if part and sum(b.ids.numel() for b in part) + due.ids.numel() > self.options.batch_tokens:
                yield part
                part = []
            part.append(due)
        if part:
            yield part

    def _due_part(self, batch: Batch) -> Batch | None:
        """The rows to look at now: not resting and, for memft-sw on many records, inside the curriculum."""
        share = 1.0
        if self.options.method == "memft-sw" and self._objective.many:
            share = curriculum_share((self._step + self._idle) / self.options.max_steps)
        inside = [self._order[p] < share * len(self._order) for p in batch.passages]
        keep = [k for k, p in enumerate(batch.passages) if inside[k] and self._due[p] <= self._epoch]
        return batch.select(keep) if keep else None

    def _update(self, part: Sequence[Batch]) -> int:
        """Look at a part and take one optimiser step on what is not mastered; the number of tokens trained on."""
        with self._suffix.entered(), bfloat16_products(self._coarse):
            n_active, total = self._accumulated(part)
            if not n_active and self.options.method == "memft-ot":  # as published, with nothing stubborn in a step
                n_active, total = self._accumulated(part, every=True)
            harmed = self.retained is not None and self.retained.harmed
            if total:
                for parameter in self._parameters:
                    if parameter.grad is not None:
                        parameter.grad /= total
            if self.retained is not None:
                self.retained.pull()
        if (n_active or harmed) and not self.passed:
            torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP)
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate()
            self._optimizer.step()
            self._step += 1
            if self.retained is not None:
                self.retained.stepped()
            n_active = max(1, n_active)
        else:
            n_active = 0
        self._optimizer.zero_grad()
        return n_active

    def _accumulated(self, part: Sequence[Batch], *, every: bool = False) -> tuple[int, float]:
        """The gradient of a part on the parameters; how many tokens have weight, and the sum of their weights."""
        work = partial(self._accumulate, every=every)
        weights = [found for batch in part for found in self._in_pieces(batch, work)]
        self._n_read += sum(map(len, weights))
        return sum(int((w > 0).sum()) for w in weights), sum(float(w.sum()) for w in weights)

    def _rate(self) -> float:
        """The learning rate: large while most tokens are stubborn, smaller as few are left; no horizon to guess."""
        share = float((self._latest >= self._limit).float().mean())
        return self._slowed * self.options.learning_rate * min(1.0, max(_SLOWEST, math.sqrt(share / _CALM)))

    def _in_pieces(self, batch: Batch, work: Callable[[Batch], Tensor]) -> list[Tensor]:
        """The work on a batch; on halves of it, from now on, where memory does not suffice for the whole.

        Raises:
            ModelError: one passage alone does not fit.
        """
        n = len(batch.passages)
        if n == 1 or batch.ids.numel() <= self._room:
            before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
            try:
                return [work(batch)]
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                for parameter, grad in zip(self._parameters, before, strict=True):
                    parameter.grad = grad  # a backward pass that broke off has added a part
                if n == 1:
                    raise ModelError(
                        f"out of memory on one passage of {batch.ids.numel()} positions: split it into shorter ones, "
                        "or train on a device with more memory"
                    ) from error
            self._room = batch.ids.numel() // 2
        halves = batch.select(range(n // 2)), batch.select(range(n // 2, n))
        return [part for half in halves for part in self._in_pieces(half, work)]

    def _look(self, batch: Batch) -> Tensor:
        """Note the losses of a batch, and return them."""
        hidden = self._suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
        losses = token_losses(self._head, hidden, batch.targets)
        self._note(batch, losses)
        return losses.loss

    def _accumulate(self, batch: Batch, *, every: bool = False) -> Tensor:
        """Add the gradient of Σ weight·loss of a batch to the parameters; its tokens' weights, all 1 for `every`."""

        def weigh(losses: TokenLosses) -> Tensor:
            if every:
                return torch.ones_like(losses.loss)
            return self._objective.weights(losses, batch.passages, batch.lengths)

        hidden = self._suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
        losses, weights, gradient = loss_and_gradient(self._head, hidden.detach(), batch.targets, weigh)
        self._note(batch, losses)
        if bool((weights > 0).any()):
            hidden.backward(gradient)
        return weights

    def _note(self, batch: Batch, losses: TokenLosses) -> None:
        """Remember each token's loss, and let mastered passages rest."""
        if not bool(torch.isfinite(losses.loss).all()):
            raise TrainingDivergedError(f"the loss is not a number at step {self._step}", step=self._step)
        for passage, piece in zip(batch.passages, losses.loss.cpu().split(list(batch.lengths)), strict=True):
            self._latest[self._offsets[passage] : self._offsets[passage + 1]] = piece
            mastered = float(piece.max()) < -math.log(_RESTING)
            self._interval[passage] = min(_MAX_INTERVAL, 2 * self._interval[passage]) if mastered else 1
            self._due[passage] = self._epoch + self._interval[passage]

    def _report(self, n_active: int, started: float, *, evaluated: bool) -> StepReport:
        seen = Evaluation(self._latest)
        return StepReport(
            step=self._step,
            loss=seen.mean_loss,
            n_tokens=len(self._latest),
            n_stubborn=seen.n_below(self.options.threshold),
            n_active=n_active,
            min_probability=seen.min_probability,
            seconds=time.perf_counter() - started,
            evaluated=evaluated,
            drift=self.retained.drift if self.retained is not None and self.retained.bound is not None else None,
        )


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the machine itself, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
