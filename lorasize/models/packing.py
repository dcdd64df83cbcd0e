"""Rows that hold one passage each: transformers would look for several in a row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import masking_utils


@contextmanager
def never_packed() -> Iterator[None]:
    """Let transformers take each row for one passage, which it is, instead of asking the host or making a mask."""
    name = "find_packed_sequence_indices"
    own = getattr(masking_utils, name, None)
    if own is None:
        yield
        return
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, own)
