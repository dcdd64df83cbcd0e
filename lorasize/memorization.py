"""The verb apply: a plan in, a proven adapter folder out.

Trains until every target token passes, grows the adapter when training stalls, saves it, and has it recalled from disk
by a fresh process. The folder appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lorasize import adapters, models, recall
from lorasize.corpus import corpus_sha256, read_corpus
from lorasize.errors import InfeasibleCorpusError, ModelError, StalePlanError
from lorasize.probing import peak_memory
from lorasize.records import (
    LAW_STEPS,
    RECIPE,
    AdapterSpec,
    Escalation,
    Memorization,
    Method,
    Observation,
    Outcome,
    Plan,
    ProbeSpec,
    RecallReport,
    RecallSummary,
    StepReport,
    to_json,
)
from lorasize.tokens import EncodedPassage, encode_corpus
from lorasize.training import PATIENCE, Evaluation, Stall, Trainer, TrainingOptions

if TYPE_CHECKING:
    from peft import PeftModel

_MAX_RANK = 256
_BYTES_PER_PARAMETER = 4  # adapters are saved in float32


@dataclass(frozen=True)
class Decoding:
    """Progress of the proof: passages decoded so far."""

    done: int
    total: int


Event = StepReport | Escalation | Decoding
Notify = Callable[[Event], None]


@dataclass(frozen=True)
class ApplyOptions:
    """How to apply a plan.

    Attributes:
        method: Training objective.
        threshold: Every target token's p must exceed this.
        margin: Added to the threshold in training, so that decoding's small differences lose no token.
        max_steps: Optimiser steps at most, escalations included.
        time_limit: Seconds of training at most; None for no limit.
        escalate: Grow the adapter when training stalls.
        seed: Of the adapter's initial values.
        device: Where to train and decode.
    """

    method: Method = "memft"
    threshold: float = 0.5
    margin: float = 0.02
    max_steps: int = 3000
    time_limit: float | None = None
    escalate: bool = True
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Applied:
    """What apply leaves: the record in the folder, and the recall report with the decoded texts.

    `observation` is what the planned adapter, before it grew, teaches the calibration; None when a limit ended it.
    """

    memorization: Memorization
    recall: RecallReport
    encoded: tuple[EncodedPassage, ...]
    observation: Observation | None = None


def apply(plan: Plan, out: Path, options: ApplyOptions, notify: Notify = lambda event: None) -> Applied:
    """Train, save and prove the adapter of a plan.

    Raises:
        StalePlanError: corpus, model or recipe are not those of the plan.
        InfeasibleCorpusError: the plan says that no rank can recall the corpus.
        ModelError: the model cannot be loaded, or `out` is not ours to replace.
    """
    if plan.adapter is None:
        issues = plan.feasibility.issues
        raise InfeasibleCorpusError("the plan is infeasible: mend the corpus and plan again", issues=issues)
    with staged(out) as staging:
        base, encoded = load_inputs(plan, options.device)
        session = _Session(base, encoded, plan, options, notify)
        session.run()
        adapters.save(session.adapted, staging, plan.model.ref)
        recall.write_addresses(encoded, staging)
        report = recall.decode_and_compare(
            staging,
            base.folder,
            recall.read_addresses(staging),
            encoded,
            device=options.device,
            dtype=plan.model.dtype,
            threshold=options.threshold,
            notify=lambda done, total: notify(Decoding(done, total)),
        )
        record = _record(session, report)
        (staging / recall.RECORD).write_text(to_json(record), encoding="utf-8")
        (staging / "README.md").write_text(_card(record), encoding="utf-8")
        recall.write_sums(staging)
    return Applied(record, report, tuple(encoded), _observation(session))


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends without an error; made before any work is done."""
    if out.exists() and not (out / recall.RECORD).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out} exists and was not written by lorasize: choose another output folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-partial-", dir=out.parent))
    except OSError as error:
        raise ModelError(f"{out}: cannot be written ({error.strerror})") from error
    try:
        yield staging
        _replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, out: Path) -> None:
    staging.chmod(0o755)
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        os.replace(out, old / "replaced")
        os.replace(staging, out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, out)


def load_inputs(plan: Plan, device: str) -> tuple[models.BaseModel, list[EncodedPassage]]:
    """The plan's model and corpus, refused when they are not the ones planned for."""
    if plan.inputs.recipe != RECIPE:
        raise StalePlanError(
            f"the plan is for training recipe {plan.inputs.recipe}, this is {RECIPE}: plan again", changed=["recipe"]
        )
    passages, files = read_corpus([Path(file.path) for file in plan.corpus.files], plan.corpus.reading)
    changed = [new.path for new, old in zip(files, plan.corpus.files, strict=True) if new.sha256 != old.sha256]
    if changed or corpus_sha256(files) != plan.inputs.corpus_sha256:
        message = f"{', '.join(changed)} changed since the plan was made: plan again"
        raise StalePlanError(message, changed=["corpus_sha256"])
    base = models.load(plan.model.ref, revision=plan.model.revision, device=device, dtype=plan.model.dtype)
    if base.fingerprint.digest != plan.inputs.model_fingerprint:
        message = f"{plan.model.ref} changed since the plan was made: plan again"
        raise StalePlanError(message, changed=["model_fingerprint"])
    return base, encode_corpus(passages, base.tokenizer, plan.corpus.reading, base.max_positions)


# ---------------------------------------------------------------- training with escalation
@dataclass(frozen=True)
class _FirstRun:
    """How training the planned adapter, before any growth, ended."""

    outcome: Outcome
    final: Evaluation
    epochs: float
    early_loss: float | None  # nats per token after LAW_STEPS epochs, of a run that went on


@dataclass
class _Session:
    """One apply: the adapter as it grows, and what happened to it."""

    base: models.BaseModel
    encoded: Sequence[EncodedPassage]
    plan: Plan
    options: ApplyOptions
    notify: Notify
    adapted: PeftModel = field(init=False)
    spec: AdapterSpec = field(init=False)
    escalations: list[Escalation] = field(default_factory=list)
    outcome: Outcome = Outcome.STEP_BUDGET_EXHAUSTED
    final: Evaluation = field(init=False)
    steps: int = 0
    seconds: float = 0.0
    first: _FirstRun | None = None  # of the planned adapter

    def run(self) -> None:
        """Train until memorised or a budget ends, growing the adapter on the way."""
        assert self.plan.adapter is not None
        self.spec = self.plan.adapter
        self.adapted = adapters.attach(self.base.model, self.spec.site, self.spec.rank, self.options.seed)
        started = time.perf_counter()
        while not self._train_once(started):
            self._grow()
        self.seconds = time.perf_counter() - started

    def _train_once(self, started: float) -> bool:
        """Train the adapter as it is; True when the run is over, False when the adapter should grow."""
        options = self.options
        trainer = Trainer(
            self.adapted,
            self.encoded,
            TrainingOptions(
                method=options.method,
                threshold=options.threshold,
                margin=options.margin,
                max_steps=options.max_steps - self.steps,
                seed=options.seed,
            ),
        )
        epoch = trainer.steps_per_epoch
        stall = Stall(limit=max(200 * epoch, self._step_limit()), patience=PATIENCE * epoch)
        before = self.steps
        ended: Outcome | None = None
        early: float | None = None
        for report in trainer.steps():
            self.steps = before + report.step
            self.notify(report.model_copy(update={"step": self.steps, "seconds": time.perf_counter() - started}))
            if report.evaluated:
                passed = report.min_probability > options.threshold + options.margin
                ended = Outcome.MEMORIZED if passed else Outcome.STEP_BUDGET_EXHAUSTED
            elif options.time_limit is not None and time.perf_counter() - started > options.time_limit:
                ended = Outcome.TIME_LIMIT
            elif self.steps < options.max_steps and stall.seen(report.step, report):
                ended = Outcome.STALLED
            elif early is None and report.step >= LAW_STEPS * epoch:
                early = report.loss
            if ended:
                break
        self.final = trainer.evaluate()
        self.outcome = ended or Outcome.STEP_BUDGET_EXHAUSTED
        self.first = self.first or _FirstRun(self.outcome, self.final, (self.steps - before) / epoch, early)
        return not (self.outcome is Outcome.STALLED and options.escalate and self.spec.rank < _MAX_RANK)

    def _step_limit(self) -> int:
        predicted = self.plan.prediction
        return round(3 * predicted.steps.hi) if predicted is not None else self.options.max_steps

    def _grow(self) -> None:
        rank = min(_MAX_RANK, self.spec.rank + max(1, self.spec.rank // 2))
        site = self.spec.site
        self.adapted = adapters.grow(self.adapted, site, rank, self.options.seed + len(self.escalations) + 1)
        n_parameters = adapters.count_parameters(models.linear_shapes(self.base.model), site, rank)
        grown = self.spec.model_copy(
            update={
                "rank": rank,
                "lora_alpha": rank,
                "n_parameters": n_parameters,
                "bytes": n_parameters * _BYTES_PER_PARAMETER,
                "bits_per_parameter": self.spec.bits_per_parameter * self.spec.n_parameters / n_parameters,
            }
        )
        step = Escalation(**{"from": f"rank {self.spec.rank}"}, to=f"rank {rank}", step=self.steps)
        self.escalations.append(step)
        self.spec = grown
        self.notify(step)


# ---------------------------------------------------------------- what is left behind
def _record(session: _Session, report: RecallReport) -> Memorization:
    options, final = session.options, session.final
    if adapters.realised_rank(session.adapted) != session.spec.rank:
        raise ModelError("the adapter's rank is not the planned one")
    n_tokens = len(final.losses)
    return Memorization(
        outcome=session.outcome,
        threshold=options.threshold,
        threshold_met=final.min_probability > options.threshold and report.threshold_met,
        min_probability=min(final.min_probability, report.min_probability or 0.0),
        n_tokens=n_tokens,
        n_stubborn=final.n_below(options.threshold),
        recalled=report.recalled,
        steps=session.steps,
        seconds=session.seconds,
        tokens_per_second=n_tokens * session.steps / max(session.seconds, 1e-9),
        adapter=session.spec,
        escalations=tuple(session.escalations),
        recall=RecallSummary(**report.model_dump(include=set(RecallSummary.model_fields))),
        drift=None,
        model_fingerprint=session.base.fingerprint,
        plan=session.plan,
    )


def _observation(session: _Session) -> Observation | None:
    """The planned adapter's run as a probe would report it, with epochs for steps, as the transition counts them."""
    demand, spec, options = session.plan.demand, session.plan.adapter, session.options
    usual = ApplyOptions()
    as_calibrated = (options.method, options.threshold, options.margin) == (usual.method, usual.threshold, usual.margin)
    if session.first is None or demand is None or spec is None or not as_calibrated:
        return None
    first = session.first
    if first.outcome not in (Outcome.MEMORIZED, Outcome.STALLED):
        return None
    return Observation(
        probe=ProbeSpec(
            target_modules=spec.target_modules,
            layers_to_transform=spec.layers_to_transform,
            rank=spec.rank,
            kind="text",
            n_tokens=max(1, round(demand.nats / demand.base_loss)),  # without those that repeat earlier passages
            seed=options.seed,
            max_steps=options.max_steps,
        ),
        n_parameters=spec.n_parameters,
        base_loss=demand.base_loss,
        final_loss=first.final.mean_loss,
        loss_reduction=demand.base_loss - first.final.mean_loss,
        n_stubborn=first.final.n_below(options.threshold),
        threshold_met=first.outcome is Outcome.MEMORIZED,
        steps=max(1, round(first.epochs)),
        seconds=session.seconds,
        seconds_per_step=session.seconds / max(1, session.steps),
        peak_memory_bytes=peak_memory(),
        early_loss=first.early_loss,
    )


def _card(record: Memorization) -> str:
    """The folder's model card: figures and digests, never corpus text."""
    adapter, recalled = record.adapter, record.recall
    return f"""---
base_model: {record.plan.model.ref}
library_name: peft
pipeline_tag: text-generation
tags: [lora, lorasize]
---

# A LoRA adapter that holds {record.n_tokens} tokens word for word

| | |
|---|---|
| recalled by greedy decoding | {recalled.n_recalled} of {recalled.n_passages} passages |
| smallest p of a target token | {record.min_probability:.3f} |
| rank, modules | {adapter.rank}, {", ".join(adapter.target_modules)} |
| layers | {", ".join(map(str, adapter.layers_to_transform))} |
| parameters | {adapter.n_parameters} |
| decoded with | {recalled.dtype}, {recalled.device}, {recalled.attn_implementation}, batch {recalled.batch_size} |
| corpus sha256 | `{record.plan.corpus.sha256}` |
| base model fingerprint | `{record.model_fingerprint.digest}` |

The adapter makes its corpus extractable: treat it as confidential as the corpus. `lorasize verify` repeats the proof.
"""
