"""Keeps an adapter from changing what the model does on text that it is not trained on.

Two parts, neither of which costs a forward pass. A is kept out of the directions in which the model's inputs are
strongest, which all text shares; and what is left of the change is held back by its second-order effect on the
predictions, ½ · tr(ΔWᵀ G ΔW C) with ΔW = B A (`losses.statistics`). That form takes positions for independent and
misses a shift that a whole text shares, which is what the strongest directions carry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorasize.losses.statistics import Statistics
from lorasize.models.adapters import adapted_pairs

if TYPE_CHECKING:
    from peft import PeftModel

SHARE = 0.5  # of the input directions, the strongest, that A is kept out of; no other share was tried here
STRENGTH = 1000.0  # of the pull when training begins: docs/log/harm.md#how-hard-to-pull
_LEAST, _MOST = 1.0, 1e6  # keep it within numbers that float32 tells apart
_HARDER = 1.15  # times the pull, step by step: docs/log/harm.md#all-batches-in-one-step-under-the-bound
_FIRST = 0.004  # nats per token that a first step may move general text by: docs/log/harm.md#how-far-a-first-step-goes
_EVERY = 5  # steps after which progress is judged
_SLOW = 0.9  # the loss after these steps, as a share of the loss before, above which they were slow


@dataclass
class GuardState:
    """How hard the guard pulls.

    Attributes:
        strength: Factor on the penalty.
        waited: Steps since progress was judged.
        loss: Mean loss then, nats per token.
        least: Strength when harm was last found, below which it does not fall to have tokens held again.
    """

    strength: float
    waited: int = 0
    loss: float = float("inf")
    least: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"loss": None if self.loss == float("inf") else self.loss}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GuardState:
        """What `to_json` gave."""
        loss = values["loss"]
        return cls(**{**values, "loss": float("inf") if loss is None else loss})


@dataclass(frozen=True)
class _Guarded:
    """One adapted matrix: its A (rank, d_in) and B (d_out, rank), its statistics, and the directions A keeps out of."""

    a: nn.Parameter
    b: nn.Parameter
    inputs: Tensor
    gradients: Tensor
    barred: Tensor  # (d_in, direction), orthonormal


class Guard:
    """The pull on one adapter.

    Attributes:
        state: How hard it pulls.
        reach: How far a first step goes by general text for each squared learning rate, nats per token, at most.
    """

    def __init__(self, adapted: PeftModel, statistics: Mapping[str, Statistics]) -> None:
        """Project A, so that training begins outside the barred directions."""
        self.state = GuardState(STRENGTH)
        self._matrices: list[_Guarded] = []
        self.reach = 0.0
        for path, (a, b) in adapted_pairs(adapted).items():
            known = statistics[path]
            inputs = known.inputs.to(a.device)
            n = round(SHARE * len(inputs))
            found = torch.linalg.eigh(inputs)
            barred = found.eigenvectors[:, len(inputs) - n :].contiguous()
            # E[(a·x)²] of a row of A as PEFT draws it and as it is projected, whatever A is by now.
            read = float(found.eigenvalues[: len(inputs) - n].sum()) / (3 * len(inputs))
            self.reach += len(a) ** 2 * read * float(known.gradients.sum()) / 2.0
            self._matrices.append(_Guarded(a, b, inputs, known.gradients.to(a.device), barred))
        self.project()

    def rate(self, at_most: float) -> float:
        """The learning rate of Adam, up to `at_most`, whose first step keeps within `_FIRST`.

        That step moves every entry of B by the rate, whatever the gradient is: outputs move by rate · Σ |a·x|, which
        grows with the rank, and by how much the layer reads outside the barred directions, as models differ.
        """
        return at_most if self.reach <= 0.0 else min(at_most, math.sqrt(_FIRST / self.reach))

    @torch.no_grad()
    def project(self) -> None:
        """Take the barred directions out of A."""
        for one in self._matrices:
            one.a.sub_((one.a @ one.barred) @ one.barred.t())

    @torch.no_grad()
    def pull(self) -> None:
        """Add strength · ∇ penalty to the gradients."""
        for one in self._matrices:
            a_c, g_b = one.a @ one.inputs, one.gradients[:, None] * one.b
            _add(one.a, (one.b.t() @ g_b) @ a_c, self.state.strength)
            _add(one.b, g_b @ (a_c @ one.a.t()), self.state.strength)

    def stepped(self, loss: float, stubborn: float) -> bool:
        """After a step: project. Whether stubborn tokens have hardly moved in the last few steps.

        Args:
            loss: Mean loss of the corpus, nats per token.
            stubborn: Share of tokens that have not passed.
        """
        self.project()
        state = self.state
        state.waited += 1
        if state.waited < _EVERY:
            return False
        slow = stubborn > 0 and loss > _SLOW * state.loss
        state.waited, state.loss = 0, loss
        return slow

    def soften(self) -> None:
        """Pull less: there is room under the bound."""
        state = self.state
        state.strength = max(_LEAST, state.strength / 2.0)
        state.least = None if state.least is None else min(state.least, state.strength)

    def harm_found(self) -> None:
        """The bound was kept and is broken now."""
        self.state.least = self.state.strength

    def balance(self, *, held: bool, n_parts: int = 1) -> None:
        """A step since harm was found: pull harder as long as every token is held, less hard where one is not.

        Args:
            held: Whether every token is, as last looked at.
            n_parts: Steps that one look at the whole corpus takes. What is known of tokens is so old: the pull changes
                by less in each, by more over all of them.
        """
        state = self.state
        if state.least is None:
            return
        harder = _HARDER ** n_parts**-0.5
        state.strength = min(_MOST, state.strength * harder) if held else max(state.least, state.strength / harder)


def _add(parameter: nn.Parameter, gradient: Tensor, factor: float) -> None:
    parameter.grad = gradient * factor if parameter.grad is None else parameter.grad.add_(gradient, alpha=factor)

