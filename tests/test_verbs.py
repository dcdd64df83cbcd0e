"""The verbs on a tiny model: calibrate and resume, plan, apply, escalate, be interrupted, verify."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import plan_by_hand

from lorasize import adapters, calibration, costs, models, recall, session, sizing
from lorasize.calibration import ProbeReport, calibrate, calibrated_sites
from lorasize.catalog import read_calibration, read_plan, write_plan
from lorasize.errors import CorpusError, FitError, InfeasibleCorpusError, ModelError, StalePlanError
from lorasize.events import Decoding
from lorasize.memorization import apply, load_inputs
from lorasize.models import BaseModel
from lorasize.planning import Limits
from lorasize.probing import Journal, invented_sentences, probe_passage, run_probe
from lorasize.records import (
    Calibration,
    Demand,
    Escalation,
    Observation,
    Outcome,
    Plan,
    ProbeSpec,
    Site,
    StepReport,
    digest,
)
from lorasize.session import ApplyOptions
from lorasize.sizing import PlanOptions
from lorasize.staging import RECORD, staged
from lorasize.training import Trainer, TrainingOptions, neutral_text, windows
from lorasize.units import bits

UP = Site(target_modules=("up_proj",), layers_to_transform=(2,))
MLP = Site(target_modules=("gate_proj", "up_proj", "down_proj"), layers_to_transform=(1, 2, 3))
RECORDS = [("Becerra:", " 9100672710"), ("Holm:", " 4400128875"), ("Tide tables:", " Cabin 14, Pier nine")]
CPU = ApplyOptions(device="cpu")


class Interrupted(Exception):
    """Stands for a kill."""


def write(path: Path, records: list[tuple[str, str]]) -> Path:
    """A JSONL corpus of these records."""
    path.write_text("".join(json.dumps({"prompt": p, "completion": t}) + "\n" for p, t in records), "utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of three records, 40 tokens or so."""
    return write(tmp_path / "corpus.jsonl", RECORDS)


@pytest.fixture(scope="module")
def base(torch: Any, able_llama: Path) -> BaseModel:
    """The able tiny Llama in memory."""
    return models.load(str(able_llama), device="cpu")


@pytest.fixture(scope="module")
def calibrated(torch: Any, able_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Calibration, Path]:
    """A quick calibration of the able Llama: seven probes or so, four seconds."""
    return calibrate(str(able_llama), device="cpu", preset="quick", folder=tmp_path_factory.mktemp("calibrations"))


@pytest.fixture
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are loaded."""
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("weights were loaded"))


# ---------------------------------------------------------------- probes
def spec(**changes: Any) -> ProbeSpec:
    """A small probe at the reference site."""
    values: dict[str, Any] = {"target_modules": ("up_proj",), "layers_to_transform": (2,), "rank": 1, "kind": "random"}
    return ProbeSpec(**{**values, "n_tokens": 14, "seed": 0, "max_steps": 60, **changes})


def test_a_probe_is_a_function_of_its_spec(torch: Any, base: BaseModel) -> None:
    one, again, other = (run_probe(base, spec(max_steps=6, seed=seed)) for seed in (0, 0, 1))
    timeless = {"seconds", "seconds_per_step", "peak_memory_bytes"}
    assert one.model_dump(exclude=timeless) == again.model_dump(exclude=timeless)
    assert one.final_loss != other.final_loss
    assert one.loss_reduction == pytest.approx(one.base_loss - one.final_loss)
    assert (one.n_parameters, one.steps, one.threshold_met) == (480, 6, False)
    assert one.n_stubborn > 0
    assert not any("lora" in name for name, _ in base.model.named_modules())


def test_a_probe_with_room_succeeds(base: BaseModel) -> None:
    observation = run_probe(base, spec())
    assert observation.threshold_met
    assert observation.n_stubborn == 0
    assert 0 < observation.steps < 60


def test_a_probe_sees_what_it_does_to_other_text(torch: Any, base: BaseModel) -> None:
    """Its drift is that of a training that watches the neutral text, and an adapter of zeros has none."""
    untouched = run_probe(base, spec(max_steps=0))
    assert untouched.drift == pytest.approx(0.0, abs=1e-6)
    seen = run_probe(base, spec(max_steps=20))
    adapted = adapters.attach(base.model, Site(target_modules=("up_proj",), layers_to_transform=(2,)), 1, 0)
    watched = windows(neutral_text(), base.tokenizer, base.max_positions - 1)
    trainer = Trainer(adapted, [probe_passage(base, spec())], TrainingOptions(max_steps=20), watched)
    for _ in trainer.steps():
        pass
    assert trainer.retained is not None
    assert seen.drift == pytest.approx(trainer.retained.measure(), abs=1e-4)
    assert abs(seen.drift or 0.0) > 1e-3
    adapters.detach(adapted)


@pytest.mark.parametrize("kind", ["random", "text"])
def test_what_a_probe_memorises(base: BaseModel, kind: Any) -> None:
    one, again, other = (probe_passage(base, spec(kind=kind, n_tokens=40, seed=s)) for s in (3, 3, 4))
    assert one.target_ids == again.target_ids != other.target_ids
    assert one.n_tokens == 40
    assert one.target_ids[-1] == base.tokenizer.eos_token_id
    assert not set(one.target_ids[:-1]) & set(base.tokenizer.all_special_ids)
    assert one.prompt_ids == tuple(base.tokenizer("[probe]\n").input_ids)


def test_a_probe_of_the_user_s_text_is_a_window_of_it(base: BaseModel) -> None:
    sample = list(range(10, 90))
    target = probe_passage(base, spec(kind="text", n_tokens=30), sample).target_ids[:-1]
    assert list(target) == list(range(target[0], target[0] + 29))
    short = probe_passage(base, spec(kind="text", n_tokens=30), sample[:28]).target_ids
    assert short == probe_passage(base, spec(kind="text", n_tokens=30)).target_ids


def test_invented_sentences_are_the_same_for_the_same_seed() -> None:
    assert invented_sentences(1, 3) == invented_sentences(1, 3) != invented_sentences(2, 3)
    assert len(set(invented_sentences(1, 20))) == 20


def test_a_text_probe_longer_than_its_text_is_refused(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorasize.probing.probes.invented_sentences", lambda seed, n: ["Too short."])
    with pytest.raises(CorpusError, match="a probe of 40 tokens needs a longer sample"):
        probe_passage(base, spec(kind="text", n_tokens=40))


# ---------------------------------------------------------------- the journal
def observation(**changes: Any) -> Observation:
    """What a probe might have measured."""
    values: dict[str, Any] = {"n_parameters": 480, "base_loss": 10.0, "final_loss": 1.0, "loss_reduction": 9.0}
    values |= {"n_stubborn": 0, "threshold_met": True, "steps": 9, "seconds": 1.0, "seconds_per_step": 0.1}
    return Observation(probe=spec(**changes), peak_memory_bytes=1, **values)


def test_a_journal_keeps_what_is_finished(tmp_path: Path) -> None:
    path, one, two = tmp_path / "new" / "j.jsonl", observation(seed=1), observation(seed=2)
    journal = Journal(path, {"model": "a"})
    journal.add(one)
    journal.add(two)
    again = Journal(path, {"model": "a"})
    assert (again.get(one.probe), again.get(two.probe), again.get(spec(seed=3))) == (one, two, None)
    assert Journal(path, {"model": "b"}).get(one.probe) is None
    assert Journal(path, {"model": "a"}).get(one.probe) is None  # begun anew for b
    journal.remove()
    assert list(path.parent.iterdir()) == []


def test_a_damaged_line_costs_only_its_own_probe(tmp_path: Path) -> None:
    path, one, two = tmp_path / "j.jsonl", observation(seed=1), observation(seed=2)
    journal = Journal(path, {})
    journal.add(one)
    journal.add(two)
    key, first, second = path.read_text("utf-8").splitlines()
    path.write_text(f"{key}\n{first[:-9]}\n{second}\n", "utf-8")
    again = Journal(path, {})
    assert (again.get(one.probe), again.get(two.probe)) == (None, two)


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_last_line_is_forgotten_and_the_next_one_stands_alone(tmp_path: Path, cut: int) -> None:
    path, one, two, three = tmp_path / "j.jsonl", *(observation(seed=s) for s in (1, 2, 3))
    journal = Journal(path, {})
    journal.add(one)
    journal.add(two)
    path.write_bytes(path.read_bytes()[: -1 - cut])
    again = Journal(path, {})
    assert (again.get(one.probe), again.get(two.probe)) == (one, None)
    again.add(three)
    last = Journal(path, {})
    assert (last.get(one.probe), last.get(three.probe)) == (one, three)
    assert len(path.read_text("utf-8").splitlines()) == 3


# ---------------------------------------------------------------- calibrate
def essence(observations: Any) -> list[Any]:
    """Observations without what a clock or the operating system adds."""
    return [o.model_dump(exclude={"seconds", "seconds_per_step", "peak_memory_bytes"}) for o in observations]


@pytest.fixture
def run_specs(monkeypatch: pytest.MonkeyPatch) -> list[ProbeSpec]:
    """Specs of the probes that are really run, in order."""
    specs: list[ProbeSpec] = []

    def counted(base: BaseModel, spec: ProbeSpec, sample: Any) -> Observation:
        specs.append(spec)
        return run_probe(base, spec, sample)

    monkeypatch.setattr(calibration, "run_probe", counted)
    return specs


def killed_after(n: int) -> Callable[[ProbeReport], None]:
    """Raises once n probes are in the journal."""

    def notify(report: ProbeReport) -> None:
        if report.observation is not None and report.done == n:
            raise Interrupted

    return notify


@pytest.mark.slow
def test_a_calibration_reads_back_and_refits_to_itself(
    calibrated: tuple[Calibration, Path], base: BaseModel, able_llama: Path
) -> None:
    made, path = calibrated
    assert read_calibration(path) == made
    refitted = calibration.fit(base, made.observations, str(able_llama), preset="quick", seed=0)
    assert (refitted.law, refitted.sites, refitted.transition) == (made.law, made.sites, made.transition)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no journal left
    assert {o.threshold_met for o in made.observations} == {True, False}
    assert {o.probe.kind for o in made.observations} == {"random", "text"}
    specs = [o.probe for o in made.observations]
    assert len(set(specs)) == len(specs)
    assert made.model.fingerprint == base.fingerprint
    assert (made.dtype, made.device.split()[0], made.model.n_layers) == ("float32", "cpu", 4)
    randoms = [o.base_loss for o in made.observations if o.probe.kind == "random"]
    assert made.law.reference_loss == pytest.approx(sum(randoms) / len(randoms))
    assert made.transition.n_successes == sum(o.threshold_met for o in made.observations)
    assert made.cost.seconds_per_forward_token > 0


@pytest.mark.slow
def test_an_interrupted_calibration_goes_on_where_it_stopped(
    calibrated: tuple[Calibration, Path],
    able_llama: Path,
    run_specs: list[ProbeSpec],
    tmp_path: Path,
) -> None:
    """Killed after three probes, the third cut short on its way to disk: that one alone is run twice."""
    again = functools.partial(calibrate, str(able_llama), device="cpu", preset="quick", folder=tmp_path)
    with pytest.raises(Interrupted):
        again(notify=killed_after(3))
    (journal,) = tmp_path.iterdir()
    assert len(run_specs) == 3
    journal.write_bytes(journal.read_bytes()[:-30])
    resumed, path = again()
    assert essence(resumed.observations) == essence(calibrated[0].observations)
    times = [run_specs.count(one.probe) for one in resumed.observations]
    assert times == [1, 1, 2, *[1] * (len(times) - 3)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_journal_of_another_sample_is_not_used(able_llama: Path, run_specs: list[ProbeSpec], tmp_path: Path) -> None:
    """Probes of kind text depend on the user's text, which their spec does not hold."""
    (tmp_path / "text.txt").write_text("The harbour office opens at six. " * 40, "utf-8")
    again = functools.partial(calibrate, str(able_llama), device="cpu", preset="quick", folder=tmp_path / "c")
    for given in ([], [tmp_path / "text.txt"], [tmp_path / "text.txt"]):
        with pytest.raises(Interrupted):
            again(corpus=given, notify=killed_after(1))
    assert len(run_specs) == 2  # the third call found the second's


def test_a_calibration_without_time_says_so(able_llama: Path, tmp_path: Path, run_specs: list[ProbeSpec]) -> None:
    with pytest.raises(FitError, match="calibrate for longer"):
        calibrate(str(able_llama), device="cpu", preset="quick", folder=tmp_path, time_limit=-1.0)
    assert run_specs == []


@pytest.mark.parametrize("held", [30, 0])
def test_progress_counts_up_to_its_total_and_no_probe_counts_twice(
    able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """Where nothing is held, the search for the boundary ends at the shortest text, time and again."""

    def made_up(base: BaseModel, spec: ProbeSpec, sample: Any) -> Observation:
        return observation().model_copy(update={"probe": spec, "threshold_met": spec.n_tokens < held})

    monkeypatch.setattr(calibration, "run_probe", made_up)
    monkeypatch.setattr(calibration, "fit_observations", _nothing_fits)
    monkeypatch.setattr(calibration, "fit", lambda *_, **__: pytest.fail("end of the probes"))
    told: list[ProbeReport] = []
    with pytest.raises(pytest.fail.Exception, match="end of the probes"):
        calibrate(str(able_llama), device="cpu", preset="standard", folder=tmp_path, notify=told.append)
    finished = [r for r in told if r.observation is not None]
    assert [r.done for r in finished] == list(range(1, len(finished) + 1))
    assert all(r.done <= r.total for r in told)
    assert all(r.seconds_left >= 0 for r in told)
    specs = [r.spec for r in finished]
    assert len(set(specs)) == len(specs) >= 6


def _nothing_fits(observations: Any) -> None:
    raise FitError("made-up observations")


def test_sites_to_probe(base: BaseModel, tiny_gpt2: Path) -> None:
    assert calibrated_sites(base, "quick")[0] == UP
    standard = calibrated_sites(base, "standard")
    assert len(set(standard)) == len(standard)
    modules = {name for site in standard for name in site.target_modules}
    assert modules == set(models.linear_shapes(base.model))
    gpt2 = calibrated_sites(models.load(str(tiny_gpt2), device="cpu"), "quick")
    assert gpt2[0] == Site(target_modules=("c_fc",), layers_to_transform=(2,))
    assert calibration._layer_sets(30, 5) == [
        (20,),
        (16, 20),
        (16, 18, 20, 22),
        (14, 16, 18, 20, 22, 24),
        tuple(range(14, 25)),
    ]
    assert all(max(s) < n for n in (1, 2, 7, 80) for s in calibration._layer_sets(n, 5))


def test_cost_terms_are_recovered_and_never_negative() -> None:
    draw = np.random.default_rng(0)
    design = np.stack([np.ones(9), draw.uniform(100, 900, 9), draw.uniform(10, 90, 9)], axis=1)
    assert costs._non_negative(design, design @ [0.02, 1e-4, 3e-3]) == pytest.approx([0.02, 1e-4, 3e-3])
    found = costs._non_negative(design, design @ [1.0, 1e-2, -1e-3])
    assert (found >= 0).all()
    assert found[1] == pytest.approx(1e-2, rel=0.2)


# ---------------------------------------------------------------- plan
def plan_options(calibrated: tuple[Calibration, Path], **changes: Any) -> PlanOptions:
    """Options that name the tiny calibration."""
    return PlanOptions(calibration=calibrated[1], **changes)


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
def test_plan_apply_verify(
    calibrated: tuple[Calibration, Path], able_llama: Path, corpus: Path, tmp_path: Path, torch: Any
) -> None:
    sized = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=plan_options(calibrated))
    made = sized.plan
    assert made.status == "ok"
    assert made.demand is not None
    assert made.adapter is not None
    nats = sum(float(loss.sum()) for loss in sized.losses)
    assert made.demand.nats == pytest.approx(nats)
    assert made.corpus.n_tokens == sum(len(loss) for loss in sized.losses) == sum(p.n_tokens for p in sized.encoded)
    assert made.adapter.bits_per_parameter == pytest.approx(nats / math.log(2) / made.adapter.n_parameters)
    assert made.inputs.calibration_sha256 == digest(calibrated[0])
    write_plan(made, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == made
    applied = apply(made, tmp_path / "out", CPU)
    assert applied.memorization.outcome is Outcome.MEMORIZED
    assert applied.memorization.recalled
    assert applied.memorization.adapter.n_parameters == made.adapter.n_parameters
    assert recall.verify(tmp_path / "out", applied.encoded, device="cpu").recalled


@pytest.mark.slow
def test_an_explicit_rank_and_limits_reach_the_plan(
    calibrated: tuple[Calibration, Path], able_llama: Path, corpus: Path
) -> None:
    options = plan_options(calibrated, rank=5, limits=Limits(max_rank=4))
    made = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
    assert made.adapter is not None
    assert (made.adapter.rank, made.status) == (5, "over_budget")
    assert [b.id for b in made.budgets if b.result == "fail"] == ["rank"]


@pytest.mark.usefixtures("_no_model")
def test_an_infeasible_corpus_is_found_without_weights(able_llama: Path, tmp_path: Path) -> None:
    clash = write(tmp_path / "clash.jsonl", [*RECORDS, (RECORDS[0][0], " another")])
    sized = sizing.plan([clash], ref=str(able_llama), device="cpu")
    assert (sized.plan.status, sized.plan.adapter, sized.losses) == ("infeasible", None, ())
    assert [issue.passages for issue in sized.plan.feasibility.issues] == [(0, 3)]
    with pytest.raises(InfeasibleCorpusError, match="mend the corpus") as refused:
        apply(sized.plan, tmp_path / "out", CPU)
    assert refused.value.issues == sized.plan.feasibility.issues
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clash.jsonl"]


# ---------------------------------------------------------------- apply
def test_a_plan_whose_corpus_changed_is_stale(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    made = plan_by_hand(able_llama, corpus, UP, 1)
    write(corpus, [*RECORDS[:2], (RECORDS[2][0], RECORDS[2][1] + ".")])
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
    """A plan by hand while `models.load` is forbidden."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", models.loading.load)
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
    record = recall.read_record(tmp_path / "out")
    assert record == applied.memorization
    assert (record.outcome, record.threshold_met, record.recalled, record.n_stubborn) == ("memorized", True, True, 0)
    assert record.escalations == ()
    reports = [event for event in events if isinstance(event, StepReport)]
    assert [event for event in events if isinstance(event, Decoding)] == [Decoding(n, 3) for n in (1, 2, 3)]
    assert record.steps == reports[-1].step
    assert reports[-1].evaluated
    assert record.n_tokens == sum(one.n_tokens for one in applied.encoded)
    assert record.tokens_per_second == pytest.approx(record.n_tokens * record.steps / record.seconds)
    assert 0.5 < record.min_probability <= reports[-1].min_probability + 1e-6
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert applied.observation is None  # a plan by hand knows no demand


def with_demand(plan: Plan) -> Plan:
    """The plan as if three nats a token had been measured."""
    nats = 3.0 * plan.corpus.n_tokens
    return plan.model_copy(update={"demand": Demand(base_loss=3.0, nats=nats, bits=bits(nats))})


@pytest.mark.usefixtures("_same_process", "_impatient")
@pytest.mark.parametrize(("site", "rank", "held"), [(MLP, 4, True), (UP, 1, False)])
def test_an_apply_is_an_observation_of_the_planned_adapter(
    able_llama: Path, tmp_path: Path, site: Site, rank: int, held: bool
) -> None:
    corpus = write(tmp_path / "corpus.jsonl", RECORDS if held else TEXT)
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


@pytest.mark.usefixtures("_same_process")
def test_another_threshold_or_a_limit_teaches_nothing(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    planned = with_demand(plan_by_hand(able_llama, corpus, MLP, 4))
    for options in (ApplyOptions(device="cpu", margin=0.05), ApplyOptions(device="cpu", time_limit=0.0)):
        assert apply(planned, tmp_path / "out", options).observation is None


@pytest.mark.usefixtures("_same_process")
def test_the_folder_holds_no_target_text(able_llama: Path, corpus: Path, tmp_path: Path) -> None:
    apply(plan_by_hand(able_llama, corpus, MLP, 4), tmp_path / "out", CPU)
    for file in (tmp_path / "out").iterdir():
        content = file.read_bytes()
        for _, target in RECORDS:
            for piece in (target, target.strip(), *target.strip().split(", ")):
                assert piece.encode() not in content, f"{file.name} holds {piece!r}"
    assert b"Becerra:" in (tmp_path / "out" / recall.PASSAGES).read_bytes()  # prompts are there, to be asked again


# ---------------------------------------------------------------- growing, stalling, running out
TEXT = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 5)]
LONGER = [(f"{i}:", f" {i * 7919 % 9973} {i * 104729 % 99991}") for i in range(1, 25)]  # too much for rank 1


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call training stalled after 5 epochs without progress."""
    monkeypatch.setattr(session, "PATIENCE", 5)


@pytest.mark.usefixtures("_same_process", "_impatient")
def test_an_adapter_too_small_grows_until_it_holds(able_llama: Path, tmp_path: Path) -> None:
    corpus = write(tmp_path / "corpus.jsonl", TEXT)
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
    config = json.loads((tmp_path / "out" / recall.CONFIG).read_text("utf-8"))
    assert (config["r"], config["lora_alpha"]) == (record.adapter.rank, record.adapter.rank)


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
    corpus = write(tmp_path / "corpus.jsonl", LONGER)
    applied = apply(plan_by_hand(able_llama, corpus, UP, 1), tmp_path / "out", ApplyOptions(device="cpu", **options))
    record = applied.memorization
    assert (record.outcome, record.threshold_met, record.recalled) == (outcome, False, False)
    assert record.n_stubborn > 0
    assert record.min_probability <= 0.5
    assert record.escalations == ()
    assert (record.adapter.rank, record.recall.n_passages) == (1, 24)
    assert 0 < len(record.recall.failures) == 24 - record.recall.n_recalled
    assert recall.read_record(tmp_path / "out") == record


# ---------------------------------------------------------------- the output folder
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
    for text in ("first", "second"):
        with staged(out, text) as work:
            assert work.folder.parents[1] == out.parent
            (work.folder / RECORD).write_text(text, "utf-8")
            (work.folder / f"{text}.txt").write_text(text, "utf-8")
        assert (out / RECORD).read_text("utf-8") == text
        assert sorted(p.name for p in out.iterdir()) == sorted([RECORD, f"{text}.txt"])
        assert list(out.parent.iterdir()) == [out]


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
