"""A training that is interrupted and goes on ends as one that is not; checkpoints, locks, signals and folders."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.corpora import write_records
from support.models import plan_by_hand
from support.runs import Killed, killed_at, same_adapter
from support.sites import MLP, UP

from lorasize import models
from lorasize.artifacts import workspace as staging
from lorasize.artifacts.adapter_folder import RECORD
from lorasize.artifacts.events import EVENTS, read_steps
from lorasize.artifacts.files import write_whole
from lorasize.artifacts.workspace import locked, staged
from lorasize.errors import ModelError
from lorasize.models import adapters
from lorasize.records import Site, StepReport
from lorasize.training import Checkpoint, Trainer, TrainingOptions, read_checkpoint, write_checkpoint
from lorasize.training import run as session
from lorasize.training.interrupts import Deferred
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply

pytestmark = pytest.mark.usefixtures("_same_process")

MANY = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 40)]
FEW = MANY[:4]


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which a shell takes away from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["memft", "memft-sw", "sft"])
def test_a_restored_trainer_takes_the_same_steps(
    torch: Any, able_llama: Path, encode_text: Any, method: Any, tmp_path: Path
) -> None:
    base = models.load(str(able_llama), device="cpu")
    encoded = encode_text("\n\n".join(f"{p}{t} and so on until the end of this line {p}" for p, t in FEW * 4))
    options = TrainingOptions(method=method, max_steps=14, batch_tokens=64)

    def train(at: int | None, start: Checkpoint | None = None) -> tuple[list[StepReport], Any, Checkpoint | None]:
        adapted = adapters.attach(base.model, MLP, 2, 0)
        trainer, taken = Trainer(adapted, encoded, options), []
        assert trainer.steps_per_epoch > 1
        if start is not None:
            trainer.restore(start)

        def note() -> None:
            if at is not None and not taken and trainer.state().state["step"] >= at:
                write_checkpoint(trainer.state(), tmp_path / "c.safetensors")
                taken.append(read_checkpoint(tmp_path / "c.safetensors"))

        seen = list(trainer.steps(note))
        weights = {name: p.detach().clone() for name, p in adapters.parameters(adapted).items()}
        adapters.detach(adapted)
        return seen, weights, taken[0] if taken else None

    whole, weights, middle = train(5)
    assert middle is not None
    rest, again, _ = train(None, middle)
    assert [(r.step, r.loss, r.n_stubborn) for r in rest] == [
        (r.step, r.loss, r.n_stubborn) for r in whole if r.step > middle.state["step"] or r.evaluated
    ]
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize(("records", "site", "rank"), [(FEW, MLP, 2), (MANY, MLP, 3), (FEW, UP, 1)])
def test_a_killed_apply_goes_on_to_the_same_adapter(
    torch: Any, able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: Any, site: Site, rank: int
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 5)  # the last case grows
    plan = plan_by_hand(able_llama, write_records(tmp_path / "c.jsonl", records), site, rank)
    options = ApplyOptions(device="cpu")
    whole = apply(plan, tmp_path / "whole", options)
    seen: list[int] = []
    for step in range(2, whole.memorization.steps, max(1, whole.memorization.steps // 4)):
        with pytest.raises(Killed):
            apply(plan, tmp_path / "cut", options, killed_at(step))
        assert not (tmp_path / "cut").exists()
        assert (tmp_path / ".cut.partial").is_dir()
        seen.append(step)
    again: list[int] = []
    done = apply(plan, tmp_path / "cut", options, lambda e: again.append(e.step) if isinstance(e, StepReport) else None)
    assert again[0] >= seen[-1] - 2 * 3  # what was kept is not trained again: at most one epoch is
    assert same_adapter(torch, tmp_path / "whole", tmp_path / "cut")
    left, right = (run.memorization.model_dump(exclude={"seconds", "tokens_per_second"}) for run in (whole, done))
    assert left == right
    assert [s.model_copy(update={"seconds": 0.0}) for s in done.steps] == [
        s.model_copy(update={"seconds": 0.0}) for s in whole.steps
    ]
    assert read_steps(tmp_path / "cut" / EVENTS) == list(done.steps)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.jsonl", "cut", "whole"]


@pytest.mark.slow
def test_a_run_killed_while_decoding_does_not_train_again(
    able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_by_hand(able_llama, write_records(tmp_path / "c.jsonl", FEW), MLP, 4)
    with monkeypatch.context() as patch:
        patch.setattr("lorasize.verbs.apply.decode_and_compare", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            apply(plan, tmp_path / "out", ApplyOptions(device="cpu"))
    events: list[Any] = []
    record = apply(plan, tmp_path / "out", ApplyOptions(device="cpu"), events.append).memorization
    assert record.recalled
    assert record.steps > 0
    assert not any(isinstance(event, StepReport) for event in events)


@pytest.mark.slow
@pytest.mark.usefixtures("_eager")
def test_another_job_begins_anew(able_llama: Path, tmp_path: Path) -> None:
    plan = plan_by_hand(able_llama, write_records(tmp_path / "c.jsonl", FEW), MLP, 4)
    with pytest.raises(Killed):
        apply(plan, tmp_path / "out", ApplyOptions(device="cpu"), killed_at(3))
    seen: list[int] = []
    apply(
        plan, tmp_path / "out", ApplyOptions(device="cpu", seed=1),
        lambda e: seen.append(e.step) if isinstance(e, StepReport) else None,
    )  # fmt: skip
    assert seen[0] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_loses_nothing(able_llama: Path, tmp_path: Path, number: int) -> None:
    plan = plan_by_hand(able_llama, write_records(tmp_path / "c.jsonl", FEW), MLP, 4)
    steps: list[int] = []

    def listen(event: Any) -> None:
        if isinstance(event, StepReport):
            steps.append(event.step)
            if event.step == 3:
                signal.raise_signal(number)

    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    try:
        with pytest.raises(KeyboardInterrupt):
            apply(plan, tmp_path / "out", ApplyOptions(device="cpu"), listen)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps == [1, 2, 3]  # the step was finished, and no other begun
    apply(plan, tmp_path / "out", ApplyOptions(device="cpu"), listen)
    assert steps[:4] == [1, 2, 3, 4]


def test_a_second_signal_is_obeyed_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Deferred() as signals:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        assert signals.waiting
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_nobody_asked_for_is_obeyed_in_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]


def test_other_threads_cannot_defer() -> None:
    seen: list[bool] = []

    def elsewhere() -> None:
        with Deferred() as signals:
            seen.append(signals.waiting)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_a_checkpoint_that_was_cut_short_is_none(torch: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    assert read_checkpoint(path) is None
    write_checkpoint(Checkpoint({"a": torch.arange(5.0)}, {"step": 3}), path)
    found = read_checkpoint(path)
    assert found is not None
    assert (found.tensors["a"].tolist(), found.state) == ([0, 1, 2, 3, 4], {"step": 3})
    data = path.read_bytes()
    for size in (0, 4, 20, len(data) - 1):
        path.write_bytes(data[:size])
        assert read_checkpoint(path) is None


def test_a_file_is_written_whole_and_what_the_dead_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a[1].json"
    dead, alive = tmp_path / ".a[1].json.999999999.part", tmp_path / f".a[1].json.{os.getppid()}.part"
    dead.touch()
    alive.touch()
    write_whole(b"one", path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, path.name])
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space") as caught:
        write_whole(b"two", path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"one"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, path.name])


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    busy = pytest.raises(ModelError, match="another run is at work on it")
    with locked(tmp_path / ".out.lock", "out"), busy, staged(tmp_path / "out", "job"):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RECORD).write_text("old", "utf-8")
    full = pytest.raises(ModelError, match=r"x: cannot be written \(No space.*\); what was there before is whole")
    with full, staged(out, "job") as work:
        work.checkpoint.write_bytes(b"good")
        raise OSError(28, "No space left on device", str(work.folder / "x"))
    assert (out / RECORD).read_text("utf-8") == "old"
    (checkpoint,) = (tmp_path / ".out.partial").glob("*/state.safetensors")
    assert checkpoint.read_bytes() == b"good"
    with staged(out, "other") as work:  # another job leaves it alone
        assert work.checkpoint != checkpoint
    assert checkpoint.read_bytes() == b"good"
    with staged(out, "job") as work:
        assert work.checkpoint == checkpoint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_few_unfinished_jobs_are_kept_the_latest_ones(tmp_path: Path) -> None:
    def begin(k: int) -> None:
        with staged(tmp_path / "out", f"job {k}") as work:
            if k != 6:  # which is killed before its first checkpoint
                work.checkpoint.write_bytes(b"good")
                os.utime(work.checkpoint, (k, k))
            raise Killed

    for k in range(8):
        with pytest.raises(Killed):
            begin(k)
    kept = sorted(int(path.stat().st_mtime) for path in (tmp_path / ".out.partial").glob("*/state.safetensors"))
    assert kept == [2, 3, 4, 5, 7]


def test_the_folder_is_on_the_disk_before_anything_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut a name may be there and the file's content not."""
    happened: list[str] = []
    told = {"flush": lambda path: f"flush {path.name}", "rmtree": lambda path, **_: f"remove {path.name}"}
    plain_flush, plain_remove, plain_replace = staging.flush, shutil.rmtree, os.replace

    def noting(kind: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def note(path: Path, *rest: Any, **how: Any) -> Any:
            happened.append(told[kind](path) if kind in told else f"{kind} {path.name} {rest[0].name}")
            return plain(path, *rest, **how)

        return note

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / RECORD).write_text("old", "utf-8")
    with staged(tmp_path / "out", "job") as work:
        (work.folder / RECORD).write_text("new", "utf-8")
        work.checkpoint.write_bytes(b"good")
        monkeypatch.setattr(staging, "flush", noting("flush", plain_flush))
        monkeypatch.setattr(shutil, "rmtree", noting("rmtree", plain_remove))
        monkeypatch.setattr(os, "replace", noting("rename", plain_replace))
    assert happened == [
        f"flush {RECORD}", "flush folder", "rename out .out.old", "rename folder out", f"flush {tmp_path.name}",
        "remove .out.old", f"remove {work.checkpoint.parent.name}", f"remove {work.checkpoint.parent.name}",
    ]  # fmt: skip


@pytest.mark.parametrize("new", [True, False])
def test_folders_that_were_changing_places_are_settled(tmp_path: Path, new: bool) -> None:
    out, old = tmp_path / "out", tmp_path / ".out.old"
    old.mkdir()
    (old / RECORD).write_text("old", "utf-8")
    if new:
        out.mkdir()
        (out / RECORD).write_text("new", "utf-8")
    with pytest.raises(Killed), staged(out, "job"):
        raise Killed
    assert (out / RECORD).read_text("utf-8") == ("new" if new else "old")
    assert list(tmp_path.iterdir()) == [out]
