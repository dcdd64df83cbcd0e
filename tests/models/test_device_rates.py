"""What a device does in a second: measured once, and on no device for long."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lorasize.models import device_rates as rates
from lorasize.models.device_rates import device_rates


@pytest.fixture(autouse=True)
def _unmeasured() -> None:
    rates._measured.cache_clear()


def test_a_cpu_is_measured_in_about_a_second_and_once(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    started = time.process_time()
    found = device_rates(cpu, torch.float32)
    assert time.process_time() - started < 30.0  # on a machine that others share
    assert found is not None
    assert 1e7 < found.matmul_flops < 1e15
    assert 1e6 < found.copy_bytes_per_second < 1e14
    assert device_rates(cpu, torch.float32) is found


def test_a_device_that_cannot_do_it_has_no_rates(torch: Any) -> None:
    assert device_rates(torch.device("cpu"), torch.int4) is None


@pytest.mark.parametrize(("flops", "widths"), [(1e9, 1), (3e11, 3), (1e15, 4)])
def test_a_rate_is_that_of_calls_on_a_clock(
    flops: float, widths: int, torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product is made wider until it is no matter of launches; a slow device is asked for few."""
    asked: list[tuple[int, int]] = []

    def clock(call: Any, n: int, device: Any) -> float:
        width = call.args[1].shape[0] if call.func is torch.mm else 0
        asked.append((width, n))
        return n * (2.0 * 512 * width * width / flops if width else 2.0**27 / 1e10)

    monkeypatch.setattr(rates, "seconds_of_calls", clock)
    found = device_rates(torch.device("cpu"), torch.float32)
    assert found is not None
    assert found.matmul_flops == pytest.approx(flops)
    assert found.copy_bytes_per_second == pytest.approx(1e10)
    assert len({width for width, _ in asked if width}) == widths
    assert sum(n for width, n in asked if width) < (20 if flops == 1e9 else 8000)


def test_calls_are_timed_from_idle_to_idle(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(rates, "synchronize", lambda device: seen.append(f"wait {device}"))
    assert rates.seconds_of_calls(lambda: seen.append("call"), 2, torch.device("cpu")) > 0.0
    assert seen == ["wait cpu", "call", "call", "wait cpu"]
