"""The linear layers of a model that an adapter can sit on, and where it sits best: no table of names.

A linear layer is told by what it does in the forward pass (`lorasize.models.forward`). Experts, which see a part of the
tokens, the routers that choose among them, and layers that are never called carry no adapter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorasize.errors import ModelError
from lorasize.models.forward import Call, LayerPass, doubles, outside_lists, plain_path, watched_pass
from lorasize.models.peft_limits import peft_adapts

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # keys of a config
_ENOUGH = 1 / 3  # share of the layers in which the reference module must be, where any module is in so many; not tuned


@dataclass(frozen=True)
class LinearShape:
    """Width of one linear layer's input and output, and where it is.

    Attributes:
        d_in: Width of its input, in the first decoder layer that has it.
        d_out: Width of its output, in the first decoder layer that has it.
        path: Its name inside a decoder layer.
        in_layers: The decoder layers that have it, each with the adapter parameters that one unit of rank costs there.
        is_reference: Whether an adapter sits here by default.
    """

    d_in: int
    d_out: int
    path: str = field(default="", compare=False)
    in_layers: Mapping[int, int] = field(default_factory=dict, compare=False)
    is_reference: bool = field(default=False, compare=False)

    @property
    def parameters_per_rank(self) -> int:
        """Adapter parameters that one unit of rank costs in one layer: d_in + d_out."""
        return self.d_in + self.d_out


_known: WeakKeyDictionary[nn.Module, dict[str, LinearShape]] = WeakKeyDictionary()  # a pass of each model is enough


def text_config(model: Any) -> Any:
    """The config of the language model: that of a multimodal model is one part of its own."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def text_decoder(model: Any) -> nn.Module:
    """The language model without its LM head: token ids in, final hidden states after the last norm out."""
    found: Any = model
    for _ in range(3):  # wrappers hold a whole causal language model
        inner = found.get_decoder() if hasattr(found, "get_decoder") else getattr(found, "base_model", found)
        if inner is found:
            break
        found = inner
    decoder: nn.Module = found.model if hasattr(found, "lm_head") and hasattr(found, "model") else found
    return decoder


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers of the language model: a list as long as its config says, else the longest.

    Raises:
        ModelError: there is none.
    """
    stacks = [module for module in text_decoder(model).modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no stack of decoder layers")
    n_layers = getattr(text_config(model), "num_hidden_layers", None)
    fitting = [stack for stack in stacks if len(stack) == n_layers]
    if len(fitting) > 1:
        return max(fitting, key=lambda stack: sum(p.numel() for p in stack.parameters()))
    return fitting[0] if fitting else max(stacks, key=len)


def stack_path(model: nn.Module) -> str:
    """The name of the stack of decoder layers inside the model, such as "model.layers"."""
    layers = decoder_layers(model)
    paths: list[str] = [path for path, module in model.named_modules() if module is layers]
    return paths[0]


def linear_shapes(model: nn.Module) -> dict[str, LinearShape]:
    """Each linear layer that an adapter can sit on, by its shortest unambiguous name, with the layers that have it.

    The name is what PEFT's `target_modules` takes: "up_proj", or "mlp.c_proj" where "c_proj" alone would also hit the
    attention. Embeddings, the LM head, experts and routers are never among them.

    Raises:
        ModelError: the model has no stack of decoder layers, cannot be run, or has no such linear layer.
    """
    known = _known.get(model)
    if known is None:
        known = _known[model] = _read_off(model)
    return known


def widening_module(shapes: Mapping[str, LinearShape]) -> str:
    """Where an adapter sits best: the MLP's up-projection, where there is one that sees every token.

    That is the last linear layer to run that widens the residual stream and whose output comes back to it by the next.
    """
    return next(name for name, shape in shapes.items() if shape.is_reference)


def transposes_weights(model: nn.Module) -> bool:
    """Whether the model's linear layers keep their weight as (d_in, d_out), as GPT-2's Conv1D does."""
    return any(isinstance(module, Conv1D) for module in decoder_layers(model).modules())


def _read_off(model: nn.Module) -> dict[str, LinearShape]:
    layers = decoder_layers(model)
    device = next(model.parameters()).device
    try:
        passes = watched_pass(layers, partial(_run, model), device)
    except ModelError as error:
        raise ModelError(f"{type(model).__name__}: {error}; this version of transformers cannot run it") from error
    told = _told_experts(text_config(model))
    for found in passes:
        found.calls = _without_routers(found, told)
    order = dict.fromkeys(path for layer in layers for path, _ in outside_lists(layer))
    called = {call.path for found in passes for call in found.calls}
    names = _names(layers, [path for path in order if path in called and peft_adapts(model, path)])
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear layer that sees every token: no adapter can sit on it")
    best = _reference(passes, names)
    return {name: _shape(path, passes, is_reference=path == best) for path, name in names.items()}


def _run(model: nn.Module, ids: torch.Tensor) -> None:
    """The whole model, as it is served: what its language model can do alone may fail in it."""
    try:
        model(input_ids=ids, use_cache=False)
    except TypeError:  # it keeps no cache and knows no such word
        model(input_ids=ids)


def _told_experts(config: Any) -> set[int]:
    """How many experts the config tells of, more than one, under any of the names in use."""
    parts = (config, getattr(config, "ffn_config", None))
    told = [getattr(part, name, None) for part in parts for name in _EXPERTS]
    return {n for n in told if isinstance(n, int) and n > 1}


def _without_routers(found: LayerPass, told: set[int]) -> list[Call]:
    """The calls without those that only weigh: the router, as wide as there are experts, and gates of one number."""
    n_experts = told | {len(module) for module in found.layer.modules() if isinstance(module, nn.ModuleList)}
    for module in found.layer.modules():
        if not isinstance(module, nn.Conv1d):
            n_experts |= {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3}
    return [c for c in found.calls if c.d_out > 1 and not (c.d_in == found.width and c.d_out in n_experts)]


def _names(layers: nn.ModuleList, paths: Sequence[str]) -> dict[str, str]:
    """Each path's name: its last part where that is a word and no other module of any layer ends so, else all of it."""
    everything = {plain for layer in layers for path, _ in layer.named_modules() if (plain := plain_path(path))}
    ends = Counter(path.rsplit(".", 1)[-1] for path in everything)
    last = {path: path.rsplit(".", 1)[-1] for path in paths}
    return {path: end if ends[end] == 1 and not end.isdigit() else path for path, end in last.items()}


def _shape(path: str, passes: Sequence[LayerPass], *, is_reference: bool) -> LinearShape:
    have = {layer: call for layer, found in enumerate(passes) for call in found.calls if call.path == path}
    first = next(iter(have.values()))
    per_rank = {layer: call.d_in + call.d_out for layer, call in have.items()}
    return LinearShape(first.d_in, first.d_out, path, per_rank, is_reference)


def _reference(passes: Sequence[LayerPass], names: Mapping[str, str]) -> str:
    """The path of the reference module: the best kind of place that enough layers have, in most of these layers."""
    votes: dict[int, Counter[str]] = {}
    linear: dict[tuple[str, str], bool] = {}
    for found in passes:
        for kind, path in _places(found, names, linear).items():
            votes.setdefault(kind, Counter())[path] += 1
    ranked = [votes[kind] for kind in sorted(votes)]
    enough = [kind for kind in ranked if max(kind.values()) >= _ENOUGH * len(passes)]
    chosen = (enough or ranked)[0]
    return max(reversed(chosen), key=chosen.__getitem__)


def _places(found: LayerPass, names: Mapping[str, str], linear: dict[tuple[str, str], bool]) -> dict[int, str]:
    """Of each kind of place in a layer, best first, the last to run.

    0: widens the residual stream and is brought back whole, as in an MLP.
    1: narrows it and is brought back whole, as in a small shared expert.
    2: returns to the residual stream, as attention's output does.
    3: widens the residual stream, whatever becomes of it.
    4: any.
    """
    usable = [call for call in found.calls if call.path in names]
    best: dict[int, str] = {}
    for kind, widens in ((0, True), (1, False)):
        pairs = [pair for pair in _pairs(found, widens=widens) if pair[0] in names]
        if pairs:
            best[kind] = _multiplied(found, pairs, linear)
    for call in usable:
        of_kind = {2: call.d_out == found.width, 3: call.d_out > call.d_in == found.width, 4: True}
        best |= {kind: call.path for kind, holds in of_kind.items() if holds}
    return best


def _pairs(found: LayerPass, *, widens: bool) -> list[tuple[str, str]]:
    """Linear layers that read the residual stream and, of each, the one that brings it back, by their paths.

    Nothing else runs between the two but a gate, which reads the same. One that is twice as wide is gate and value in
    one. Three that read the same, none of them wide, are attention's queries, keys and values.
    """
    pairs = []
    for k, back in enumerate(found.calls[1:], start=1):
        last = found.calls[k - 1]
        readers = [call for call in found.calls if call.source == last.source]
        returns = back.d_out == found.width == last.d_in and back.source != last.source
        if not returns or (not widens and len(readers) > 2):
            continue
        for call in (found.calls[max(0, k - 2)], last):  # of one that is first, itself
            same = (call.source, call.d_out) == (last.source, last.d_out)
            if same and call.d_out in (back.d_in, 2 * back.d_in) and (call.d_out > call.d_in) == widens:
                pairs.append((call.path, back.path))
    return list(dict.fromkeys(pairs))


def _multiplied(found: LayerPass, pairs: Sequence[tuple[str, str]], linear: dict[tuple[str, str], bool]) -> str:
    """The last of them whose output a gate multiplies, which holds more than the gate; the last where none is."""
    if len(pairs) == 1:
        return pairs[0][0]
    for pair in pairs:
        if pair not in linear:
            linear[pair] = doubles(found, *pair)
    return ([pair for pair in pairs if linear[pair]] or pairs)[-1][0]
