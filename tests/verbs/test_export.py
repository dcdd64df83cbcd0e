"""The verb and the command export: from the folder that was proven alone, and over nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.corpora import RECORDS, write_records
from support.models import plan_by_hand
from support.sites import MLP

from lorasize import cli
from lorasize.artifacts.adapter_folder import CONFIG, RECORD, WEIGHTS
from lorasize.errors import ModelError
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
    assert hint == "hint: --out chooses another file; --model names the base model"


def test_options_of_the_engine_without_a_proof_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", str(folder), "--engine-model", "base.gguf"]) == 2
    assert "--engine-model is for --prove" in capsys.readouterr().err
    assert beside(folder) == ["adapter"]
