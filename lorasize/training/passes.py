"""One pass over a batch: what each target token costs, and the gradient on the adapter.

Values come to the host once for each pass, so that an accelerator waits for no decision within one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from lorasize.losses.batches import Batch
from lorasize.losses.token_losses import TokenLosses, Weigh, loss_and_gradient_of_all, token_losses
from lorasize.training.fast_path import FastPath
from lorasize.training.graphs import Graphs
from lorasize.training.objectives import Objective
from lorasize.training.precision import in_order

Result = TypeVar("Result")


@dataclass(frozen=True)
class Looked:
    """What a pass saw, on the host: the losses of the target tokens and their weights, shape (token,)."""

    losses: TokenLosses
    weights: Tensor


class Passes:
    """Passes of one adapter over its batches; the path's suffix must be entered.

    Attributes:
        objective: What weighs the tokens.
        graphs: Recordings of passes, on a CUDA card.
        whole_batches: Whether batches are run as they are, mastered passages and all: recordings know few shapes.
    """

    def __init__(
        self, path: FastPath, parameters: Sequence[nn.Parameter], objective: Objective, *, spread: bool = False
    ) -> None:
        """Nothing is run yet. Of a model that is `spread` over devices nothing is recorded."""
        self._path = path
        self._parameters = list(parameters)
        self.objective = objective
        self._device = parameters[0].device.type
        self._orderly = self._device == "cuda"  # until the model turns out to have sums without a fixed order
        self.graphs = Graphs(path, self._parameters, lambda losses: objective.weights(losses, (), ()))
        self.whole_batches = self._device == "cuda" and objective.per_token and not spread

    def orderly(self) -> AbstractContextManager[None]:
        """Sums in a fixed order on an accelerator, where the model has one for all of them."""
        return in_order(self._orderly)

    def look(self, batch: Batch) -> TokenLosses:
        """The losses of a batch."""

        def work() -> TokenLosses:
            with self.orderly():
                hidden = self._path.hidden(batch)
            losses = token_losses(self._path.head, hidden, batch.targets)
            return TokenLosses(losses.loss.cpu(), losses.correct.cpu())

        return self._retried(work)

    def learn(self, batch: Batch, step: int | None, *, every: bool = False) -> Looked:
        """The losses of a batch and the objective's weights; the gradient of Σ weight·loss is added to the parameters.

        Args:
            batch: The batch.
            step: The optimiser step, where shortcuts may be taken that a full look does not take; None for none.
            every: Whether all tokens weigh 1.
        """
        if step is not None and self.whole_batches and not every and (found := self.graphs.run(batch)) is not None:
            seen, gradients = found[0].cpu(), found[1]
            self._add([None if gradient is None else gradient.clone() for gradient in gradients])
            return Looked(TokenLosses(seen[0], seen[2] > 0), seen[1])

        def weigh(losses: TokenLosses) -> Tensor:
            if every:
                return torch.ones_like(losses.loss)
            return self.objective.weights(losses, batch.passages, batch.lengths)

        return self._retried(lambda: self._learn(batch, step, weigh))

    def _learn(self, batch: Batch, step: int | None, weigh: Weigh) -> Looked:
        with self.orderly():
            hidden = self._path.hidden(batch)
        if self._device == "cpu" or not self.objective.per_token:
            losses, weights, gradient = self._path.loss_and_gradient(batch, hidden.detach(), weigh, step)
        else:
            losses, weights, gradient = loss_and_gradient_of_all(
                self._path.head, hidden.detach(), batch.targets, weigh
            )
        looked = Looked(TokenLosses(losses.loss.cpu(), losses.correct.cpu()), weights.cpu())
        if bool((looked.weights > 0).any()):
            with self.orderly():
                self._add(torch.autograd.grad(hidden, self._parameters, gradient, allow_unused=True))
        return looked

    def _retried(self, work: Callable[[], Result]) -> Result:
        """Run work; once more with sums as they come where the model has some that have no fixed order."""
        try:
            return work()
        except RuntimeError as error:
            if not self._orderly or "deterministic" not in str(error):
                raise
            self._orderly = False
            return work()

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add gradients to those that the parameters have."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
