"""What a plan is asked for: the work that training will be, and what the user wishes of the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorasize.planning.budgets import NO_LIMITS, Limits
from lorasize.records import Minimize, Serve


@dataclass(frozen=True)
class Workload:
    """What training has to run and to keep.

    Attributes:
        n_positions: Of the corpus, prompts included.
        linear_parameters_per_rank: Adapter parameters of one rank on all linear layers.
        longest_sequence: Positions of the longest passage, prompt included.
        state_bytes: Of the state kept for each position of the corpus.
    """

    n_positions: int
    linear_parameters_per_rank: int
    longest_sequence: int = 0
    state_bytes: int = 0


@dataclass(frozen=True)
class Wishes:
    """What the user wishes of the adapter.

    Attributes:
        confidence: Probability with which it should hold every token, strictly between 0 and 1.
        minimize: What it should be small in.
        rank: An explicit rank, which wins over the search.
        target_modules: An explicit module set, which wins over the search.
        limits: Budgets.
        serve: Where it will be used.
    """

    confidence: float = 0.9
    minimize: Minimize = "parameters"
    rank: int | None = None
    target_modules: Sequence[str] | None = None
    limits: Limits = NO_LIMITS
    serve: Serve = "peft"


NO_WISHES = Wishes()
