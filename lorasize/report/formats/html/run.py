"""Pages of what happened: apply (stubborn tokens over time, p before and after, recall), verify and check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorasize.records import WORST_KIND, Check, Drift, Histogram, Memorization, RecallReport, StepReport
from lorasize.report.facts.check import check_facts, check_verdict
from lorasize.report.facts.plan import budget_rows
from lorasize.report.facts.recall import (
    decoding_line,
    failure_rows,
    is_proven,
    memorization_facts,
    memorization_verdict,
    passage_rows,
    recall_verdict,
    smallest,
)
from lorasize.report.formats.html.figures import BLUE, GREEN, MUTED, ORANGE, RED, draw
from lorasize.report.formats.html.page import Facts, Figure, Notes, Page, Part, Rows, Table, facts_part
from lorasize.report.text import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def memorization_page(run: Memorization, steps: Sequence[StepReport], recall: RecallReport | None) -> Page:
    """The page of an apply. Its steps and its passages are shown where they are at hand."""
    parts: list[Part] = [facts_part(memorization_facts(run))]
    if steps:
        parts.append(_stubborn(run, steps))
    if run.probabilities is not None:
        parts.append(_probabilities(run.probabilities, run.threshold))
    if run.drift is not None and run.drift.texts:
        parts.append(_drift(run.drift))
    parts += _recall(recall) if recall is not None else _failures(run)
    digests = f"base model {run.model_fingerprint.digest}", f"corpus sha256 {run.plan.corpus.sha256}"
    return Page("lorasize apply", memorization_verdict(run), parts, run.proven, [decoding_line(run.recall), *digests])


def _stubborn(run: Memorization, steps: Sequence[StepReport]) -> Figure:
    """Target tokens with p ≤ ½ after each step, on a scale that shows the last few."""

    def paint(axes: Axes) -> None:
        axes.plot([s.step for s in steps], [s.n_stubborn for s in steps], color=BLUE, label="stubborn (p ≤ ½)")
        for grown in run.escalations:
            axes.axvline(grown.step, color=ORANGE, lw=1, ls="--", label=f"grown to {grown.to}")
        if (predicted := run.plan.prediction) is not None:
            axes.axvspan(predicted.steps.lo, predicted.steps.hi, color=GREEN, alpha=0.12, lw=0, label="predicted end")
        axes.set(xlabel="optimiser step", ylabel="target tokens", yscale="symlog")
        ticks = [0, 1, *(10**k for k in range(1, 1 + len(str(run.n_tokens))))]
        axes.set_yticks(ticks, [f"{n:,}" for n in ticks])
        axes.set_ylim(0, 1.3 * run.n_tokens)
        axes.legend(loc="upper right")

    rows: Rows = [[s.step, s.n_stubborn, s.n_active, s.loss, s.min_probability, s.seconds] for s in steps]
    columns = [("step", True), ("stubborn", True), ("trained on", True), ("loss", True), ("min p", True)]
    return Figure(
        title="Stubborn tokens over time",
        caption="Target tokens with p ≤ ½ after each step; training ends when a full look finds none.",
        svg=draw("Stubborn tokens against optimiser steps", paint),
        data=Table([*columns, ("seconds", True)], rows),
    )


def _probabilities(seen: Histogram, threshold: float) -> Figure:
    """How p of the target tokens was spread before and after."""
    left, width = seen.edges[:-1], seen.edges[1] - seen.edges[0]

    def paint(axes: Axes) -> None:
        axes.bar(left, seen.before, width=width, align="edge", color=MUTED, alpha=0.55, label="before")
        axes.bar(left, seen.after, width=width * 0.6, align="edge", color=BLUE, label="after")
        axes.axvline(threshold, color=RED, ls="--", label=f"p = {threshold:g}")
        axes.set(xlabel="p of a target token", ylabel="target tokens", xlim=(0, 1))
        axes.legend(loc="upper left", bbox_to_anchor=(0.1, 1.0))

    pairs = zip(seen.edges[:-1], seen.edges[1:], seen.before, seen.after, strict=True)
    return Figure(
        title="Every token's p, before and after",
        caption="Above ½ a token is the likeliest whatever the others are, so greedy decoding gives it.",
        svg=draw("Histogram of p before and after", paint),
        data=Table([("p from", True), ("to", True), ("before", True), ("after", True)], [list(row) for row in pairs]),
    )


def _drift(drift: Drift) -> Figure:
    """How far each kind of other text moved, beside what it may."""
    near = () if drift.neighbours is None else (drift.neighbours,)
    kinds = sorted((*drift.texts, *near), key=lambda one: one.divergence)

    def paint(axes: Axes) -> None:
        at = range(len(kinds))
        axes.barh(at, [one.divergence for one in kinds], color=BLUE, height=0.62, label="KL from the base model")
        axes.scatter([one.after - one.before for one in kinds], at, color=MUTED, s=18, zorder=3, label="loss added")
        if drift.bound is not None:
            axes.axvline(drift.bound, color=ORANGE, ls="--", label="bound on the mean")
            axes.axvline(WORST_KIND * drift.bound, color=RED, ls="--", label="bound on all kinds but one")
        axes.set_yticks(at, [clean(one.kind)[-24:] for one in kinds])
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="nats per token")
        axes.legend(loc="lower right")

    rows: Rows = [[one.kind, one.before, one.after, one.divergence, one.unchanged] for one in reversed(kinds)]
    columns = [("text", False), ("loss before", True), ("after", True), ("KL", True), ("likeliest token stays", True)]
    return Figure(
        title="Other text",
        caption="What the adapter does to text that it was not trained on, by kind."
        + " Text like the corpus is what the base model says after its first words: under no bound." * len(near),
        svg=draw("Drift of each kind of other text", paint, max(1.5, 0.3 * len(kinds) + 0.8)),
        data=Table(columns, rows),
    )


def _failures(run: Memorization) -> list[Part]:
    if not run.failures:
        return []
    return [Table([("passage", False), ("first mismatch", False)], failure_rows(run.failures), "What was lost")]


def recall_page(report: RecallReport) -> Page:
    """The page of a verify."""
    parts: list[Part] = []
    if report.changed_files:
        parts.append(Notes("Changed since it was proven", report.changed_files))
    if report.warnings:
        parts.append(Notes("Warnings", report.warnings))
    how = [line for line in (smallest(report), decoding_line(report)) if line]
    return Page("lorasize verify", recall_verdict(report), [*parts, *_recall(report)], is_proven(report), how)


def _recall(report: RecallReport) -> list[Part]:
    return [Table(*passage_rows(report), "Recall, passage by passage")]


def check_page(check: Check) -> Page:
    """The page of a check."""
    parts: list[Part] = [Facts(list(check_facts(check)))]
    if check.stale:
        parts.append(Notes("Changed since the plan was made", check.stale))
    if check.feasibility.issues:
        rows: Rows = [[i.file, i.line, i.message] for i in check.feasibility.issues]
        parts.append(Table([("file", False), ("line", True), ("conflict", False)], rows, "What no rank can hold"))
    if check.budgets:
        parts.append(Table(*budget_rows(check.budgets), "Budgets"))
    if check.warnings:
        parts.append(Notes("Warnings", check.warnings))
    return Page("lorasize check", check_verdict(check), parts, check.status == "ok")
