"""An adapter that was proven."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpora import LINES
from support.engines import FAKES, answers
from support.models import plan_by_hand
from support.paths import ROOT
from support.sites import MLP

from lorasize import models
from lorasize.corpus import read_corpus
from lorasize.corpus.tokens import EncodedPassage, encode_corpus
from lorasize.recall import decoding, verdict
from lorasize.records import Reading
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


@pytest.fixture(scope="module")
def passages(memorised: Path, able_llama: Path) -> list[EncodedPassage]:
    """The passages that the adapter holds."""
    found, _ = read_corpus([memorised.parent / "corpus.jsonl"])
    return encode_corpus(found, models.load_tokenizer(able_llama), Reading(), 256)


@pytest.fixture
def tell_engine(
    tmp_path: Path, passages: list[EncodedPassage], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """`tell_engine({n: answer}, fault=…, at=…)` says what the stand-in for an engine does, in whichever process."""

    def tell(instead: dict[int, Any] | None = None, **told: Any) -> None:
        said = answers(passages)
        for n, answer in (instead or {}).items():
            said[json.dumps(list(passages[n].prompt_ids))] = answer
        (tmp_path / "told.json").write_text(json.dumps({"answers": said, **told}), "utf-8")
        monkeypatch.setenv("FAKE_ENGINE", str(tmp_path / "told.json"))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKES), str(ROOT)]))

    return tell
