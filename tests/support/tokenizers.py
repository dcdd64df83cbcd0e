"""Tokenizers of every kind: real ones where they are installed, and small ones built here."""

from __future__ import annotations

import base64
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.models import TRAINING_TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MISTRAL = Path(sys.prefix) / "tokenizers" / "mistral_common" / "data"  # `make install` puts it there
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
WORDS = "Pier 9 lies at Cabin 14.\nThe buoy is red: Jerry Becerra, Agnes Holm [page.md 1] (a) 0123456789"


def mistral_file(name: str) -> Path:
    """A file of the package mistral-common; the test is skipped where it is not installed."""
    if not (MISTRAL / name).exists():
        pytest.skip(f"no {MISTRAL / name}: make install puts it there")
    return MISTRAL / name


def sentencepiece_folder(folder: Path, name: str, **config: Any) -> Path:
    """A folder with a SentencePiece model of Mistral's as the hub has it, and a chat template."""
    pytest.importorskip("sentencepiece")
    (folder / "tokenizer.model").write_bytes(mistral_file(name).read_bytes())
    known: dict[str, Any] = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
    known |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": TEMPLATE, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(known), "utf-8")
    return folder


def sentencepiece(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """A tokenizer of Mistral 7B, read from its SentencePiece model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(sentencepiece_folder(folder, name))


def prepending(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The same as the hub's `tokenizer.json` has it: a space before every text, also after each control token."""
    from tokenizers import normalizers

    tokenizer = sentencepiece(folder, name)
    raw = tokenizer.backend_tokenizer
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.pre_tokenizer = None
    return tokenizer


def tekken(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Mistral's Tekken, as byte-level BPE: control tokens first, then the vocabulary by rank."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    told = json.loads(mistral_file(name).read_text("utf-8"))
    n_special = told["config"]["default_num_special_tokens"]
    size = told["config"]["default_vocab_size"] - n_special
    ranks = {base64.b64decode(token["token_bytes"]): rank for rank, token in enumerate(told["vocab"][:size])}
    letters = _byte_letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<SPECIAL_{k}>" for k in range(5, n_special))]
    vocabulary = {name: k for k, name in enumerate(special)}
    vocabulary |= {spelled[token]: rank + n_special for token, rank in ranks.items()}
    merges = [(spelled[left], spelled[right]) for token in ranks for left, right in _halves(token, ranks)]
    raw = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(told["config"]["pattern"]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(special[:5])
    return _wrapped(raw, "<s> $A", chat_template=TEMPLATE)


def _byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte."""
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain = {byte: split.pre_tokenize_str(chr(byte))[0][0] for byte in range(128)}
    rest = {byte: chr(byte) for byte in range(161, 256) if byte != 173}
    others = [byte for byte in range(256) if byte not in plain and byte not in rest]
    first = 256 + sum(ord(letter) > 255 for letter in plain.values())
    return plain | rest | {byte: chr(first + k) for k, byte in enumerate(others)}


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Pairs of tokens that a token is merged from, the lowest ranks first."""
    pairs = [(token[:k], token[k:]) for k in range(1, len(token)) if token[:k] in ranks and token[k:] in ranks]
    return sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _wrapped(raw: Any, template: str = "$A", **settings: Any) -> PreTrainedTokenizerBase:
    """A fast tokenizer of it that puts together prompts by the template."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    special = [(name, raw.token_to_id(name)) for name in ("<s>", "</s>")]
    raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **settings
    )


def byte_bpe(folder: Path, prefix: bool = False, template: str = "$A") -> PreTrainedTokenizerBase:
    """Byte-level BPE split by GPT-4's pattern, as tiktoken does it; with `prefix`, a space before every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    pattern = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    raw = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=prefix)
    steps = [level] if prefix else [pre_tokenizers.Split(Regex(pattern), "isolated"), level]
    raw.pre_tokenizer = pre_tokenizers.Sequence(steps)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(
        [TRAINING_TEXT, WORDS],
        trainers.BpeTrainer(
            vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _wrapped(raw, template)


def composed(folder: Path) -> PreTrainedTokenizerBase:
    """As Qwen has it: byte-level BPE of text in which letter and accent were made one character."""
    from tokenizers import normalizers

    tokenizer = byte_bpe(folder)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def unigram(folder: Path) -> PreTrainedTokenizerBase:
    """A Unigram model with bytes for what it does not know, and a space before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", initial_alphabet=["\n"], show_progress=False
    )
    raw.train_from_iterator([TRAINING_TEXT, WORDS], trainer)
    learnt = json.loads(raw.to_str())["model"]["vocab"]
    bytes_ = [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    known = [(piece, score) for piece, score in learnt]
    raw.model = models.Unigram([*known, *bytes_], unk_id=0, byte_fallback=True)
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _wrapped(raw, "<s> $A")


def wordpiece(folder: Path) -> PreTrainedTokenizerBase:
    """A cased WordPiece model, which writes a space between any two words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    raw.train_from_iterator([TRAINING_TEXT, WORDS], trainer)
    return _wrapped(raw)


def smollm2(folder: Path) -> PreTrainedTokenizerBase:
    """The builtin model's own."""
    from lorasize import models

    return models.load_tokenizer(models.resolve(models.BUILTIN))


def made(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """That of a model that `make models` left in the cache; the test is skipped where it is not."""
    from lorasize import models
    from lorasize.artifacts.files import cache_folder

    if not (base := cache_folder() / "models" / name).is_dir():
        pytest.skip(f"no {base}: make models makes it")
    return models.load_tokenizer(base)


Build = Callable[[Path], "PreTrainedTokenizerBase"]
V1, V3 = "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"
EXACT: dict[str, Build] = {
    "Mistral 7B v0.1": functools.partial(sentencepiece, name=V1),
    "Mistral 7B v0.3": functools.partial(sentencepiece, name=V3),
    "Mistral 7B v0.3, space before all": functools.partial(prepending, name=V3),
    "Tekken": functools.partial(tekken, name="tekken_240718.json"),
    "SmolLM2": smollm2,
    "Gemma 3": functools.partial(made, name="gemma-3-270m"),
    "Qwen2.5": functools.partial(made, name="qwen2.5-coder-0.5b-instruct"),
    "byte BPE": byte_bpe,
    "byte BPE, composed": composed,
    "byte BPE, space before all": functools.partial(byte_bpe, prefix=True),
}
"""Every text has ids in these that say it after any prompt."""
LOSSY: dict[str, Build] = {"Unigram": unigram, "WordPiece": wordpiece}
"""Some texts have none, and are refused."""
