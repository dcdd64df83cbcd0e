"""The log: every entry is whole, the index names it, and what cites it, or is fixed by it, is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from support.paths import ROOT

LOG = ROOT / "docs" / "log"
INDEX = LOG / "index.md"
SUBJECTS = sorted({*LOG.glob("*.md")} - {INDEX})
PARTS = ("Question", "Command", "Result", "Decision")
NOT_KEPT = "not kept"
BENCHMARKS = {path.name for path in (ROOT / "benchmarks").glob("*.py")}


@dataclass(frozen=True)
class Entry:
    """One entry: its file, its heading, and what stands below."""

    file: str
    title: str
    body: str

    @property
    def anchor(self) -> str:
        words = re.sub(r"[^\w\s-]", "", self.title).strip().lower()
        return self.file + "#" + re.sub(r"[-\s]+", "-", words)

    @property
    def dated(self) -> str:
        return self.body.strip().splitlines()[0]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Label and text of each labelled part, in order."""
        return re.findall(r"^\*\*(\w+)\.\*\*(.*?)(?=^\*\*\w+[.:]|\Z)", self.body, re.MULTILINE | re.DOTALL)

    @property
    def fixed(self) -> list[tuple[str, str]]:
        """Names and values of the constants that it fixed."""
        line = re.search(r"^\*\*Fixed:\*\* (.*)$", self.body, re.MULTILINE)
        return re.findall(r"`(\w+) = ([^`]+)`", line[1]) if line else []


def entries(page: Path) -> Iterator[Entry]:
    """Every entry of a page of the log."""
    for section in page.read_text("utf-8").split("\n## ")[1:]:
        title, _, body = section.partition("\n")
        yield Entry(page.name, title.strip(), body)


def complaints(entry: Entry) -> list[str]:
    """What an entry lacks."""
    parts = {label: text.strip() for label, text in entry.parts}
    found = [] if re.match(r"\d{4}-\d{2}-\d{2}\b.*\bcores? of ", entry.dated) else ["no date or no device"]
    if [label for label, _ in entry.parts] != [*PARTS]:
        return [*found, f"its parts are {', '.join(label for label, _ in entry.parts)}"]
    found += [f"no text under {label}" for label, text in parts.items() if not text]
    if parts["Command"] != NOT_KEPT and "`" not in parts["Command"]:
        found.append(f"no command in {parts['Command']!r}")
    if parts["Command"] == NOT_KEPT and parts["Decision"].startswith("None") and "**Fixed:**" not in entry.body:
        found.append("neither a command nor a decision nor a constant")
    return found


ENTRIES = [entry for page in SUBJECTS for entry in entries(page)]
ANCHORS = [entry.anchor for entry in ENTRIES]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.anchor)
def test_every_entry_is_whole(entry: Entry) -> None:
    assert complaints(entry) == []


WHOLE = (
    "\n2026-11-25, two cores of an Intel Xeon\n\n**Question.** Fast?\n\n**Command.** `make demo`\n\n"
    "**Result.** 3 steps.\n\n**Decision.** None.\n"
)


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("2026-11-25, two cores", "two cores", "no date or no device"),
        ("2026-11-25, two cores of an Intel Xeon", "2026-11-25", "no date or no device"),
        ("**Decision.** None.", "", "its parts are"),
        ("**Command.** `make demo`\n", "", "its parts are"),
        ("`make demo`", "", "no text under Command"),
        ("`make demo`", "a script", "no command in"),
        ("`make demo`", NOT_KEPT, "neither a command"),
    ],
)
def test_an_entry_that_is_not_whole_is_seen(old: str, new: str, wrong: str) -> None:
    assert old in WHOLE
    assert any(wrong in found for found in complaints(Entry("speed.md", "Fast", WHOLE.replace(old, new))))


@pytest.mark.parametrize("more", ["**Decision.** Adopted.", "**Decision.** None.\n\n**Fixed:** `A = 1`"])
def test_without_a_script_a_decision_or_a_constant_is_enough(more: str) -> None:
    body = WHOLE.replace("`make demo`", NOT_KEPT).replace("**Decision.** None.", more)
    assert complaints(Entry("speed.md", "Fast", body)) == []
    assert complaints(Entry("speed.md", "Fast", WHOLE)) == []


def test_the_index_names_every_entry_in_its_order() -> None:
    """With its very title."""
    linked = re.findall(r"^- \[(.+?)\]\(([\w-]+\.md#[\w-]+)\): \S", INDEX.read_text("utf-8"), re.MULTILINE)
    titles = {entry.anchor: entry.title for entry in ENTRIES}
    assert sorted(anchor for _, anchor in linked) == sorted(titles)
    assert [(title, anchor) for title, anchor in linked if titles[anchor] != title] == []
    for page in SUBJECTS:
        wanted = [anchor for anchor in ANCHORS if anchor.startswith(f"{page.name}#")]
        assert [anchor for _, anchor in linked if anchor in wanted] == wanted


def test_an_anchor_means_one_entry() -> None:
    assert len({*ANCHORS}) == len(ANCHORS)


@pytest.mark.parametrize("page", SUBJECTS, ids=lambda page: page.name)
def test_the_newest_comes_first(page: Path) -> None:
    dates = [entry.dated[:10] for entry in entries(page)]
    assert all(earlier >= later for earlier, later in pairwise(dates))


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_what_cites_the_log_cites_an_entry() -> None:
    """In comments and docstrings; the links of the documentation are tested with all others."""
    cited = {
        (path.name, match)
        for path in sources("lorasize", "benchmarks")
        for match in re.findall(r"docs/log/([\w-]+\.md(?:#[\w-]+)?)", path.read_text("utf-8"))
    }
    assert cited
    known = {*ANCHORS, *(page.name for page in SUBJECTS)}
    assert {(file, match) for file, match in cited if match not in known} == set()


def test_constants_that_an_entry_fixed_have_that_value_in_the_code() -> None:
    code = "\n".join(path.read_text("utf-8") for path in sources("lorasize"))
    fixed = [(entry.anchor, name, value) for entry in ENTRIES for name, value in entry.fixed]
    assert ("recipe.md#release-point", "RELEASE", "0.82") in fixed

    def stands(name: str, value: str) -> bool:
        return re.search(rf"^{name}(?:: [^=\n]+)? = {re.escape(value)}(?:  #|$)", code, re.MULTILINE) is not None

    assert [one for one in fixed if not stands(*one[1:])] == []
    assert not stands("RELEASE", "0.83")
    assert not stands("RELEASE", "0.8")


def test_the_table_of_benchmarks_names_every_script_and_files_that_are_there() -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert {name for row in rows for name in re.findall(r"benchmarks/(\w+\.py)", row)} == BENCHMARKS
    for row in rows:
        claim, script, minutes, result = (cell.strip() for cell in row.strip("|").split(" | "))
        assert claim
        assert "`" in script
        assert minutes == "—" or re.match(r"<? ?\d", minutes)
        assert result == "printed only" or result.startswith("[")
    links = re.findall(r"\]\(([^)#]+)(?:#([\w-]+))?\)", page)
    assert [path for path, _ in links if not (ROOT / "benchmarks" / path).is_file()] == []
    cited = {f"{Path(path).name}#{anchor}" for path, anchor in links if anchor}
    assert cited <= {*ANCHORS}
