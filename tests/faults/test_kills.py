"""SIGKILL at seeded moments, thirty of apply and twelve of calibrate: the same command goes on to the same result.

A process is killed after a time drawn from the length of an uninterrupted run, and started again with the same
arguments, until it ends; then a new run begins, until there were so many kills, of which some found work to be kept.
Nothing that was written down is done again, and no file is left behind. The times follow the machine, which may be
busier or quieter than when the length was measured: longer ones after a kill, shorter ones after an end.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from support import faults as work
from support.models import plan_by_hand
from support.patience import HANGS

from lorasize.artifacts import adapter_folder
from lorasize.artifacts.calibrations import read_calibration
from lorasize.artifacts.events import EVENTS, read_steps
from lorasize.artifacts.plans import write_plan
from lorasize.records import Calibration, Memorization, Site, StepReport
from lorasize.training import read_checkpoint

pytestmark = pytest.mark.slow

KILLS_OF_APPLY, KILLS_OF_CALIBRATE = 30, 12  # a calibration takes longer
KEEPING = 3  # kills that found something to be kept, at least
RUNS = 300  # with so many and too few of those, nothing is ever kept
LATER, SOONER = 1.1, 0.8  # so that a run is killed twice or three times
UP = Site(target_modules=("up_proj",), layers_to_transform=(1, 2))
RECORDS = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 13)]


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., BaseProcess]]:
    """`start(function, *arguments)` runs it in a new process with torch loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lorasize.verbs.apply", "lorasize.verbs.calibrate"])
    started: list[BaseProcess] = []

    def begin(function: Callable[..., None], *arguments: str) -> BaseProcess:
        process = context.Process(target=function, args=arguments)
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def timed(process: BaseProcess) -> float:
    """Seconds until a process has ended well."""
    began = time.monotonic()
    process.join(HANGS)
    assert process.exitcode == 0
    return time.monotonic() - began


def killed(process: BaseProcess, after: float) -> bool:
    """Whether the process was still at work after so many seconds, and was killed."""
    process.join(after)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return False
    process.kill()
    process.join()
    return process.exitcode != 0  # it may have ended just before


def everything(folder: Path) -> list[str]:
    """Names of all that lies in the folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_apply_survives_kills(
    start: Callable[..., BaseProcess], able_llama: Path, tmp_path: Path, torch: Any, request: pytest.FixtureRequest
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in RECORDS), "utf-8")
    plan = tmp_path / "plan.json"
    write_plan(plan_by_hand(able_llama, corpus, UP, 4), plan)
    timed(start(work.apply_here, str(plan), str(tmp_path / "warm" / "adapter")))
    whole = tmp_path / "whole" / "adapter"
    length = timed(start(work.apply_here, str(plan), str(whole)))
    draw, span, kills, keeping, runs = random.Random(1), length, 0, 0, 0
    while kills < KILLS_OF_APPLY or keeping < KEEPING:
        runs += 1
        assert runs < RUNS
        out = tmp_path / f"run{runs}" / "adapter"
        kept: list[StepReport] = []
        while killed(start(work.apply_here, str(plan), str(out)), draw.uniform(0, span)):
            kills, span = kills + 1, span * LATER
            if out.exists():  # killed when all was in place: the next one is a new run
                kept = []
                continue
            (job,) = list((out.parent / ".adapter.partial").glob("*")) or [out.parent / "nothing yet"]
            found = read_checkpoint(job / "state.safetensors")
            steps = read_steps(job / "folder" / EVENTS)
            if found is not None and steps:
                assert steps[: len(kept)] == kept  # with the same seconds: what was kept is not trained again
                kept = [step for step in steps if step.step <= found.state["steps"] and not step.evaluated]
            keeping += bool(kept)
        span *= SOONER
        assert read_steps(out / EVENTS)[: len(kept)] == kept
        assert_same_run(torch, whole, out)
        assert everything(out.parent) == everything(whole.parent)
        shutil.rmtree(out.parent)
    print(f"\napply: {kills} kills in {runs} runs of {length:.1f} s, all gone on to the same adapter")


def assert_same_run(torch: Any, whole: Path, out: Path) -> None:
    """The same weights, outcome and recall; times differ."""
    from safetensors.torch import load_file

    left, right = load_file(whole / adapter_folder.WEIGHTS), load_file(out / adapter_folder.WEIGHTS)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=1e-5, atol=1e-6)
    a, b = (adapter_folder.read_record(folder) for folder in (whole, out))
    assert untimed(a) == untimed(b)
    assert b.recalled
    assert adapter_folder.changed_files(out) == ()


def untimed(record: Memorization) -> dict[str, Any]:
    return record.model_dump(exclude={"seconds", "tokens_per_second"})


def test_calibrate_survives_kills(start: Callable[..., BaseProcess], able_llama: Path, tmp_path: Path) -> None:
    timed(start(work.calibrate_here, str(able_llama), str(tmp_path / "warm")))
    length = timed(start(work.calibrate_here, str(able_llama), str(tmp_path / "whole")))
    (whole,) = (tmp_path / "whole").iterdir()
    draw, span, kills, keeping, runs = random.Random(2), length / 3, 0, 0, 0
    while kills < KILLS_OF_CALIBRATE or keeping < KEEPING:
        runs += 1
        assert runs < RUNS
        folder, kept = tmp_path / f"run{runs}", {}
        while killed(start(work.calibrate_here, str(able_llama), str(folder)), draw.uniform(0, span)):
            kills, span = kills + 1, span * LATER
            now = journalled(folder)
            if (folder / whole.name).exists() and not now:  # killed when all was done: the next one is a new run
                kept = {}
                continue
            assert {spec: now[spec] for spec in kept if now} == (kept if now else {})  # not measured again
            kept = now or kept
            keeping += bool(kept)
        span *= SOONER
        done = read_calibration(folder / whole.name)
        assert {o.probe.model_dump_json(): o.model_dump_json() for o in done.observations}.items() >= kept.items()
        assert without_times(done) == without_times(read_calibration(whole))
        assert everything(folder) == [whole.name]
    print(f"\ncalibrate: {kills} kills in {runs} runs of {length:.1f} s, all gone on to the same observations")


def journalled(folder: Path) -> dict[str, str]:
    """Finished observations by their probe."""
    found: dict[str, str] = {}
    for journal in folder.glob("*.journal.jsonl"):
        for line in journal.read_text("utf-8").splitlines()[1:]:
            try:
                found[json.dumps(json.loads(line)["probe"], separators=(",", ":"))] = line
            except ValueError:
                continue  # cut short by the kill
    return found


def without_times(calibration: Calibration) -> list[dict[str, Any]]:
    times = {"seconds", "seconds_per_step", "peak_memory_bytes"}
    return [o.model_dump(exclude=times) for o in calibration.observations]
