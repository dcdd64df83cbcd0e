"""What each linear layer of a model does in one forward pass of a few token ids.

Neither names nor the order of definition tell a router from a projection, an expert from an MLP, or a layer that is
never run from one that is. A forward pass does: it shows which linear layers are called, by how many of the tokens, in
which order, and what they read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorasize.errors import ModelError
from lorasize.models.quantization import is_packed_linear

_N_TOKENS = 8  # of the pass; routers send them to more than one expert, where they send any
_EXACT = 1e-2  # relative; doubling is exact in any dtype, what is computed from it nearly


@dataclass(frozen=True)
class Call:
    """One linear layer at work in its decoder layer.

    Attributes:
        path: Its name inside the decoder layer.
        d_in: Width of its input.
        d_out: Width of its output.
        source: Equal for the linear layers of this decoder layer that read the same input.
    """

    path: str
    d_in: int
    d_out: int
    source: int


@dataclass
class LayerPass:
    """One decoder layer in the pass.

    Left out of the calls are those for a part of the tokens only, and what lies in a list of modules inside the layer:
    experts.

    Attributes:
        layer: The decoder layer.
        width: Of the residual stream that enters it.
        calls: Its linear layers at work, in order.
        given: What the layer was called with.
    """

    layer: nn.Module
    width: int = 0
    calls: list[Call] = field(default_factory=list)
    given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})


@dataclass
class _Seen:
    """A call as the hook saw it: its input is kept, so that no other can take its memory."""

    path: str
    shape: tuple[int, int]
    read: Tensor


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Width of a linear layer's input and output; None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if isinstance(module, nn.Linear) or is_packed_linear(module):
        return cast(int, module.in_features), cast(int, module.out_features)
    return None


def plain_path(path: str) -> str | None:
    """A module's name without the adapter that wraps it; None for a part of the adapter."""
    return None if "lora_" in path else path.replace(".base_layer", "")


@torch.no_grad()
def watched_pass(layers: nn.ModuleList, run: Callable[[Tensor], object], device: torch.device) -> list[LayerPass]:
    """Each decoder layer in one forward pass of `run` on token ids, shape (1, position).

    Raises:
        ModelError: the pass fails.
    """
    passes = [LayerPass(layer) for layer in layers]
    ids = torch.arange(3, 3 + _N_TOKENS, device=device)[None]
    with ExitStack() as stack:
        for hook in _hooks(passes):
            stack.callback(hook.remove)
        try:
            run(ids)
        except Exception as error:
            said = f"{type(error).__name__}: {' '.join(str(error).split()):.300}"
            raise ModelError(f"a forward pass of {_N_TOKENS} tokens fails ({said})") from error
    return passes


def _hooks(passes: list[LayerPass]) -> Iterator[Any]:
    """Hooks that fill `passes`. A module that several layers share belongs to the first of them, as for PEFT."""
    owned: set[int] = set()
    for found in passes:
        seen: list[_Seen] = []
        yield found.layer.register_forward_pre_hook(_on_entry(found, seen), with_kwargs=True)
        yield found.layer.register_forward_hook(_on_exit(found, seen))
        for path, module in outside_lists(found.layer):
            if id(module) not in owned and (shape := widths(module)) is not None:
                owned.add(id(module))
                yield module.register_forward_pre_hook(_on_call(seen, path, shape))


def outside_lists(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a decoder layer, by name, but for those in lists: there, experts are held."""
    inside = tuple(f"{path}." for path, module in layer.named_modules() if isinstance(module, nn.ModuleList))
    for path, module in layer.named_modules():
        if (plain := plain_path(path)) is not None and not path.startswith(inside):
            yield plain, module


def _on_entry(found: LayerPass, seen: list[_Seen]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = args[0] if args else kwargs.get("hidden_states")
        if isinstance(state, Tensor) and not found.calls:
            found.width = state.shape[-1]
            found.given = (args, kwargs)
        seen.clear()

    return note


def _on_call(seen: list[_Seen], path: str, shape: tuple[int, int]) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        known = any(one.path == path for one in seen)
        if not known and args and isinstance(args[0], Tensor) and args[0].numel() >= _N_TOKENS * shape[0]:
            seen.append(_Seen(path, shape, args[0]))

    return note


def _on_exit(found: LayerPass, seen: list[_Seen]) -> Callable[..., None]:
    def note(*_: Any) -> None:
        if not found.calls:  # of a layer that runs more than once, the first time counts
            found.calls = [Call(one.path, *one.shape, one.read.data_ptr()) for one in seen]
        seen.clear()

    return note


@torch.no_grad()
def doubles(found: LayerPass, path: str, next_path: str) -> bool:
    """Whether twice the output of one linear layer is twice the input of another, as for what a gate multiplies."""
    modules = dict(outside_lists(found.layer))
    read: list[Tensor] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        read.append(args[0])

    with ExitStack() as stack:
        stack.callback(modules[next_path].register_forward_pre_hook(note).remove)
        args, kwargs = found.given
        found.layer(*args, **kwargs)
        stack.callback(modules[path].register_forward_hook(lambda module, given, output: 2 * output).remove)
        found.layer(*args, **kwargs)
    plain, doubled = read[0], read[-1]
    most = float(plain.abs().max())
    return math.isfinite(most) and torch.allclose(2 * plain, doubled, rtol=_EXACT, atol=_EXACT * most)
