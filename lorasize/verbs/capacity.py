"""The verb capacity: a rank in, out comes how much such an adapter can hold. Nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorasize import models
from lorasize.corpus import read_text
from lorasize.errors import CorpusError
from lorasize.losses.base import base_losses
from lorasize.losses.neutral import neutral_text, windows
from lorasize.planning.bounded import require_bounded_modules
from lorasize.planning.holding import holdings
from lorasize.planning.prior import SOURCE
from lorasize.records import Calibration, Capacity, Holding, PlanModel
from lorasize.verbs import plan_basis

PROSE = "general prose"  # what the package's own text is called
_MOVED = "Not calibrated: these are figures of {}, moved over to this model. `lorasize calibrate` makes its own."
_BRIEF = "Without a bound these are figures of {}, moved over to this model; under the bound they are its own."
_FAR = "Extrapolated: more than was probed. Read it as rough."


def capacity(
    rank: int,
    *,
    ref: str = models.BUILTIN,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
    calibration: Path | None = None,
    target_modules: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    confidence: float = 0.9,
    max_drift: float | None = None,
    sample: Path | None = None,
) -> Capacity:
    """How much an adapter of this rank holds word for word, by the model's calibration.

    Args:
        rank: Of the adapter.
        ref: The base model.
        revision: Of that model on the hub.
        device: Where it runs.
        dtype: Of its weights.
        quantization: What they are quantised to.
        device_map: How to spread it over devices.
        calibration: A calibration file; when None the nearest that fits, else another model's as a prior.
        target_modules: The modules it sits on; None for those that were probed.
        layers: The decoder layers it sits in, all when empty; None for those that were probed.
        confidence: The chance wanted that every token is held.
        max_drift: Nats per token that other text may move by; infinite for no bound, None for what a plan would take.
        sample: Text to count tokens of; the package's own prose when None.

    Raises:
        ModelError: the model cannot be loaded.
        CalibrationError: none fits, or it knows nothing of these modules or of a bound.
        CorpusError: the sample cannot be read, or holds too little.
    """
    base, known = _known(models.open(ref, revision), calibration, device, dtype, quantization, device_map)
    known, lent = plan_basis.with_law(known, base)
    bound, why = plan_basis.bound_of(max_drift, known, target_modules, None, None, 0, layers)
    notes = why if bound is None else lent
    if bound is not None:
        require_bounded_modules(known, target_modules)
    elif (target_modules, layers) != (None, None):
        known, told = plan_basis.at_site(known, base, target_modules, layers)
        notes = [*notes, *told]
    found = tuple(holdings(known, rank, confidence, bound, loss := _sample_loss(base, sample)))
    return Capacity(
        model=base.ref,
        device=base.place,
        dtype=models.dtype_name(base.dtype),
        rank=rank,
        confidence=confidence,
        sample=PROSE if sample is None else str(sample),
        sample_loss=loss,
        random_loss=known.law.reference_loss,
        holdings=found,
        warnings=(*notes, *_doubts(known, found)),
    )


def _doubts(known: Calibration, found: Sequence[Holding]) -> Iterator[str]:
    """Why the figures are rough."""
    if SOURCE in known.provenance:
        own = known.bounded is not None and known.bounded.observations
        yield (_BRIEF if own else _MOVED).format(known.provenance[SOURCE])
    if any(one.extrapolated for one in found):
        yield _FAR


def _known(
    folder: models.ModelFolder, explicit: Path | None, device: str, dtype: str, quantization: str | None,
    device_map: str | None,
) -> tuple[models.BaseModel, Calibration]:
    """The model, and its calibration or another's moved over to it."""
    place = models.pick_device(device)
    named = PlanModel(
        ref=folder.ref, fingerprint=folder.fingerprint.digest, n_layers=folder.n_layers,
        dtype=models.dtype_name(models.pick_dtype(dtype, place)), quantization=folder.quantized_as(quantization),
    )
    source, own = plan_basis.find(folder.fingerprint, named, place.type, explicit)
    base = folder.load(device, dtype, "auto", quantization, device_map)
    return base, source if own else plan_basis.moved_over(source, base, folder.ref)


def _sample_loss(base: models.BaseModel, sample: Path | None) -> float:
    """Nats per token that the base model needs for text like this."""
    text = neutral_text() if sample is None else read_text(sample)
    parts = windows(text, base.tokenizer, base.max_positions - 1, base.n_ids)
    if not parts:
        raise CorpusError("holds a single token: too little to count by", file=str(sample))
    losses = base_losses(base, parts)
    nats, n = sum(float(one.sum()) for one in losses), sum(len(one) for one in losses)
    if not math.isfinite(nats):
        raise CorpusError("the model's loss on it is not a number", file=str(sample))
    return max(nats / n, 1e-3)


