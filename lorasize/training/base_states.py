"""The base model's hidden states on texts that no adapter is trained on, which adapted ones are compared with.

On the texts that come with the package they are the same in every run, so they are kept between runs; of a user's text
nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lorasize.artifacts.files import cache_folder, write_whole
from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.batches import Batch, make_batches
from lorasize.losses.texts import POSITIONS
from lorasize.models import BaseModel, placement
from lorasize.models.adapters import base_of
from lorasize.training.fast_path import FastPath

if TYPE_CHECKING:
    from peft import PeftModel

_AT_ONCE = 4096  # positions on a card, which waits for the host in each pass: docs/log/speed.md#the-bound-on-a-card
_MATTER = ("torch", "transformers")  # whose next version may compute other states


@torch.no_grad()
def seen_by_the_base(
    adapted: PeftModel, corpus: FastPath, encoded: Sequence[EncodedPassage], kept_for: BaseModel | None = None
) -> tuple[FastPath, list[Tensor]]:
    """These texts in batches, and the base model's final hidden states that predict their targets.

    Args:
        adapted: The model with its adapter, which is put aside while this runs.
        corpus: The fast path of the corpus that is trained on; the texts run through the same layers and head.
        encoded: The texts.
        kept_for: The base model, where the states may be kept between runs; None for texts of the user's.
    """
    model, device, suffix = base_of(adapted), corpus.batches[0].ids.device, corpus.suffix
    at_once = POSITIONS if device.type == "cpu" or suffix.logits else _AT_ONCE
    place = None
    if kept_for is not None and not suffix.logits and not placement.is_spread(model):
        bare = make_batches(model, encoded, None, at_once, device)
        place = _place(kept_for, suffix.first, bare)
        if (known := _read(place, bare, device)) is not None:
            return FastPath(suffix, corpus.head, known[0], corpus.shortlists), known[1]
    with adapted.disable_adapter():
        path = FastPath(
            suffix, corpus.head, make_batches(model, encoded, suffix.first, at_once, device), corpus.shortlists
        )
        with suffix.entered():
            states = [path.hidden(batch) for batch in path.batches]
    if place is not None:
        _write(place, path.batches, states)
    return path, states


def _place(base: BaseModel, first: int | None, batches: Sequence[Batch]) -> Path:
    """The file for these texts, named by everything that the states depend on."""
    versions = [importlib.metadata.version(name) for name in _MATTER]
    how = [base.fingerprint.digest, base.dtype, base.quantization, base.attn, base.place, first, *versions]
    key = (how, [batch.ids.tolist() for batch in batches])
    return cache_folder() / "base-states" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.safetensors"


def _write(place: Path, batches: Sequence[Batch], states: Sequence[Tensor]) -> None:
    tensors = {f"stored {k}": batch.stored.contiguous() for k, batch in enumerate(batches)}
    tensors |= {f"states {k}": one.contiguous() for k, one in enumerate(states)}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(save(tensors), place)


def _read(place: Path, bare: Sequence[Batch], device: torch.device) -> tuple[list[Batch], list[Tensor]] | None:
    """The batches with their stored states, and the final ones; None where there is no file, or it is damaged."""
    try:
        tensors = load_file(place, device=str(device))
        batches = [replace(batch, stored=tensors[f"stored {k}"]) for k, batch in enumerate(bare)]
        return batches, [tensors[f"states {k}"] for k in range(len(bare))]
    except (OSError, KeyError, SafetensorError):
        return None
