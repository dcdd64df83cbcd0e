"""Training passes as CUDA graphs: recorded once for each shape of a batch, then started by one launch.

A card runs the suffix of a small model faster than Python can start its thousands of kernels, step after step. A
recording reads from and writes to fixed places in memory, so batches are copied into them, padded to few shapes. It is
an optimisation: a model that asks the host on the way, or whose recording gives something else, runs step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorasize.losses.batches import Batch
from lorasize.losses.head import AnyHead
from lorasize.losses.token_losses import TokenLosses, loss_and_gradient_of_all
from lorasize.models.packing import never_packed
from lorasize.training.fast_path import FastPath
from lorasize.training.precision import in_order

_MOST_POSITIONS = 8192  # of a batch, since 4,096 still wait for the host: docs/log/speed.md#on-a-card

# Not tuned.
_MOST_GRAPHS = 16  # shapes recorded; each keeps memory of its own for what it gives
_POSITIONS, _TARGETS = 32, 64  # lengths are padded to multiples
_ALIKE = 1e-2  # relative: what a recording gives against what was run to make it

Weights = Callable[[TokenLosses], Tensor]


@dataclass
class Recording:
    """A pass over batches of one shape, and the places it reads from and writes to.

    Attributes:
        ids: Token ids, shape (passage, position).
        stored: Hidden states that enter the suffix, shape (passage, position, width).
        places: Of each target token, the position that predicts it, counted through all passages, shape (token,).
        targets: Their ids, shape (token,).
        live: 1 for a target token, 0 for padding, shape (token,).
        head: The LM head with buffers of its own.
        active: Where the adapter acts, shape (passage, position); None: everywhere.
        graph: The recording.
        seen: Loss, weight and whether it is the likeliest, of each target token, shape (3, token).
        gradients: Of Σ weight·loss, one for each parameter; None where a parameter has no part in it.
    """

    ids: Tensor
    stored: Tensor
    places: Tensor
    targets: Tensor
    live: Tensor
    head: AnyHead
    active: Tensor | None = None
    graph: Any = None
    seen: Tensor | None = None
    gradients: Sequence[Tensor | None] = ()

    @classmethod
    def for_shape(cls, shape: tuple[int, int, int], batch: Batch, head: AnyHead) -> Recording:
        """Places for batches such as this one, padded to passages, positions and target tokens."""
        rows, positions, n_targets = shape
        width = batch.stored.shape[2:]
        return cls(
            ids=batch.ids.new_zeros((rows, positions)),
            stored=torch.zeros(
                (rows, positions if width else 0, *width), dtype=batch.stored.dtype, device=batch.ids.device
            ),
            places=batch.ids.new_zeros(n_targets),
            targets=batch.ids.new_zeros(n_targets),
            live=torch.zeros(n_targets, device=batch.ids.device),
            head=replace(head, buffers={}),
            active=None if batch.active is None else batch.active.new_zeros((rows, positions)),
        )

    def fill(self, batch: Batch) -> None:
        """Put a batch where the recording reads it."""
        n, length = len(batch.targets), batch.ids.shape[1]
        for place in (self.ids, self.stored, self.places, self.targets, self.live):
            place.zero_()
        self.ids[:, :length].copy_(batch.ids)
        self.stored[:, : batch.stored.shape[1]].copy_(batch.stored, non_blocking=True)
        self.places[:n].copy_(batch.rows * self.ids.shape[1] + batch.columns)
        self.targets[:n].copy_(batch.targets)
        self.live[:n] = 1.0
        if self.active is not None and batch.active is not None:
            self.active.zero_()[:, :length].copy_(batch.active)


def _up(n: int, multiple: int) -> int:
    return math.ceil(n / multiple) * multiple


class Graphs:
    """The recordings of one training.

    Attributes:
        refused: Why the last shape that could not be recorded could not be; empty where all could.
    """

    def __init__(self, path: FastPath, parameters: Sequence[nn.Parameter], weights: Weights) -> None:
        """Nothing is recorded yet.

        Args:
            path: The passages' way through the model.
            parameters: The adapter's.
            weights: The objective, of tokens alone.
        """
        self._path = path
        self._parameters = parameters
        self._weights = weights
        self._held: dict[tuple[int, int, int], Recording | None] = {}
        self.refused = ""
        self._pool: Any = None  # of memory, which all recordings share: they never run at the same time
        self._longest = max(batch.ids.shape[1] for batch in path.batches)

    def _shape(self, batch: Batch) -> tuple[int, int, int]:
        """Passages, positions and target tokens that a batch is padded to; no model has to read further than before."""
        rows, positions = batch.ids.shape
        return rows, min(_up(positions, _POSITIONS), self._longest), _up(len(batch.targets), _TARGETS)

    def run(self, batch: Batch) -> tuple[Tensor, Sequence[Tensor | None]] | None:
        """Loss, weight and correctness, shape (3, token), and gradients of the parameters; valid until the next call.

        None where this batch is not run as a recording.
        """
        shape = self._shape(batch)
        if shape not in self._held:
            if batch.ids.numel() > _MOST_POSITIONS or len(self._held) >= _MOST_GRAPHS:
                return None
            self._held[shape] = self._recorded(shape, batch)
        recording = self._held[shape]
        if recording is None:
            return None
        recording.fill(batch)
        recording.graph.replay()
        assert recording.seen is not None
        return recording.seen[:, : len(batch.targets)], recording.gradients

    def _recorded(self, shape: tuple[int, int, int], batch: Batch) -> Recording | None:
        """A recording for batches of this shape; None where there can be none, for whatever reason."""
        recording, now = Recording.for_shape(shape, batch, self._path.head), torch.cuda.current_stream()
        try:
            recording.fill(batch)
            with never_packed():
                first = self._warm(recording)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool):
                    recording.seen, recording.gradients = self._pass(recording)
            graph.replay()
            recording.graph = graph
            if not _alike(first, (recording.seen, *recording.gradients)):
                self.refused = "the recording gives something else"
                return None
        except Exception as error:  # out of memory, or a model that asks the host: each fails in its own way
            torch.cuda.set_stream(now)  # a recording that breaks off leaves its own behind
            torch.cuda.synchronize()  # what still runs reads what is about to be freed
            self.refused = f"{type(error).__name__}: {error}"
            return None
        self._pool = graph.pool() if self._pool is None else self._pool
        return recording

    def _warm(self, recording: Recording) -> tuple[Tensor | None, ...]:
        """The pass once to set up what is set up at first use, and once more, when it must not wait for the host."""
        stream, now = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(now)
        before = torch.cuda.get_sync_debug_mode()
        with torch.cuda.stream(stream):
            self._pass(recording)
            torch.cuda.set_sync_debug_mode("error")
            try:
                seen, gradients = self._pass(recording)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        now.wait_stream(stream)
        return tuple(None if part is None else part.clone() for part in (seen, *gradients))

    def _pass(self, recording: Recording) -> tuple[Tensor, Sequence[Tensor | None]]:
        """What is recorded: forward, loss and objective, backward."""
        self._path.suffix.active = recording.active
        with in_order(True), torch.enable_grad():
            hidden = self._path.suffix.run(recording.ids, recording.stored)
        flat = hidden.detach().flatten(0, 1)
        losses, weights, part = loss_and_gradient_of_all(
            recording.head, flat[recording.places], recording.targets, self._weights, recording.live
        )
        # Padding adds its zeros to a place of its own: no value of a gradient may be written twice.
        whole = torch.zeros((len(flat) + 1, *flat.shape[1:]), dtype=flat.dtype, device=flat.device)
        whole[recording.places + (recording.live < 1) * len(flat)] = part
        with in_order(True):
            gradients = torch.autograd.grad(
                hidden, list(self._parameters), whole[:-1].view_as(hidden), allow_unused=True
            )
        return torch.stack([losses.loss, weights, losses.correct.float()]), gradients


def _alike(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> bool:
    """Whether two passes gave the same, but for rounding."""
    pairs = [(one, other) for one, other in zip(first, second, strict=True) if one is not None and other is not None]
    return all(bool((one - other).norm() <= _ALIKE * one.norm()) for one, other in pairs)
