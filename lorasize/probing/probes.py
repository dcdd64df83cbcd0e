"""One probe: its text, made from a seed, and its training.

Targets are random tokens, or text: sentences made from a seed, or a sample of the user's own corpus.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from lorasize.corpus.tokens import EncodedPassage, stop_token_id
from lorasize.errors import CorpusError, ModelError
from lorasize.losses.base import base_losses
from lorasize.losses.neutral import neutral_text, windows
from lorasize.losses.reach import DISTINCT, reach_of
from lorasize.models import BaseModel, adapters
from lorasize.models.devices import forget_peak, peak_memory
from lorasize.models.once import once
from lorasize.records import CLEARLY_FAILED, LAW_STEPS, Observation, Passage, ProbeSpec, StepReport
from lorasize.training import Stall, Trainer, TrainingOptions
from lorasize.training.control import other_text, shown_drift
from lorasize.units import LN2

_PROMPT = "[probe]\n"
_DRAWS = 20  # of all tokens; half of a vocabulary may be alike and this suffices
_FEW_LEFT = 8  # tokens that a failed probe is known by; more are its capacity's doing


def probe_passage(base: BaseModel, spec: ProbeSpec, sample: Sequence[int] = ()) -> EncodedPassage:
    """The passage of a probe: `spec.n_tokens` target tokens, stop token included, after a fixed prompt.

    Args:
        base: Gives tokenizer and vocabulary.
        spec: Kind, length and seed.
        sample: Token ids of the user's text; a window of them is used for kind `text` when there are enough.
    """
    ids = _random_ids(base, spec) if spec.kind == "random" else _text_ids(base, spec, sample)
    prompt = tuple(base.tokenizer(_PROMPT).input_ids)
    nothing = Passage(id="probe", file="probe", line=1, prompt=_PROMPT, target="")
    return EncodedPassage(nothing, prompt, (*ids, stop_token_id(base.tokenizer, base.n_ids)))


def _random_ids(base: BaseModel, spec: ProbeSpec) -> list[int]:
    """Tokens drawn from the seed; one that the head can hardly tell from another is drawn again.

    Raises:
        ModelError: the head tells hardly any tokens apart.
    """
    special = set(base.tokenizer.all_special_ids)
    draw = random.Random(spec.seed)
    reach = reach_of(base)
    size = min(len(base.tokenizer), base.n_ids)
    ordinary = [i for i in range(size) if i not in special]
    ids: list[int] = []
    for _ in range(_DRAWS):
        drawn = draw.choices(ordinary, k=spec.n_tokens - 1 - len(ids))
        distinct = [True] * len(drawn) if reach is None else (reach.log_odds(drawn) > DISTINCT).tolist()
        ids += [token for token, good in zip(drawn, distinct, strict=True) if good]
        if len(ids) == spec.n_tokens - 1:
            return ids
    raise ModelError("the rows of the model's output embedding are so alike that most tokens can hardly be told apart")


def _text_ids(base: BaseModel, spec: ProbeSpec, sample: Sequence[int]) -> list[int]:
    wanted = spec.n_tokens - 1
    if len(sample) >= wanted > 0:
        start = random.Random(spec.seed).randint(0, len(sample) - wanted)
        return list(sample[start : start + wanted])
    text = " ".join(invented_sentences(spec.seed, 1 + wanted // 4))
    n_ids = base.n_ids
    ids = [i for i in base.tokenizer(text, add_special_tokens=False, verbose=False).input_ids if i < n_ids]
    if len(ids) < wanted:
        raise CorpusError(f"a probe of {spec.n_tokens} tokens needs a longer sample: {len(ids)} tokens are there")
    return ids[:wanted]


_WHO = ("the harbour office", "Marta Ilves", "the night crew", "Dr. Okonjo", "the survey team", "Radek Slawik")
_DID = ("moved", "recorded", "repaired", "signed for", "rejected", "delivered", "measured", "archived")
_WHAT = ("copper valves", "sealed folders", "tide tables", "ration cards", "glass panes", "field radios", "seed trays")
_WHERE = ("Pier 9", "the old mill", "Vessel Street", "Dry Dock Two", "the north annex", "Cabin 14", "Tallow Bridge")
_WHEN = ("on Monday", "before dawn", "in early March", "after the audit", "during the storm", "last winter", "at noon")


def invented_sentences(seed: int, n: int) -> list[str]:
    """Sentences no model has seen, the same for the same seed."""
    draw = random.Random(seed)
    return [
        f"{draw.choice(_WHEN).capitalize()} {draw.choice(_WHO)} {draw.choice(_DID)} {draw.randint(12, 980)} "
        f"{draw.choice(_WHAT)} near {draw.choice(_WHERE)}, file {draw.randint(1000, 9999)}."
        for _ in range(n)
    ]


def run_probe(base: BaseModel, spec: ProbeSpec, sample: Sequence[int] = ()) -> Observation:
    """Train a fresh adapter on the probe's passage; the model is left as it was."""
    passage = probe_passage(base, spec, sample)
    forget_peak(base.device)
    before = _base_loss(base) if spec.max_drift is None else 0.0
    adapted = adapters.attach(base.model, spec.site, spec.rank, spec.seed)
    try:
        n_parameters = sum(p.numel() for p in adapters.parameters(adapted).values())
        other = other_text(base, adapted, "", spec.max_drift)
        started = time.perf_counter()
        trainer = Trainer(adapted, [passage], TrainingOptions(max_steps=spec.max_steps, seed=spec.seed), other)
        base_loss = trainer.evaluate().mean_loss
        training = time.perf_counter()
        last, early, first = _run(trainer.steps(), base_loss, spec.max_steps, lambda: trainer.harmed)
        ended = time.perf_counter()
        left = (trainer.known.losses >= LN2).nonzero()[:, 0].tolist()
        if spec.max_drift is None:
            drift, kept = _other_loss(base) - before, True
        else:
            shown = shown_drift(base, adapted, trainer.path).model_copy(update={"bound": spec.max_drift})
            drift, kept = shown.moved, not shown.broken
    finally:
        adapters.detach(adapted)
    return Observation(
        probe=spec,
        n_parameters=n_parameters,
        base_loss=base_loss,
        final_loss=last.loss,
        loss_reduction=base_loss - last.loss,
        n_stubborn=last.n_stubborn,
        threshold_met=last.n_stubborn == 0 and kept,
        steps=last.step,
        seconds=ended - started,
        seconds_per_step=(ended - training - first) / max(1, last.step - 1),
        peak_memory_bytes=peak_memory(base.device),
        early_loss=early,
        drift=drift if math.isfinite(drift) else None,
        stubborn=tuple(passage.target_ids[k] for k in left) if len(left) <= _FEW_LEFT else (),
    )


@once
def _base_loss(base: BaseModel) -> float:
    """The same of the model alone."""
    return _other_loss(base)


def _other_loss(base: BaseModel) -> float:
    """Loss of the model, with the adapter that is in it, on the neutral text, nats per token."""
    losses = base_losses(base, windows(neutral_text(), base.tokenizer, base.max_positions - 1, base.n_ids))
    return float(torch.cat(losses).mean())


def _run(
    reports: Iterator[StepReport], base_loss: float, max_steps: int, harmed: Callable[[], bool] = lambda: False
) -> tuple[StepReport, float | None, float]:
    """The last report, the loss after LAW_STEPS steps of a run that went on, and seconds of the first of many steps.

    The first step sets up what is set up once. The run ends after LAW_STEPS when it has clearly failed, with a fifth of
    the base loss left; later when training stalls.
    """
    stall, early, first = Stall(limit=max_steps), None, 0.0
    for report in reports:
        first = report.seconds if report.step == 1 else first
        if report.step == LAW_STEPS and not report.evaluated:
            if base_loss - report.loss < CLEARLY_FAILED * base_loss:
                break
            early = report.loss
        if stall.seen(report.step, report, harmed=harmed()):
            break
    return report, early if report.step > LAW_STEPS else None, first if report.step > 1 else 0.0
