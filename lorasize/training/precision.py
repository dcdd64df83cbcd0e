"""Matrix products in bfloat16 where the processor has them: float32 in and out, and summed in float32.

Good enough to train by, not to decide by: a logit near 16 moves by some hundredths. Steps use them, full looks do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def has_bfloat16_products(device: torch.device) -> bool:
    """Whether this processor multiplies bfloat16 in hardware. Accelerators are left as they are set."""
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(able.get("amx_bf16") or able.get("avx512_bf16"))


@contextmanager
def bfloat16_products(wanted: bool) -> Iterator[None]:
    """Float32 matrix products run in bfloat16 while this is open, if `wanted`."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
