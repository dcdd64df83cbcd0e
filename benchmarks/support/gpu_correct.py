"""The part `correct` of gpu.py: what a card computes against the plain model and against itself. No script.

On a random model of a few layers, whose sizes are those of real ones where kernels care: heads of 64, 4,096 tokens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from support.gpu_rows import Rows
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.statistics import Statistics
from lorasize.models import adapters
from lorasize.records import Passage, Site
from lorasize.training import Trainer, TrainingOptions, read_checkpoint, write_checkpoint
from lorasize.training.control import OtherText

SITE = Site(target_modules=("up_proj",), layers_to_transform=(3, 5))
# Of losses and gradients, relative: the same products in another order. float32 by tf32 where steps may use it.
TOLERANCE = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2}
LENGTHS = ((5, 40), (3, 70), (20, 90), (1, 6), (9, 200), (2, 300))
FEW = ((5, 12), (3, 20), (1, 6))
TINY = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
STEPS = 24


def random_passages(vocabulary: int, lengths: Sequence[tuple[int, int]], seed: int = 0) -> list[EncodedPassage]:
    """Passages of random tokens: prompt and target lengths."""
    draw = torch.Generator().manual_seed(seed)
    nothing = Passage(id="x", file="x", line=1, prompt="", target="x")

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (n,), generator=draw).tolist())

    return [EncodedPassage(nothing, ids(prompt), ids(target)) for prompt, target in lengths]


def random_llama(device: torch.device, dtype: torch.dtype, **sizes: Any) -> Any:
    """A Llama with random weights."""
    wanted = {
        "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    }  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**wanted | sizes)).to(device, dtype).eval().requires_grad_(False)


@contextmanager
def adapted(model: Any, rank: int = 4, *, trained: bool = False) -> Iterator[Any]:
    """The model with an adapter, which is no longer a no-op where it is `trained`."""
    found = adapters.attach(model, SITE, rank, 0)
    try:
        if trained:
            with torch.no_grad():
                draw = torch.Generator().manual_seed(1)
                for parameter in adapters.parameters(found).values():
                    noise = 0.02 * torch.randn(parameter.shape, generator=draw)
                    parameter += noise.to(parameter.device)
        yield found
    finally:
        adapters.detach(found)


def plain(found: Any, encoded: Sequence[EncodedPassage]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """By PEFT's model itself, one passage at a time.

    Losses of all target tokens, whether each is the likeliest, and the gradients of the losses' sum.
    """
    device, losses, chosen = next(iter(adapters.parameters(found).values())).device, [], []
    for one in encoded:
        ids = torch.tensor([[*one.prompt_ids, *one.target_ids[:-1]]], device=device)
        logits = found(input_ids=ids, use_cache=False).logits[0, -one.n_tokens :].float()
        wanted = torch.tensor(one.target_ids, device=device)
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none"))
        chosen.append(logits.argmax(dim=-1) == wanted)
    torch.cat(losses).sum().backward()
    gradients = [p.grad.clone() for p in adapters.parameters(found).values()]
    found.zero_grad()
    return torch.cat(losses).detach().cpu(), torch.cat(chosen).cpu(), gradients


def ours(
    found: Any, encoded: Sequence[EncodedPassage], *, recorded: bool
) -> tuple[Tensor, Tensor, list[Tensor], Trainer]:
    """The same by the fast path, as steps take it: recorded, or launch by launch."""
    trainer = Trainer(found, encoded, TrainingOptions(method="sft"))
    passes = trainer._passes
    passes.whole_batches = passes.whole_batches and recorded
    with trainer._path.suffix.entered():
        looked = [(batch, passes.learn(batch, 0)) for batch in trainer._path.batches]
    losses: dict[int, Tensor] = {}
    chosen: dict[int, Tensor] = {}
    for batch, seen in looked:
        losses.update(zip(batch.passages, seen.losses.loss.split(list(batch.lengths)), strict=True))
        chosen.update(zip(batch.passages, seen.losses.correct.split(list(batch.lengths)), strict=True))
    gradients = [p.grad.clone() for p in adapters.parameters(found).values()]
    found.zero_grad()
    by_passage = (torch.cat([parts[k] for k in range(len(encoded))]) for parts in (losses, chosen))
    return *by_passage, gradients, trainer


def off(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest relative distance."""
    return max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(found, wanted, strict=True))


def against_plain(rows: Rows, device: torch.device, *, tiny: bool) -> None:
    """Losses, gradients and chosen tokens against PEFT's own model, in three dtypes."""
    encoded = random_passages(256 if tiny else 4096, FEW if tiny else LENGTHS)
    for name, tolerance in TOLERANCE.items():
        model = random_llama(device, getattr(torch, name), **(TINY if tiny else {}))
        with adapted(model, trained=True) as found:
            wanted, likeliest, gradients = plain(found, encoded)
            for how in ("recorded", "launch by launch"):
                losses, chosen, own, trainer = ours(found, encoded, recorded=how == "recorded")
                for what, distance in (("losses", off([losses], [wanted])), ("gradients", off(own, gradients))):
                    said = f"{name}, {how}: {what}, relative distance from PEFT's model"
                    rows.add(said, distance, wanted=f"< {tolerance}", good=distance < tolerance)
                same = int((chosen == likeliest).sum())
                rows.add("... likeliest tokens that are the same", f"{same} of {len(chosen)}", good=same == len(chosen))
                if how == "recorded":
                    held = trainer._passes.graphs
                    n = sum(recording is not None for recording in held._held.values())
                    good = None if device.type == "cpu" else n > 0
                    rows.add(f"{name}: shapes recorded", n, wanted=held.refused or "> 0", good=good)


def other_text(found: Any) -> OtherText:
    """Random text under a bound that is broken again and again, with statistics of random inputs."""
    draw, statistics = torch.Generator().manual_seed(2), {}
    for path, (a, b) in adapters.adapted_pairs(found).items():
        inputs = torch.randn(2 * a.shape[1], a.shape[1], generator=draw)
        statistics[path] = Statistics(inputs.T @ inputs / len(inputs), torch.rand(b.shape[0], generator=draw))
    passages = random_passages(found.config.vocab_size, FEW, seed=1)
    return OtherText({"one": passages[:1], "another": passages[1:]}, 0.02, statistics)


def trained(
    model: Any, encoded: Sequence[EncodedPassage], *, bounded: bool, start: Path | None = None, save: Path | None = None
) -> list[Tensor]:
    """The adapter's parameters after some steps, from a checkpoint on; a checkpoint is written after half of them."""
    with adapted(model) as found:
        options = TrainingOptions(max_steps=STEPS, learning_rate=0.02, batch_tokens=300)
        trainer = Trainer(found, encoded, options, other_text(found) if bounded else None)
        if start is not None:
            checkpoint = read_checkpoint(start)
            assert checkpoint is not None, start
            trainer.restore(checkpoint)

        def between() -> None:
            if save is not None and not save.exists() and trainer.state().state["step"] >= STEPS // 2:
                write_checkpoint(trainer.state(), save)

        list(trainer.steps(between))
        return [p.detach().clone() for p in adapters.parameters(found).values()]


def against_itself(rows: Rows, device: torch.device, *, tiny: bool) -> None:
    """Two runs, and one that is interrupted, end with the same adapter to the last bit."""
    encoded = random_passages(256 if tiny else 4096, FEW if tiny else LENGTHS)
    with tempfile.TemporaryDirectory() as folder:
        for name, bounded in (("bfloat16", False), ("float32", False), ("bfloat16", True), ("float32", True)):
            model = random_llama(device, getattr(torch, name), **(TINY if tiny else {}))
            how, half = f"{name}, under a bound" if bounded else name, Path(folder) / f"{name} {bounded}"
            first, second = (trained(model, encoded, bounded=bounded, save=at) for at in (half, None))
            same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            rows.add(f"{how}: two runs of {STEPS} steps end with the same adapter", same, good=same)
            resumed = trained(model, encoded, bounded=bounded, start=half)
            same = all(torch.equal(a, b) for a, b in zip(first, resumed, strict=True))
            rows.add(f"{how}: resumed from a checkpoint on disk after half of them, the same", same, good=same)


def out_of_memory(rows: Rows, device: torch.device) -> None:
    """A batch that does not fit is halved, with the same losses and gradients."""
    if device.type != "cuda":
        return
    model, encoded = random_llama(device, torch.bfloat16), random_passages(4096, [(8, 500)] * 32)

    def learned(found: Any) -> tuple[Tensor, list[Tensor], float]:
        trainer = Trainer(found, encoded, TrainingOptions(method="sft", batch_tokens=32 * 512))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with trainer._path.suffix.entered():
            trainer._accumulated(trainer._path.batches)
        gradients = [p.grad.clone() for p in trainer._parameters]
        found.zero_grad()
        return trainer.known.losses, gradients, trainer._pieces._room

    with adapted(model, trained=True) as found:
        losses, gradients, _ = learned(found)
        resident, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction((resident + 0.75 * (peak - resident)) / whole)
        try:
            halved, same, room = learned(found)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    rows.add("out of memory: positions that fit, of 16,224", room, good=room < 16_224)
    distance = max(off([halved], [losses]), off(same, gradients))
    rows.add("out of memory: losses and gradients of the halves, relative distance", distance, good=distance < 1e-2)


def of_experts(rows: Rows, device: torch.device) -> None:
    """A model that may ask the host on its way, to route tokens to experts, trains recorded or not."""
    config = MixtralConfig(
        vocab_size=256, hidden_size=256, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    model = MixtralForCausalLM(config).to(device, torch.bfloat16).eval().requires_grad_(False)
    site = Site(target_modules=("q_proj",), layers_to_transform=(4,))
    found = adapters.attach(model, site, 4, 0)
    try:
        trainer = Trainer(found, random_passages(256, FEW), TrainingOptions(max_steps=6))
        *_, last = trainer.steps()
    finally:
        adapters.detach(found)
    rows.add("a mixture of experts trains", last.step, "steps", good=last.step == 6)
    rows.add("... recorded, or why not", trainer._passes.graphs.refused or "recorded")


def correct(rows: Rows, device: torch.device, *, tiny: bool) -> None:
    """All of it."""
    rows.attempt("against PEFT's model", lambda: against_plain(rows, device, tiny=tiny))
    rows.attempt("against itself", lambda: against_itself(rows, device, tiny=tiny))
    rows.attempt("out of memory", lambda: out_of_memory(rows, device))
    rows.attempt("a mixture of experts", lambda: of_experts(rows, device))
