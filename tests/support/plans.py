"""A plan that was committed beside its corpus, as a check in CI finds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.paths import SHIPPED

from lorasize.artifacts.calibrations import read_calibration
from lorasize.artifacts.plans import write_plan
from lorasize.corpus import corpus_sha256, read_corpus
from lorasize.planning import Workload, make_plan
from lorasize.records import (
    CorpusSummary,
    Demand,
    PassageDemand,
    Plan,
    PlanInputs,
    PlanModel,
    Reading,
    digest,
)

PLAN = Path("lorasize.plan.json")
FACTS = '{"prompt": "A:", "completion": " 1"}\n{"prompt": "B:", "completion": " 2"}\n'


@pytest.fixture
def committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A folder with a corpus of two records and the plan for it, from the shipped calibration."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    Path("facts.jsonl").write_text(FACTS, "utf-8")
    calibration = read_calibration(SHIPPED)
    _, files = read_corpus([Path("facts.jsonl")])
    costly = PassageDemand(id="b", file="facts.jsonl", line=2, n_tokens=3, nats=900.0)
    plan = make_plan(
        calibration=calibration,
        model=PlanModel(ref="m", fingerprint="f", dtype="float32", n_layers=30),
        corpus=CorpusSummary(n_passages=2, n_tokens=300, sha256=corpus_sha256(files), files=files, reading=Reading()),
        demand=Demand(base_loss=6.0, nats=1800.0, bits=2597.0, costliest=(costly,)),
        inputs=PlanInputs(
            corpus_sha256=corpus_sha256(files),
            model_fingerprint="f",
            tokenizer_sha256=calibration.model.fingerprint.tokenizer,
            calibration_sha256=digest(calibration),
            recipe=calibration.recipe,
        ),
        work=Workload(n_positions=310, linear_parameters_per_rank=500_000),
    )
    write_plan(plan, PLAN)
    return plan
