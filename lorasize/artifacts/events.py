"""What happens during an apply, one JSON object a line, as it happens: `events.jsonl` in the adapter folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorasize.artifacts.files import read_text, write_whole
from lorasize.records import Escalation, StepReport

EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Decoding:
    """Progress of the proof: passages decoded so far."""

    done: int
    total: int


@dataclass(frozen=True)
class Measuring:
    """Progress of the statistics on general text, which are taken once for each model: batches run so far."""

    done: int
    total: int


@dataclass(frozen=True)
class Raised:
    """Training goes on for a larger margin: decoding shifts ln p by up to `gap` nats, so every p is to exceed `to`.

    `engine`: what decodes; None for transformers.
    """

    to: float
    gap: float
    engine: str | None = None


@dataclass(frozen=True)
class Noted:
    """Something about this model that a user should know, said once."""

    message: str


Event = StepReport | Escalation | Measuring | Decoding | Raised | Noted
Notify = Callable[[Event], None]


class EventLog:
    """A listener that writes each event to a file, remembers the steps, and tells the next listener."""

    def __init__(self, path: Path, notify: Notify, n_steps: int = 0, *, ended: bool = False) -> None:
        """Write to `path`, behind what happened up to a checkpoint of `n_steps` steps when a run goes on from there.

        The last look at every token, after those steps, is part of it only where training had `ended`.
        """
        kept = list(_up_to(path, n_steps, ended=ended))
        self.steps = [step for _, step in kept if step is not None]
        self._notify = notify
        self._path = path
        write_whole("".join(f"{line}\n" for line, _ in kept).encode(), path)

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
    if isinstance(event, Measuring):
        return {"event": "measuring", **asdict(event)}
    if isinstance(event, Raised):
        return {"event": "raised", **asdict(event)}
    if isinstance(event, Noted):
        return {"event": "noted", **asdict(event)}
    kind = "step" if isinstance(event, StepReport) else "escalation"
    return {"event": kind, **event.model_dump(mode="json", by_alias=True)}


def read_steps(path: Path) -> list[StepReport]:
    """The training steps noted in a file, up to a line that cannot be read; none where there is no such file."""
    return [step for _, step in _lines(path) if step is not None]


def _up_to(path: Path, n_steps: int, *, ended: bool) -> Iterator[tuple[str, StepReport | None]]:
    for line, step in _lines(path):
        last_look = step is not None and step.step == n_steps and step.evaluated
        if step is not None and (step.step > n_steps or (last_look and not ended)):
            return
        yield line, step
        if last_look:
            return


def _lines(path: Path) -> Iterator[tuple[str, StepReport | None]]:
    """Each line, and the step that it notes, if one."""
    try:
        for line in read_text(path).splitlines():
            event = json.loads(line)
            yield line, StepReport.model_validate(event) if event.pop("event") == "step" else None
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return  # no such file, a line cut short by a kill, or not ours
