"""An adapter that was proven."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.corpora import LINES
from support.models import plan_by_hand
from support.sites import MLP

from lorasize.recall import decoding, verdict
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply


@pytest.fixture(scope="module")
def memorised(torch: Any, able_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder that holds the corpus, which lies beside it. Tests that spoil it take a copy."""
    folder = tmp_path_factory.mktemp("proof")
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in LINES), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "decode_afresh", decoding.decode)
        applied = apply(plan_by_hand(able_llama, corpus, MLP, 8), folder / "adapter", ApplyOptions(device="cpu"))
    assert applied.recall.recalled, applied.recall.failures
    return folder / "adapter"
