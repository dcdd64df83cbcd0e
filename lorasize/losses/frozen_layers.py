"""Frozen layers below the first adapted one, run once; everything above, run from their stored output.

The layers below `first` compute the same thing at every step, so their output is kept and the model is entered at layer
`first`. This works on the model as it is: layers below pass their input through, and a hook puts the stored state in
front of layer `first`; masks, positions and the layers above are the model's own. That is an optimisation: where it
does not give what the model itself gives, the whole model is run at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorasize.errors import ModelError
from lorasize.losses.head import LOOK, alike, decoder
from lorasize.models import decoder_layers


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@torch.no_grad()
def states_before(model: nn.Module, first: int, ids: Tensor) -> Tensor:
    """Hidden states entering layer `first`, shape (batch, position, width), for token ids (batch, position)."""

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(args[0] if args else kwargs["hidden_states"])

    handle = decoder_layers(model)[first].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        decoder(model)(input_ids=ids, use_cache=False)
    except _Reached as reached:
        return reached.hidden
    finally:
        handle.remove()
    raise RuntimeError("the model never reached its layers")


class Suffix:
    """The model from layer `first` on, fed with stored states. Use as a context manager: it restores the model.

    Attributes:
        first: The layer that is entered; None where the whole model is run.
        logits: Whether the model's own logits are wanted instead of its final hidden states.
        outputs: How many things a layer hands on as a tuple, of which the states come first; 0 where they are all.
        active: Where an adapter acts in the next pass and in the backward pass after it, shape (batch, position); None:
            everywhere. Elsewhere the states are the base model's.
    """

    def __init__(self, model: nn.Module, first: int | None, *, logits: bool = False, outputs: int = 0) -> None:
        """Prepare; nothing is changed until the context is entered."""
        self.first = first
        self.logits = logits
        self.outputs = outputs
        self.active: Tensor | None = None
        adapted: list[Any] = [module for module in model.modules() if hasattr(module, "lora_B")]
        self._adding = [part for module in adapted for part in module.lora_B.values()]
        self._model = model
        self._stored: Tensor | None = None

    @property
    def name(self) -> str:
        """The kind of model."""
        return type(self._model).__name__

    @contextmanager
    def entered(self) -> Iterator[Suffix]:
        """Layers below `first` pass through and layer `first` reads the stored states, while this is open."""
        with self._gated():
            if self.first is None:
                yield self
                return
            with self._passing(self.first):
                yield self

    @contextmanager
    def _gated(self) -> Iterator[None]:
        """An adapter adds nothing to the positions where it does not act."""
        hooks = [part.register_forward_hook(self._gate) for part in self._adding]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _gate(self, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        if self.active is None:
            return None
        if output.shape[:-1] != self.active.shape:
            raise ModelError(f"{self.name}: an adapted layer sees no positions, so the adapter cannot be activated")
        return output.masked_fill(~self.active[..., None].to(output.device), 0.0)

    @contextmanager
    def _passing(self, first: int) -> Iterator[None]:
        layers = decoder_layers(self._model)
        handle = layers[first].register_forward_pre_hook(self._enter, with_kwargs=True)
        below = list(layers)[:first]
        own = [vars(layer).get("forward") for layer in below]  # of a layer that is run in its own way, put there before
        for layer in below:
            layer.forward = self._pass
        try:
            yield
        finally:
            handle.remove()
            for layer, forward in zip(below, own, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def _pass(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states, *[None] * (self.outputs - 1)) if self.outputs else hidden_states

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._stored, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._stored}

    def run(self, ids: Tensor, stored: Tensor | None) -> Tensor:
        """Final hidden states, shape (batch, position, width), or logits. `ids` decides positions and masks only.

        Of the whole model, `ids` decides everything.
        """
        # Of a large corpus they are beside the device: in a file, or in memory that is pinned where it can be.
        self._stored = None if stored is None else stored.to(ids.device, non_blocking=True)
        output = (self._model if self.logits else decoder(self._model))(input_ids=ids, use_cache=False)
        if self.logits:
            return cast(Tensor, output.logits)
        hidden: Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
        return hidden


def suffix_of(model: nn.Module, first: int, ids: Tensor, *, logits: bool = False) -> Suffix:
    """The model entered at layer `first` where that gives its own output on some of these ids; else the whole of it.

    Args:
        model: The model; an adapter in it must be put aside.
        first: The first layer with an adapter.
        ids: Token ids, shape (batch, position).
        logits: Whether the model's own logits are wanted.
    """
    few, whole = ids[:1, :LOOK], Suffix(model, None, logits=logits)
    plain, outputs = _looked_at(model, whole, few)
    suffix = Suffix(model, first, logits=logits, outputs=outputs)
    return suffix if _enters(model, suffix, few, plain) else whole


@torch.no_grad()
def _looked_at(model: nn.Module, whole: Suffix, ids: Tensor) -> tuple[Tensor, int]:
    """What the whole model gives, and how many things its layers hand on as a tuple; 0 where no tuple is handed on."""
    sizes = [0]

    def look(_: nn.Module, __: Any, output: Any) -> None:
        sizes.append(len(output) if isinstance(output, tuple) else 0)

    hooks = [layer.register_forward_hook(look) for layer in decoder_layers(model)]
    try:
        return whole.run(ids, None), max(sizes)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _enters(model: nn.Module, suffix: Suffix, ids: Tensor, plain: Tensor) -> bool:
    """Whether the suffix gives what the whole model does, which is `plain`, and no adapter is at work below it."""
    assert suffix.first is not None
    reached: list[bool] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_: reached.append(True))
        for module in model.modules()
        if hasattr(module, "lora_A")
    ]
    try:
        stored = states_before(model, suffix.first, ids)
        if reached or stored.shape[:-1] != ids.shape:  # a shared layer's adapter; streams beside each other
            return False
        with suffix.entered():
            return alike(suffix.run(ids, stored), plain)
    except Exception:  # layers that hand on more than their output: each fails in its own way
        return False
    finally:
        for hook in hooks:
            hook.remove()


def notes_on(suffix: Suffix) -> tuple[str, ...]:
    """What takes longer with this model than with others, and why; empty where nothing does."""
    notes = []
    if suffix.first is None:
        notes.append(
            f"{suffix.name}: entered above its frozen layers it gives another output than its own, so all of it is run "
            "at every step: training takes longer."
        )
    if suffix.logits:
        notes.append(
            f"{suffix.name}: its head does more to its logits than is known here, so they are taken from the model "
            "itself: training takes more time and memory."
        )
    return tuple(notes)
