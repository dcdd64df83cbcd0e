"""Files of lorasize's own that were checked out as Git LFS pointers are named as such, whatever reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorasize import cli
from lorasize.artifacts.adapter_folder import read_addresses
from lorasize.errors import ModelError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lorasize.plan.json", ("check", "{}")),
        ("lorasize.plan.json", ("apply", "{}")),
        ("model.cpu.float32.json", ("show", "{}")),
        ("adapter/lorasize.json", ("verify", "adapter")),
        ("lorasize.toml", ("check", "lorasize.plan.json")),
    ],
)
def test_a_pointer_is_named(
    name: str, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(POINTER, "utf-8")
    assert cli.main([word.format(name) for word in words]) not in (0, 70)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{path.name}: " in said
    assert "a Git LFS pointer, not the file it stands for: run `git lfs pull`" in said


def test_so_are_the_passages_of_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "passages.jsonl").write_text(POINTER, "utf-8")
    with pytest.raises(ModelError, match="a Git LFS pointer, not the file it stands for"):
        read_addresses(tmp_path)
