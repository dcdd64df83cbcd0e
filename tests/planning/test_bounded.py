"""Plans under a bound on drift: what is chosen, what is predicted, and what is refused."""

from __future__ import annotations

import math

import pytest
from support.calibration import CALIBRATION, ONE, SIX, plan_of, with_bound

from lorasize.errors import CalibrationError
from lorasize.law import bounded, transition
from lorasize.law.bounded import TIGHTER_EXPONENT, TIGHTER_KEPT, bounded_corpus_steps, fit_bounded
from lorasize.planning import Limits, Workload, moved_law, ranks_at_site
from lorasize.planning.bounded import CALM_RANK, LEAST_RANK, PATIENCE, assess_bounded
from lorasize.planning.choice import Assessment, assess_all
from lorasize.planning.plan import minimum
from lorasize.records import Demand, Site
from lorasize.report.facts.plan import plan_facts

BOUND = 0.02


def test_the_adapter_sits_where_those_under_a_bound_do() -> None:
    plan = plan_of(1000.0, with_bound(), bound=BOUND)
    assert plan.adapter is not None
    assert plan.prediction is not None
    assert (plan.adapter.target_modules, plan.adapter.layers_to_transform) == SIX
    assert plan.adapter.rank >= LEAST_RANK
    assert plan.max_drift == BOUND
    assert plan.prediction.success_probability >= 0.9
    assert not plan.prediction.extrapolated
    assert plan.warnings == ()


def test_drift_is_below_its_bound_and_follows_it() -> None:
    tight, loose = (plan_of(1000.0, with_bound(), bound=bound).prediction for bound in (BOUND, 2 * BOUND))
    assert tight is not None
    assert loose is not None
    assert tight.drift is not None
    assert loose.drift is not None
    assert 0 < tight.drift.lo < tight.drift.point < tight.drift.hi <= BOUND
    assert loose.drift.point == pytest.approx(2 * tight.drift.point)


def test_another_bound_than_that_of_the_probes_is_told() -> None:
    plan = plan_of(1000.0, with_bound(), bound=0.005)
    assert plan.prediction is not None
    assert plan.prediction.extrapolated
    assert "the probes were under a bound on drift of 0.02" in plan.warnings[0]
    assert plan.prediction.success_probability <= TIGHTER_KEPT
    assert not any("confidence" in warning for warning in plan.warnings)  # no other rank would do better
    kept = plan_of(1000.0, with_bound(), bound=2 * BOUND).prediction
    assert kept is not None
    assert kept.success_probability >= 0.9


def test_beside_it_stands_the_bare_minimum() -> None:
    plan, bare = plan_of(1000.0, with_bound(), bound=BOUND), plan_of(1000.0)
    assert plan.minimum is not None
    assert bare.adapter is not None
    assert bare.minimum is None
    assert plan.minimum.n_parameters == bare.adapter.n_parameters
    assert dict(plan_facts(plan))["bare minimum"].startswith(f"rank {bare.adapter.rank}, {bare.adapter.n_parameters:,}")
    assert plan.demand is not None
    assert minimum(CALIBRATION, plan.demand, Workload(333, 305_280), 3, 0.9).rank == bare.adapter.rank


def test_a_smaller_adapter_may_take_an_eighth_longer_than_the_fastest() -> None:
    plan = plan_of(1000.0, with_bound(), bound=BOUND)
    fast = plan_of(1000.0, with_bound(), bound=BOUND, minimize="seconds")
    assert plan.prediction is not None
    assert fast.prediction is not None
    assert plan.adapter is not None
    assert fast.adapter is not None
    assert plan.prediction.seconds.point <= PATIENCE * fast.prediction.seconds.point
    assert plan.adapter.n_parameters <= fast.adapter.n_parameters


@pytest.mark.parametrize("nats", [300.0, 1000.0, 3000.0])
def test_more_to_write_never_gets_a_smaller_adapter(nats: float) -> None:
    small, large = (plan_of(n, with_bound(), bound=BOUND) for n in (nats, 2 * nats))
    assert small.adapter is not None
    assert large.adapter is not None
    assert large.adapter.rank >= small.adapter.rank


def test_ranks_that_undo_harm_slowly_are_taken_only_where_fewer_parameters_do_not_suffice() -> None:
    ranks = [plan_of(nats, with_bound(), bound=BOUND).adapter.rank for nats in (3_000.0, 20_000.0, 30_000.0)]
    assert ranks[0] <= ranks[1] == CALM_RANK < ranks[2]


def test_a_corpus_beyond_the_probes_is_extrapolated() -> None:
    plan = plan_of(50_000.0, with_bound(), bound=BOUND)
    assert plan.prediction is not None
    assert plan.prediction.extrapolated
    assert any("no probe under a bound asked for more than 3,600 nats" in warning for warning in plan.warnings)


def test_more_passages_and_a_tighter_bound_take_more_steps() -> None:
    def steps(*, n_passages: int = 3, bound: float = BOUND) -> float:
        prediction = plan_of(1000.0, with_bound(), n_passages=n_passages, bound=bound, rank=12).prediction
        assert prediction is not None
        return float(prediction.steps.point)

    assert steps(n_passages=32) == pytest.approx(steps(n_passages=1) * 32**bounded.PASSAGES_EXPONENT)
    free = [plan_of(1000.0, n_passages=n, rank=12, target_modules=ONE[0]).prediction for n in (1, 32)]
    one, many = (prediction.steps.point for prediction in free if prediction is not None)
    assert many == pytest.approx(one * 32**transition.PASSAGES_EXPONENT)
    assert steps(bound=0.005) == pytest.approx(steps() * 4**TIGHTER_EXPONENT)
    assert steps(bound=0.08) == steps()


def test_steps_follow_batches_up_to_two_and_then_their_root_but_not_under_a_bound() -> None:
    assert [transition.batches_factor(n) for n in (1, 2, 8, 32)] == pytest.approx([1.0, 2.0, 4.0, 8.0])
    (one, many), free = ([a.steps.point for a in found] for found in (_of_sizes(BOUND), _of_sizes(None)))
    assert many == one
    assert free[1] == pytest.approx(free[0] * transition.batches_factor(64) / transition.batches_factor(1))


def _of_sizes(bound: float | None) -> list[Assessment]:
    """The adapter of rank 12 for the same nats in 512 positions and in 64 times as many."""
    calibration, demand = with_bound(), Demand(base_loss=10.0, nats=1000.0, bits=1443.0)
    if bound is None:
        return [assess_all(calibration, demand, n, n_passages=1, rank=12)[0] for n in (512, 512 * 64)]
    return [assess_bounded(calibration, demand, n, n_passages=1, bound=bound, rank=12)[0] for n in (512, 512 * 64)]


def test_steps_of_a_corpus_are_told_from_those_of_probes() -> None:
    law = with_bound().bounded
    assert law is not None
    probe = law.observations[0]
    factors = {n: bounded_corpus_steps(n) for n in (None, 1, 40)}
    told = [probe.model_copy(update={"steps": round(1000 * f), "n_passages": n}) for n, f in factors.items()]
    fits = [fit_bounded([one], law.slowdown).transition.steps_coefficient for one in told]
    assert fits == pytest.approx([fits[0]] * 3, rel=1e-2)
    assert bounded_corpus_steps(None) == 1.0


def test_other_modules_are_refused() -> None:
    with pytest.raises(CalibrationError, match="adapters sit on up_proj, not on q_proj: plan without"):
        plan_of(1000.0, with_bound(), bound=BOUND, target_modules=("q_proj",))


def test_a_calibration_that_knows_no_bound_is_refused() -> None:
    with pytest.raises(CalibrationError, match="knows nothing of adapters under a bound"):
        plan_of(1000.0, bound=BOUND)


def test_an_adapter_to_train_on_from_must_sit_there_too() -> None:
    bare = plan_of(1000.0, target_modules=ONE[0])
    assert bare.adapter is not None
    at = bare.adapter.model_copy(update={"layers_to_transform": ONE[1]})
    with pytest.raises(CalibrationError, match="under a bound on drift: plan without one"):
        plan_of(1000.0, with_bound(), bound=BOUND, at=at)
    old = plan_of(1000.0, with_bound(), bound=BOUND).adapter
    new = plan_of(1100.0, with_bound(), bound=BOUND, at=old).adapter
    assert old is not None
    assert new is not None
    assert new.site == old.site
    assert new.rank >= old.rank


def test_a_budget_of_drift_is_held_against_the_upper_end() -> None:
    kept = plan_of(1000.0, with_bound(), bound=BOUND, limits=Limits(max_drift=BOUND))
    assert (kept.status, kept.budgets[0].id, kept.budgets[0].result) == ("ok", "drift", "pass")
    broken = plan_of(1000.0, with_bound(), bound=BOUND, limits=Limits(max_drift=0.002))
    assert (broken.status, broken.budgets[0].against) == ("over_budget", "upper")


def test_an_explicit_rank_wins() -> None:
    plan = plan_of(1000.0, with_bound(), bound=BOUND, rank=5)
    assert plan.adapter is not None
    assert plan.adapter.rank == 5
    assert {a.candidate.rank for a in ranks_at_site(plan, with_bound())} >= {4, 5, 6}


def test_on_another_model_it_is_less_certain() -> None:
    source = with_bound()
    moved = moved_law(source, 1000, Site(target_modules=("w1",), layers_to_transform=(1,)))
    assert moved is not None
    assert source.bounded is not None
    assert (moved.parameters_per_rank, moved.target_modules) == (1000, ("w1",))
    assert moved.transition.location_stderr > source.bounded.transition.location_stderr
    assert moved.transition.steps_spread > source.bounded.transition.steps_spread
    assert math.isclose(moved.slowdown, source.bounded.slowdown)
    assert moved_law(CALIBRATION, 1000, moved.site) is None
