"""What an apply leaves: its record, its observation for the calibration, and the folder's model card."""

from __future__ import annotations

import torch

from lorasize.errors import ModelError
from lorasize.losses.frozen_layers import notes_on
from lorasize.losses.statistics import taken_over
from lorasize.models import adapters
from lorasize.models.devices import peak_memory
from lorasize.records import (
    LAW_STEPS,
    PROBE_STEPS,
    BaseStatistics,
    Drift,
    Histogram,
    Memorization,
    Observation,
    Outcome,
    ProbeSpec,
    RecallReport,
    RecallSummary,
    Update,
)
from lorasize.training import Evaluation
from lorasize.training.fast_path import way_through
from lorasize.training.run import ApplyOptions, Session

_BINS = 20  # of the histogram of p


def record_of_run(
    session: Session, report: RecallReport, update: Update | None, served: RecallReport | None = None
) -> Memorization:
    """The folder's `lorasize.json`."""
    options, final, state = session.options, session.final, session.state
    if adapters.realised_rank(session.adapted) != state.spec.rank:
        raise ModelError("the adapter's rank is not the planned one")
    n_tokens = len(final.losses)
    return Memorization(
        outcome=state.outcome or Outcome.STEP_BUDGET_EXHAUSTED,
        threshold=options.threshold,
        threshold_met=final.min_probability > options.threshold and report.threshold_met,
        min_probability=min(final.min_probability, report.min_probability or 0.0),
        n_tokens=n_tokens,
        n_stubborn=final.n_below(options.threshold),
        recalled=report.recalled,
        steps=state.steps,
        seconds=state.seconds,
        tokens_per_second=state.n_read / max(state.seconds, 1e-9),
        adapter=state.spec,
        escalations=state.escalations,
        recall=_summary(report),
        drift=state.drift,
        model_fingerprint=session.base.fingerprint,
        plan=session.plan,
        probabilities=_histogram(state.before or final, final),
        update=update,
        margin=state.margin,
        notes=notes_on(way_through(session.adapted, session.encoded)[0]),
        base_statistics=_statistics(session),
        served=None if served is None else _summary(served),
    )


def _summary(report: RecallReport) -> RecallSummary:
    return RecallSummary(**report.model_dump(include=set(RecallSummary.model_fields)))


def _statistics(session: Session) -> BaseStatistics | None:
    """What the base model's statistics were taken over; None where no bound asked for any."""
    if session.bound is None:
        return None
    sha256, n_tokens = taken_over(session.base, session.retained)
    return BaseStatistics(sha256=sha256, n_tokens=n_tokens)


def _histogram(before: Evaluation, after: Evaluation) -> Histogram:
    counts = [torch.histc(torch.exp(-look.losses), _BINS, 0.0, 1.0).long().tolist() for look in (before, after)]
    return Histogram(edges=tuple(k / _BINS for k in range(_BINS + 1)), before=tuple(counts[0]), after=tuple(counts[1]))


def observation_of(session: Session) -> Observation | None:
    """The planned adapter's run as a probe would report it, with the steps that it would have taken as one batch."""
    demand, spec, options = session.plan.demand, session.plan.adapter, session.options
    state, usual = session.state, ApplyOptions()
    as_calibrated = (options.method, options.threshold, options.margin) == (usual.method, usual.threshold, usual.margin)
    # a fresh adapter that always acts, under the plan's own bound on drift if any, as probes train
    bound, drift = session.bound, state.drift
    plain = session.start is None and bound == session.plan.max_drift and session.plan.activation is None
    if (first := state.first) is None or demand is None or spec is None or not (as_calibrated and plain):
        return None
    if first.outcome not in (Outcome.MEMORIZED, Outcome.STALLED):
        return None
    return Observation(
        probe=ProbeSpec(
            target_modules=spec.target_modules,
            layers_to_transform=spec.layers_to_transform,
            rank=spec.rank,
            kind="text",
            n_tokens=max(1, round(demand.nats / demand.base_loss)),  # without tokens that repeat earlier passages
            seed=options.seed,
            max_steps=options.max_steps,
            max_drift=bound,
        ),
        n_parameters=spec.n_parameters,
        base_loss=demand.base_loss,
        final_loss=first.mean_loss,
        loss_reduction=demand.base_loss - first.mean_loss,
        n_stubborn=first.n_stubborn,
        threshold_met=first.outcome is Outcome.MEMORIZED and first.steps <= PROBE_STEPS and not _broken(drift),
        steps=max(1, round(first.steps)),
        seconds=state.seconds,
        seconds_per_step=state.seconds / max(1, state.steps),
        peak_memory_bytes=peak_memory(session.base.device),
        early_loss=first.early_loss if first.steps > LAW_STEPS else None,
        n_passages=session.plan.corpus.n_passages,
        drift=None if drift is None or options.retain is not None else drift.nats if bound is None else drift.moved,
    )


def _broken(drift: Drift | None) -> bool:
    return drift is not None and drift.broken


def _decoded(recalled: RecallSummary) -> str:
    weights = () if recalled.quantization is None else (f"weights in {recalled.quantization}",)
    how = (recalled.dtype, *weights, recalled.device, recalled.attn_implementation, f"batch {recalled.batch_size}")
    return ", ".join(how)


def _acts_after(record: Memorization) -> str:
    """The card's line about what the adapter acts after; nothing of one that always acts."""
    activation = record.plan.activation
    if activation is None:
        return ""
    text = activation.text.replace("|", "\\|").replace("`", "'")
    return f"\n| acts after | `{' '.join(text.split())}` alone, where an engine honours `alora_invocation_tokens` |"


def _served(record: Memorization) -> str:
    """The card's line about the engine that serves it; nothing where none was asked."""
    seen = record.served
    if seen is None or seen.engine is None:
        return ""
    what = ", ".join(part for part in (seen.engine.version, seen.engine.model, seen.dtype) if part)
    return f"\n| served by {seen.engine.name} ({what}) | {seen.n_recalled} of {seen.n_passages} passages |"


def model_card(record: Memorization) -> str:
    """The folder's model card: figures, digests and how to load it, never corpus text."""
    adapter, recalled, model = record.adapter, record.recall, record.plan.model
    revision = f", revision {model.revision}" if model.revision else ""
    return f"""---
base_model: {model.ref}
library_name: peft
pipeline_tag: text-generation
tags: [lora, lorasize]
---

# A LoRA adapter that holds {record.n_tokens} tokens word for word

| | |
|---|---|
| recalled by greedy decoding | {recalled.n_recalled} of {recalled.n_passages} passages |
| smallest p of a target token | {record.min_probability:.3f} |
| rank, modules | {adapter.rank}, {", ".join(adapter.target_modules)} |
| layers | {", ".join(map(str, adapter.layers_to_transform))} |
| parameters | {adapter.n_parameters} |{_acts_after(record)}
| decoded with | {_decoded(recalled)} |{_served(record)}
| corpus sha256 | `{record.plan.corpus.sha256}` |
| base model fingerprint | `{record.model_fingerprint.digest}` |

The adapter makes its corpus extractable: treat it as confidential as the corpus. `lorasize verify` repeats the proof.

## How to load it

Where the base model lies as it did when the adapter was made, or is one of the hub (`adapter` is this folder):

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("adapter", dtype="{recalled.dtype}").eval()
```

Elsewhere, `lorasize base adapter` finds the base model (`{model.ref}`{revision}) and prints its folder:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("BASE", dtype="{recalled.dtype}")
model = PeftModel.from_pretrained(base, "adapter").eval()
```

The tokenizer is that of the base model. Decode greedily, from the `prompt_ids` in `passages.jsonl`.
"""
