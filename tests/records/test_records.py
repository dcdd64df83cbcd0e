"""Records: closed, frozen, free of NaN, versioned, and the same after a trip through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, create_model

from lorasize import records
from lorasize.records import (
    AdapterSpec,
    Calibration,
    Demand,
    Escalation,
    Memorization,
    ModelFingerprint,
    Outcome,
    Passage,
    Plan,
    RecallReport,
    Site,
    digest,
    to_json,
)

CLASSES = [
    value
    for value in vars(records).values()
    if isinstance(value, type) and issubclass(value, BaseModel) and value is not BaseModel
]

SHA = "0" * 64
FINGERPRINT = {"weights": "w", "config": "c", "tokenizer": "t"}
SITE = {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0, 1]}
ADAPTER = SITE | {"rank": 4, "lora_alpha": 4, "n_parameters": 9216, "bytes": 18432, "bits_per_parameter": 0.5}
ESTIMATE = {"point": 2.0, "lo": 1.0, "hi": 3.0}
FAILURE = {"passage": "a.txt#1", "position": 3, "expected": " is", "got": " was", "probability": 0.31}
DECODING = {"dtype": "float32", "device": "cpu", "attn_implementation": "sdpa", "batch_size": 8, "fresh_process": True}
PROBE = SITE | {"rank": 2, "kind": "random", "n_tokens": 128, "seed": 7, "max_steps": 300}
OBSERVATION = {
    "probe": PROBE, "n_parameters": 4608, "base_loss": 4.5, "final_loss": 0.5, "loss_reduction": 4.0, "n_stubborn": 3,
    "threshold_met": False, "steps": 300, "seconds": 12.0, "seconds_per_step": 0.04, "peak_memory_bytes": 10**9,
}  # fmt: skip
PLAN: dict[str, Any] = {
    "schema": "lorasize.plan/1",
    "status": "ok",
    "model": {"ref": "builtin:smollm2", "fingerprint": SHA, "dtype": "float32", "n_layers": 30},
    "corpus": {"n_passages": 2, "n_tokens": 90, "sha256": SHA, "files": [{"path": "a.txt", "sha256": SHA}]},
    "demand": {"base_loss": 3.0, "nats": 270.0, "bits": 389.5},
    "feasibility": {"feasible": True},
    "adapter": ADAPTER,
    "prediction": {
        "final_loss": 0.1, "loss_reduction": 2.9, "capacity_slack": 1.3, "success_probability": 0.93, "confidence": 0.9,
        "rank_interval": [3, 6], "steps": ESTIMATE, "seconds": ESTIMATE, "peak_memory_bytes": 10**9,
        "extrapolated": False,
    },
    "alternatives": [ADAPTER | {"success_probability": 0.95, "seconds": 40.0}],
    "rules_of_thumb": {"parameters_ge_tokens_rank": 1, "flat_rank": 16},
    "budgets": [{"id": "max-rank", "limit": 8.0, "actual": 4.0, "level": "error", "result": "pass"}],
    "serving": {"vllm_max_lora_rank": 8, "llama_cpp": True},
    "inputs": {
        "corpus_sha256": SHA, "model_fingerprint": SHA, "tokenizer_sha256": SHA, "calibration_sha256": SHA,
        "recipe": "memft/2",
    },
}  # fmt: skip
RECALL: dict[str, Any] = DECODING | {
    "schema": "lorasize.recall/1", "recalled": False, "n_passages": 2, "n_recalled": 1, "threshold_met": False,
    "min_probability": 0.31, "failures": [FAILURE],
}  # fmt: skip
MEMORIZATION: dict[str, Any] = {
    "schema": "lorasize.memorization/1", "outcome": "memorized", "threshold": 0.5, "threshold_met": True,
    "min_probability": 0.52, "n_tokens": 90, "n_stubborn": 0, "recalled": True, "steps": 80, "seconds": 30.0,
    "tokens_per_second": 240.0, "adapter": ADAPTER, "escalations": [{"from": "rank 4", "to": "rank 6", "step": 40}],
    "recall": DECODING | {"n_passages": 2, "n_recalled": 2, "failures": []}, "drift": None,
    "model_fingerprint": FINGERPRINT, "plan": PLAN,
}  # fmt: skip
CALIBRATION: dict[str, Any] = {
    "schema": "lorasize.calibration/1",
    "model": {
        "ref": "builtin:smollm2", "fingerprint": FINGERPRINT, "architecture": "llama", "n_layers": 30,
        "max_positions": 2048,
    },
    "recipe": "memft/2", "device": "cpu", "dtype": "float32",
    "law": {
        "coefficient": 0.05, "parameter_exponent": 0.6, "length_exponent": 0.5, "offset": -0.2,
        "covariance": [[1e-4, 0.0, 0.0, 0.0], [0.0, 1e-4, 0.0, 0.0], [0.0, 0.0, 1e-4, 0.0], [0.0, 0.0, 0.0, 1e-4]],
        "r_squared": 0.98, "form": "power", "reference_loss": 4.5, "residual_stderr": 0.1, "n_observations": 1,
        "parameters_range": [1e3, 1e5], "tokens_range": [64.0, 2048.0],
    },
    "sites": [SITE | {"efficiency": 1.0, "stderr": 0.0, "parameters_per_rank": 2304}],
    "transition": {
        "location": 0.05, "location_stderr": 0.02, "scale": 0.08, "n_observations": 20, "n_successes": 9,
        "steps_coefficient": 200.0, "steps_exponent": 1.2, "steps_spread": 0.2,
    },
    "cost": {
        "seconds_overhead": 0.01, "seconds_per_layer_token": 1e-6, "seconds_per_head_token": 1e-5,
        "relative_spread": 0.1, "seconds_per_forward_token": 1e-5, "memory_base_bytes": 10**9,
        "memory_bytes_per_token": 2e5,
    },
    "observations": [OBSERVATION],
    "provenance": {"command": "lorasize calibrate"},
}  # fmt: skip

ARTIFACTS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (Plan, PLAN),
    (RecallReport, RECALL),
    (Memorization, MEMORIZATION),
    (Calibration, CALIBRATION),
]
artifacts = pytest.mark.parametrize(("cls", "data"), ARTIFACTS, ids=[cls.__name__ for cls, _ in ARTIFACTS])


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_record_is_frozen_closed_and_finite(cls: type[BaseModel]) -> None:
    config = cls.model_config
    assert (config.get("frozen"), config.get("extra"), config.get("allow_inf_nan")) == (True, "forbid", False)
    assert cls.__bases__ == (BaseModel,)
    assert cls.__doc__


@artifacts
def test_json_round_trip(cls: type[BaseModel], data: dict[str, Any]) -> None:
    record = cls.model_validate(data)
    text = to_json(record)
    assert text.endswith("}\n")
    assert cls.model_validate_json(text) == record
    assert to_json(cls.model_validate_json(text)) == text


@artifacts
def test_json_keeps_what_was_given(cls: type[BaseModel], data: dict[str, Any]) -> None:
    """Every given field comes out under its contract name with its value; only defaults are added."""

    def kept(given: Any, written: Any) -> bool:
        if isinstance(given, dict):
            return all(key in written and kept(value, written[key]) for key, value in given.items())
        if isinstance(given, list):
            return len(given) == len(written) and all(map(kept, given, written))
        return bool(given == written)

    assert kept(data, json.loads(to_json(cls.model_validate(data))))


@artifacts
def test_unknown_field_is_refused(cls: type[BaseModel], data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        cls.model_validate(data | {"lora_dropout": 0.1})


def test_unknown_field_is_refused_at_any_depth() -> None:
    with pytest.raises(ValidationError, match=r"prediction\.gain"):
        Plan.model_validate(PLAN | {"prediction": PLAN["prediction"] | {"gain": 1.0}})


@artifacts
@pytest.mark.parametrize("major", ["0", "2", "10", "", "1.1"])
def test_another_major_schema_is_refused(cls: type[BaseModel], data: dict[str, Any], major: str) -> None:
    name = data["schema"].partition("/")[0]
    with pytest.raises(ValidationError, match="schema"):
        cls.model_validate_json(json.dumps(data | {"schema": f"{name}/{major}"}))


def test_another_artifact_is_refused() -> None:
    with pytest.raises(ValidationError, match="schema"):
        Plan.model_validate(PLAN | {"schema": "lorasize.calibration/1"})


@artifacts
def test_schema_leads_the_document(cls: type[BaseModel], data: dict[str, Any]) -> None:
    document = json.loads(to_json(cls.model_validate(data)))
    assert next(iter(document)) == "schema"
    assert "schema_" not in document


def test_escalation_is_written_from_to() -> None:
    by_alias = Escalation.model_validate({"from": "rank 4", "to": "rank 6", "step": 40})
    assert by_alias == Escalation(from_="rank 4", to="rank 6", step=40)
    assert json.loads(to_json(by_alias)) == {"from": "rank 4", "to": "rank 6", "step": 40}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("field", ["base_loss", "nats", "bits"])
def test_nan_and_infinity_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Demand.model_validate({"base_loss": 1.0, "nats": 1.0, "bits": 1.0} | {field: value})


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_nan_in_a_file_is_refused(word: str) -> None:
    with pytest.raises(ValidationError):
        Demand.model_validate_json(f'{{"base_loss": {word}, "nats": 1.0, "bits": 1.0}}')


def test_nan_inside_a_matrix_is_refused() -> None:
    law = CALIBRATION["law"] | {"covariance": [[float("nan")]]}
    with pytest.raises(ValidationError, match="covariance"):
        Calibration.model_validate(CALIBRATION | {"law": law})


def test_records_cannot_be_changed() -> None:
    demand = Demand(base_loss=1.0, nats=1.0, bits=1.0)
    with pytest.raises(ValidationError, match="frozen"):
        demand.nats = 2.0  # type: ignore[misc]
    assert demand.nats == 1.0


@pytest.mark.parametrize("change", [{"rank": 0}, {"rank": -1}, {"lora_alpha": 0}, {"rank": 1.5}])
def test_adapter_needs_a_rank(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        AdapterSpec.model_validate(ADAPTER | change)


def test_passage_lines_start_at_one() -> None:
    with pytest.raises(ValidationError, match="line"):
        Passage(id="a", file="a.txt", line=0, prompt="", target="x")


def test_adapter_without_its_rank_is_a_site() -> None:
    assert AdapterSpec.model_validate(ADAPTER).site == Site.model_validate(SITE)


def test_observation_counts_nats() -> None:
    assert records.Observation.model_validate(OBSERVATION).nats == 4.5 * 128


def test_every_outcome_has_its_own_sentence() -> None:
    sentences = [outcome.sentence for outcome in Outcome]
    assert len(set(sentences)) == len(Outcome) == 4
    assert all(s.endswith(".") for s in sentences)


def test_unknown_outcome_is_refused() -> None:
    with pytest.raises(ValidationError, match="outcome"):
        Memorization.model_validate(MEMORIZATION | {"outcome": "finished"})


def test_infeasible_plan_has_no_adapter() -> None:
    plan = Plan.model_validate(PLAN | {"status": "infeasible", "adapter": None, "prediction": None, "demand": None})
    assert Plan.model_validate_json(to_json(plan)).adapter is None


@artifacts
def test_digest_survives_the_file(cls: type[BaseModel], data: dict[str, Any]) -> None:
    record = cls.model_validate(data)
    assert digest(cls.model_validate_json(to_json(record))) == digest(record)
    assert len(digest(record)) == 64


def test_a_field_added_later_makes_no_plan_stale() -> None:
    def version(**later: Any) -> type[BaseModel]:
        return create_model("Plan", rank=(int, ...), note=(str | None, None), **later)

    before, after = version(), version(drift=(float | None, None), serve=(str, "peft"))
    assert digest(before(rank=1)) == digest(after(rank=1))
    assert digest(after(rank=1)) != digest(after(rank=1, drift=0.1))
    assert digest(before(rank=1)) != digest(create_model("Check", rank=(int, ...))(rank=1))


def test_digest_ignores_the_order_of_keys() -> None:
    turned = {key: PLAN[key] for key in reversed(PLAN)}
    assert digest(Plan.model_validate(turned)) == digest(Plan.model_validate(PLAN))


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_digest_tells_numbers_apart(a: float, b: float) -> None:
    """Any two different finite numbers, also after a file: no digit is lost in writing."""
    one, two = (Demand(base_loss=x, nats=1.0, bits=1.0) for x in (a, b))
    assert Demand.model_validate_json(to_json(one)).base_loss == a
    assert (a == b) or digest(one) != digest(two)


def test_fingerprint_depends_on_each_part() -> None:
    whole = ModelFingerprint.model_validate(FINGERPRINT)
    others = [ModelFingerprint.model_validate(FINGERPRINT | {part: "x"}) for part in FINGERPRINT]
    assert len({m.digest for m in (whole, *others)}) == 4


@given(st.text(), st.text())
def test_passage_text_is_kept_exactly(prompt: str, target: str) -> None:
    try:
        (prompt + target).encode()
    except UnicodeEncodeError:  # a lone surrogate cannot come from a file that was decoded strictly
        return
    passage = Passage(id="a", file="a.txt", line=1, prompt=prompt, target=target)
    assert Passage.model_validate_json(to_json(passage)) == passage
