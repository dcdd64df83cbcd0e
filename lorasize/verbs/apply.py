"""The verb apply: a plan in, a proven adapter folder out.

Trains until every target token passes, grows the adapter when training stalls, saves it, and has it recalled from disk
by a fresh process. The folder appears whole or not at all, and the next run continues one that was killed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from lorasize import models
from lorasize.artifacts import adapter_folder
from lorasize.artifacts.adapter_folder import RECORD
from lorasize.artifacts.events import EVENTS, Decoding, EventLog, Noted, Notify, Raised
from lorasize.artifacts.files import file_sha256, text_digest
from lorasize.artifacts.workspace import staged
from lorasize.corpus import corpus_sha256, read_corpus, read_text
from lorasize.corpus.activation import activated
from lorasize.corpus.tokens import EncodedPassage, encode_corpus
from lorasize.errors import CorpusError, InfeasibleCorpusError, ModelError, StalePlanError
from lorasize.losses.texts import windows_of
from lorasize.models import adapters
from lorasize.models.activation import refuse_merging_activated
from lorasize.models.placement import room_for_another
from lorasize.models.quantization import refuse_merging
from lorasize.recall.engines.decode import LocalEngine, decode_by, name_of, require
from lorasize.recall.margin import next_for_engine, next_target_probability
from lorasize.recall.process import standing_by
from lorasize.recall.verdict import DecodeSettings, decode_and_compare
from lorasize.records import (
    RECIPE,
    Memorization,
    Observation,
    Outcome,
    Plan,
    RecallReport,
    StepReport,
    Update,
    digest,
    to_json,
)
from lorasize.training import read_checkpoint, write_checkpoint
from lorasize.training.control import TOKENS_RETAINED
from lorasize.training.run import ApplyOptions, Loading, Session
from lorasize.verbs.applied import model_card, observation_of, record_of_run
from lorasize.verbs.update import BaseAdapter, compare, read_base_adapter, require_activation, require_room

_CHECKPOINTS = 3  # their version: what older ones hold does not fit, and begins anew


@dataclass(frozen=True)
class Applied:
    """What apply leaves.

    Attributes:
        memorization: The record in the folder.
        recall: The recall report, with the decoded texts.
        encoded: The corpus.
        folder: Where the adapter is: beside the folder asked for, where that holds a proven adapter and the run proved
            nothing.
        steps: Reports of the training.
        observation: What the planned adapter, before it grew, teaches the calibration; None when a limit ended it.
    """

    memorization: Memorization
    recall: RecallReport
    encoded: tuple[EncodedPassage, ...]
    folder: Path
    steps: tuple[StepReport, ...] = ()
    observation: Observation | None = None


def apply(
    plan: Plan,
    out: Path = Path("adapter"),
    options: ApplyOptions | None = None,
    notify: Notify = lambda event: None,
    engine: LocalEngine | None = None,
) -> Applied:
    """Train, save and prove the adapter of a plan. The same call continues an interrupted one.

    Args:
        plan: What to train; read a file with `artifacts.plans.read_plan`.
        out: The adapter folder; one that lorasize wrote is replaced.
        options: How to train.
        notify: Told of each step, each growth of the adapter and each decoded passage.
        engine: What serves the adapter: decodes too, and training goes on where a token is lost there.

    Raises:
        StalePlanError: corpus, model or recipe are not those of the plan.
        InfeasibleCorpusError: the plan says that no rank can recall the corpus.
        CorpusError: the text to retain cannot be read.
        ModelError: the model cannot be loaded, `out` is not ours to replace, the disk is full or read-only, or the
            engine is missing or fails.
    """
    options = options or ApplyOptions()
    if plan.adapter is None:
        issues = plan.feasibility.issues
        raise InfeasibleCorpusError("the plan is infeasible: correct the corpus and plan again", issues=issues)
    retained = retained_text(options.retain)
    if engine is not None:
        require(engine, plan.model.ref)
    # On a CPU its imports would take cores from training.
    early = models.pick_device(options.device).type != "cpu"
    with staged(out, _job(plan, options, retained)) as work, standing_by(wanted=early):
        checkpoint = read_checkpoint(work.checkpoint)
        base, encoded = load_inputs(plan, options.device, options.loading)
        if options.retain is not None and not windows_of(base, retained, TOKENS_RETAINED):
            raise CorpusError("holds a single token: too little to measure drift on", file=str(options.retain))
        state = {} if checkpoint is None else checkpoint.state
        events = EventLog(work.folder / EVENTS, notify, state.get("steps", 0), ended=state.get("outcome") is not None)
        old = _base_adapter(plan, options, base)
        session = Session(
            base=base,
            encoded=encoded,
            plan=plan,
            options=options,
            notify=events,
            retained=retained,
            start=None if old is None else old.folder,
            save=lambda taken: write_checkpoint(taken, work.checkpoint),
        )
        session.run(checkpoint)
        report, served = _prove(session, work.folder, events, engine)
        update = None if old is None else _update(session, old, report, work.folder)
        record = record_of_run(session, report, update, served)
        _write(record, work.folder)
        aside = not record.proven and _holds_proven_adapter(work.place)
        if aside:
            work.step_aside()
    folder = work.place if aside else out
    return Applied(record, report, tuple(encoded), folder, tuple(events.steps), observation_of(session))


def _write(record: Memorization, folder: Path) -> None:
    """Write what the adapter folder says of itself."""
    (folder / RECORD).write_text(to_json(record), encoding="utf-8")
    (folder / "README.md").write_text(model_card(record), encoding="utf-8")
    adapter_folder.write_sums(folder)


def _holds_proven_adapter(place: Path) -> bool:
    """Whether a folder holds an adapter that was proven."""
    try:
        return adapter_folder.read_record(place).proven
    except ModelError:
        return False


def retained_text(path: Path | None) -> str:
    """Text of the user's that must not suffer; none where no file is named.

    Raises:
        CorpusError: the file cannot be read, or holds nothing.
    """
    if path is None:
        return ""
    text = read_text(path)
    if not text.strip():
        raise CorpusError("holds no text", file=str(path))
    return text


def _base_adapter(plan: Plan, options: ApplyOptions, base: models.BaseModel) -> BaseAdapter | None:
    """The adapter to start from: it must fit into the planned one, and be the one that the plan was made with."""
    folder = options.base_adapter or (Path(plan.update.adapter) if plan.update is not None else None)
    if folder is None or plan.adapter is None:
        return None
    old = read_base_adapter(folder, base.fingerprint, plan.model.ref)
    if plan.update is not None and file_sha256(folder / adapter_folder.WEIGHTS) != plan.update.weights_sha256:
        raise StalePlanError(f"{folder} changed since the plan was made: plan again", changed=["base_adapter"])
    require_room(old.spec, plan.adapter, folder)
    require_activation(old, plan.activation)
    return old


def _update(session: Session, old: BaseAdapter, report: RecallReport, folder: Path) -> Update:
    """What became of the old adapter's passages. Counts the old targets that still come back from their prompts."""
    change = compare(old.addresses, session.encoded)
    held = {p.prompt_ids: p.target_sha256 for p in old.addresses}
    came = {p.passage.id: seen.text for p, seen in zip(session.encoded, report.passages, strict=True)}
    still = sum(text_digest(came[p.passage.id]) == held[p.prompt_ids] for p in change.changed)
    if change.removed:
        how = _settings(session, merged=report.merged)
        with room_for_another(session.base.model, session.base.device):
            gone = decode_and_compare(
                folder, session.base.folder, change.removed, None, how, threshold=session.options.threshold
            )
        still += gone.n_recalled
    return Update(
        adapter=str(old.folder),
        **change.counts(),
        n_old_produced=still,
    )


def _job(plan: Plan, options: ApplyOptions, retained: str) -> str:
    """What a checkpoint belongs to. Limits are no part of it: a run may continue with others."""
    how = (options.method, options.threshold, options.margin, options.escalate, options.seed, options.device)
    text = hashlib.sha256(retained.encode()).hexdigest()
    attn = "" if options.loading.attn == "auto" else f" {options.loading.attn}"
    return f"{_CHECKPOINTS} {digest(plan)} {how} {options.max_drift} {text} {options.base_adapter}{attn}"


def _prove(
    session: Session, folder: Path, events: EventLog, engine: LocalEngine | None
) -> tuple[RecallReport, RecallReport | None]:
    """Save the adapter and decode with it, by the engine that serves it first, if there is one.

    Where one of them needs a larger margin than it has, train on and repeat.
    """
    options, served = session.options, None
    while True:
        _save(session, folder)
        state, raised = session.state, None
        final = options.margin is not None or state.settled or state.outcome is not Outcome.MEMORIZED
        trained_to = options.threshold + state.margin
        if engine is not None:
            served = _serve(session, folder, events, engine)
            raised = next_for_engine(served, options.threshold, trained_to)
        if raised is None or final:
            report = _decode(session, folder, events)
            to = next_target_probability(report, options.threshold, trained_to)
            raised = None if to is None else Raised(to, report.decoding_gap or 0.0)
            if raised is None or final:
                return report, served
        events(raised)
        session.train_on(raised.to - options.threshold)


def _save(session: Session, folder: Path) -> None:
    """Save the adapter, and where its passages are."""
    named = session.plan.model
    base = models.name_for_loading(named.ref, session.base.folder)
    activation = session.plan.activation
    after = () if activation is None else activation.alora_invocation_tokens
    adapters.save(session.adapted, folder, base, named.revision, after)
    adapter_folder.write_addresses([p.address() for p in session.encoded], folder)


def _decode(session: Session, folder: Path, events: EventLog) -> RecallReport:
    """What the saved adapter recalls, by transformers."""
    merged = session.plan.serving is not None and session.plan.serving.serve == "merged"
    with room_for_another(session.base.model, session.base.device):
        return decode_and_compare(
            folder,
            session.base.folder,
            adapter_folder.read_addresses(folder),
            session.encoded,
            _settings(session, merged=merged),
            threshold=session.options.threshold,
            notify=lambda done, total: events(Decoding(done, total)),
        )


def _serve(session: Session, folder: Path, events: EventLog, engine: LocalEngine) -> RecallReport:
    """What the saved adapter recalls, by the engine that serves it."""
    events(Noted(f"decoding with {name_of(engine)}, in a process of its own"))
    with room_for_another(session.base.model, session.base.device):
        return decode_by(
            engine,
            folder,
            session.base.folder,
            adapter_folder.read_addresses(folder),
            session.encoded,
            ref=session.plan.model.ref,
            dtype=session.plan.model.dtype,
            threshold=session.options.threshold,
            notify=lambda done, total: events(Decoding(done, total)),
        )


def _settings(session: Session, *, merged: bool) -> DecodeSettings:
    """As the plan says, on the devices and with the attention kernel that were trained with."""
    options, model = session.options, session.plan.model
    return DecodeSettings(
        options.device,
        model.dtype,
        merged=merged,
        attn_implementation=session.base.attn,
        quantization=model.quantization,
        device_map=options.loading.device_map,
    )


def load_inputs(
    plan: Plan, device: str, how: Loading | None = None
) -> tuple[models.BaseModel, list[EncodedPassage]]:
    """The plan's model and corpus.

    Raises:
        StalePlanError: they are not the ones that the plan was made for.
        ModelError: the model cannot be loaded, or cannot carry the plan's adapter.
    """
    if plan.inputs.recipe != RECIPE:
        raise StalePlanError(
            f"the plan is for training recipe {plan.inputs.recipe}, this is {RECIPE}: plan again", changed=["recipe"]
        )
    named = plan.corpus.files
    passages, files = read_corpus([Path(file.path) for file in named], plan.corpus.reading, named)
    changed = [new.path for new, old in zip(files, plan.corpus.files, strict=True) if new.sha256 != old.sha256]
    if changed or corpus_sha256(files) != plan.inputs.corpus_sha256:
        what = f"{', '.join(changed)} changed since the plan was made" if changed else "the plan's own digests disagree"
        message = f"{what}: plan again"
        raise StalePlanError(message, changed=["corpus_sha256"])
    how = how or Loading()
    if plan.serving is not None and plan.serving.serve == "merged":
        refuse_merging(plan.model.quantization, how.device_map)
        refuse_merging_activated(plan.activation)
    attn = plan.model.attn or "auto" if how.attn == "auto" else how.attn
    folder = models.open(plan.model.ref, plan.model.revision)
    base = folder.load(device, plan.model.dtype, attn, plan.model.quantization, how.device_map)
    if base.fingerprint.digest != plan.inputs.model_fingerprint:
        message = f"{plan.model.ref} changed since the plan was made: plan again"
        raise StalePlanError(message, changed=["model_fingerprint"])
    _require_fitting(plan, base)
    encoded = encode_corpus(passages, base.tokenizer, plan.corpus.reading, base.max_positions, base.n_ids)
    return base, encoded if plan.activation is None else activated(encoded, plan.activation)


def _require_fitting(plan: Plan, base: models.BaseModel) -> None:
    """Refuse an adapter that this model cannot carry: the plan may have been edited.

    Raises:
        ModelError: naming what is wrong with it.
    """
    spec, shapes = plan.adapter, models.linear_shapes(base.model)
    if spec is None:
        return
    wrong = [f"module {name}" for name in spec.target_modules if name not in shapes]
    wrong += [f"layer {layer}" for layer in spec.layers_to_transform if not 0 <= layer < base.n_layers]
    wrong += ["no module or no layer"] if not (spec.target_modules and spec.layers_to_transform) else []
    wrong = wrong or [
        f"{name} in none of its layers"
        for name in spec.target_modules
        if not set(shapes[name].in_layers) & set(spec.layers_to_transform)
    ]
    if wrong:
        raise ModelError(f"{plan.model.ref} cannot carry the plan's adapter: {wrong[0]}; plan again")
