"""Which tokens of a corpus are written by writing others: copies and boilerplate cost once, not every time.

A token counts as repeated when the tokens before it, back to a fixed length and within the target, stood before in the
corpus and were followed by the same token there. The beginning of a copy is not repeated: from its prompt the model has
to learn which text it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorasize.corpus.tokens import EncodedPassage

CONTEXT = 8  # tokens that must stand before; `benchmarks/repetition_cost.py` measures what copies cost


def repeated(encoded: Sequence[EncodedPassage]) -> list[list[bool]]:
    """For each target token of each passage, in corpus order, whether it repeats an earlier passage."""
    seen: set[tuple[int, ...]] = set()
    repeats = []
    for passage in encoded:
        ids = passage.target_ids
        windows = [ids[k - CONTEXT : k + 1] for k in range(CONTEXT, len(ids))]
        repeats.append([False] * min(CONTEXT, len(ids)) + [window in seen for window in windows])
        seen.update(windows)
    return repeats
