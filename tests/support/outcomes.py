"""What becomes of each architecture in plan, apply and verify: `python tests/support/outcomes.py` writes the page.

`--check` writes nothing and exits with 1 where docs/reference/models.md is out of date; `--only NAME` prints rows. The
models are tiny and random, so this says whether an architecture goes through, not how much it holds.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from support.architectures import ARCHITECTURES, save_architecture
from support.models import save_tokenizer
from support.paths import ROOT

from lorasize.errors import LorasizeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAGE = ROOT / "docs" / "reference" / "models.md"
START, END = "<!-- architectures -->\n", "<!-- /architectures -->\n"
CORPUS = '{"prompt": "Pier 9:", "completion": " 7"}\n{"prompt": "The colour of the buoy:", "completion": " A"}\n'
RANK = 16  # more than enough: how small it could be is not the question here
WORKS, SLOWLY = "works", "works without the fast path"


@dataclass(frozen=True)
class Outcome:
    """What became of one architecture."""

    name: str
    result: str
    attention: str = ""
    batches: str = ""

    @property
    def row(self) -> str:
        """Its row of the page."""
        return f"| `{self.name}` | {self.result} | {self.attention} | {self.batches} |"


def outcome(name: str, tokenizer: PreTrainedTokenizerBase, folder: Path) -> Outcome:
    """Take a tiny model of this architecture through plan, apply and verify in this process, below `folder`."""
    from lorasize.training.run import ApplyOptions
    from lorasize.verbs.apply import apply
    from lorasize.verbs.plan import PlanOptions, plan
    from lorasize.verbs.verify import verify

    corpus, other = folder / "facts.jsonl", folder / "other.txt"
    corpus.write_text(CORPUS, "utf-8")
    other.write_text("A vessel that leaves before noon pays half.", "utf-8")  # drift is not the question either
    base = save_architecture(name, tokenizer, folder / "base")
    try:
        sized = plan([corpus], ref=str(base), device="cpu", options=PlanOptions(rank=RANK, max_drift=math.inf))
        done = apply(sized.plan, folder / "adapter", ApplyOptions(device="cpu", max_steps=400, retain=other))
        report = verify(folder / "adapter", done.encoded, device="cpu", batch_size=2)
    except LorasizeError as error:
        said = " ".join(str(error).replace(str(base), name).split())
        return Outcome(name, f"refused: {said:.300}")
    record = done.memorization
    if not (record.proven and report.recalled):
        return Outcome(name, f"not proven: {record.outcome}, smallest p {record.min_probability:.3f}")
    batches = "" if report.batch_size == 2 else "one prompt at a time"
    return Outcome(name, SLOWLY if record.notes else WORKS, report.attn_implementation, batches)


@contextmanager
def decoding_here() -> Iterator[None]:
    """Decode in this process: a fresh one takes seconds to import what it needs, and does the same."""
    from lorasize.recall import decoding, verdict

    afresh = verdict.decode_afresh
    verdict.decode_afresh = decoding.decode
    try:
        yield
    finally:
        verdict.decode_afresh = afresh


def outcomes(names: Sequence[str]) -> Iterator[Outcome]:
    """The outcome of each, one after another."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as name, decoding_here():
        work = Path(name)
        tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(work / "tokenizer"))
        os.environ["LORASIZE_CACHE"] = str(work / "cache")
        for architecture in names:
            (work / architecture).mkdir()
            yield outcome(architecture, tokenizer, work / architecture)


def section(found: Sequence[Outcome]) -> str:
    """The part of the page between its markers."""
    from transformers import __version__

    fast, slow = (sum(one.result == kind for one in found) for kind in (WORKS, SLOWLY))
    counts = f"works {fast}, works without the fast path {slow}, refused {len(found) - fast - slow}"
    head = ["| architecture | outcome | attention kernel | decoded |", "|---|---|---|---|"]
    what = f"{len(found)} architectures of transformers {__version__}, by the `model_type` of their configuration"
    lines = [f"{what}: {counts}.", "", *head, *(one.row for one in found)]
    return "\n".join(lines) + "\n"


def with_section(text: str, new: str) -> str:
    """The text with this between its markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{START.strip()} and {END.strip()} are not both there, in this order")
    return before + start + new + end + after


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="print the rows of these and write nothing")
    arguments = parser.parse_args()
    found = []
    for one in outcomes(arguments.only or list(ARCHITECTURES)):
        print(one.row, file=sys.stderr, flush=True)
        found.append(one)
    text = PAGE.read_text("utf-8")
    wanted = with_section(text, section(found))
    if not (arguments.only or arguments.check):
        PAGE.write_text(wanted, "utf-8", newline="\n")
    return int(arguments.check and wanted != text)


if __name__ == "__main__":
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    sys.exit(main())
