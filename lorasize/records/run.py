"""What happens to a plan: training steps, escalations, recall, memorization."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorasize.records.inputs import AdapterSpec, ModelFingerprint
from lorasize.records.plan import Plan
from lorasize.records.words import RETAINED, STRICT, WORST_KIND


class StepReport(BaseModel):
    """One optimiser step. `n_stubborn`: target tokens with p ≤ ½; `loss`: mean over all target tokens, nats.

    `drift`: how far other text had moved when last measured, nats per token; None without a bound on it, or before.
    """

    model_config = STRICT
    step: int
    loss: float
    n_tokens: int
    n_stubborn: int
    n_active: int
    min_probability: float
    seconds: float
    evaluated: bool
    drift: float | None = None


class Outcome(StrEnum):
    """How a run ended; `sentence` is what the user reads."""

    MEMORIZED = "memorized"
    STEP_BUDGET_EXHAUSTED = "step_budget_exhausted"
    TIME_LIMIT = "time_limit"
    STALLED = "stalled"

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        return {
            "memorized": "Every target token is above the threshold.",
            "step_budget_exhausted": "The step budget ended before every token was above the threshold.",
            "time_limit": "The time limit ended before every token was above the threshold.",
            "stalled": "Training stalled: the adapter is too small and may not grow further.",
        }[self.value]


class Escalation(BaseModel):
    """One growth of the adapter: a larger rank or more layers, from a training step on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    from_: str = Field(alias="from")
    to: str
    step: int


class RecallFailure(BaseModel):
    """The first target token at which greedy decoding left the target.

    `position` is -1 where texts differ and no token is known to: `expected` says why no token is named.
    """

    model_config = STRICT
    passage: str
    position: int
    expected: str
    got: str
    probability: float | None


class PassageAddress(BaseModel):
    """One line of `passages.jsonl` in an adapter folder: enough to check recall, and no target text.

    `start` and `end`: byte offsets of the target in its file, absent for structured formats. `n_tokens` counts the stop
    token.
    """

    model_config = STRICT
    id: str
    file: str
    start: int | None = None
    end: int | None = None
    line: int
    prompt: str
    prompt_ids: tuple[int, ...]
    n_tokens: int
    target_sha256: str


class DecodeJob(BaseModel):
    """Told to the fresh process: decode these prompts greedily. `targets` is empty where the text is not at hand.

    `adapter`: its folder; None where `base` holds it already. `batch_size`: None for prompts of equal length together.
    """

    model_config = STRICT
    base: str
    adapter: str | None
    device: str
    dtype: str
    prompts: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    n_tokens: tuple[int, ...]
    attn_implementation: str = "auto"
    batch_size: int | None = Field(default=1, ge=1)
    merged: bool = False
    quantization: str | None = None
    device_map: str | None = None


class Decoded(BaseModel):
    """What the fresh process says of one passage: of the target's tokens, or of the decoded ones where it has none.

    `probabilities` are teacher-forced, by the model as it is served; `logit_margin` is the smallest difference there
    between a token's logit and the largest other, and `decoding_gap` as in `RecallReport`. None where they are not
    finite. `batch_size`: prompts decoded together, where that is not as it was asked for. An engine knows the p of the
    target's tokens only as far as it decoded the target: there are fewer then. `text` and `stopped` are of a server
    that tells no ids: all that it wrote after the prompt, and whether it ended by itself.
    """

    model_config = STRICT
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    attn_implementation: str
    logit_margin: float | None = None
    decoding_gap: float | None = None
    batch_size: int | None = None
    text: str | None = None
    stopped: bool = False


class PassageRecall(BaseModel):
    """One passage decoded: did the target come back, and what came."""

    model_config = STRICT
    passage: str
    recalled: bool
    n_tokens: int
    min_probability: float | None
    text: str


class Engine(BaseModel):
    """What decoded: its name (that of a server: where it is), its version as it tells it, and the model it served.

    `model`: a file of weights or the name of a served adapter; None where it is the base model's own folder.
    """

    model_config = STRICT
    name: str
    version: str
    model: str | None = None


class RecallReport(BaseModel):
    """Greedy decoding against the target, from the adapter on disk: `lorasize verify`.

    `min_probability` and `min_logit_margin`, the smallest difference between a target token's logit and the largest
    other, are teacher-forced, by the model as it is served: its dtype, merged or not. `decoding_gap` is the largest
    |Δ ln p| of a target token, in nats, between that one pass over the passage alone and decoding step by step with a
    cache, in the batch, as long as decoding gives the target. `warnings` name what a server may do otherwise.
    `quantization`: of the base's weights in memory; None where they are plain. `engine`: what decoded; None in records
    of older versions, which all came of transformers. An engine that gives no p of a token leaves `min_probability`
    None and `threshold_met` false.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    schema_: Literal["lorasize.recall/1"] = Field(default="lorasize.recall/1", alias="schema")
    recalled: bool
    n_passages: int
    n_recalled: int
    threshold_met: bool
    min_probability: float | None
    min_logit_margin: float | None = None
    decoding_gap: float | None = None
    failures: tuple[RecallFailure, ...]
    passages: tuple[PassageRecall, ...] = ()
    changed_files: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    dtype: str
    device: str
    attn_implementation: str
    batch_size: int
    merged: bool = False
    quantization: str | None = None
    fresh_process: bool
    engine: Engine | None = None


class RecallSummary(BaseModel):
    """The recall part of a memorization record, fields as in `RecallReport`: no corpus text but failures' tokens.

    `engine`: None in records of older versions, which all came of transformers.
    """

    model_config = STRICT
    n_passages: int
    n_recalled: int
    failures: tuple[RecallFailure, ...]
    dtype: str
    device: str
    attn_implementation: str
    batch_size: int
    merged: bool = False
    quantization: str | None = None
    fresh_process: bool
    min_probability: float | None = None
    min_logit_margin: float | None = None
    decoding_gap: float | None = None
    warnings: tuple[str, ...] | None = None
    engine: Engine | None = None

    def holds(self, threshold: float) -> bool:
        """Whether every passage came back, with every token above the threshold."""
        lowest = self.min_probability
        return self.n_recalled == self.n_passages and lowest is not None and lowest > threshold


class KindDrift(BaseModel):
    """What became of one kind of text: its loss before and after, and KL(base ‖ adapted), nats per token.

    `unchanged`: share of positions whose likeliest token is still the same.
    """

    model_config = STRICT
    kind: str
    before: float
    after: float
    divergence: float
    unchanged: float


class Drift(BaseModel):
    """What an adapter does to text that it was not trained on, nats per token, as means over kinds of text.

    `before`, `after`, `nats`: loss without and with the adapter, and how far it grew. `divergence`: KL(base ‖ adapted);
    None in records of older versions, which took one text alone. `kinds`: how far each kind's loss grew. `texts`: all
    that was measured of each kind. `neighbours`: what becomes of text like the corpus, which no bound is on: the base
    model's own continuations of its first tokens; None where that was not measured.
    """

    model_config = STRICT
    before: float
    after: float
    nats: float
    bound: float | None = None  # on `nats` and on `divergence`
    divergence: float | None = None
    kinds: dict[str, float] = Field(default_factory=dict)
    texts: tuple[KindDrift, ...] = ()
    neighbours: KindDrift | None = None

    @property
    def moved(self) -> float:
        """The larger of growth and divergence: what a bound is on."""
        return max(self.nats, self.divergence or 0.0)

    @property
    def own(self) -> KindDrift | None:
        """The kind that moves most, taken to be that of the corpus, which no adapter leaves as it was.

        The user's own text is never that.
        """
        return max((one for one in self.texts if one.kind != RETAINED), key=lambda one: one.divergence, default=None)

    @property
    def worst(self) -> KindDrift | None:
        """The kind that moves most but for the corpus's `own`; None where there is none."""
        return max((one for one in self.texts if one is not self.own), key=lambda one: one.divergence, default=None)

    @property
    def share_of_bound(self) -> float:
        """How much of the bound is used up, 1 being all: by the mean, or by the `worst` kind, which has more of it."""
        if self.bound is None:
            return 0.0
        moved = max(self.moved, 0.0 if self.worst is None else self.worst.divergence / WORST_KIND)
        if self.bound == 0.0:
            return math.inf if moved > 0.0 else 0.0
        return moved / self.bound

    @property
    def broken(self) -> bool:
        """Whether loss or predictions moved by more than the bound."""
        return self.share_of_bound > 1.0


class Update(BaseModel):
    """What an apply onto an older adapter did to the passages that were in it.

    `n_old_produced`: changed or removed passages whose old target still comes back from their old prompt.
    """

    model_config = STRICT
    adapter: str
    n_unchanged: int
    n_changed: int
    n_added: int
    n_removed: int
    n_old_produced: int


class Histogram(BaseModel):
    """How many target tokens have a p between two neighbouring `edges`, before training and after."""

    model_config = STRICT
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


class BaseStatistics(BaseModel):
    """What the base model's statistics were taken over: the digest of the text, and its tokens."""

    model_config = STRICT
    sha256: str
    n_tokens: int


class Memorization(BaseModel):
    """What apply did: `lorasize.json` in the adapter folder.

    `recall` is of transformers; `served` is what the engine decoded that serves it, where one was asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    schema_: Literal["lorasize.memorization/1"] = Field(default="lorasize.memorization/1", alias="schema")
    outcome: Outcome
    threshold: float
    threshold_met: bool
    min_probability: float
    n_tokens: int
    n_stubborn: int
    recalled: bool
    steps: int
    seconds: float
    tokens_per_second: float
    adapter: AdapterSpec
    escalations: tuple[Escalation, ...]
    recall: RecallSummary
    drift: Drift | None
    model_fingerprint: ModelFingerprint
    plan: Plan
    probabilities: Histogram | None = None
    update: Update | None = None
    margin: float | None = None  # above the threshold, that every token's p was trained to
    notes: tuple[str, ...] = ()  # what took longer with this model than with others, and why
    base_statistics: BaseStatistics | None = None  # under a bound on drift
    served: RecallSummary | None = None

    @property
    def failures(self) -> tuple[RecallFailure, ...]:
        """What was lost, where transformers decoded and where it is served."""
        return self.recall.failures + (() if self.served is None else self.served.failures)

    @property
    def proven(self) -> bool:
        """Whether every token passed, every passage came back from disk, and no bound on drift is broken."""
        broken = self.drift is not None and self.drift.broken
        served = self.served is None or self.served.holds(self.threshold)
        return self.outcome is Outcome.MEMORIZED and self.recalled and self.threshold_met and served and not broken
