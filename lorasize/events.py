"""What happens during an apply, one JSON object a line, as it happens: `events.jsonl` in the adapter folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorasize.records import Escalation, StepReport

EVENTS = "events.jsonl"
_MOST = 50_000_000  # characters that are read


@dataclass(frozen=True)
class Decoding:
    """Progress of the proof: passages decoded so far."""

    done: int
    total: int


@dataclass(frozen=True)
class Raised:
    """Training goes on for a larger margin: decoding shifts ln p by up to `gap` nats, so every p is to exceed `to`."""

    to: float
    gap: float


Event = StepReport | Escalation | Decoding | Raised
Notify = Callable[[Event], None]


class EventLog:
    """A listener that writes each event to a file, remembers the steps, and tells the next listener."""

    def __init__(self, path: Path, notify: Notify, n_steps: float = 0) -> None:
        """Write to `path`: behind its first `n_steps` steps when a run goes on from there, behind all when infinite."""
        self.steps = [  # the last look at every token, after the step that the checkpoint is of, is still to come
            step for step in read_steps(path) if step.step < n_steps or (step.step == n_steps and not step.evaluated)
        ]
        self._notify = notify
        self._path = path
        path.write_text("".join(json.dumps(_line(step)) + "\n" for step in self.steps), encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Note one event. The file is closed after each line, so that a reader sees it at once."""
        if isinstance(event, StepReport):
            self.steps.append(event)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_line(event)) + "\n")
        self._notify(event)


def _line(event: Event) -> dict[str, Any]:
    if isinstance(event, Decoding):
        return {"event": "decoding", **asdict(event)}
    if isinstance(event, Raised):
        return {"event": "raised", **asdict(event)}
    kind = "step" if isinstance(event, StepReport) else "escalation"
    return {"event": kind, **event.model_dump(mode="json", by_alias=True)}


def read_steps(path: Path) -> list[StepReport]:
    """The training steps noted in a file, up to a line that cannot be read; none where there is no such file."""
    steps: list[StepReport] = []
    try:
        for line in _text(path).splitlines():
            event = json.loads(line)
            if event.pop("event") == "step":
                steps.append(StepReport.model_validate(event))
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        pass  # a line cut short by a kill, or not ours
    return steps


def _text(path: Path) -> str:
    if not path.is_file():  # to open a pipe is to wait
        return ""
    with path.open(encoding="utf-8") as stream:
        return stream.read(_MOST)
