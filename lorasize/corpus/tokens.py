"""Passages → token ids, checked to read back as the text they came from; and the feasibility lint.

Text blocks are packed or split here, where tokens can be counted, and given an address as their prompt. Records keep
their prompt. Every target ends with the stop token, so that recall also stops. Knows nothing of models or adapters.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby
from os.path import commonprefix
from pathlib import PurePath
from typing import TYPE_CHECKING

from lorasize.artifacts.files import text_digest
from lorasize.corpus.chat_prompt import rendered
from lorasize.corpus.encoding import Encoding
from lorasize.corpus.reading import unique_ids
from lorasize.corpus.shapes import FIELD, unknown_field
from lorasize.corpus.text import text_after
from lorasize.errors import CorpusError, ModelError
from lorasize.records import Passage, PassageAddress, PromptSample, Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_ADDRESS = "[{file} {number}]\n"
"""The prompt of a text passage. It ends in a newline because BPE pre-tokenisers start afresh after one: no token
straddles prompt and target, so whoever sends the prompt alone sends exactly the ids that were trained on."""

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not a whole character
_Packed = tuple[int, Passage, list[int]]  # how many blocks, they as one passage, its ids
_SENTENCE_ENDS = (".", "!", "?", "。", "！", "？")


@dataclass(frozen=True)
class EncodedPassage:
    """A passage with its final prompt and text, and its ids.

    `prompt_ids` are what an inference user sends, never empty. `target_ids` must follow; they end with the stop token.
    `active_from`: the position in the prompt from which an adapter acts; before it stands the base model's.
    """

    passage: Passage
    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    active_from: int = 0

    @property
    def n_tokens(self) -> int:
        """Target tokens, stop token included."""
        return len(self.target_ids)

    def address(self) -> PassageAddress:
        """Its line for `passages.jsonl`: where it stands, its prompt, and its target by digest."""
        text = self.passage
        return PassageAddress(
            id=text.id,
            file=text.file,
            start=text.start,
            end=text.end,
            line=text.line,
            prompt=text.prompt,
            prompt_ids=self.prompt_ids,
            n_tokens=self.n_tokens,
            target_sha256=text_digest(text.target),
        )


_EDGE = 8  # ids shown of each end of a prompt
_SHOWN = 300  # characters of a prompt shown


def sample(encoded: Sequence[EncodedPassage], but: Collection[tuple[str, int]] = ()) -> PromptSample | None:
    """The first prompt as it is sent, that of a chat if there is one; of none whose (file, line) is among `but`."""
    able = [one for one in encoded if (one.passage.file, one.passage.line) not in but]
    one = next((one for one in able if one.passage.messages), able[0] if able else None)
    if one is None:
        return None
    text, half = one.passage.prompt, _SHOWN // 2
    return PromptSample(
        passage=one.passage.id,
        text=text if len(text) <= _SHOWN else f"{text[:half]} … {text[-half:]}",
        n_ids=len(one.prompt_ids),
        first_ids=one.prompt_ids[:_EDGE],
        last_ids=one.prompt_ids[-_EDGE:],
    )


def several_prompts(encoded: Sequence[EncodedPassage]) -> str:
    """What is said of targets that have more than one prompt; "" where each has one."""
    counts = Counter(one.target_ids for one in encoded if one.passage.kind == "record")
    several = [n for n in counts.values() if n > 1]
    if not several:
        return ""
    targets = "1 target has" if len(several) == 1 else f"{len(several):,} targets have"
    return (
        f"{targets} several prompts, {sum(several):,} in all: each is trained and proven. One demand counts for the "
        "target; a further prompt adds the first tokens of it, until the model knows which target it is."
    )


def stop_token_id(tokenizer: PreTrainedTokenizerBase, n_ids: int | None = None) -> int:
    """The id that ends every target: the tokenizer's end-of-sequence token.

    Raises:
        ModelError: The tokenizer has none, or one that is none of the model's `n_ids`.
    """
    stop: object = tokenizer.eos_token_id
    if not isinstance(stop, int):
        raise ModelError("the tokenizer has no end-of-sequence token, so recall could not stop; set its eos_token")
    if n_ids is not None and stop >= n_ids:
        told = f"the tokenizer's end-of-sequence token {tokenizer.eos_token} is {beyond(stop, n_ids)}"
        raise ModelError(f"{told}; set its eos_token to one that the model has")
    return stop


def beyond(token: int, n_ids: int) -> str:
    """What is wrong with an id that the model's embedding has no row for."""
    return f"token {token}, and the model's embedding has rows for 0 to {n_ids - 1} only"


def encode_corpus(
    passages: Sequence[Passage],
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    max_positions: int,
    n_ids: int | None = None,
) -> list[EncodedPassage]:
    """The passages as ids, in order; text blocks packed or split to at most `reading.passage_tokens` target tokens.

    Args:
        passages: As `read_corpus` gives them. Those of one file stand together.
        tokenizer: The base model's.
        reading: Prompt template and passage size.
        max_positions: The longest prompt and target, in tokens, that the model takes.
        n_ids: Rows of the model's embedding, where known. A tokenizer may have more ids.

    Raises:
        CorpusError: A passage cannot be tokenised without loss, is too long, has no prompt or needs a token that the
            model does not have; the place is named.
        ModelError: The tokenizer has no stop token, or the model does not have it.
    """
    stop = stop_token_id(tokenizer, n_ids)
    encoding = Encoding(tokenizer, stop, reading, max_positions)
    names = _file_names(passages)
    files = groupby(passages, key=lambda passage: passage.file)
    encoded = [one for file, group in files for one in _encode_file(list(group), names[file], encoding)]
    if n_ids is not None:
        _require_known(encoded, n_ids, encoding)
    named = unique_ids(one.passage for one in encoded)
    return [replace(one, passage=passage) for one, passage in zip(encoded, named, strict=True)]


def _require_known(encoded: Iterable[EncodedPassage], n_ids: int, encoding: Encoding) -> None:
    """Refuse the first passage with a token that the model's embedding has no row for."""
    for one in encoded:
        for where, ids in (("prompt", one.prompt_ids), ("target", one.target_ids)):
            at = next((at for at, token in enumerate(ids) if token >= n_ids), None)
            if at is not None:
                token = encoding.tokenizer.convert_ids_to_tokens(ids[at])
                said = text_after(encoding.decode, one.prompt_ids, ids[:at]) if where == "target" else ""
                what = f"its {where} needs {token!r}, which is {beyond(ids[at], n_ids)}"
                raise _error(one.passage, f"{what}; write it otherwise, or give the embedding more rows", said)


def _file_names(passages: Iterable[Passage]) -> dict[str, str]:
    """A name for each file: its base name, with as many folders before it as tell it from the others."""
    paths = {file: PurePath(file).parts for file in dict.fromkeys(passage.file for passage in passages)}
    names = {}
    for file, parts in paths.items():
        depth = 1
        while depth < len(parts) and sum(other[-depth:] == parts[-depth:] for other in paths.values()) > 1:
            depth += 1
        names[file] = "/".join(parts[-depth:])
    return names


def _encode_file(passages: Sequence[Passage], name: str, encoding: Encoding) -> list[EncodedPassage]:
    """One file's passages, numbered from 1 in the order they come out."""
    encoded: list[EncodedPassage] = []
    for run in _runs(passages):
        number = len(encoded) + 1
        if run[0].kind == "text":
            encoded += _encode_run(run, name, number, encoding)
        else:
            encoded.append(_encode_record(run[0], name, number, encoding))
    return encoded


def _runs(passages: Sequence[Passage]) -> list[list[Passage]]:
    """The passages in groups: blocks between which nothing but their gap stands; every record by itself."""
    runs: list[list[Passage]] = []
    for passage in passages:
        before = runs[-1][-1].end if runs else None
        if before is not None and passage.start == before + len(passage.gap.encode()):
            runs[-1].append(passage)
        else:
            runs.append([passage])
    return runs


def _fill(passage: Passage, name: str, number: int, encoding: Encoding) -> str:
    """The prompt template with {prompt}, {file}, {number} and columns filled in; other braces stay.

    Raises:
        CorpusError: The template names another field, or would drop this passage's prompt.
    """
    template = encoding.reading.prompt_template
    if template is None:
        template = DEFAULT_ADDRESS if passage.kind == "text" else "{prompt}"
    values = dict(passage.columns) | {"prompt": passage.prompt, "file": name, "number": str(number)}
    if wrong := unknown_field(template, values):
        raise CorpusError(wrong)
    if passage.prompt and not passage.columns and "{prompt}" not in template:
        raise _error(passage, "the prompt template has no {prompt}, so this passage would lose its prompt; add it")
    return FIELD.sub(lambda match: values.get(match[1], match[0]), template)


def _prompt_ids(passage: Passage, prompt: str, encoding: Encoding) -> list[int]:
    """What `tokenizer(prompt)` gives. A chat is rendered with its own special tokens, so none are added to it."""
    if not passage.messages:
        _refuse_literals(passage, prompt, "prompt", encoding)
    ids = encoding.ids(prompt, special=not passage.messages)
    if not ids:
        raise _error(passage, "the prompt is empty and the tokenizer adds no token to it; give every record a prompt")
    return ids


def _refuse_literals(passage: Passage, text: str, where: str, encoding: Encoding) -> None:
    found = encoding.literals.search(text)
    if found:
        message = f"the {where} holds {found[0]!r}, which the tokenizer reads as a control token; write it otherwise"
        raise _error(passage, message, text[: found.start()] if where == "text" else "")


def _render_chat(passage: Passage, encoding: Encoding) -> str:
    """The chat turns in the model's own template, up to where the assistant speaks."""
    if encoding.tokenizer.chat_template is None:
        raise _error(passage, "the tokenizer has no chat template; give prompt and completion as text")
    for content in (*(content for _, content in passage.messages), passage.chat):
        _refuse_literals(passage, content, "message", encoding)
    try:
        return rendered(encoding.tokenizer, passage, encoding.reading)
    except Exception as error:  # a template is a program of the model's author and may raise anything
        why = " ".join(str(error).split())
        raise _error(passage, f"the model's chat template refuses these messages: {why:.300}") from error


def _encode_record(passage: Passage, name: str, number: int, encoding: Encoding) -> EncodedPassage:
    prompt = _render_chat(passage, encoding) if passage.messages else _fill(passage, name, number, encoding)
    prompt_ids = _prompt_ids(passage, prompt, encoding)
    _refuse_literals(passage, passage.target, "target", encoding)
    target_ids = _target_ids(passage, prompt, prompt_ids, encoding)
    length = len(prompt_ids) + len(target_ids) + 1
    if length > encoding.max_positions:
        raise _error(passage, f"it takes {length} tokens, the model {encoding.max_positions}; split the record")
    final = passage.model_copy(update={"prompt": prompt})
    return EncodedPassage(final, tuple(prompt_ids), (*target_ids, encoding.stop))


def _target_ids(passage: Passage, prompt: str, prompt_ids: list[int], encoding: Encoding) -> list[int]:
    """Ids of the target as it follows the prompt.

    Prompt and target are encoded together and cut after the prompt's ids. Where a token straddles the cut, the target
    is encoded without the prompt: the prompt's ids alone are what an inference user sends, and stay what they are.
    """
    joint = encoding.ids(prompt + passage.target, special=not passage.messages)
    cut = len(prompt_ids)
    tried = [joint[cut:]] if joint[:cut] == prompt_ids else []
    tried.append(encoding.following(passage.target))
    for ids in tried:
        if ids and text_after(encoding.decode, prompt_ids, ids) == passage.target:
            return ids
    raise _altered(passage, text_after(encoding.decode, prompt_ids, tried[-1]))


def _room(prompt_ids: Sequence[int], passage: Passage, encoding: Encoding) -> int:
    """How many text tokens fit after this address, the stop token left room for."""
    room = min(encoding.reading.passage_tokens, encoding.max_positions - len(prompt_ids)) - 1
    if room < 1:
        raise _error(passage, f"the address takes all {encoding.max_positions} positions; shorten the prompt template")
    return room


def _encode_run(run: Sequence[Passage], name: str, number: int, encoding: Encoding) -> Iterator[EncodedPassage]:
    """A run of blocks as passages, numbered from `number` on."""
    sizes = [len(encoding.ids(block.gap + block.target)) for block in run]
    at = 0
    while at < len(run):
        prompt_ids = _prompt_ids(run[at], _fill(run[at], name, number, encoding), encoding)
        count, joined, ids = _pack(run, at, sizes, _room(prompt_ids, run[at], encoding), encoding)
        pieces = list(_split(joined, ids, name, number, encoding))
        yield from pieces
        at, number = at + count, number + len(pieces)


def _pack(run: Sequence[Passage], at: int, sizes: Sequence[int], room: int, encoding: Encoding) -> _Packed:
    """As many of the blocks from `at` on as fit together, at least one.

    `sizes`, the token counts of the blocks alone, only start the search: the ids of the joined text decide.
    """
    count = max(1, bisect_right(list(accumulate(sizes[at : at + room + 1])), room))
    packed = _join(run[at : at + count], encoding)
    while len(packed[2]) > room and packed[0] > 1:
        packed = _join(run[at : at + packed[0] - 1], encoding)
    while at + packed[0] < len(run):
        wider = _join(run[at : at + packed[0] + 1], encoding)
        if len(wider[2]) > room:
            break
        packed = wider
    return packed


def _join(blocks: Sequence[Passage], encoding: Encoding) -> _Packed:
    """The blocks as one passage: the exact text of the file from the first's start to the last's end."""
    first, *rest = blocks
    target = first.target + "".join(block.gap + block.target for block in rest)
    joined = first.model_copy(update={"target": target, "end": blocks[-1].end})
    return len(blocks), joined, encoding.following(target)


def _split(joined: Passage, ids: list[int], name: str, number: int, encoding: Encoding) -> Iterator[EncodedPassage]:
    """The joined text under one address, or under several when it is too long; numbered from `number` on."""
    _refuse_literals(joined, joined.target, "text", encoding)
    at, begin, start, line = 0, 0, joined.start, joined.line
    while at < len(ids) or not ids:  # text that gives no ids at all is refused by _cut
        prompt = _fill(joined, name, number, encoding)
        prompt_ids = _prompt_ids(joined, prompt, encoding)
        count, text = _cut(joined, ids[at : at + encoding.max_positions + 1], begin, prompt_ids, encoding)
        end = None if start is None else start + len(text.encode())
        final = {"prompt": prompt, "target": text, "start": start, "end": end, "line": line, "gap": ""}
        target_ids = (*ids[at : at + count], encoding.stop)
        yield EncodedPassage(joined.model_copy(update=final), tuple(prompt_ids), target_ids)
        at, begin, start, line, number = at + count, begin + len(text), end, line + _lines(joined, text), number + 1


def _cut(joined: Passage, ids: list[int], begin: int, prompt_ids: list[int], encoding: Encoding) -> tuple[int, str]:
    """How many of the ids, the next of the text, its passage takes, and their text, which they read back exactly."""
    room = _room(prompt_ids, joined, encoding)
    whole = len(ids) <= room
    for count in [len(ids)] if whole else _cut_points(ids, room, encoding):
        text = text_after(encoding.decode, prompt_ids, ids[:count])
        complete = begin + len(text) == len(joined.target) if whole else not text.endswith(_REPLACEMENT)
        if text and complete and joined.target.startswith(text, begin):
            return count, text
    raise _altered(joined, joined.target[:begin] + text_after(encoding.decode, prompt_ids, ids))


def _cut_points(ids: list[int], room: int, encoding: Encoding) -> Iterator[int]:
    """Places to cut, best first: in the later half after a line, a sentence, a word; then anywhere, latest first."""
    window = range(room, room // 2, -1)
    yield from chain(sorted(window, key=lambda count: -_cut_score(ids, count, encoding)), range(room // 2, 0, -1))


def _cut_score(ids: list[int], count: int, encoding: Encoding) -> int:
    """3 after a newline, 2 after a sentence, 1 between words, 0 within a word."""
    before = encoding.decode(ids[count - 1 : count])
    after = text_after(encoding.decode, ids[count - 1 : count], ids[count : count + 1])
    if before.endswith("\n"):
        return 3
    if not (after[:1].isspace() or before[-1:].isspace()):
        return 0
    return 2 if before.rstrip().endswith(_SENTENCE_ENDS) else 1


def _error(passage: Passage, message: str, before: str = "") -> CorpusError:
    """An error at the passage, `before` being the part of its text that stands before the trouble."""
    return CorpusError(message, file=passage.file, line=passage.line + _lines(passage, before))


def _lines(passage: Passage, text: str) -> int:
    """Lines of the file that this part of the passage takes: none in structured formats, where a record is a line."""
    return 0 if passage.start is None else text.count("\n")


def _altered(passage: Passage, said: str) -> CorpusError:
    """The error of a text that does not survive the tokenizer, with the first character that does not."""
    at = len(commonprefix([passage.target, said]))
    if said[:1] == " " and said[1:] and passage.target.startswith(said[1:]):
        message = "after its prompt the tokenizer gives this text back with a space before it; "
        return _error(passage, message + "give it as a record whose target begins with that space")
    seen = f" from U+{ord(passage.target[at]):04X}, character {at + 1} of it, on" if at < len(passage.target) else ""
    message = f"the tokenizer does not give this text back{seen}; change it, or end the prompt with a newline"
    return _error(passage, message, passage.target[:at])
