"""Base models in memory: config, tokenizer and weights read from a folder, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
    def max_positions(self) -> int:
        """Longest sequence the model was made for."""
        return _positions(self.model.config)

    @property
    def width(self) -> int:
        """Numbers in one position's state between layers; a quantised head no longer shows it."""
        return int(self.model.config.get_text_config().hidden_size)

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
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1024)


def max_positions(folder: Path) -> int:
    """Longest sequence the model of a folder was made for, from its config."""
    return _positions(_config(folder))


def n_layers(folder: Path) -> int:
    """Decoder layers of the model of a folder, from its config."""
    layers = getattr(_config(folder), "num_hidden_layers", None)
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
    quantization: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """The causal language model of a folder, frozen and in eval mode.

    Args:
        folder: With config and safetensors.
        device: Where all of it is put; with a `device_map`, where the first layers are.
        dtype: Of the weights that are not quantised.
        quantization: What plain weights are quantised to as they are read; None: as they lie there.
        device_map: How to spread layers over devices, memory and disk; None: all on one device.

    Raises:
        ModelError: it cannot be read, is damaged or not supported.
    """
    config = _config(folder)
    _refuse_unsupported(config)
    placed = quantized.load_arguments(folder, config, quantization, device, dtype)
    placed |= placement.load_arguments(device_map, device)
    with quiet_transformers(), quantized.quiet_libraries():
        try:
            read: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                attn_implementation="sdpa",
                **placed,
            )
        except Exception as error:
            raise ModelError(f"{folder}: the model cannot be loaded ({reason(error)})") from error
    model, loaded = read
    check_loaded(folder, loaded)
    model.requires_grad_(False)
    _refuse_experts(model)
    _refuse_damage(folder, model)
    moved: PreTrainedModel = model if "device_map" in placed else cast(Any, model).to(device)
    placement.prepare(moved, placed)
    moved.eval()
    return moved


def _refuse_unsupported(config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type}: encoder-decoder models are not supported")
    for key in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"):
        if (getattr(config, key, 0) or 0) > 1:
            raise ModelError(
                f"{config.model_type} is a mixture of experts ({key} = {getattr(config, key)}): its experts are not "
                "linear layers that a plain LoRA adapter can reach. Use a dense model."
            )


def _refuse_experts(model: nn.Module) -> None:
    for name, parameter in decoder_layers(model).named_parameters():
        if parameter.dim() >= 3:
            raise ModelError(f"{name} has {parameter.dim()} dimensions: mixture-of-experts layers are not supported")


def _refuse_damage(folder: Path, model: nn.Module) -> None:
    """Refuse weights that are NaN, infinite or far beyond any model's: their loss would be no number."""
    for name, numbers in quantized.numbers_of(model, placement.weights_of):
        low, high = numbers.aminmax()
        if not (low > -_LARGEST and high < _LARGEST):  # NaN is neither
            raise ModelError(f"{folder}: damaged: {name} holds {low:.3g} to {high:.3g}")
