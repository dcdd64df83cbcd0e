"""What plan says of a tokenizer that adds tokens to prompts, or has more of them than the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpora import RECORDS, TURNS, write_records
from support.models import CHAT_TEMPLATE, save_tiny_llama
from support.tokenizers import byte_bpe

from lorasize import cli, models
from lorasize.corpus import read_corpus
from lorasize.corpus.special_tokens import Added, added_tokens, told_of
from lorasize.corpus.tokens import encode_corpus
from lorasize.errors import CorpusError, ModelError
from lorasize.records import Reading
from lorasize.verbs import plan as sizing
from lorasize.verbs.plan import PlanOptions

Base = Callable[..., Path]


BARE = PlanOptions(max_drift=math.inf)


@pytest.fixture
def base(torch: Any, tmp_path: Path) -> Base:
    """`base(template)` → folder of a tiny Llama whose tokenizer puts prompts together so."""

    def build(template: str, **changes: Any) -> Path:
        tokenizer = byte_bpe(tmp_path, template=template)
        tokenizer.chat_template = CHAT_TEMPLATE
        for name, value in changes.items():
            setattr(tokenizer, name, value)
        folder = tmp_path / "base"
        folder.mkdir()
        return save_tiny_llama(tokenizer, folder)

    return build


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_records(tmp_path / "corpus.jsonl", RECORDS)


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [("$A", "", ""), ("<s> $A", "<s>", ""), ("$A </s>", "", "</s>"), ("<s> $A </s> </s>", "<s>", "</s></s>")],
)
def test_what_a_tokenizer_adds_is_named(base: Base, corpus: Path, template: str, before: str, after: str) -> None:
    """Before a prompt: a note for whoever serves. After it: a warning, and the prompts proven are without it."""
    folder = base(template)
    sized = sizing.plan([corpus], ref=str(folder), device="cpu", options=BARE)
    assert sized.plan.serving is not None
    notes = [note for note in sized.plan.serving.notes if "before every prompt" in note]
    warnings = [warning for warning in sized.plan.warnings if "to every prompt" in warning]
    assert (len(notes), len(warnings)) == (bool(before), bool(after))
    assert f"puts {before} before" in "".join([*notes, "puts  before" * (not before)])
    assert f"appends {after} to" in "".join([*warnings, "appends  to" * (not after)])
    tokenizer = models.load_tokenizer(folder)
    for one, (prompt, _) in zip(sized.encoded, RECORDS, strict=True):
        whole = tokenizer(prompt)["input_ids"]
        assert list(one.prompt_ids) == whole[: len(whole) - len(added_tokens(tokenizer).after)]
        assert tokenizer.decode(list(one.prompt_ids + one.target_ids)).count("</s>") == 1


def test_a_chat_has_what_its_template_says(base: Base, tmp_path: Path) -> None:
    """Nothing is added to it, so that there is nothing to name."""
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": TURNS}), "utf-8")
    sized = sizing.plan([chat], ref=str(base("<s> $A </s>")), device="cpu", options=BARE)
    assert sized.plan.serving is not None
    assert not [said for said in (*sized.plan.serving.notes, *sized.plan.warnings) if "every prompt" in said]


def test_only_stop_tokens_at_the_very_end_are_left_out(tmp_path: Path) -> None:
    tokenizer = byte_bpe(tmp_path, template="</s> $A </s> <s>")
    stop, bos = tokenizer.eos_token_id, tokenizer.bos_token_id
    assert added_tokens(tokenizer) == Added((stop,), ())
    assert told_of(tokenizer).warnings == ()
    assert Added((), (stop,)).without_end([bos, 7, stop]) == [bos, 7]
    assert Added((), (stop,)).without_end([bos, stop, 7]) == [bos, stop, 7]
    assert Added((), (stop, stop)).without_end([stop]) == [stop]
    assert Added((), ()).without_end([bos, stop]) == [bos, stop]


def shrink(folder: Path, n_ids: int) -> Path:
    """The model with an embedding of so many rows; the tokenizer stays."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(n_ids)
    model.save_pretrained(folder)
    return folder


def test_a_token_that_the_model_does_not_have_is_named_at_its_line(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No such token needed, no word of it; else exit 2, in target and prompt alike, and before weights are loaded."""
    folder = base("$A")
    tokenizer = models.load_tokenizer(folder)
    n_ids = len(tokenizer)
    tokenizer.add_tokens(["Zwoelfzeiler"])
    tokenizer.save_pretrained(folder)
    assert models.load_tokenizer(folder)("a Zwoelfzeiler")["input_ids"][-1] == n_ids
    fine = write_records(tmp_path / "fine.jsonl", RECORDS)
    assert sizing.plan([fine], ref=str(folder), device="cpu").plan.adapter is not None
    for where, record in (("target", ("a", "b Zwoelfzeiler")), ("prompt", ("Zwoelfzeiler", "b"))):
        path = write_records(tmp_path / "new.jsonl", [*RECORDS, record])
        capsys.readouterr()
        assert cli.main(["plan", str(path), "--model", str(folder), "--device", "cpu", "-q"]) == 2
        said = " ".join(capsys.readouterr().err.split())
        rows = f"token {n_ids}, and the model's embedding has rows for 0 to {n_ids - 1} only"
        assert f"new.jsonl:4: its {where} needs 'Zwoelfzeiler', which is {rows}; write it otherwise" in said


def test_the_line_of_a_text_is_that_of_the_token(base: Base, tmp_path: Path) -> None:
    folder = base("$A")
    tokenizer = models.load_tokenizer(folder)
    n_ids = len(tokenizer)
    tokenizer.add_tokens(["Zwoelfzeiler"])
    page = tmp_path / "page.md"
    page.write_text("one\ntwo\n\nthree\na Zwoelfzeiler\n", "utf-8")
    with pytest.raises(CorpusError, match=r"page\.md:5: its target needs 'Zwoelfzeiler'"):
        encode_corpus(read_corpus([page])[0], tokenizer, Reading(), 256, n_ids)
    assert len(encode_corpus(read_corpus([page])[0], tokenizer, Reading(), 256, n_ids + 1)) == 1


def test_a_stop_token_that_the_model_does_not_have_is_named(base: Base, corpus: Path) -> None:
    folder = base("$A")
    tokenizer = models.load_tokenizer(folder)
    n_ids = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=rf"end-of-sequence token <end> is token {n_ids}, and the model's embedding"):
        sizing.plan([corpus], ref=str(folder), device="cpu")


def test_rows_are_those_of_embedding_and_head(base: Base) -> None:
    folder = base("$A")
    n_ids = len(models.load_tokenizer(folder))
    assert models.open(str(folder)).n_ids == models.load(str(folder), device="cpu").n_ids == n_ids
    shrink(folder, n_ids - 100)
    assert models.open(str(folder)).n_ids == models.load(str(folder), device="cpu").n_ids == n_ids - 100
