"""Passages as padded tensors, grouped by length, with the frozen layers' output kept beside them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.frozen_layers import states_before

_PREFIX_BYTES = 4 * 2**30  # stored states beyond this go to a memory-mapped file


@dataclass(frozen=True)
class Batch:
    """Passages of similar length, padded on the right: causal attention keeps padding from earlier positions.

    Attributes:
        ids: Token ids, shape (passage, position); the last target token predicts nothing and is left out.
        stored: Hidden states entering the first adapted layer, shape (passage, position, width); (passage, 0) where
            the whole model is run.
        rows: Row in `ids` of each target token, shape (token,).
        columns: Position whose output predicts each target token, shape (token,).
        targets: Token ids to be predicted, shape (token,).
        passages: Index in the corpus of each row's passage.
        lengths: Target tokens of each row's passage.
        active: Where the adapter acts, shape (passage, position); None: everywhere.
    """

    ids: Tensor
    stored: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    passages: tuple[int, ...]
    lengths: tuple[int, ...]
    active: Tensor | None = None

    def select(self, keep: Sequence[int]) -> Batch:
        """The batch with these rows only."""
        if len(keep) == len(self.passages):
            return self
        rows = torch.tensor(keep, device=self.ids.device)
        tokens = torch.isin(self.rows, rows)
        return Batch(
            ids=self.ids[rows],
            stored=self.stored[rows],
            rows=torch.searchsorted(rows, self.rows[tokens]),
            columns=self.columns[tokens],
            targets=self.targets[tokens],
            passages=tuple(self.passages[k] for k in keep),
            lengths=tuple(self.lengths[k] for k in keep),
            active=None if self.active is None else self.active[rows],
        )


def sequence_length(passage: EncodedPassage) -> int:
    """Positions that a passage takes in training: prompt and target without the last target token."""
    return len(passage.prompt_ids) + passage.n_tokens - 1


def make_batches(
    model: nn.Module,
    encoded: Sequence[EncodedPassage],
    first_layer: int | None,
    batch_tokens: int,
    device: torch.device,
    prefix_bytes: int = _PREFIX_BYTES,
) -> list[Batch]:
    """Batches of passages alike in length, of at most `batch_tokens` positions; the frozen layers are run once.

    States are kept beside the model up to `prefix_bytes`, the rest in a memory-mapped file; of an accelerator, in the
    machine's memory. Without a first layer there are none: the whole model is run at every step.
    """
    batches, held, gated = [], 0, begins_late(encoded)
    for group in groups(encoded, batch_tokens):
        ids, rows, columns, targets = layout(encoded, group, device)
        stored = ids.new_empty((len(ids), 0)) if first_layer is None else states_before(model, first_layer, ids)
        held += stored.nbytes
        if held > prefix_bytes:
            stored = _mapped(stored) if device.type == "cpu" else _beside(stored)
        lengths = tuple(encoded[i].n_tokens for i in group)
        where = active(encoded, group, ids) if gated else None
        batches.append(Batch(ids, stored, rows, columns, targets, tuple(group), lengths, where))
    return batches


def begins_late(encoded: Sequence[EncodedPassage]) -> bool:
    """Whether the adapter acts only after the beginning of some passage."""
    return any(one.active_from for one in encoded)


def active(encoded: Sequence[EncodedPassage], group: Sequence[int], ids: Tensor) -> Tensor:
    """Where in the padded ids of a group, shape (passage, position), the adapter acts."""
    begin = torch.tensor([encoded[i].active_from for i in group], device=ids.device)
    return torch.arange(ids.shape[1], device=ids.device)[None] >= begin[:, None]


def _mapped(states: Tensor) -> Tensor:
    """The same states in a nameless temporary file, which the system pages in and out as it likes."""
    handle, path = tempfile.mkstemp(prefix="lorasize-prefix-")
    os.close(handle)
    try:
        held = torch.from_file(path, shared=True, size=states.numel(), dtype=states.dtype).view(states.shape)
    finally:
        os.unlink(path)
    return held.copy_(states)


def _beside(states: Tensor) -> Tensor:
    """The same states in the machine's memory; pinned for CUDA, which copies them from there by itself."""
    held = torch.empty(states.shape, dtype=states.dtype, pin_memory=states.device.type == "cuda")
    return held.copy_(states)


def groups(encoded: Sequence[EncodedPassage], batch_tokens: int) -> list[list[int]]:
    """Indices of passages that share a batch, longest first: none is padded by more than a third."""
    groups: list[list[int]] = []
    for index in sorted(range(len(encoded)), key=lambda i: -sequence_length(encoded[i])):
        longest = sequence_length(encoded[groups[-1][0]]) if groups else 0
        fits = groups and (len(groups[-1]) + 1) * longest <= batch_tokens
        if fits and sequence_length(encoded[index]) * 3 >= longest * 2:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def layout(
    encoded: Sequence[EncodedPassage], group: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Padded ids (passage, position), and per target token its row, the column that predicts it, and its id."""
    ids = torch.zeros((len(group), sequence_length(encoded[group[0]])), dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, passage in enumerate(encoded[i] for i in group):
        sequence = passage.prompt_ids + passage.target_ids[:-1]
        ids[row, : len(sequence)] = torch.tensor(sequence)
        rows += [row] * passage.n_tokens
        columns += range(len(passage.prompt_ids) - 1, len(sequence))
        targets += passage.target_ids
    on = [torch.tensor(values, device=device) for values in (rows, columns, targets)]
    return ids.to(device), on[0], on[1], on[2]
