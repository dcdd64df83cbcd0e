"""The commands as readers: `main([...])` in this process, its exit code and both its streams judged."""

from __future__ import annotations

import contextlib
import io
import itertools
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fuzz import good
from fuzz.readers import CHARACTERS, Reader, light

from lorasize.cli import main
from lorasize.corpus import secrets
from lorasize.errors import ModelError
from lorasize.records import Decoded, DecodeJob, to_json

CODES = {0, 1, 2, 3, 4, 5}
REPORTS = ("table", "json", "markdown", "github", "junit")
OF_CONFIG = ("table", "json")  # the other reports know no configuration


class Wrong(AssertionError):
    """The command did not end as a command must."""


def run(folder: Path, *arguments: str) -> int:
    """Run a command in a folder and judge how it ends.

    Raises:
        Wrong: another exit code, a traceback, a first line that is no error, or a file left behind.
    """
    before = set(folder.iterdir())
    with contextlib.chdir(folder), _captured() as (out, err):
        code = main(arguments)
    said, complained = out.getvalue().decode(), err.getvalue().decode()
    first = complained.split("\n", 1)[0]
    left = [path.name for path in set(folder.iterdir()) - before]
    if code not in CODES:
        raise Wrong(f"{arguments}: exit code {code}: {first}")
    if "Traceback" in said + complained or left:
        raise Wrong(f"{arguments}: a traceback, or a file left: {left}")
    if (code == 2 or (code and complained)) and not first.startswith("error: "):
        raise Wrong(f"{arguments}: exit code {code}, the first line is {first!r:.300}")
    if len(first) > CHARACTERS:
        raise Wrong(f"{arguments}: a first line of {len(first)} characters: {first!r:.300}")
    return code


@contextlib.contextmanager
def _captured() -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    out, err = io.BytesIO(), io.BytesIO()
    to_out, to_err = (io.TextIOWrapper(raw, "utf-8", write_through=True) for raw in (out, err))
    with contextlib.redirect_stdout(to_out), contextlib.redirect_stderr(to_err):
        yield out, err
        to_out.detach()
        to_err.detach()


def _decode_here(job: DecodeJob) -> Iterator[Decoded]:
    """What the fresh process does, which takes seconds to start, and what becomes of its failures."""
    from lorasize.recall.decoding import decode

    try:
        yield from decode(job)
    except Exception as error:
        last = traceback.format_exception_only(error)[-1].strip().splitlines()[-1]
        raise ModelError(f"decoding in a fresh process failed: {last}") from error


def readers(base: Path, made: Path, stack: ExitStack) -> list[Reader]:
    """The commands, each on the one file that is bad: what lies beside it is good."""
    secrets.scanner()  # its rules are compiled once, in seconds
    from lorasize.recall import verdict

    stack.callback(setattr, verdict, "decode_afresh", verdict.decode_afresh)
    verdict.decode_afresh = _decode_here
    known = {reader.name: reader for reader in light()}
    model, adapter, named = str(base), made / "adapter", made / "named"
    named.mkdir()
    (named / "lorasize.plan.json").write_text(to_json(good.plan("corpus.jsonl")), encoding="utf-8")
    (named / "corpus.jsonl").write_bytes(good.JSONL)
    turn = itertools.count()

    def command(name: str, given: str, weight: int, *arguments: str, beside: Path | None = None) -> Reader:
        def read(path: Path) -> object:
            return run(path.parent, *arguments)

        return replace(known[given], name=name, read=read, weight=weight, beside=beside)

    def show(path: Path) -> object:
        formats = OF_CONFIG if path.is_file() and b"lorasize.config/" in path.open("rb").read(10**6) else REPORTS
        return run(path.parent, "show", path.name, "--report", formats[next(turn) % len(formats)])

    def in_adapter(name: str, kind: str, weight: int) -> Reader:
        data = (adapter / name).read_bytes()
        arguments = ("verify", ".", "--model", model, "--device", "cpu", "--quiet")
        return Reader(
            f"verify {name}", name, kind, (data,), lambda path: run(path.parent, *arguments), weight, beside=adapter
        )

    def in_model(name: str, kind: str, weight: int) -> Reader:
        data = (base / name).read_bytes()
        arguments = ("plan", str(named / "corpus.jsonl"), "--model", ".", *nowhere)
        return Reader(f"plan {name}", name, kind, (data,), lambda path: run(path.parent, *arguments), weight, base)

    nowhere = ("--quiet", "--out", "/dev/null/never")
    quiet = (*nowhere, "--model", model)
    return [
        command("check of a corpus", "corpus-jsonl", 3, "check", beside=named),
        command("check of a plan", "plan", 4, "check", beside=named),
        command("apply of a plan", "plan", 2, "apply", *quiet[:1], "--device", "cpu", beside=named),
        replace(command("plan of a corpus", "corpus-jsonl", 2, "plan", "corpus.jsonl", *quiet), longest=100_000),
        replace(command("plan of a table", "corpus-csv", 2, "plan", "corpus.csv", *quiet), longest=100_000),
        command(
            "plan with a calibration", "calibration", 2, "plan", "corpus.jsonl", "--calibration", "calibration.json",
            *quiet, beside=named,
        ),
        command("config, own", "config-own", 5, "config"),
        command("config, project", "config-project", 3, "config"),
        replace(known["artifact"], name="show", read=show, weight=10),
        in_model("config.json", "json", 2),
        in_model("tokenizer.json", "json", 1),
        in_model("model.safetensors", "safetensors", 1),
        in_adapter("lorasize.json", "json", 2),
        in_adapter("passages.jsonl", "jsonl", 2),
        in_adapter("SHA256SUMS", "sums", 1),
        in_adapter("adapter_model.safetensors", "safetensors", 1),
        in_adapter("adapter_config.json", "json", 1),
    ]  # fmt: skip
