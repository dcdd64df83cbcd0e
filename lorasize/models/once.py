"""What is found out about a model once, and kept for as long as the model is in memory."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from lorasize.models.loading import BaseModel

Answer = TypeVar("Answer")


def once(work: Callable[[BaseModel], Answer]) -> Callable[[BaseModel], Answer]:
    """Let work on a base model, which no adapter may change and whose answer must not hold the model, be done once."""
    known: weakref.WeakKeyDictionary[nn.Module, Answer] = weakref.WeakKeyDictionary()

    @functools.wraps(work)
    def answered(base: BaseModel) -> Answer:
        if base.model not in known:
            known[base.model] = work(base)
        return known[base.model]

    return answered
