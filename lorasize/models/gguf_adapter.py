"""A LoRA adapter as a GGUF file, the form in which llama.cpp loads it.

The names are those of the package `gguf`, by its own map; the metadata and the order of rows are those that llama.cpp's
`convert_lora_to_gguf.py` writes. Matrices stay float32: an adapter that is just large enough
has no precision to spare.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorasize.artifacts.adapter_folder import CONFIG, WEIGHTS, read_settings
from lorasize.artifacts.files import write_whole
from lorasize.errors import ModelError
from lorasize.models.conversion import reason

Matrix = NDArray[np.float32]

# Of each `model_type` of transformers: the architecture's name in GGUF. Only those whose linear layers llama.cpp takes
# as they are, but for the order of rows of q and k.
ARCHITECTURES = {
    "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3", "llama": "llama", "mistral": "llama", "phi3": "phi3",
    "qwen2": "qwen2", "qwen3": "qwen3",
}  # fmt: skip
_INTERLEAVED = {"llama": {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}}
# Settings of PEFT under which A and B are not all there is to an adapter; none of ours has them.
_UNREAD = (
    "alpha_pattern", "bias", "fan_in_fan_out", "lora_bias", "modules_to_save", "rank_pattern",
    "trainable_token_indices", "use_dora", "use_rslora",
)  # fmt: skip
_PART = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
_ACTIVATION = "adapter.alora.invocation_tokens"  # older versions of the package have no constant for it
_HEAD = 2**16  # bytes in which the settings of an adapter's file stand
_PACKAGE = "the package gguf, which writes GGUF files, is not installed: pip install gguf"


def write_gguf(folder: Path, base: Path, out: Path, name: str) -> int:
    """Write the adapter of a PEFT folder as a GGUF file, whole or not at all; the number of modules it sits on.

    Args:
        folder: The adapter folder.
        base: The base model's folder, of which only `config.json` is read.
        out: The file. What is there is replaced.
        name: What the file calls itself.

    Raises:
        ModelError: the architecture has no place in GGUF that is known here, a tensor has no name there, or the
            folder is damaged or more than a plain LoRA.
        OSError: the file cannot be written.
    """
    settings, model = read_settings(folder / CONFIG), read_settings(base / "config.json")
    architecture = ARCHITECTURES.get(str(model.get("model_type")))
    if architecture is None:
        kind, known = f"{model.get('model_type')!s:.60}", ", ".join(ARCHITECTURES)
        raise ModelError(f"{base}: how an adapter of {kind} is written in GGUF is not known here, only of {known}")
    _require_plain(folder, settings)
    pairs = _named(_pairs(folder), architecture, model)
    with tempfile.TemporaryDirectory() as scratch:
        _write(Path(scratch, "adapter.gguf"), architecture, name, settings, pairs)
        write_whole(Path(scratch, "adapter.gguf").read_bytes(), out)
    return len(pairs)


def is_gguf_adapter(path: Path) -> bool:
    """Whether a file is a GGUF file of a LoRA adapter."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    return head.startswith(b"GGUF") and b"adapter.type" in head


def _require_plain(folder: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{folder / CONFIG}: peft_type is {settings.get('peft_type')!s:.40} instead of LORA")
    more = [name for name in _UNREAD if settings.get(name) not in (None, False, "none", [], {})]
    if more:
        raise ModelError(f"{folder / CONFIG}: it sets {more[0]}, which a GGUF adapter cannot say")
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 2**31:
        raise ModelError(f"{folder / CONFIG}: damaged, lora_alpha is {alpha!r:.40}")


def _pairs(folder: Path) -> dict[str, tuple[Matrix, Matrix]]:
    """A (rank, d_in) and B (d_out, rank) by the module's name in the base model, in the order of the file."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, KeyError, TypeError) as error:  # the last two of a dtype that numpy lacks
        raise ModelError(f"{folder / WEIGHTS}: cannot be read ({reason(error)})") from error
    found: dict[str, dict[str, Matrix]] = {}
    for name, tensor in tensors.items():
        part = _PART.fullmatch(name)
        if part is None:
            raise ModelError(f"{folder / WEIGHTS}: {name:.200} is no matrix of a plain LoRA: GGUF has no name for it")
        found.setdefault(part["module"], {})[part["part"]] = tensor.astype(np.float32)
    return {module: _pair(folder, module, parts) for module, parts in found.items()}


def _pair(folder: Path, module: str, parts: Mapping[str, Matrix]) -> tuple[Matrix, Matrix]:
    a, b = parts.get("A"), parts.get("B")
    if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise ModelError(f"{folder / WEIGHTS}: damaged, the two matrices of {module:.200} do not fit each other")
    return a, b


def _named(
    pairs: Mapping[str, tuple[Matrix, Matrix]], architecture: str, model: Mapping[str, Any]
) -> dict[str, tuple[Matrix, Matrix]]:
    """The pairs by the name that the weight has in GGUF, rows of B in the order that llama.cpp gives that weight's."""
    gguf = _gguf()
    number = next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, _count(model, "num_hidden_layers"))
    named = {}
    for module, (a, b) in pairs.items():
        if (name := names.get_name(f"{module}.weight", (".weight",))) is None:
            raise ModelError(f"{module:.200} has no name in a GGUF file of the architecture {architecture}")
        heads = _INTERLEAVED.get(architecture, {}).get(module.rpartition(".")[2])
        named[name] = (a, b if heads is None else b[list(_interleaved(len(b), _heads(model, heads)))])
    return named


def _heads(model: Mapping[str, Any], key: str) -> int:
    return _count(model, key if model.get(key) is not None else "num_attention_heads")


def _count(model: Mapping[str, Any], key: str) -> int:
    value = model.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**6:
        raise ModelError(f"config.json of the base: damaged, {key} is {value!r:.40}")
    return value


def _interleaved(n_rows: int, n_heads: int) -> Iterator[int]:
    """Which row of q or k comes where: transformers rotates halves of a head, llama.cpp neighbours.

    So each row of a head's first half is followed by the one in the same place of its second half.

    Raises:
        ModelError: the rows are not those of so many heads.
    """
    if n_rows % (2 * n_heads):
        raise ModelError(f"q or k of the adapter: damaged, {n_rows} rows cannot belong to {n_heads} heads")
    half = n_rows // n_heads // 2
    for head in range(n_heads):
        for place in range(half):
            yield 2 * head * half + place
            yield (2 * head + 1) * half + place


def _write(
    path: Path, architecture: str, name: str, settings: Mapping[str, Any], pairs: Mapping[str, tuple[Matrix, Matrix]]
) -> None:
    gguf = _gguf()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings["lora_alpha"]))
    if tokens := settings.get("alora_invocation_tokens"):
        kinds = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT32
        writer.add_key_value(_ACTIVATION, [int(token) for token in tokens], *kinds)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for weight, (a, b) in pairs.items():
        writer.add_tensor(f"{weight}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{weight}.lora_b", np.ascontiguousarray(b))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf() -> Any:
    """The package, whose constants have no types that are worth anything here.

    Raises:
        ModelError: it is not installed.
    """
    try:
        import gguf
    except ImportError:
        raise ModelError(_PACKAGE) from None
    return gguf
