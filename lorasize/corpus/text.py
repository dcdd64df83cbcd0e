"""The one rule of text: what token ids say after their prompt. Encoding, recall and every report read by it.

`examples/recall_check.py` repeats it with stock tools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]


def decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """The text of ids, nothing skipped or cleaned."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def text_after(decode: Decode, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """What the ids add to the text of their prompt: what a server that goes on from the prompt sends back.

    Read alone they may say less: decoders of SentencePiece's kind drop the first space they meet. Where the ids change
    how the end of the prompt reads (a prompt cut within a character), they are read alone all the same.
    """
    prompt, whole = decode(prompt_ids), decode([*prompt_ids, *ids])
    return whole[len(prompt) :] if whole.startswith(prompt) else decode(ids)
