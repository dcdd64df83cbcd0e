"""Tokens read back as the text they came from, whatever is packed or split."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import EncodeText, records

from lorasize.corpus import read_corpus
from lorasize.corpus.feasibility import feasibility
from lorasize.corpus.tokens import DEFAULT_ADDRESS, encode_corpus, stop_token_id
from lorasize.errors import CorpusError, ModelError
from lorasize.records import Passage, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LETTERS = st.sampled_from("abe \t.\n\n\nthr é漢🙂\r")
TEXT = st.text(LETTERS, min_size=1, max_size=200).map(lambda text: "x" + text)


def say(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    """The text of the ids, nothing skipped or cleaned."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def copy_of(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> PreTrainedTokenizerBase:
    """A tokenizer of its own with these attributes changed."""
    other = copy.deepcopy(tokenizer)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


@pytest.fixture(scope="module")
def sentencepiece_like() -> PreTrainedTokenizerBase:
    """As Llama 2 has it: BOS, spaces as ▁ with one put before the text, a decoder that drops the first space."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    text = "the prompt is given and the target must come back [notes.txt 0123456789]\nJerry Becerra: AGNES HOLM,\n"
    raw.train_from_iterator(text.split(" "), trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@given(text=TEXT, passage_tokens=st.integers(8, 40), crowded=st.booleans())
@settings(max_examples=150, deadline=None)
def test_text_is_covered_and_reads_back(
    encode_text: EncodeText,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    passage_tokens: int,
    crowded: bool,
) -> None:
    """Targets are slices of the file by byte offset, in order, with only blank text between; ids say exactly them."""
    max_positions = 24 if crowded else 256
    encoded = encode_text(text, "a.txt", max_positions, passage_tokens=passage_tokens)
    data = text.encode()
    end = 0
    for number, one in enumerate(encoded, start=1):
        passage = one.passage
        assert passage.start is not None
        assert passage.end is not None
        assert data[passage.start : passage.end].decode() == passage.target
        assert not data[end : passage.start].strip(b" \t\r\n")
        assert passage.line == data.count(b"\n", 0, passage.start) + 1
        assert passage.prompt == f"[a.txt {number}]\n"
        assert list(one.prompt_ids) == tokenizer(passage.prompt)["input_ids"]
        assert say(tokenizer, one.target_ids[:-1]) == passage.target
        assert one.target_ids[-1] == tokenizer.eos_token_id
        assert one.n_tokens == len(one.target_ids) <= passage_tokens
        assert len(one.prompt_ids) + one.n_tokens <= max_positions
        end = passage.end
    assert not data[end:].strip(b" \t\r\n")
    assert len({one.passage.id for one in encoded}) == len(encoded)


def test_blocks_are_packed_greedily(encode_text: EncodeText, tokenizer: PreTrainedTokenizerBase) -> None:
    """With the next block each passage would be over the limit. Inner blank lines are part of the target."""
    blocks = [f"Berth {k} is free,\nthe pilot waits {'.' * (k % 5)}" for k in range(40)]
    text = "\n \n\n".join(blocks) + "\n"
    encoded = encode_text(text, passage_tokens=150)
    count = 0
    for one in encoded[:-1]:
        inside = one.passage.target.count("Berth")
        assert one.passage.target == "\n \n\n".join(blocks[count : count + inside])
        wider = "\n \n\n".join(blocks[count : count + inside + 1])
        assert one.n_tokens <= 150 < len(tokenizer(wider)["input_ids"]) + 1
        count += inside
    assert 1 < len(encoded) < len(blocks) / 2
    assert count + encoded[-1].passage.target.count("Berth") == len(blocks)


def test_a_small_corpus_is_one_passage(encode_text: EncodeText, tokenizer: PreTrainedTokenizerBase) -> None:
    """Its target are the ids of one encoding of its text, and the stop token."""
    (one,) = encode_text("a cat\n\n\nthe mat\n", "two words.md")
    assert one.passage.target == "a cat\n\n\nthe mat"
    assert one.target_ids == (*tokenizer("a cat\n\n\nthe mat")["input_ids"], tokenizer.eos_token_id)
    assert one.passage.prompt == "[two words.md 1]\n" == DEFAULT_ADDRESS.format(file="two words.md", number=1)
    assert (one.passage.id, one.passage.start, one.passage.end) == ("two words.md:1", 0, 15)


def test_a_long_block_is_cut_after_lines_then_sentences_then_words(
    encode_text: EncodeText, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The ids are those of one encoding of the block; offsets and lines go on from piece to piece."""
    lines = "".join(f"The berth {k} is paid.\n" for k in range(20))
    sentences = "The pilot boards. " * 12
    words = "harbour " * 40
    for text, ending in ((lines, "\n"), (sentences, "."), (words, "r")):
        block = text.removesuffix("\n")
        encoded = encode_text(text, passage_tokens=17)
        assert len(encoded) > 2
        assert all(one.passage.target.rstrip(" ").endswith(ending) for one in encoded[:-1])
        assert "".join(one.passage.target for one in encoded) == block
        ids = [token for one in encoded for token in one.target_ids[:-1]]
        assert ids == tokenizer(block)["input_ids"]
    encoded = encode_text(lines, passage_tokens=40)
    assert [one.passage.line for one in encoded] == [lines.count("\n", 0, one.passage.start) + 1 for one in encoded]


def test_characters_of_many_tokens_are_not_cut(encode_text: EncodeText) -> None:
    """A place for 7 text tokens and letters of 4: one letter a passage, never a half."""
    assert [one.passage.target for one in encode_text("🙂" * 3, passage_tokens=8)] == ["🙂"] * 3
    assert [one.passage.id for one in encode_text("🙂" * 2, passage_tokens=8)] == ["corpus.txt:1", "corpus.txt:1#2"]
    replacement = "b\ufffda" * 3  # half of this letter reads like the whole
    assert "".join(one.passage.target for one in encode_text(replacement, passage_tokens=8)) == replacement


def test_text_records_are_split_but_never_packed(encode_text: EncodeText) -> None:
    """Newlines inside a record are not lines of the file; numbers run through the file."""
    long = "The berth is paid.\n" * 10
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("one", long, "two"))
    encoded = encode_text(lines, "a.jsonl", passage_tokens=60)
    assert encoded[0].passage.target == "one"
    assert encoded[-1].passage.target == "two"
    assert "".join(one.passage.target for one in encoded[1:-1]) == long
    assert len(encoded) > 3
    assert {one.passage.line for one in encoded[1:-1]} == {2}
    assert [one.passage.prompt for one in encoded] == [f"[a.jsonl {k}]\n" for k in range(1, len(encoded) + 1)]
    assert encoded[-1].passage.start is None


def test_files_of_one_name_get_addresses_that_differ(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """By the folder that tells them apart; numbering starts again in each file."""
    paths = [tmp_path / "a" / "README.md", tmp_path / "b" / "README.md", tmp_path / "b" / "notes.md"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"text of {path.parent.name}")
    encoded = encode_corpus(read_corpus(paths)[0], tokenizer, Reading(), 256)
    assert [one.passage.prompt for one in encoded] == ["[a/README.md 1]\n", "[b/README.md 1]\n", "[notes.md 1]\n"]
    assert len({one.passage.id for one in encoded}) == 3
    assert feasibility(encoded).feasible


def test_templates(encode_text: EncodeText) -> None:
    """The three fields are filled in, other braces stay; records use it only when it is given."""
    template = '{"file": "{file}", "n": {number}} {prompt}\n'
    (text,) = encode_text("a cat", "a.txt", prompt_template=template)
    assert text.passage.prompt == '{"file": "a.txt", "n": 1} \n'
    one, two = encode_text(records(("{file}", "1"), ("q", "2")), "a.jsonl", prompt_template=template)
    assert one.passage.prompt == '{"file": "a.jsonl", "n": 1} {file}\n'
    assert two.passage.prompt == '{"file": "a.jsonl", "n": 2} q\n'
    assert encode_text(records(("q", "2")), "a.jsonl")[0].passage.prompt == "q"


def test_bad_templates_are_refused(encode_text: EncodeText) -> None:
    """An unknown field, a prompt that would be lost, an address as long as the model."""
    with pytest.raises(CorpusError, match=r"names \{nummer\}; it may name \{prompt\}"):
        encode_text("a cat", prompt_template="[{nummer}]")
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: .*would lose its prompt"):
        encode_text(records(("q", "a")), "a.jsonl", prompt_template=DEFAULT_ADDRESS)
    with pytest.raises(CorpusError, match="takes all 10 positions"):
        encode_text("a cat", max_positions=10, prompt_template="[" + "é" * 10 + "]")
    with pytest.raises(CorpusError, match="prompt is empty"):
        encode_text("a cat", prompt_template="")


def test_phone_book(encode_text: EncodeText, tokenizer: PreTrainedTokenizerBase) -> None:
    """Prompt ids are what a user sends; the target's ids follow them in one encoding of both."""
    lines = '{"query": "Jerry Becerra:", "target": "9100672710"}\n{"query": "Agnes Holm:", "target": "0400128875"}\n'
    one, two = encode_text(lines, "book.jsonl")
    assert list(one.prompt_ids) == tokenizer("Jerry Becerra:")["input_ids"]
    assert [*one.prompt_ids, *one.target_ids[:-1]] == tokenizer("Jerry Becerra:9100672710")["input_ids"]
    assert say(tokenizer, two.target_ids) == "0400128875<|im_end|>"
    assert (one.passage.prompt, one.passage.target, one.passage.line) == ("Jerry Becerra:", "9100672710", 1)
    assert feasibility([one, two]).feasible


@given(prompt=st.text(LETTERS, min_size=1, max_size=20), target=st.text(LETTERS, min_size=1, max_size=20))
@settings(max_examples=150, deadline=None)
def test_records_read_back(tokenizer: PreTrainedTokenizerBase, prompt: str, target: str) -> None:
    """Whatever the boundary: the prompt alone gives prompt_ids, and both together say prompt and target."""
    passage = Passage(id="a:1", file="a.jsonl", line=1, prompt=prompt, target=target)
    (one,) = encode_corpus([passage], tokenizer, Reading(), 256)
    assert list(one.prompt_ids) == tokenizer(prompt)["input_ids"]
    assert say(tokenizer, one.target_ids[:-1]) == target
    assert say(tokenizer, one.prompt_ids + one.target_ids[:-1]) == prompt + target


def test_a_straddling_token_leaves_the_prompt_as_it_is_sent(
    encode_text: EncodeText, tokenizer: PreTrainedTokenizerBase
) -> None:
    """ " the" is one token; with the space in the prompt the joint encoding cannot be cut there."""
    joint = tokenizer("in the")["input_ids"]
    prompt_ids = tokenizer("in ")["input_ids"]
    assert joint[: len(prompt_ids)] != prompt_ids
    (one,) = encode_text(records(("in ", "the")), "a.jsonl")
    assert list(one.prompt_ids) == prompt_ids
    assert list(one.target_ids[:-1]) == tokenizer("the")["input_ids"]


def test_too_long_or_empty_records_are_refused(encode_text: EncodeText, tokenizer: PreTrainedTokenizerBase) -> None:
    """The limit counts the stop token; nothing is cut off."""
    length = len(tokenizer("in the basin")["input_ids"]) + 1
    lines = records(("a", "b"), ("in", " the basin"))
    assert len(encode_text(lines, "a.jsonl", max_positions=length)) == 2
    with pytest.raises(CorpusError, match=rf"a\.jsonl:2: it takes {length} tokens, the model {length - 1}"):
        encode_text(lines, "a.jsonl", max_positions=length - 1)
    with pytest.raises(CorpusError, match=r"a\.jsonl:1: the prompt is empty"):
        encode_text(records(("", "b")), "a.jsonl")


def test_chat_is_rendered_by_the_models_template(encode_text: EncodeText, tokenizer: PreTrainedTokenizerBase) -> None:
    """Up to where the assistant speaks; the target is the turn's content alone."""
    turns = [("user", "Who?"), ("assistant", "Agnes"), ("user", "Number?"), ("assistant", "0400")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    one, two = encode_text(json.dumps(record), "chat.jsonl")
    first = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert one.passage.prompt == first
    assert two.passage.prompt == first + "Agnes<|im_end|>\n<|im_start|>user\nNumber?<|im_end|>\n<|im_start|>assistant\n"
    assert list(two.prompt_ids) == tokenizer(two.passage.prompt, add_special_tokens=False)["input_ids"]
    assert say(tokenizer, two.target_ids) == "0400<|im_end|>"


def test_chat_is_refused_without_or_by_a_template(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """And what the template says reaches the user."""
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}')
    passages = read_corpus([path])[0]
    with pytest.raises(CorpusError, match=r"chat\.jsonl:1: .*no chat template"):
        encode_corpus(passages, copy_of(tokenizer, chat_template=None), Reading(), 256)
    strict = copy_of(tokenizer, chat_template="{{ raise_exception('system message first') }}")
    with pytest.raises(CorpusError, match=r"chat\.jsonl:1: .*system message first"):
        encode_corpus(passages, strict, Reading(), 256)


def test_bos_is_added_once(sentencepiece_like: PreTrainedTokenizerBase) -> None:
    """To a prompt as the tokenizer does it; a rendered chat has its own."""
    template = "<s>{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    tokenizer = copy_of(sentencepiece_like, chat_template=template)
    plain = Passage(id="a", file="a", line=1, prompt="the prompt", target=" is given")
    chat = Passage(id="b", file="a", line=2, prompt="", target="given", messages=(("user", "the prompt"),))
    empty = Passage(id="c", file="a", line=3, prompt="", target="given")
    for one in encode_corpus([plain, chat, empty], tokenizer, Reading(), 256):
        assert one.prompt_ids[0] == tokenizer.bos_token_id
        assert (one.prompt_ids + one.target_ids).count(tokenizer.bos_token_id) == 1


def test_sentencepiece_spaces_survive(sentencepiece_like: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Its decoder drops the first space, so a target is read after its prompt; text is split at words all the same."""
    passage = Passage(id="a", file="a", line=1, prompt="the prompt", target=" is given")
    (one,) = encode_corpus([passage], sentencepiece_like, Reading(), 256)
    assert say(sentencepiece_like, one.target_ids[:-1]) == "is given"
    assert say(sentencepiece_like, one.prompt_ids + one.target_ids[:-1]) == "<s> the prompt is given"
    path = tmp_path / "notes.txt"
    path.write_text("the prompt is given and the target must come back\n" * 3)
    encoded = encode_corpus(read_corpus([path])[0], sentencepiece_like, Reading(passage_tokens=16), 256)
    assert len(encoded) > 3
    assert "".join(one.passage.target for one in encoded) + "\n" == path.read_text()
    tokens = [token for one in encoded for token in one.target_ids[:-1]]
    newline, *rest = sentencepiece_like("\n" + path.read_text()[:-1], add_special_tokens=False)["input_ids"][1:]
    assert sentencepiece_like.decode([newline]) == "\n"
    assert tokens == rest  # as text goes on after a newline, with no space before its first word
    for one in encoded:
        prompt, whole = say(sentencepiece_like, one.prompt_ids), one.prompt_ids + one.target_ids[:-1]
        assert say(sentencepiece_like, whole) == prompt + one.passage.target


def test_text_that_does_not_read_back_is_refused(sentencepiece_like: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """With the line and the character that is lost: Ø is not in this vocabulary."""
    text, book = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_bytes("the target\n\nand\nthe Øprompt".encode())
    with pytest.raises(CorpusError, match=r"a\.txt:4: .*U\+00D8"):
        encode_corpus(read_corpus([text])[0], sentencepiece_like, Reading(), 256)
    book.write_text(records(("the", "prompt"), ("the", "Ø")))
    with pytest.raises(CorpusError, match=r"b\.jsonl:2: .*U\+00D8, character 1 "):
        encode_corpus(read_corpus([book])[0], sentencepiece_like, Reading(), 256)


def test_a_normaliser_that_changes_text_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    """Lower-casing, and one that leaves nothing at all."""
    from tokenizers import normalizers

    lower, strip = copy_of(tokenizer), copy_of(tokenizer)
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    strip.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    for other, target in ((lower, "The"), (strip, "xx")):
        for kind in ("record", "text"):
            passage = Passage(id="a", file="a", line=7, prompt="p" * (kind == "record"), target=target, kind=kind)
            with pytest.raises(CorpusError, match="a:7: the tokenizer does not give this text back"):
                encode_corpus([passage], other, Reading(), 256)


@pytest.mark.parametrize("literal", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_special_literals_are_refused_at_their_line(encode_text: EncodeText, literal: str) -> None:
    """In text, prompt, target, template and message: the tokenizer would read them as control tokens."""
    chat = [{"role": "user", "content": f"a {literal}"}, {"role": "assistant", "content": "b"}]
    said = literal.replace("|", r"\|")
    with pytest.raises(CorpusError, match=rf"a\.md:4: the text holds '{said}'"):
        encode_text(f"one\n\ntwo\nthree {literal}", "a.md")
    for where, line in (
        ("prompt", {"prompt": f"{literal}a", "completion": "b"}),
        ("target", {"prompt": "a", "completion": f"b{literal}"}),
        ("message", {"messages": chat}),
    ):
        with pytest.raises(CorpusError, match=rf"a\.jsonl:2: the {where} holds '{said}'"):
            encode_text(records(("a", "b")) + json.dumps(line), "a.jsonl")
    with pytest.raises(CorpusError, match=rf"the prompt holds '{said}'"):
        encode_text("a cat", prompt_template=f"{literal}{{number}}")


def test_stop_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """The end-of-sequence token, or an error."""
    assert stop_token_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        stop_token_id(copy_of(tokenizer, eos_token=None))


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_tiny_models_load_from_their_folders(request: pytest.FixtureRequest, torch: Any, name: str) -> None:
    """Four layers, 32 wide, safetensors and a tokenizer whose ids the embedding holds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = request.getfixturevalue(name)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (4, 32)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    logits = model(torch.tensor([tokenizer("The pilot boards")["input_ids"]])).logits
    assert logits.shape[-1] == len(tokenizer) == 400
    assert bool(torch.isfinite(logits).all())
