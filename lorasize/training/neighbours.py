"""Text like the corpus: what the base model goes on to say after the first words of its passages.

Nothing is nearer to a corpus that is no part of it, and so nothing suffers more from it. It is shown, under no bound:
where the corpus is one of the model's own kinds of text, an adapter that holds it cannot leave that kind as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorasize.corpus.tokens import EncodedPassage
from lorasize.models import BaseModel, placement
from lorasize.models.adapters import base_of
from lorasize.recall.generation_config import clean_generation_config, put_aside
from lorasize.records import Drift, Passage
from lorasize.training.control import OtherText, control_of
from lorasize.training.fast_path import FastPath

if TYPE_CHECKING:
    from peft import PeftModel

_FIRST, _MORE, _PASSAGES = 8, 32, 8  # tokens of a passage, those that follow, and passages at most; not tuned
_NAME = "text like the corpus"


def with_neighbours(
    drift: Drift, base: BaseModel, adapted: PeftModel, encoded: Sequence[EncodedPassage], corpus: FastPath
) -> Drift:
    """The drift with that of text like the corpus; as it is where there is none, or it would take too long.

    Args:
        drift: What the adapter does to other text.
        base: The base model.
        adapted: The same with its adapter.
        encoded: The corpus.
        corpus: Its fast path.
    """
    begins = [] if corpus.gated or placement.is_spread(base.model) else _begins(base, encoded)
    if not begins:
        return drift
    ids = torch.tensor(begins, device=corpus.batches[0].ids.device)
    model: Any = base_of(adapted)
    seeded = torch.random.fork_rng([ids.device] if ids.is_cuda else [])
    with seeded, adapted.disable_adapter(), put_aside(model):
        torch.manual_seed(0)
        how = clean_generation_config(_MORE, pad_token_id=0)
        how.do_sample, how.top_k, how.temperature, how.top_p = True, 0, 1.0, 1.0
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how).tolist()
    width = ids.shape[1]
    nothing = Passage(id="neighbour", file="neighbour", line=1, prompt="", target="neighbour")
    texts = [EncodedPassage(nothing, tuple(row[:width]), tuple(row[width:])) for row in whole]
    found = control_of(adapted, corpus, OtherText({_NAME: texts})).measure()
    return drift.model_copy(update={"neighbours": found.texts[0]})


def _begins(base: BaseModel, encoded: Sequence[EncodedPassage]) -> list[list[int]]:
    """How passages begin, without their addresses, which the adapter is meant to answer; a short one with it."""
    start = tuple(base.tokenizer("").input_ids)
    found: dict[tuple[int, ...], None] = {}
    for one in encoded:
        said = one.target_ids[:-1]
        ids = (*start, *said[:_FIRST]) if len(said) >= _FIRST else (one.prompt_ids + said)[: len(start) + _FIRST]
        if len(ids) == len(start) + _FIRST <= base.max_positions - _MORE:
            found[ids] = None
    return [list(ids) for ids in found][:_PASSAGES]
