"""The verb and the command export: from the folder that was proven alone, and over nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.corpora import RECORDS, write_records
from support.models import plan_by_hand
from support.sites import MLP

from lorasize import cli, models
from lorasize.artifacts.adapter_folder import CONFIG, RECORD, WEIGHTS, write_sums
from lorasize.errors import ModelError
from lorasize.models import merging
from lorasize.models.gguf_adapter import is_gguf_adapter
from lorasize.recall import decoding, verdict
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply
from lorasize.verbs.export import export


@pytest.fixture(scope="module")
def memorised(torch: Any, able_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder that holds a corpus. Tests that spoil it take a copy."""
    folder = tmp_path_factory.mktemp("export")
    corpus = write_records(folder / "corpus.jsonl", RECORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "decode_afresh", decoding.decode)
        apply(plan_by_hand(able_llama, corpus, MLP, 8), folder / "adapter", ApplyOptions(device="cpu", max_steps=5))
    return folder / "adapter"


@pytest.fixture
def folder(memorised: Path, tmp_path: Path) -> Path:
    """A copy of the adapter folder, alone in a folder."""
    return Path(shutil.copytree(memorised, tmp_path / "alone" / "adapter"))


def beside(folder: Path) -> list[str]:
    """The names in the folder that the adapter folder lies in."""
    return sorted(path.name for path in folder.parent.iterdir())


def test_the_file_lies_beside_the_folder_and_is_made_again(folder: Path) -> None:
    written = export(folder)
    assert written == folder.parent / "adapter.gguf"
    assert is_gguf_adapter(written)
    first = written.read_bytes()
    assert export(folder).read_bytes() == first
    assert beside(folder) == ["adapter", "adapter.gguf"]


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, RECORD])
def test_what_was_not_proven_is_not_exported(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:] if name == WEIGHTS else data + b" ")
    with pytest.raises(ModelError, match=f"{name}: its digest differs from that of the file that was proven"):
        export(folder)
    assert beside(folder) == ["adapter"]


def test_another_base_is_refused(folder: Path, tiny_llama: Path) -> None:
    with pytest.raises(ModelError, match="another base model than the adapter was trained on"):
        export(folder, ref=str(tiny_llama))
    assert beside(folder) == ["adapter"]


def test_nothing_but_an_adapter_is_written_over(folder: Path) -> None:
    (folder.parent / "base.gguf").write_bytes(b"GGUF\3\0\0\0 a base model")
    with pytest.raises(ModelError, match="another file is there, no GGUF adapter: choose another name or remove it"):
        export(folder, folder.parent / "base.gguf")
    with pytest.raises(ModelError, match="a folder is there"):
        export(folder, folder)
    assert (folder.parent / "base.gguf").read_bytes() == b"GGUF\3\0\0\0 a base model"


def test_the_command_prints_the_file_and_says_that_it_is_not_proven(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "new" / "facts.gguf"
    assert cli.main(["export", str(folder), "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert said.err.startswith("not proven: no engine has decoded with this file yet; with --prove llama.cpp does")
    assert cli.main(["export", str(folder), "--out", str(out), "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_the_command_refuses_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "a.gguf").write_text("notes", "utf-8")
    assert cli.main(["export", str(folder), "--out", str(folder.parent / "a.gguf")]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert hint.startswith("hint: --out chooses another place; --model names the base model")


def test_options_of_the_engine_without_a_proof_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(folder), "--engine-model", "base.gguf"]) == 2
    assert "--engine-model is for --prove" in capsys.readouterr().err
    assert beside(folder) == ["adapter"]


def test_a_merged_model_is_one_that_stock_transformers_loads(folder: Path, torch: Any, able_llama: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    written = export(folder, kind="merged")
    assert written == folder.parent / "adapter-merged"
    loaded = AutoModelForCausalLM.from_pretrained(written, dtype="float32")
    base = AutoModelForCausalLM.from_pretrained(able_llama, dtype="float32")
    ids = torch.tensor([[5, 9, 2, 7]])
    plain = base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    assert torch.equal(loaded(ids).logits, adapted(ids).logits)
    assert not torch.allclose(loaded(ids).logits, plain)
    assert AutoTokenizer.from_pretrained(written)("a few words").input_ids
    assert not {path.name for path in written.iterdir()} & {CONFIG, WEIGHTS, RECORD}
    assert (written / "model.safetensors").stat().st_mode == (written / "config.json").stat().st_mode
    assert written.stat().st_mode == folder.parent.stat().st_mode
    assert beside(folder) == ["adapter", "adapter-merged"]


def test_a_merged_model_has_the_dtype_asked_for(folder: Path) -> None:
    from safetensors.torch import load_file

    written = export(folder, folder.parent / "m", kind="merged", dtype="bfloat16")
    assert {str(tensor.dtype) for tensor in load_file(written / "model.safetensors").values()} == {"torch.bfloat16"}


def test_a_merged_model_decodes_plainly_whatever_its_base_says(folder: Path, able_llama: Path) -> None:
    base = Path(shutil.copytree(able_llama, folder.parent / "base"))
    said = {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.6, "eos_token_id": [7, 8], "pad_token_id": 3}
    (base / "generation_config.json").write_text(json.dumps(said), "utf-8")
    written = export(folder, folder.parent / "m", kind="merged", ref=str(base))
    told = json.loads((written / "generation_config.json").read_text("utf-8"))
    stop = models.load_tokenizer(base).eos_token_id
    assert told["eos_token_id"] == [7, 8, stop]
    assert told["pad_token_id"] == 3
    assert {"repetition_penalty", "temperature"} & {name for name, value in told.items() if value is not None} == set()
    assert told.get("do_sample") is not True


def test_a_merged_model_in_parts_has_its_own_index(
    folder: Path, able_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_LARGEST_FILE", "20KB")
    parts = export(folder, folder.parent / "parts", kind="merged")
    index = json.loads((parts / "model.safetensors.index.json").read_text("utf-8"))
    assert len(set(index["weight_map"].values())) > 1
    monkeypatch.setattr(merging, "_LARGEST_FILE", "1GB")
    base = Path(shutil.copytree(able_llama, folder.parent / "base"))
    (base / "model.safetensors").unlink()
    for path in parts.glob("model*"):
        shutil.copyfile(path, base / path.name)
    (folder.parent / "one").mkdir()
    merging.write_merged(folder, base, folder.parent / "one", "float32")
    assert [path.name for path in (folder.parent / "one").glob("model*")] == ["model.safetensors"]


def test_an_activated_adapter_is_not_merged(folder: Path) -> None:
    told = json.loads((folder / CONFIG).read_text("utf-8"))
    (folder / CONFIG).write_text(json.dumps({**told, "alora_invocation_tokens": [1, 2]}), "utf-8")
    write_sums(folder)
    with pytest.raises(ModelError, match="an activated adapter cannot be merged"):
        export(folder, kind="merged")
    assert beside(folder) == ["adapter"]


def test_no_folder_with_files_of_others_is_written_over(folder: Path) -> None:
    other = folder.parent / "adapter-merged"
    other.mkdir()
    (other / "notes.txt").write_text("mine", "utf-8")
    for kind in ("merged", "ollama"):
        with pytest.raises(ModelError, match="a folder with files in it is there: choose another name or remove it"):
            export(folder, other, kind=kind)
    with pytest.raises(ModelError, match="no folder is there, but something else"):
        export(folder, folder / CONFIG, kind="merged")
    assert (other / "notes.txt").read_text("utf-8") == "mine"
    (other / "notes.txt").unlink()
    assert (export(folder, other, kind="merged") / "config.json").is_file()


def test_ollama_is_told_of_base_and_adapter(folder: Path) -> None:
    (folder.parent / "a base.gguf").write_bytes(b"GGUF\3\0\0\0 a base model")
    written = export(folder, kind="ollama", served=folder.parent / "a base.gguf")
    assert written == folder.parent / "adapter-ollama"
    assert is_gguf_adapter(written / "adapter.gguf")
    assert (written / "Modelfile").read_text("utf-8").splitlines() == [
        f'FROM "{folder.parent.resolve()}/a base.gguf"',
        "ADAPTER ./adapter.gguf",
        'TEMPLATE """{{ .Prompt }}"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        "PARAMETER num_ctx 256",
    ]
    assert export(folder, kind="ollama", served=folder.parent / "a base.gguf") == written  # its own is made again
    with pytest.raises(ModelError, match="which GGUF file of the base is served is not known: name it"):
        export(folder, folder.parent / "other", kind="ollama")
    assert beside(folder) == ["a base.gguf", "adapter", "adapter-ollama"]


def test_a_name_that_would_break_the_modelfile_is_refused(folder: Path) -> None:
    odd = folder.parent / 'base\nPARAMETER temperature 2".gguf'
    odd.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="this name cannot stand in a Modelfile"):
        export(folder, kind="ollama", served=odd)


def test_the_command_says_what_is_not_proven(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(folder), "--format", "merged"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{folder.parent.resolve()}/adapter-merged\n"
    assert said.err.startswith("not proven: nothing has decoded from this folder yet")
    (folder.parent / "base.gguf").write_bytes(b"GGUF")
    base = str(folder.parent / "base.gguf")
    assert cli.main(["export", str(folder), "--format", "ollama", "--engine-model", base]) == 0
    assert "Ollama itself was not run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--format", "merged", "--engine-python", "x"], "--engine-python is for gguf and ollama, not for merged"),
        (["--format", "ollama", "--dtype", "bfloat16"], "--dtype is for merged, not for ollama"),
        (["--dtype", "bfloat16"], "--dtype is for merged, not for gguf"),
        (["--format", "ollama", "--engine-timeout", "1 s"], "--engine-timeout is for --prove"),
    ],
)
def test_options_of_another_format_are_refused(
    folder: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(folder), *options]) == 2
    assert said in capsys.readouterr().err
    assert beside(folder) == ["adapter"]
