"""Folders with quantised weights, made of a folder with plain ones: by the library itself, or by hand as it writes.

The packing is written out here because the tools that make such folders need samples of text, a GPU or hours.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32  # inputs that share a scale
PLACES = range(8)  # of eight 4-bit numbers in 32 bits
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
NEEDED = {
    "nf4": ("bitsandbytes",),
    "nf4-double": ("bitsandbytes",),
    "int8": ("bitsandbytes",),
    "torchao": ("torchao",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
    "packed": ("compressed_tensors",),
    "fp8": ("compressed_tensors",),
}


def skip_without(kind: str) -> None:
    """Skip the test where a library that reads this kind is not installed."""
    lacking = [name for name in NEEDED[kind] if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed: weights of kind {kind} are not run here")


def quantized_copy(source: Path, kind: str, folder: Path) -> Path:
    """The folder, with the model of `source` quantised in it."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    maker = _MAKERS.get(kind)
    if maker is None:
        _by_library(source, kind, folder)
    else:
        _by_hand(folder, *maker)
    return folder


def _by_library(source: Path, kind: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        how: Any = TorchAoConfig(Int8WeightOnlyConfig())
    elif kind == "int8":
        how = BitsAndBytesConfig(load_in_8bit=True)
    else:
        how = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_use_double_quant=kind == "nf4-double",
        )
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=how, dtype=torch.float32, device_map={"": "cpu"}
    )
    model.save_pretrained(folder)


def _by_hand(folder: Path, pack: Callable[[Tensor], Mapping[str, Tensor]], settings: Mapping[str, Any]) -> None:
    """Replace the weights of the linear layers by what `pack` makes of each, and write the config that goes with it."""
    from safetensors.torch import load_file, save_file

    packed = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "_proj." in name:
            module = name.removesuffix("weight")
            packed |= {module + part: value.contiguous() for part, value in pack(weight).items()}
        else:
            packed[name] = weight
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": dict(settings)}), encoding="utf-8")


def _into_words(numbers: Tensor, places: Sequence[int]) -> Tensor:
    """Numbers of 4 bits, shape (rows, columns), as 32-bit words, shape (rows, columns / 8)."""
    import torch

    eights = numbers.to(torch.int64).reshape(len(numbers), -1, 8)
    words = torch.zeros(eights.shape[:2], dtype=torch.int64)
    for place, column in enumerate(places):
        words |= eights[:, :, column] << (4 * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _affine(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (out, in) as numbers 0 to 15, shape (in, out), with scale and zero of each group, (group, out)."""
    groups = weight.t().reshape(-1, GROUP, len(weight))
    lowest, highest = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scale = ((highest - lowest) / 15).clamp(min=1e-8)
    zero = (-lowest / scale).round().clamp(0, 15)
    numbers = (groups / scale[:, None] + zero[:, None]).round().clamp(0, 15)
    return numbers.reshape(-1, len(weight)), scale, zero


def _gptq(weight: Tensor) -> dict[str, Tensor]:
    import torch

    numbers, scale, zero = _affine(weight)
    return {
        "qweight": _into_words(numbers.t(), PLACES).t(),
        "qzeros": _into_words((zero - 1) % 16, PLACES),
        "scales": scale.half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }


def _awq(weight: Tensor) -> dict[str, Tensor]:
    numbers, scale, zero = _affine(weight)
    words = {"qweight": _into_words(numbers, AWQ_PLACES), "qzeros": _into_words(zero, AWQ_PLACES)}
    return {**words, "scales": scale.half()}


def _packed(weight: Tensor) -> dict[str, Tensor]:
    import torch

    groups = weight.reshape(len(weight), -1, GROUP)
    scale = (groups.abs().amax(-1) / 7.5).clamp(min=1e-8)
    numbers = (groups / scale[:, :, None]).round().clamp(-8, 7).reshape(weight.shape) + 8
    return {
        "weight_packed": _into_words(numbers, PLACES),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }


def _fp8(weight: Tensor) -> dict[str, Tensor]:
    import torch

    scale = weight.abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def _compressed(form: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}, "format": form}
    about = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    return {**about, "config_groups": {"group_0": group}, "ignore": ["lm_head"]}


_FOUR_BITS = {"bits": 4, "group_size": GROUP}
_MAKERS: dict[str, tuple[Callable[[Any], Mapping[str, Any]], Mapping[str, Any]]] = {
    "gptq": (_gptq, {"quant_method": "gptq", "desc_act": False, "sym": False, **_FOUR_BITS}),
    "awq": (_awq, {"quant_method": "awq", "zero_point": True, "version": "gemm", **_FOUR_BITS}),
    "packed": (
        _packed,
        _compressed("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}),
    ),
    "fp8": (_fp8, _compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"})),
}
