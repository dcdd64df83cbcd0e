"""The tokens that an activated adapter acts after: found from a text, or in the prompts, and held by every one of them.

PEFT turns such an adapter on at the last place in the prompt where the tokens stand, and leaves it off without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import TYPE_CHECKING

from lorasize.corpus.text import Decode, decoder
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import CorpusError
from lorasize.records import Activation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"  # in place of a text: the longest beginning that all prompts share
_LEAST = 2  # tokens of the prompts' own that such a beginning has at least: one alone stands in too many texts


def find_activation(
    text: str, encoded: Sequence[EncodedPassage], tokenizer: PreTrainedTokenizerBase
) -> Activation:
    """The tokens of this text as it stands in the first prompt, or for `AUTO` those that all prompts begin with.

    Where only control tokens stand before it they belong to it, so that the adapter acts from the very start.

    Raises:
        CorpusError: The text, or a beginning of two tokens or more, is not in every prompt; the first is named.
    """
    decode = decoder(tokenizer)
    tokens: Sequence[int]
    if text == AUTO:
        tokens = _shared(encoded, tokenizer)
    else:
        tokens = _named(text, encoded[0], decode, _control_tokens(tokenizer))
    return Activation(text=decode(tokens), alora_invocation_tokens=tuple(tokens))


def activated(encoded: Sequence[EncodedPassage], activation: Activation) -> list[EncodedPassage]:
    """The passages with the position from which the adapter acts.

    Raises:
        CorpusError: A prompt lacks the tokens, so that the adapter would never act on it.
    """
    return [replace(one, active_from=_begin(one, activation)) for one in encoded]


def _begin(one: EncodedPassage, activation: Activation) -> int:
    found = activation.begins(one.prompt_ids)
    if found is None:
        raise _refused(
            one,
            f"its prompt does not hold {activation.text!r} in the same {len(activation.alora_invocation_tokens)} "
            f"token(s) as the first, so the adapter would never act on it: name a text that every prompt holds",
        )
    return found


def _shared(encoded: Sequence[EncodedPassage], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The longest beginning of all prompts."""
    special, shared = _control_tokens(tokenizer), list(encoded[0].prompt_ids)
    for one in encoded:
        shared = list(commonprefix([shared, list(one.prompt_ids)]))
        if sum(token not in special for token in shared) < _LEAST:
            raise _refused(
                one,
                f"the prompts up to this one share fewer than {_LEAST} tokens at their beginning: give all of them one "
                "address by a prompt template, or name a text that every prompt holds",
            )
    if any(one.passage.messages for one in encoded) and _begins_every_chat(shared, tokenizer):
        raise _refused(
            encoded[0], "all that the chats share is how any chat begins: name a text that every prompt holds"
        )
    return shared


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = (token for token, what in tokenizer.added_tokens_decoder.items() if what.special)
    return {*tokenizer.all_special_ids, *added}


def _begins_every_chat(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat about something else begins with these tokens, too."""
    turns = [{"role": "user", "content": "?"}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception:  # a template is a program of the model's author and may raise anything
        return False
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(ids[: len(tokens)]) == tuple(tokens)


def _named(text: str, first: EncodedPassage, decode: Decode, special: set[int]) -> Sequence[int]:
    """The tokens of a text where it stands in a prompt as whole tokens."""
    ids = first.prompt_ids
    whole = decode(ids)
    said = {len(part): k for k in range(len(ids) + 1) if whole.startswith(part := decode(ids[:k]))}
    place, nearest = whole.find(text), ""
    while text and place >= 0:
        begin, end = said.get(place), said.get(place + len(text))
        if begin is not None and end is not None and begin < end:
            return ids[0 if special.issuperset(ids[:begin]) else begin : end]
        nearest = nearest or _whole_tokens(whole, place, place + len(text), sorted(said))
        place = whole.find(text, place + 1)
    if not nearest:
        raise _refused(first, f"its prompt does not hold {text!r}: name a text that every prompt holds")
    raise _refused(first, f"in its prompt {text!r} begins or ends within a token; {nearest!r} would do here")


def _whole_tokens(whole: str, begin: int, end: int, ends: Sequence[int]) -> str:
    """The text of the whole tokens between two places; where none is, of those around them."""
    inside = [at for at in ends if begin <= at <= end]
    if len(inside) > 1:
        return whole[inside[0] : inside[-1]]
    return whole[max(at for at in ends if at <= begin) : min(at for at in ends if at >= end)]


def _refused(one: EncodedPassage, message: str) -> CorpusError:
    return CorpusError(message, file=one.passage.file, line=one.passage.line)
