"""The texts that harm is measured on: how many there are, how long, and that what is reported is held out."""

from __future__ import annotations

import calendar
import re

import pytest
from support.paths import ROOT

CALENDAR = {*calendar.day_name, *calendar.month_name}
TEXTS = ROOT / "lorasize" / "losses" / "texts"


def texts(use: str) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted((TEXTS / use).glob("*.txt"))}


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    """Every run of n words."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}


@pytest.mark.parametrize(("use", "n", "least", "most"), [("control", 8, 800, 1000), ("report", 14, 1150, 1500)])
def test_kinds_and_lengths(use: str, n: int, least: int, most: int) -> None:
    found = texts(use)
    assert len(found) == n
    assert {kind: len(text) for kind, text in found.items() if not least <= len(text) <= most} == {}
    assert [kind for kind, text in found.items() if not text.endswith("\n") or text != text.strip() + "\n"] == []


def test_texts_of_the_report_share_no_wording_with_those_of_control() -> None:
    control = set().union(*(runs(text, 5) for text in texts("control").values()))
    shared = {kind: runs(text, 5) & control for kind, text in texts("report").items()}
    assert {kind: found for kind, found in shared.items() if found} == {}


def names(use: str) -> set[str]:
    """Words in capitals amid a sentence, but for days and months, in the languages that write nouns small."""
    prose = (text for kind, text in texts(use).items() if kind not in {"code", "german", "html", "json", "records"})
    return {name for text in prose for name in re.findall(r"(?<=[a-z,] )[A-Z]\w\w+", text)} - CALENDAR


def test_they_share_no_names() -> None:
    assert {"Ottavia", "Wexcombe"} & names("control")
    assert names("control") & names("report") == set()
