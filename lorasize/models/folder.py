"""A base model found and not yet loaded: all that can be told without its weights in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lorasize.corpus.text import decoder
from lorasize.models.devices import pick_device, pick_dtype
from lorasize.models.fingerprint import fingerprint
from lorasize.models.loading import (
    BaseModel,
    load_tokenizer,
    load_weights,
    max_positions,
    n_ids,
    n_layers,
    quantized_as,
)
from lorasize.models.placement import input_device
from lorasize.models.references import resolve
from lorasize.models.shapes import linear_shapes
from lorasize.records import ModelFingerprint


@dataclass(frozen=True)
class ModelFolder:
    """The folder that a model reference stands for. What is read of it is read when first asked for, and once."""

    ref: str
    path: Path

    @cached_property
    def fingerprint(self) -> ModelFingerprint:
        """Digests of its files; the weights are read for it."""
        return fingerprint(self.path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return load_tokenizer(self.path)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return decoder(self.tokenizer)(ids)

    @cached_property
    def max_positions(self) -> int:
        """Longest sequence the model was made for."""
        return max_positions(self.path)

    @cached_property
    def n_ids(self) -> int | None:
        """Token ids that the model knows; the tokenizer may have more. None where the config does not say."""
        return n_ids(self.path)

    @cached_property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return n_layers(self.path)

    def quantized_as(self, asked: str | None = None) -> str | None:
        """How its weights are quantised in memory when loaded so; None where they are plain.

        Raises:
            ModelError: they are quantised otherwise already, or the quantisation asked for is unknown.
        """
        return quantized_as(self.path, asked)

    def load(
        self,
        device: str = "auto",
        dtype: str = "auto",
        attn: str = "auto",
        quantization: str | None = None,
        device_map: str | None = None,
    ) -> BaseModel:
        """The base model in memory: frozen, in eval mode, dropout off, on its device.

        Args:
            device: Where it runs.
            dtype: Of the weights that are not quantised.
            attn: Attention kernel; `auto` is the best that the model has here.
            quantization: What plain weights are quantised to as they are read, "nf4" or "int8"; None: as they are.
            device_map: How to spread layers over devices, memory and disk (`models.placement`); None: all on one.

        Raises:
            ModelError: it cannot be read, cannot be run, or has nothing that an adapter can sit on.
        """
        where = pick_device(device)
        kind = pick_dtype(dtype, where)
        weights = self.quantized_as(quantization)
        model = load_weights(self.path, where, kind, attn, quantization, device_map)
        linear_shapes(model)  # what cannot be run is refused here, by every verb alike
        return BaseModel(
            self.ref, self.path, self.fingerprint, model, self.tokenizer, input_device(model), kind, weights
        )


def open(ref: str, revision: str | None = None) -> ModelFolder:
    """The model that `ref` stands for, converted or fetched when needed; nothing of it is loaded.

    Args:
        ref: `builtin:…`, a local folder, a `.gguf` file, or a hub id.
        revision: Hub revision; only for hub ids.

    Raises:
        ModelError: nothing usable is there.
    """
    return ModelFolder(ref, resolve(ref, revision))


def load(
    ref: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
) -> BaseModel:
    """The base model in memory: found, then loaded as `ModelFolder.load` does.

    Raises:
        ModelError: it cannot be found, read or run, or has nothing that an adapter can sit on.
    """
    return open(ref, revision).load(device, dtype, attn, quantization, device_map)
