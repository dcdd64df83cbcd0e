"""What rich shows, made from cleaned text, and the characters it becomes on a terminal or in a file.

Text enters rich as `Text`, which knows no markup.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import IO

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from lorasize.report.text import clean, encodable, guard

WIDTH = 80
_WIDEST = 110


def label(text: str, style: str = "") -> Text:
    """Cleaned text as rich shows it literally."""
    return Text(clean(text), style=style)


def grid(rows: Iterable[tuple[str, str]]) -> Table:
    """Two columns without lines: a name, and what there is to say. Rows that say nothing are left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(label(name), label(value))
    return table


def listing(columns: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """A table of (column name, whether it holds numbers) and rows; every cell is cleaned."""
    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name, number in columns:
        table.add_column(label(name), justify="right" if number else "left", header_style="dim", overflow="fold")
    for row in rows:
        table.add_row(*map(label, row))
    return table


def to_text(what: RenderableType, stream: IO[str] | None = None) -> str:
    """The characters that show this on the stream: its colours and width on a terminal, else 80 plain columns."""
    terminal = stream is not None and stream.isatty()
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=terminal, highlight=False, width=None if terminal else WIDTH)
    if terminal:
        console.width = min(console.width, _WIDEST)
    console.print(what)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return guard(encodable("\n".join(lines) + "\n", stream))
