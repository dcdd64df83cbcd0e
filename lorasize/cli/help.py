"""The page of all commands, made from click: `python -m lorasize.cli.help` writes it, `--check` compares it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from lorasize.cli import lorasize
from lorasize.cli.output import say

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "commands.md"
START, END = "<!-- help -->\n", "<!-- /help -->\n"
WIDTH = 80


def section() -> str:
    """The help of every command under a heading of its own, `WIDTH` columns wide wherever it is made."""
    root = click.Context(lorasize, info_name="lorasize", terminal_width=WIDTH, **lorasize.context_settings)
    how = "`python -m lorasize.cli.help` makes this list."
    return "\n\n".join([f"Every option is shown by `--help`, and here. {how}", *_commands(root)]) + "\n"


def _commands(root: click.Context) -> Iterator[str]:
    yield _under_heading(root.command_path, lorasize.get_help(root))
    for name, command in lorasize.commands.items():
        context = click.Context(command, info_name=name, parent=root, terminal_width=WIDTH)
        yield _under_heading(context.command_path, command.get_help(context))


def _under_heading(path: str, text: str) -> str:
    return f"## {path}\n\n```\n{text}\n```"


def with_section(text: str) -> str:
    """The text with this section between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{START.strip()} and {END.strip()} are not both there, in this order")
    return before + start + section() + end + after


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when the page is out of date.")
def main(check: bool) -> None:
    """Put the help of every command into docs/reference/commands.md."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = with_section(text)
    if wanted == text:
        return
    if check:
        say(f"error: {PAGE.name} is out of date\nhint: run `python -m lorasize.cli.help`")
        sys.exit(1)
    PAGE.write_text(wanted, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
