"""A batch in pieces where memory does not suffice for the whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lorasize.errors import ModelError
from lorasize.losses.batches import Batch
from lorasize.models.devices import is_out_of_memory


class Pieces:
    """Runs work on batches, in halves of them where the whole does not fit; what fits is remembered."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Nothing is known of the memory yet. The work may add to the gradients of `parameters`."""
        self._parameters = parameters
        self._room: float = math.inf  # positions that fit into memory at once

    def run(self, batch: Batch, work: Callable[[Batch], Tensor]) -> list[Tensor]:
        """What the work gives for the batch, or for each piece of it.

        Raises:
            ModelError: one passage alone does not fit.
        """
        n = len(batch.passages)
        if n == 1 or batch.ids.numel() <= self._room:
            try:
                return [self._undone_on_error(batch, work)]
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if n == 1:
                    raise ModelError(
                        f"out of memory on one passage of {batch.ids.numel()} positions: split it into shorter ones, "
                        "or train on a device with more memory"
                    ) from error
            self._room = batch.ids.numel() // 2
        halves = batch.select(range(n // 2)), batch.select(range(n // 2, n))
        return [piece for half in halves for piece in self.run(half, work)]

    def _undone_on_error(self, batch: Batch, work: Callable[[Batch], Tensor]) -> Tensor:
        """The work; the gradients stay as they were if it breaks off, since half a backward pass adds a part."""
        before = [None if p.grad is None else p.grad.clone() for p in self._parameters]
        try:
            return work(batch)
        except RuntimeError as error:
            if is_out_of_memory(error):
                for parameter, gradient in zip(self._parameters, before, strict=True):
                    parameter.grad = gradient
            raise
