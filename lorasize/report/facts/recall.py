"""What is said of recall, passage by passage, and of what apply did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorasize.planning.serving import vllm_rank
from lorasize.records import (
    Engine,
    Memorization,
    PassageRecall,
    Prediction,
    RecallFailure,
    RecallReport,
    RecallSummary,
)
from lorasize.report.facts import Fact, Listing
from lorasize.report.facts.plan import activation_line, adapter_line
from lorasize.report.text import count, format_probability, quote
from lorasize.units import format_seconds


def is_proven(report: RecallReport) -> bool:
    """Whether all of it came back, by every token's p where it is told, from the very files that were proven."""
    return report.recalled and (report.threshold_met or _is_silent(report)) and not report.changed_files


def _is_silent(report: RecallReport) -> bool:
    """Whether no passage has a smallest p, since the engine does not tell enough: decoding alone judges then."""
    other = report.engine is not None and report.engine.name != "transformers"
    return other and report.recalled and all(one.min_probability is None for one in report.passages)


def smallest(report: RecallReport | RecallSummary) -> str:
    """How near to its loss the nearest token is, and by how much decoding shifts a token; empty where unmeasured."""
    if report.min_logit_margin is None or report.min_probability is None:
        return ""
    p, gap = format_probability(report.min_probability), report.decoding_gap
    said = f"smallest p {p}, smallest logit margin {report.min_logit_margin:.3g}"
    return said if gap is None else f"{said}; decoding step by step shifts ln p by at most {gap:.2g}"


def passage_rows(report: RecallReport) -> Listing:
    """Columns, and one row a passage."""
    failures = {failure.passage: failure for failure in report.failures}
    rows = [_passage_row(passage, failures.get(passage.passage)) for passage in report.passages]
    return [("", False), ("passage", False), ("tokens", True), ("min p", True), ("first mismatch", False)], rows


def recall_verdict(report: RecallReport) -> str:
    """The report in a sentence."""
    came_back = f"{report.n_recalled:,} of {count(report.n_passages, 'passage')} recalled"
    met = "every token above the threshold" if report.threshold_met else "some token is not above the threshold"
    verdict = "LOST" if not report.recalled else "RECALLED" if is_proven(report) else "NOT PROVEN"
    if _is_silent(report):
        return f"{verdict}: {came_back}; the engine does not tell the p of every token."
    return f"{verdict}: {came_back}, {met} (min p {format_probability(report.min_probability)})."


def _passage_row(passage: PassageRecall, failure: RecallFailure | None) -> list[str]:
    state = "recalled" if passage.recalled else "LOST"
    wrong = mismatch(failure) if failure is not None else ""
    return [state, passage.passage, f"{passage.n_tokens:,}", format_probability(passage.min_probability), wrong]


def mismatch(failure: RecallFailure) -> str:
    """Where decoding left the target: at a token, or in the text alone, and then why it stands at no token."""
    if failure.position < 0:
        return f"{failure.got} {failure.expected}"
    said = f"token {failure.position}: expected {quote(failure.expected)}, got {quote(failure.got)}"
    return said if failure.probability is None else f"{said}, p {format_probability(failure.probability)}"


def failure_rows(failures: Sequence[RecallFailure]) -> list[tuple[str, str]]:
    """Each lost passage and its first mismatch."""
    return [(f.passage, mismatch(f)) for f in failures]


def decoding_line(report: RecallReport | RecallSummary) -> str:
    """How it was decoded, in a line."""
    process = "a fresh process" if report.fresh_process else "the training process"
    engine = report.engine
    if engine is not None and engine.name != "transformers":
        return _engine_line(report, engine)
    merged = "merged" if report.merged else ""
    weights = f"{report.quantization} weights" if report.quantization is not None else ""
    how = (report.dtype, weights, report.device, report.attn_implementation, f"batch {report.batch_size}", merged)
    return f"decoded greedily in {process}: {', '.join(part for part in how if part)}"


def _engine_line(report: RecallReport | RecallSummary, engine: Engine) -> str:
    """How another engine decoded; what it does not tell is left out."""
    how = (engine.model or "", report.dtype, report.device, f"batch {report.batch_size}")
    said = ", ".join(dict.fromkeys(part for part in how if part))
    return f"decoded greedily by {engine.name} ({engine.version}): {said}"


def harm_done(m: Memorization) -> str:
    """What moved by more than the bound allows; empty where nothing did."""
    drift = m.drift
    if drift is None or drift.bound is None or not drift.broken:
        return ""
    if drift.moved > drift.bound or drift.worst is None:
        return f"other text moved by {drift.moved:.3f} nats per token"
    return f"text of the kind {drift.worst.kind} moved by {drift.worst.divergence:.3f} nats per token"


def memorization_verdict(m: Memorization) -> str:
    """The run in a sentence."""
    if harm := harm_done(m):
        return f"NOT MEMORIZED: {harm}, more than the bound allows."
    if m.served is not None and not m.proven and m.model_copy(update={"served": None}).proven:
        return f"NOT PROVEN where it is served: {served_line(m.served)}"
    return f"{'MEMORIZED' if m.proven else 'NOT MEMORIZED'}: {m.outcome.sentence}"


def served_line(seen: RecallSummary) -> str:
    """What the engine that serves the adapter decoded, in a line."""
    came_back = f"{seen.n_recalled:,} of {count(seen.n_passages, 'passage')} come back"
    return f"{came_back} · min p {format_probability(seen.min_probability)} · {decoding_line(seen)}"


def memorization_facts(m: Memorization) -> Iterator[Fact]:
    """Names and what there is to say, from recall to the base model."""
    yield "recall", f"{m.recall.n_recalled:,} of {count(m.recall.n_passages, 'passage')} come back word for word"
    met = "met" if m.threshold_met else "NOT met"
    trained = f" · trained to p > {m.threshold + m.margin:.2f}" if m.margin is not None else ""
    yield "threshold", f"p > {m.threshold:g} {met} · min p {format_probability(m.min_probability)}{trained}"
    yield "decoding", smallest(m.recall)
    if m.served is not None:
        yield "served", served_line(m.served)
    stubborn = f"{m.n_stubborn:,} stubborn" if m.n_stubborn else "none stubborn"
    yield "tokens", f"{count(m.n_tokens, 'target token')}, {stubborn}"
    yield "adapter", adapter_line(m.adapter)
    activation = m.plan.activation
    if activation is not None:
        yield "acts after", f"{activation_line(activation)}; without it drift is 0 by construction"
    yield "training", f"{m.steps:,} steps · {format_seconds(m.seconds)} · {m.tokens_per_second:,.0f} tokens per second"
    bound = None if m.drift is None else m.drift.bound
    predicted = m.plan.prediction if bound == m.plan.max_drift else None  # else another adapter than the plan's
    if predicted is not None:
        yield "predicted", f"{predicted.steps.point:,.0f} steps · {format_seconds(predicted.seconds.point)}"
    if m.escalations and m.plan.adapter is not None and predicted is not None:
        times = m.adapter.n_parameters / m.plan.adapter.n_parameters
        likely = f"{predicted.success_probability:.0%} likely"
        yield "plan missed", f"rank {m.plan.adapter.rank} was {likely}; this took {times:.1f} times its parameters"
    yield "escalations", " · ".join(f"{e.from_} → {e.to} at step {e.step:,}" for e in m.escalations)
    if (update := m.update) is not None:
        n = update.n_changed + update.n_removed
        old = f"{update.n_old_produced} of {n} old targets still come back" if n else "nothing changed or removed"
        yield "update", f"{update.n_unchanged} unchanged, {update.n_changed} changed, {update.n_added} added · {old}"
    if m.drift is not None:
        bounded = "" if bound is None else f", at most {bound:+.3f} asked"
        loss = f"{m.drift.before:.3f} → {m.drift.after:.3f}{bounded}{_drift_prediction(predicted, bound)}"
        where = "on" if activation is None else "where it acts on"
        yield "drift", f"{m.drift.nats:+.3f} nats per token {where} other text ({loss})"
        if m.drift.divergence is not None and m.drift.texts:
            most = max(m.drift.texts, key=lambda kind: kind.divergence)
            same = sum(kind.unchanged for kind in m.drift.texts) / len(m.drift.texts)
            yield "predictions", (
                f"KL from the base model {m.drift.divergence:.3f} nats per token, most for {most.kind} "
                f"{most.divergence:.3f}; likeliest token unchanged at {same:.0%} of positions"
            )
        if (near := m.drift.neighbours) is not None:
            yield near.kind, (
                f"KL {near.divergence:.3f}, loss {near.after - near.before:+.3f} nats per token; likeliest token "
                f"unchanged at {near.unchanged:.0%} of positions; under no bound"
            )
    if m.plan.adapter is not None and m.adapter.rank != m.plan.adapter.rank:
        yield "serving", f"vLLM: max_lora_rank {vllm_rank(m.adapter.rank)}, as the rank is another than the plan's"
    yield "base model", m.plan.model.ref
    yield from (("note", note) for note in m.notes)
    yield from (("warning", warning) for warning in m.recall.warnings or ())


def _drift_prediction(predicted: Prediction | None, bound: float | None) -> str:
    """What the plan said of it."""
    told = None if predicted is None else predicted.drift
    digits = 1 if bound is None else 3
    return "" if told is None else f", predicted {told.point:+.{digits}f}, {told.lo:.{digits}f} to {told.hi:.{digits}f}"
