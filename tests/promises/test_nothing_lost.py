"""What commands must not write over: folders, proven adapters, unfinished runs, the corpus, links and devices."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import records as made
from support.corpora import RECORDS, write_records
from support.models import plan_by_hand
from support.runs import Killed, killed_at
from support.sites import MLP, UP
from support.verbs import Recorded

from lorasize import cli, models
from lorasize.artifacts import adapter_folder
from lorasize.artifacts.adapter_folder import RECORD
from lorasize.artifacts.files import write_whole
from lorasize.artifacts.plans import read_plan, write_plan
from lorasize.artifacts.workspace import staged
from lorasize.errors import CorpusError, LorasizeError, ModelError, StalePlanError
from lorasize.models import adapters
from lorasize.records import Outcome, Plan, StepReport
from lorasize.training import run as session
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply, load_inputs

CPU = ApplyOptions(device="cpu")


pytestmark = pytest.mark.usefixtures("_folder")


@pytest.fixture
def plan(able_llama: Path) -> Plan:
    """A plan whose adapter holds three records."""
    return plan_by_hand(able_llama, write_records(Path("corpus.jsonl"), RECORDS), MLP, 4)


@pytest.mark.parametrize("name", ["important.txt", "corpus.jsonl", "calibrations"])
def test_a_folder_with_anything_else_in_it_is_not_replaced(tmp_path: Path, name: str) -> None:
    """A report written as lorasize.json makes no project an adapter folder."""
    (tmp_path / RECORD).write_text("{}", "utf-8")
    kept = tmp_path / name
    kept.write_text("years of work", "utf-8") if "." in name else kept.mkdir()
    refused = pytest.raises(ModelError, match=f"holds {name}, which lorasize did not write: move it away")
    with refused, staged(tmp_path, "job"):
        pytest.fail("entered")
    assert kept.exists()


def test_an_adapter_behind_a_link_is_replaced_there(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for text in ("one", "two"):
        with staged(tmp_path / "link", text) as work:
            (work.folder / RECORD).write_text(text, "utf-8")
        assert (tmp_path / "real" / RECORD).read_text("utf-8") == text
    assert (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    refused = pytest.raises(ModelError, match="is a mount point, which cannot be replaced: name a folder in it")
    with refused, staged(tmp_path / "volume", "job"):
        pytest.fail("entered")
    assert list(tmp_path.iterdir()) == [tmp_path / "volume"]


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
def test_a_run_that_proves_nothing_leaves_a_proven_adapter_alone(
    plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apply(plan, Path("adapter"), CPU).memorization.proven
    before = {path.name: path.read_bytes() for path in Path("adapter").iterdir()}
    write_plan(plan, Path("lorasize.plan.json"))
    assert cli.main(["apply", "--device", "cpu", "--no-learn", "--max-steps", "1"]) == 4
    assert "adapter holds a proven adapter and stays as it is" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("adapter").iterdir()} == before
    assert not adapter_folder.read_record(Path("adapter.unproven")).proven
    assert apply(plan, Path("adapter"), ApplyOptions(device="cpu", seed=1)).folder == Path("adapter")
    assert apply(plan, Path("new"), ApplyOptions(device="cpu", max_steps=1)).folder == Path("new")  # nothing to keep


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process", "_eager")
def test_a_refused_command_leaves_another_run_s_checkpoint_alone(plan: Plan, able_llama: Path) -> None:
    with pytest.raises(Killed):
        apply(plan, Path("out"), CPU, killed_at(2))
    other = plan_by_hand(able_llama, write_records(Path("other.jsonl"), RECORDS), MLP, 2)
    write_records(Path("other.jsonl"), RECORDS[:2])
    with pytest.raises(StalePlanError):
        apply(other, Path("out"), CPU)
    steps: list[int] = []
    apply(plan, Path("out"), CPU, lambda e: steps.append(e.step) if isinstance(e, StepReport) else None)
    assert steps[0] > 1


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
@pytest.mark.parametrize("limit", [{"max_steps": 2}, {"time_limit": 1e-9}])
def test_a_limit_that_allows_for_more_lets_a_finished_training_go_on(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, limit: dict[str, Any]
) -> None:
    """Limits are no part of what a checkpoint is of."""
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "save", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            apply(plan, Path("out"), ApplyOptions(device="cpu", **limit))
    record = apply(plan, Path("out"), CPU).memorization
    assert (record.outcome, record.recalled) == (Outcome.MEMORIZED, True)
    steps = [step.step for step in apply(plan, Path("again"), CPU).steps]
    assert record.steps == steps[-1]


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_a_plan_is_not_written_over_its_corpus(
    planned: Callable[..., Recorded], capsys: pytest.CaptureFixture[str], option: str
) -> None:
    asked = planned(made.plan())
    write_records(Path("facts.jsonl"), RECORDS)
    before = Path("facts.jsonl").read_bytes()
    Path("link.jsonl").symlink_to("facts.jsonl")
    for name in ("facts.jsonl", "link.jsonl"):
        value = name if option == "--out" else f"json={name}"
        assert cli.main(["plan", "facts.jsonl", option, value]) == 2
    assert "choose another name" in capsys.readouterr().err
    assert Path("facts.jsonl").read_bytes() == before
    assert asked == {}  # before anything was measured


@pytest.mark.parametrize(("name", "said"), [("notes.txt", "another file is there"), (".", "a folder is there")])
def test_nor_over_anything_else_that_is_no_plan(
    planned: Callable[..., Recorded], calibrated: Recorded, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    planned(made.plan())
    Path("notes.txt").write_text("years of work", "utf-8")
    Path("old.json").write_text("years of work", "utf-8")
    assert cli.main(["plan", "facts.jsonl", "--out", name]) == 2
    assert said in capsys.readouterr().err
    assert cli.main(["calibrate", "--out", "old.json"]) == 2
    assert Path("notes.txt").read_text("utf-8") == Path("old.json").read_text("utf-8") == "years of work"
    assert calibrated == {}
    assert cli.main(["plan", "facts.jsonl", "-q"]) == cli.main(["plan", "facts.jsonl", "-q"]) == 0  # its own it may


def test_a_pipe_is_no_place_for_a_file_and_a_link_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        write_whole(b"x", tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("file")
    write_whole(b"x", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers_to_transform": (1, 99)}, "cannot carry the plan's adapter: layer 99; plan again"),
        ({"target_modules": ("lm_head",)}, "cannot carry the plan's adapter: module lm_head; plan again"),
        ({"target_modules": ()}, "no module or no layer"),
    ],
)
def test_an_edited_adapter_that_fits_nothing_is_refused(plan: Plan, change: dict[str, Any], said: str) -> None:
    assert plan.adapter is not None
    with pytest.raises(ModelError, match=said):
        load_inputs(plan.model_copy(update={"adapter": plan.adapter.model_copy(update=change)}), "cpu")


def test_a_rank_beyond_any_model_is_no_plan(plan: Plan) -> None:
    write_plan(plan, Path("p.json"))
    Path("p.json").write_text(Path("p.json").read_text("utf-8").replace('"rank": 4', '"rank": 2000000000'), "utf-8")
    with pytest.raises(LorasizeError, match="adapter.rank: Input should be less than or equal to 4096"):
        read_plan(Path("p.json"))


def test_digests_that_disagree_are_said(plan: Plan) -> None:
    wrong = plan.model_copy(update={"inputs": plan.inputs.model_copy(update={"corpus_sha256": "0" * 64})})
    with pytest.raises(StalePlanError, match="the plan's own digests disagree: plan again"):
        load_inputs(wrong, "cpu")


def test_a_plan_may_be_applied_to_its_model_in_another_place(
    plan: Plan, able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def stop(self: Any, checkpoint: Any = None) -> None:
        seen.append(self.base.ref)
        raise ModelError("enough")

    monkeypatch.setattr(session.Session, "run", stop)
    moved = plan.model_copy(update={"model": plan.model.model_copy(update={"ref": "./elsewhere"})})
    write_plan(moved, Path("lorasize.plan.json"))
    monkeypatch.setenv("LORASIZE_MODEL", "./configured")  # is for plans to come
    assert cli.main(["apply", "--device", "cpu"]) == 2
    assert "./elsewhere: no such model" in capsys.readouterr().err
    assert cli.main(["apply", "--device", "cpu", "--model", str(able_llama)]) == 2
    assert seen == [str(able_llama)]


@pytest.mark.parametrize(
    "line",
    [
        "plan facts.jsonl --rank 9999999999", "plan facts.jsonl --max-parameters " + "9" * 400,
        "apply --seed 99999999999999999999999", "calibrate --seed -1", "apply --device meta",
    ],
)  # fmt: skip
def test_strange_values_are_2(plan: Plan, line: str) -> None:
    write_plan(plan, Path("lorasize.plan.json"))
    write_records(Path("facts.jsonl"), RECORDS)
    assert cli.main(line.split()) == 2


def test_a_name_that_is_not_utf8_is_refused(able_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(os.fsdecode(b"\xff\xfe.txt")).write_text("text", "utf-8")
    assert cli.main(["plan", os.fsdecode(b"\xff\xfe.txt"), "--model", str(able_llama)]) == 2
    assert "its name is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_retained_is_a_file(plan: Plan, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo("text")
    retain = Path("text" if kind == "pipe" else "/dev/zero")
    with pytest.raises(CorpusError, match="not a regular file, so it is not read"):
        apply(plan, Path("out"), ApplyOptions(device="cpu", retain=retain))


def test_an_index_that_leads_out_of_the_folder_is_refused(able_llama: Path, tmp_path: Path) -> None:
    """The fingerprint is of the weights in the folder: others must not be loaded."""
    import json
    import shutil

    base = Path(shutil.copytree(able_llama, tmp_path / "base"))
    index = base / "model.safetensors.index.json"
    (base / "sub").mkdir()
    shutil.copy(base / "model.safetensors", base / "sub" / "real.safetensors")
    for name in ("sub/real.safetensors", "missing.safetensors"):
        index.write_text(json.dumps({"weight_map": {"a": name}}), "utf-8")
        with pytest.raises(ModelError, match="which is no file beside it"):
            models.resolve(str(base))
    index.write_text('{"weight_map": []}', "utf-8")
    with pytest.raises(ModelError, match="damaged"):
        models.resolve(str(base))
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}), "utf-8")
    assert models.resolve(str(base)) == base


def test_a_full_disk_is_told_by_words_where_it_has_no_number(
    plan: Plan, able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from safetensors import SafetensorError

    adapted = adapters.attach(models.load(str(able_llama), device="cpu").model, UP, 1, 0)
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    monkeypatch.setattr(PeftModel, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left") as told:
        adapters.save(adapted, tmp_path, "tiny")
    assert told.value.errno == 28
