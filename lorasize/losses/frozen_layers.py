"""Frozen layers below the first adapted one, run once; everything above, run from their stored output.

The layers below `first` compute the same thing at every step, so their output is kept and the model is entered at layer
`first`. This works on the model as it is: layers below pass their input through, and a hook puts the stored state in
front of layer `first`; masks, positions and the layers above are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lorasize.losses.head import decoder
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
    """The model from layer `first` on, fed with stored states. Use as a context manager: it restores the model."""

    def __init__(self, model: nn.Module, first: int) -> None:
        """Prepare; nothing is changed until the context is entered."""
        self._model = model
        self.first = first
        self._stored: Tensor | None = None

    @contextmanager
    def entered(self) -> Iterator[Suffix]:
        """Layers below `first` pass through and layer `first` reads the stored states, while this is open."""
        layers = decoder_layers(self._model)
        handle = layers[self.first].register_forward_pre_hook(self._enter, with_kwargs=True)
        below = list(layers)[: self.first]
        own = [vars(layer).get("forward") for layer in below]  # of a layer that is run in its own way, put there before
        for layer in below:
            layer.forward = _pass
        try:
            yield self
        finally:
            handle.remove()
            for layer, forward in zip(below, own, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._stored, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._stored}

    def run(self, ids: Tensor, stored: Tensor) -> Tensor:
        """Final hidden states, shape (batch, position, width). `ids` decides positions and masks only."""
        self._stored = stored.to(ids.device)  # from a memory-mapped file it comes on the CPU
        output = decoder(self._model)(input_ids=ids, use_cache=False)
        hidden: Tensor = output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]
        return hidden


def _pass(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states
