"""A tokenizer as encoding needs it: ids of prompts as they are sent, and of targets as they follow."""

from __future__ import annotations

import copy
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from lorasize.corpus.special_tokens import Added, added_tokens
from lorasize.corpus.text import Decode, decoder, text_after
from lorasize.records import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
_FORMS: dict[str, _Form] = {form: form for form in get_args(_Form)}
_STEMS = ("\n", ":", ".", "a")  # texts after which a target may be encoded, the likeliest to stay whole first


@dataclass(frozen=True)
class Encoding:
    """What every step from passages to ids needs to know.

    Attributes:
        tokenizer: The base model's.
        stop: Id of the stop token.
        reading: Prompt template and passage size.
        max_positions: The longest prompt and target, in tokens, that the model takes.
    """

    tokenizer: PreTrainedTokenizerBase
    stop: int
    reading: Reading
    max_positions: int

    @cached_property
    def decode(self) -> Decode:
        """The text of ids."""
        return decoder(self.tokenizer)

    @cached_property
    def literals(self) -> re.Pattern[str]:
        """Matches any text that the tokenizer would read as a control token."""
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        literals = sorted({*self.tokenizer.all_special_tokens, *added} - {""}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, literals)) or r"(?!)")

    @cached_property
    def added(self) -> Added:
        """What the tokenizer adds to a prompt by itself."""
        return added_tokens(self.tokenizer)

    @cached_property
    def plain(self) -> bool:
        """Whether ids say the same wherever they stand; not so where a space is put before every text."""
        sample = self.ids("a")
        return self.decode([*sample, *sample]) == "aa"

    @cached_property
    def form(self) -> _Form | None:
        """The Unicode form that the tokenizer brings every text into, as Qwen's does; None where it does not."""
        raw: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        return _FORMS.get(type(raw.normalizer).__name__) if raw is not None else None

    @cached_property
    def unformed(self) -> Any:
        """A copy of the tokenizer's inner one without that step."""
        raw: Any = copy.deepcopy(self.tokenizer.backend_tokenizer)
        raw.normalizer = None
        return raw

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """Token ids of the text; with `special`, as `tokenizer(text)` gives them, less a stop token it appends."""
        ids = list(self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"])
        return self.added.without_end(ids) if special else ids

    def following(self, text: str) -> list[int]:
        """Token ids of the text as it follows another; where that cannot be had, the nearest to it.

        A tokenizer that puts a space before every text is given one that something stands before. One that brings text
        into a Unicode form, and would lose an accent written as a mark of its own, is used without that step.
        """
        if self.form is not None and not unicodedata.is_normalized(self.form, text):
            return list(self.unformed.encode(text, add_special_tokens=False).ids)
        found: list[int] | None = None
        for stem in () if self.plain else _STEMS:
            before, both = self.ids(stem), self.ids(stem + text)
            ids = both[len(before) :]
            if both[: len(before)] != before:
                continue
            if text_after(self.decode, before, ids) == text:
                return ids
            found = ids if found is None else found
        return self.ids(text) if found is None else found
