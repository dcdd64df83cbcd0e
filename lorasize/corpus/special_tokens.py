"""What a tokenizer puts around every prompt by itself, and what of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "a"


@dataclass(frozen=True)
class Added:
    """Ids that the tokenizer puts before and after a text when asked to add special tokens."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """The ids of a prompt less the end-of-sequence tokens that the tokenizer appended.

        A text that goes on has not ended: no model was trained to go on after one.
        """
        kept = len(ids) - len(self.after)
        return list(ids[:kept] if self.after and tuple(ids[kept:]) == self.after else ids)


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> Added:
    """What the tokenizer adds. Of what it appends, only end-of-sequence tokens at the very end count."""
    bare = _ids(tokenizer, special=False)
    full = _ids(tokenizer, special=True)
    at = next((i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare), None)
    if at is None:
        return Added((), ())
    end = len(full)
    while end > at + len(bare) and full[end - 1] == tokenizer.eos_token_id:
        end -= 1
    return Added(tuple(full[:at]), tuple(full[end:]))


def _ids(tokenizer: PreTrainedTokenizerBase, *, special: bool) -> list[int]:
    return list(tokenizer(_SAMPLE, add_special_tokens=special, verbose=False)["input_ids"])


@dataclass(frozen=True)
class Told:
    """What the user of a plan must know of them: a note for whoever serves, a warning where prompts differ."""

    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def told_of(tokenizer: PreTrainedTokenizerBase) -> Told:
    """What there is to say of this tokenizer; nothing where it adds nothing."""
    added = added_tokens(tokenizer)
    before, after = (_names(tokenizer, ids) for ids in (added.before, added.after))
    note = f"The tokenizer puts {before} before every prompt: the ids in passages.jsonl have it, text must get it too."
    warning = (
        f"The tokenizer appends {after} to every prompt. Prompts are trained and proven without it, since text that "
        f"goes on has not ended: send the ids in passages.jsonl, or see to it that the server appends no {after}."
    )
    return Told((note,) if before else (), (warning,) if after else ())


def _names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return "".join(str(token) for token in tokenizer.convert_ids_to_tokens(list(ids)))
