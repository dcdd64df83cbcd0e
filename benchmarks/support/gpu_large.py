"""The part `large` of gpu.py: models of the shape of those that people train, with random weights. No script.

Seconds and bytes do not depend on the weights' values; what is held does, so nothing is said of that.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.gpu_correct import random_passages
from support.gpu_peers import steps_of_trl
from support.gpu_rows import Rows
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.models import adapters
from lorasize.models.loading import BaseModel
from lorasize.probing import Journal
from lorasize.probing.costs import fit_cost
from lorasize.probing.presets import PRESETS
from lorasize.probing.search import ProbeReport, Search
from lorasize.records import MAX_DRIFT, ModelFingerprint, Site
from lorasize.training import Trainer, TrainingOptions
from lorasize.training.control import other_text
from lorasize.training.growth import bounded_site

SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "Qwen3-8B": (
        Qwen3ForCausalLM,
        {
            "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960,
        },
    ),
    "Llama-3.1-8B": (
        LlamaForCausalLM,
        {
            "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        },
    ),
}  # fmt: skip
TINY = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
    "initializer_range": 0.5,  # so that rows of so short a head can be told apart
}  # fmt: skip
RANK = 16
_CONFIGS = {Qwen3ForCausalLM: Qwen3Config, LlamaForCausalLM: LlamaConfig}


@dataclass
class Seen:
    """What the steps of a model showed: bytes at the peak, and of what passages a step took how many seconds."""

    peaks: dict[str, int]
    steps: dict[str, tuple[list[EncodedPassage], float]]


def measured_rates(device: torch.device, *, tiny: bool) -> tuple[float, float]:
    """Operations a second of a large product of random bfloat16 matrices, and bytes read and written by a copy."""
    n = 512 if tiny else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    big = torch.randn(2**22 if tiny else 2**30, device=device, dtype=torch.bfloat16)
    other = torch.empty_like(big)
    product = median_seconds(device, lambda: torch.mm(a, b))
    copied = median_seconds(device, lambda: other.copy_(big))
    return 2.0 * n**3 / product, 2.0 * big.nbytes / copied


def median_seconds(device: torch.device, work: Callable[[], Any], n: int = 10) -> float:
    """Of one call, after three that warm up."""
    found = []
    for k in range(n + 3):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found += [time.perf_counter() - began] if k >= 3 else []
    return statistics.median(found)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def random_model(name: str, device: torch.device, *, tiny: bool, **more: Any) -> Any:
    """A model of this shape, or with `more` of other sizes; bfloat16, made where it is used."""
    kind, sizes = SHAPES[name]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = kind(_CONFIGS[kind](**sizes | (TINY if tiny else {}) | more))
    finally:
        torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def any_tokenizer() -> Any:
    """The builtin model's, which knows fewer ids than these models; or that of the folder in LORASIZE_GPU_TOKENIZER."""
    folder = os.environ.get("LORASIZE_GPU_TOKENIZER")
    return models.load_tokenizer(Path(folder) if folder else models.resolve(models.BUILTIN))


def in_memory(model: Any, device: torch.device, name: str) -> BaseModel:
    """A base model that no folder holds."""
    tokenizer = any_tokenizer()
    nothing = ModelFingerprint(weights="random", config=name, tokenizer="")
    return BaseModel(name, Path(name), nothing, model, tokenizer, device, torch.bfloat16)


def site_of(model: Any) -> Site:
    """The module and the layer that a calibration begins with: up_proj, at two thirds of the depth."""
    n = model.config.num_hidden_layers
    return Site(target_modules=("up_proj",), layers_to_transform=(2 * n // 3,))


def operations(model: Any, first: int, encoded: Sequence[EncodedPassage]) -> float:
    """The fewest that a step can do.

    Forward, and backward without the weights' gradients, of the layers from `first` on and of the head on target
    tokens; attention's products of a causal half.
    """
    config, layers = model.config, len(model.model.layers) - first
    linear = sum(p.numel() for name, p in model.model.layers[0].named_parameters() if name.endswith("proj.weight"))
    lengths = [len(one.prompt_ids) + one.n_tokens - 1 for one in encoded]
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    attention = sum(3 * 2 * 2 * length**2 / 2 * width for length in lengths)  # backward is twice forward
    head = 2 * 2 * config.vocab_size * config.hidden_size * sum(one.n_tokens for one in encoded)
    return float(layers * (2 * 2 * linear * sum(lengths) + attention) + head)


def step_seconds(
    model: Any, encoded: Sequence[EncodedPassage], device: torch.device, *, batch_tokens: int, steps: int,
    recorded: bool = True,
) -> tuple[list[float], float, int, str]:
    """Seconds of each step, seconds of all with what comes before them, bytes at the peak, and why nothing is recorded.

    The objective is plain cross-entropy, so that no token leaves the step.
    """  # fmt: skip
    found = adapters.attach(model, site_of(model), RANK, 0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    try:
        options = TrainingOptions(method="sft", max_steps=steps, batch_tokens=batch_tokens, learning_rate=1e-3)
        trainer = Trainer(found, encoded, options)
        trainer._passes.whole_batches = trainer._passes.whole_batches and recorded
        at = [report.seconds for report in trainer.steps() if not report.evaluated]
        wait(device)
        seconds = time.perf_counter() - began
    finally:
        adapters.detach(found)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return [b - a for a, b in zip(at, at[1:], strict=False)], seconds, peak, trainer._passes.graphs.refused


def steps_of(rows: Rows, name: str, model: Any, device: torch.device, rate: float, *, tiny: bool) -> Seen:
    """A page, 4,096 positions, and a corpus of 20,000 tokens; bytes at the peak of the first and the last."""
    size, many = (60, 3) if tiny else (500, 40)
    v, first, peaks = model.config.vocab_size, site_of(model).layers_to_transform[0], {}
    page, wide = random_passages(v, [(8, size)]), random_passages(v, [(8, size + 5)] * 8)
    corpus = random_passages(v, [(8, size)] * many)
    limit, fastest = 8 if tiny else 60, float("inf")
    for how in ("recorded", "launch by launch"):
        seconds, whole, peaks["page"], why = step_seconds(
            model, page, device, batch_tokens=512, steps=limit, recorded=how == "recorded"
        )
        each = statistics.median(seconds)
        fastest = min(each, fastest)
        rows.add(f"{name}: a step of a {size}-token page, {how}", 1e3 * each, "ms", wanted=why)
        share = operations(model, first, page) / each / rate
        rows.add("... share of the card's measured rate", share)
        rows.add(f"... {limit} steps with what comes before and after", whole, "s", wanted="<= 10", good=whole <= 10)
    seconds, _, _, _ = step_seconds(model, wide, device, batch_tokens=8 * (size + 12), steps=4 if tiny else 16)
    each = statistics.median(seconds)
    share = operations(model, first, wide) / each / rate
    n = sum(len(one.prompt_ids) + one.n_tokens - 1 for one in wide)
    rows.add(f"{name}: a step of {n} positions", 1e3 * each, "ms")
    rows.add("... share of the card's measured rate", share, wanted=">= 0.40", good=share >= 0.40)
    for batch in (512, 4096):
        epoch = len(corpus) if batch == 512 else max(1, len(corpus) // 8)
        seconds, _, peak, _ = step_seconds(model, corpus, device, batch_tokens=batch, steps=epoch + 1)
        peaks.setdefault("corpus", peak)  # at the batches that apply makes
        rows.add(f"{name}: one look and step at {many * size} tokens, {batch} positions a step", sum(seconds), "s")
    return Seen(peaks, {f"a page of {size} tokens": (page, fastest), f"{n} positions": (wide, each)})


def under_a_bound(rows: Rows, name: str, model: Any, device: torch.device, *, tiny: bool) -> None:
    """The model's statistics, and a page's step with what holds the adapter back and looks at other text."""
    page = random_passages(model.config.vocab_size, [(8, 60 if tiny else 500)])
    base = in_memory(model, device, f"{name} {time.time()}")  # whose statistics no cache holds
    found = adapters.attach(model, bounded_site(base.n_layers, models.linear_shapes(model)), RANK, 0)
    try:
        began = time.perf_counter()
        other = other_text(base, found, "", MAX_DRIFT)
        rows.add(f"{name}: statistics of {len(adapters.adapted_pairs(found))} layers", time.perf_counter() - began, "s")
        began = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        options = TrainingOptions(method="sft", max_steps=8 if tiny else 30, learning_rate=1e-3)
        trainer = Trainer(found, page, options, other)
        at = [report.seconds for report in trainer.steps() if not report.evaluated]
        wait(device)
        whole = time.perf_counter() - began
    finally:
        adapters.detach(found)
    each = statistics.median(b - a for a, b in zip(at, at[1:], strict=False))
    rows.add(f"{name}: a step of a page under a bound, in six layers", 1e3 * each, "ms")
    rows.add(f"... {options.max_steps} steps with what comes before and after", whole, "s")
    if device.type == "cuda":
        rows.add("... memory at the peak", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def calibrated(rows: Rows, name: str, model: Any, device: torch.device, folder: Path, *, tiny: bool) -> Any:
    """A quick calibration's probes, and the cost that they say."""
    base = in_memory(model, device, name)

    def told(report: ProbeReport) -> None:
        if (seen := report.observation) is not None:
            print(f"  rank {seen.probe.rank} {seen.probe.kind} {seen.probe.n_tokens} tokens: {seen.steps} steps, "
                  f"{seen.seconds:.1f} s, {seen.n_stubborn} left", flush=True)  # fmt: skip

    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / f"{name}.journal.jsonl", {"made": str(time.time())})
    search = Search(base, journal, PRESETS["quick"], 0, 2.0 if tiny else 100.0, [], told, {}, None)
    began = time.perf_counter()
    search.all_probes()
    seconds = time.perf_counter() - began
    n = len(search.observations)
    rows.add(f"{name}: a quick calibration's {n} probes", seconds, "s", wanted="<= 180", good=seconds <= 180)
    rows.add("... steps of all", sum(o.steps for o in search.observations))
    return fit_cost(base, search.observations)


def predicted_memory(rows: Rows, name: str, model: Any, cost: Any, peaks: dict[str, int], *, tiny: bool) -> None:
    """What plan would say of the peak, against the peak."""
    width, size, many = model.config.hidden_size, *((60, 3) if tiny else (500, 40))
    for what, positions in (("page", size + 7), ("corpus", many * (size + 7))):
        step = min(positions, 512)
        said = cost.memory_base_bytes + cost.memory_overhead_bytes + cost.memory_bytes_per_token * step
        said += 2 * width * positions
        if peaks[what]:
            share = said / peaks[what]
            rows.add(f"{name}: memory at the peak, {what}", peaks[what] / 2**30, "GiB")
            rows.add("... predicted ÷ measured", share, wanted="0.8 to 1.2", good=0.8 <= share <= 1.2)


def packed_to_nf4(model: Any) -> Any:
    """The same model with its layers' weights in nf4, as bitsandbytes packs them."""
    import bitsandbytes as bnb

    for layer in model.model.layers:
        for path, module in list(layer.named_modules()):
            if isinstance(module, torch.nn.Linear):
                packed = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=module.bias is not None,
                                           compute_dtype=torch.bfloat16, quant_type="nf4")  # fmt: skip
                packed.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
                above, _, last = path.rpartition(".")
                setattr(layer.get_submodule(above), last, packed.to(module.weight.device))
    model.is_loaded_in_4bit = True
    return model.eval().requires_grad_(False)


def large(rows: Rows, device: torch.device, folder: Path, *, tiny: bool) -> None:
    """All of it, one model after the other."""
    rate, bandwidth = measured_rates(device, tiny=tiny)
    rows.add("a product of 8,192 × 8,192 bfloat16 matrices", rate / 1e12, "TFLOP/s")
    rows.add("a copy, bytes read and written", bandwidth / 1e12, "TB/s")
    for name in reversed(SHAPES):  # what takes longest comes last
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        model = random_model(name, device, tiny=tiny)
        seen = rows.attempt(f"{name}: steps", lambda m=model, n=name: steps_of(rows, n, m, device, rate, tiny=tiny))
        rows.attempt(f"{name}: under a bound", lambda m=model, n=name: under_a_bound(rows, n, m, device, tiny=tiny))
        if name != "Qwen3-8B":
            rows.attempt(f"{name}: nf4", lambda m=model, n=name: nf4(rows, n, m, device, tiny=tiny))
            continue
        cost = rows.attempt(
            f"{name}: calibration", lambda m=model, n=name: calibrated(rows, n, m, device, folder, tiny=tiny)
        )
        if seen is None:
            continue
        if cost is not None:
            predicted_memory(rows, name, model, cost, seen.peaks, tiny=tiny)
        if importlib.util.find_spec("trl"):
            for what, (passages, mine) in seen.steps.items():
                steps_of_trl(rows, f"{name}, {what}", model, any_tokenizer(), passages, device, mine, tiny=tiny)


def nf4(rows: Rows, name: str, model: Any, device: torch.device, *, tiny: bool) -> None:
    """A page on the model with its weights packed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        rows.add(f"{name} in nf4", "not run: bitsandbytes is not installed")
        return
    page = random_passages(model.config.vocab_size, [(8, 60 if tiny else 500)])
    packed = packed_to_nf4(model)
    gc.collect()
    seconds, whole, peak, why = step_seconds(packed, page, device, batch_tokens=512, steps=8 if tiny else 30)
    rows.add(f"{name} in nf4: a step of a page", 1e3 * statistics.median(seconds), "ms", wanted=why)
    rows.add(f"{name} in nf4: 30 steps with what comes before and after", whole, "s")
    rows.add(f"{name} in nf4: memory at the peak", peak / 2**30, "GiB")
