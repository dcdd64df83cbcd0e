"""A page: its parts, and the one file they become. Nothing is loaded from outside, nothing runs.

The style stands in the file, allowed by its digest; everything else is refused by the content security policy. Every
text passes `clean` on its way in and is escaped by jinja2.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from lorasize.report.text import clean, clean_lines

if TYPE_CHECKING:
    from lorasize.corpus.surprise import Surprise, Token

HEAT = (0.69, 2.0, 4.0, 6.0, 9.0)  # nats: classes of a token's colour; below the first it has p > ½ already

Cell = str | float | int
Rows = Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """Rows below (column name, whether it holds numbers); a number is shown rounded and kept whole beside it."""

    columns: Sequence[tuple[str, bool]]
    rows: Rows
    title: str = ""
    kind: str = "table"


@dataclass(frozen=True)
class Figure:
    """A picture, a sentence that says how to read it, and the numbers it was drawn from."""

    title: str
    caption: str
    svg: str
    data: Table
    kind: str = "figure"


@dataclass(frozen=True)
class Facts:
    """Names and what there is to say."""

    rows: Sequence[tuple[str, str]]
    title: str = ""
    kind: str = "facts"


@dataclass(frozen=True)
class Notes:
    """Sentences in a list."""

    title: str
    rows: Sequence[str]
    kind: str = "notes"


@dataclass(frozen=True)
class Corpus:
    """Passages coloured by what their tokens cost, the costliest first; `left_out` more are not shown."""

    passages: Sequence[Surprise]
    left_out: int = 0
    kind: str = "corpus"


Part = Table | Figure | Facts | Notes | Corpus


@dataclass(frozen=True)
class Page:
    """One report. `good` decides the verdict's colour; None is neither good nor bad."""

    title: str
    verdict: str
    parts: Sequence[Part]
    good: bool | None = None
    about: Sequence[str] = field(default_factory=tuple)


def render(page: Page) -> str:
    """The page as one HTML document."""
    environment = Environment(
        loader=PackageLoader("lorasize.report.formats.html", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"clean": clean, "lines": clean_lines, "number": number, "heat": heat}
    style = (files("lorasize.report.formats.html") / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("page.html.jinja").render(page=page, style=style, digest=digest, heat=HEAT)


def number(value: float) -> str:
    """A number to read: whole ones with thousands, others to four digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def heat(token: Token) -> int:
    """A token's colour class, 0 (expected anyway) to 5."""
    return 0 if token.again else sum(token.nats >= limit for limit in HEAT)


def facts_part(rows: Iterable[tuple[str, str]]) -> Facts:
    """Those facts that say something."""
    return Facts([(name, value) for name, value in rows if value])
