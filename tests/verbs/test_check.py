"""The verb check: a committed plan against the files beside it, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.paths import SHIPPED
from support.plans import FACTS, PLAN

from lorasize.artifacts.calibrations import read_calibration, write_calibration
from lorasize.artifacts.plans import read_plan, write_plan
from lorasize.cli import main
from lorasize.corpus import corpus_sha256, read_corpus
from lorasize.records import (
    Plan,
    Reading,
    digest,
)
from lorasize.verbs.learn import Learned, learn

Checked = Callable[..., tuple[int, dict[str, Any]]]


pytestmark = pytest.mark.usefixtures("committed")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Checked:
    """`check(*arguments)` → exit code and the JSON report."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        code = main(["check", *arguments, "--report", "json"])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_a_plan_that_holds_is_0(check: Checked) -> None:
    code, found = check()
    assert (code, found["status"], found["stale"], found["schema"]) == (0, "ok", [], "lorasize.check/1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plan: Path("facts.jsonl").write_text(FACTS.replace("2", "3"), "utf-8"), "facts.jsonl changed"),
        (lambda plan: Path("facts.jsonl").unlink(), "facts.jsonl is missing"),
        (lambda plan: write_plan(_with(plan, recipe="memft/0"), PLAN), "training recipe"),
        (lambda plan: write_plan(_with(plan, calibration_sha256="0" * 64), PLAN), "calibration it was made from"),
        (lambda plan: write_plan(_with(plan, tokenizer_sha256="0" * 64), PLAN), "tokenizer is another"),
    ],
)
def test_what_changed_since_is_named_and_3(
    change: Callable[[Plan], object], said: str, committed: Plan, check: Checked
) -> None:
    change(committed)
    code, found = check()
    assert (code, found["status"]) == (3, "stale")
    assert any(said in reason for reason in found["stale"])


def _edited(plan: Plan, **changes: Any) -> Plan:
    return plan.model_copy(update=changes)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda p: _edited(p, corpus=p.corpus.model_copy(update={"files": ()})), "digests do not agree"),
        (lambda p: _with(p, corpus_sha256="0" * 64), "digests do not agree"),
        (lambda p: _edited(p, corpus=p.corpus.model_copy(update={"sha256": "0" * 64})), "digests do not agree"),
        (lambda p: _edited(p, adapter=p.adapter.model_copy(update={"n_parameters": 1, "bytes": 4})), "adapter's size"),
        (lambda p: _edited(p, adapter=p.adapter.model_copy(update={"bytes": 1})), "adapter's size"),
        (lambda p: _edited(p, status="over_budget"), "was over budget when it was made"),
    ],
)
def test_a_plan_that_contradicts_itself_is_3(
    edit: Callable[[Plan], Plan], said: str, committed: Plan, check: Checked
) -> None:
    """As after a merge, or an edit by hand to pass."""
    write_plan(edit(committed), PLAN)
    code, found = check()
    assert (code, found["status"]) == (3, "stale")
    assert any(said in reason for reason in found["stale"])


def test_a_stored_verdict_is_worked_out_again(committed: Plan, check: Checked) -> None:
    lie = {"id": "rank", "limit": 1, "actual": 2, "level": "error", "result": "pass"}
    write_plan(Plan.model_validate({**committed.model_dump(), "budgets": (lie,)}), PLAN)
    code, found = check()
    assert (code, found["budgets"][0]["result"]) == (1, "fail")


def _with(plan: Plan, **changes: str) -> Plan:
    return plan.model_copy(update={"inputs": plan.inputs.model_copy(update=changes)})


def test_a_plan_from_another_model_s_calibration_is_not_stale_for_that(committed: Plan, check: Checked) -> None:
    prior = committed.inputs.model_copy(update={"prior": True, "calibration_sha256": "0" * 64})
    write_plan(committed.model_copy(update={"inputs": prior}), PLAN)
    assert check()[0] == 0


def test_a_conflict_in_the_text_is_5_whatever_else_changed(check: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    Path("facts.jsonl").write_text(FACTS + '{"prompt": "A:", "completion": " 7"}\n', "utf-8")
    code, found = check()
    assert (code, found["status"]) == (5, "infeasible")
    (issue,) = found["feasibility"]["issues"]
    assert (issue["file"], issue["line"], issue["passages"]) == ("facts.jsonl", 3, [0, 2])
    assert main(["check", "--report", "github"]) == 5
    assert "::error title=lorasize,file=facts.jsonl,line=3::" in capsys.readouterr().out


def test_one_record_twice_is_no_conflict(check: Checked) -> None:
    Path("facts.jsonl").write_text(FACTS + FACTS, "utf-8")
    assert check()[1]["feasibility"]["feasible"] is True


def test_budgets_of_today_are_1_with_an_annotation_at_the_costliest_line(
    committed: Plan, check: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert committed.adapter is not None
    limit = committed.adapter.n_parameters - 1
    code, found = check("--max-parameters", str(limit))
    assert (code, found["status"]) == (1, "over_budget")
    assert main(["check", "--max-parameters", str(limit), "--report", "github"]) == 1
    assert "::error title=lorasize,file=facts.jsonl,line=2::parameters: " in capsys.readouterr().out
    assert check("--max-parameters", str(limit), "--budget-level", "parameters=warn")[0] == 0
    assert check("--max-parameters", str(limit), "--budget-level", "parameters=off")[1]["budgets"] == []


def test_a_budget_may_be_held_against_the_upper_estimate(committed: Plan, check: Checked) -> None:
    assert committed.adapter is not None
    assert committed.prediction is not None
    rank, most = committed.adapter.rank, committed.prediction.rank_interval[1]
    code, found = check("--max-rank", str(rank), "--budget-against", "rank=upper")
    assert (code, found["budgets"][0]["actual"], found["budgets"][0]["against"]) == (int(most > rank), most, "upper")


def test_the_plan_s_own_budgets_count_unless_today_says_otherwise(committed: Plan, check: Checked) -> None:
    assert committed.prediction is not None
    over = {"id": "rank", "limit": 1, "actual": 2, "level": "error", "result": "fail"}
    write_plan(Plan.model_validate({**committed.model_dump(), "budgets": (over,)}), PLAN)
    assert check()[0] == 1
    assert check("--max-rank", "64")[0] == 0


@pytest.mark.parametrize(
    ("budget", "code"),
    [
        ("parameters = 1", 1),
        ('parameters = { limit = 1, level = "warn" }', 0),
        ('bytes = { limit = "1 KB", against = "upper" }', 1),
        ('seconds = { limit = "1 s", level = "warn" }', 0),
        ('parameters = { limit = 1, level = "loud" }', 2),
        ("parameters = { most = 1 }", 2),
        ('parameter = { level = "off" }', 2),
    ],
)
def test_budgets_from_the_configuration(budget: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("lorasize.toml").write_text(f"[budget]\n{budget}\n", "utf-8")
    assert main(["check"]) == code
    capsys.readouterr()


def test_an_infeasible_plan_is_5_and_a_missing_one_2(committed: Plan, check: Checked) -> None:
    none: dict[str, Any] = {"status": "infeasible", "adapter": None, "prediction": None}
    issue = {"kind": "same_prefix", "passages": (0, 1), "position": 3, "file": "facts.jsonl", "line": 2, "message": "x"}
    none["feasibility"] = {"feasible": False, "issues": (issue,)}
    write_plan(Plan.model_validate({**committed.model_dump(), **none}), PLAN)
    assert check()[0] == 5
    PLAN.unlink()
    assert main(["check"]) == 2


@pytest.mark.parametrize(("same", "code", "result"), [(True, 1, "fail"), (False, 0, "warn")])
def test_seconds_are_held_against_the_device_of_the_plan(
    committed: Plan, check: Checked, same: bool, code: int, result: str
) -> None:
    """Not against the machine that checks."""
    write_plan(_with(committed, same_device=same), PLAN)
    got, found = check("--max-seconds", "1 s")
    assert (got, found["budgets"][0]["result"]) == (code, result)


def test_a_calibration_that_runs_joined_makes_no_plan_stale(check: Checked) -> None:
    shipped = read_calibration(SHIPPED)
    seen = shipped.observations[-1]
    another = seen.model_copy(update={"probe": seen.probe.model_copy(update={"seed": 777})})
    fewer = shipped.model_copy(update={"observations": shipped.observations[:-1]})
    write_calibration(fewer, Path("calibrations/a.json"))
    own = read_calibration(Path("calibrations/a.json"))
    write_plan(_with(read_plan(PLAN), calibration_sha256=digest(own)), PLAN)
    assert isinstance(learn(digest(own), another), Learned)
    assert digest(read_calibration(Path("calibrations/a.json"))) != digest(own)
    assert check()[0] == 0


@pytest.mark.parametrize(("template", "code"), [("{number}. {prompt}", 0), ("Q: {prompt}", 5)])
def test_prompts_that_the_template_tells_apart_are_no_conflict(
    committed: Plan, check: Checked, template: str, code: int
) -> None:
    Path("facts.jsonl").write_text(FACTS + FACTS.replace("1", "3"), "utf-8")
    _, files = read_corpus([Path("facts.jsonl")])
    corpus = committed.corpus.model_copy(
        update={"files": files, "sha256": corpus_sha256(files), "reading": Reading(prompt_template=template)}
    )
    write_plan(_with(committed.model_copy(update={"corpus": corpus}), corpus_sha256=corpus_sha256(files)), PLAN)
    assert check()[0] == code


def test_the_report_reads_back(check: Checked, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--report", "json=check.json"])
    capsys.readouterr()
    assert main(["show", "check.json"]) == 0
    assert "OK: the plan holds" in capsys.readouterr().out
    assert read_plan(PLAN).status == "ok"


def test_line_ends_that_git_changed_are_told_from_changes(check: Checked) -> None:
    """As core.autocrlf leaves them: read as planned, and said; a change of more is a change."""
    Path("facts.jsonl").write_bytes(FACTS.replace("\n", "\r\n").encode())
    code, found = check()
    assert (code, found["status"], found["stale"]) == (0, "ok", [])
    assert any("facts.jsonl: only its line ends changed" in warning for warning in found["warnings"])
    Path("facts.jsonl").write_bytes(FACTS.replace("\n", "\r\n").replace("2", "3").encode())
    code, found = check()
    assert (code, found["stale"]) == (3, ["facts.jsonl changed"])


def test_a_file_that_is_new_in_a_folder_is_named(committed: Plan, check: Checked) -> None:
    """Also one that a pattern matches only now; a blank one holds nothing."""
    corpus = committed.corpus.model_copy(update={"named": ("facts*.jsonl",)})
    write_plan(_edited(committed, corpus=corpus), PLAN)
    Path("facts-blank.jsonl").write_text("\n", "utf-8")
    assert check()[0] == 0
    Path("facts2.jsonl").write_text('{"prompt": "C:", "completion": " 3"}\n', "utf-8")
    code, found = check()
    assert (code, found["stale"]) == (3, ["facts2.jsonl is new in the corpus"])
