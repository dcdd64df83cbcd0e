"""Records as tables for a terminal, fit for 80 columns; each reads from the top down, the verdict first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lorasize.records import (
    Calibration,
    Capacity,
    Check,
    Config,
    FeasibilityIssue,
    Memorization,
    Plan,
    RecallFailure,
    RecallReport,
)
from lorasize.report.facts.calibration import calibration_facts, provenance_facts, site_rows
from lorasize.report.facts.capacity import capacity_facts, capacity_verdict, holding_rows
from lorasize.report.facts.check import check_facts, check_verdict
from lorasize.report.facts.plan import (
    alternative_rows,
    budget_rows,
    compared_rows,
    is_doubtful,
    plan_changes,
    plan_facts,
    plan_verdict,
)
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
from lorasize.report.terminal import grid, label, listing
from lorasize.report.text import clean_lines

if TYPE_CHECKING:
    from lorasize.corpus.tokens import EncodedPassage

_GOOD, _DOUBTFUL, _BAD = "bold green", "bold yellow", "bold red"


def table(record: BaseModel) -> RenderableType:
    """The table of any artifact.

    Raises:
        TypeError: there is no table for this kind of record.
    """
    make = _TABLES.get(type(record))
    if make is None:
        raise TypeError(f"no table for {type(record).__name__}")
    return make(record)


def plan_table(plan: Plan) -> Group:
    """Everything the plan says."""
    parts: list[RenderableType] = [label(plan_verdict(plan), _plan_style(plan)), grid(plan_facts(plan))]
    if plan.feasibility.issues:
        parts.append(issues_list(plan.feasibility.issues))
    if plan.budgets:
        parts.append(listing(*budget_rows(plan.budgets)))
    if plan.compared:
        parts.append(listing(*compared_rows(plan.compared)))
    if plan.alternatives:
        parts.append(listing(*alternative_rows(plan.alternatives), "Alternatives"))
    if plan.warnings:
        parts.append(_notes("Warnings", plan.warnings))
    if changes := list(plan_changes(plan)):
        parts.append(_notes("What would change it", changes))
    return _with_gaps(parts)


def check_table(check: Check) -> Group:
    """The verdict on a committed plan, and what it rests on."""
    style = _GOOD if check.status == "ok" else _BAD
    parts: list[RenderableType] = [label(check_verdict(check), style), grid(check_facts(check))]
    if check.stale:
        parts.append(_notes("Changed since the plan was made", check.stale))
    if check.feasibility.issues:
        parts.append(issues_list(check.feasibility.issues))
    if check.budgets:
        parts.append(listing(*budget_rows(check.budgets)))
    if check.warnings:
        parts.append(_notes("Warnings", check.warnings))
    return _with_gaps(parts)


def calibration_table(calibration: Calibration) -> Group:
    """Everything that was fitted; the observations only by their number."""
    return Group(
        label(f"Calibration of {calibration.model.ref}", "bold"), grid(calibration_facts(calibration)), Text(),
        listing(*site_rows(calibration), "Sites"), Text(),
        grid(provenance_facts(calibration)),
    )  # fmt: skip


def recall_table(report: RecallReport) -> Group:
    """A verdict, one line a passage, and how it was decoded."""
    parts: list[RenderableType] = [label(recall_verdict(report), _GOOD if is_proven(report) else _BAD)]
    parts += [label(f"changed since it was proven: {name}", "red") for name in report.changed_files]
    parts += [label(f"warning: {warning}", "yellow") for warning in report.warnings]
    parts += [listing(*passage_rows(report))] if report.passages else [_failures_list(report.failures)]
    if measured := smallest(report):
        parts.append(label(measured, "dim"))
    return Group(*parts, label(decoding_line(report), "dim"))


def memorization_table(memorization: Memorization) -> Group:
    """What apply did: outcome, adapter, recall and what it took."""
    recall = memorization.recall
    return Group(
        label(memorization_verdict(memorization), _GOOD if memorization.proven else _BAD),
        grid(memorization_facts(memorization)),
        _failures_list(recall.failures),
        label(decoding_line(recall), "dim"),
    )


def config_table(config: Config) -> Group:
    """The configuration in force: one line a key, with its value and where that comes from; then the files read."""
    rows = [[v.key, _value_text(v.value), v.source] for v in config.values]
    files = [label(f"read: {file}", "dim") for file in config.files]
    return Group(listing([("key", False), ("value", False), ("source", False)], rows), *files)


def capacity_table(found: Capacity) -> Group:
    """What adapters of a rank hold, site by site."""
    style = _GOOD if found.holdings[0].nats else _BAD
    parts: list[RenderableType] = [label(capacity_verdict(found), style), grid(capacity_facts(found))]
    parts.append(listing(*holding_rows(found)))
    if found.warnings:
        parts.append(_notes("Warnings", found.warnings))
    return Group(*parts)


_TABLES: dict[type[BaseModel], Callable[[Any], RenderableType]] = {
    Plan: plan_table,
    Check: check_table,
    Calibration: calibration_table,
    RecallReport: recall_table,
    Memorization: memorization_table,
    Config: config_table,
    Capacity: capacity_table,
}


def issues_list(issues: Sequence[FeasibilityIssue]) -> Group:
    """Every conflict by file and line."""
    return Group(*(label(f"{i.file}:{i.line}: {i.message}") for i in issues))


def side_by_side(encoded: Iterable[EncodedPassage], report: RecallReport) -> Table:
    """The original on the left, the recalled text on the right, a row for each decoded passage."""
    originals = {passage.passage.id: passage.passage.target for passage in encoded}
    rows = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False, expand=True)
    rows.add_column("original", ratio=1, overflow="fold", header_style="bold")
    rows.add_column("recalled", ratio=1, overflow="fold", header_style="bold")
    for passage in report.passages:
        original = _passage_text(passage.passage, originals.get(passage.passage, ""))
        rows.add_row(original, _passage_text("recalled" if passage.recalled else "LOST", passage.text))
    return rows


def _plan_style(plan: Plan) -> str:
    if plan.status != "ok" or plan.prediction is None:
        return _BAD
    return _DOUBTFUL if is_doubtful(plan.prediction) else _GOOD


def _with_gaps(parts: Sequence[RenderableType]) -> Group:
    """The parts with an empty line between any two."""
    with_gaps = [part for pair in zip(parts, [Text()] * len(parts), strict=True) for part in pair]
    return Group(*with_gaps[:-1])


def _notes(title: str, notes: Sequence[str]) -> Group:
    return Group(Text(title, style="bold"), *(Padding(label(f"- {note}"), (0, 0, 0, 2)) for note in notes))


def _failures_list(failures: Sequence[RecallFailure]) -> Group:
    return Group(*(label(f"LOST {passage}: {mismatch}") for passage, mismatch in failure_rows(failures)))


def _value_text(value: str | float | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:,}"


def _passage_text(head: str, body: str) -> Text:
    return Text.assemble((label(head).plain + "\n", "dim"), clean_lines(body).strip("\n"))
