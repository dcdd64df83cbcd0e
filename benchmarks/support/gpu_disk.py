"""The part `disk` of gpu.py: the commands on a model of eight billion parameters that lies on disk. No script.

Its weights are random: an honest stand-in for seconds and bytes, and a model that nobody would memorise with. What it
holds is told all the same.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

import torch
from support.gpu_large import any_tokenizer, random_model
from support.gpu_real import BARE, EXAMPLE, alone, calibrated, in_this_process, lorasize, memorised
from support.gpu_rows import Rows

SHAPE = "Qwen3-8B"
SMALL_CARD = 24 * 2**30  # bytes of a card that just holds such a model


def disk(rows: Rows, device: torch.device, folder: Path, *, tiny: bool) -> None:
    """Write the model, then calibrate, plan, apply to the proof; and apply with the memory of a smaller card."""
    folder.mkdir(parents=True, exist_ok=True)
    where = written(rows, device, folder / "model", tiny=tiny)
    corpus = [EXAMPLE[0]]
    if tiny:
        (folder / "short.txt").write_text("The kettle is in the third drawer.\n", encoding="utf-8")
        corpus = [folder / "short.txt"]
    made = None if tiny else calibrated(rows, device.type, folder, "quick", where)
    asked = ("--model", where, *(BARE if tiny else ()))
    with in_this_process(wanted=tiny):
        adapter = memorised(rows, "a page", corpus, made, device.type, folder / "page", *asked)
    if adapter is not None:
        alone(rows, adapter, device.type, folder / "page", where)
    if device.type == "cuda" and (folder / "page" / "plan.json").exists():
        as_on_a_smaller_card(rows, device, folder / "page")


def written(rows: Rows, device: torch.device, folder: Path, *, tiny: bool) -> Path:
    """The model's folder."""
    began = time.perf_counter()
    tokenizer = any_tokenizer()
    model = random_model(SHAPE, device, tiny=tiny, **({"vocab_size": len(tokenizer)} if tiny else {}))
    model.save_pretrained(folder, max_shard_size="2GB")
    tokenizer.save_pretrained(folder)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    rows.add(f"{SHAPE} shape, random weights, {size / 2**30:.1f} GiB: written", time.perf_counter() - began, "s")
    del model
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return folder


def as_on_a_smaller_card(rows: Rows, device: torch.device, folder: Path) -> None:
    """Train a few steps and decode where the model and a second copy of it do not fit together."""
    free, whole = torch.cuda.mem_get_info(device)
    held = torch.empty(max(0, whole - SMALL_CARD - (whole - free)), dtype=torch.uint8, device=device)
    try:
        left = torch.cuda.mem_get_info(device)[0] / 2**30
        seconds, code, said = lorasize(
            "apply", "plan.json", "--device", device.type, "--no-escalate", "--no-learn", "--max-steps", 5,
            "--out", "small", cwd=folder,
        )  # fmt: skip
    finally:
        del held
        torch.cuda.empty_cache()
    ended = (folder / "small" / "lorasize.json").exists()
    what = f"with {left:.1f} GiB of the card free: five steps, saved, decoded"
    rows.add(what, seconds, "s", wanted=f"exit {code}: {said.strip().splitlines()[-1][:120]}", good=ended)
