"""Matrix products in bfloat16 where the processor has them: float32 in and out, and summed in float32.

A logit near 16 moves by some hundredths. Steps may use them (docs/log/speed.md#bfloat16-products-in-steps); full looks,
which decide, do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_bfloat16_products(device: torch.device) -> bool:
    """Whether this processor multiplies bfloat16 in hardware. False for accelerators, which keep their settings."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))


@contextmanager
def bfloat16_products(wanted: bool) -> Iterator[None]:
    """Run float32 matrix products in bfloat16 inside the block, if `wanted`."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
