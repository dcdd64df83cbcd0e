"""Plans: minimal, monotone, within limits, and honest about what was not calibrated."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.calibration import CALIBRATION, SIX, calibration, demand_of, parts, plan_of

from lorasize import records as r
from lorasize.errors import CalibrationError
from lorasize.law.capacity import capacity_slack, equivalent_tokens
from lorasize.law.form import soft_capped
from lorasize.planning import (
    RANKS,
    Assessment,
    Candidate,
    Limits,
    alternatives,
    assess_all,
    budgets,
    candidates,
    cautious_transition,
    e_folds_out_of_range,
    infeasible_plan,
    rank_interval,
    rules_of_thumb,
    serving,
    step_seconds,
)
from lorasize.planning.choice import cheapest
from lorasize.records import Plan


def choose(
    held: r.Calibration, demand: r.Demand, n: int, confidence: float = 0.9, minimize: r.Minimize = "parameters"
) -> Assessment:
    """The cheapest of all candidates."""
    return cheapest(assess_all(held, demand, n, n_passages=3), confidence, minimize)


def test_slack_is_predicted_over_required() -> None:
    demand = demand_of(14.0 * 192)
    assert equivalent_tokens(CALIBRATION.law, demand) == pytest.approx(192.0)
    by_hand = (2.1 * 4224.0**0.66 * 192.0**-0.6 - 0.4) / 14.0
    assert capacity_slack(CALIBRATION.law, 4224.0, demand) == pytest.approx(by_hand, rel=1e-12)
    assert equivalent_tokens(CALIBRATION.law, demand_of(0.0)) == 1.0


def test_candidates_are_all_sites_with_all_ranks() -> None:
    found = list(candidates(CALIBRATION))
    assert len(found) == 3 * len(RANKS)
    six = next(c for c in found if c.site.target_modules == ("up_proj",) and len(c.site.layers_to_transform) == 6)
    assert (six.rank, six.n_parameters) == (1, 12_672)
    assert six.effective_parameters == pytest.approx(12_672 * 1.3)
    spec = six.spec(demand_of(1000.0))
    assert spec.bytes == 4 * 12_672
    assert spec.lora_alpha == spec.rank
    assert spec.bits_per_parameter == pytest.approx(1000.0 / math.log(2) / 12_672)


def test_a_step_runs_the_layers_from_the_first_adapted_one() -> None:
    assert step_seconds(CALIBRATION, (20, 22), 500) == pytest.approx(0.02 + 500 * (10 * 1e-4 + 1e-3))
    assert step_seconds(CALIBRATION, (4,), 500) > step_seconds(CALIBRATION, (20,), 500)
    assert step_seconds(CALIBRATION, (20,), 1100) == pytest.approx(3 * 0.02 + 1100 * (10 * 1e-4 + 1e-3))  # 3 batches


def test_what_comes_before_the_steps_takes_its_seconds() -> None:
    cost = CALIBRATION.cost.model_copy(update={"seconds_setup": 7.0})
    with_it = plan_of(1500.0, CALIBRATION.model_copy(update={"cost": cost})).prediction
    without = plan_of(1500.0).prediction
    assert with_it is not None
    assert without is not None
    assert with_it.seconds.point == pytest.approx(without.seconds.point + 7.0)
    assert with_it.seconds.lo == pytest.approx(without.seconds.lo + 7.0 / 1.25)


def test_predictions_add_up() -> None:
    plan = plan_of(1500.0)
    adapter, _ = parts(plan)
    prediction = plan.prediction
    assert prediction is not None
    assert prediction.final_loss + prediction.loss_reduction == pytest.approx(3.3)
    assert 0.0 < prediction.final_loss < 0.05 * 3.3  # the soft ceiling: no slack makes the last loss vanish
    each = step_seconds(CALIBRATION, adapter.layers_to_transform, round(1500 / 3.3) + 30)
    assert prediction.seconds.point == pytest.approx(prediction.steps.point * each)
    assert prediction.seconds.hi == pytest.approx(prediction.steps.hi * each * 1.25)
    assert prediction.seconds.lo == pytest.approx(prediction.steps.lo * each / 1.25)
    assert prediction.peak_memory_bytes == 600_000_000 + 400_000 * (round(1500 / 3.3) + 30)


def memory(nats: float, **changes: int) -> int:
    """Bytes that a plan predicts."""
    prediction = plan_of(nats, **changes).prediction
    assert prediction is not None
    return prediction.peak_memory_bytes


def test_memory_is_that_of_one_step_and_of_the_states_kept() -> None:
    """A step has 512 positions at most, unless one passage is longer; 20,000 tokens do not all lie in one."""
    n = round(66_000 / 3.3) + 30
    assert memory(66_000) == 600_000_000 + 400_000 * 512
    assert memory(66_000, longest_sequence=900) == 600_000_000 + 400_000 * 900
    assert memory(66_000, state_bytes=2304) == 600_000_000 + 400_000 * 512 + 2304 * n
    tight = plan_of(60_000.0, rank=1, target_modules=["up_proj"])
    assert tight.prediction is not None
    assert tight.prediction.loss_reduction == pytest.approx(3.3 * soft_capped(tight.prediction.capacity_slack))
    assert 0 < tight.prediction.final_loss < 3.3


nats = st.floats(50.0, 60_000.0)
confidences = st.floats(0.55, 0.99)


@settings(deadline=None, max_examples=60)
@given(nats, confidences)
def test_the_choice_meets_the_confidence_and_nothing_smaller_does(demanded: float, confidence: float) -> None:
    demand = demand_of(demanded)
    chosen = choose(CALIBRATION, demand, 500, confidence=confidence)
    assert chosen.success_probability >= confidence
    smaller = [
        a
        for a in assess_all(CALIBRATION, demand, 500, n_passages=3)
        if a.candidate.n_parameters < chosen.candidate.n_parameters
    ]
    assert all(a.success_probability < confidence for a in smaller)


@settings(deadline=None, max_examples=60)
@given(nats, st.floats(1.0, 30.0), confidences, st.floats(0.0, 0.5), st.floats(-2.0, 2.0))
def test_more_demand_never_lowers_the_parameters(
    demanded: float, factor: float, confidence: float, stderr: float, offset: float
) -> None:
    held = calibration(location_stderr=stderr, offset=offset)
    less = choose(held, demand_of(demanded), 500, confidence=confidence)
    more = choose(held, demand_of(demanded * factor), 500, confidence=confidence)
    assert more.candidate.n_parameters >= less.candidate.n_parameters


@settings(deadline=None, max_examples=60)
@given(nats, confidences, confidences)
def test_more_confidence_never_lowers_the_parameters(demanded: float, one: float, other: float) -> None:
    lo, hi = (choose(CALIBRATION, demand_of(demanded), 500, confidence=c) for c in sorted((one, other)))
    assert hi.candidate.n_parameters >= lo.candidate.n_parameters


def test_demand_moves_the_choice_at_all() -> None:
    small, large = (choose(CALIBRATION, demand_of(n), 500) for n in (500.0, 20_000.0))
    assert large.candidate.n_parameters > 4 * small.candidate.n_parameters


def test_confidence_moves_the_choice_at_all() -> None:
    low, high = (choose(CALIBRATION, demand_of(3000.0), 500, confidence=c) for c in (0.5, 0.999))
    assert high.candidate.n_parameters > low.candidate.n_parameters


def test_fewer_probes_never_ask_for_less() -> None:
    sure, unsure = (choose(calibration(location_stderr=s), demand_of(3000.0), 500) for s in (0.02, 0.6))
    assert unsure.candidate.n_parameters > sure.candidate.n_parameters


def test_minimizing_seconds_finds_a_faster_and_larger_adapter() -> None:
    small = choose(CALIBRATION, demand_of(3000.0), 500)
    fast = choose(CALIBRATION, demand_of(3000.0), 500, minimize="seconds")
    assert fast.seconds.point < small.seconds.point
    assert fast.candidate.n_parameters > small.candidate.n_parameters
    assert choose(CALIBRATION, demand_of(3000.0), 500, minimize="bytes").candidate == small.candidate


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, math.nan])
def test_a_confidence_outside_zero_and_one_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="strictly between"):
        choose(CALIBRATION, demand_of(3000.0), 500, confidence=confidence)


def test_an_explicit_rank_wins_even_where_it_falls_short() -> None:
    plan = plan_of(200_000.0, rank=5, target_modules=["up_proj"])
    adapter, chance = parts(plan)
    assert adapter.rank == 5
    assert adapter.layers_to_transform == SIX[1]  # the larger of the two up_proj sites
    assert chance < 0.9
    assert any("No adapter searched reaches confidence 0.9" in w for w in plan.warnings)


def test_explicit_modules_leave_the_smallest_rank_that_meets_in_any_order() -> None:
    modules = ["up_proj", "gate_proj", "down_proj"]
    adapter, chance = parts(plan_of(5000.0, target_modules=modules))
    assert set(adapter.target_modules) == set(modules)
    assert chance >= 0.9
    smaller = RANKS[RANKS.index(adapter.rank) - 1]
    assert parts(plan_of(5000.0, target_modules=modules, rank=smaller))[1] < 0.9


def test_an_uncalibrated_module_set_is_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match=r"q_proj.*down_proj\+gate_proj\+up_proj, up_proj"):
        plan_of(5000.0, target_modules=["q_proj"])


def test_inside_the_range_nothing_is_extrapolated() -> None:
    plan = plan_of(2000.0)
    assert plan.prediction is not None
    assert not plan.prediction.extrapolated
    assert plan.warnings == ()
    assert e_folds_out_of_range(CALIBRATION, demand_of(2000.0)) == 0.0
    assert cautious_transition(CALIBRATION, demand_of(2000.0)) == CALIBRATION.transition


def test_a_corpus_beyond_the_range_is_flagged_and_the_interval_wider() -> None:
    plan = plan_of(14.0 * 5000)
    assert plan.prediction is not None
    assert plan.prediction.extrapolated
    assert any("2,000 to 17,000 effective parameters" in w and "and 5,000" in w for w in plan.warnings)
    near, far = (cautious_transition(CALIBRATION, demand_of(14.0 * n)) for n in (5_000, 50_000))
    assert CALIBRATION.transition.location_stderr < near.location_stderr < far.location_stderr


def test_a_corpus_short_of_the_range_is_flagged_too() -> None:
    assert any(w.startswith("Extrapolated: calibrated") for w in plan_of(14.0 * 5).warnings)


def test_more_slack_than_any_probe_had_is_flagged() -> None:
    plan = plan_of(14.0 * 100, rank=10, target_modules=["up_proj"], minimize="seconds")
    assert any("no probe had more than" in w for w in plan.warnings)
    bare = CALIBRATION.model_copy(update={"observations": ()})
    assert not any("no probe" in w for w in plan_of(14.0 * 100, bare, rank=10, target_modules=["up_proj"]).warnings)


def test_when_nothing_reaches_the_confidence_the_largest_is_taken_and_said() -> None:
    plan = plan_of(1e8)
    adapter, chance = parts(plan)
    assert chance < 0.9
    assert (adapter.rank, adapter.layers_to_transform) == (128, SIX[1])
    assert plan.prediction is not None
    assert plan.prediction.extrapolated
    assert any("No adapter searched reaches confidence" in w for w in plan.warnings)


def test_the_rank_interval_brackets_the_transition() -> None:
    demand, reference = demand_of(14.0 * 384), CALIBRATION.sites[0]
    lo, hi = rank_interval(CALIBRATION, reference, demand)
    chances = {
        a.candidate.rank: a.success_probability
        for a in assess_all(CALIBRATION, demand, 500, n_passages=3)
        if a.candidate.calibrated == reference
    }
    assert chances[lo] >= 0.05
    assert chances[hi] >= 0.95
    assert chances[RANKS[RANKS.index(lo) - 1]] < 0.05
    assert chances[RANKS[RANKS.index(hi) - 1]] < 0.95
    assert rank_interval(CALIBRATION, reference, demand_of(1e8)) == (128, 128)


def test_alternatives_are_a_sorted_front_of_at_most_eight() -> None:
    demand = demand_of(3000.0)
    options, chosen = assess_all(CALIBRATION, demand, 500, n_passages=3), choose(CALIBRATION, demand, 500)
    found = alternatives(options, chosen, demand, 0.9)
    assert 2 <= len(found) <= 8
    assert [a.n_parameters for a in found] == sorted(a.n_parameters for a in found)
    assert all(a.success_probability >= 0.45 for a in found)
    adapter = chosen.candidate.spec(demand)
    assert adapter.n_parameters not in [a.n_parameters for a in found if a.layers_to_transform == SIX[1]]
    for a in found:
        assert not any(
            o.candidate.n_parameters < a.n_parameters
            and o.seconds.point < a.seconds
            and o.success_probability > a.success_probability
            for o in options
        )


@pytest.mark.parametrize(("n_tokens", "rank"), [(1, 1), (305_280, 1), (305_281, 2), (3_052_800, 10)])
def test_the_rule_of_thumb_rounds_up(n_tokens: int, rank: int) -> None:
    thumbs = rules_of_thumb(305_280, n_tokens)
    assert (thumbs.parameters_ge_tokens_rank, thumbs.flat_rank) == (rank, 16)


@pytest.mark.parametrize(("rank", "bucket"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512), (513, None)])
def test_vllm_ranks_come_in_buckets(rank: int, bucket: int | None) -> None:
    told = serving(Candidate(CALIBRATION.sites[0], rank).spec(demand_of(1.0)), "vllm")
    assert told.vllm_max_lora_rank == bucket
    assert told.llama_cpp
    assert ("up to 512" in told.notes[0]) == (bucket is None)


def test_each_budget_is_compared_with_its_own_figure() -> None:
    plan = plan_of(2000.0)
    adapter, prediction = plan.adapter, plan.prediction
    assert adapter is not None
    assert prediction is not None
    actual = {
        "rank": adapter.rank,
        "parameters": adapter.n_parameters,
        "bytes": adapter.bytes,
        "seconds": prediction.seconds.hi,
        "memory": prediction.peak_memory_bytes,
    }
    at = Limits(*actual.values())  # type: ignore[arg-type]
    below = Limits(*(v * 0.999 for v in actual.values()))  # type: ignore[arg-type]
    assert {b.id: b.actual for b in budgets(at, adapter, prediction)} == actual
    assert [b.result for b in budgets(at, adapter, prediction)] == ["pass"] * 5
    assert [b.result for b in budgets(below, adapter, prediction)] == ["fail"] * 5
    elsewhere = budgets(below, adapter, prediction, same_device=False)
    assert [b.result for b in elsewhere] == ["fail", "fail", "fail", "warn", "fail"]
    assert [b.level for b in elsewhere] == ["error", "error", "error", "warn", "error"]
    assert budgets(Limits(), adapter, prediction) == ()


def test_a_broken_budget_shows_in_the_status() -> None:
    plan = plan_of(20_000.0, limits=Limits(max_parameters=3000))
    assert plan.status == "over_budget"
    assert plan.adapter == plan_of(20_000.0).adapter  # the limit cannot be kept, so the plan is the unlimited one
    assert plan_of(20_000.0, limits=Limits(max_seconds=1e-3), same_device=False).status == "ok"


def test_a_limit_that_another_adapter_can_keep_is_kept() -> None:
    free = parts(plan_of(14.0 * 500))[0]
    plan = plan_of(14.0 * 500, limits=Limits(max_rank=free.rank - 1))
    adapter, chance = parts(plan)
    assert adapter.rank < free.rank
    assert adapter.n_parameters >= free.n_parameters
    assert chance >= 0.9
    assert plan.status == "ok"


def test_another_device_makes_times_rough_and_says_so() -> None:
    plan = plan_of(2000.0, same_device=False)
    assert any("measured on cpu" in w for w in plan.warnings)
    assert not any("measured on" in w for w in plan_of(2000.0).warnings)


def test_an_infeasible_corpus_gets_no_adapter() -> None:
    issue = r.FeasibilityIssue(
        kind="same_prompt", passages=(0, 1), position=0, file="a.jsonl", line=2, message="two answers"
    )
    found, held = r.Feasibility(feasible=False, issues=(issue,)), plan_of(2000.0)
    plan = infeasible_plan(model=held.model, corpus=held.corpus, feasibility=found, inputs=held.inputs)
    assert plan.status == "infeasible"
    assert (plan.adapter, plan.prediction, plan.alternatives) == (None, None, ())
    assert plan.feasibility.issues == (issue,)


def test_a_plan_survives_json() -> None:
    plan = plan_of(2000.0)
    assert Plan.model_validate_json(plan.model_dump_json(by_alias=True)) == plan
