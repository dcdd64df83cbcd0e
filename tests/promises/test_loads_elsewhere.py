"""An adapter folder in other hands: PEFT's and transformers' own classes find its base model, whatever it was named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpora import RECORDS, write_records
from support.models import plan_by_hand, save_gguf
from support.sites import UP

from lorasize import cli, models
from lorasize.artifacts import adapter_folder
from lorasize.models import adapters, references
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply

pytestmark = pytest.mark.usefixtures("_same_process")

Make = Callable[..., Path]


@pytest.fixture
def make(torch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(ref, revision=None)` → the folder of an adapter for the model that `ref` stands for, barely trained."""
    monkeypatch.chdir(tmp_path)

    def made(ref: str, revision: str | None = None) -> Path:
        plan = plan_by_hand(models.resolve(ref), write_records(tmp_path / "corpus.jsonl", RECORDS), UP, 1)
        named = plan.model.model_copy(update={"ref": ref, "revision": revision})
        options = ApplyOptions(device="cpu", max_steps=2, escalate=False)
        return apply(plan.model_copy(update={"model": named}), tmp_path / "adapter", options).folder

    return made


def folder(llama: Path, place: Path) -> str:
    shutil.copytree(llama, place / "tiny")
    return "tiny"


def absolute(llama: Path, place: Path) -> str:
    return str(llama)


def gguf(llama: Path, place: Path) -> str:
    return save_gguf(llama, place / "tiny.gguf").name


def named_in(adapter: Path) -> Any:
    return json.loads((adapter / adapter_folder.CONFIG).read_text("utf-8"))["base_model_name_or_path"]


def logits(torch: Any, model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("kind", [folder, absolute, gguf])
def test_stock_classes_load_it_from_anywhere(
    kind: Callable[[Path, Path], str], make: Make, torch: Any, tiny_llama: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    adapter = make(kind(tiny_llama, tmp_path))
    base = models.load(named_in(adapter), device="cpu", dtype="float32").model
    expected = logits(torch, adapters.load_saved(base, adapter))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["base", "../adapter"]) == 0
    assert capsys.readouterr().out == f"{named_in(adapter)}\n"
    for auto in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
        found = auto.from_pretrained("../adapter", dtype="float32").eval()
        assert torch.equal(logits(torch, found), expected), auto.__name__


def test_the_model_card_loads_it(make: Make, torch: Any, tiny_llama: Path) -> None:
    adapter = make(str(tiny_llama))
    automatic, by_hand = re.findall(r"```python\n(.*?)```", (adapter / "README.md").read_text("utf-8"), re.DOTALL)
    found: dict[str, Any] = {}
    exec(automatic, found)
    other: dict[str, Any] = {}
    exec(by_hand.replace("BASE", str(tiny_llama)), other)
    assert torch.equal(logits(torch, found["model"]), logits(torch, other["model"]))


def test_a_model_of_the_hub_keeps_its_name_and_revision(
    make: Make, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fetched(ref: str, revision: str | None) -> Path:
        asked.append((ref, revision))
        return tiny_llama

    monkeypatch.setattr(references, "_from_hub", fetched)
    adapter = make("owner/tiny", revision="abc")
    config = json.loads((adapter / adapter_folder.CONFIG).read_text("utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/tiny", "abc")
    asked.clear()
    assert cli.main(["base", "adapter"]) == 0
    assert (capsys.readouterr().out, asked) == (f"{tiny_llama}\n", [("owner/tiny", "abc")])


def test_a_name_that_leads_nowhere_from_here_gives_way_to_the_place(
    make: Make, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder(tiny_llama, tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cli.main(["verify", "../adapter", "--device", "cpu", "-q"]) == 4  # barely trained, so not proven
    assert "no such model" not in capsys.readouterr().err
    (tmp_path / "tiny").rename(tmp_path / "moved")
    for command in (["base", "../adapter"], ["verify", "../adapter", "--device", "cpu"]):
        assert cli.main(command) == 2
        assert "tiny: no such model" in capsys.readouterr().err
    assert cli.main(["verify", "../adapter", "--device", "cpu", "-q", "--model", "../moved"]) == 4


def test_a_folder_that_names_its_base_as_it_was_typed_still_has_one(
    make: Make, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As adapters were written before: verify and base go by `lorasize.json`."""
    adapter = make(folder(tiny_llama, tmp_path))
    config = adapter / adapter_folder.CONFIG
    config.write_text(config.read_text("utf-8").replace(named_in(adapter), "tiny"), "utf-8")
    adapter_folder.write_sums(adapter)
    assert cli.main(["base", "adapter"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'tiny'}\n"
    assert cli.main(["verify", "adapter", "--device", "cpu", "-q"]) == 4
    assert "no such model" not in capsys.readouterr().err


def test_the_base_of_an_adapter_is_the_model_it_was_proven_on(
    make: Make, tiny_llama: Path, tiny_gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = make(folder(tiny_llama, tmp_path))
    shutil.rmtree(tmp_path / "tiny")
    shutil.copytree(tiny_gpt2, tmp_path / "tiny")
    assert cli.main(["base", "adapter"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "tiny is another base model than the adapter was trained on" in said.err
    (adapter / adapter_folder.RECORD).unlink()
    assert cli.main(["base", "adapter"]) == 2
    assert "is this an adapter folder written by lorasize?" in capsys.readouterr().err
