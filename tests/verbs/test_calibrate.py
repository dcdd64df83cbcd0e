"""Probes, their journal and whole calibrations of a tiny model, also interrupted ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import Interrupted
from support.sites import UP

from lorasize import models
from lorasize.artifacts.calibrations import read_calibration
from lorasize.errors import CorpusError, FitError
from lorasize.losses.neutral import neutral_text, windows
from lorasize.models import BaseModel, adapters
from lorasize.probing import Journal, costs, invented_sentences, probe_passage, run_probe, search
from lorasize.probing.presets import PRESETS
from lorasize.probing.search import ProbeReport
from lorasize.probing.sites import calibrated_sites, layer_sets
from lorasize.records import Calibration, Observation, ProbeSpec, Site
from lorasize.training import Trainer, TrainingOptions
from lorasize.training.control import OtherText
from lorasize.verbs import calibrate as calibration
from lorasize.verbs.calibrate import calibrate
from lorasize.verbs.plan import PlanOptions, plan


@pytest.fixture(scope="module")
def base(torch: Any, able_llama: Path) -> BaseModel:
    """The able tiny Llama in memory."""
    return models.load(str(able_llama), device="cpu")


def spec(**changes: Any) -> ProbeSpec:
    """A small probe at the reference site."""
    values: dict[str, Any] = {"target_modules": ("up_proj",), "layers_to_transform": (2,), "rank": 1, "kind": "random"}
    return ProbeSpec(**{**values, "n_tokens": 14, "seed": 0, "max_steps": 60, **changes})


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_probe_sees_what_it_does_to_other_text(torch: Any, base: BaseModel) -> None:
    """Its drift is that of a training that watches the neutral text, and an adapter of zeros has none."""
    untouched = run_probe(base, spec(max_steps=0))
    assert untouched.drift == pytest.approx(0.0, abs=1e-6)
    seen = run_probe(base, spec(max_steps=20))
    adapted = adapters.attach(base.model, Site(target_modules=("up_proj",), layers_to_transform=(2,)), 1, 0)
    watched = windows(neutral_text(), base.tokenizer, base.max_positions - 1, base.n_ids)
    other = OtherText({"neutral": watched})
    trainer = Trainer(adapted, [probe_passage(base, spec())], TrainingOptions(max_steps=20), other)
    for _ in trainer.steps():
        pass
    assert trainer.control is not None
    assert seen.drift == pytest.approx(trainer.control.measure().nats, abs=1e-4)
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
    assert Journal(path, {"model": "a"}).get(one.probe) is None  # begun again for b
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

    monkeypatch.setattr(search, "run_probe", counted)
    return specs


def killed_after(n: int) -> Callable[[ProbeReport], None]:
    """Raises once n probes are in the journal."""

    def notify(report: ProbeReport) -> None:
        if report.observation is not None and report.done == n:
            raise Interrupted

    return notify


@pytest.mark.slow
def test_a_calibration_reads_back_and_refits_to_itself(
    calibrated_llama: tuple[Calibration, Path], base: BaseModel, able_llama: Path
) -> None:
    made, path = calibrated_llama
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


@pytest.mark.slow
def test_an_interrupted_calibration_goes_on_where_it_stopped(
    calibrated_llama: tuple[Calibration, Path],
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
    assert essence(resumed.observations) == essence(calibrated_llama[0].observations)
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


def bounded_alone(monkeypatch: pytest.MonkeyPatch, *, held: bool = True) -> list[ProbeSpec]:
    """Probes that are made up, and what was asked of them."""
    asked: list[ProbeSpec] = []

    def made_up(base: BaseModel, spec: ProbeSpec, sample: Any) -> Observation:
        asked.append(spec)
        return observation().model_copy(update={"probe": spec, "threshold_met": held, "drift": 0.01})

    monkeypatch.setattr(search, "run_probe", made_up)
    return asked


def test_a_brief_calibration_probes_under_the_bound_and_borrows_the_law(
    able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its drift, steps and cost are its own; of bare minima it knows what a shipped calibration says, and says so."""
    asked = bounded_alone(monkeypatch)
    told: list[ProbeReport] = []
    monkeypatch.chdir(tmp_path)
    found, path = calibrate(str(able_llama), device="cpu", preset="brief", notify=told.append)
    assert [spec.max_drift for spec in asked[:5]] == [0.02] * 3 + [None] * 2
    assert {(r.done, r.total) for r in told if r.observation} == {(1, 3), (2, 3), (3, 3)}
    assert found.bounded is not None
    assert [o.probe for o in found.bounded.observations] == asked[:3]
    assert found.observations == ()
    assert found.cost.relative_spread == 0.5  # of two timings
    assert "smollm2" in found.provenance["prior_from"]
    assert read_calibration(path) == found
    again, _ = calibrate(str(able_llama), device="cpu", preset="brief")  # its own file is the nearest now
    assert again.provenance["prior_from"] == found.provenance["prior_from"]

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The harbour office opens at six.\n", encoding="utf-8")
    for max_drift, lent in ((0.02, False), (math.inf, True)):
        options = PlanOptions(calibration=path, max_drift=max_drift)
        made = plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
        assert any("Not calibrated" in warning for warning in made.warnings) == lent


def test_a_brief_calibration_that_learned_nothing_is_none(
    able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = functools.partial(calibrate, str(able_llama), device="cpu", preset="brief", folder=tmp_path)
    for without in ({"max_drift": None}, {"time_limit": -1.0}):
        with pytest.raises(FitError, match="no probe under a bound"):
            begin(**without)
    bounded_alone(monkeypatch, held=False)
    with pytest.raises(FitError, match="nothing of this model's own"):
        begin()
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("held", [30, 0])
def test_progress_counts_up_to_its_total_and_no_probe_counts_twice(
    able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """Where nothing is held, the search for the boundary ends at the shortest text, time and again."""

    def made_up(base: BaseModel, spec: ProbeSpec, sample: Any) -> Observation:
        return observation().model_copy(update={"probe": spec, "threshold_met": spec.n_tokens < held})

    monkeypatch.setattr(search, "run_probe", made_up)
    monkeypatch.setattr(search, "fit_observations", _nothing_fits)
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
    assert calibrated_sites(base, PRESETS["quick"])[0] == UP
    standard = calibrated_sites(base, PRESETS["standard"])
    assert len(set(standard)) == len(standard)
    modules = {name for site in standard for name in site.target_modules}
    assert modules == set(models.linear_shapes(base.model))
    gpt2 = calibrated_sites(models.load(str(tiny_gpt2), device="cpu"), PRESETS["quick"])
    assert gpt2[0] == Site(target_modules=("c_fc",), layers_to_transform=(2,))
    assert layer_sets(30, 5) == [
        (20,),
        (16, 20),
        (16, 18, 20, 22),
        (14, 16, 18, 20, 22, 24),
        tuple(range(14, 25)),
    ]
    assert all(max(s) < n for n in (1, 2, 7, 80) for s in layer_sets(n, 5))


def test_memory_is_of_the_process_so_far() -> None:
    """A small probe after a large one shows the large one's peak."""
    seen = [
        observation(n_tokens=n).model_copy(update={"peak_memory_bytes": 900 + 7 * most})
        for n, most in ((48, 48), (200, 200), (60, 200), (400, 400), (48, 400))
    ]
    overhead, per_token = costs.memory_terms(seen, weights=500, of_process=True)
    assert overhead == pytest.approx(400, abs=1)
    assert per_token == pytest.approx(7, rel=1e-6)
    assert costs.memory_terms(seen, weights=5000, of_process=True)[0] == 0


def test_memory_of_an_accelerator_is_each_probe_s_own() -> None:
    seen = [
        observation(n_tokens=n).model_copy(update={"peak_memory_bytes": 900 + 7 * n}) for n in (400, 60, 200, 48)
    ]
    overhead, per_token = costs.memory_terms(seen, weights=500, of_process=False)
    assert (overhead, per_token) == (pytest.approx(400, abs=1), pytest.approx(7, rel=1e-6))


def test_cost_terms_are_recovered_and_never_negative() -> None:
    draw = np.random.default_rng(0)
    design = np.stack([np.ones(9), draw.uniform(100, 900, 9), draw.uniform(10, 90, 9)], axis=1)
    assert costs.non_negative(design, design @ [0.02, 1e-4, 3e-3]) == pytest.approx([0.02, 1e-4, 3e-3])
    found = costs.non_negative(design, design @ [1.0, 1e-2, -1e-3])
    assert (found >= 0).all()
    assert found[1] == pytest.approx(1e-2, rel=0.2)
