"""JUnit, Markdown and what GitHub's runner is told: well-formed, complete, and nothing from a corpus acts in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support import records as made

from lorasize import records as r
from lorasize import report
from lorasize.cli import main
from lorasize.report.facts.recall import memorization_verdict
from lorasize.report.formats.markdown import MAX_SUMMARY_BYTES, escape

NASTY = "x|y `<script>alert(1)</script>` & [a](http://b) @team #1 ::error::z \x1b[31m\x00 **bold** ]]>"


def cases(record: Any) -> dict[str, str | None]:
    """Name of each case, and its failure."""
    root = ElementTree.fromstring(report.junit(record))
    found = {}
    for case in root.iter("testcase"):
        failure = case.find("failure")
        found[case.attrib["name"]] = None if failure is None else failure.attrib["message"]
    (suite,) = root
    assert suite.attrib["tests"] == str(len(found))
    assert suite.attrib["failures"] == str(sum(wrong is not None for wrong in found.values()))
    return found


def test_junit_has_a_case_for_each_budget() -> None:
    assert cases(made.plan()) == {"feasible": None, "budget bytes": None}
    assert "the limit is 1,000" in str(cases(made.over_budget())["budget bytes"])
    assert "same prompt" in str(cases(made.infeasible())["feasible"])


def test_junit_has_a_case_for_each_passage() -> None:
    found = cases(made.recall(recalled=False))
    assert [wrong for wrong in found.values() if wrong] != []
    good = cases(made.recall())
    assert {p.passage for p in made.recall().passages} < set(good)
    assert set(good.values()) == {None}
    assert "README.md changed" in str(cases(made.recall(changed_files=("README.md",)))["files as proven"])


def test_junit_of_the_rest() -> None:
    assert set(cases(made.memorization()).values()) == {None}
    assert any(cases(made.memorization(recalled=False)).values())
    assert cases(made.RECORDS["calibration"]) == {"calibrated": None}


def test_a_check_is_reported_in_every_format() -> None:
    plan = made.over_budget()
    found = r.Check(
        status="stale", plan="p.json", stale=("a|b changed",), feasibility=plan.feasibility, budgets=plan.budgets
    )
    assert cases(found)["not stale"] == "a|b changed"
    assert "the limit is 1,000" in str(cases(found)["budget bytes"])
    said = report.markdown(found)
    assert said.startswith("### STALE")
    assert "- a\\|b changed" in said
    assert "a|b changed: plan again" in report.github(found)
    assert report.outputs(found) == "status=stale\n"


def test_text_from_a_corpus_stays_text_in_xml() -> None:
    found = cases(made.recall(recalled=False, passage=NASTY))
    assert any("<script>alert(1)</script>" in name for name in found)
    assert not any("\x1b" in name or "\x00" in name for name in found)


def test_text_from_a_corpus_stays_text_in_markdown() -> None:
    said = report.markdown(made.recall(recalled=False, passage=NASTY))
    assert "<script>" not in said
    assert "&lt;script" in said
    for acting in ("](http", " @team", "\n::error", "`<", "**bold**", "\x1b"):
        assert acting not in said
    assert escape("a|b") == "a\\|b"


@pytest.mark.parametrize("name", made.RECORDS)
def test_every_record_has_its_markdown_and_its_tables_are_whole(name: str) -> None:
    said = report.markdown(made.RECORDS[name])
    assert said.startswith("### ")
    tables = [block.splitlines() for block in said.split("\n\n") if block.lstrip().startswith("|")]
    for lines in tables:
        rows = [line for line in lines if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_markdown_fits_a_job_summary() -> None:
    many = made.infeasible(*(made.issue(line=k) for k in range(1, 20_000)))
    said = report.markdown(many)
    assert len(said.encode()) < 2**20
    assert said.endswith("*Cut off here: the whole report is longer.*\n")
    assert MAX_SUMMARY_BYTES < 2**20


def test_the_runner_gets_a_summary_and_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.json").write_text(r.to_json(made.over_budget()), "utf-8")
    for variable in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        (tmp_path / variable).write_text("before\n", "utf-8")
        monkeypatch.setenv(variable, str(tmp_path / variable))
    assert main(["show", "p.json", "--report", "github", "--report", "junit=j.xml"]) == 0
    capsys.readouterr()
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text("utf-8").startswith("before\n### OVER BUDGET")
    assert "status=over_budget\nrank=" in (tmp_path / "GITHUB_OUTPUT").read_text("utf-8")
    assert ElementTree.parse(tmp_path / "j.xml").getroot().tag == "testsuites"


def test_a_compared_plan_shows_what_changed() -> None:
    from lorasize.planning import compare

    old = made.plan()
    assert old.adapter is not None
    larger = old.adapter.model_copy(update={"rank": 2 * old.adapter.rank, "n_parameters": 2 * old.adapter.n_parameters})
    new = old.model_copy(update={"adapter": larger})
    found = compare(old, new)
    assert [(d.id, d.before, d.after) for d in found] == [
        ("rank", old.adapter.rank, larger.rank),
        ("parameters", old.adapter.n_parameters, larger.n_parameters),
    ]
    assert compare(old, old) == ()
    assert compare(old, made.infeasible())[-1].after is None
    shown = report.to_text(report.plan_table(new.model_copy(update={"compared": found})))
    assert "+100%" in shown


def test_what_broke_the_bound_is_named() -> None:
    """The mean; or a kind of text, where the mean is kept. The kind that moves most is taken to be the corpus's own."""

    def kind(name: str, kl: float) -> r.KindDrift:
        return r.KindDrift(kind=name, before=3.0, after=3.0, divergence=kl, unchanged=0.9)

    own, licence = kind("incident", 0.2), kind("licence", 0.06)
    seen = (((), 0.03, "other text moved by 0.030"), ((own, licence), 0.01, "text of the kind licence moved by 0.060"))
    for texts, nats, said in seen:
        drift = r.Drift(before=3.0, after=3.0 + nats, nats=nats, bound=0.02, divergence=0.01, texts=texts)
        run = made.memorization(drift=drift)
        assert memorization_verdict(run) == f"NOT MEMORIZED: {said} nats per token, more than the bound allows."
        assert f"{said} nats per token, over the bound" in report.github(run)
        assert cases(run)["other text kept"] == f"{said} nats per token"


def test_each_kind_of_text_is_a_case_and_text_like_the_corpus_is_told() -> None:
    """All but the corpus's own kind may fail; what is near the corpus is shown, and judged by nothing."""

    def kind(name: str, kl: float) -> r.KindDrift:
        return r.KindDrift(kind=name, before=3.0, after=3.0, divergence=kl, unchanged=0.9)

    texts = (kind("incident", 0.2), kind("licence", 0.06), kind("news", 0.051), kind("prose", 0.01))
    drift = r.Drift(before=3.0, after=3.0, nats=0.0, bound=0.02, divergence=0.01, texts=texts)
    run = made.memorization(drift=drift.model_copy(update={"neighbours": kind("text like the corpus", 0.4)}))
    found = {name.removeprefix("other text kept: "): wrong for name, wrong in cases(run).items() if ": " in name}
    assert found == {
        "incident": None,
        "licence": "KL 0.0600, at most 0.05 asked",
        "news": "KL 0.0510, at most 0.05 asked",
        "prose": None,
    }
    assert "KL 0.400, loss +0.000 nats per token" in report.to_text(report.memorization_table(run))
    assert "text like the corpus" in report.html(run)
