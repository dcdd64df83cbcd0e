"""Words that several records share: the recipe's version, and closed sets of values."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

RECIPE = "memft/2"  # the training recipe that probes and apply share; a change of it makes calibrations stale
BATCH_TOKENS = 512  # of the recipe: positions in one optimiser step; a smaller corpus is one full batch
BOUNDED_STEP_TOKENS = 4096  # the same under a bound on drift: docs/log/harm.md#all-batches-in-one-step-under-the-bound
BYTES_PER_PARAMETER = 4  # adapters are saved in float32
LAW_STEPS = 100  # the law is one of losses after this many steps; a probe that goes on tells of the transition
PROBE_STEPS = 400  # of a probe at most
CLEARLY_FAILED = 0.8  # a probe that has lost a smaller share of its base loss by then ends there
MARGIN = 0.02  # p of training above the threshold; decoding may ask for more: docs/log/robustness.md#decoding-gaps
MARGIN_16_BITS = 0.1  # the same where the base is in 16 bits: docs/log/speed.md#the-proof-on-a-card-negative
MAX_DRIFT = 0.02  # nats per token that other text may move by, unless asked otherwise
WORST_KIND = 2.5  # times a bound on drift: what all kinds but one may move by: docs/decisions/0012-a-bound-on-harm.md
RETAINED = "retained"  # the kind of text that the user gave, which may never move by more

Method = Literal["memft", "memft-ot", "memft-sw", "sft"]
PassageKind = Literal["record", "text"]
ProbeKind = Literal["random", "text"]
Level = Literal["off", "warn", "error"]  # of a budget, or of secrets in a corpus
Columns = Literal["strict", "warn", "ignore"]  # what becomes of columns that are neither used nor named
Against = Literal["point", "upper"]  # estimate that a budget is held against
Minimize = Literal["parameters", "bytes", "seconds"]
Serve = Literal["peft", "vllm", "llama.cpp", "merged"]
