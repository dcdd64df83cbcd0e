"""An adapter as a GGUF file: names, shapes, order of rows and metadata; what has no name there is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from safetensors.numpy import load_file, save_file
from support.architectures import save_architecture
from support.models import disturb

from lorasize import models
from lorasize.artifacts.adapter_folder import CONFIG, WEIGHTS
from lorasize.errors import ModelError
from lorasize.models import adapters
from lorasize.models.gguf_adapter import ARCHITECTURES, is_gguf_adapter, write_gguf
from lorasize.records import Site

FEED_FORWARD = {"down_proj": "ffn_down", "gate_proj": "ffn_gate", "up_proj": "ffn_up"}
ATTENTION = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
FUSED = {"down_proj": "ffn_down", "gate_up_proj": "ffn_up", "qkv_proj": "attn_qkv", "o_proj": "attn_output"}


def adapter_on_all(torch: Any, base: Path, folder: Path, tokens: tuple[int, ...] = ()) -> Path:
    """A folder with an adapter of rank 3 and random weights on every linear layer of a model."""
    model = models.load(str(base), device="cpu").model
    shapes = models.linear_shapes(model)
    adapted = adapters.attach(model, Site(target_modules=tuple(shapes), layers_to_transform=(0, 3)), 3, 0, tokens)
    disturb(torch, adapted)
    adapters.save(adapted, folder, str(base), None, tokens)
    return folder


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and tensors of a GGUF file, by name."""
    reader = GGUFReader(path)
    settings = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return settings, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


@pytest.fixture(scope="module")
def llama(torch: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A llama of 4 heads on 2 key-value heads, and an adapter for it."""
    base = save_architecture("llama", tokenizer, tmp_path_factory.mktemp("llama"))
    return base, adapter_on_all(torch, base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def folder(llama: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of that adapter, which a test may spoil."""
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((llama[1] / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_module_has_its_name_and_its_values(torch: Any, tokenizer: Any, tmp_path: Path, kind: str) -> None:
    base = save_architecture(kind, tokenizer, tmp_path / "base")
    folder = adapter_on_all(torch, base, tmp_path / "adapter")
    names = FUSED if kind == "phi3" else FEED_FORWARD | ATTENTION
    assert write_gguf(folder, base, tmp_path / "a.gguf", "facts") == 2 * len(names)
    settings, tensors = read(tmp_path / "a.gguf")
    assert settings["general.architecture"] == ARCHITECTURES[kind]
    saved = load_file(folder / WEIGHTS)
    wanted = {}
    for name, tensor in saved.items():
        parts = name.split(".")
        wanted[f"blk.{parts[4]}.{names[parts[6]]}.weight.{parts[7].lower()}"] = (parts[6], tensor)
    assert tensors.keys() == wanted.keys()
    for name, (module, tensor) in wanted.items():
        moved = ARCHITECTURES[kind] == "llama" and module in ("q_proj", "k_proj") and name.endswith("lora_b")
        assert tensors[name].dtype == np.float32
        assert np.array_equal(tensors[name], tensor) is not moved
        assert np.array_equal(np.sort(tensors[name], axis=0), np.sort(tensor, axis=0))


def test_rows_of_a_head_s_two_halves_are_interleaved(llama: tuple[Path, Path], tmp_path: Path) -> None:
    write_gguf(llama[1], llama[0], tmp_path / "a.gguf", "facts")
    _, tensors = read(tmp_path / "a.gguf")
    saved = load_file(llama[1] / WEIGHTS)
    for module, name, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)):
        there = saved[f"base_model.model.model.layers.3.self_attn.{module}.lora_B.weight"]
        here = tensors[f"blk.3.{name}.weight.lora_b"]
        for head in range(heads):  # of 16 rows each
            rows, seen = there[16 * head :][:16], here[16 * head :][:16]
            assert np.array_equal(seen[0::2], rows[:8])
            assert np.array_equal(seen[1::2], rows[8:])


def test_the_metadata_is_that_of_a_lora(llama: tuple[Path, Path], tmp_path: Path) -> None:
    write_gguf(llama[1], llama[0], tmp_path / "a.gguf", "facts")
    settings, _ = read(tmp_path / "a.gguf")
    assert settings == {
        "general.architecture": "llama", "general.type": "adapter", "general.name": "facts", "adapter.type": "lora",
        "adapter.lora.alpha": 3.0, "general.quantization_version": 2,
    }  # fmt: skip
    assert is_gguf_adapter(tmp_path / "a.gguf")
    assert not is_gguf_adapter(llama[0] / "config.json")


def test_activation_tokens_are_written(torch: Any, llama: tuple[Path, Path], tmp_path: Path) -> None:
    folder = adapter_on_all(torch, llama[0], tmp_path / "adapter", (5, 9))
    write_gguf(folder, llama[0], tmp_path / "a.gguf", "facts")
    assert read(tmp_path / "a.gguf")[0]["adapter.alora.invocation_tokens"] == [5, 9]


def test_another_architecture_is_refused(torch: Any, tiny_gpt2: Path, llama: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="how an adapter of gpt2 is written in GGUF is not known here, only of gemma,"):
        write_gguf(llama[1], tiny_gpt2, tmp_path / "a.gguf", "facts")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "it sets use_dora, which a GGUF adapter cannot say"),
        ({"rank_pattern": {"q_proj": 4}}, "it sets rank_pattern"),
        ({"bias": "all"}, "it sets bias"),
        ({"lora_alpha": "3"}, "damaged, lora_alpha is '3'"),
        ({"peft_type": "IA3"}, "peft_type is IA3 instead of LORA"),
    ],
)
def test_more_than_a_plain_lora_is_refused(
    llama: tuple[Path, Path], folder: Path, changes: dict[str, Any], said: str
) -> None:
    settings = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps(settings | changes), "utf-8")
    with pytest.raises(ModelError, match=said):
        write_gguf(folder, llama[0], folder / "a.gguf", "facts")
    assert not (folder / "a.gguf").exists()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("model.layers.0.mlp", "model.layers.0.router", "layers.0.router.*has no name in a GGUF file of the arch"),
        ("model.layers.3.", "model.layers.4.", "model.layers.4.*has no name in a GGUF file"),  # there are four
        ("v_proj.lora_A.weight", "v_proj.lora_magnitude_vector", "is no matrix of a plain LoRA"),
        ("q_proj.lora_A", "q_proj.lora_B", "the two matrices of .*q_proj do not fit each other"),
    ],
)
def test_a_tensor_without_a_name_is_refused(
    llama: tuple[Path, Path], folder: Path, old: str, new: str, said: str
) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name.replace(old, new): tensor for name, tensor in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(ModelError, match=said):
        write_gguf(folder, llama[0], folder / "a.gguf", "facts")
    assert not (folder / "a.gguf").exists()


def test_rows_that_are_not_those_of_the_heads_are_refused(llama: tuple[Path, Path], folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({n: t[:-1] if n.endswith("k_proj.lora_B.weight") else t for n, t in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(ModelError, match="31 rows cannot belong to 2 heads"):
        write_gguf(folder, llama[0], folder / "a.gguf", "facts")


def test_the_missing_package_is_named(
    llama: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModelError, match="the package gguf, .* is not installed: pip install gguf"):
        write_gguf(llama[1], llama[0], tmp_path / "a.gguf", "facts")
