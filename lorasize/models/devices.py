"""Devices and dtypes: which is meant, what it is called, how much memory was used."""

from __future__ import annotations

import os
import platform
import resource
import sys
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
    """Bytes: the most that was held of an accelerator since `forget_peak`, or by this process of a machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "xpu":
        return int(torch.xpu.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())  # held now: there is no other
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak(device: torch.device) -> None:
    """Let `peak_memory` of an accelerator count from now on. A process has one peak, which nobody can reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "xpu":
        torch.xpu.reset_peak_memory_stats(device)


def has_tf32(device: torch.device) -> bool:
    """Whether a CUDA card multiplies float32 as tf32."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def pick_device(name: str = "auto") -> torch.device:
    """The device meant: `auto` takes CUDA, then MPS, then XPU, then the CPU (MPS and XPU were not run by us).

    Raises:
        ModelError: the device is unknown or absent.
    """
    if name == "auto":
        return torch.device(_best_device())
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise RuntimeError(f"none of {', '.join(_DEVICES)}")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for sums in a fixed order; read as CUDA starts
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "xpu" if torch.xpu.is_available() else "cpu"


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
    if device.type == "cpu":
        return f"cpu ({processor()}, {torch.get_num_threads()} threads)"
    return device.type
