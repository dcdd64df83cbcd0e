"""The verb calibrate: probes on the user's model and device, then the law, the transition and the cost model.

A short search at the reference site finds how many bits a parameter holds, a few probes around that boundary make the
law fittable, and then each round runs the probes that most reduce what is not known of the recommended size
(lorasize.law.next_probes), until the preset's budget is spent.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from lorasize import __version__, models
from lorasize.artifacts.calibrations import calibration_path, device_kind, nearest_calibration, write_calibration
from lorasize.artifacts.workspace import locked
from lorasize.corpus import read_corpus
from lorasize.corpus.tokens import encode_corpus
from lorasize.errors import CalibrationError, FitError
from lorasize.law.bounded import fit_bounded
from lorasize.law.observations import fit_observations, recurring_tokens, without_held_up
from lorasize.losses.base import slower
from lorasize.losses.neutral import neutral_text
from lorasize.models import placement
from lorasize.models.device_rates import device_rates
from lorasize.planning.prior import SOURCE
from lorasize.probing import Execute, Journal
from lorasize.probing.costs import fit_cost
from lorasize.probing.presets import PRESETS, PresetName
from lorasize.probing.search import ProbeListener, Search
from lorasize.probing.sites import calibrated_sites
from lorasize.records import MAX_DRIFT, RECIPE, Calibration, DeviceRates, Observation, Reading, digest
from lorasize.verbs.plan_basis import moved_over

_NAMED = 5  # tokens named in a sentence
# What a few steps tell of cost. Not memory: the process has held more by then, for the statistics of general text.
_SECONDS = ("seconds_overhead", "seconds_per_layer_token", "seconds_per_head_token", "seconds_setup", "relative_spread")


def calibrate(
    ref: str = models.BUILTIN,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
    preset: PresetName = "quick",
    corpus: Sequence[Path] = (),
    seed: int = 0,
    time_limit: float | None = None,
    max_drift: float | None = MAX_DRIFT,
    known: Calibration | None = None,
    folder: Path = Path("calibrations"),
    execute: Execute | None = None,
    notify: ProbeListener = lambda report: None,
) -> tuple[Calibration, Path]:
    """The calibration of a model on this device, and its file. The same call goes on from an interrupted run's journal.

    Args:
        ref: The base model.
        revision: Hub revision of the model.
        device: Where to probe.
        dtype: Of the base model.
        attn: Attention kernel; `auto` is the best that the model has here.
        quantization: What plain weights are quantised to, "nf4" or "int8"; as they are when None.
        device_map: How to spread the model over devices (`models.placement`); all on one when None.
        preset: How much is probed; for `brief` only what a bound asks, and the nearest calibration tells the rest.
        corpus: Text of the user's own kind, to be probed as well.
        seed: Of targets and adapters.
        time_limit: Seconds after which no further probe starts.
        max_drift: The bound on drift of the last probes, nats per token; None for none.
        known: A calibration of this model to add these to; nothing else is probed then.
        folder: Where the calibration belongs.
        execute: Where independent probes run; one after another in this process when None.
        notify: Told before and after each probe.

    Raises:
        ModelError: the model cannot be loaded, or another run is at work on the same calibration.
        FitError: the probes do not identify the law.
        CalibrationError: the folder cannot be written, or no calibration is in reach for `brief` to go by.
    """
    target = models.pick_device(device)
    kind = models.dtype_name(models.pick_dtype(dtype, target))
    path = calibration_path(ref, target.type, kind, folder, quantization)
    with locked(path.with_name(f".{path.name}.lock"), str(path)):
        how = {"device": device, "dtype": dtype, "attn": attn, "quantization": quantization, "device_map": device_map}
        base = models.load(ref, revision=revision, **cast(Any, how))
        sample = _sample(base, corpus)
        journal = Journal(path.with_suffix(".journal.jsonl"), _key(base, attn, sample))
        where = {"ref": ref, "revision": revision, **how}
        search = Search(base, journal, PRESETS[preset], seed, time_limit, sample, notify, where, execute)
        calibration = _begun(search, ref, attn) if known is None else _fitting(known, base)
        calibration = calibration if max_drift is None else _with_law(calibration, search, max_drift)
        _require_own(calibration)
        write_calibration(calibration, path)
        journal.remove()
    return calibration, path


def _begun(search: Search, ref: str, attn: str) -> Calibration:
    """The calibration by all probes that have no bound on drift; for `brief`, by those of another calibration."""
    base, preset = search.base, search.preset.name
    if preset == "brief":
        return _lent(base, ref, _about(base, attn, preset), search.seed)
    search.all_probes()
    timed = search.timed_alone() if search.execute is not None and search.observations else None
    calibration = fit(base, search.observations, ref, preset=preset, seed=search.seed, timed=timed)
    about = {**calibration.provenance, **_about(base, attn, preset)}
    return calibration.model_copy(update={"provenance": about, "rates": _rates(base)})


def _lent(base: models.BaseModel, ref: str, about: Mapping[str, str], seed: int) -> Calibration:
    """The nearest calibration's law of bare minima, moved to this model if it is another's.

    Raises:
        CalibrationError: there is none by today's recipe.
    """
    dtype = models.dtype_name(base.dtype)
    near = nearest_calibration(base.fingerprint, RECIPE, dtype, base.quantization)
    if near is None:
        raise CalibrationError(f"no calibration by {RECIPE} is in reach, whose law of bare minima could be lent")
    source = near[0]
    own = source.model.fingerprint == base.fingerprint
    moved = source if own else moved_over(source, base, ref)
    made = {name: value for name, value in _provenance((), "brief", seed).items() if name != "seconds"}
    told = moved.provenance.get(SOURCE)  # this model's own file may itself be brief
    lender = {"law_from": f"{source.device} in {source.dtype}"} if told is None else {SOURCE: told}
    return moved.model_copy(
        update={
            "model": models.record_of(base, ref),
            "device": base.place,
            "dtype": dtype,
            "quantization": base.quantization,
            "bounded": None,
            "grown_from": (),
            "rates": _rates(base),
            "provenance": {**made, **lender, **about},
        }
    )


def _require_own(calibration: Calibration) -> None:
    """Refuse what would be another calibration's alone.

    Raises:
        FitError: no probe of a `brief` calibration tells anything.
    """
    if calibration.provenance.get("preset") == "brief" and calibration.bounded is None:
        why = calibration.provenance.get("bounded", "no probe under a bound on drift was asked for, or had the time")
        raise FitError(f"nothing of this model's own: {why}", unidentified=("bounded",))


def _key(base: models.BaseModel, attn: str, sample: Sequence[int]) -> dict[str, str]:
    """What observations of a journal must share."""
    key = {"fingerprint": base.fingerprint.digest, "recipe": RECIPE, "device": base.place}
    key |= {"dtype": models.dtype_name(base.dtype), "sample": hashlib.sha256(repr(sample).encode()).hexdigest()}
    key |= {} if attn == "auto" else {"attn": attn}
    return key | ({} if base.quantization is None else {"quantization": base.quantization})


def _about(base: models.BaseModel, attn: str, preset: PresetName) -> dict[str, str]:
    """The attention kernel if one was asked for, and what takes longer with this model than with others."""
    first = min(calibrated_sites(base, PRESETS[preset])[0].layers_to_transform)
    notes = slower(base, first, base.tokenizer(neutral_text()[:200], verbose=False).input_ids)
    return ({} if attn == "auto" else {"attn": base.attn}) | ({"note": " ".join(notes)} if notes else {})


def _rates(base: models.BaseModel) -> DeviceRates | None:
    """Of the device; None of several, over which the model is spread."""
    return None if placement.is_spread(base.model) else device_rates(base.device, base.dtype)


def _sample(base: models.BaseModel, corpus: Sequence[Path]) -> list[int]:
    if not corpus:
        return []
    passages, _ = read_corpus(corpus)
    encoded = encode_corpus(passages, base.tokenizer, Reading(), base.max_positions, base.n_ids)
    return [token for passage in encoded for token in passage.target_ids[:-1]]


def fit(
    base: models.BaseModel,
    observations: Sequence[Observation],
    ref: str,
    *,
    preset: PresetName,
    seed: int,
    timed: Sequence[Observation] | None = None,
) -> Calibration:
    """The calibration that these observations support; `timed` are those to take times from, if others shared devices.

    Raises:
        FitError: they do not identify the law.
    """
    kept = without_held_up(observations)
    try:
        fitted = fit_observations(kept)
    except FitError as error:
        if len(kept) == len(observations):
            raise
        raise FitError(f"{error}. {_held_up(base, observations)}", unidentified=error.unidentified) from error
    provenance = _provenance(observations, preset, seed)
    if len(kept) < len(observations):
        provenance["held_out"] = _held_up(base, observations)
    return Calibration(
        model=models.record_of(base, ref),
        recipe=RECIPE,
        device=base.place,
        dtype=models.dtype_name(base.dtype),
        law=fitted.law,
        sites=fitted.sites,
        transition=fitted.transition,
        cost=fit_cost(base, timed or observations),
        observations=kept,
        held_out=tuple(o for o in observations if o not in kept),
        provenance=provenance,
        quantization=base.quantization,
    )


def _fitting(known: Calibration, base: models.BaseModel) -> Calibration:
    """The calibration, if it is of this model in this dtype, on this kind of device, and of today's recipe.

    Raises:
        CalibrationError: it is not.
    """
    here = (base.fingerprint, models.dtype_name(base.dtype), base.device.type, base.quantization, RECIPE)
    of = (known.model.fingerprint, known.dtype, device_kind(known.device), known.quantization, known.recipe)
    if here != of:
        raise CalibrationError(
            f"The calibration to add to is of {known.model.ref} in {known.dtype} on {known.device} by {known.recipe}: "
            f"not of {base.ref} in {models.dtype_name(base.dtype)} on {base.place} by {RECIPE}."
        )
    return known.model_copy(update={"grown_from": (*known.grown_from, digest(known))})


def _with_law(calibration: Calibration, search: Search, max_drift: float) -> Calibration:
    """The calibration with what probes under a bound on drift say; as it was where there was no time for any."""
    search.bounded_probes(max_drift)
    probes = [o for o in search.observations if o.probe.max_drift is not None]
    if not probes:
        return calibration
    pairs = search.compared()
    slowdown = math.prod(o.seconds_per_step / free.seconds_per_step for o, free in pairs) ** (1 / len(pairs))
    if calibration.provenance.get("preset") == "brief":
        timed = fit_cost(search.base, [free for _, free in pairs])
        cost = calibration.cost.model_copy(update={name: getattr(timed, name) for name in _SECONDS})
        calibration = calibration.model_copy(update={"cost": cost})
    with_it = with_bounded(calibration, probes, slowdown)
    if with_it.bounded is calibration.bounded:  # its provenance says why
        return with_it
    made = f"{datetime.now(UTC):%Y-%m-%d} on {search.base.place}, {sum(o.seconds for o in probes):.0f} s"
    return with_it.model_copy(update={"provenance": {**with_it.provenance, "bounded": made}})


def with_bounded(calibration: Calibration, probes: Sequence[Observation], slowdown: float) -> Calibration:
    """The calibration with what these probes under a bound on drift say, whose steps take `slowdown` times as long.

    Where they say nothing, because none held its text within the bound, it stays as it was, with a note.
    """
    try:
        bounded = fit_bounded(probes, slowdown)
    except FitError as error:
        told = {**calibration.provenance, "bounded": f"not fitted: {error}"}
        return calibration.model_copy(update={"provenance": told})
    return calibration.model_copy(update={"bounded": bounded})


def _held_up(base: models.BaseModel, observations: Sequence[Observation]) -> str:
    """The sentence about probes that ended on the same few tokens."""
    n = len(observations) - len(without_held_up(observations))
    tokens = sorted(recurring_tokens(observations))
    named = ", ".join(f"{token} ({base.tokenizer.decode([token])!r:.40})" for token in tokens[:_NAMED])
    return f"{n} probes ended on the same few tokens, whatever their rank, and are left out: {named}"


def _provenance(observations: Sequence[Observation], preset: PresetName, seed: int) -> dict[str, str]:
    return {
        "preset": preset,
        "seed": str(seed),
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "seconds": f"{sum(o.seconds for o in observations):.0f}",
        "lorasize": __version__,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }
