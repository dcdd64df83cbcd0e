"""Where results go: at most one document on standard output, the rest into files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

    from lorasize.report import Companions

PLAIN = ("table", "json")
FORMATS = ("table", "json", "github", "junit", "markdown", "html")


@dataclass(frozen=True)
class Target:
    """One report: its format, and its file; None is standard output."""

    format: str
    path: Path | None


def parse_reports(values: Sequence[str]) -> list[Target]:
    """What `--report` asks for; a table on standard output when nothing else goes there.

    Raises:
        click.UsageError: an unknown format, or two documents on standard output.
    """
    targets = [_target(value) for value in values]
    on_stdout = [t.format for t in targets if t.path is None]
    if len(on_stdout) > 1 and ({"json", "html"} & set(on_stdout) or len(set(on_stdout)) < len(on_stdout)):
        raise click.UsageError(f"--report: {' and '.join(on_stdout)} cannot share standard output; write FORMAT=PATH")
    return targets if on_stdout else [*targets, Target("table", None)]


def spare(path: Path, schema: str) -> None:
    """Refuse to write a record over anything but one of its kind.

    Raises:
        click.UsageError: something else is there, such as the corpus, a folder or a device.
    """
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise click.UsageError(f"--out {path}: {'a folder' if path.is_dir() else 'no regular file'} is there")
    with path.open("rb") as stream:
        head = stream.read(10**6)  # some formatters sort the keys
    if head.strip() and f'"{schema}/'.encode() not in head:
        raise click.UsageError(f"--out {path}: another file is there, no {schema}: choose another name or remove it")


def spare_inputs(targets: Sequence[Target], inputs: Sequence[Path | None]) -> None:
    """Refuse to write a report over what is read.

    Raises:
        click.UsageError: a report has the name of an input.
    """
    there = [path for path in inputs if path is not None and path.exists()]
    for target in targets:
        if target.path is not None and target.path.exists() and any(map(target.path.samefile, there)):
            raise click.UsageError(f"--report {target.format}={target.path}: this file is read; choose another name")


def require_plain(targets: Sequence[Target], what: str) -> None:
    """Refuse what a record without a verdict cannot be shown as.

    Raises:
        click.UsageError: another format is asked for.
    """
    wrong = [target.format for target in targets if target.format not in PLAIN]
    if wrong:
        raise click.UsageError(f"--report {wrong[0]}: {what} is shown as {' or '.join(PLAIN)}")


def _target(value: str) -> Target:
    name, equals, path = value.partition("=")
    if name not in FORMATS:
        raise click.UsageError(f"--report {value}: unknown format; known are {', '.join(FORMATS)}")
    if equals and not path:
        raise click.UsageError(f"--report {value}: a path must follow the equals sign")
    return Target(name, Path(path) if path not in ("", "-") else None)


def emit(record: BaseModel, targets: Sequence[Target], companions: Callable[[], Companions] | None = None) -> None:
    """Write the record in every format asked for; `companions` finds what an HTML page shows beside it."""
    for target in targets:
        text = _render(record, target, companions)
        if target.path is None:
            click.echo(text.encode() if target.format in ("json", "html") else text, nl=False)
        else:
            target.path.parent.mkdir(parents=True, exist_ok=True)
            target.path.write_text(text, encoding="utf-8", newline="\n")
        if target.format == "github":
            _tell_the_runner(record)


def _tell_the_runner(record: BaseModel) -> None:
    """Append to the job's summary and to the step's outputs, where GitHub Actions says that they are."""
    from lorasize import report

    for variable, text in (("GITHUB_STEP_SUMMARY", report.markdown(record)), ("GITHUB_OUTPUT", report.outputs(record))):
        if path := os.environ.get(variable):
            with Path(path).open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(text)


def _render(record: BaseModel, target: Target, companions: Callable[[], Companions] | None) -> str:
    from lorasize import report

    if target.format == "table":
        return report.to_text(report.table(record), sys.stdout if target.path is None else None)
    if target.format == "html":
        return report.html(record, None if companions is None else companions())
    formats = {"json": report.to_json, "github": report.github, "junit": report.junit, "markdown": report.markdown}
    return formats[target.format](record)


def show(what: RenderableType) -> None:
    """Something to look at, on standard output."""
    from lorasize import report

    click.echo(report.to_text(what, sys.stdout), nl=False)


def say(message: str) -> None:
    """A line on standard error, safe for a terminal and for a build log."""
    from lorasize.report import clean
    from lorasize.report.text import encodable, guard

    lines = [clean(line) for line in message.splitlines()]
    click.echo(encodable(guard("\n".join(lines)), sys.stderr), err=True)


def silence_stdout() -> None:
    """Let nothing more reach a pipe whose reader has gone, not even at exit."""
    with contextlib.suppress(OSError, ValueError):  # no file beneath it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
