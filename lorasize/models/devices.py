"""Devices and dtypes: which is meant, what it is called, how many there are, how much memory was used.

The only door to torch.cuda, torch.mps and torch.xpu. CPU and CUDA were run by us; the others follow torch's own words.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lorasize.errors import ModelError

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def processor() -> str:
    """The processor by the name that it gives itself; part of a calibration's device."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine() or "unknown processor"


def peak_memory(device: torch.device) -> int:
    """Bytes: the most held of an accelerator by tensors since `forget_peak`, or of a machine's memory by this process.

    MPS keeps no peak: there it is what its driver holds now, which falls only when its cache is emptied.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "xpu":
        return int(torch.xpu.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` of an accelerator count from now on. A process has one peak, which nobody can reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "xpu":
        torch.xpu.reset_peak_memory_stats(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes of an accelerator that no process holds, what this one kept in reserve given back; None where unknown."""
    if device.type not in ("cuda", "xpu"):
        return None
    door = torch.cuda if device.type == "cuda" else torch.xpu
    gc.collect()  # what was trained with may be held by a cycle
    door.empty_cache()
    return int(door.mem_get_info(device)[0])


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or the machine itself, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def has_tf32(device: torch.device) -> bool:
    """Whether a CUDA card multiplies float32 as tf32."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "xpu":
        torch.xpu.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Give the random numbers of the CPU and of this device back as they were."""
    mps = torch.mps.get_rng_state() if device.type == "mps" else None  # its function takes no device: torch cannot fork
    forked = [device] if device.type in ("cuda", "xpu") else []
    try:
        with torch.random.fork_rng(devices=forked, device_type=device.type if forked else "cuda"):
            yield
    finally:
        if mps is not None:
            torch.mps.set_rng_state(mps)


def n_cards(kind: str) -> int:
    """How many devices of a kind this process sees: one CPU, and no or one MPS."""
    if kind == "cuda":
        return int(torch.cuda.device_count())
    if kind == "xpu":
        return int(torch.xpu.device_count())
    return int(kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()))


def pick_device(name: str = "auto") -> torch.device:
    """The device meant: `auto` takes CUDA, then MPS, then XPU, then the CPU (MPS and XPU were not run by us).

    Raises:
        ModelError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device(_present()[0])
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise RuntimeError(f"none of {', '.join(_DEVICES)}")
        if device.type not in _present():
            here = ", ".join(_present())
            raise RuntimeError(f"torch {torch.__version__} finds no {device.type} on this machine, only {here}")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for sums in a fixed order; read as CUDA starts
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _present() -> list[str]:
    """The kinds of device that can be used, the best first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    found |= {"xpu": torch.xpu.is_available(), "cpu": True}
    return [kind for kind, present in found.items() if present]


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The base model's dtype: `auto` is float32 on the CPU (p is compared with ½) and bfloat16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ModelError(f"dtype {name!r} is unknown: use one of auto, {', '.join(known)}")
    return known[name]


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype as users write it: float32, bfloat16 or float16."""
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """The device and its processor, such as "cpu (AMD EPYC, 2 threads)"."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    if device.type == "xpu":
        return f"{device.type} ({torch.xpu.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({processor()}, {torch.get_num_threads()} threads)"
    return f"{device.type} ({processor()})"
