"""Devices: which is meant, what is absent, and each kind asked by functions of its own."""

from __future__ import annotations

from typing import Any

import pytest

from lorasize import models
from lorasize.errors import ModelError
from lorasize.models import devices


def test_devices(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.pick_device("cpu") == torch.device("cpu")
    for present, expected in (((False, False), "cpu"), ((False, True), "mps"), ((True, True), "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=present[0]: found)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda found=present[1]: found)
        assert models.pick_device().type == expected


class Card:
    """Stands in for torch.cuda, torch.xpu or torch.mps, and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def is_available(self) -> bool:
        """It is here."""
        return True

    def device_count(self) -> int:
        """Of cards."""
        return 3

    def max_memory_allocated(self, device: Any) -> int:
        """As torch.cuda and torch.xpu."""
        return 77

    def driver_allocated_memory(self) -> int:
        """As torch.mps."""
        return 77

    def synchronize(self, *device: Any) -> None:
        """As all three."""
        self.told.append(device)

    def get_rng_state(self, *device: Any) -> str:
        """As all three: that of mps takes no device."""
        return f"state of {device}"

    def set_rng_state(self, state: str, *device: Any) -> None:
        """As all three."""
        self.told.append((state, *device))

    def get_device_name(self, device: Any) -> str:
        """As torch.cuda and torch.xpu."""
        return "Card 9"


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_each_accelerator_is_asked_by_its_own_functions(kind: str, torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card, device = Card(), torch.device(kind, 0)
    where = () if kind == "mps" else (device,)
    monkeypatch.setattr(torch, kind, card)
    monkeypatch.setattr(torch, "get_device_module", lambda name: card)  # which keeps what it once found
    monkeypatch.setattr(torch.backends.mps, "is_available", card.is_available)
    before = torch.get_rng_state()
    with devices.forked_rng(device):
        torch.randn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert card.told == [(f"state of {where}", *where)]
    devices.synchronize(device)
    assert card.told[1:] == [where]
    assert devices.peak_memory(device) == 77
    assert devices.n_cards(kind) == (1 if kind == "mps" else 3)
    assert devices.device_name(device).startswith(f"{kind} (")
    assert ("Card 9" in devices.device_name(device)) is (kind != "mps")


def test_a_run_on_the_cpu_asks_no_accelerator(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cpu = torch.device("cpu")
    assert devices.peak_memory(cpu) > 2**20  # of this process, not 0 of a card
    devices.synchronize(cpu)
    before = torch.get_rng_state()
    with devices.forked_rng(cpu):
        torch.randn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert devices.n_cards("cpu") == 1


def test_an_unknown_device_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="device 'toaster' cannot be used") as refused:
        models.pick_device("toaster")
    assert "\n" not in str(refused.value)


def test_dtypes(torch: Any) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert models.pick_dtype("auto", cpu) == torch.float32
    assert models.pick_dtype("auto", cuda) == torch.bfloat16
    assert models.pick_dtype("float16", cpu) == torch.float16
    assert models.dtype_name(torch.bfloat16) == "bfloat16"
    with pytest.raises(ModelError, match="dtype 'int8' is unknown: use one of auto, float32"):
        models.pick_dtype("int8", cpu)
