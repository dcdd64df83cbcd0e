"""Base models in memory: config, tokenizer and weights read from a folder, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorasize.errors import ModelError
from lorasize.models import placement
from lorasize.models import quantization as quantized
from lorasize.models.conversion import check_loaded, quiet_transformers, reason
from lorasize.models.devices import device_name
from lorasize.models.references import MAX_LAYERS
from lorasize.models.shapes import decoder_layers
from lorasize.records import CalibrationModel, ModelFingerprint

_LARGEST = 1e6  # of a weight


@dataclass(frozen=True)
class BaseModel:
    """A base model in memory, frozen, in eval mode."""

    ref: str
    folder: Path
    fingerprint: ModelFingerprint
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype
    quantization: str | None = None

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(decoder_layers(self.model))

    @property
    def width(self) -> int:
        """Numbers in the hidden state of one position."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)

    @property
    def attn(self) -> str:
        """The attention kernel it runs with."""
        return str(self.model.config._attn_implementation)

    @property
    def max_positions(self) -> int:
        """Longest sequence the model was made for."""
        return _positions(self.model.config)

    @property
    def n_ids(self) -> int:
        """Token ids that it knows: rows of its embedding and of its head."""
        ends: list[Any] = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        return min(int(end.weight.shape[0]) for end in ends if end is not None)

    @property
    def place(self) -> str:
        """The device by name and, of a model that is spread, how much of it is where."""
        spread = placement.told(self.model)
        return device_name(self.device) + (f", spread: {spread}" if spread else "")


def record_of(base: BaseModel, ref: str) -> CalibrationModel:
    """What a calibration says of its model."""
    return CalibrationModel(
        ref=ref,
        fingerprint=base.fingerprint,
        architecture=str(base.model.config.model_type),
        n_layers=base.n_layers,
        max_positions=base.max_positions,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{folder}: the tokenizer cannot be read ({reason(error)})") from error
    return tokenizer


def _config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"{folder}: the config cannot be read ({reason(error)})") from error
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 0 < layers <= MAX_LAYERS:
        raise ModelError(f"{folder}: the config is damaged: its number of layers is {layers!r:.40}")
    return config


def _positions(config: Any) -> int:
    config = config.get_text_config(decoder=True)
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024)


def max_positions(folder: Path) -> int:
    """Longest sequence the model of a folder was made for, from its config."""
    return _positions(_config(folder))


def n_ids(folder: Path) -> int | None:
    """Token ids that the model of a folder knows, from its config; None where that does not say."""
    size = getattr(_config(folder).get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def n_layers(folder: Path) -> int:
    """Decoder layers of the model of a folder, from its config."""
    layers = getattr(_config(folder).get_text_config(decoder=True), "num_hidden_layers", None)
    if layers is None:
        raise ModelError(f"{folder}: the config names no number of layers; is it a causal language model?")
    return int(layers)


def quantized_as(folder: Path, asked: str | None = None) -> str | None:
    """How the weights of a folder are quantised in memory, when loaded so: as asked, else as they lie there.

    Raises:
        ModelError: they are quantised otherwise already, or the quantisation asked for is unknown.
    """
    return quantized.as_loaded(folder, _config(folder), asked)


def load_weights(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    attn: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """The causal language model of a folder, frozen and in eval mode; a multimodal one with all that it has.

    Args:
        folder: With config and safetensors.
        device: Where all of it is put; with a `device_map`, where the first layers are.
        dtype: Of the weights that are not quantised.
        attn: Attention kernel; `auto` is the best that the model has here (sdpa, else eager).
        quantization: What plain weights are quantised to as they are read; None: as they lie there.
        device_map: How to spread layers over devices, memory and disk; None: all on one device.

    Raises:
        ModelError: it cannot be read, is damaged, is no causal language model, or has no such attention here.
    """
    config = _config(folder)
    kind = _kind(config)
    placed = quantized.load_arguments(folder, config, quantization, device, dtype)
    placed |= placement.load_arguments(device_map, device)
    if not placed and device.type == "cuda":
        placed = {"device_map": {"": str(device)}}  # read to where they are used, never whole in memory before
    with quiet_transformers(), quantized.quiet_libraries():
        try:
            read: Any = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **placed,
            )
        except Exception as error:
            raise ModelError(f"{folder}: the model cannot be loaded ({reason(error)})") from error
    model, loaded = read
    check_loaded(folder, loaded)
    model.requires_grad_(False)
    _refuse_damage(folder, model)
    moved: PreTrainedModel = model if "device_map" in placed else cast(Any, model).to(device)
    placement.prepare(moved, placed)
    moved.eval()
    _attend(moved, attn)
    return moved


def _attend(model: PreTrainedModel, name: str) -> None:
    """Let the model use the attention kernel of this name.

    Raises:
        ModelError: this machine lacks it, or the model has no such.
    """
    before = model.config._attn_implementation
    if name in ("auto", before):
        return
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise ModelError(f"attention {name} cannot be used here: {' '.join(str(error).split())}") from error
    if model.config._attn_implementation == before:
        raise ModelError(f"{type(model).__name__} has no other attention than {before}, asked for was {name}")


def _kind(config: Any) -> Any:
    """The class of transformers that reads a model as it was saved, so that an adapter's names are those of the whole.

    Raises:
        ModelError: neither a causal language model nor a multimodal one around it.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type}: encoder-decoder models are not supported")
    kinds = (AutoModelForCausalLM, AutoModelForImageTextToText)
    known = [kind for kind in kinds if type(config) in cast(Any, kind)._model_mapping]
    if not known:
        raise ModelError(f"{config.model_type}: transformers knows no causal language model of this type")
    saved = (config.architectures or [""])[0]
    fitting = [kind for kind in known if cast(Any, kind)._model_mapping[type(config)].__name__ == saved]
    return (fitting or known)[0]


def _refuse_damage(folder: Path, model: nn.Module) -> None:
    """Refuse weights that are NaN, infinite or far beyond any model's: their loss would be no number."""
    for name, numbers in quantized.numbers_of(model, placement.weights_of):
        low, high = numbers.aminmax()
        if not (low > -_LARGEST and high < _LARGEST):  # NaN is neither
            raise ModelError(f"{folder}: damaged: {name} holds {low:.3g} to {high:.3g}")
