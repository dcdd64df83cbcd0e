"""A neutral text that comes with the package, and any text as windows: to see what memorising does to other text."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from lorasize.corpus.tokens import EncodedPassage
from lorasize.records import Passage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Neither is tuned.
POSITIONS = 256  # of a batch: one batch is pulled on in a step
TOKENS = 2048  # of the text that are looked at


def neutral_text() -> str:
    """The text that comes with the package, to see what memorising does to another."""
    return (files("lorasize.losses") / "neutral.txt").read_text(encoding="utf-8")


def windows(text: str, tokenizer: PreTrainedTokenizerBase, max_positions: int, n_ids: int) -> list[EncodedPassage]:
    """The text as passages of a few hundred tokens, each prompted by its first token; of a long text, some of them.

    At most `TOKENS` tokens are kept, in windows spread evenly over the text. Tokens from `n_ids` on, which the
    model has no embedding for, are left out.
    """
    ids = [i for i in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if i < n_ids]
    size = min(POSITIONS, max_positions)
    starts = list(range(0, max(1, len(ids) - 1), size))
    most = max(1, TOKENS // size)
    if len(starts) > most:
        starts = [starts[round(k * (len(starts) - 1) / (most - 1))] for k in range(most)]
    nothing = Passage(id="retained", file="retained", line=1, prompt="", target="retained")
    parts = [ids[begin : begin + size + 1] for begin in starts]
    return [EncodedPassage(nothing, tuple(part[:1]), tuple(part[1:])) for part in parts if len(part) > 1]
