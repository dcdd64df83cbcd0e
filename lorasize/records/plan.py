"""The plan and everything in it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorasize.records.inputs import Activation, AdapterSpec, CorpusSummary, Feasibility, Site
from lorasize.records.words import STRICT, Against, Serve


class PassageDemand(BaseModel):
    """What one passage needs written, in nats; tokens that repeat earlier passages cost nothing."""

    model_config = STRICT
    id: str
    file: str
    line: int
    n_tokens: int
    nats: float


class Demand(BaseModel):
    """What the corpus needs written. `nats`, `bits`: of the whole corpus; `base_loss`: nats per target token.

    `n_repeated`: target tokens that repeat earlier passages and cost nothing. `costliest`: the passages that need most.
    """

    model_config = STRICT
    base_loss: float
    nats: float
    bits: float
    n_repeated: int = 0
    costliest: tuple[PassageDemand, ...] = ()


class Estimate(BaseModel):
    """A point and its interval."""

    model_config = STRICT
    point: float
    lo: float
    hi: float


class Prediction(BaseModel):
    """What the law says of the chosen adapter. `drift`: nats per token that other text moves by.

    Under a bound that is the larger of the growth of its loss and of KL(base ‖ adapted), as means over kinds of text;
    without one the growth of the loss on the neutral text.
    """

    model_config = STRICT
    final_loss: float
    loss_reduction: float
    capacity_slack: float
    success_probability: float
    confidence: float
    rank_interval: tuple[int, int]
    steps: Estimate
    seconds: Estimate
    peak_memory_bytes: int
    extrapolated: bool
    drift: Estimate | None = None


class Alternative(BaseModel):
    """Another adapter that would also do, with what it costs. `drift`: as in the prediction; None where that is."""

    model_config = STRICT
    rank: int
    lora_alpha: int
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    n_parameters: int
    bytes: int
    bits_per_parameter: float
    success_probability: float
    seconds: float
    drift: Estimate | None = None

    @property
    def site(self) -> Site:
        """The same without its rank."""
        return Site(target_modules=self.target_modules, layers_to_transform=self.layers_to_transform)


class RulesOfThumb(BaseModel):
    """What people use today, on all linear layers: the rank at which parameters ≥ target tokens, and one flat rank."""

    model_config = STRICT
    parameters_ge_tokens_rank: int
    flat_rank: int


class Budget(BaseModel):
    """One limit and how the plan stands against it: against the point estimate, or the upper end of its interval."""

    model_config = STRICT
    id: str
    limit: float
    actual: float
    level: Literal["error", "warn"]
    result: Literal["pass", "fail", "warn"]
    against: Against = "point"


class Finding(BaseModel):
    """A line of the corpus that looks like a secret. What it holds is not said.

    `kind`: `email`, `phone`, `iban`, `card`, or the name of a credential such as `github-pat`.
    """

    model_config = STRICT
    kind: str
    file: str
    line: int


class Difference(BaseModel):
    """One quantity of an older plan and of this one; None where a plan has no adapter."""

    model_config = STRICT
    id: Literal["tokens", "nats", "rank", "parameters", "bytes", "seconds"]
    before: float | None
    after: float | None


class Serving(BaseModel):
    """What an inference engine needs to be told. Where `serve` is `merged`, apply proves the merged model."""

    model_config = STRICT
    serve: Serve = "peft"
    vllm_max_lora_rank: int | None
    llama_cpp: bool
    notes: tuple[str, ...] = ()


class PlanModel(BaseModel):
    """The base model of a plan. `fingerprint` is the digest of weights, config and tokenizer.

    `attn`: the attention kernel asked for; None where it was left open.
    `quantization`: of the weights in memory, such as "nf4" or "gptq 4-bit"; None where they are plain.
    """

    model_config = STRICT
    ref: str
    revision: str | None = None
    fingerprint: str
    dtype: str
    n_layers: int
    attn: str | None = None
    quantization: str | None = None


class PlanUpdate(BaseModel):
    """A plan onto an adapter that holds the corpus as it was: what became of its passages, and the price of the change.

    `nats`: what the corpus needs written beyond that adapter, summed over target tokens.
    """

    model_config = STRICT
    adapter: str
    weights_sha256: str
    n_unchanged: int
    n_changed: int
    n_added: int
    n_removed: int
    nats: float


class PlanInputs(BaseModel):
    """Digests of everything the plan was computed from.

    `prior`: another model's calibration stood in. `same_device`: the calibration's times are of the device planned on.
    """

    model_config = STRICT
    corpus_sha256: str
    model_fingerprint: str
    tokenizer_sha256: str
    calibration_sha256: str
    recipe: str
    prior: bool = False
    same_device: bool = True


class Plan(BaseModel):
    """The recommendation: `lorasize.plan.json`. Without an adapter (`infeasible`) adapter and prediction are None.

    `secrets`: the first lines of each kind that look like credentials or personal data; `warnings` has the counts.
    `activation`: what the adapter acts after; None of one that always acts.
    `max_drift`: nats per token that other text may move by; None for a plan without a bound. `minimum`: beside such a
    bound, the fewest parameters that would do without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    schema_: Literal["lorasize.plan/1"] = Field(default="lorasize.plan/1", alias="schema")
    status: Literal["ok", "over_budget", "infeasible"]
    model: PlanModel
    corpus: CorpusSummary
    demand: Demand | None
    feasibility: Feasibility
    adapter: AdapterSpec | None
    prediction: Prediction | None
    alternatives: tuple[Alternative, ...] = ()
    rules_of_thumb: RulesOfThumb | None = None
    budgets: tuple[Budget, ...] = ()
    serving: Serving | None = None
    inputs: PlanInputs
    warnings: tuple[str, ...] = ()
    compared: tuple[Difference, ...] = ()
    secrets: tuple[Finding, ...] = ()
    update: PlanUpdate | None = None
    activation: Activation | None = None
    max_drift: float | None = None
    minimum: Alternative | None = None
