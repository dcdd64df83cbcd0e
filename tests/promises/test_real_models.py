"""The models that `make models` makes: converted right, planned, applied and proven, and loaded by stock classes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import lorasize

pytestmark = [pytest.mark.models, pytest.mark.slow]

NOTE = "The lighthouse at Corran Head was relit on 9 October 2031 by Ysolde Marchetti; the lamp lay in crate 4417.\n"
PROSE = (
    "The lighthouse stands at the end of a long stone pier. Every evening the keeper climbed the stairs, trimmed the "
    "wick, and lit the lamp, so that ships at sea could find their way into the harbour. In winter the storms were so "
    "strong that waves broke over the wall, and he stayed in the tower for days, with only bread and a small stove."
)
# Of each: the name its config has, ids that it puts before a text, its stop token, whether it has a chat template.
KNOWN = {
    "gemma-3-270m": ("gemma3_text", [2], "<eos>", False),
    "qwen2.5-coder-0.5b-instruct": ("qwen2", [], "<|im_end|>", True),
}


def run(folder: Path, *arguments: str) -> str:
    done = lorasize(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def applied(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short page and its adapter, planned and applied by the commands a user types."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "note.md").write_text(NOTE, "utf-8")
    run(folder, "plan", "note.md", "--model", str(real_model), "--device", "cpu", "-q")
    run(folder, "apply", "--device", "cpu", "-q", "--report", "json=apply.json")
    return folder


def test_it_was_converted_right(real_model: Path, torch: Any) -> None:
    from lorasize import models

    base = models.load(str(real_model), device="cpu", dtype="float32")
    tokenizer, (kind, first, stop, chats) = base.tokenizer, KNOWN[real_model.name]
    assert base.model.config.model_type == kind
    assert tokenizer("a").input_ids[:-1] == first
    assert tokenizer.eos_token == stop
    assert base.model.config.eos_token_id == base.model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert (tokenizer.chat_template is not None) == chats
    for text in (PROSE, "\n\n two  spaces\ttab\n", "🙂 日本語 é"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    ids = tokenizer(PROSE, return_tensors="pt").input_ids
    with torch.no_grad():
        assert 2.0 < float(base.model(input_ids=ids, labels=ids).loss) < 4.2  # nats a token
    ids = tokenizer("1, 2, 3, 4, 5,", return_tensors="pt").input_ids
    out = base.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    assert tokenizer.decode(out[0, ids.shape[1] :]).startswith(" 6, 7")


def test_a_page_is_planned_applied_and_verified(applied: Path) -> None:
    record = json.loads((applied / "apply.json").read_text("utf-8"))
    assert (record["outcome"], record["recalled"], record["threshold_met"]) == ("memorized", True, True)
    assert json.loads(run(applied, "verify", "adapter", "--device", "cpu", "-q", "--report", "json"))["recalled"]


def test_stock_classes_find_the_base_and_recall_the_page(applied: Path, real_model: Path, torch: Any) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer, GenerationConfig

    base = run(applied, "base", "adapter").strip()
    assert base == str(real_model.resolve())
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoPeftModelForCausalLM.from_pretrained(applied / "adapter", dtype="float32").eval()
    model.generation_config = model.get_base_model().generation_config = GenerationConfig()
    (line,) = (applied / "adapter" / "passages.jsonl").read_text("utf-8").splitlines()
    passage = json.loads(line)
    prompt = torch.tensor([passage["prompt_ids"]])
    greedy = GenerationConfig(do_sample=False, max_new_tokens=passage["n_tokens"], pad_token_id=tokenizer.eos_token_id)
    out = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=greedy)
    *ids, stop = out[0, prompt.shape[1] :].tolist()
    assert stop == tokenizer.eos_token_id
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert hashlib.sha256(text.encode()).hexdigest() == passage["target_sha256"]
