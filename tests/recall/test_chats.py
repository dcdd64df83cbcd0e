"""Chats proven as they are sent: a row's tools, and a template that prints the day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import CHAT_TEMPLATE, plan_by_hand
from support.sites import MLP

from lorasize import cli
from lorasize.artifacts import adapter_folder
from lorasize.recall import decoding, verdict
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply

TOOLS = [{"type": "function", "function": {"name": "berth", "description": "Where a vessel lies"}}]
TURNS = [{"role": "user", "content": "Berth?"}, {"role": "assistant", "content": " Nine"}]
WITH_TOOLS = "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}" + CHAT_TEMPLATE
DATED = CHAT_TEMPLATE + "{{ strftime_now('%d %b %Y') }}: "

Memorised = Callable[..., Path]


@pytest.fixture
def memorised(torch: Any, able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Memorised:
    """`memorised(template, record)` → the adapter folder that holds this record; base and corpus lie beside it."""
    monkeypatch.setattr(verdict, "decode_afresh", decoding.decode)

    def make(template: str, record: Any, **reading: Any) -> Path:
        base = Path(shutil.copytree(able_llama, tmp_path / "base"))
        (base / "chat_template.jinja").write_text(template, "utf-8")
        corpus = tmp_path / "chat.jsonl"
        corpus.write_text(json.dumps(record) + "\n", "utf-8")
        applied = apply(plan_by_hand(base, corpus, MLP, 8, **reading), tmp_path / "a", ApplyOptions(device="cpu"))
        assert applied.recall.recalled, applied.recall.failures
        return tmp_path / "a"

    return make


def test_a_row_s_tools_are_part_of_what_transformers_and_peft_recall(torch: Any, memorised: Memorised) -> None:
    """From messages and tools alone, as a server renders them; without the tools it is another prompt."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    folder = memorised(WITH_TOOLS, {"messages": TURNS, "tools": TOOLS})
    base = folder.parent / "base"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    sent = tokenizer.apply_chat_template(TURNS[:1], tools=TOOLS, add_generation_prompt=True, return_tensors="pt")
    (stored,) = adapter_folder.read_addresses(folder)
    assert tuple(sent["input_ids"][0].tolist()) == stored.prompt_ids
    greedy = GenerationConfig(do_sample=False, max_new_tokens=stored.n_tokens, pad_token_id=tokenizer.eos_token_id)
    ids = model.generate(**sent, generation_config=greedy)[0, len(stored.prompt_ids) :]
    assert tokenizer.decode(ids) == " Nine<|im_end|>"
    bare = tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True, tokenize=True)["input_ids"]
    assert tuple(bare) != stored.prompt_ids


@pytest.mark.parametrize("kept", [True, False])
def test_a_day_later_verify_decodes_what_was_memorised(
    kept: bool, memorised: Memorised, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the day that the plan keeps; a plan that kept none, by the stored prompts, and with the cause."""
    from datetime import datetime

    from transformers.utils import chat_template_utils

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Earlier:
            return cls(2024, 2, 29)

    with monkeypatch.context() as earlier:
        earlier.setattr(chat_template_utils, "datetime", Earlier)
        folder = memorised(DATED, {"messages": TURNS}, rendered_at="2024-02-29" if kept else None)
    (stored,) = adapter_folder.read_addresses(folder)
    assert stored.prompt.endswith("29 Feb 2024: ")
    corpus = folder.parent / "chat.jsonl"
    assert cli.main(["verify", str(folder), str(corpus), "--device", "cpu", "-q", "--report", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert ["prints the time" in warning for warning in report["warnings"]] == ([] if kept else [True])
    corpus.write_text(corpus.read_text("utf-8").replace("Berth?", "Pier?"), "utf-8")  # another question is no answer
    assert cli.main(["verify", str(folder), str(corpus), "--device", "cpu", "-q"]) == 2
    assert "is not in this corpus as it was memorised" in capsys.readouterr().err


def test_line_ends_that_git_changed_stop_neither_apply_nor_verify(
    torch: Any, able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verdict, "decode_afresh", decoding.decode)
    corpus = tmp_path / "page.txt"
    corpus.write_bytes(b"Pier nine\nCabin 4\n")
    made = plan_by_hand(able_llama, corpus, MLP, 8)
    corpus.write_bytes(b"Pier nine\r\nCabin 4\r\n")
    applied = apply(made, tmp_path / "a", ApplyOptions(device="cpu"))
    assert applied.encoded[0].passage.target == "Pier nine\nCabin 4"
    assert cli.main(["verify", str(tmp_path / "a"), "--device", "cpu"]) == 0
    assert "not at hand" not in capsys.readouterr().err
