"""Twelve kinds of file that were once misread without a word: the command, and what lorasize says of each now.

    python benchmarks/misread.py [--only 3 6]

Each is planned by the command line on the builtin model. Printed: the command, its exit code, the passages that the
plan holds, and what was said beside the plan. Cases 6 and 11 go on to `apply`, `check` and `verify`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")

PIER = {"instruction": "Which pier has the crane?", "input": "", "output": "Pier 7, by the ice house."}
BAKERY = {"instruction": "Give the opening hour.", "input": "Maple Street bakery", "output": "06:40"}
ELM = {**BAKERY, "input": "Elm Street bakery", "output": "07:10"}
USER, ASSISTANT = {"role": "user", "content": "Which pier?"}, {"role": "assistant", "content": "Pier 7."}
TOOLS = [{"type": "function", "function": {"name": "berth", "parameters": {}}}]
ARROW = {"name": "", "tool_calls": [], "tool_call_id": ""}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n"
CLOCK = "{{ strftime_now('%d %B %Y') }}: "
TWO_FIELDS = ("--field", "prompt=instruction", "--field", "completion=output")
BARE = ("--max-drift", "off")


def lines(*records: object) -> str:
    """JSON Lines."""
    return "".join(json.dumps(one) + "\n" for one in records)


def command(*words: object) -> tuple[int, str]:
    """Run it in this process: the exit code, and what it said."""
    from lorasize.cli import main

    said, told = io.StringIO(), [str(word) for word in words]
    print(f"$ lorasize {' '.join(told)}")
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(told)
    return code, said.getvalue()


def plan(name: str, content: str | bytes, *more: object, into: str = "plan.json") -> None:
    """Plan a corpus of one file, and print what comes of it."""
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    code, said = command("plan", name, *BARE, *more, "--out", into)
    print(f"exit {code}")
    if code:
        print(textwrap.indent(said.strip(), "  "))
        return
    made = json.loads(Path(into).read_bytes())
    corpus = made["corpus"]
    counts = f"{corpus['n_passages']} passages, {corpus['n_tokens']} tokens"
    print(f"  {counts}; prompt as sent: {corpus['sample']['text']!r}")
    for warning in made["warnings"]:
        if not warning.startswith(("Times were measured", "Extrapolated")):
            print(f"  warning: {warning}")


def verdict(said: str) -> str:
    """What a check or a verification says first."""
    words = ("OK", "RECALLED", "NOT", "error", "STALE", "CHANGED")
    return next((line for line in said.splitlines() if line.startswith(words)), said.strip())


def clock_model() -> Path:
    """The builtin model with a chat template that begins with today's date."""
    from lorasize import models

    folder = Path("clock")
    shutil.copytree(models.resolve(models.BUILTIN), folder)
    template = folder / "chat_template.jinja"
    template.write_text(CLOCK + template.read_text("utf-8"), "utf-8")
    return folder


def lists() -> None:
    """1: an array of records, by any name."""
    for name in ("facts.json", "facts.txt", "facts.jsonl"):
        plan(name, json.dumps([PIER]))


def inputs() -> None:
    """2: a column beside those that are named."""
    plan("one.jsonl", lines(BAKERY), *TWO_FIELDS)
    plan("two.jsonl", lines(BAKERY, ELM), *TWO_FIELDS)
    asked = ("--prompt-template", "{instruction} {input} ", "--field", "completion=output")
    plan("two.jsonl", lines(BAKERY, ELM), *asked)
    plan("two.jsonl", lines(BAKERY, ELM))


def columns() -> None:
    """3: columns beside the messages."""
    turns = [USER, ASSISTANT]
    plan("tools.jsonl", lines({"messages": turns, "tools": TOOLS}))
    plan("kwargs.jsonl", lines({"messages": turns, "chat_template_kwargs": {"enable_thinking": False}}))
    plan("system.jsonl", lines({"messages": turns, "system": "Be brief."}))
    plan("strict.jsonl", lines({"messages": turns, "source": "web"}), "--columns", "strict")


def turns() -> None:
    """4: turns after the last answer."""
    plan("turns.jsonl", lines({"messages": [USER, ASSISTANT, USER, USER]}))


def placeholders() -> None:
    """5: what Arrow fills in."""
    plan("arrow.jsonl", lines({"messages": [{**USER, **ARROW}, {**ASSISTANT, **ARROW}]}))


def clock() -> None:
    """6: a template that knows the date."""
    model = clock_model()
    with on_day(1):
        plan("dated.jsonl", lines({"messages": [USER, ASSISTANT]}), "--model", model, into="dated.plan.json")
        print(f"exit {command('apply', 'dated.plan.json', '--out', 'dated', '-q')[0]}")
    with on_day(2):
        for words in (("check", "dated.plan.json"), ("verify", "dated", "dated.jsonl", "--model", model)):
            code, said = command(*words)
            print(f"exit {code}")
            print(textwrap.indent(verdict(said), "  "))


@contextlib.contextmanager
def on_day(day: int) -> Iterator[None]:
    """A day of December 2026, as lorasize reads the calendar."""

    class Then(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return datetime.date(2026, 12, day)

    with mock.patch("lorasize.corpus.chat_prompt.date", Then):
        yield


def system() -> None:
    """7: a template that adds a system turn of its own."""
    plan("chat.jsonl", lines({"messages": [USER, ASSISTANT]}))


def pointers() -> None:
    """8: pointers of Git LFS."""
    for name in ("manual.md", "rows.jsonl", "rows.csv", "rows.parquet"):
        plan(name, LFS)
    Path("weights").mkdir()
    (Path("weights") / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    (Path("weights") / "model.safetensors").write_text(LFS, "utf-8")
    plan("plain.txt", "Pier 7.\n", "--model", "weights")


def semicolons() -> None:
    """9: a table as Excel writes it."""
    plan("excel.csv", "prompt;completion\nWhich pier?;Pier 7\n")


def floats() -> None:
    """10: numbers of 32 bits, and what is no number."""
    import pyarrow
    from pyarrow import parquet

    for name, value in (("tenth.parquet", 0.1), ("nan.parquet", float("nan"))):
        column = pyarrow.array([value], pyarrow.float32())
        parquet.write_table(pyarrow.table({"prompt": ["How much? "], "completion": column}), name)
        plan(name, Path(name).read_bytes())


def line_ends() -> None:
    """11: a checkout that writes its own line ends."""
    text = "Pier 7 has the crane.\nPier 9 has none.\n"
    plan("page.md", text, into="page.plan.json")
    Path("page.md").write_bytes(text.replace("\n", "\r\n").encode())
    code, said = command("check", "page.plan.json")
    print(f"exit {code}")
    print(textwrap.indent(verdict(said), "  "))


def sharegpt() -> None:
    """12: conversations of `from` and `value`."""
    said = [{"from": "human", "value": "Which pier?"}, {"from": "gpt", "value": "Pier 7."}]
    plan("share.jsonl", lines({"conversations": said}))


CASES: tuple[Callable[[], None], ...] = (
    lists, inputs, columns, turns, placeholders, clock, system, pointers, semicolons, floats, line_ends, sharegpt,
)  # fmt: skip


def main() -> None:
    """Run the cases in a folder of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="*", default=[])
    wanted = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, case in enumerate(CASES, start=1):
            if not wanted or number in wanted:
                print(f"\n## {case.__doc__}")
                case()


if __name__ == "__main__":
    main()
