"""Progress on standard error: one live line on a terminal, now and then a plain line elsewhere, nothing when quiet."""

from __future__ import annotations

import math
import sys
import time
from types import TracebackType
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.status import Status

from lorasize.artifacts.events import Measuring, Noted, Raised
from lorasize.law.time_left import steps_in_all
from lorasize.records import Escalation, Plan, StepReport
from lorasize.report.terminal import label
from lorasize.report.text import count, encodable, format_probability, guard, layers
from lorasize.units import format_seconds

if TYPE_CHECKING:
    from lorasize.artifacts.events import Event
    from lorasize.probing.search import ProbeReport
    from lorasize.records import Observation, ProbeSpec

EVERY = 5.0  # seconds between two plain lines


class Progress:
    """What long commands say while they run. A context manager; `probe`, `event` and `decoded` are its listeners."""

    def __init__(self, *, quiet: bool = False, stream: IO[str] | None = None) -> None:
        """Write to `stream`, standard error when None."""
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True)
        self._live = self._stream.isatty() and not self._console.is_dumb_terminal
        self._status: Status | None = None
        self._said = -math.inf
        self._pending: str | None = None
        self._plan: Plan | None = None  # of the training under way
        self._first: StepReport | None = None  # its first report, by when all that happens once has happened
        self._began = 0.0  # when what is being measured began

    def __enter__(self) -> Progress:
        """Begin; nothing is shown before the first message."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the live line away; elsewhere, say the last word if it was held back."""
        self._settle()

    def expect(self, plan: Plan | None) -> None:
        """The plan of the training to come, for the time left; None where another adapter is trained."""
        self._plan, self._first = plan, None

    def probe(self, report: ProbeReport) -> None:
        """A probe of a calibration begins or has ended."""
        place = f"probe {min(report.done + (report.observation is None), report.total)} of {report.total}"
        what = _probe_text(report.spec)
        if report.observation is not None:
            self._say(f"{place}: {what}: {_outcome(report.observation)}")
        else:
            left = f", about {format_seconds(report.seconds_left)} left" if report.seconds_left else ""
            self._now(f"{place}: {what}{left}")

    def event(self, event: Event) -> None:
        """A training step, a growth of the adapter, a larger margin, a measured part, a decoded passage, or a note."""
        if isinstance(event, StepReport):
            self._first = self._first or event
            self._now(_step_text(event) + _left(event, self._first, self._plan), last=event.evaluated)
        elif isinstance(event, Escalation):
            self.note(f"step {event.step:,}: training stalled, the adapter grows from {event.from_} to {event.to}")
        elif isinstance(event, Raised):
            who = event.engine or "decoding"
            self.note(f"{who} shifts ln p by up to {event.gap:.2g}: training goes on to p > {event.to:.2f}")
        elif isinstance(event, Noted):
            self.note(event.message)
        elif isinstance(event, Measuring):
            self._measured(event)
        else:
            self.decoded(event.done, event.total)

    def _measured(self, event: Measuring) -> None:
        left = ""
        if event.done == 0:
            self._began = time.monotonic()
        else:
            each = (time.monotonic() - self._began) / event.done
            left = f", about {format_seconds(each * (event.total - event.done))} left"
        done = f"part {event.done + 1} of {event.total}"
        self._now(f"statistics of the model on general text, once for each model: {done}{left}")

    def decoded(self, done: int, total: int) -> None:
        """Passages decoded so far."""
        self._now(f"decoded {done:,} of {count(total, 'passage')}", last=done == total)

    def note(self, message: str, style: str = "") -> None:
        """A line that stays."""
        if self._pending is not None:
            self._say(self._pending)
        self._print(message, style)

    def doing(self, message: str) -> None:
        """What goes on now, before there is any number to show."""
        self._now(message, last=True)
        self._said = -math.inf

    def heading(self, message: str) -> None:
        """A line that stays and stands out."""
        self._settle()
        self._print(f"\n{message}", "bold")

    def _now(self, message: str, *, last: bool = False) -> None:
        """The current state: shown live, or as a plain line when one is due."""
        if self._quiet:
            return
        if self._live:
            self._show(message)
        elif last or time.monotonic() - self._said >= EVERY:
            self._say(message)
        else:
            self._pending = message

    def _say(self, message: str) -> None:
        """A line instead of the one held back."""
        self._pending = None
        self._print(message)

    def _show(self, message: str) -> None:
        text = label(encodable(message, self._stream))
        text.truncate(max(20, self._console.width - 4), overflow="ellipsis")
        if self._status is None:
            self._status = self._console.status(text, spinner="line", refresh_per_second=4)
            self._status.start()
        else:
            self._status.update(text)

    def _print(self, message: str, style: str = "") -> None:
        if self._quiet:
            return
        self._said = time.monotonic()
        for line in guard(encodable(message, self._stream)).split("\n"):
            self._console.print(label(line, style))

    def _settle(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._pending is not None:
            self._say(self._pending)


def _probe_text(spec: ProbeSpec) -> str:
    where = f"{', '.join(spec.target_modules)}, {layers(spec.layers_to_transform)}"
    return f"rank {spec.rank}, {where}, {spec.n_tokens:,} {spec.kind} tokens"


def _outcome(seen: Observation) -> str:
    result = "held every token" if seen.threshold_met else f"{count(seen.n_stubborn, 'stubborn token')} left"
    return f"{result} after {seen.steps:,} steps, {format_seconds(seen.seconds)}"


def _step_text(step: StepReport) -> str:
    return (
        f"step {step.step:,}: {step.n_stubborn:,} of {count(step.n_tokens, 'token')} stubborn, "
        f"loss {step.loss:.3f}, min p {format_probability(step.min_probability)}, "
        + ("" if step.drift is None else f"drift {step.drift:+.3f}, ")
        + format_seconds(step.seconds)
    )


def _left(step: StepReport, first: StepReport, plan: Plan | None) -> str:
    """Time left at the pace since the first report. Empty before there is a pace, and at the end."""
    if step.evaluated or not first.step < step.step:
        return ""
    planned = None if plan is None or plan.prediction is None else plan.prediction.steps
    demand = None if plan is None or first.step == 1 else plan.demand
    began = first.loss if demand is None else demand.base_loss  # the first report of a run that goes on comes late
    expected = steps_in_all(planned, step.step, step.loss / began)
    each = (step.seconds - first.seconds) / (step.step - first.step)
    lo, point, hi = (format_seconds(each * (n - step.step)) for n in (expected.lo, expected.point, expected.hi))
    return f", about {point} left ({lo} to {hi})"
