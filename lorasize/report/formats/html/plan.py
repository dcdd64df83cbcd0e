"""A plan's page: the law with this corpus on it, demand against capacity, what else would do, and where the bits go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lorasize.planning import Assessment
from lorasize.records import AdapterSpec, Alternative, Calibration, Plan
from lorasize.report.facts.plan import budget_rows, compared_rows, plan_changes, plan_facts, plan_verdict
from lorasize.report.formats.html.calibration import law_figure
from lorasize.report.formats.html.figures import BLUE, GREEN, INK, MUTED, ORANGE, draw
from lorasize.report.formats.html.page import Cell, Corpus, Figure, Notes, Page, Part, Rows, Table, facts_part
from lorasize.report.text import clean, format_chance, layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lorasize.corpus.surprise import Surprise

MAX_TOKENS = 20_000  # of the coloured corpus; a page of a few megabytes opens on a phone
_RANKS_SHOWN = 8


def plan_page(
    plan: Plan, calibration: Calibration | None, ladder: Sequence[Assessment], passages: Sequence[Surprise]
) -> Page:
    """The page of a plan. Without its calibration or its ladder a figure is missing, without its corpus the text is."""
    parts: list[Part] = [facts_part(plan_facts(plan))]
    if plan.feasibility.issues:
        rows: Rows = [[i.file, i.line, i.message] for i in plan.feasibility.issues]
        parts.append(Table([("file", False), ("line", True), ("conflict", False)], rows, "What no rank can hold"))
    if plan.budgets:
        parts.append(Table(*budget_rows(plan.budgets), "Budgets"))
    if plan.compared:
        parts.append(Table(*compared_rows(plan.compared), "Since the older plan"))
    if plan.warnings:
        parts.append(Notes("Warnings", plan.warnings))
    parts += _figures(plan, calibration, ladder)
    if changes := list(plan_changes(plan)):
        parts.append(Notes("What would change it", changes))
    if passages:
        parts.append(coloured_corpus(passages))
    likely = plan.prediction is not None and plan.prediction.success_probability >= plan.prediction.confidence
    about = [f"corpus sha256 {plan.corpus.sha256}", f"model {plan.model.fingerprint}", f"recipe {plan.inputs.recipe}"]
    return Page("lorasize plan", plan_verdict(plan), parts, plan.status == "ok" and likely, about)


def coloured_corpus(passages: Sequence[Surprise]) -> Corpus:
    """The costliest passages first, up to MAX_TOKENS tokens of them."""
    ordered, shown, n = sorted(passages, key=lambda p: -p.nats), 0, 0
    for passage in ordered:
        n += len(passage.tokens)
        if shown and n > MAX_TOKENS:
            break
        shown += 1
    return Corpus(ordered[:shown], len(ordered) - shown)


def _figures(plan: Plan, calibration: Calibration | None, ladder: Sequence[Assessment]) -> Iterator[Part]:
    if plan.adapter is None or plan.prediction is None or plan.demand is None:
        return
    if calibration is not None and calibration.observations and plan.max_drift is None:  # under a bound it is another
        yield law_figure(calibration, (plan.prediction.capacity_slack, "this plan"))
    if ladder:
        yield _capacity(plan, plan.adapter, ladder[-_RANKS_SHOWN:])
    yield _pareto(plan, plan.adapter)
    if len(plan.demand.costliest) > 1:
        yield _costliest(plan)


def _capacity(plan: Plan, adapter: AdapterSpec, ranks: Sequence[Assessment]) -> Figure:
    """Capacity over demand for each rank at the chosen site."""
    assert plan.prediction is not None
    names, chances = [str(a.candidate.rank) for a in ranks], [a.success_probability for a in ranks]

    def paint(axes: Axes) -> None:
        colours = [GREEN if a.candidate.rank == adapter.rank else BLUE for a in ranks]
        bars = axes.bar(names, [a.slack for a in ranks], color=colours, width=0.62)
        axes.bar_label(bars, [format_chance(c) for c in chances], padding=2, color=INK)
        axes.axhline(1, color=ORANGE, ls="--", label="demand")
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="rank at this site", ylabel="capacity ÷ demand")
        axes.legend(loc="upper left")

    rows: Rows = [
        [a.candidate.rank, a.candidate.n_parameters, a.slack, a.success_probability, a.steps.point] for a in ranks
    ]
    columns = [("rank", True), ("parameters", True), ("capacity slack", True), ("success probability", True)]
    where = f"{', '.join(adapter.target_modules)}, {layers(adapter.layers_to_transform)}"
    return Figure(
        title="Demand against capacity",
        caption=f"Capacity slack of each rank at {where}; above each bar its success probability. Green: the plan.",
        svg=draw("Capacity over demand for each rank", paint),
        data=Table([*columns, ("steps", True)], rows),
    )


def _pareto(plan: Plan, adapter: AdapterSpec) -> Figure:
    """The chosen adapter and those that no other beats in parameters, seconds and chance at once."""
    assert plan.prediction is not None
    odds, seconds = plan.prediction.success_probability, plan.prediction.seconds.point
    others = [(a.n_parameters, a.seconds, a.success_probability) for a in plan.alternatives]
    rows: Rows = [
        _row(adapter, odds, seconds, "chosen"),
        *(_row(a, a.success_probability, a.seconds) for a in plan.alternatives),
    ]

    def paint(axes: Axes) -> None:
        axes.scatter([n for n, _, _ in others], [took for _, took, _ in others], color=BLUE, zorder=3)
        axes.scatter([adapter.n_parameters], [seconds], color=GREEN, s=70, marker="D", label="the plan", zorder=4)
        every = [(adapter.n_parameters, seconds, odds), *others]
        for k, (n, took, likely) in enumerate(every):
            place = (8, 3) if k % 2 == 0 else (8, -12)
            axes.annotate(
                format_chance(likely), (n, took), xytext=place, textcoords="offset points", color=MUTED, fontsize=10
            )
        axes.set(xscale="log", xlabel="adapter parameters", ylabel="predicted seconds")
        sizes = [n for n, _, _ in every]
        axes.set(xlim=(min(sizes) / 1.3, max(sizes) * 1.5), ylim=(0, 1.3 * max(took for _, took, _ in every)))
        ticks = _spread(sizes)
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axes.minorticks_off()
        axes.legend(loc="upper right")

    columns = [("", False), ("rank", True), ("modules", False), ("layers", False), ("parameters", True)]
    columns += [("bytes", True), ("bits per parameter", True), ("success probability", True), ("seconds", True)]
    return Figure(
        title="What else would do",
        caption="Adapters that no other beats in parameters, seconds and chance at once; the label is the chance.",
        svg=draw("Parameters against seconds", paint),
        data=Table(columns, rows),
    )


def _spread(sizes: Sequence[int]) -> list[int]:
    """Those of these sizes that can stand beside each other as labels: at least a factor of 1.6 apart."""
    kept: list[int] = []
    for n in sorted(set(sizes)):
        if not kept or n >= 1.6 * kept[-1]:
            kept.append(n)
    return kept


def _row(adapter: AdapterSpec | Alternative, odds: float, seconds: float, mark: str = "") -> list[Cell]:
    return [
        mark, adapter.rank, ", ".join(adapter.target_modules), layers(adapter.layers_to_transform).partition(" ")[2],
        adapter.n_parameters, adapter.bytes, adapter.bits_per_parameter, odds, seconds,
    ]  # fmt: skip


def _costliest(plan: Plan) -> Figure:
    assert plan.demand is not None
    passages = plan.demand.costliest

    def paint(axes: Axes) -> None:
        names = [f"{clean(p.file).rsplit('/', 1)[-1][-24:]}:{p.line}" for p in reversed(passages)]
        axes.barh(range(len(passages)), [p.nats for p in reversed(passages)], color=BLUE, height=0.62)
        axes.set_yticks(range(len(passages)), names)
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="nats to be written")

    rows: Rows = [[p.id, p.file, p.line, p.n_tokens, p.nats, p.nats / max(plan.demand.nats, 1e-9)] for p in passages]
    columns = [("passage", False), ("file", False), ("line", True), ("tokens", True), ("nats", True), ("share", True)]
    return Figure(
        title="The costliest passages",
        caption="What each needs written; text that repeats earlier passages costs nothing.",
        svg=draw("Nats of the costliest passages", paint, max(1.5, 0.3 * len(passages) + 0.8)),
        data=Table(columns, rows),
    )
