"""Calibrate, plan, apply and update under a bound on drift, on a tiny model with a loose bound."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.corpora import RECORDS, write_records

from lorasize import cli
from lorasize.artifacts.calibrations import read_calibration, write_calibration
from lorasize.errors import CalibrationError, FitError
from lorasize.law.observations import refit
from lorasize.records import MAX_DRIFT, Calibration, digest
from lorasize.training import guard
from lorasize.training.run import ApplyOptions
from lorasize.verbs import plan as sizing
from lorasize.verbs.apply import apply
from lorasize.verbs.calibrate import calibrate, with_bounded
from lorasize.verbs.plan import PlanOptions
from lorasize.verbs.plan_basis import bound_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_same_process", "_gentle")]

BOUND = 0.5
CPU = ApplyOptions(device="cpu")


@pytest.fixture
def _gentle(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull that begins low: a tiny model of random weights has little room."""
    monkeypatch.setattr(guard, "STRENGTH", 1.0)


@pytest.fixture(scope="module")
def bounded(
    torch: Any,
    calibrated_llama: tuple[Calibration, Path],
    able_llama: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Calibration, Path]:
    """The tiny calibration with a law under the bound added to it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bounded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "STRENGTH", 1.0)
        patch.setenv("LORASIZE_CACHE", str(tmp_path_factory.mktemp("cache")))
        how: dict[str, Any] = {"known": calibrated_llama[0], "max_drift": BOUND, "folder": folder}
        return calibrate(str(able_llama), device="cpu", preset="quick", **how)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of three records, 40 tokens or so."""
    return write_records(tmp_path / "corpus.jsonl", RECORDS)


def test_a_law_is_added_and_nothing_else_changes(
    bounded: tuple[Calibration, Path], calibrated_llama: tuple[Calibration, Path]
) -> None:
    before, after = calibrated_llama[0], bounded[0]
    law = after.bounded
    assert law is not None
    assert law.max_drift == BOUND
    assert len(law.layers_to_transform) > 1
    assert all(o.probe.max_drift == BOUND and o.drift is not None for o in law.observations)
    assert any(o.threshold_met for o in law.observations)
    same = ("law", "sites", "transition", "cost", "observations")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert after.grown_from == (*before.grown_from, digest(before))  # plans from before are not stale
    assert read_calibration(bounded[1]) == after


def test_a_calibration_of_something_else_is_not_added_to(
    calibrated_llama: tuple[Calibration, Path], tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="not of"):
        calibrate(str(tiny_llama), device="cpu", known=calibrated_llama[0], folder=tmp_path)


def test_probes_that_hold_nothing_leave_a_note(bounded: tuple[Calibration, Path]) -> None:
    law = bounded[0].bounded
    assert law is not None
    lost = [o.model_copy(update={"threshold_met": False}) for o in law.observations]
    after = with_bounded(bounded[0].model_copy(update={"bounded": None}), lost, 1.0)
    assert after.bounded is None
    assert after.provenance["bounded"].startswith("not fitted: None of")


def test_plan_and_apply_under_the_bound(
    bounded: tuple[Calibration, Path], able_llama: Path, corpus: Path, tmp_path: Path
) -> None:
    options = PlanOptions(calibration=bounded[1], max_drift=BOUND)
    plan = sizing.plan([corpus], ref=str(able_llama), device="cpu", options=options).plan
    law = bounded[0].bounded
    assert law is not None
    assert plan.adapter is not None
    assert plan.minimum is not None
    assert plan.adapter.site == law.site
    assert plan.max_drift == BOUND
    assert plan.inputs.calibration_sha256 == digest(bounded[0])
    done = apply(plan, tmp_path / "out", CPU)
    record = done.memorization
    assert record.recalled
    assert record.adapter.site == law.site
    assert record.drift is not None
    assert record.drift.bound == BOUND
    assert record.drift.kinds.keys() == {one.kind for one in record.drift.texts}
    assert record.base_statistics is not None
    assert record.base_statistics.n_tokens > 1000
    assert done.observation is not None
    learned = refit(bounded[0], done.observation)
    assert learned.bounded is not None
    assert learned.bounded.observations == (*law.observations, done.observation)
    assert (learned.law, learned.observations) == (bounded[0].law, bounded[0].observations)
    with pytest.raises(FitError, match="no law under this bound"):
        refit(bounded[0].model_copy(update={"bounded": None}), done.observation)
    free = apply(plan, tmp_path / "free", ApplyOptions(device="cpu", max_drift=math.inf)).memorization
    assert free.drift is not None
    assert free.drift.bound is None
    assert free.base_statistics is None


def test_an_update_stays_under_the_bound_of_what_it_begins_from(
    bounded: tuple[Calibration, Path], able_llama: Path, tmp_path: Path
) -> None:
    old = write_records(tmp_path / "old.jsonl", RECORDS)
    options = PlanOptions(calibration=bounded[1], max_drift=BOUND)
    first = sizing.plan([old], ref=str(able_llama), device="cpu", options=options).plan
    apply(first, tmp_path / "old", CPU)
    new = write_records(tmp_path / "new.jsonl", [*RECORDS[1:], (RECORDS[0][0], " otherwise")])
    options = PlanOptions(calibration=bounded[1], base_adapter=tmp_path / "old")
    second = sizing.plan([new], ref=str(able_llama), device="cpu", options=options).plan
    assert second.max_drift == BOUND
    assert second.update is not None
    record = apply(second, tmp_path / "new", CPU).memorization
    assert record.recalled
    assert record.update is not None
    assert record.update.n_old_produced == 0
    assert record.drift is not None
    assert record.drift.bound == BOUND


def test_which_bound_suits(bounded: tuple[Calibration, Path], calibrated_llama: tuple[Calibration, Path]) -> None:
    knows, does_not = bounded[0], calibrated_llama[0]
    assert bound_of(None, knows, None, None, None, 512) == (MAX_DRIFT, [])
    assert bound_of(math.inf, knows, None, None, None, 512) == (None, [])
    assert bound_of(0.1, does_not, ("q_proj",), None, None, 9000) == (0.1, [])  # asked for: refused where it is planned
    why = [(does_not, None, 9, "--add-to"), (knows, ("q_proj",), 9, "alone"), (knows, None, 26_001, "26,000 positions")]
    for calibration, modules, n_positions, said in why:
        bound, notes = bound_of(None, calibration, modules, None, None, n_positions)
        assert bound is None
        assert said in notes[0]


def test_the_command_plans_without_a_bound_where_nothing_is_known_of_one(
    calibrated_llama: tuple[Calibration, Path],
    able_llama: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_calibration(calibrated_llama[0], tmp_path / "c.json")
    line = f"plan {corpus.name} --model {able_llama} --device cpu --calibration c.json -q"
    assert cli.main(line.split()) == 0
    assert "Planned without a bound on what memorising does to other text" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*line.split(), "--max-drift", "0.02"]) == 3
    assert "knows nothing of adapters under a bound on drift" in capsys.readouterr().err
    assert cli.main([*line.split(), "--max-drift", "off"]) == 0
    assert "Planned without" not in capsys.readouterr().out
