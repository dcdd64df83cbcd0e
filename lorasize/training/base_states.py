"""What the base model makes of texts that no adapter is trained on, which an adapted one is compared with.

On the texts that come with the package they are the same in every run, so they are kept between runs; of a user's text
nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
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
from lorasize.losses.token_losses import Predicted, predicted
from lorasize.models import BaseModel, placement
from lorasize.models.adapters import base_of
from lorasize.training.fast_path import FastPath

if TYPE_CHECKING:
    from peft import PeftModel

_AT_ONCE = 4096  # positions on a card, which waits for the host in each pass: docs/log/speed.md#the-bound-on-a-card
Known = Predicted | Tensor  # of a batch: what is predicted, else final hidden states, shape (token, width)
_FORM = 3  # of the files: what older ones hold is known in another form
_MATTER = ("torch", "transformers")  # whose next version may compute other states


@torch.no_grad()
def seen_by_the_base(
    adapted: PeftModel, corpus: FastPath, encoded: Sequence[EncodedPassage]
) -> tuple[FastPath, list[Tensor]]:
    """These texts in batches, and the base model's final hidden states that predict their targets.

    Args:
        adapted: The model with its adapter, which is put aside while this runs.
        corpus: The fast path of the corpus that is trained on; the texts run through the same layers and head.
        encoded: The texts.
    """
    model, device, suffix = base_of(adapted), corpus.batches[0].ids.device, corpus.suffix
    with adapted.disable_adapter():
        batches = make_batches(model, encoded, suffix.first, _at_once(corpus), device)
        path = FastPath(suffix, corpus.head, batches, corpus.shortlists)
        with suffix.entered():
            return path, [path.hidden(batch) for batch in path.batches]


@torch.no_grad()
def known_by_the_base(
    adapted: PeftModel, corpus: FastPath, encoded: Sequence[EncodedPassage], kept_for: BaseModel | None = None
) -> tuple[FastPath, list[Known]]:
    """The same, with what others are compared with in place of the states, where the head allows for that.

    Args:
        adapted: The model with its adapter, which is put aside while this runs.
        corpus: The fast path of the corpus that is trained on; the texts run through the same layers and head.
        encoded: The texts.
        kept_for: The base model, where what is known may be kept between runs; None for texts of the user's.
    """
    model, device, suffix = base_of(adapted), corpus.batches[0].ids.device, corpus.suffix
    place = None
    if kept_for is not None and not suffix.logits and not placement.is_spread(model):
        bare = make_batches(model, encoded, None, _at_once(corpus), device)
        place = _place(kept_for, suffix.first, bare)
        if (kept := _read(place, bare, device)) is not None:
            return FastPath(suffix, corpus.head, kept[0], corpus.shortlists), kept[1]
    path, states = seen_by_the_base(adapted, corpus, encoded)
    pairs = zip(states, path.batches, strict=True)
    known = [predicted(path.head, one, batch.targets) or one for one, batch in pairs]
    if place is not None:
        _write(place, path.batches, known)
    return path, known


def _at_once(corpus: FastPath) -> int:
    """Positions of a batch."""
    return POSITIONS if corpus.batches[0].ids.device.type == "cpu" or corpus.suffix.logits else _AT_ONCE


def _place(base: BaseModel, first: int | None, batches: Sequence[Batch]) -> Path:
    """The file for these texts, named by everything that the states depend on."""
    versions = [importlib.metadata.version(name) for name in _MATTER]
    how = [base.fingerprint.digest, base.dtype, base.quantization, base.attn, base.place, first, *versions]
    key = (_FORM, how, [batch.ids.tolist() for batch in batches])
    return cache_folder() / "base-states" / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:24]}.safetensors"


def _write(place: Path, batches: Sequence[Batch], known: Sequence[Known]) -> None:
    tensors = {f"stored {k}": batch.stored.contiguous() for k, batch in enumerate(batches)}
    for k, one in enumerate(known):
        parts = vars(one) if isinstance(one, Predicted) else {"states": one}
        tensors |= {f"{name} {k}": part.contiguous() for name, part in parts.items()}
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(save(tensors), place)


def _read(place: Path, bare: Sequence[Batch], device: torch.device) -> tuple[list[Batch], list[Known]] | None:
    """The batches with their stored states, and what is known; None where there is no file, or it is damaged."""
    try:
        tensors = load_file(place, device=str(device))
        batches = [replace(batch, stored=tensors[f"stored {k}"]) for k, batch in enumerate(bare)]
        return batches, [_known(tensors, k) for k in range(len(bare))]
    except (OSError, KeyError, SafetensorError):
        return None


def _known(tensors: Mapping[str, Tensor], k: int) -> Known:
    if f"states {k}" in tensors:
        return tensors[f"states {k}"]
    return Predicted(**{part.name: tensors[f"{part.name} {k}"] for part in fields(Predicted)})
