"""Greedy decoding as a server does it: base and adapter from disk, merged or not, in batches, with a cache.

A DecodeJob enters; a Decoded for each passage leaves: the ids that came, and what the same loaded model says of the
target when it reads prompt and target in one pass. Knows nothing of corpora, digests or verdicts. Decoding uses a clean
GenerationConfig, so that no repetition penalty of the model's own `generation_config.json` leaks in.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from lorasize import models
from lorasize.losses.head import alike
from lorasize.models import adapters
from lorasize.models.activation import activation_tokens, from_prompt, require_kept_gate
from lorasize.models.merging import merged
from lorasize.models.quantization import refuse_merging
from lorasize.recall.generation_config import clean_generation_config
from lorasize.recall.steps import Greedy, recorded
from lorasize.records import Decoded, DecodeJob

_PAD = 0  # any id: padding is masked
_TRIED = 3  # tokens decoded to see whether padding changes them; not tuned
_ROWS, _POSITIONS = 16, 4096  # that prompts of equal length have together, at most; not tuned


def decode(job: DecodeJob) -> Iterator[Decoded]:
    """One `Decoded` a prompt, in order.

    Raises:
        ModelError: base or adapter cannot be loaded, or this machine lacks the attention asked for.
    """
    model = _served(job)
    if job.batch_size is None and _in_batches(job):
        yield from _decode_alike(model, job)
        return
    asked = job.batch_size or 1
    alone = asked > 1 and not _pads(model, job)
    together = job.model_copy(update={"batch_size": 1 if alone else asked})
    greedy = _one_by_one(model, together)
    for rows in _together(together, models.max_positions(Path(job.base))):
        for one in _decode_batch(model, job, rows, greedy):
            yield one.model_copy(update={"batch_size": 1}) if alone else one


def _in_batches(job: DecodeJob) -> bool:
    """Whether to: a card decodes one prompt at a time by recorded steps, and batches were not tried there."""
    return torch.device(job.device).type == "cpu" or job.device_map is not None


def _decode_alike(model: Any, job: DecodeJob) -> Iterator[Decoded]:
    """Prompts of equal length together, which takes no padding; the results in the order of the prompts."""
    greedy = _one_by_one(model, job.model_copy(update={"batch_size": 1}))
    ready: dict[int, Decoded] = {}
    due = 0
    for rows in _alike(job):
        for row, one in zip(rows, _decode_batch(model, job, rows, greedy), strict=True):
            ready[row] = one.model_copy(update={"batch_size": len(rows)})
        while due in ready:
            yield ready.pop(due)
            due += 1


def _alike(job: DecodeJob) -> list[list[int]]:
    """Rows whose prompts are of equal length and whose targets differ by less than twice, the first row's first."""
    groups: list[list[int]] = []
    latest: dict[tuple[int, int], list[int]] = {}
    for row, (prompt, n_tokens) in enumerate(zip(job.prompts, job.n_tokens, strict=True)):
        kind = len(prompt), n_tokens.bit_length()
        longest = len(prompt) + 2 ** n_tokens.bit_length()
        if kind not in latest or len(latest[kind]) == max(1, min(_ROWS, _POSITIONS // longest)):
            latest[kind] = []
            groups.append(latest[kind])
        latest[kind].append(row)
    return groups


def _one_by_one(model: Any, job: DecodeJob) -> Greedy:
    """How one prompt is decoded: by recorded steps on a card, where they give what `generate` gives; else by that."""

    def plainly(prompt: Sequence[int], wanted: Sequence[int], n_tokens: int) -> tuple[list[int], Tensor]:
        (ids,), log_p = _generated(model, torch.device(job.device), [prompt], [wanted] if wanted else [], n_tokens)
        return ids, log_p[0]

    if (job.batch_size or 1) > 1 or len(job.prompts) < 2 or job.device_map is not None:
        return plainly
    if activation_tokens(model):  # PEFT asks the host for the places where it acts, which cannot be recorded
        return plainly
    longest = max(len(p) + n for p, n in zip(job.prompts, job.n_tokens, strict=True))
    shortest = min(job.prompts, key=len)
    return recorded(model, longest, shortest, torch.device(job.device), plainly) or plainly


def _pads(model: Any, job: DecodeJob) -> bool:
    """Whether padding on the left leaves what the model says of a prompt as it is: a state that runs on may not.

    The shortest prompt is decoded for a few tokens beside the longest and alone, and the logits are compared.
    """
    rows = sorted(range(len(job.prompts)), key=lambda row: len(job.prompts[row]))
    short, long = (job.prompts[row] for row in (rows[0], rows[-1]))
    if len(short) == len(long):
        return True
    how = torch.device(job.device), min(_TRIED, job.n_tokens[rows[-1]])  # for which the longest has positions
    beside, alone = (_first_logits(model, prompts, *how) for prompts in ((short, long), (short,)))
    pairs = enumerate(zip(beside, alone, strict=True))
    n = next((k + 1 for k, (one, other) in pairs if one.argmax() != other.argmax()), len(alone))
    return alike(beside[:n], alone[:n])  # up to where they part


def _first_logits(model: Any, prompts: Sequence[Sequence[int]], device: torch.device, n_tokens: int) -> Tensor:
    """Logits of the first tokens decoded after the first of these prompts, shape (token, vocabulary)."""
    ids, mask = _padded(prompts, device, left=True)
    seen: list[Tensor] = []

    def watch(_: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores[0].to(model.dtype))  # by whose rounding they are compared
        return scores

    config = clean_generation_config(n_tokens, pad_token_id=_PAD)
    with torch.no_grad():
        model.generate(
            input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList([watch])
        )
    return torch.stack(seen)


def _together(job: DecodeJob, max_positions: int) -> Iterator[list[int]]:
    """Rows decoded together: at most `batch_size`, and fewer where the model has no positions for the longest both."""
    rows: list[int] = []
    for row in range(len(job.prompts)):
        more = [*rows, row]
        longest = max(len(job.prompts[r]) for r in more) + max(job.n_tokens[r] for r in more)
        if rows and (len(rows) == (job.batch_size or 1) or longest > max_positions):
            yield rows
            more = [row]
        rows = more
    if rows:
        yield rows


def _served(job: DecodeJob) -> Any:
    """The model that decodes: PEFT's, or the base, alone or with the adapter added to its weights in their dtype."""
    device = torch.device(job.device)
    folder = Path(job.base)
    if job.merged:
        refuse_merging(models.quantized_as(folder, job.quantization), job.device_map)
    dtype = models.pick_dtype(job.dtype, device)
    base = models.load_weights(folder, device, dtype, job.attn_implementation, job.quantization, job.device_map)
    base.generation_config = GenerationConfig()  # transformers fills a passed config from this one
    if job.adapter is None:
        return base
    adapted = adapters.load_saved(base, Path(job.adapter))
    if job.merged:
        return merged(adapted)
    require_kept_gate(adapted)
    return adapted


class _Watch:
    """Notes ln p of the wanted token of each row as decoding goes on; of the likeliest where none is wanted."""

    def __init__(self, wanted: Tensor | None) -> None:
        self.wanted = wanted  # (rows, steps)
        self.noted: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        wanted = scores.argmax(dim=-1) if self.wanted is None else self.wanted[:, len(self.noted)]
        self.noted.append(torch.log_softmax(scores.float(), dim=-1).gather(1, wanted[:, None])[:, 0])
        return scores


def _decode_batch(model: Any, job: DecodeJob, rows: Sequence[int], greedy: Greedy) -> Iterator[Decoded]:
    """The rows decoded together, prompts padded on the left; each is cut at its own number of tokens."""
    device, wanted = torch.device(job.device), [job.targets[row] for row in rows] if job.targets else []
    if len(rows) == 1:
        found, log_p = greedy(job.prompts[rows[0]], wanted[0] if wanted else (), job.n_tokens[rows[0]])
        ids, stepwise = [found], log_p[None]
    else:
        most = max(job.n_tokens[row] for row in rows)
        ids, stepwise = _generated(model, device, [job.prompts[row] for row in rows], wanted, most)
    for place, row in enumerate(rows):
        decoded = tuple(ids[place][: job.n_tokens[row]])
        target = job.targets[row] if job.targets else decoded
        log_p, margins = _read(model, job.prompts[row], target, device)
        yield Decoded(
            ids=decoded,
            probabilities=tuple(torch.exp(log_p).nan_to_num(nan=0.0).tolist()),
            logit_margin=_finite(margins.min()),
            decoding_gap=_finite(_gap(log_p, stepwise[place], target, decoded)),
            attn_implementation=model.config._attn_implementation,
        )


@torch.no_grad()
def _generated(
    model: Any, device: torch.device, prompts: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], n_tokens: int
) -> tuple[list[list[int]], Tensor]:
    """By `generate`: so many tokens after each prompt, and ln p of the tokens wanted, shape (prompt, token)."""
    ids, mask = _padded(prompts, device, left=True)
    watch = _Watch(_padded(wanted, device)[0] if wanted else None)
    output = model.generate(  # position ids are counted from the mask, so that each prompt starts at 0
        input_ids=ids,
        attention_mask=mask,
        generation_config=clean_generation_config(n_tokens, pad_token_id=_PAD),
        logits_processor=LogitsProcessorList([watch]),
    )
    return output[:, ids.shape[1] :].tolist(), torch.stack(watch.noted, dim=1).cpu()


def _padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids of equal length and their mask, 1 where a token stands."""
    width = max(map(len, rows))
    ids, mask = (torch.full((len(rows), width), fill, device=device) for fill in (_PAD, 0))
    for place, row in enumerate(rows):
        part = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, part] = torch.tensor(list(row), device=device)
        mask[place, part] = 1
    return ids, mask


@torch.no_grad()
def _read(model: Any, prompt: Sequence[int], target: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Teacher-forced ln p and logit margin of each target token: one pass over the passage alone, no cache.

    The logits are the model's own, in its dtype; softmax and differences are taken in float32.
    """
    ids = torch.tensor([[*prompt, *target[:-1]]], device=device)
    told = {"logits_to_keep": len(target)} if _keeps_few(model) else {}
    told |= from_prompt(model, prompt, len(target) - 1)  # the target may hold the tokens, too
    logits: Tensor = model(input_ids=ids, use_cache=False, **told).logits[0, -len(target) :].float()
    wanted = torch.tensor(list(target), device=device)
    best, index = logits.topk(2, dim=-1)
    other = torch.where(index[:, 0] == wanted, best[:, 1], best[:, 0])
    margins = logits.gather(1, wanted[:, None])[:, 0] - other
    log_p = torch.log_softmax(logits, dim=-1).gather(1, wanted[:, None])[:, 0]
    return log_p.cpu(), margins.cpu()


def _keeps_few(model: Any) -> bool:
    """Whether the model can be asked for the last logits alone."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(plain.forward).parameters


def _gap(log_p: Tensor, stepwise: Tensor, target: Sequence[int], decoded: Sequence[int]) -> Tensor:
    """Largest |Δ ln p| between one pass and step by step, up to where decoding leaves the target."""
    pairs = enumerate(zip(target, decoded, strict=True))
    last = next((i for i, (wanted, got) in pairs if wanted != got), len(target) - 1)
    return (log_p - stepwise[: len(target)])[: last + 1].abs().max()


def _finite(value: Tensor) -> float | None:
    """The number, or None where the arithmetic overflowed."""
    return float(value) if math.isfinite(value) else None
