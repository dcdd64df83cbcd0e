"""The verdict on a committed plan: does it still hold, and does it keep today's budgets?"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from lorasize.records.inputs import AdapterSpec, Feasibility
from lorasize.records.plan import Budget, PassageDemand


class Check(BaseModel):
    """What `check` finds. `stale`: what changed since the plan was made; `costliest`: where its bits go."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)
    schema_: Literal["lorasize.check/1"] = Field(default="lorasize.check/1", alias="schema")
    status: Literal["ok", "over_budget", "stale", "infeasible"]
    plan: str
    stale: tuple[str, ...] = ()
    feasibility: Feasibility
    adapter: AdapterSpec | None = None
    budgets: tuple[Budget, ...] = ()
    costliest: tuple[PassageDemand, ...] = ()
    warnings: tuple[str, ...] = ()
