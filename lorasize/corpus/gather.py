"""What a user names as a corpus → the files to read: folders, patterns, standard input, data sets of the hub."""

from __future__ import annotations

import functools
import glob
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pathspec

from lorasize.corpus.files import MAX_BYTES, PACKED, near
from lorasize.errors import CorpusError

STDIN = "-"
KEPT = Path(".lorasize")  # where what has no file of its own is written, so that apply finds it again
TEXT = (".txt", ".text", ".rst", ".adoc", ".org", ".tex", ".md", ".markdown")
KNOWN = (*TEXT, ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_HUB = re.compile(r"hf:/{1,2}datasets/([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?(?:/([^#]+))?(?:#([\w.-]+))?")
_MAGIC = re.compile(r"[*?[]")
_FEW = 3  # files named in a sentence
_MOST = 10_000  # files in a folder: more is taken for a mistake


@dataclass(frozen=True)
class Gathered:
    """The files to read, in order, which of them nobody named one by one, and what there is to say."""

    files: tuple[Path, ...]
    found: frozenset[Path] = frozenset()
    notes: tuple[str, ...] = ()


def gather(named: Sequence[Path | str]) -> Gathered:
    """The files that these names stand for. A name that a file has stands for that file, whatever else it may mean.

    Raises:
        CorpusError: a folder or a pattern holds no file that can be read, or what is named cannot be had.
    """
    _rules_in.cache_clear()  # files may have changed
    files: list[Path] = []
    found: set[Path] = set()
    notes: list[str] = []
    for name in map(str, named):
        path = Path(name)
        if name == STDIN:
            files.append(_from_stdin(notes))
        elif re.match(r"hf:/", name):
            files.append(_from_hub(name, notes))
        elif os.path.isdir(name) or (_MAGIC.search(name) and not os.path.lexists(path)):
            more = _of_folder(path, notes) if os.path.isdir(name) else _of_pattern(name)
            fresh = [one for one in more if one not in files]
            files += fresh
            found |= set(fresh)
        else:
            files.append(path)
    return Gathered(tuple(files), frozenset(found), tuple(notes))


def _of_folder(folder: Path, notes: list[str]) -> list[Path]:
    """The files below a folder whose kind is known by name; those of other kinds are noted."""
    every = list(islice(_walked(folder), _MOST + 1))
    if len(every) > _MOST:
        raise CorpusError(f"more than {_MOST:,} files lie in this folder; name one further down", file=str(folder))
    known = [path for path in every if _suffix(path) in KNOWN]
    others = sorted({path for path in every} - set(known))
    if not known:
        raise CorpusError(f"no file in this folder ends in one of {', '.join(KNOWN)}; name the files", file=str(folder))
    if others:
        more = f" and {len(others) - _FEW:,} more" if len(others) > _FEW else ""
        names = ", ".join(str(path.relative_to(folder)) for path in others[:_FEW])
        notes.append(f"{folder}: not read, as their kind is unknown: {' '.join(names.split()):.300}{more}.")
    return known


def _suffix(path: Path) -> str:
    packed = path.suffix.lower() in PACKED
    return (path.with_suffix("") if packed else path).suffix.lower()


def _of_pattern(pattern: str) -> list[Path]:
    """The files that a pattern matches, hidden and ignored ones left out."""
    matched = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [path for path in matched if os.path.isfile(path) and not _ignored(path)]
    if not files:
        folder = Path(pattern).parent
        beside = [one.name for one in folder.iterdir()] if os.path.isdir(folder) else []
        raise CorpusError("no file matches" + near([Path(pattern).name], beside), file=pattern)
    return files


def _walked(folder: Path) -> Iterator[Path]:
    """Every file below, in order of name, but hidden ones and what .gitignore names.

    `os.path` asks what a path is, as Path's methods raise where nobody may look.
    """
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _ignored(here / name))
        for name in sorted(names):
            path = here / name
            if not name.startswith(".") and os.path.isfile(path) and not _ignored(path):
                yield path


def _ignored(path: Path) -> bool:
    """Whether the nearest .gitignore that speaks of the path, up to the top of its repository, names it."""
    whole = path.absolute()
    for folder, rules in _rules_in(whole.parent):
        relative = whole.relative_to(folder).as_posix() + ("/" if os.path.isdir(path) else "")
        verdict = rules.check_file(relative).include
        if verdict is not None:
            return verdict
    return False


@functools.cache
def _rules_in(folder: Path) -> tuple[tuple[Path, pathspec.GitIgnoreSpec], ...]:
    """The rules that hold in a folder, each with the folder it lies in, the nearest first."""
    rules = _rules(folder)
    own = () if rules is None else ((folder, rules),)
    top = os.path.lexists(folder / ".git") or folder.parent == folder
    return own if top else (*own, *_rules_in(folder.parent))


def _rules(folder: Path) -> pathspec.GitIgnoreSpec | None:
    try:
        lines = (folder / ".gitignore").read_text("utf-8", "replace").splitlines()
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except (OSError, ValueError):  # there is none, or it cannot be read
        return None


def _from_stdin(notes: list[str]) -> Path:
    """A file with what comes in, so that apply reads it too."""
    if sys.stdin.isatty():
        raise CorpusError("nothing is piped in; name files, or pipe the corpus into this command", file=STDIN)
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise CorpusError(f"larger than {MAX_BYTES // 10**9} GB, so it is not read", file=STDIN)
    suffix = ".json" if data.lstrip()[:1] in (b"{", b"[") else ".txt"
    path = KEPT / f"stdin-{hashlib.sha256(data).hexdigest()[:12]}{suffix}"
    KEPT.mkdir(exist_ok=True)
    path.write_bytes(data)
    notes.append(f"Standard input is kept as {path}, which the plan names.")
    return path


def _from_hub(name: str, notes: list[str]) -> Path:
    """A file of a data set, or one of its splits as Parquet."""
    match = _HUB.fullmatch(name)
    if match is None:
        form = "hf://datasets/OWNER/NAME, with /FILE, @REVISION or #SPLIT after it"
        raise CorpusError(f"no such name of a data set; it is of the form {form}", file=name)
    dataset, revision, file, split = match.groups()
    try:
        if file:
            hub: Any = importlib.import_module("huggingface_hub")
            return Path(hub.hf_hub_download(dataset, file, repo_type="dataset", revision=revision))
        return _split_of(name, importlib.import_module("datasets"), dataset, revision, split, notes)
    except ImportError:
        raise CorpusError("a data set of the hub needs datasets: pip install 'lorasize[datasets]'", file=name) from None
    except CorpusError:
        raise
    except Exception as error:  # the hub's clients raise dozens of kinds
        raise CorpusError(f"cannot be had: {' '.join(str(error).split()):.300}", file=name) from None


def _split_of(
    name: str, datasets: Any, dataset: str, revision: str | None, split: str | None, notes: list[str]
) -> Path:
    splits = datasets.load_dataset(dataset, revision=revision)
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        raise CorpusError(f"its splits are {', '.join(splits)}; name one after #", file=name)
    KEPT.mkdir(exist_ok=True)
    path = KEPT / f"{re.sub(r'[^A-Za-z0-9.-]', '-', dataset)}-{split}.parquet"
    splits[split].to_parquet(str(path))
    notes.append(f"{name}: its split {split} is kept as {path}, which the plan names.")
    return path
