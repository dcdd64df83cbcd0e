"""A calibration's figures: every probe on the law, what is left over, sites beside each other, and the transition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorasize.law.form import soft_capped
from lorasize.law.observations import transition_points
from lorasize.law.transition import NORMAL_95, success_probability
from lorasize.records import Calibration, Observation, Transition
from lorasize.report.facts.calibration import calibration_facts
from lorasize.report.formats.html.figures import BAND, BLUE, GREEN, MUTED, ORANGE, RED, draw
from lorasize.report.formats.html.page import Figure, Page, Part, Rows, Table, facts_part
from lorasize.report.text import layers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CURVE = 120  # points of a drawn curve


@dataclass(frozen=True)
class Measured:
    """A probe on the law: capacity slack, and the share of its base loss that it had lost when the law looks."""

    slack: float
    share: float
    observation: Observation

    @property
    def name(self) -> str:
        """Its site and text."""
        probe = self.observation.probe
        where = f"{', '.join(probe.target_modules)}, {layers(probe.layers_to_transform)}"
        return f"rank {probe.rank}, {where}, {probe.n_tokens:,} {probe.kind} tokens"


def probes_on_law(calibration: Calibration) -> list[Measured]:
    """Every observation, the held-out ones last."""
    seen = [*calibration.observations, *calibration.held_out]
    points = transition_points(seen, calibration.law, calibration.sites)
    return [Measured(p.slack, o.early_reduction / o.base_loss, o) for p, o in zip(points, seen, strict=True)]


def calibration_page(calibration: Calibration) -> Page:
    """The page of a calibration."""
    parts: list[Part] = [facts_part(calibration_facts(calibration))]
    if calibration.observations:
        parts += [law_figure(calibration), _residuals(calibration)]
    parts += [_sites(calibration), transition_figure(calibration)]
    law = calibration.law
    return Page(
        title="lorasize calibration",
        verdict=f"{calibration.model.ref}: r² {law.r_squared:.3f} on {law.n_observations} observations",
        parts=parts,
        about=list(_provenance(calibration)),
    )


def _provenance(calibration: Calibration) -> Iterator[str]:
    yield f"recipe {calibration.recipe}"
    yield from (f"{name}: {value}" for name, value in calibration.provenance.items())


def law_figure(calibration: Calibration, here: tuple[float, str] | None = None) -> Figure:
    """The law with every probe on it; `here` marks a capacity slack, with its name."""
    points = probes_on_law(calibration)

    def paint(axes: Axes) -> None:
        x = _slacks([p.slack for p in points] + ([here[0]] if here else []))
        expected = np.array([soft_capped(s) for s in x])
        error = NORMAL_95 * calibration.law.residual_stderr / calibration.law.reference_loss
        axes.fill_between(x, np.clip(expected - error, 0, 1), np.clip(expected + error, 0, 1), color=BAND, lw=0)
        axes.plot(x, expected, color=BLUE)
        _scatter(axes, [p for p in points if not p.observation.censored], "o", BLUE, "probe")
        _scatter(axes, [p for p in points if p.observation.censored], "^", GREEN, "ended earlier, all held: at least")
        if here:
            axes.axvline(here[0], color=ORANGE, label=here[1])
        axes.set(xscale="log", xlabel="capacity slack (predicted ÷ required)", ylabel="share of base loss lost")
        _plain_ticks(axes)
        axes.legend(loc="upper left")

    rows: Rows = [[p.name, p.slack, p.share, p.observation.n_stubborn] for p in points]
    columns = [("probe", False), ("slack", True), ("share lost", True), ("stubborn at its end", True)]
    return Figure(
        title="The law, and every probe on it",
        caption="All probes fall on one curve once parameters and text are counted as capacity slack. The band holds "
        "nine in ten probes if the law is right; triangles are lower bounds.",
        svg=draw("Share of the base loss lost against capacity slack", paint),
        data=Table(columns, rows),
    )


def _scatter(axes: Axes, points: Sequence[Measured], marker: str, colour: str, name: str) -> None:
    if points:
        x, y = [p.slack for p in points], [p.share for p in points]
        axes.scatter(x, y, marker=marker, s=26, color=colour, label=name, zorder=3)


def _slacks(seen: Sequence[float]) -> np.ndarray:
    known = [s for s in seen if s > 0] or [0.5, 2.0]
    return np.geomspace(min(known) / 1.2, max(known) * 1.2, _CURVE)


def _plain_ticks(axes: Axes) -> None:
    """Numbers such as 0.5 and 2 on a logarithmic axis, instead of powers of ten."""
    lo, hi = axes.get_xlim()
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if lo <= t <= hi]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()


def _residuals(calibration: Calibration) -> Figure:
    points = [p for p in probes_on_law(calibration) if not p.observation.censored]
    off = [p.observation.base_loss * (p.share - max(0.0, soft_capped(p.slack))) for p in points]

    def paint(axes: Axes) -> None:
        error = NORMAL_95 * calibration.law.residual_stderr
        axes.axhspan(-error, error, color=BAND, lw=0)
        axes.axhline(0, color=MUTED, lw=1)
        axes.scatter([p.slack for p in points], off, s=26, color=BLUE, zorder=3)
        most = 1.1 * max(2 * error, *map(abs, off))
        axes.set(xscale="log", xlabel="capacity slack", ylabel="measured − predicted,\nnats per token")
        axes.set_ylim(-most, most)
        _plain_ticks(axes)

    rows: Rows = [[p.name, p.slack, r] for p, r in zip(points, off, strict=True)]
    return Figure(
        title="What is left over",
        caption="Loss reduction measured minus predicted. A trend here would mean another law.",
        svg=draw("Residuals against capacity slack", paint, 2.6),
        data=Table([("probe", False), ("slack", True), ("residual, nats per token", True)], rows),
    )


def _sites(calibration: Calibration) -> Figure:
    sites = sorted(calibration.sites, key=lambda site: site.efficiency)
    names = [f"{', '.join(s.target_modules)}, {layers(s.layers_to_transform)}" for s in sites]

    def paint(axes: Axes) -> None:
        y = range(len(sites))
        errors = [NORMAL_95 * s.stderr for s in sites]
        axes.errorbar([s.efficiency for s in sites], y, xerr=errors, fmt="o", color=BLUE, ecolor=MUTED, capsize=3)
        axes.set_yticks(y, names)
        axes.grid(axis="y", visible=False)
        axes.axvline(1, color=MUTED, lw=1, ls="--")
        axes.set(xlabel="efficiency (reference site: 1)")
        axes.set_xlim(left=0)

    best_first = reversed(list(zip(names, sites, strict=True)))
    rows: Rows = [[name, s.efficiency, s.stderr, s.parameters_per_rank] for name, s in best_first]
    columns = [("site", False), ("efficiency", True), ("standard error", True), ("parameters per rank", True)]
    return Figure(
        title="Where a parameter is worth most",
        caption="Efficiency of each site with its 90 % interval.",
        svg=draw("Efficiency of each site", paint, max(1.6, 0.32 * len(sites) + 0.9)),
        data=Table(columns, rows),
    )


def transition_figure(calibration: Calibration) -> Figure:
    """From mean loss to every token above ½: how likely, against capacity slack."""
    points, transition = probes_on_law(calibration), calibration.transition

    def paint(axes: Axes) -> None:
        x = _slacks([p.slack for p in points])
        axes.fill_between(x, _shift(transition, x, 1), _shift(transition, x, -1), color=BAND, lw=0)
        axes.plot(x, [success_probability(transition, s) for s in x], color=BLUE)
        for held, colour, marker, name in ((True, GREEN, "o", "held every token"), (False, RED, "x", "did not")):
            chosen = [p.slack for p in points if p.observation.threshold_met is held]
            axes.scatter(chosen, [float(held)] * len(chosen), marker=marker, s=30, color=colour, label=name, zorder=3)
        axes.set(xscale="log", xlabel="capacity slack", ylabel="chance of every token", ylim=(-0.08, 1.08))
        _plain_ticks(axes)
        axes.legend(loc="center right")

    said = {True: "yes", False: "no"}
    rows: Rows = [[p.name, p.slack, said[p.observation.threshold_met], p.observation.steps] for p in points]
    return Figure(
        title="From mean loss to every token",
        caption="The chance that every target token ends above ½. It is even at slack "
        f"{math.exp(transition.location):.2f}.",
        svg=draw("Chance of holding every token against capacity slack", paint),
        data=Table([("probe", False), ("slack", True), ("held", False), ("steps", True)], rows),
    )


def _shift(transition: Transition, x: np.ndarray, side: int) -> list[float]:
    """The curve with its location moved to one end of its 90 % interval."""
    moved = transition.location + side * NORMAL_95 * transition.location_stderr
    known = transition.model_copy(update={"location": moved, "location_stderr": 0.0})
    return [success_probability(known, s) for s in x]
