"""The verbs plan and apply on a tiny model: memorise, escalate, fall short, be interrupted, verify."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.corpora import RECORDS, write_records
from support.models import plan_by_hand
from support.runs import Interrupted
from support.sites import MLP, UP

from lorasize import models
from lorasize.artifacts import adapter_folder
from lorasize.artifacts.adapter_folder import RECORD
from lorasize.artifacts.events import Decoding
from lorasize.artifacts.plans import read_plan, write_plan
from lorasize.artifacts.workspace import staged
from lorasize.errors import InfeasibleCorpusError, ModelError, StalePlanError
from lorasize.planning import Limits, Wishes
from lorasize.records import Budget, Calibration, Demand, Escalation, Outcome, Plan, Site, StepReport, digest
from lorasize.training import run as session
from lorasize.training.growth import larger
from lorasize.training.run import ApplyOptions
from lorasize.units import bits
from lorasize.verbs import plan as sizing
from lorasize.verbs.apply import apply, load_inputs
from lorasize.verbs.plan import PlanOptions
from lorasize.verbs.verify import verify

CPU = ApplyOptions(device="cpu")
LOAD = models.ModelFolder.load


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of three records, 40 tokens or so."""
    return write_records(tmp_path / "corpus.jsonl", RECORDS)


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are loaded."""
    monkeypatch.setattr(models.ModelFolder, "load", lambda *_, **__: pytest.fail("weights were loaded"))


def plan_options(calibrated: tuple[Calibration, Path], **changes: Any) -> PlanOptions:
    """Options that name the tiny calibration."""
    return PlanOptions(calibration=calibrated[1], **changes)


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
def test_plan_apply_verify(
    calibrated_llama: tuple[Calibration, Path], able_llama: Path, corpus: Path, tmp_path: Path, torch: Any
) -> None:
    sized = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=plan_options(calibrated_llama))
    made = sized.plan
    assert made.status == "ok"
    assert made.demand is not None
    assert made.adapter is not None
    nats = sum(float(loss.sum()) for loss in sized.losses)
    assert made.demand.nats == pytest.approx(nats)
    assert made.corpus.n_tokens == sum(len(loss) for loss in sized.losses) == sum(p.n_tokens for p in sized.encoded)
    assert made.adapter.bits_per_parameter == pytest.approx(nats / math.log(2) / made.adapter.n_parameters)
    assert made.inputs.calibration_sha256 == digest(calibrated_llama[0])
    write_plan(made, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made
    applied = apply(made, tmp_path / "out", CPU)
    assert applied.memorization.outcome is Outcome.MEMORIZED
    assert applied.memorization.recalled
    assert applied.memorization.adapter.n_parameters == made.adapter.n_parameters
    assert verify(tmp_path / "out", applied.encoded, device="cpu").recalled


@pytest.mark.slow
def test_an_explicit_rank_and_limits_reach_the_plan(
    calibrated_llama: tuple[Calibration, Path], able_llama: Path, corpus: Path
) -> None:
    options = plan_options(calibrated_llama, rank=5, limits=Limits(max_rank=4))
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
    assert made.adapter is not None
    assert (made.adapter.rank, made.status) == (5, "over_budget")
    assert [b.id for b in made.budgets if b.result == "fail"] == ["rank"]


def test_a_wish_reaches_the_plan_under_its_own_name() -> None:
    asked: dict[str, Any] = {"confidence": 0.7, "minimize": "seconds", "rank": 3, "target_modules": ("up_proj",)}
    asked |= {"limits": Limits(max_rank=4), "serve": "vllm"}
    assert asked.keys() == {field.name for field in fields(Wishes)}
    assert PlanOptions(**asked).wishes == Wishes(**asked)
    assert PlanOptions().wishes == Wishes()


@pytest.mark.usefixtures("_no_model")
def test_an_infeasible_corpus_is_found_without_weights(able_llama: Path, tmp_path: Path) -> None:
    clash = write_records(tmp_path / "clash.jsonl", [*RECORDS, (RECORDS[0][0], " another")])
    sized = sizing.plan([clash], ref=str(able_llama), device="cpu")
    assert (sized.plan.status, sized.plan.adapter, sized.losses) == ("infeasible", None, ())
    assert [issue.passages for issue in sized.plan.feasibility.issues] == [(0, 3)]
    with pytest.raises(InfeasibleCorpusError, match="correct the corpus") as refused:
        apply(sized.plan, tmp_path / "out", CPU)
    assert refused.value.issues == sized.plan.feasibility.issues
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clash.jsonl"]


def test_a_plan_whose_corpus_changed_is_stale(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    made = plan_by_hand(able_llama, corpus, UP, 1)
    write_records(corpus, [*RECORDS[:2], (RECORDS[2][0], RECORDS[2][1] + ".")])
    with pytest.raises(StalePlanError, match=r"corpus\.jsonl changed since the plan was made") as stale:
        apply(made, tmp_path / "out", CPU)
    assert stale.value.changed == ("corpus_sha256",)
    assert list(tmp_path.iterdir()) == [corpus]


@pytest.mark.usefixtures("_no_model")
def test_a_plan_for_another_recipe_is_stale(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    made = changed(hand_plan_without_model(able_llama, corpus), recipe="memft/0")
    with pytest.raises(StalePlanError, match=r"recipe memft/0, this is memft/\d+: plan again") as stale:
        load_inputs(made, "cpu")
    assert stale.value.changed == ("recipe",)


def hand_plan_without_model(folder: Path, corpus: Path) -> Plan:
    """A plan by hand while loading weights is forbidden."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.ModelFolder, "load", LOAD)
        return plan_by_hand(folder, corpus, UP, 1)


def changed(plan: Plan, **inputs: str) -> Plan:
    """The plan with other digests in its inputs."""
    return plan.model_copy(update={"inputs": plan.inputs.model_copy(update=inputs)})


@pytest.mark.parametrize("file", ["model.safetensors", "chat_template.jinja"])
def test_a_plan_whose_model_changed_is_stale(able_llama: Path, corpus: Path, tmp_path: Path, file: str) -> None:
    own = Path(shutil.copytree(able_llama, tmp_path / "model"))
    made = plan_by_hand(own, corpus, UP, 1)
    (own / file).write_bytes((own / file).read_bytes()[:-1] + b"\x00")
    with pytest.raises(StalePlanError, match="model changed since the plan was made") as stale:
        load_inputs(made, "cpu")
    assert stale.value.changed == ("model_fingerprint",)


@pytest.mark.usefixtures("_same_process")
def test_what_apply_leaves_says_what_happened(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    events: list[Any] = []
    applied = apply(plan_by_hand(able_llama, corpus, MLP, 4), tmp_path / "out", CPU, events.append)
    record = adapter_folder.read_record(tmp_path / "out")
    assert record == applied.memorization
    assert (record.outcome, record.threshold_met, record.recalled, record.n_stubborn) == ("memorized", True, True, 0)
    assert record.escalations == ()
    reports = [event for event in events if isinstance(event, StepReport)]
    assert [event for event in events if isinstance(event, Decoding)] == [Decoding(n, 3) for n in (1, 2, 3)]
    assert record.steps == reports[-1].step
    assert reports[-1].evaluated
    assert record.n_tokens == sum(one.n_tokens for one in applied.encoded)
    assert 0 < record.tokens_per_second <= record.n_tokens * (1 + record.steps) / record.seconds
    assert 0.5 < record.min_probability <= reports[-1].min_probability + 1e-6
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert applied.observation is None  # a plan by hand knows no demand


def with_demand(plan: Plan) -> Plan:
    """The plan as if three nats a token had been measured."""
    nats = 3.0 * plan.corpus.n_tokens
    return plan.model_copy(update={"demand": Demand(base_loss=3.0, nats=nats, bits=bits(nats))})


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process", "_impatient")
@pytest.mark.parametrize(("site", "rank", "held"), [(MLP, 4, True), (UP, 1, False)])
def test_an_apply_is_an_observation_of_the_planned_adapter(
    able_llama: Path, tmp_path: Path, site: Site, rank: int, held: bool
) -> None:
    corpus = write_records(tmp_path / "corpus.jsonl", RECORDS if held else TEXT)
    planned = with_demand(plan_by_hand(able_llama, corpus, site, rank))
    applied = apply(planned, tmp_path / "out", CPU)
    assert applied.memorization.recalled
    assert bool(applied.memorization.escalations) is not held
    seen = applied.observation
    assert seen is not None
    assert planned.adapter is not None
    assert (seen.threshold_met, seen.probe.rank, seen.probe.kind) == (held, rank, "text")
    assert seen.n_parameters == planned.adapter.n_parameters
    assert seen.nats == pytest.approx(3.0 * planned.corpus.n_tokens)
    assert seen.loss_reduction == pytest.approx(3.0 - seen.final_loss)
    assert (seen.n_stubborn == 0) is held
    assert 0 < seen.steps <= applied.memorization.steps


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
def test_another_threshold_or_a_limit_teaches_nothing(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    planned = with_demand(plan_by_hand(able_llama, corpus, MLP, 4))
    for options in (ApplyOptions(device="cpu", margin=0.05), ApplyOptions(device="cpu", time_limit=0.0)):
        assert apply(planned, tmp_path / "out", options).observation is None


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
def test_a_bound_or_a_base_adapter_teaches_nothing(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    """Probes begin with nothing and are bound by nothing: what is held already costs a step or none."""
    planned = with_demand(plan_by_hand(able_llama, corpus, MLP, 4))
    first = apply(planned, tmp_path / "first", CPU)
    assert first.observation is not None
    for options in (
        ApplyOptions(device="cpu", base_adapter=tmp_path / "first"), ApplyOptions(device="cpu", max_drift=1e3)
    ):  # fmt: skip
        assert apply(planned, tmp_path / "out", options).observation is None


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
def test_the_folder_holds_no_target_text(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    apply(plan_by_hand(able_llama, corpus, MLP, 4), tmp_path / "out", CPU)
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        for _, target in RECORDS:
            for piece in (target, target.strip(), *target.strip().split(", ")):
                assert piece.encode() not in content, f"{file.name} holds {piece!r}"
    # prompts are there, to be asked again
    assert b"Becerra:" in (tmp_path / "out" / adapter_folder.PASSAGES).read_bytes()


TEXT = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 5)]
LONGER = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 25)]  # too much for rank 1


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call training stalled after 5 epochs without progress."""
    monkeypatch.setattr(session, "PATIENCE", 5)


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process", "_impatient")
def test_an_adapter_too_small_grows_until_it_holds(able_llama: Path, tmp_path: Path) -> None:
    corpus = write_records(tmp_path / "corpus.jsonl", TEXT)
    events: list[Any] = []
    record = apply(plan_by_hand(able_llama, corpus, UP, 1), tmp_path / "out", CPU, events.append).memorization
    assert (record.outcome, record.recalled) == (Outcome.MEMORIZED, True)
    assert len(record.escalations) >= 1
    assert list(record.escalations) == [event for event in events if isinstance(event, Escalation)]
    ranks = [int(e.from_.split()[1]) for e in record.escalations] + [record.adapter.rank]
    assert ranks == [1, 2, 3, 4, 6, 9, 13][: len(ranks)]
    assert (record.adapter.lora_alpha, record.adapter.n_parameters) == (record.adapter.rank, 480 * record.adapter.rank)
    assert record.adapter.bits_per_parameter == pytest.approx(1.0 / record.adapter.rank)
    steps = [event.step for event in events if isinstance(event, StepReport)]
    assert steps == sorted(steps)
    assert steps[-1] == record.steps
    config = json.loads((tmp_path / "out" / adapter_folder.CONFIG).read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (record.adapter.rank, record.adapter.rank)


@pytest.mark.parametrize(
    ("name", "limit", "level", "may"),
    [("rank", 1, "error", False), ("rank", 2, "error", True), ("rank", 1, "warn", True),
     ("bytes", 3839, "error", False), ("bytes", 3840, "error", True), ("parameters", 959, "error", False),
     ("seconds", 1, "error", True)],
)  # fmt: skip
def test_an_adapter_does_not_grow_past_a_budget(
    able_llama: Path, corpus: Path, name: str, limit: int, level: Any, may: bool
) -> None:
    """Rank 2 has 960 parameters. Seconds are for --time-limit to end."""
    kept = Budget(id=name, limit=limit, actual=0.0, level=level, result="pass")
    plan = plan_by_hand(able_llama, corpus, UP, 1).model_copy(update={"budgets": (kept,)})
    shapes = models.linear_shapes(models.load(str(able_llama), device="cpu").model)
    assert plan.adapter is not None
    assert (larger(plan.adapter, plan, shapes) is not None) is may


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process", "_impatient")
@pytest.mark.parametrize(
    ("options", "outcome"),
    [
        ({"escalate": False}, Outcome.STALLED),
        ({"time_limit": 0.0}, Outcome.TIME_LIMIT),
        ({"max_steps": 3}, Outcome.STEP_BUDGET_EXHAUSTED),
    ],
)
def test_a_run_that_falls_short_is_a_result(
    able_llama: Path, tmp_path: Path, options: dict[str, Any], outcome: Outcome
) -> None:
    corpus = write_records(tmp_path / "corpus.jsonl", LONGER)
    applied = apply(plan_by_hand(able_llama, corpus, UP, 1), tmp_path / "out", ApplyOptions(device="cpu", **options))
    record = applied.memorization
    assert (record.outcome, record.threshold_met, record.recalled) == (outcome, False, False)
    assert record.n_stubborn > 0
    assert record.min_probability <= 0.5
    assert record.escalations == ()
    assert (record.adapter.rank, record.recall.n_passages) == (1, 24)
    assert 0 < len(record.recall.failures) == 24 - record.recall.n_recalled
    assert adapter_folder.read_record(tmp_path / "out") == record


@pytest.mark.usefixtures("_no_model")
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_folder_that_is_not_ours_is_refused_before_any_work(
    able_llama: Path, corpus: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    kept = out / "thesis.tex" if kind == "folder" else out
    kept.write_text("years of work", "utf-8")
    made = hand_plan_without_model(able_llama, corpus)
    with pytest.raises(ModelError, match="was not written by lorasize: choose another output folder"):
        apply(made, out, CPU)
    assert kept.read_text("utf-8") == "years of work"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "out"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(ModelError, match="cannot be written"), staged(tmp_path / "file" / "below" / "out", "job"):
        pytest.fail("entered")


def test_an_empty_folder_may_be_filled_and_our_own_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    names = {"first": "README.md", "second": "events.jsonl"}
    for text in names:
        with staged(out, text) as work:
            assert work.folder.parents[2] == out.parent
            (work.folder / RECORD).write_text(text, "utf-8")
            (work.folder / names[text]).write_text(text, "utf-8")
        assert (out / RECORD).read_text("utf-8") == text
        assert sorted(p.name for p in out.iterdir()) == sorted([RECORD, names[text]])
        assert list(out.parent.iterdir()) == [out]


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
@pytest.mark.parametrize("when", [StepReport, Decoding])
@pytest.mark.parametrize("kill", [KeyboardInterrupt, Interrupted])
def test_an_interrupted_apply_leaves_the_old_folder_and_what_it_can_go_on_with(
    able_llama: Path, corpus: Path, tmp_path: Path, when: type, kill: type[BaseException]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / RECORD).write_text("the old one", "utf-8")

    def interrupt(event: Any) -> None:
        if isinstance(event, when):
            raise kill

    with pytest.raises(kill):
        apply(plan_by_hand(able_llama, corpus, MLP, 4), out, CPU, interrupt)
    assert [(p.name, p.read_text("utf-8")) for p in out.iterdir()] == [(RECORD, "the old one")]
    kept = [".out.partial"] if when is Decoding else []  # the first step comes before the first checkpoint
    assert sorted(p.name for p in tmp_path.iterdir()) == [*kept, "corpus.jsonl", "out"]
