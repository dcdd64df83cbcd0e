"""A synthetic calibration of three sites, and the plans made from it."""

from __future__ import annotations

from typing import Any

from lorasize import records as r
from lorasize.law.bounded import fit_bounded
from lorasize.planning import Wishes, Workload, make_plan
from lorasize.records import RECIPE, Calibration, Demand, Plan
from lorasize.units import bits

ONE = (("up_proj",), (20,))
SIX = (("up_proj",), (14, 16, 18, 20, 22, 24))
MLP = (("down_proj", "gate_proj", "up_proj"), (20,))


def site(where: tuple[tuple[str, ...], tuple[int, ...]], efficiency: float, per_rank: int) -> r.SiteEfficiency:
    """A calibrated site."""
    worth: dict[str, Any] = {"efficiency": efficiency, "stderr": 0.05, "parameters_per_rank": per_rank}
    return r.SiteEfficiency(target_modules=where[0], layers_to_transform=where[1], **worth)


def observation(rank: int, n_tokens: int) -> r.Observation:
    """A probe at the reference site."""
    budget: dict[str, Any] = {"kind": "random", "n_tokens": n_tokens, "seed": 0, "max_steps": 300}
    probe = r.ProbeSpec(target_modules=ONE[0], layers_to_transform=ONE[1], rank=rank, **budget)
    values: dict[str, Any] = {"n_stubborn": 0, "threshold_met": True, "steps": 60, "seconds": 9.0}
    values |= {"seconds_per_step": 0.15, "peak_memory_bytes": 10**9}
    values |= {"base_loss": 14.0, "final_loss": 0.2, "loss_reduction": 13.8}
    return r.Observation(probe=probe, n_parameters=2112 * rank, **values)


def calibration(location_stderr: float = 0.05, offset: float = -0.4) -> Calibration:
    """A synthetic calibration of three sites, with the magnitudes of a 135M model."""
    law = r.Law.model_validate_json(
        """{"coefficient": 2.1, "parameter_exponent": 0.66, "length_exponent": 0.6, "offset": 0.0, "r_squared": 0.99,
        "covariance": [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], "form": "C*N^alpha*l^-beta+b",
        "reference_loss": 14.0, "residual_stderr": 0.2, "n_observations": 12,
        "parameters_range": [2000, 17000], "tokens_range": [48, 768]}"""
    ).model_copy(update={"offset": offset})
    transition = r.Transition.model_validate_json(
        """{"location": 0.05, "location_stderr": 0.0, "scale": 0.1, "n_observations": 12, "n_successes": 6,
        "steps_coefficient": 200.0, "steps_exponent": 1.2, "steps_spread": 0.2}"""
    ).model_copy(update={"location_stderr": location_stderr})
    cost = r.CostModel.model_validate_json(
        """{"seconds_overhead": 0.02, "seconds_per_layer_token": 1e-4, "seconds_per_head_token": 1e-3,
        "relative_spread": 0.25, "seconds_per_forward_token": 1e-3, "memory_base_bytes": 600000000,
        "memory_bytes_per_token": 400000.0}"""
    )
    fingerprint = r.ModelFingerprint(weights="w", config="c", tokenizer="t")
    return Calibration(
        model=r.CalibrationModel(
            ref="tiny", fingerprint=fingerprint, architecture="Llama", n_layers=30, max_positions=2048
        ),
        recipe=RECIPE,
        device="cpu",
        dtype="float32",
        law=law,
        sites=(site(ONE, 1.0, 2112), site(SIX, 1.3, 12_672), site(MLP, 0.6, 6336)),
        transition=transition,
        cost=cost,
        observations=(observation(1, 48), observation(8, 192)),
        provenance={},
    )


CALIBRATION = calibration()


def bounded_observation(rank: int, n_tokens: int, steps: int, *, held: bool = True) -> r.Observation:
    """A probe under a bound of 0.02, 12 nats to a token."""
    where: dict[str, Any] = {"target_modules": SIX[0], "layers_to_transform": SIX[1]}
    probe = r.ProbeSpec(
        **where, rank=rank, kind="random", n_tokens=n_tokens, seed=0, max_steps=200, max_drift=0.02
    )
    values = {"n_parameters": 12_672 * rank, "base_loss": 12.0, "threshold_met": held, "steps": steps, "drift": 0.01}
    return observation(1, 48).model_copy(update={**values, "probe": probe})


def with_bound() -> Calibration:
    """The synthetic calibration with a law under a bound of 0.02."""
    probes = [bounded_observation(16, 190, 50), bounded_observation(2, 170, 110)]
    probes.append(bounded_observation(1, 300, 100, held=False))
    return CALIBRATION.model_copy(update={"bounded": fit_bounded(probes, 1.5)})


def demand_of(nats: float, base_loss: float = 3.3) -> Demand:
    """A demand of this many nats."""
    return Demand(base_loss=base_loss, nats=nats, bits=bits(nats))


def plan_of(
    nats: float,
    calibrated: Calibration = CALIBRATION,
    *,
    same_device: bool = True,
    at: r.AdapterSpec | None = None,
    longest_sequence: int = 0,
    state_bytes: int = 0,
    bound: float | None = None,
    n_passages: int = 3,
    **wishes: Any,
) -> Plan:
    """The plan for a corpus of this demand, 3.3 nats a token; `same_device` is that of its inputs."""
    n_tokens = max(1, round(nats / 3.3))
    digests = {"corpus_sha256": "a", "model_fingerprint": "b", "tokenizer_sha256": "t", "calibration_sha256": "d"}
    return make_plan(
        calibration=calibrated,
        model=r.PlanModel(ref="tiny", fingerprint="b", dtype="float32", n_layers=30),
        corpus=r.CorpusSummary(n_passages=n_passages, n_tokens=n_tokens, sha256="a", files=()),
        demand=demand_of(nats),
        inputs=r.PlanInputs(**digests, recipe=RECIPE, same_device=same_device),
        work=Workload(n_tokens + 30, 305_280, longest_sequence, state_bytes),
        wishes=Wishes(**wishes),
        at=at,
        bound=bound,
    )


def parts(plan: Plan) -> tuple[r.AdapterSpec, float]:
    """The adapter and its chance."""
    assert plan.adapter is not None
    assert plan.prediction is not None
    return plan.adapter, plan.prediction.success_probability
