"""Credentials and personal data: found at their lines, told once a kind, and never repeated."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import records as made
from support.paths import ROOT
from support.patience import grows_with_its_input

from lorasize import cli, report
from lorasize.corpus import read_corpus, secrets
from lorasize.errors import CorpusError, LorasizeError
from lorasize.records import Finding, Passage, Plan, to_json
from lorasize.verbs import plan as sizing
from lorasize.verbs.plan import PlanOptions

pytestmark = pytest.mark.slow  # the rules for credentials are compiled first, in seconds

kingfisher = pytest.mark.skipif(secrets.scanner() is None, reason="kingfisher-secret-scanner is not installed")

# In parts, so that no scanner takes this file for a leak.
TOKEN = "gh" + "p_" + "b7Kq2ZxW9eRt5YuI1oPaS3dFgH4jKl6MnV8c"
HF = "h" + "f_" + "qWertYuiOpAsdfGhjKlZxcVbnmQazWsxEd"
URI = "postgres://admin:" + "s9Xk2Lq8Zw4Tn7Rb" + "@db.internal.net:5432/prod"
MAIL, PHONE, IBAN, CARD = "ada@example.org", "9100672710", "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111"
VALUES = {"email": MAIL, "phone": PHONE, "iban": IBAN, "card": CARD}


def passage(target: str, prompt: str = "", **more: Any) -> Passage:
    return Passage(id="a:1", file="a", line=1, prompt=prompt, target=target, **more)


def kinds(text: str) -> set[str]:
    return {kind for kind, _ in secrets.personal(text)}


@pytest.fixture
def _no_kingfisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where kingfisher is not installed."""
    monkeypatch.setitem(sys.modules, "kingfisher_sdk", None)
    secrets.scanner.cache_clear()
    yield
    secrets.scanner.cache_clear()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to ada.lovelace+x@mail.example.co.uk.", "email"),
        ("<grüße@bücher.example>", "email"),
        ("Jerry Becerra: 9100672710", "phone"),
        ("+49 170 1234567", "phone"),
        ("call +1 (415) 555-2671 now", "phone"),
        ("(415) 555-2671", "phone"),
        ("415-555-2671,", "phone"),
        ("Tel. 030 12345678", "phone"),
        ("(030) 1234-5678", "phone"),
        ("01 23 45 67 89", "phone"),
        ("07911123456", "phone"),
        ("IBAN DE89370400440532013000", "iban"),
        ("DE89 3704 0044 0532 0130 00 BANK", "iban"),
        ("GB82 WEST 1234 5698 7654 32", "iban"),
        ("4111111111111111", "card"),
        ("3782 822463 10005", "card"),
    ],
)
def test_what_looks_like_personal_data_is_one_kind(text: str, kind: str) -> None:
    assert kinds(text) == {kind}


@pytest.mark.parametrize(
    "text",
    [
        "@handle and a@b", "git@host:owner/repo", "x@localhost", "1.5@2.5",
        "2024-11-25 12:30:00", "01/02/2024", "1700000000", "1234567890", "0123456789", "3.1415926535897932",
        "2,381,000,000", "192.168.100.200", "version 10.20.3000", "02110-1301, USA", "978-3-16-148410-0",
        "id=9100672710", "commit `8732977536`", "9e107d9d372bb6826bd81d3542a419d6", "+0.12345678", "/tmp/9100672710",
        "ID-9100672710",
        "DE89370400440532013001", "4111111111111112", "1111111111111111", "41111111111111111",
    ],
)  # fmt: skip
def test_what_only_resembles_it_is_not(text: str) -> None:
    assert kinds(text) == set()


@kingfisher
@pytest.mark.parametrize(
    ("text", "kind"),
    [(f"token {TOKEN}", "github-pat"), (HF, "huggingface-access-token"), (URI, "generic-credential-uri")],
)
def test_credentials_are_found(text: str, kind: str) -> None:
    assert kind in {found.kind for found in secrets.find_all([passage(text)])}


UNITS = ("a", "1", "+1", "a@", "a.", "1 ", "AA11 ", "AAAA", "(0", "02 ", "2-", "a@b.", "4111 ")


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_the_text(unit: str) -> None:
    assert grows_with_its_input(lambda n: list(secrets.personal(unit * n)), 200_000)


def found_in(tmp_path: Path, name: str, text: str) -> list[tuple[str, int]]:
    (tmp_path / name).write_text(text, "utf-8", newline="")
    return [(f.kind, f.line) for f in secrets.find_all(read_corpus([tmp_path / name])[0])]


def test_a_line_of_text_is_the_file_s_own(tmp_path: Path) -> None:
    text = f"# Staff\n\n\nfirst\nsecond {MAIL}\r\nthird {MAIL} {PHONE}\n\nlast\n{IBAN}"
    assert found_in(tmp_path, "a.md", text) == [("phone", 6), ("email", 5), ("email", 6), ("iban", 9)]


@kingfisher
def test_a_credential_has_its_own_line_too(tmp_path: Path) -> None:
    assert found_in(tmp_path, "a.txt", f"ä\n\none\ntwo\n{TOKEN}\n") == [("github-pat", 5)]


def test_a_record_is_the_line_at_which_it_starts(tmp_path: Path) -> None:
    assert found_in(tmp_path, "a.csv", f'key,value\na,"x\n{MAIL}"\n{PHONE},y\n') == [("email", 2), ("phone", 4)]
    lines = [{"key": MAIL, "value": "\n\nx"}, {"prompt": "q", "completion": CARD}]
    chat = {"messages": [{"role": "user", "content": MAIL}, {"role": "assistant", "content": "z"}]}
    text = "".join(json.dumps(line) + "\n" for line in [*lines, chat])
    assert found_in(tmp_path, "a.jsonl", text) == [("email", 1), ("card", 2), ("email", 3)]


def test_one_finding_a_line_and_kind() -> None:
    assert secrets.find_all([passage(f"{MAIL} {MAIL}"), passage(MAIL)]) == (Finding(kind="email", file="a", line=1),)


def phone_book(n: int) -> list[Passage]:
    numbers = ((k, 2_000_000_000 + k * 7_654_321 % 7_999_999_999) for k in range(n))
    return [Passage(id="", file="book.csv", line=k + 2, prompt=f"P{k}:", target=f"{m}") for k, m in numbers]


@pytest.mark.usefixtures("_no_kingfisher")
def test_a_phone_book_is_one_sentence() -> None:
    findings, (note, unseen) = secrets.scan(phone_book(1000), "warn")
    assert note == (
        "1,000 lines seem to hold phone numbers, the first at book.csv:2; the adapter will make them extractable."
    )
    assert unseen == secrets.UNSEEN
    assert [f.line for f in findings] == list(range(2, 2 + secrets.KEPT))


@pytest.mark.usefixtures("_no_kingfisher")
def test_each_kind_has_its_sentence_and_its_first_lines() -> None:
    findings, notes = secrets.scan([*phone_book(20), passage(MAIL)], "warn")
    assert [f.kind for f in findings] == ["phone"] * secrets.KEPT + ["email"]
    assert notes[1] == "1 line seems to hold e-mail addresses, at a:1; the adapter will make it extractable."


@pytest.mark.usefixtures("_no_kingfisher")
def test_without_kingfisher_that_is_said_and_with_error_refused() -> None:
    assert secrets.scan([passage("x")], "warn") == ((), (secrets.UNSEEN,))
    assert secrets.scan([passage(MAIL)], "off") == ((), ())
    with pytest.raises(LorasizeError, match="pip install kingfisher-secret-scanner"):
        secrets.scan([passage("x")], "error")


@kingfisher
def test_an_error_names_place_and_kinds() -> None:
    assert secrets.scan([passage("x")], "error") == ((), ())
    with pytest.raises(CorpusError) as refused:
        secrets.scan([*phone_book(3), passage(f"{MAIL} {TOKEN}")], "error")
    assert (refused.value.file, refused.value.line) == ("book.csv", 2)
    assert "phone numbers on 3, credentials (github-pat) on 1, e-mail addresses on 1" in str(refused.value)
    assert not [value for value in (MAIL, TOKEN, "2000000000") if value in str(refused.value)]


@kingfisher
@pytest.mark.parametrize("name", ["update/page.md", "update/table.jsonl", "ci/handbook.md", "ci/grown/stations.jsonl"])
def test_our_examples_hold_no_secret(name: str) -> None:
    assert secrets.scan(read_corpus([ROOT / "examples" / name])[0], "warn") == ((), ())


@settings(deadline=None, max_examples=25)
@given(
    digits=st.integers(2_000_000_000, 9_999_999_999),
    name=st.from_regex(r"[a-z]{12}", fullmatch=True),
    before=st.text("xyz \n", max_size=20),
)
def test_no_report_repeats_what_was_found(digits: int, name: str, before: str) -> None:
    values = [str(digits), f"{name}@example.org"]
    text = f"{before} {values[0]}\n{values[1]}"
    findings, notes = secrets.scan([passage(text, kind="text", start=0, end=len(text))], "warn")
    assert [f.kind for f in findings] == ["phone", "email"]
    plan = made.plan(secrets=findings, warnings=notes)
    said = [to_json(plan), report.github(plan), report.markdown(plan), report.junit(plan), report.html(plan)]
    said.append(report.to_text(report.table(plan)))
    assert not [value for value in (*values, name) for one in said if value in one]


@kingfisher
def test_a_credential_is_kept_nowhere() -> None:
    found = secrets.scanner().scan(TOKEN)  # type: ignore[union-attr]
    assert TOKEN not in found[0].secret
    (finding,), notes = secrets.scan([passage(TOKEN)], "warn")
    assert TOKEN not in finding.model_dump_json() + "".join(notes)


def test_findings_are_annotations_at_their_lines() -> None:
    findings = tuple(Finding(kind="phone", file="book.csv", line=k) for k in range(1, 15))
    lines = report.github(made.plan(secrets=findings, warnings=())).splitlines()
    assert len(lines) == 10
    said = "this line seems to hold phone numbers; the adapter will make it extractable"
    assert lines[0] == f"::warning title=lorasize,file=book.csv,line=1::{said}"


@pytest.fixture
def _conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus that needs no weights to be judged, with a phone number in it."""
    monkeypatch.chdir(tmp_path)
    lines = [{"key": "Ada:", "value": PHONE}, {"key": "Ada:", "value": "none"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


@kingfisher
@pytest.mark.usefixtures("_conflict")
def test_plan_carries_them_even_when_infeasible(tiny_llama: Path) -> None:
    def made_with(**options: Any) -> Plan:
        return sizing.plan([Path("a.jsonl")], ref=str(tiny_llama), device="cpu", options=PlanOptions(**options)).plan

    plan = made_with()
    assert plan.status == "infeasible"
    assert plan.secrets == (Finding(kind="phone", file="a.jsonl", line=1),)
    assert plan.warnings == ("1 line seems to hold phone numbers, at a.jsonl:1; the adapter will make it extractable.",)
    quiet = made_with(secrets="off")
    assert (quiet.secrets, quiet.warnings) == ((), ())


@kingfisher
@pytest.mark.usefixtures("_conflict")
def test_error_is_2_before_a_model_is_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lorasize.toml").write_text('secrets = "error"\n', "utf-8")
    assert cli.main(["plan", "a.jsonl", "--model", "./absent"]) == 2
    said = capsys.readouterr().err
    assert "error: a.jsonl:1: seems to hold phone numbers" in said
    assert PHONE not in said
    assert not Path("lorasize.plan.json").exists()
    assert cli.main(["plan", "a.jsonl", "--model", "./absent", "--secrets", "off"]) == 2
    assert "no such model" in capsys.readouterr().err


def test_the_values_above_are_found() -> None:
    assert {kind: kinds(value) for kind, value in VALUES.items()} == {kind: {kind} for kind in VALUES}
