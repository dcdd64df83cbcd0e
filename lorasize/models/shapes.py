"""The linear layers of a model, read off the model itself: no table of names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorasize.errors import ModelError
from lorasize.models.quantization import is_packed_linear


@dataclass(frozen=True)
class LinearShape:
    """Width of one linear layer's input and output."""

    d_in: int
    d_out: int

    @property
    def parameters_per_rank(self) -> int:
        """Adapter parameters that one unit of rank costs here: d_in + d_out."""
        return self.d_in + self.d_out


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The stack of decoder layers: the longest ModuleList in the model.

    Raises:
        ModelError: there is none.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise ModelError(f"{type(model).__name__} has no stack of decoder layers")
    return max(stacks, key=len)


def linear_shapes(model: nn.Module) -> dict[str, LinearShape]:
    """Shape of each linear layer that every decoder layer has, by its shortest unambiguous name.

    The name is what PEFT's `target_modules` takes: "up_proj", or "mlp.c_proj" where "c_proj" alone would also hit the
    attention. Embeddings and the LM head are never among them.
    """
    per_layer = [_linears(layer) for layer in decoder_layers(model)]
    common = [path for path in per_layer[0] if all(linears.get(path) == per_layer[0][path] for linears in per_layer)]
    if not common:
        raise ModelError(f"{type(model).__name__}: no linear layer is shared by all decoder layers")
    leaves = [path.rsplit(".", 1)[-1] for path in common]
    names = [leaf if leaves.count(leaf) == 1 else path for leaf, path in zip(leaves, common, strict=True)]
    return {name: per_layer[0][path] for name, path in zip(names, common, strict=True)}


def widening_module(shapes: Mapping[str, LinearShape]) -> str:
    """The last linear layer that widens its input: the MLP's up-projection, the best single place for an adapter."""
    return ([name for name, shape in shapes.items() if shape.d_out > shape.d_in] or list(shapes))[-1]


def transposes_weights(model: nn.Module) -> bool:
    """Whether the model's linear layers keep their weight as (d_in, d_out), as GPT-2's Conv1D does."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def _linears(layer: nn.Module) -> dict[str, LinearShape]:
    linears: dict[str, LinearShape] = {}
    for path, module in layer.named_modules():
        path = path.replace(".base_layer", "")
        if "lora_" in path:
            continue
        if isinstance(module, Conv1D):
            linears[path] = LinearShape(module.weight.shape[0], module.weight.shape[1])
        elif isinstance(module, nn.Linear) or is_packed_linear(module):
            linears[path] = LinearShape(cast(int, module.in_features), cast(int, module.out_features))
    return linears
