"""The log of an apply: what is kept of it when a run goes on from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.records import step

from lorasize.artifacts.events import Decoding, Event, EventLog, Raised, read_steps
from lorasize.records import Escalation


def grown(at: int) -> Escalation:
    """The adapter grew after this step."""
    return Escalation(**{"from": "rank 1"}, to="rank 2", step=at)


BEFORE: list[Event] = [step(1), step(2), grown(2), step(3)]
LAST_LOOK = step(3, evaluated=True)
AFTER: list[Event] = [Decoding(1, 2), Raised(0.6, 0.1), step(4)]


def names(path: Path) -> list[str]:
    """The kind of each line, and the step where it has one."""
    events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [f"{e['event']} {e['step']}" if "step" in e else e["event"] for e in events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The log of a run that was killed after all of this."""
    log = EventLog(tmp_path / "events.jsonl", lambda event: None)
    for event in (*BEFORE, LAST_LOOK, *AFTER):
        log(event)
    return tmp_path / "events.jsonl"


@pytest.mark.parametrize(
    ("n_steps", "ended", "kept"),
    [
        (0, False, []),
        (2, False, ["step 1", "step 2", "escalation 2"]),
        (3, False, ["step 1", "step 2", "escalation 2", "step 3"]),
        (3, True, ["step 1", "step 2", "escalation 2", "step 3", "step 3"]),
        (4, False, ["step 1", "step 2", "escalation 2", "step 3", "step 3", "decoding", "raised", "step 4"]),
    ],
)
def test_what_came_before_the_checkpoint_is_kept(path: Path, n_steps: int, ended: bool, kept: list[str]) -> None:
    heard: list[Event] = []
    log = EventLog(path, heard.append, n_steps, ended=ended)
    assert names(path) == kept
    assert log.steps == read_steps(path)
    log(step(9))
    assert (names(path), heard) == ([*kept, "step 9"], [step(9)])


def test_a_line_cut_short_ends_what_is_kept(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])
    EventLog(path, lambda event: None, 99)
    assert names(path)[-1] == "raised"
