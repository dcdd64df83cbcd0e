"""The documentation against the code: links, commands, configuration, navigation, and the site itself."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from support.paths import ROOT
from support.patience import HANGS

import lorasize
from lorasize.cli import lorasize as group
from lorasize.cli.config import read_config
from lorasize.cli.output import parse_reports

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

FENCE = re.compile(r"^ *(```+)([\w-]*)[^\n]*\n(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
COMMAND = re.compile(r"(?<![\w./`\[-])lorasize(?=(?: -| [a-z]))(.*)")
SHELL = {"&&", "||", "|", ";", ">", ">>", "<", ")", "&"}
SITE_TOOLS = ("mkdocs", "material", "mkdocstrings_handlers")
FOREIGN = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def fences(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every fenced block."""
    for match in FENCE.finditer(page.read_text("utf-8")):
        yield match[2], match[3]


def prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", page.read_text("utf-8")))


def anchors(page: Path) -> set[str]:
    """The headings' ids: as Python-Markdown makes them in the site, as GitHub does elsewhere."""
    headings = HEADING.findall(FENCE.sub("", page.read_text("utf-8")))
    words = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    gaps = r"[-\s]+" if page.is_relative_to(DOCS) else r"\s"
    return {re.sub(gaps, "-", word) for word in words}


def broken(page: Path, link: str) -> bool:
    """Whether a relative link leads nowhere."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return not target.is_file() or bool(anchor) and anchor not in anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    links = [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if broken(page, link)] == []


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("guide/ci.md", False),
        ("guide/ci.md#exit-codes", False),
        ("#where-to-go", False),
        ("guide/ic.md", True),
        ("guide/ci.md#exit-code", True),
        ("#where-to-stay", True),
        ("guide", True),
    ],
)
def test_a_broken_link_is_seen(link: str, wrong: bool) -> None:
    assert broken(DOCS / "index.md", link) is wrong


PICTURE = re.compile(r"!\[[^\]\n]+\]\(([^)\s]+)\)")
FILE = re.compile(r"^\d\. \[`([^`\n]+)`\]\(([^)\s]+)\): .+$", re.MULTILINE)


def readme() -> str:
    return (ROOT / "README.md").read_text("utf-8")


def test_readme_is_read_in_one_sitting() -> None:
    assert len(readme().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pictures_are_there(page: Path) -> None:
    pictures = [page.parent / path for path in PICTURE.findall(page.read_text("utf-8"))]
    assert [picture.name for picture in pictures if not picture.is_file()] == []


def test_readme_s_pictures_are_png_and_shown_in_their_own_size() -> None:
    pictures = [(ROOT / path).read_bytes() for path in PICTURE.findall(readme())]
    assert len(pictures) == 2
    assert [data[:8] for data in pictures] == [b"\x89PNG\r\n\x1a\n"] * 2
    assert [600 <= int.from_bytes(data[16:20], "big") <= 830 for data in pictures] == [True] * 2


def test_the_files_to_read_first_are_there() -> None:
    files = FILE.findall(readme())
    assert len(files) == 7
    assert [shown for shown, path in files if shown != path or not (ROOT / path).is_file()] == []


def test_readme_s_results_are_those_of_the_benchmark() -> None:
    found = json.loads((ROOT / "benchmarks/results/plan_accuracy_unseen.json").read_text("utf-8"))
    held = [success for row in found["rows"] for success in row["successes"]]
    (table,) = re.findall(r"^\| \*\*as `plan --max-drift off`.*(?:\n\|.*)*", readme(), re.MULTILINE)
    ours, tokens, flat = (re.sub(r"[*×,]| runs", "", line).split("|")[2:5] for line in table.splitlines())
    excess = found["summary"]["excess"]
    rows = {"lorasize": ours, "parameters_ge_tokens": tokens, "flat_16": flat}
    assert ours[0].split() == [str(sum(held)), "of", str(len(held))]
    for rule, (_, *shown) in rows.items():
        digits = 2 if rule == "lorasize" else 0
        assert [cell.strip() for cell in shown] == [f"{excess[rule][key]:.{digits}f}" for key in ("median", "p90")]
    assert f"{len(found['rows'])} corpora" in readme()
    smallest = [row["true_minimum"]["n_parameters"] for row in found["rows"]].count(1152)  # the ladder's first
    assert f"For {smallest} of these" in readme()


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `lorasize …` in a block of code, also inside other commands."""
    lines = text.replace("\\\n", " ").splitlines()
    for line in (line for line in lines if not line.startswith("Usage: ")):
        for tail in tails(line):
            lexer = shlex.shlex(tail, posix=True, punctuation_chars=True)
            lexer.commenters, lexer.whitespace_split = "#", True
            words = list(lexer)
            end = next((i for i, word in enumerate(words) if word in SHELL), len(words))
            yield words[:end]


def tails(line: str) -> Iterator[str]:
    """What follows each `lorasize` of a line; inside `"$(…)"`, up to its end."""
    for match in COMMAND.finditer(line):
        inside = line[: match.start()].endswith("$(")
        yield match[1].partition(")")[0] if inside else match[1]
        yield from tails(match[1])


def complaint(words: list[str]) -> str:
    """What click has against a command line; empty when nothing. Files need not exist."""
    if words in (["--help"], ["--version"]):
        return ""
    if not words or words[0] not in group.commands:
        return f"no command {' '.join(words[:1])!r}"
    command = group.commands[words[0]]
    parent = click.Context(group, **group.context_settings)
    context = click.Context(command, info_name=words[0], parent=parent)
    try:
        given, rest, _ = command.make_parser(context).parse_args(words[1:])
        context.params = dict(given)
        for parameter in command.params:
            if parameter.name in given and not isinstance(parameter.type, click.Path):
                parameter.process_value(context, given[parameter.name])
        parse_reports(given.get("reports") or ())
    except click.exceptions.Exit:  # --help
        return ""
    except click.ClickException as error:
        return error.format_message()
    return f"unexpected {' '.join(rest)}" if rest else ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_those_of_the_command_line(page: Path) -> None:
    found = [words for _, text in fences(page) for words in commands(text)]
    assert [(" ".join(words), complaint(words)) for words in found if complaint(words)] == []


def test_every_command_is_shown_somewhere() -> None:
    shown = {words[0] for page in PAGES for _, text in fences(page) for words in commands(text)}
    assert {"calibrate", "plan", "apply", "verify", "check", "base"} <= shown


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("lorasize plan page.md --max-bytes '4 MB'  # a comment", False),
        ("- run: lorasize check --report github --report junit=x.xml", False),
        ('vllm serve "$(lorasize base)" --enable-lora', False),
        ("lorasize plan page.md && lorasize apply --no-escalate", False),
        ("lorasize --help", False),
        ("lorasize --hepl", True),
        ("lorasize size page.md", True),
        ("lorasize plan page.md --max-size 4", True),
        ("lorasize plan page.md --max-bytes '4 parsecs'", True),
        ("lorasize plan page.md --budget-level seconds=never", True),
        ("lorasize check --report pdf", True),
        ("lorasize plan page.md --serve ollama", True),
        ("lorasize plan page.md && lorasize aply", True),
        ('vllm serve "$(lorasize bass)" --enable-lora', True),
        ("lorasize check one.json two.json", True),
    ],
)
def test_a_wrong_command_is_seen(line: str, wrong: bool) -> None:
    found = list(commands(line))
    assert found
    assert any(complaint(words) for words in found) is wrong


CONFIGURATIONS = [
    pytest.param(text, id=f"{name(page)}-{number}")
    for page in PAGES
    for number, (language, text) in enumerate(fences(page))
    if language == "toml"
]


@pytest.mark.parametrize("text", CONFIGURATIONS)
def test_configurations_are_read(text: str, tmp_path: Path) -> None:
    file = "pyproject.toml" if "[tool.lorasize" in text else "lorasize.toml"
    (tmp_path / file).write_text(text, "utf-8")
    assert read_config(tmp_path)


def text_of(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def test_the_library_page_shows_every_public_name() -> None:
    shown = re.findall(r"^::: lorasize\.(\w+)$", text_of("reference/library.md"), re.MULTILINE)
    assert sorted(shown) == sorted({*lorasize.__all__} - {"__version__"})


def test_the_page_on_files_links_every_schema() -> None:
    linked = re.findall(r"\(\.\./schemas/([\w.]+)\)", text_of("reference/files.md"))
    assert sorted(linked) == sorted(path.name for path in (DOCS / "schemas").iterdir())


def test_the_page_on_ci_knows_the_action_and_the_hook() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    section = text_of("guide/ci.md").partition("## The GitHub Action")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE) == [*action["inputs"]]
    outputs = re.search(r"^Outputs: (.*?)\. ", section, re.MULTILINE | re.DOTALL)
    assert outputs is not None
    assert re.findall(r"`([\w-]+)`", outputs[1]) == [*action["outputs"]]
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    assert re.findall(r"- id: (.+)", text_of("guide/ci.md")) == [hook["id"] for hook in hooks]


def entries(nav: Any) -> Iterator[str]:
    """Every page of a navigation."""
    for child in nav if isinstance(nav, list) else nav.values():
        if isinstance(child, str):
            yield child
        else:
            yield from entries(child)


def test_the_navigation_holds_every_page_and_no_other() -> None:
    nav = list(entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert sorted(nav) == [page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize(
    ("tag", "foreign"),
    [
        ('<script src="https://cdn.example/shim.js">', True),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ('<img alt="" src=http://example/x.png>', True),
        ('<script src="assets/bundle.js">', False),
        ('<a href="https://arxiv.org/abs/2605.30260">', False),
    ],
)
def test_a_request_to_the_outside_is_seen(tag: str, foreign: bool) -> None:
    assert bool(FOREIGN.search(tag)) is foreign


@pytest.mark.slow
def test_the_site_builds_and_asks_nothing_of_the_outside(tmp_path: Path) -> None:
    if missing := [tool for tool in SITE_TOOLS if importlib.util.find_spec(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: `make docs` does it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=HANGS, check=False
    )
    assert (built.returncode, built.stdout + built.stderr) == (0, "")
    pages = {page: page.read_text("utf-8") for page in tmp_path.rglob("*.html")}
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    assert {page.name: FOREIGN.findall(text) for page, text in pages.items() if FOREIGN.search(text)} == {}
    styles = "".join(style.read_text("utf-8") for style in tmp_path.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", styles) == []
