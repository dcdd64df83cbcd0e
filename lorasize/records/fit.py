"""What calibration measures and fits: probes, observations, law, transition, cost."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorasize.records.inputs import ModelFingerprint, Site
from lorasize.records.words import RECIPE, STRICT, ProbeKind


class ProbeSpec(BaseModel):
    """One small training run, fully described: a probe is a pure function of this and the model.

    `max_drift`: nats per token that other text may move by; None for no bound.
    """

    model_config = STRICT
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    rank: int
    kind: ProbeKind
    n_tokens: int
    seed: int
    max_steps: int
    recipe: str = RECIPE
    max_drift: float | None = None

    @property
    def site(self) -> Site:
        """Where its adapter sits."""
        return Site(target_modules=self.target_modules, layers_to_transform=self.layers_to_transform)


class ProbeJob(BaseModel):
    """A probe with the model it runs on: all that a worker elsewhere has to be told."""

    model_config = STRICT
    ref: str
    revision: str | None
    device: str
    dtype: str
    attn: str = "auto"
    spec: ProbeSpec
    sample: tuple[int, ...] = ()
    threads: int = 1
    quantization: str | None = None
    device_map: str | None = None


class Observation(BaseModel):
    """What a probe measured. Losses in nats per target token.

    `stubborn`: ids of the tokens it left at p ≤ ½, where those are few; empty where all were held, or many left.
    `drift`: nats per token that other text moved by: loss added on the neutral text; under a bound the larger of the
    growth and of KL(base ‖ adapted) on the texts of the report. `threshold_met`: every token held, and the bound kept.
    `n_passages`: of the corpus of a run that was learned from; None for a probe.
    """

    model_config = STRICT
    probe: ProbeSpec
    n_parameters: int
    base_loss: float
    final_loss: float
    loss_reduction: float
    n_stubborn: int
    threshold_met: bool
    steps: int
    seconds: float
    seconds_per_step: float
    peak_memory_bytes: int
    early_loss: float | None = None  # after LAW_STEPS steps, of a run that went on
    drift: float | None = None
    stubborn: tuple[int, ...] = ()
    n_passages: int | None = None

    @property
    def early_reduction(self) -> float:
        """Loss reduction after at most LAW_STEPS steps: what the law is about."""
        return self.loss_reduction if self.early_loss is None else self.base_loss - self.early_loss

    @property
    def censored(self) -> bool:
        """Whether it ended before the law looks, because it had succeeded: capacity was at least what was lost."""
        return self.threshold_met and self.early_loss is None

    @property
    def nats(self) -> float:
        """Demand of the probe's text: nats to be written."""
        return self.base_loss * self.probe.n_tokens


class Law(BaseModel):
    """ΔL = coefficient · N^parameter_exponent · ℓ^−length_exponent + offset, in nats per target token.

    Of losses after at most LAW_STEPS optimiser steps, since recall is left to the transition.

    N: effective parameters. ℓ: target tokens whose base loss is `reference_loss`; a corpus of D nats counts as
    ℓ = D / reference_loss tokens. `covariance` follows the order of the four names above. Ranges are those of the
    fitted observations; outside them a prediction is `extrapolated`.
    """

    model_config = STRICT
    coefficient: float
    parameter_exponent: float
    length_exponent: float
    offset: float
    covariance: tuple[tuple[float, ...], ...]
    r_squared: float
    form: str
    reference_loss: float
    residual_stderr: float
    n_observations: int
    parameters_range: tuple[float, float]
    tokens_range: tuple[float, float]


class SiteEfficiency(BaseModel):
    """How much one parameter at this site is worth, against one at the reference site (efficiency 1)."""

    model_config = STRICT
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    efficiency: float
    stderr: float
    parameters_per_rank: int

    @property
    def site(self) -> Site:
        """The site alone."""
        return Site(target_modules=self.target_modules, layers_to_transform=self.layers_to_transform)


class Transition(BaseModel):
    """P(every token above ½) = 1 / (1 + exp(−(ln slack − location) / scale)).

    `steps_coefficient` and `steps_exponent` give the steps of a successful run: coefficient · slack^−exponent, with
    `steps_spread` the standard deviation of ln steps. Past `largest_slack`, the most any successful probe had, steps
    are taken to fall no further.
    """

    model_config = STRICT
    location: float
    location_stderr: float
    scale: float
    n_observations: int
    n_successes: int
    steps_coefficient: float
    steps_exponent: float
    steps_spread: float
    largest_slack: float | None = None


class BoundedLaw(BaseModel):
    """What adapters hold that train under a bound on drift, at the one site that such adapters sit on.

    Slack is parameters ÷ (`parameters_per_nat` · nats of the corpus), and `transition` that of such slack. A step takes
    `slowdown` times what the cost model says of an adapter without a bound. `drift_spread`: sd of ln drift.
    """

    model_config = STRICT
    max_drift: float
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    parameters_per_rank: int
    parameters_per_nat: float
    transition: Transition
    nats_range: tuple[float, float]
    slowdown: float
    drift: float
    drift_spread: float
    observations: tuple[Observation, ...]

    @property
    def site(self) -> Site:
        """Where such an adapter sits."""
        return Site(target_modules=self.target_modules, layers_to_transform=self.layers_to_transform)


class CostModel(BaseModel):
    """Seconds = setup + steps · (overhead · batches of a step + tokens · (per_layer_token · layers + per_head_token)).

    Tokens are those of a step, layers those that it runs; older calibrations know no setup.
    Bytes at the peak = memory_base_bytes (the weights) + memory_overhead_bytes + positions of a step · per_token.
    `seconds_per_forward_token` is read from older calibrations and no longer measured: None in newer ones.
    """

    model_config = STRICT
    seconds_overhead: float
    seconds_per_layer_token: float
    seconds_per_head_token: float
    relative_spread: float
    seconds_setup: float = 0.0
    seconds_per_forward_token: float | None = None
    memory_base_bytes: int
    memory_bytes_per_token: float
    memory_overhead_bytes: int = 0


class DeviceRates(BaseModel):
    """What a device measured of itself, so that seconds can be scaled to another one.

    `matmul_flops`: floating-point operations a second of a matrix product in the calibration's dtype, two for each
    multiplication with its addition. `copy_bytes_per_second`: of a copy within its memory, bytes read and written.
    """

    model_config = STRICT
    matmul_flops: float = Field(gt=0)
    copy_bytes_per_second: float = Field(gt=0)


class CalibrationModel(BaseModel):
    """The base model a calibration is for."""

    model_config = STRICT
    ref: str
    fingerprint: ModelFingerprint
    architecture: str
    n_layers: int
    max_positions: int


class Calibration(BaseModel):
    """A fitted law with the raw observations beside it, so that it can be refitted.

    `grown_from` are digests of what it was before each finished run that joined it: a plan made from one of those is
    not stale. `held_out` are observations that the fit must not see: probes that ended on the same few tokens, which no
    rank seems to hold. `quantization`: of the base's weights, such as "nf4"; None where they are plain. `rates`: of the
    device; None in older files, and of a model that was spread over several. `bounded`: of adapters under a bound on
    drift; None in older files, and where no such probe was run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    schema_: Literal["lorasize.calibration/1"] = Field(default="lorasize.calibration/1", alias="schema")
    model: CalibrationModel
    recipe: str
    device: str
    dtype: str
    law: Law
    sites: tuple[SiteEfficiency, ...]
    transition: Transition
    cost: CostModel
    observations: tuple[Observation, ...]
    held_out: tuple[Observation, ...] = ()
    provenance: dict[str, str]
    grown_from: tuple[str, ...] = ()
    quantization: str | None = None
    rates: DeviceRates | None = None
    bounded: BoundedLaw | None = None
