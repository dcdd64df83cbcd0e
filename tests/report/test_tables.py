"""What users read: tables that fit, text that cannot act, JSON and annotations that hold the contract."""

from __future__ import annotations

import html
import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
from support.records import (
    RECORDS,
    adapter,
    calibration,
    command_lines,
    failure,
    infeasible,
    issue,
    memorization,
    over_budget,
    plan,
    prediction,
    recall,
    shown,
    words,
)

from lorasize import records as r
from lorasize import report
from lorasize.report import text
from lorasize.report.facts.recall import memorization_facts

ESCAPE = "\x1b[31mred\x1b[0m \x1b]0;title\x07\x9b2J\x08\u202e[bold]markup[/bold] [/] \x00"


# Tables.
@pytest.mark.parametrize("name", RECORDS)
def test_tables_fit_80_columns(name: str) -> None:
    assert max(map(len, shown(RECORDS[name]).splitlines())) <= 80


@pytest.mark.parametrize("name", RECORDS)
def test_tables_survive_an_ascii_terminal(name: str) -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"

    said = report.to_text(report.table(RECORDS[name]), Ascii())
    assert said.isascii()
    assert "?" not in said


def test_plan_reads_from_the_top_down() -> None:
    said = words(plan())
    assert said.startswith("OK: rank 1 is predicted to hold 768 tokens word for word.")
    line = "rank 1 · up_proj · layers 16, 20 · 4,224 parameters · 16.9 kB · 0.84 bits per parameter"
    order = [
        line, "768 target tokens in 20 passages · base loss 3.20 nats per token · 3,546 bits", "capacity slack 1.31",
        "success probability 0.93 (asked: 0.9)", "1 to 3 at this site",
        "120 steps (80 to 180) · 1 min 35 s (1 min 0 s to 2 min 20 s) · 1.2 GB",
        "parameters ≥ tokens: rank 3 · flat: rank 16; both on all linear layers", "max_lora_rank 8", "kept",
        "Alternatives", "14–24", "Times were measured on another device.", "What would change it",
    ]  # fmt: skip
    assert [part for part in order if part not in said] == []
    places = [said.index(part) for part in order]
    assert places == sorted(places)


def test_doubtful_plan_says_so() -> None:
    said = words(plan(prediction=prediction(success_probability=0.4, extrapolated=True)))
    assert said.startswith("DOUBTFUL: rank 1 is predicted to hold 768 tokens only with probability 0.40, not the 0.9")
    assert "outside what was calibrated" in said


def test_over_budget_names_the_budget_and_what_would_do() -> None:
    said = words(over_budget())
    assert said.startswith("OVER BUDGET (bytes):")
    assert "EXCEEDED" in said
    assert "The limit for bytes would have to be 16,896." in said


def test_the_limit_named_is_the_least_that_would_do() -> None:
    least = over_budget().alternatives[0].model_copy(update={"bytes": 9000, "success_probability": 0.95})
    risky = least.model_copy(update={"bytes": 4000, "success_probability": 0.6})
    said = words(over_budget().model_copy(update={"alternatives": (risky, least)}))
    assert "The limit for bytes would have to be 9,000." in said


@pytest.mark.parametrize(
    ("value", "said"), [(1_000_004, "1,000,004"), (16.896, "16.896"), (1000.5, "1,000.5"), (1e6, "1,000,000")]
)
def test_what_is_just_over_a_limit_does_not_look_like_it(value: float, said: str) -> None:
    assert text.exact(value) == said


def test_infeasible_plan_names_every_place() -> None:
    said = words(infeasible(issue(), issue("c.md", 30)))
    assert said.startswith("INFEASIBLE: no rank can recall this corpus (2 conflicts).")
    assert "b.jsonl:9: a.jsonl:4 and b.jsonl:9 have" in said
    assert "c.md:30: a.jsonl:4 and c.md:30 have" in said


def test_calibration_shows_law_sites_and_provenance() -> None:
    said = words(calibration())
    for part in ("2.1 · N^0.660 · tokens^-0.600 - 0.4", "r² 0.987", "residual 0.210 nats", "1.25 ± 0.07", "14–16",
                 "6 of 12 probes held every token", "2026-01-02", r.RECIPE):  # fmt: skip
        assert part in said


def test_recall_has_one_line_a_passage() -> None:
    lines = [line.split() for line in shown(recall(recalled=False)).splitlines()]
    assert ["recalled", "page.md:1", "40", "0.7100"] in lines
    said = words(recall(recalled=False))
    assert said.startswith("LOST: 1 of 2 passages recalled, some token is not above the threshold")
    assert "LOST page.md:3 51 0.4999 token 7:" in said
    assert r'" Oda", got "\n"' in said.replace("expected ", "")


def test_probability_below_one_half_never_looks_like_it() -> None:
    assert text.format_probability(0.499999) == "0.4999"
    assert text.format_probability(0.500001) == "0.5000"
    assert text.format_probability(3e-7) == "3.0e-07"


def test_changed_files_forbid_a_green_verdict() -> None:
    assert "changed since it was proven: README.md" in words(recall(changed_files=("README.md",)))


def test_memorization_says_how_it_ended() -> None:
    good, bad = words(memorization()), words(memorization(recalled=False))
    assert good.startswith("MEMORIZED: Every target token")
    assert bad.startswith("NOT MEMORIZED: Training stalled")
    assert "rank 1 → rank 2 at step 90" in good
    assert "LOST page.md:3" in bad


@pytest.mark.parametrize(
    ("numbers", "said"),
    [((20,), "layer 20"), ((16, 20), "layers 16, 20"), ((3, 4), "layers 3, 4"),
     ((*range(14, 25), 2), "layers 2, 14–24")],
)  # fmt: skip
def test_layers(numbers: tuple[int, ...], said: str) -> None:
    assert text.layers(numbers) == said


def test_side_by_side_shows_both_texts() -> None:
    passage = SimpleNamespace(id="page.md:1", target="line one\n[red]two\x1b[2J")
    one = SimpleNamespace(passage=passage)
    said = report.to_text(report.side_by_side([one], recall()))  # type: ignore[list-item]
    assert "line one" in said
    assert "[red]two" in said
    assert "first" in said
    assert "\x1b" not in said


def test_a_margin_and_a_warning_are_said() -> None:
    changes = {"min_logit_margin": 0.4, "min_probability": 0.6, "warnings": ("w",)}
    seen = memorization().recall.model_copy(update=changes)
    said = dict(memorization_facts(memorization(margin=0.09, recall=seen)))
    assert said["threshold"].endswith("trained to p > 0.59")
    assert said["decoding"] == "smallest p 0.6000, smallest logit margin 0.4"
    assert said["warning"] == "w"
    assert "warning" not in dict(memorization_facts(memorization()))


# Text that cannot act.
def test_clean_drops_sequences_and_controls() -> None:
    assert text.clean(ESCAPE) == "red [bold]markup[/bold] [/] "
    assert text.clean("a\r\nb\tc\u2028d\ud800") == "a  b c d"
    assert text.clean_lines("a\r\nb\tc\x07") == "a\nb    c"


@pytest.mark.parametrize(
    "record",
    [
        infeasible(issue(ESCAPE)),
        recall(recalled=False, passage=ESCAPE),
        plan(adapter=adapter(target_modules=(ESCAPE,)), warnings=(ESCAPE,)),
        plan(model=r.PlanModel(ref=ESCAPE, fingerprint="f", dtype="float32", n_layers=30)),
        calibration(provenance={ESCAPE: ESCAPE}, device=ESCAPE),
        memorization(recall=r.RecallSummary(
            n_passages=1, n_recalled=0, failures=(failure(ESCAPE),), dtype="float32", device=ESCAPE,
            attn_implementation=ESCAPE, batch_size=1, fresh_process=True,
        )),
    ],
)  # fmt: skip
def test_foreign_text_is_literal_and_harmless(record: Any) -> None:
    said = shown(record)
    assert not [c for c in said if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e")]
    assert "[bold]markup[/bold]" in "".join(said.split())


def test_no_table_gives_github_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    record = infeasible(issue("::set-env name=A::b"), issue("##[set-env name=A]b"))
    assert len(command_lines(shown(record))) == 2
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert command_lines(shown(record)) == []


def test_json_in_github_holds_the_same_without_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    record = infeasible(issue("##[add-path]x\n::stop-commands::t"))
    plainly = json.loads(report.to_json(record))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert command_lines(report.to_json(record)) == []
    assert json.loads(report.to_json(record)) == plainly


# JSON and annotations.
@pytest.mark.parametrize("name", RECORDS)
def test_json_reads_back(name: str) -> None:
    record = RECORDS[name]
    assert type(record).model_validate_json(report.to_json(record)) == record


def test_annotations_are_escaped() -> None:
    said = report.github(infeasible(issue("a,b:c%.md", 7)))
    message = "a.jsonl:4 and a,b:c%25.md:7 have the same prompt but go on differently"
    assert said == f"::error title=lorasize,file=a%2Cb%3Ac%25.md,line=7::{message}\n"


def test_annotation_stays_on_its_line() -> None:
    said = report.github(recall(recalled=False, passage="x\n::error::y"))
    assert [line for line in said.splitlines() if not line.startswith("::error title=lorasize::")] == []


def test_annotations_name_budgets_changes_and_losses() -> None:
    assert report.github(over_budget()).startswith("::error title=lorasize::bytes: 16,896, the limit is 1,000\n")
    assert "README.md changed" in report.github(recall(changed_files=("README.md",)))
    assert "page.md:3 is lost: token 7: expected" in report.github(memorization(recalled=False))
    assert report.github(recall()) == ""


def test_a_difference_of_texts_is_called_no_difference_of_tokens_in_any_format() -> None:
    why = "(every token is the target's, read otherwise by this tokenizer)"
    lost = r.RecallFailure(passage="page.md:3", position=-1, expected=why, got="another text", probability=None)
    summary = memorization(False).recall.model_copy(update={"failures": (lost,)})
    for record in (recall(recalled=False, failures=(lost,)), memorization(False, recall=summary)):
        for form in (words(record), report.junit(record), report.github(record), report.html(record)):
            said = " ".join(html.unescape(form).split())
            assert f"another text {why}" in said
            assert "token -1" not in said
            assert "expected" not in said


def test_table_of_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="Site"):
        report.table(r.Site(target_modules=("a",), layers_to_transform=(1,)))


def test_table_on_a_terminal_is_coloured_unless_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in report.to_text(report.table(plan()), Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "32m" not in report.to_text(report.table(plan()), Terminal())
