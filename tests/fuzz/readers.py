"""Every reader of lorasize, each with good files and one call that reads a file; and the judge of what it does.

A reader may succeed, since some damage is harmless, or raise an error of ours with one short line. Nothing else.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import resource
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click
from fuzz import good
from support.models import save_gguf

from lorasize.artifacts.calibrations import read_calibration
from lorasize.artifacts.events import read_steps
from lorasize.artifacts.plans import read_plan
from lorasize.artifacts.read_any import read_artifact
from lorasize.cli.config import read_config
from lorasize.corpus import read_corpus
from lorasize.errors import LorasizeError
from lorasize.probing import Journal
from lorasize.records import Reading

SECONDS = 5.0  # an input that takes longer hangs
BYTES = 1_500_000_000  # of address space that one input may take
CHARACTERS = 1_000  # of a message at most
PEFT = 10_000_000  # where `adapters` shows the first line of what PEFT says, however long
REGRESSIONS = Path(__file__).parent / "regressions"


@dataclass(frozen=True)
class Reader:
    """One way into lorasize.

    Attributes:
        name: Of the reader, and of its folder of regressions.
        file: Name of the file it is given.
        kind: Of the mutations, a key of `mutate.KINDS`.
        good: Files it reads without complaint.
        read: Reads a file, given its path.
        weight: Its share of all inputs.
        beside: A folder whose other files lie beside the file.
        characters: Of a message at most.
        longest: Bytes of a mutated input at most; fewer where a model reads it, which takes its time.
    """

    name: str
    file: str
    kind: str
    good: tuple[bytes, ...]
    read: Callable[[Path], object]
    weight: int
    beside: Path | None = None
    characters: int = CHARACTERS
    longest: int = 10**9


def _corpus(path: Path, **reading: Any) -> object:
    return read_corpus([path], Reading(**reading))


def _journal(path: Path) -> object:
    return Journal(path, good.KEY)


@cache
def light() -> tuple[Reader, ...]:
    """The readers that need no torch."""
    calibration, plan = good.artifacts()[-1], good.artifacts()[-2]
    named = {"prompt_template": "{instruction} {input}", "columns": "strict"}
    shapes = {"fields": {"prompt": "key", "completion": "value"}}
    return (
        Reader("corpus-text", "corpus.txt", "text", (good.TEXT, good.FENCED), _corpus, 12),
        Reader("corpus-markdown", "corpus.md", "text", (good.TEXT, good.FENCED), _corpus, 12),
        Reader("corpus-jsonl", "corpus.jsonl", "jsonl", (good.JSONL, *good.JSONL.splitlines()), _corpus, 40),
        Reader("corpus-fields", "corpus.jsonl", "jsonl", (good.JSONL.splitlines()[1],), partial(_corpus, **shapes), 8),
        Reader("corpus-json", "corpus.json", "json", (good.LIST, good.LINES.splitlines()[0]), _corpus, 40),
        Reader("corpus-chats", "corpus.jsonl", "jsonl", (good.LINES, *good.LINES.splitlines()), _corpus, 40),
        Reader("corpus-template", "corpus.jsonl", "jsonl", (good.LINES.splitlines()[3],), partial(_corpus, **named), 8),
        Reader("corpus-packed", "corpus.jsonl.gz", "bytes", (gzip.compress(good.LINES, mtime=0),), _corpus, 12),
        Reader("corpus-semicolons", "corpus.csv", "table", (good.SEMICOLONS,), _corpus, 12),
        Reader("corpus-csv", "corpus.csv", "table", (good.CSV,), _corpus, 20),
        Reader("corpus-tsv", "corpus.tsv", "table", (good.TSV,), _corpus, 10),
        Reader("corpus-parquet", "corpus.parquet", "bytes", good.parquet(), _corpus, 12),
        Reader("calibration", "calibration.json", "json", (calibration,), read_calibration, 12),
        Reader("plan", "lorasize.plan.json", "json", (plan,), read_plan, 12),
        Reader("artifact", "artifact.json", "json", good.artifacts(), read_artifact, 14),
        Reader("config-own", "lorasize.toml", "toml", (good.LORASIZE_TOML,), _config, 12),
        Reader("config-project", "pyproject.toml", "toml", (good.PYPROJECT_TOML,), _config, 8),
        Reader("events", "events.jsonl", "jsonl", (good.events(),), read_steps, 8),
        Reader("journal", "calibration.json.journal", "jsonl", (good.journal(),), _journal, 8),
    )


def _config(path: Path) -> object:
    return read_config(path.parent)


def heavy(llama: Path, gpt2: Path, folder: Path) -> tuple[Reader, ...]:
    """The readers of adapter folders and base models, for tiny models; `folder` is for what is made on the way."""
    from lorasize import models
    from lorasize.artifacts import adapter_folder
    from lorasize.models import adapters
    from lorasize.models.fingerprint import check_base
    from lorasize.training import read_checkpoint

    adapter, gguf = good.adapter_folder(llama, folder), save_gguf(llama, folder / "tiny.gguf").read_bytes()
    expected = models.fingerprint(llama)

    def loaded(path: Path) -> object:
        adapter_folder.check_weights(path.parent)
        adapter_folder.changed_files(path.parent)
        return adapters.load_saved(models.load(str(llama), device="cpu").model, path.parent)

    def whole(path: Path) -> object:
        return models.load(str(path.parent), device="cpu")

    def sizes(path: Path) -> object:
        return models.max_positions(path.parent), models.n_layers(path.parent)

    def tokenizer(path: Path) -> object:
        check_base(expected, models.fingerprint(models.resolve(str(path.parent))), "tiny")
        return models.load_tokenizer(path.parent)

    folders = {"llama": llama, "gpt2": gpt2, "adapter": adapter}

    def of(place: str, name: str, kind: str, read: Callable[[Path], object], weight: int, more: str = "") -> Reader:
        data = (folders[place] / name).read_bytes()
        return Reader(f"{place}-{name}{more}", name, kind, (data,), read, weight, folders[place])

    weights, checkpoint = adapter_folder.WEIGHTS, (adapter / adapter_folder.WEIGHTS).read_bytes()
    return (
        of("adapter", "passages.jsonl", "jsonl", lambda path: adapter_folder.read_addresses(path.parent), 8),
        of("adapter", "lorasize.json", "json", lambda path: adapter_folder.read_record(path.parent), 6),
        of("adapter", "SHA256SUMS", "sums", lambda path: adapter_folder.changed_files(path.parent), 8),
        of("adapter", weights, "safetensors", lambda path: adapter_folder.check_weights(path.parent), 6),
        of("adapter", weights, "safetensors", loaded, 2, "-loaded"),
        replace(of("adapter", "adapter_config.json", "json", loaded, 2), characters=PEFT),
        of("llama", "config.json", "json", sizes, 4, "-sizes"),
        of("llama", "config.json", "json", whole, 2),
        of("gpt2", "config.json", "json", whole, 1),
        of("llama", "tokenizer_config.json", "json", tokenizer, 4),
        of("llama", "tokenizer.json", "json", tokenizer, 4),
        of("llama", "model.safetensors", "safetensors", whole, 2),
        Reader("gguf", "tiny.gguf", "gguf", (gguf,), lambda path: models.resolve(str(path)), 3),
        Reader("checkpoint", "state.safetensors", "safetensors", (checkpoint,), read_checkpoint, 3),
    )


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
        one.bind(path.name)


def _sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


PLACES: dict[str, Callable[[Path], object]] = {
    "absent": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("../../x"),
    "pipe": _pipe,
    "socket": _socket,
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "nothing without end": lambda path: path.symlink_to("/dev/null"),
    "a folder by another name": lambda path: path.symlink_to("/"),
    "60 MB of nothing": _sparse(60_000_000),
    "a terabyte of nothing": _sparse(10**12),
}


def clear(path: Path) -> None:
    """Take away whatever is at the path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prepared(reader: Reader, work: Path) -> Path:
    """Where this reader's file belongs in the working folder, good files beside it."""
    folder = work / reader.name
    if not folder.exists():
        folder.mkdir(parents=True)
        for file in reader.beside.iterdir() if reader.beside else ():
            shutil.copy(file, folder)
    return folder / reader.file


class Hang(BaseException):
    """The time was up."""


def _ring(number: int, frame: FrameType | None) -> NoReturn:
    raise Hang


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `Hang` after this many seconds."""
    before = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def bounded(size: int) -> Iterator[None]:
    """Let this process take so many more bytes and no more: then a `MemoryError`, and not the end of others."""
    statm = Path("/proc/self/statm")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if statm.exists():
        taken = int(statm.read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def complaint(call: Callable[[], str | None]) -> str | None:
    """What is wrong with how a call ends: it hangs (twice, as another process may have slowed it) or crashes."""
    wrong: str | None = None
    for _ in range(2):
        try:
            with bounded(BYTES), within(SECONDS), contextlib.redirect_stderr(io.StringIO()):
                wrong = call()
            break
        except Hang:
            wrong = f"hangs: more than {SECONDS:g} s"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # PanicException of a Rust library is no Exception
            wrong = f"traceback: {type(error).__name__}: {error}"[:500]
            break
    return wrong


def judged(reader: Reader, path: Path, *, good: bool = False) -> str | None:
    """What is wrong with how the reader takes what is at this path; None when nothing is. A good file it must read."""

    def call() -> str | None:
        message = refusal(lambda: reader.read(path))
        if message is None:
            return None
        return f"a good file is refused: {message}" if good else of_message(message, reader.characters)

    return complaint(call)


def refusal(call: Callable[[], object]) -> str | None:
    """The message with which a call refuses its input; None when it does not."""
    try:
        call()
    except LorasizeError as error:
        return str(error)
    except click.UsageError as error:
        return error.format_message()
    return None


def of_message(message: str, characters: int) -> str | None:
    """What is wrong with a message."""
    if len(message.splitlines()) != 1:
        return f"the message has {len(message.splitlines())} lines: {message!r:.300}"
    if len(message) > characters:
        return f"the message has {len(message)} characters: {message!r:.300}"
    return None


def folder_of(reader: Reader) -> Path:
    """Where what once did harm to this reader is kept."""
    return REGRESSIONS / reader.name.replace(",", "").replace(" ", "-")


def kept(reader: Reader) -> list[Path]:
    """The inputs that once did harm to this reader."""
    return sorted(folder_of(reader).glob("*"))


def keep(reader: Reader, data: bytes) -> Path:
    """Write an input that does harm where the tests will find it."""
    path = folder_of(reader) / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
