"""What the base model makes of the package's own texts: kept between runs, and the same as when it is run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import TRAINING_TEXT
from support.sites import MLP

from lorasize import models
from lorasize.artifacts.files import cache_folder
from lorasize.losses.texts import windows_of
from lorasize.models import BaseModel, adapters
from lorasize.training import base_states
from lorasize.training.base_states import known_by_the_base
from lorasize.training.control import other_text, shown_drift
from lorasize.training.fast_path import fast_path


@pytest.fixture(scope="module")
def base(torch: Any, able_llama: Path) -> BaseModel:
    return models.load(str(able_llama), device="cpu")


@pytest.fixture
def adapted(base: BaseModel) -> Any:
    attached = adapters.attach(base.model, MLP, 4, 0)
    yield attached
    adapters.detach(attached)


def kept() -> list[Path]:
    return sorted((cache_folder() / "base-states").glob("*"))


def seen(base: BaseModel, adapted: Any, kept_for: BaseModel | None) -> list[Any]:
    texts = windows_of(base, TRAINING_TEXT, 64)
    path, known = known_by_the_base(adapted, fast_path(adapted, texts, 512), texts, kept_for)
    return [*(batch.stored for batch in path.batches), *(part for one in known for part in vars(one).values())]


def test_the_second_run_reads_what_the_first_one_saw(
    torch: Any, base: BaseModel, adapted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = seen(base, adapted, base)
    assert len(kept()) == 1
    monkeypatch.setattr(base_states.FastPath, "hidden", None)  # the model is not run
    again = seen(base, adapted, base)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_a_damaged_file_is_made_again(torch: Any, base: BaseModel, adapted: Any) -> None:
    first = seen(base, adapted, base)
    kept()[0].write_bytes(kept()[0].read_bytes()[:100])
    again = seen(base, adapted, base)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert kept()[0].stat().st_size > 100


def test_a_cache_that_cannot_be_written_costs_time_alone(
    torch: Any, base: BaseModel, adapted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("LORASIZE_CACHE", str(tmp_path / "file"))
    assert len(seen(base, adapted, base)) == 5


def test_what_the_states_depend_on_has_files_of_its_own(
    base: BaseModel, adapted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen(base, adapted, base)
    monkeypatch.setattr(base_states.importlib.metadata, "version", lambda name: "9.9")
    seen(base, adapted, base)
    monkeypatch.setattr(BaseModel, "attn", "another kernel")
    seen(base, adapted, base)
    assert len(kept()) == 3


def test_of_a_user_s_text_nothing_is_kept(base: BaseModel, adapted: Any) -> None:
    seen(base, adapted, None)
    corpus = fast_path(adapted, windows_of(base, TRAINING_TEXT, 64), 512)
    shown_drift(base, adapted, corpus, "What the user wrote, and nobody else is to read.")
    assert other_text(base, adapted, "What the user wrote.", 0.02).kept_for is None
    assert kept() == []
    shown_drift(base, adapted, corpus)
    assert len(kept()) == 1
