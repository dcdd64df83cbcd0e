"""Tiny random multimodal models: a language model of four layers, and a vision tower of six."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXT: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_QWEN: dict[str, Any] = {
    "depth": 6, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 64, "patch_size": 14,
}  # fmt: skip
_THREE_AXES = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}
# Of each: its text and its vision, besides what is above.
MULTIMODAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gemma3": ({"model_type": "gemma3_text"}, _VISION | {"model_type": "siglip_vision_model"}),
    "llava": ({"model_type": "llama"}, _VISION | {"model_type": "clip_vision_model"}),
    "mistral3": ({"model_type": "mistral"}, _VISION | {"model_type": "pixtral"}),
    "qwen2_5_vl": (_THREE_AXES, _QWEN),
    "qwen3_vl": (_THREE_AXES, _QWEN | {"deepstack_visual_indexes": [0]}),
}


def save_multimodal(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    """A folder with a random model of this type from seed 0 and the tokenizer in it."""
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from lorasize.models import decoder_layers

    text, vision = MULTIMODAL[name]
    known = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    image = {"image_token_id": len(tokenizer) - 1, "image_token_index": len(tokenizer) - 1}
    config = CONFIG_MAPPING[name](
        text_config=_TEXT | known | text, vision_config=vision, tie_word_embeddings=False, **image
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        for module in decoder_layers(model).modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.1)
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
