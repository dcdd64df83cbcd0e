"""Progress: what piped output says now and then, what a terminal shows live, and the time left."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.records import plan, prediction, step

from lorasize import records as r
from lorasize import report
from lorasize.artifacts.events import Measuring
from lorasize.report import progress as progress_module


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_piped_progress_is_first_now_and_then_and_last(clock: list[float]) -> None:
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        for number in range(1, 22):
            progress.event(step(number))
            clock[0] += 1.0
    steps = [int(line.split(":")[0].split()[1]) for line in stream.getvalue().splitlines()]
    assert steps == [1, 6, 11, 16, 21]


def test_piped_progress_does_not_say_the_last_step_twice(clock: list[float]) -> None:
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        progress.event(step(1))
        progress.event(step(2))
        progress.event(step(3, evaluated=True))
    said = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in said] == ["step 1", "step 3"]
    assert said[0] == "step 1: 12 of 768 tokens stubborn, loss 0.500, min p 0.1000, 1.0 s"


def test_progress_says_the_time_left_by_the_plan_and_by_the_loss(clock: list[float]) -> None:
    """At the pace since the first report: what happens once, before the first step, is no part of it."""
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        progress.expect(plan(prediction=prediction(steps=r.Estimate(point=100, lo=50, hi=200))))
        for number, loss in ((1, 4.0), (2, 3.9), (60, 0.4), (90, 0.08)):
            progress.event(step(number).model_copy(update={"seconds": 90 + 2.0 * number, "loss": loss}))
            clock[0] += 10
        progress.event(step(95, evaluated=True))
    said = [line.partition(" s, about ")[2] for line in stream.getvalue().splitlines()]
    assert said == [
        "",
        "2 min 47 s left (53 s to 8 min 35 s)",
        "1 min 20 s left (15 s to 3 min 12 s)",
        "36 s left (3.6 s to 1 min 45 s)",
        "",
    ]


def test_every_finished_probe_is_said(clock: list[float]) -> None:
    spec = r.ProbeSpec(
        target_modules=("up_proj",), layers_to_transform=(20,), rank=2, kind="random", n_tokens=300, seed=0, max_steps=9
    )
    seen = r.Observation(
        probe=spec, n_parameters=9, base_loss=14, final_loss=1, loss_reduction=13, n_stubborn=41, threshold_met=False,
        steps=9, seconds=11, seconds_per_step=1, peak_memory_bytes=1,
    )  # fmt: skip
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        for done in (1, 2):
            progress.probe(SimpleNamespace(done=done - 1, total=12, spec=spec, observation=None, seconds_left=90.0))  # type: ignore[arg-type]
            progress.probe(SimpleNamespace(done=done, total=12, spec=spec, observation=seen, seconds_left=90.0))  # type: ignore[arg-type]
    said = stream.getvalue().splitlines()
    what = "rank 2, up_proj, layer 20, 300 random tokens"
    assert said == [
        f"probe 1 of 12: {what}, about 1 min 30 s left",
        f"probe 1 of 12: {what}: 41 stubborn tokens left after 9 steps, 11 s",
        f"probe 2 of 12: {what}: 41 stubborn tokens left after 9 steps, 11 s",
    ]


def test_escalation_and_decoding_are_said(clock: list[float]) -> None:
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        progress.event(r.Escalation(**{"from": "rank 1"}, to="rank 2", step=90))
        progress.event(SimpleNamespace(done=2, total=2))  # type: ignore[arg-type]
    assert stream.getvalue().splitlines() == [
        "step 90: training stalled, the adapter grows from rank 1 to rank 2",
        "decoded 2 of 2 passages",
    ]


def test_statistics_on_general_text_say_their_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        for done in range(3):
            progress.event(Measuring(done, 3))
            clock[0] += 20.0
    what = "statistics of the model on general text, once for each model: part"
    assert stream.getvalue().splitlines() == [
        f"{what} 1 of 3",
        f"{what} 2 of 3, about 40 s left",
        f"{what} 3 of 3, about 20 s left",
    ]


def test_quiet_progress_says_nothing() -> None:
    stream = io.StringIO()
    with report.Progress(quiet=True, stream=stream) as progress:
        progress.event(step(1))
        progress.note("wrote it")
        progress.heading("stage")
        progress.decoded(1, 1)
    assert stream.getvalue() == ""


def test_progress_is_guarded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    stream = io.StringIO()
    with report.Progress(stream=stream) as progress:
        progress.note("::error::x \x1b[2J[bold]")
    assert stream.getvalue() == ": :error::x [bold]\n"


def everything(terminal: int) -> str:
    """All that is written to a pseudo-terminal until its other end is closed."""
    said = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux says end of file this way
            return said.decode()
        if not part:
            return said.decode()
        said += part


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_terminal_gets_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty

    monkeypatch.setenv("TERM", "xterm")
    master, slave = pty.openpty()
    with ThreadPoolExecutor() as pool:
        read = pool.submit(everything, master)  # meanwhile: a terminal holds little, and a slow one is redrawn often
        with open(slave, "w", encoding="utf-8") as stream, report.Progress(stream=stream) as progress:
            for number in range(1, 4):
                progress.event(step(number))
            progress.note("wrote [it]")
        said = read.result()
    os.close(master)
    assert "wrote [it]" in said
    assert "step 3:" in said
    assert "\x1b[2K" in said  # the live line is taken away again
