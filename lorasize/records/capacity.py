"""How much an adapter of a size can hold: the law read the other way round."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorasize.records.words import STRICT


class Holding(BaseModel):
    """What an adapter at one site holds with the chance asked for.

    `nats`, `bits`: of writing, at most. `random_tokens`: of text drawn at random, which a model knows nothing of;
    `sample_tokens`: of text like the sample. `max_drift`: the bound, nats per token, under which it is trained; None
    for none. `extrapolated`: that much is beyond what was probed.
    """

    model_config = STRICT
    target_modules: tuple[str, ...]
    layers_to_transform: tuple[int, ...]
    n_parameters: int
    bytes: int
    max_drift: float | None
    nats: float
    bits: float
    random_tokens: int
    sample_tokens: int
    extrapolated: bool


class Capacity(BaseModel):
    """What adapters of a rank hold: `lorasize capacity`.

    `confidence`: the chance that every token is held. `sample`: what the text is like that `sample_tokens` are of, with
    `sample_loss`, nats per token that the base model needs for it; `random_loss`: the same for random text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    schema_: Literal["lorasize.capacity/1"] = Field(default="lorasize.capacity/1", alias="schema")
    model: str
    device: str
    dtype: str
    rank: int
    confidence: float
    sample: str
    sample_loss: float
    random_loss: float
    holdings: tuple[Holding, ...]
    warnings: tuple[str, ...] = ()
