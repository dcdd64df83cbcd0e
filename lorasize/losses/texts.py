"""Texts that come with the package: what the model is held to where a corpus says nothing, and what shows the harm.

`general` is what the statistics of a model are taken from; `control` is looked at while an adapter is trained; `report`
is looked at once, when it is done. No text is in two of them.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Literal

from lorasize.corpus.tokens import EncodedPassage
from lorasize.models import BaseModel
from lorasize.records import Passage

Use = Literal["general", "control", "report"]

POSITIONS = 256  # of a window; not tuned


def texts(use: Use) -> dict[str, str]:
    """The texts for this use, by their kind, in alphabetical order."""
    folder = files("lorasize.losses") / "texts" / use
    found = {file.name.removesuffix(".txt"): file.read_text("utf-8") for file in folder.iterdir()}
    return dict(sorted(found.items()))


def windows_of(base: BaseModel, text: str, n_tokens: int) -> list[EncodedPassage]:
    """The beginning of a text, at most `n_tokens` of it, in windows that begin as a prompt of this model does."""
    begin, n_ids = tuple(base.tokenizer("").input_ids), base.n_ids
    ids = [i for i in base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids if i < n_ids]
    size = min(POSITIONS, base.max_positions - len(begin) - 1)
    nothing = Passage(id="text", file="text", line=1, prompt="", target="text")
    parts = [ids[k : min(k + size + 1, n_tokens)] for k in range(0, min(len(ids), n_tokens), size)]
    return [EncodedPassage(nothing, (*begin, part[0]), tuple(part[1:])) for part in parts if len(part) > 1]
