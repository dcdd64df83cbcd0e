"""Base and adapter in one: the adapter added to the base's weights, in their dtype, and written as a model folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from lorasize.errors import ModelError
from lorasize.models import adapters, loading
from lorasize.models.activation import activation_tokens, refuse_merging_activated
from lorasize.models.conversion import quiet_transformers, reason
from lorasize.models.devices import pick_device, pick_dtype
from lorasize.models.quantization import refuse_merging

_LARGEST_FILE = "2GB"  # of weights: what any file system and hub takes
_TOKENIZER = (".json", ".txt", ".model", ".jinja", ".tiktoken")  # how the names of its files end


def merged(adapted: Any) -> Any:
    """The base with the adapter added to its weights, rounded to their dtype.

    Raises:
        ModelError: the adapter acts after certain tokens alone, and would always act.
    """
    refuse_merging_activated(activation_tokens(adapted))
    return adapted.merge_and_unload()


def write_merged(folder: Path, base: Path, out: Path, dtype: str) -> None:
    """Write the merged model into an empty folder: safetensors in parts, config, tokenizer, plain generation config.

    The tokenizer's files are the base's own, byte for byte. `generation_config.json` keeps which tokens begin, end and
    pad a text, and the token that the passages end with; nothing that makes greedy decoding another.

    Args:
        folder: The adapter folder.
        base: The base model's folder.
        out: Where to.
        dtype: Of the merged weights.

    Raises:
        ModelError: the base is quantised, the adapter is activated or damaged, or the model cannot be saved.
        OSError: the folder cannot be written.
    """
    refuse_merging(loading.quantized_as(base), None)
    device = pick_device("cpu")
    model = loading.load_weights(base, device, pick_dtype(dtype, device))
    whole = merged(adapters.load_saved(model, folder))
    whole.generation_config = _plain(whole.generation_config, loading.load_tokenizer(base).eos_token_id)
    with quiet_transformers():
        try:
            whole.save_pretrained(str(out), max_shard_size=_LARGEST_FILE)
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{base}: the merged model cannot be saved ({reason(error)})") from error
    shared = (out / "config.json").stat().st_mode
    for path in out.glob("*.safetensors"):
        path.chmod(shared)  # safetensors lets its owner alone read it
    for path in sorted(base.iterdir()):
        weights = path.name.endswith(".index.json")  # which parts there are: others than here
        if path.is_file() and path.name.endswith(_TOKENIZER) and not weights and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


def _plain(config: Any, stop: int | None) -> GenerationConfig:
    """Greedy decoding that ends where the base's ends, and at the token that passages end with."""
    ends = config.eos_token_id
    known = list(ends) if isinstance(ends, list) else [] if ends is None else [int(ends)]
    known += [stop] if stop is not None and stop not in known else []
    told = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id}
    one = known[0] if len(known) == 1 else known or None
    return GenerationConfig(do_sample=False, eos_token_id=one, **told)
