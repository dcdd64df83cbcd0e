"""What a device does in a second: products of matrices, and copies within its memory. About a second to measure.

Seconds of a calibration are scaled by them to a device that was not calibrated (`planning.elsewhere`).
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from lorasize.models.devices import synchronize
from lorasize.records import BATCH_TOKENS, DeviceRates

# Not tuned.
_WIDTHS = (512, 1024, 2048, 4096)  # of the square that a step's positions are multiplied by
_LONG_ENOUGH = 0.005  # seconds of one product; shorter ones are made wider, since they measure launches
_COPIED = 2**26  # bytes read, and as many written: more than most caches hold
_ROUND = 0.02  # seconds of calls between two looks at the clock
_ROUNDS = 7  # at most
_PATIENCE = 0.3  # seconds after which no further round starts


def device_rates(device: torch.device, dtype: torch.dtype) -> DeviceRates | None:
    """The rates of this device in this dtype, measured once in a process; None where it cannot be measured."""
    return _measured(device, dtype, torch.get_num_threads())


@functools.cache
def _measured(device: torch.device, dtype: torch.dtype, threads: int) -> DeviceRates | None:
    """`threads` tells one measurement on a CPU from another, as it does in the device's name."""
    try:
        with torch.inference_mode():
            return DeviceRates(matmul_flops=_matmul_flops(device, dtype), copy_bytes_per_second=_copy_rate(device))
    except RuntimeError:  # no room, or a dtype that it does not multiply in
        return None


def _matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    for width in _WIDTHS:
        # Cards multiply equal numbers faster than others.
        left, right = (_drawn(rows, width).to(device, dtype) for rows in (BATCH_TOKENS, width))
        product = functools.partial(torch.mm, left, right)
        seconds_of_calls(product, 1, device)  # the first call also loads what it needs
        once = seconds_of_calls(product, 1, device)
        if once >= _LONG_ENOUGH:
            break
    return 2.0 * BATCH_TOKENS * width * width / _seconds_each(product, once, device)


def _drawn(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def _copy_rate(device: torch.device) -> float:
    source, target = (torch.zeros(_COPIED, device=device, dtype=torch.uint8) for _ in range(2))
    copy = functools.partial(target.copy_, source)
    seconds_of_calls(copy, 1, device)
    return 2.0 * _COPIED / _seconds_each(copy, seconds_of_calls(copy, 1, device), device)


def _seconds_each(call: Callable[[], object], once: float, device: torch.device) -> float:
    """Median of a few rounds; a round has as many calls as take long enough for the clock."""
    n = max(1, min(1000, round(_ROUND / max(once, 1e-9))))
    rounds: list[float] = []
    started = time.perf_counter()
    while not rounds or (len(rounds) < _ROUNDS and time.perf_counter() - started < _PATIENCE):
        rounds.append(seconds_of_calls(call, n, device) / n)
    return statistics.median(rounds)


def seconds_of_calls(call: Callable[[], object], n: int, device: torch.device) -> float:
    """Seconds of so many calls in a row, from when the device is idle until it is again."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(n):
        call()
    synchronize(device)
    return max(time.perf_counter() - started, 1e-9)
