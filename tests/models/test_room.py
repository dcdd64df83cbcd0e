"""Room on a card: weights go straight to it, a proof makes room for its own copy, and what does not fit is halved."""

from __future__ import annotations

import functools
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from lorasize import models
from lorasize.errors import ModelError
from lorasize.losses import statistics
from lorasize.losses.base import slower
from lorasize.models import devices, loading, placement
from lorasize.models.once import once


class Weights:
    """Stands in for a model on a card; notes where it is put."""

    hf_device_map = None

    def __init__(self, *, fixed: bool = False) -> None:
        self.places: list[str] = []
        self.fixed = fixed

    def to(self, device: Any) -> None:
        """Go there, unless its quantisation keeps it."""
        if self.fixed:
            raise ValueError("8-bit weights cannot be moved")
        self.places.append(str(device))


@pytest.mark.parametrize(("free", "places"), [(None, []), (130, []), (120, ["cpu", "cuda:0"])])
def test_a_model_is_put_aside_where_a_second_copy_would_not_fit(
    free: int | None, places: list[str], torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: free)
    monkeypatch.setattr(placement, "resident_bytes", lambda model: 100)
    model = Weights()
    with placement.room_for_another(model, torch.device("cuda:0")):
        assert model.places == places[:1]
    assert model.places == places


def test_a_quantised_model_that_cannot_be_moved_stays(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: 0)
    monkeypatch.setattr(placement, "resident_bytes", lambda model: 100)
    model = Weights(fixed=True)
    with placement.room_for_another(model, torch.device("cuda:0")):
        assert model.places == []
    assert model.places == []


def test_what_a_card_has_free(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        """Has more free once its cache is empty."""

        kept = 30

        def empty_cache(self) -> None:
            """As torch.cuda."""
            self.kept = 0

        def mem_get_info(self, device: Any) -> tuple[int, int]:
            """As torch.cuda."""
            return 40 - self.kept, 80

    for kind in ("cuda", "xpu"):
        monkeypatch.setattr(torch, kind, Card())
        assert devices.free_memory(torch.device(kind)) == 40
    assert devices.free_memory(torch.device("cpu")) is None


@pytest.mark.parametrize(("device", "wanted"), [("cuda:1", {"": "cuda:1"}), ("mps", None), ("cpu", None)])
def test_weights_are_read_to_the_card_that_uses_them(
    device: str, wanted: Any, able_llama: Path, torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kind:
        """Notes how a model is asked for."""

        @staticmethod
        def from_pretrained(folder: str, **asked: Any) -> Any:
            """As transformers."""
            assert asked.get("device_map") == wanted
            raise RuntimeError("out of reach")

    monkeypatch.setattr(loading, "_kind", lambda config: Kind)
    with pytest.raises(ModelError, match="out of reach"):
        models.load_weights(able_llama, torch.device(device), torch.float32)


def test_statistics_take_a_window_at_a_time_where_more_does_not_fit(
    torch: Any, able_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, path = models.load(str(able_llama), device="cpu"), "model.layers.1.mlp.up_proj"
    measured = functools.partial(statistics._measured, base, [path], "", lambda done, total: None)
    whole, real, asked = measured()[path], statistics.make_batches, []

    def short(model: Any, rows: Any, first: Any, positions: int, device: Any) -> Any:
        asked.append(positions)
        if positions > room:
            raise torch.OutOfMemoryError("no memory left")
        return real(model, rows, first, positions, device)

    monkeypatch.setattr(statistics, "make_batches", short)
    room = 256
    found = measured()[path]
    assert asked == [1024, 256]
    torch.testing.assert_close(found.inputs, whole.inputs, rtol=1e-4, atol=1e-5)
    room = 0
    with pytest.raises(ModelError, match="out of memory on 256 positions of general text"):
        measured()


def test_what_is_found_out_once_lasts_as_long_as_the_model(able_llama: Path) -> None:
    asked: list[str] = []

    @once
    def name(base: models.BaseModel) -> str:
        asked.append(base.ref)
        return base.ref

    base = models.load(str(able_llama), device="cpu")
    assert name(base) == name(base) == base.ref
    assert asked == [base.ref]
    held = weakref.ref(base.model)
    del base
    gc.collect()
    assert held() is None


def test_a_tokenizer_may_know_more_tokens_than_the_model(able_llama: Path) -> None:
    base = models.load(str(able_llama), device="cpu")
    assert slower(base, 1, [base.n_ids + 3, 5, 6, 7, 8]) == ()
