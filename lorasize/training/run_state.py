"""What happened in a run so far: the part of a checkpoint that is not the trainer's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lorasize.records import AdapterSpec, Drift, Escalation, Outcome
from lorasize.training.checkpoint import Checkpoint
from lorasize.training.evaluation import Evaluation
from lorasize.training.stall import Stall


@dataclass(frozen=True)
class FirstRun:
    """How training the planned adapter, before any growth, ended."""

    outcome: Outcome
    mean_loss: float  # nats per target token
    n_stubborn: int
    steps: float  # that it would have taken as one batch
    early_loss: float | None  # nats per token after LAW_STEPS of these, of a run that went on


@dataclass(frozen=True)
class Fallback:
    """An adapter that passed, to return to: the margin it was trained for, and its parameters."""

    margin: float
    parameters: Sequence[Tensor]


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        spec: The adapter as it is now.
        margin: What training is for now, above the threshold.
        escalations: How the adapter grew.
        outcome: None while training goes on.
        steps: Optimiser steps of all adapters.
        n_read: Target tokens that these steps read.
        seconds: Of training.
        before: The look at the base model.
        first: How the planned adapter's training ended.
        drift: What training did to the text that must not suffer.
        fallback: The adapter that passed, while a larger margin is trained for.
        settled: Whether a larger margin was tried in vain.
    """

    spec: AdapterSpec
    margin: float
    escalations: tuple[Escalation, ...] = ()
    outcome: Outcome | None = None
    steps: int = 0
    n_read: int = 0
    seconds: float = 0.0
    before: Evaluation | None = None
    first: FirstRun | None = None
    drift: Drift | None = None
    fallback: Fallback | None = None
    settled: bool = False

    def to_json(self) -> dict[str, Any]:
        """All but the tensors, as JSON values. The adapter's rank is enough: the plan has the rest."""
        return {
            "rank": self.spec.rank,
            "escalations": [e.model_dump(by_alias=True) for e in self.escalations],
            "outcome": self.outcome,
            "steps": self.steps,
            "n_read": self.n_read,
            "seconds": self.seconds,
            "first": None if self.first is None else asdict(self.first),
            "drift": None if self.drift is None else self.drift.model_dump(),
            "margin": self.margin,
            "settled": self.settled,
            "held": None if self.fallback is None else self.fallback.margin,
        }

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, by the names they have in a checkpoint."""
        kept = () if self.fallback is None else self.fallback.parameters
        named = {f"held.{k}": parameter for k, parameter in enumerate(kept)}
        return named if self.before is None else named | {"before": self.before.losses}

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, at_rank: Callable[[int], AdapterSpec]) -> RunState:
        """What `to_json` and `tensors` gave. `at_rank` gives the adapter of a rank."""
        values, first, drift = checkpoint.state, checkpoint.state["first"], checkpoint.state["drift"]
        held = values["held"]
        return cls(
            spec=at_rank(values["rank"]),
            margin=values["margin"],
            escalations=tuple(Escalation(**e) for e in values["escalations"]),
            outcome=Outcome(values["outcome"]) if values["outcome"] else None,
            steps=values["steps"],
            n_read=values["n_read"],
            seconds=values["seconds"],
            before=Evaluation(checkpoint.tensors["before"]),
            first=None if first is None else FirstRun(**first | {"outcome": Outcome(first["outcome"])}),
            drift=None if drift is None else Drift(**drift),
            fallback=None if held is None else Fallback(held, checkpoint.numbered("held")),
            settled=values["settled"],
        )


@dataclass
class Progress:
    """What is known of training the adapter as it is now.

    Attributes:
        before: Optimiser steps of smaller adapters.
        read: Target tokens that those steps read.
        stall: Whether it gets anywhere.
        early: Loss after LAW_STEPS steps of one batch, nats per token.
    """

    before: int
    read: int
    stall: Stall
    early: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"before": self.before, "read": self.read, "stall": asdict(self.stall), "early": self.early}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """What `to_json` gave."""
        return cls(values["before"], values["read"], Stall(**values["stall"]), values["early"])
