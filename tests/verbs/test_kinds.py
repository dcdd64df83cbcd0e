"""Plan, apply and verify on one model of each kind: a mixture of experts, a hybrid, a multimodal wrapper."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.architectures import save_architecture
from support.corpora import RECORDS, write_records
from support.multimodal import MULTIMODAL, save_multimodal

from lorasize.artifacts.adapter_folder import WEIGHTS
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply
from lorasize.verbs.plan import PlanOptions, plan
from lorasize.verbs.verify import verify

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
@pytest.mark.parametrize("name", ["qwen3_moe", "bamba", "qwen2_5_vl"])
def test_a_model_of_each_kind_recalls(
    name: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, torch: Any
) -> None:
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    save = save_multimodal if name in MULTIMODAL else save_architecture
    folder = save(name, tokenizer, tmp_path / "base")
    corpus = write_records(tmp_path / "corpus.jsonl", RECORDS)
    made = plan([corpus], ref=str(folder), device="cpu", options=PlanOptions(max_drift=math.inf)).plan
    assert (made.status, made.model.n_layers) == ("ok", 4)
    applied = apply(made, tmp_path / "out", ApplyOptions(device="cpu"))
    assert applied.memorization.recalled
    assert verify(tmp_path / "out", applied.encoded, device="cpu").recalled
    held = load_file(tmp_path / "out" / WEIGHTS)
    assert sum(weight.numel() for weight in held.values()) == applied.memorization.adapter.n_parameters
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert config["layers_pattern"] == ("model.language_model.layers" if name in MULTIMODAL else None)
