"""Quantised weights: what a folder says of its own, which library reads them, and plain tensors where they are needed.

A folder whose config has a `quantization_config` is loaded by transformers through the library that it names; that
library is no dependency of lorasize. Weights are held packed, so that `weight` may be bytes, or not be there at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorasize.errors import ModelError

# Method in the config → (module that is imported, package that pip installs). Methods without one need no library.
_LIBRARIES: dict[str, tuple[tuple[str, str], ...]] = {
    "bitsandbytes": (("bitsandbytes", "bitsandbytes"),),
    "gptq": (("optimum", "optimum"), ("gptqmodel", "gptqmodel")),
    "awq": (("gptqmodel", "gptqmodel"),),
    "compressed-tensors": (("compressed_tensors", "compressed-tensors"),),
    "torchao": (("torchao", "torchao"),),
    "auto-round": (("auto_round", "auto-round"),),
    "aqlm": (("aqlm", "aqlm[gpu,cpu]"),),
    "hqq": (("hqq", "hqq"),),
    "quanto": (("optimum.quanto", "optimum-quanto"),),
    "eetq": (("kernels", "kernels"),),
    "mxfp4": (("kernels", "kernels"),),
}
WeightsOf = Callable[[nn.Module], Iterable[tuple[str, Tensor]]]  # a module's own, by name
KINDS = ("nf4", "int8")  # what plain weights can be quantised to as they are read
_IDENTITY_ROWS = 512  # of the identity matrix that is sent through a packed layer at once


def settings_of(config: Any) -> dict[str, Any] | None:
    """The `quantization_config` of a model's config; None where its weights are plain."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    return dict(found) if isinstance(found, Mapping) else dict(found.to_dict())


def quantization_of(config: Any) -> str | None:
    """How the weights are quantised, in a word or two, such as "nf4" or "gptq 4-bit"; None where they are plain."""
    settings = settings_of(config)
    if settings is None:
        return None
    method = _method(settings)
    if method == "bitsandbytes":
        if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
            return "int8"
        double = ", scales quantised too" if settings.get("bnb_4bit_use_double_quant") else ""
        return f"{settings.get('bnb_4bit_quant_type', 'fp4')}{double}"
    detail = f"{settings['bits']}-bit" if settings.get("bits") else settings.get("format") or _torchao_kind(settings)
    return " ".join(part for part in (method, detail) if part)[:80]


def _method(settings: Mapping[str, Any]) -> str:
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_8bit") or settings.get("load_in_4bit")):
        return "bitsandbytes"  # of folders written before the method had a name
    return str(getattr(method, "value", method))


def _torchao_kind(settings: Mapping[str, Any]) -> str | None:
    kind = settings.get("quant_type")
    inner = kind.get("default") if isinstance(kind, Mapping) else kind
    return str(inner["_type"]) if isinstance(inner, Mapping) and "_type" in inner else None


def require_library(folder: Path, method: str, what: str) -> None:
    """Refuse what a library is needed for that is not installed, in one line that names it.

    Raises:
        ModelError: naming the packages, or a method that this transformers does not know.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    if not any(method in (name, name.split("_")[0]) for name in KNOWN):
        raise ModelError(f"{folder} is quantised by {method!r:.60}, which transformers here does not know")
    lacking = [package for module, package in _LIBRARIES.get(method, ()) if not _is_installed(module)]
    if lacking:
        raise ModelError(f"{what}: pip install {' '.join(lacking)}")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def as_loaded(folder: Path, config: Any, asked: str | None) -> str | None:
    """How the weights are quantised in memory: as asked, else as they lie in the folder; None where they are plain.

    Raises:
        ModelError: they are quantised otherwise already, or the quantisation asked for is unknown.
    """
    own = quantization_of(config)
    if asked is None or asked == own:
        return own
    if own is not None:
        raise ModelError(f"{folder} is quantised already ({own}): it cannot be loaded as {asked}")
    if asked not in KINDS:
        raise ModelError(f"{folder} holds plain weights: they can be quantised to {' or '.join(KINDS)}, not {asked}")
    return asked


def load_arguments(
    folder: Path, config: Any, asked: str | None, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """What `from_pretrained` has to be told beside dtype and attention; empty for plain weights.

    Plain weights are quantised to what is asked for by bitsandbytes, as they are read.

    compressed-tensors would decompress the weights in the first call of the whole model, which is not how layers are
    run here: its settings in `config` are changed so that it decompresses them, to the same values, as they are read.
    """
    placed = {"device_map": {"": str(device)}}  # packed weights are put there as they are read
    quantization, settings = as_loaded(folder, config, asked), settings_of(config)
    if settings is None:
        if quantization is None:
            return {}
        require_library(folder, "bitsandbytes", f"{folder}: to quantise weights to {quantization}")
        return {**placed, "quantization_config": _bitsandbytes(quantization, dtype)}
    require_library(folder, _method(settings), f"{folder} is quantised by {_method(settings)}")
    if _method(settings) == "compressed-tensors":
        config.quantization_config = {**settings, "dequantize": True}
    return placed


def _bitsandbytes(quantization: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantization, bnb_4bit_compute_dtype=dtype)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what such libraries say while they load off standard output, where reports and records go."""
    # It warns in each product of each layer that activations are rounded, which int8 is about.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    spreading = logging.getLogger("accelerate.big_modeling")  # that weights are put aside: plan says how many
    level = spreading.level
    spreading.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        spreading.setLevel(level)


def is_packed_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer of a quantisation library that is no `nn.Linear`, as GPTQ's and AWQ's are."""
    widths = (getattr(module, "in_features", None), getattr(module, "out_features", None))
    return all(isinstance(width, int) for width in widths) and not any(True for _ in module.children())


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds its numbers itself, in float32, bfloat16 or float16."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.element_size() > 1


def plain_weight(layer: Any) -> Tensor | None:
    """The weight of a linear layer as plain numbers, shape (d_out, d_in); None where it is no linear layer.

    A packed one is read by sending the identity matrix through the layer.
    """
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and is_plain(weight):
        return weight.detach()
    if not isinstance(layer, nn.Module) or not is_packed_linear(layer):
        return None
    return _through(layer)


@torch.no_grad()
def _through(layer: nn.Module) -> Tensor:
    held: Tensor = next(tensor for tensor in (*layer.parameters(), *layer.buffers()))
    bias = getattr(layer, "bias", None)
    width = int(str(layer.in_features))
    columns = []
    for rows in torch.arange(width, device=held.device).split(_IDENTITY_ROWS):
        identity = torch.nn.functional.one_hot(rows, width).to(torch.get_default_dtype())
        out = layer(identity)
        columns.append(out if bias is None else out - bias)
    return torch.cat(columns).t().contiguous()


def numbers_in(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The plain floating-point tensors that a parameter is made of: itself, or the scales of packed weights."""
    if type(tensor) in (Tensor, nn.Parameter):
        if tensor.is_floating_point():
            yield name, tensor.detach().float() if tensor.element_size() == 1 else tensor.detach()
        return
    state = getattr(tensor, "quant_state", None)  # bitsandbytes, 4 bits; with scales quantised too it is nested
    while state is not None:
        yield from numbers_in(f"scales of {name}", state.absmax)
        state = getattr(state, "state2", None)
    if (scales := getattr(tensor, "SCB", None)) is not None:  # bitsandbytes, 8 bits
        yield from numbers_in(f"scales of {name}", scales)
    if hasattr(tensor, "__tensor_flatten__") and not hasattr(tensor, "quant_state"):  # torchao
        for part in tensor.__tensor_flatten__()[0]:
            if isinstance(inner := getattr(tensor, part), Tensor):
                yield from numbers_in(f"{part} of {name}", inner)


def numbers_of(model: nn.Module, weights_of: WeightsOf) -> Iterator[tuple[str, Tensor]]:
    """Every plain floating-point tensor among a model's weights, with its name; `weights_of` gives a module's."""
    for path, module in model.named_modules():
        packed = not isinstance(module, nn.Linear) and is_packed_linear(module)
        for name, tensor in weights_of(module):
            if packed or isinstance(tensor, nn.Parameter):
                yield from numbers_in(f"{path}.{name}", tensor)


def refuse_merging(quantization: str | None, device_map: str | None = None) -> None:
    """Refuse to add an adapter to weights that are quantised, or not in memory.

    Raises:
        ModelError: they are.
    """
    if device_map is not None:
        raise ModelError("an adapter is merged into weights that are all in memory: merge without a map of devices")
    if quantization is not None:
        raise ModelError(
            f"the base's weights are quantised ({quantization}): an adapter added to them is rounded away. Decode with "
            "the adapter beside them, or merge it into the base in float and prove that"
        )
