"""Many architectures of transformers, tiny and random, through plan, apply and verify: the page of models."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support import outcomes
from support.architectures import ALIKE, ARCHITECTURES, save_architecture
from support.paths import ROOT

from lorasize.losses import statistics
from lorasize.records import MAX_DRIFT
from lorasize.training import control
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply
from lorasize.verbs.plan import plan


def page() -> list[str]:
    """The rows of the page."""
    return [line for line in outcomes.PAGE.read_text("utf-8").splitlines() if line.startswith("| `")]


def same_transformers() -> bool:
    """Whether this is the transformers that the page was made with: which architectures there are is its affair."""
    return f"transformers=={metadata.version('transformers')}\n" in (ROOT / "constraints.txt").read_text("utf-8")


def test_sixty_and_more_are_tried_by_the_suite() -> None:
    assert ARCHITECTURES.keys() > ALIKE
    assert len(ARCHITECTURES) - len(ALIKE) >= 60


def test_the_page_has_a_row_for_each_and_most_work() -> None:
    rows = [re.fullmatch(r"\| `([^`]+)` \| (.+?) \| (\w*) \| ([\w ]*) \|", row) for row in page()]
    found = {row[1]: row[2] for row in rows if row is not None}
    assert list(found) == list(ARCHITECTURES)
    assert len(rows) == len(found) >= 60
    working = [name for name, result in found.items() if result in (outcomes.WORKS, outcomes.SLOWLY)]
    assert len(working) >= 52
    assert [result for result in found.values() if not result.startswith((outcomes.WORKS, "refused: "))] == []


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
@pytest.mark.filterwarnings("ignore")  # of models' own code
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ALIKE])
def test_the_page_says_what_becomes_of_it(torch: Any, tokenizer: Any, tmp_path: Path, name: str) -> None:
    if not same_transformers():
        pytest.skip("another transformers than that of constraints.txt")
    torch.set_num_threads(1)
    found = outcomes.outcome(name, tokenizer, tmp_path)
    assert found.row in page(), f"{found.row}: run `python tests/support/outcomes.py`"


@pytest.mark.parametrize("text", ["", outcomes.START, outcomes.END, outcomes.END + outcomes.START])
def test_without_markers_nothing_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="not both there"):
        outcomes.with_section(text, "new")


def test_what_becomes_of_it_is_put_between_the_markers() -> None:
    made = outcomes.section([outcomes.Outcome("one", outcomes.WORKS, "sdpa"), outcomes.Outcome("two", "refused: so")])
    text = outcomes.with_section(f"before\n{outcomes.START}old\n{outcomes.END}after\n", made)
    assert text == f"before\n{outcomes.START}{made}{outcomes.END}after\n"
    assert "works 1, works without the fast path 0, refused 1." in made
    assert "| `one` | works | sdpa |  |\n| `two` | refused: so |  |  |\n" in made


UNALIKE = ("bart", "bloom", "ctrl", "dbrx", "falcon_h1", "falcon_mamba", "gemma3n_text", "gpt2", "opt", "qwen2_moe")


@pytest.mark.slow
@pytest.mark.usefixtures("_same_process")
@pytest.mark.filterwarnings("ignore")  # of models' own code
@pytest.mark.parametrize("name", UNALIKE)
def test_plan_and_apply_keep_a_bound_by_default(
    torch: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By another model's law; statistics, guard and control on two short texts and for four steps."""
    few = {"prose": "A vessel that leaves before noon pays half of it.", "code": "def f(x):\n    return x + 1\n"}
    for module in (statistics, control):
        monkeypatch.setattr(module, "texts", lambda use: few)
    torch.set_num_threads(1)
    corpus = tmp_path / "facts.jsonl"
    corpus.write_text(outcomes.CORPUS, "utf-8")
    base = save_architecture(name, tokenizer, tmp_path / "base")
    made = plan([corpus], ref=str(base), device="cpu").plan
    assert made.max_drift == MAX_DRIFT
    record = apply(made, tmp_path / "adapter", ApplyOptions(device="cpu", max_steps=4)).memorization
    assert record.drift is not None
    assert record.drift.bound == MAX_DRIFT
    assert record.drift.kinds.keys() == few.keys()
    assert record.adapter == made.adapter
