"""One rule of text: what encoding accepts is what recall, `recall_check.py` and a server read, on any tokenizer."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from support.paths import ROOT
from support.tokenizers import EXACT, LOSSY

from lorasize.corpus import read_corpus
from lorasize.corpus.text import decoder, text_after
from lorasize.corpus.tokens import EncodedPassage, encode_corpus
from lorasize.errors import CorpusError
from lorasize.recall import verdict
from lorasize.records import Decoded, Passage, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPTS = ["Colour of the buoy: ", "Colour of the buoy:", "[page.md 1]\n", "  two ", "🙂", "漢字", "e\u0301", "«"]
TARGETS = [
    "red", " red", "  red", "red ", "red  \n", "\nred", "\n\n red", "Pier 9.", "a", "9", ".", " ", "\n", "\t x",
    "🙂", " 🙂🏽‍🚀 ok", "漢字かな", "e\u0301 a\u0308", "\u0301", "Ωmega", "été", "don't", "1 + 1 = 2",
    "def f(x):\n    return x\n", "<b>no</b>",
]  # fmt: skip
PAGE = "Pier 9.\n\n  The buoy is red, été 漢字 🙂🏽‍🚀 e\u0301.\nIt is 1.5 m\thigh   and   wide \n\n"
TURNS = [("user", "Where?"), ("assistant", "Pier 9."), ("user", "And the buoy?"), ("assistant", " red\n")]


@pytest.fixture(scope="module")
def recall_check(torch: Any) -> ModuleType:
    """The example, imported."""
    spec = importlib.util.spec_from_file_location("recall_check", ROOT / "examples" / "recall_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MARKS = {"Tekken": pytest.mark.slow, **dict.fromkeys(["SmolLM2", "Gemma 3", "Qwen2.5"], pytest.mark.real)}
KINDS = [pytest.param(kind, marks=MARKS[kind]) if kind in MARKS else kind for kind in [*EXACT, *LOSSY]]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def any_tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """One of every kind."""
    return {**EXACT, **LOSSY}[kind](tmp_path_factory.mktemp("tokenizer"))


def streamed(tokenizer: Any, prompt_ids: tuple[int, ...], ids: tuple[int, ...]) -> str:
    """What a server that streams sends back, token after token."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(ids=list(prompt_ids), skip_special_tokens=False)
    return "".join(stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids)


def check(tokenizer: Any, one: EncodedPassage, recall_check: ModuleType) -> None:
    """The ids say the target to everyone who reads them, and are recalled when they come back."""
    target, said = one.passage.target, one.target_ids[:-1]
    assert text_after(decoder(tokenizer), one.prompt_ids, said) == target
    assert recall_check.text_after(tokenizer, list(one.prompt_ids), list(said)) == target
    assert streamed(tokenizer, one.prompt_ids, said) == target
    decoded = Decoded(ids=one.target_ids, probabilities=(0.9,) * one.n_tokens, attn_implementation="sdpa")
    for at_hand in (one, None):
        passage, failure = verdict._compare(tokenizer, one.address(), at_hand, decoded, 0.5)
        assert (passage.recalled, passage.text, failure) == (True, target, None)


def encoded(tokenizer: Any, *pairs: tuple[str, str]) -> list[EncodedPassage]:
    """The records of these prompts and targets."""
    passages = [Passage(id=f"a:{k}", file="a", line=k, prompt=p, target=t) for k, (p, t) in enumerate(pairs, start=1)]
    return encode_corpus(passages, tokenizer, Reading(), 256)


def accepted(tokenizer: Any, prompt: str) -> Iterator[EncodedPassage]:
    """Those targets that the tokenizer can say after this prompt."""
    for target in TARGETS:
        with contextlib.suppress(CorpusError):
            yield from encoded(tokenizer, (prompt, target))


def test_records(any_tokenizer: Any, kind: str, recall_check: ModuleType) -> None:
    """Exact tokenizers can say any target after any prompt; what others accept reads back as well."""
    if kind in LOSSY:
        found = [one for prompt in PROMPTS[:3] for one in accepted(any_tokenizer, prompt)]
        assert len(found) > 3
    else:
        found = encoded(any_tokenizer, *[(prompt, target) for prompt in PROMPTS for target in TARGETS])
        assert len(found) == len(PROMPTS) * len(TARGETS)
    for one in found:
        assert list(one.prompt_ids) == any_tokenizer(one.passage.prompt)["input_ids"]
        check(any_tokenizer, one, recall_check)


def texts(tokenizer: Any, path: Path, text: str, passage_tokens: int) -> Iterator[EncodedPassage]:
    path.write_text(text, "utf-8")
    yield from encode_corpus(read_corpus([path])[0], tokenizer, Reading(passage_tokens=passage_tokens), 256)


def test_text_files(any_tokenizer: Any, kind: str, recall_check: ModuleType, tmp_path: Path) -> None:
    """Packed and cut, wherever: each piece reads back after its own address, and together they are the file."""
    page = PAGE if kind in EXACT else ""
    if kind == "WordPiece":  # its words have a space before them: no text can follow an address
        with pytest.raises(CorpusError, match=r"page\.md:1: .* a space before it"):
            list(texts(any_tokenizer, tmp_path / "page.md", "a long harbour", 200))
        return
    for size in (12, 24, 200):
        pieces = list(texts(any_tokenizer, tmp_path / "page.md", page + "a long harbour " * 12, size))
        assert size == 200 or len(pieces) > 1
        for one in pieces:
            check(any_tokenizer, one, recall_check)
        assert "".join(one.passage.target for one in pieces).split() == (page + "a long harbour " * 12).split()


def test_chats(any_tokenizer: Any, recall_check: ModuleType, tmp_path: Path) -> None:
    """After a control token, where SentencePiece puts a space of its own."""
    if any_tokenizer.chat_template is None:
        pytest.skip("it has no chat template")
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": [{"role": role, "content": content} for role, content in TURNS]}), "utf-8")
    one, two = encode_corpus(read_corpus([path])[0], any_tokenizer, Reading(), 256)
    assert (one.passage.target, two.passage.target) == ("Pier 9.", " red\n")
    for passage in (one, two):
        check(any_tokenizer, passage, recall_check)


def test_a_target_that_only_reads_with_a_space_is_told_to_have_one(tmp_path: Path) -> None:
    """A WordPiece model without pieces that continue a word has none to say one right after another."""
    from tokenizers.models import WordPiece

    tokenizer = LOSSY["WordPiece"](tmp_path)
    whole = {name: k for name, k in tokenizer.get_vocab().items() if not name.startswith("##")}
    words = {name: k for k, name in enumerate([*sorted(whole, key=lambda name: whole[name]), "red", "buoy"])}
    tokenizer.backend_tokenizer.model = WordPiece(words, unk_token="<unk>")
    with pytest.raises(CorpusError, match=r"a:1: after its prompt .* a space before it; .* target begins with that"):
        encoded(tokenizer, ("buoy", "red"))
    assert encoded(tokenizer, ("buoy", " red"))[0].passage.target == " red"


def test_ids_within_a_character_are_read_alone() -> None:
    """The text of the prompt changes with them: there is no text after it."""

    def decode(ids: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")

    assert text_after(decode, tuple(b"caf\xc3"), tuple(b"\xa9!")) == "\ufffd!"
    assert text_after(decode, tuple(b"caf"), tuple("é!".encode())) == "é!"
    assert text_after(decode, (), tuple(b"a")) == "a"
