"""Models larger than one device: layers spread over accelerators, memory and disk by accelerate's hooks.

A weight that is put aside is on the device `meta` between uses: a hook reads it before its layer runs and drops it
after. What is put aside: in memory ("cpu") when another device computes, on disk whatever computes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lorasize.errors import ModelError
from lorasize.models.devices import free_memory
from lorasize.models.quantization import plain_weight
from lorasize.models.shapes import decoder_layers
from lorasize.units import format_bytes, parse_bytes

_ROOM = 1.25  # times the weights, that decoding takes at most; not tuned
_WANTED = 'a map of devices is "auto", with limits if need be: "auto,cpu=8GB" or "auto,cuda:0=20GB,cpu=60GB"'


def load_arguments(device_map: str | None, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` has to be told to spread a model; empty where all of it is on one device.

    Args:
        device_map: `auto`, and after commas how much a device may hold, such as `cpu=8GB`; what fits nowhere is read
            from disk whenever it is needed.
        device: On a "cpu" no accelerator is used.

    Raises:
        ModelError: the map is not understood.
    """
    if device_map is None:
        return {}
    from accelerate.utils import get_max_memory

    name, *limits = (part.strip() for part in device_map.split(","))
    if name != "auto":
        raise ModelError(f"{device_map!r:.80}: {_WANTED}")
    memory = dict(get_max_memory())
    if device.type == "cpu":
        memory = {"cpu": memory["cpu"]}
    memory |= dict(_limit(limit) for limit in limits)
    again = Path(tempfile.gettempdir()) / f"lorasize-offload-{uuid.uuid4().hex}"  # weights converted in reading
    return {"device_map": "auto", "max_memory": memory, "offload_folder": str(again)}


def _limit(text: str) -> tuple[str | int, int]:
    name, _, size = text.partition("=")
    try:
        found = re.fullmatch(r"(?:(?:cuda|xpu):)?(\d+)|cpu|mps", name.strip())
        if found is None:
            raise ValueError("no such device")
        return (int(found[1]) if found[1] else name.strip()), int(parse_bytes(size))
    except ValueError as error:
        raise ModelError(f"{text!r:.80}: {error}; {_WANTED}") from error


def prepare(model: Any, arguments: Mapping[str, Any]) -> None:
    """Let a model that was spread give its states where its input is, and hold no weights until a backward pass.

    A backward pass needs the weights of the layers that it goes through. What a forward pass read for it would stay in
    memory until then, so layers with weights put aside are run again there, reading them again: the same arithmetic.
    """
    if (folder := arguments.get("offload_folder")) is not None:
        with contextlib.suppress(OSError):  # it holds converted weights, or was never made
            os.rmdir(folder)
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    if not is_spread(model):
        return
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for layer in decoder_layers(model):
        if any(_offloading(module) is not None for module in layer.modules()):
            _recompute(layer)
    add_hook_to_module(model.get_decoder(), AlignDevicesHook(io_same_device=True), append=True)


def _recompute(layer: nn.Module) -> None:
    forward: Callable[..., Any] = layer.forward

    def again(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    layer.forward = again


def is_spread(model: Any) -> bool:
    """Whether a model's weights are on several devices, or some of them put aside."""
    places = set(map(str, (getattr(model, "hf_device_map", None) or {}).values()))
    return len(places) > 1 or "disk" in places


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", (hook,)))


def _offloading(module: nn.Module) -> Any:
    """The hook that holds a module's own weights while they are put aside; None where they are not."""
    return next((hook for hook in _hooks(module) if getattr(hook, "offload", False)), None)


def input_device(model: Any) -> torch.device:
    """Where a model's token ids go: the device of its embedding while that runs."""
    embedding = model.get_input_embeddings()
    found = [d for hook in _hooks(embedding) if (d := getattr(hook, "execution_device", None)) is not None]
    if found:
        return torch.device(found[0])  # a bare number is one of the accelerators that there are, of whatever kind
    device: torch.device = embedding.weight.device
    return device


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own parameters and buffers by name, those put aside read for the moment."""
    hook = _offloading(module)
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if hook is None or tensor.device.type != "meta":
            yield name, tensor
        else:
            value = hook.weights_map[name]
            yield name, nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def linear_of(layer: Any, model: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a linear layer, as plain numbers where the input of the model is; None of anything else."""
    from accelerate.utils import align_module_device

    if not isinstance(layer, nn.Module):
        return None
    with align_module_device(layer):
        weight, bias = plain_weight(layer), getattr(layer, "bias", None)
        if weight is None:
            return None
        device = input_device(model)
        return weight.to(device), None if bias is None else bias.detach().to(device)


@contextlib.contextmanager
def room_for_another(model: Any, device: torch.device) -> Iterator[None]:
    """Let another process load this model on the same accelerator: put it aside meanwhile where both do not fit.

    Its adapter goes with it, and both come back to where they were. A quantised model may have to stay.
    """
    free = None if is_spread(model) else free_memory(device)
    if free is None or free >= _ROOM * resident_bytes(model):
        yield
        return
    try:
        with contextlib.suppress(ValueError):
            model.to("cpu")
        free_memory(device)
        yield
    finally:
        with contextlib.suppress(ValueError):
            model.to(device)


@contextlib.contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Give weights that are put aside a place while this is open: an adapter is made where its layer's weight is.

    They hold nothing: one zero, seen in the weight's shape.
    """
    aside = [
        (module, name, parameter, _offloading(module).execution_device)
        for module in model.modules()
        if _offloading(module) is not None
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.device.type == "meta"
    ]
    try:
        for module, name, parameter, device in aside:
            zero = torch.zeros((), dtype=parameter.dtype, device=device).expand(parameter.shape)
            module._parameters[name] = nn.Parameter(zero, requires_grad=False)
        yield
    finally:
        for module, name, parameter, _ in aside:
            module._parameters[name] = parameter


def resident_bytes(model: nn.Module) -> int:
    """Bytes of the weights that stay in memory, on whatever device."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.device.type != "meta")


def told(model: Any) -> str | None:
    """Where the weights of a model that was spread are, such as "12 MB on cpu, 30 MB on disk"; None of any other."""
    if not is_spread(model):
        return None
    held: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        prefixes = [p for p in model.hf_device_map if not p or name == p or name.startswith(f"{p}.")]
        place = str(model.hf_device_map[max(prefixes, key=len)]) if prefixes else "elsewhere"
        held[place] = held.get(place, 0) + parameter.numel() * parameter.element_size()
    return ", ".join(f"{format_bytes(size)} on {f'device {p}' if p.isdigit() else p}" for p, size in held.items())
