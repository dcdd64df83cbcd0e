"""The verb plan: corpus, model and calibration in, recommendation out.

One forward pass of the base model tells what the corpus needs written; the rest is arithmetic in `planning`. A corpus
that no rank can recall is found from its token ids alone, before any weights are loaded, or from the model's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lorasize import models
from lorasize.corpus import Corpus, corpus_sha256, read, secrets
from lorasize.corpus.activation import AUTO, activated, find_activation
from lorasize.corpus.chat_prompt import look_at_prompts
from lorasize.corpus.feasibility import feasibility, narrow_note, unreachable
from lorasize.corpus.special_tokens import Told, told_of
from lorasize.corpus.surprise import Surprise, surprises
from lorasize.corpus.tokens import EncodedPassage, encode_corpus, sample, several_prompts
from lorasize.losses.base import base_losses, slower
from lorasize.losses.batches import sequence_length
from lorasize.losses.demand import demand
from lorasize.losses.reach import hardship
from lorasize.models import adapters, placement
from lorasize.models.activation import refuse_merging_activated, require_gate
from lorasize.models.gguf_adapter import ARCHITECTURES
from lorasize.models.quantization import refuse_merging
from lorasize.planning import (
    Limits,
    Wishes,
    Workload,
    infeasible_plan,
    make_plan,
    scaled_from,
)
from lorasize.planning.serving import fitted, with_activation
from lorasize.records import (
    RECIPE,
    Activation,
    Calibration,
    CorpusSummary,
    Feasibility,
    Finding,
    Level,
    Minimize,
    ModelFingerprint,
    Plan,
    PlanInputs,
    PlanModel,
    PlanUpdate,
    Reading,
    Serve,
    digest,
)
from lorasize.verbs import plan_basis
from lorasize.verbs.update import BaseAdapter, compare, priced, read_base_adapter, require_activation


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the user wants the adapter to sit.

    Attributes:
        target_modules: An explicit module set, which wins over the search.
        layers: Explicit decoder layers of those modules, all when empty; None for those that they were probed in.
    """

    target_modules: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Where):
    """What the user asks of a plan.

    Attributes:
        reading: How files become passages.
        calibration: A calibration file; when None the nearest that fits, else another model's as a prior.
        confidence: Probability with which the adapter should hold every token.
        minimize: What the adapter should be small in.
        rank: An explicit rank, which wins over the search.
        base_adapter: Folder of an adapter that holds the corpus as it was, to be trained on; None for a fresh one.
        limits: Budgets.
        serve: Where the adapter will be used.
        secrets: Whether to look for credentials and personal data in the corpus, and whether one found is an error.
        activate_after: Text in every prompt that the adapter acts after, or "auto" for all that the prompts begin with;
            None for an adapter that always acts, or as the one that is trained on.
        max_drift: Nats per token that other text may move by; infinite for no bound, None for what suits:
            MAX_DRIFT, where the calibration knows such a bound and nothing else asked for speaks against it.
    """

    reading: Reading = field(default_factory=Reading)
    calibration: Path | None = None
    confidence: float = 0.9
    minimize: Minimize = "parameters"
    rank: int | None = None
    base_adapter: Path | None = None
    limits: Limits = field(default_factory=Limits)
    serve: Serve = "peft"
    secrets: Level = "warn"
    activate_after: str | None = None
    max_drift: float | None = None

    @property
    def wishes(self) -> Wishes:
        """What of this is wished of the adapter itself."""
        return Wishes(
            confidence=self.confidence,
            minimize=self.minimize,
            rank=self.rank,
            target_modules=self.target_modules,
            limits=self.limits,
            serve=self.serve,
        )


@dataclass(frozen=True)
class Sized:
    """A plan, and what it was made from.

    Of an infeasible corpus nothing is measured: losses, calibration and folder are missing then.

    Attributes:
        plan: The plan.
        encoded: The passages it is for.
        losses: Each token's base loss, nats, passage by passage.
        calibration: The calibration it was made from.
        folder: The base model's folder.
    """

    plan: Plan
    encoded: tuple[EncodedPassage, ...]
    losses: tuple[Tensor, ...] = ()
    calibration: Calibration | None = None
    folder: models.ModelFolder | None = None

    def surprises(self) -> list[Surprise]:
        """Each passage token by token, with what the model does not know of it; empty where nothing was measured."""
        if not self.losses or self.folder is None:
            return []
        losses = [loss.tolist() for loss in self.losses]
        return list(surprises(self.encoded[: len(losses)], losses, self.folder.decode))


def plan(
    corpus: Sequence[Path | str],
    *,
    ref: str = models.BUILTIN,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
    options: PlanOptions | None = None,
) -> Sized:
    """The recommendation for these corpus files.

    `device`, `dtype`, `quantization` and `device_map` say how the model is loaded, as for `models.load`.

    Raises:
        CorpusError: a file cannot be read or tokenised without loss, or holds a secret where that is an error.
        ModelError: the model cannot be loaded.
        CalibrationError: the calibration named does not fit, or none is in reach at all.
    """
    options = options or PlanOptions()
    found = read(corpus, options.reading)
    findings, notes = secrets.scan(found.passages, options.secrets)
    folder = models.open(ref, revision)
    where = models.pick_device(device)
    sent = look_at_prompts(folder.tokenizer, found.passages, options.reading)
    encoded = tuple(encode_corpus(found.passages, folder.tokenizer, sent.reading, folder.max_positions, folder.n_ids))
    around = told_of(folder.tokenizer) if any(not one.passage.messages for one in encoded) else Told()
    notes = (*found.notes, *sent.notes, *filter(None, [several_prompts(encoded)]), *notes, *around.warnings)
    weights = folder.quantized_as(quantization)
    old = None if options.base_adapter is None else read_base_adapter(options.base_adapter, folder.fingerprint, ref)
    activation, encoded = _activation(options, old, encoded, folder)
    if options.serve == "merged":
        refuse_merging(weights, device_map)
    model = _model(folder, revision, models.dtype_name(models.pick_dtype(dtype, where)), attn, weights)
    summary = _summary(encoded, found, sent.reading, findings)
    known = _Known(model, folder.fingerprint, summary, encoded, findings, old)
    lint = feasibility(encoded)
    if not lint.feasible:
        return known.infeasible(lint, notes)
    source, own = plan_basis.find(folder.fingerprint, model, where.type, options.calibration)
    base = folder.load(device, dtype, attn, quantization, device_map)
    hard = hardship(base, (token for passage in encoded for token in passage.target_ids))
    lint = unreachable(encoded, hard.impossible, folder.decode)
    if not lint.feasible:
        return known.infeasible(lint, notes)
    if hard.narrow:
        notes = (*notes, narrow_note(encoded, hard.narrow, folder.decode))
    calibration = source if own else plan_basis.moved_over(source, base, ref)
    notes = notes if own else (*notes, *plan_basis.passed_over(folder, model, where.type))
    losses = base_losses(base, encoded)
    made = _made(known, calibration, source, base, losses, options, activation)
    if made.adapter is not None:
        ids = (*encoded[0].prompt_ids, *encoded[0].target_ids)
        notes = (*slower(base, min(made.adapter.layers_to_transform), ids), *notes)
        made = _with_activation(_fitted(made, base), activation, base, encoded)
    serving = made.serving and made.serving.model_copy(update={"notes": (*made.serving.notes, *around.notes)})
    told = {"warnings": (*made.warnings, *notes, *_spread(base)), "secrets": findings, "serving": serving}
    return Sized(made.model_copy(update=told), encoded, tuple(losses), calibration, folder)


def _activation(
    options: PlanOptions, old: BaseAdapter | None, encoded: tuple[EncodedPassage, ...], folder: models.ModelFolder
) -> tuple[Activation | None, tuple[EncodedPassage, ...]]:
    """What the adapter is to act after, and the passages with where: as the one trained on, else as asked.

    Raises:
        CorpusError: that is not in every prompt.
        ModelError: the old adapter acts after something else, or the new one is to be merged.
    """
    text, found = options.activate_after, None if old is None else old.record.plan.activation
    if text is not None and (found is None or text not in (AUTO, found.text)):
        found = find_activation(text, encoded, folder.tokenizer)
    if old is not None:
        require_activation(old, found)
    if found is None:
        return None, encoded
    if options.serve == "merged":
        refuse_merging_activated(found)
    return found, tuple(activated(encoded, found))


def _with_activation(
    made: Plan, activation: Activation | None, base: models.BaseModel, encoded: Sequence[EncodedPassage]
) -> Plan:
    """The plan with what its adapter acts after, once PEFT was seen to keep to that on this model."""
    if activation is None or made.adapter is None:
        return made
    require_gate(base.model, made.adapter.site, activation)
    return with_activation(made, activation, [one.prompt_ids for one in encoded])


def _fitted(made: Plan, base: models.BaseModel) -> Plan:
    """The plan with what the engine that will serve it cannot load of this model."""
    kind = str(base.model.config.model_type)
    return fitted(made, type(base.model).__name__, kind, in_gguf=kind in ARCHITECTURES)


@dataclass(frozen=True)
class _Known:
    """What is known before any weights are loaded."""

    model: PlanModel
    fingerprint: ModelFingerprint
    summary: CorpusSummary
    encoded: tuple[EncodedPassage, ...]
    findings: tuple[Finding, ...]
    old: BaseAdapter | None = None

    def infeasible(self, lint: Feasibility, notes: tuple[str, ...]) -> Sized:
        """The plan for a corpus that no rank can hold."""
        inputs = _inputs(self.summary, self.fingerprint, calibration_sha256="")
        made = infeasible_plan(model=self.model, corpus=self.summary, feasibility=lint, inputs=inputs)
        return Sized(made.model_copy(update={"warnings": notes, "secrets": self.findings}), self.encoded)


def _model(
    folder: models.ModelFolder, revision: str | None, dtype: str, attn: str, quantization: str | None
) -> PlanModel:
    return PlanModel(
        ref=folder.ref,
        revision=revision,
        fingerprint=folder.fingerprint.digest,
        dtype=dtype,
        n_layers=folder.n_layers,
        attn=None if attn == "auto" else attn,
        quantization=quantization,
    )


def _made(
    known: _Known,
    calibration: Calibration,
    source: Calibration,
    base: models.BaseModel,
    losses: Sequence[Tensor],
    options: PlanOptions,
    activation: Activation | None,
) -> Plan:
    """The plan by the calibration: `source`, or what was moved over from it to this model."""
    old = known.old
    timed, prior = plan_basis.timed_here(calibration, source, base), calibration is not source
    timed, lent = plan_basis.with_law(timed, base)
    n_positions, at = known.summary.n_positions or 0, (options.target_modules, options.layers)
    bound, why = plan_basis.bound_of(options.max_drift, timed, at[0], old, activation, n_positions, at[1])
    if bound is None and old is None and at != (None, None):
        timed, told = plan_basis.at_site(timed, base, *at)
        why = [*why, *told]
    same_device = timed.device == base.place and scaled_from(timed) is None
    sha256 = digest(calibration)
    made = make_plan(
        calibration=timed,
        model=known.model,
        corpus=known.summary,
        demand=demand(known.encoded, losses),
        inputs=_inputs(known.summary, known.fingerprint, sha256, prior=prior, same_device=same_device),
        work=_workload(base, known.encoded),
        wishes=options.wishes,
        at=None if old is None else old.spec,
        bound=bound,
    )
    update = None if old is None else _update(old, base, known.encoded)
    said = why if bound is None else lent
    return made.model_copy(update={"update": update, "warnings": (*made.warnings, *said)})


def _spread(base: models.BaseModel) -> list[str]:
    """Where the weights of a model on several devices are."""
    spread = placement.told(base.model)
    return [f"The model is spread: {spread}. What is put aside is read again in every step."] if spread else []


def _update(old: BaseAdapter, base: models.BaseModel, encoded: Sequence[EncodedPassage]) -> PlanUpdate:
    """What the change of the corpus needs written beyond the old adapter, by a forward pass with it."""
    adapted = adapters.attach(base.model, old.spec.site, old.spec.rank, 0)
    adapters.start_from(adapted, old.folder)
    nats = sum(float(loss.sum()) for loss in base_losses(base, encoded))
    adapters.detach(adapted)
    return priced(old, compare(old.addresses, encoded), nats)


def _summary(
    encoded: Sequence[EncodedPassage], found: Corpus, reading: Reading, findings: Sequence[Finding]
) -> CorpusSummary:
    return CorpusSummary(
        n_passages=len(encoded),
        n_tokens=sum(p.n_tokens for p in encoded),
        n_positions=sum(map(sequence_length, encoded)),
        sha256=corpus_sha256(found.files),
        files=found.files,
        reading=reading,
        named=found.named,
        unused_columns=found.unused_columns,
        sample=sample(encoded, {(one.file, one.line) for one in findings}),
    )


def _inputs(
    corpus: CorpusSummary,
    fingerprint: ModelFingerprint,
    calibration_sha256: str,
    *,
    prior: bool = False,
    same_device: bool = True,
) -> PlanInputs:
    return PlanInputs(
        corpus_sha256=corpus.sha256,
        model_fingerprint=fingerprint.digest,
        tokenizer_sha256=fingerprint.tokenizer,
        calibration_sha256=calibration_sha256,
        recipe=RECIPE,
        prior=prior,
        same_device=same_device,
    )


def _workload(base: models.BaseModel, encoded: Sequence[EncodedPassage]) -> Workload:
    """What training these passages has to run and to keep on this model."""
    lengths = [sequence_length(p) for p in encoded]
    shapes = models.linear_shapes(base.model).values()
    return Workload(
        n_positions=sum(lengths),
        linear_parameters_per_rank=sum(sum(shape.in_layers.values()) for shape in shapes),
        longest_sequence=max(lengths),
        state_bytes=base.width * base.dtype.itemsize,
    )
