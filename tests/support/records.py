"""Records with made-up figures, as lorasize writes them: what the tests of reports, pages and commands show."""

from __future__ import annotations

from typing import Any

from lorasize import records as r
from lorasize import report

FINGERPRINT = r.ModelFingerprint(weights="w", config="c", tokenizer="t")


def adapter(**changes: Any) -> r.AdapterSpec:
    values: dict[str, Any] = {
        "rank": 1, "lora_alpha": 1, "target_modules": ("up_proj",), "layers_to_transform": (16, 20),
        "n_parameters": 4224, "bytes": 16_896, "bits_per_parameter": 0.84,
    }  # fmt: skip
    return r.AdapterSpec(**values | changes)


def alternative(**changes: Any) -> r.Alternative:
    return r.Alternative(**{**adapter().model_dump(), "success_probability": 0.62, "seconds": 30.0, **changes})


def prediction(**changes: Any) -> r.Prediction:
    values: dict[str, Any] = {
        "final_loss": 0.0, "loss_reduction": 3.2, "capacity_slack": 1.31, "success_probability": 0.93,
        "confidence": 0.9, "rank_interval": (1, 3), "steps": r.Estimate(point=120, lo=80, hi=180),
        "seconds": r.Estimate(point=95, lo=60, hi=140), "peak_memory_bytes": 1_200_000_000, "extrapolated": False,
    }  # fmt: skip
    return r.Prediction(**values | changes)


def plan(**changes: Any) -> r.Plan:
    values: dict[str, Any] = {
        "status": "ok",
        "model": r.PlanModel(ref="tiny", fingerprint="f", dtype="float32", n_layers=30),
        "corpus": r.CorpusSummary(
            n_passages=20, n_tokens=768, sha256="a", files=(r.CorpusFile(path="page.md", sha256="b"),)
        ),
        "demand": r.Demand(base_loss=3.2, nats=2457.6, bits=3545.6),
        "feasibility": r.Feasibility(feasible=True),
        "adapter": adapter(),
        "prediction": prediction(),
        "alternatives": (alternative(n_parameters=2112), alternative(rank=8, layers_to_transform=tuple(range(14, 25)))),
        "rules_of_thumb": r.RulesOfThumb(parameters_ge_tokens_rank=3, flat_rank=16),
        "budgets": (r.Budget(id="bytes", limit=4e6, actual=16_896, level="error", result="pass"),),
        "serving": r.Serving(vllm_max_lora_rank=8, llama_cpp=True, notes=("PEFT loads the folder as it is.",)),
        "inputs": r.PlanInputs(
            corpus_sha256="a", model_fingerprint="f", tokenizer_sha256="t", calibration_sha256="c", recipe=r.RECIPE
        ),
        "warnings": ("Times were measured on another device.",),
    }  # fmt: skip
    return r.Plan(**values | changes)


def issue(file: str = "b.jsonl", line: int = 9) -> r.FeasibilityIssue:
    message = f"a.jsonl:4 and {file}:{line} have the same prompt but go on differently"
    return r.FeasibilityIssue(
        kind="same_prompt", passages=(0, 1), position=0, file=file, line=line, message=message
    )


def infeasible(*issues: r.FeasibilityIssue) -> r.Plan:
    found = r.Feasibility(feasible=False, issues=issues or (issue(),))
    nothing = {"demand": None, "adapter": None, "prediction": None, "serving": None, "rules_of_thumb": None}
    return plan(status="infeasible", feasibility=found, alternatives=(), budgets=(), warnings=(), **nothing)


def over_budget() -> r.Plan:
    return plan(
        status="over_budget",
        budgets=(r.Budget(id="bytes", limit=1000, actual=16_896, level="error", result="fail"),),
    )  # fmt: skip


def failure(passage: str = "page.md:3") -> r.RecallFailure:
    return r.RecallFailure(passage=passage, position=7, expected=" Oda", got="\n", probability=0.31)


def recall(recalled: bool = True, passage: str = "page.md:3", **changes: Any) -> r.RecallReport:
    one = r.PassageRecall(passage="page.md:1", recalled=True, n_tokens=40, min_probability=0.71, text="first")
    two = r.PassageRecall(passage=passage, recalled=recalled, n_tokens=51, min_probability=0.49996, text="second")
    values: dict[str, Any] = {
        "recalled": recalled, "n_passages": 2, "n_recalled": 1 + recalled, "threshold_met": recalled,
        "min_probability": 0.71 if recalled else 0.49996, "failures": () if recalled else (failure(passage),),
        "passages": (one, two), "dtype": "float32", "device": "cpu", "attn_implementation": "sdpa", "batch_size": 1,
        "fresh_process": True,
    }  # fmt: skip
    return r.RecallReport(**values | changes)


def memorization(recalled: bool = True, **changes: Any) -> r.Memorization:
    proof = recall(recalled)
    values: dict[str, Any] = {
        "outcome": r.Outcome.MEMORIZED if recalled else r.Outcome.STALLED, "threshold": 0.5,
        "threshold_met": recalled, "min_probability": 0.52, "n_tokens": 768, "n_stubborn": 0 if recalled else 3,
        "recalled": recalled, "steps": 140, "seconds": 101.0, "tokens_per_second": 1064.5, "adapter": adapter(),
        "escalations": (r.Escalation(**{"from": "rank 1"}, to="rank 2", step=90),),
        "recall": r.RecallSummary(**proof.model_dump(include=set(r.RecallSummary.model_fields))), "drift": None,
        "model_fingerprint": FINGERPRINT, "plan": plan(),
    }  # fmt: skip
    return r.Memorization(**values | changes)


def calibration(**changes: Any) -> r.Calibration:
    law = r.Law(
        coefficient=2.1, parameter_exponent=0.66, length_exponent=0.6, offset=-0.4, covariance=((0.0,) * 4,) * 4,
        r_squared=0.987, form="power", reference_loss=14.0, residual_stderr=0.21, n_observations=12,
        parameters_range=(2000, 17_000), tokens_range=(48, 768),
    )  # fmt: skip
    values: dict[str, Any] = {
        "model": r.CalibrationModel(
            ref="tiny", fingerprint=FINGERPRINT, architecture="llama", n_layers=30, max_positions=2048
        ),
        "recipe": r.RECIPE, "device": "cpu", "dtype": "float32", "law": law,
        "sites": (
            r.SiteEfficiency(
                target_modules=("up_proj",), layers_to_transform=(14, 15, 16), efficiency=1.25, stderr=0.07,
                parameters_per_rank=6336,
            ),
        ),
        "transition": r.Transition(
            location=0.05, location_stderr=0.02, scale=0.1, n_observations=12, n_successes=6, steps_coefficient=200,
            steps_exponent=1.2, steps_spread=0.2,
        ),
        "cost": r.CostModel(
            seconds_overhead=0.02, seconds_per_layer_token=1e-4, seconds_per_head_token=1e-3, relative_spread=0.25,
            seconds_per_forward_token=1e-3, memory_base_bytes=600_000_000, memory_bytes_per_token=4e5,
        ),
        "observations": (), "provenance": {"preset": "quick", "made": "2026-01-02"},
    }  # fmt: skip
    return r.Calibration(**values | changes)


def shown(record: Any) -> str:
    return report.to_text(report.table(record))


def words(record: Any) -> str:
    """The table with its line breaks and padding folded."""
    return " ".join(shown(record).split())


def step(number: int, *, evaluated: bool = False) -> r.StepReport:
    return r.StepReport(
        step=number, loss=0.5, n_tokens=768, n_stubborn=12, n_active=40, min_probability=0.1, seconds=1.0,
        evaluated=evaluated,
    )  # fmt: skip


def command_lines(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.lstrip().startswith("::") or "##[" in line]


RECORDS = {
    "plan": plan(), "infeasible": infeasible(), "over": over_budget(), "calibration": calibration(),
    "recall": recall(), "lost": recall(recalled=False), "memorization": memorization(),
    "stalled": memorization(recalled=False),
}  # fmt: skip
