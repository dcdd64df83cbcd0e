"""LoRA adapters at a site: attach, count, grow and save them as plain PEFT folders.

Uniform rank, lora_alpha = rank, no bias, no dropout, no modules_to_save: the one shape that PEFT, vLLM and llama.cpp
all read in the same way. Knows nothing of corpora or training.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lorasize.errors import ModelError
from lorasize.models import placement
from lorasize.models.devices import forked_rng
from lorasize.models.shapes import LinearShape, linear_shapes, stack_path, transposes_weights
from lorasize.records import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def count_parameters(shapes: Mapping[str, LinearShape], site: Site, rank: int) -> int:
    """Trainable parameters of an adapter: Σ rank · (d_in + d_out) over its modules, in those layers that have them."""
    layers = site.layers_to_transform
    return rank * sum(shapes[name].in_layers.get(layer, 0) for name in site.target_modules for layer in layers)


def attach(
    model: PreTrainedModel, site: Site, rank: int, seed: int, activation_tokens: Sequence[int] = ()
) -> PeftModel:
    """The model with a fresh float32 adapter: A drawn from `seed`, B zero, so that it starts as a no-op.

    With `activation_tokens` it acts after those alone, and only in passes that PEFT itself is called for.

    Raises:
        ModelError: PEFT cannot put it on these modules of these layers and on nothing else.
    """
    wanted = _modules_of(model, site)
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(site.target_modules),
        layers_to_transform=list(site.layers_to_transform),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=transposes_weights(model),
        alora_invocation_tokens=list(activation_tokens) or None,
    )
    _confine(config, model, wanted)
    with forked_rng(model.device):
        torch.manual_seed(seed)
        with placement.stand_ins(model):
            adapted = cast(PeftModel, get_peft_model(model, config))
    if (sits := _adapted_modules(adapted)) != wanted:
        detach(adapted)
        raise _misplaced(model, wanted, sits)
    return adapted.eval()


def _modules_of(model: PreTrainedModel, site: Site) -> frozenset[str]:
    """The names of the modules at a site: in each of its layers, those of its modules that the layer has."""
    shapes, stack = linear_shapes(model), stack_path(model)
    for name in site.target_modules:
        if name not in shapes:
            raise ModelError(f"{type(model).__name__} has no linear layer {name} that sees every token")
    return frozenset(
        f"{stack}.{layer}.{shapes[name].path}"
        for name in site.target_modules
        for layer in site.layers_to_transform
        if layer in shapes[name].in_layers
    )


def _confine(config: LoraConfig, model: PreTrainedModel, wanted: frozenset[str]) -> None:
    """Say more in the config where module names and numbers of layers would also hit others, or miss some.

    A vision tower may have modules and layers of the same names, and a layer may hold one that it never calls.
    """

    def hit() -> frozenset[str]:
        return frozenset(name for name, _ in model.named_modules() if check_target_module_exists(config, name))

    if hit() != wanted:
        config.layers_pattern = stack_path(model)
    if more := hit() - wanted:
        config.exclude_modules = sorted(more)
    if (sits := hit()) != wanted:
        raise _misplaced(model, wanted, sits)


def _adapted_modules(adapted: PeftModel) -> frozenset[str]:
    return frozenset(name for name, module in base_of(adapted).named_modules() if hasattr(module, "lora_A"))


def _misplaced(model: PreTrainedModel, wanted: frozenset[str], sits: frozenset[str]) -> ModelError:
    missed = wanted - sits
    where = f"not on {min(missed)}" if missed else f"on {min(sits - wanted)} as well"
    return ModelError(f"{type(model).__name__}: PEFT would put the adapter {where}, so it cannot be made here")


def base_of(adapted: PeftModel) -> PreTrainedModel:
    """The model under the adapter, adapted layers inside it."""
    return cast("PreTrainedModel", adapted.base_model.model)


def parameters(adapted: PeftModel) -> dict[str, nn.Parameter]:
    """The adapter's trainable parameters by name."""
    return {name: p for name, p in adapted.named_parameters() if p.requires_grad}


def adapted_pairs(adapted: PeftModel) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """A (rank, d_in) and B (d_out, rank) of each adapted linear layer, by its name inside the base model."""
    sits = ((name, module) for name, module in base_of(adapted).named_modules() if hasattr(module, "lora_A"))
    found: dict[str, Any] = {n: (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in sits}
    return found


def detach(adapted: PeftModel) -> PreTrainedModel:
    """The base model again, exactly as it was before `attach`."""
    spread = placement.is_spread(base_of(adapted))
    base = _uncovered(adapted) if spread else cast("PreTrainedModel", adapted.unload())
    if hasattr(base, "peft_config"):
        del base.peft_config
    base.requires_grad_(False)
    return base


def _uncovered(adapted: PeftModel) -> PreTrainedModel:
    """The model with each adapted layer itself again; PEFT's `unload` would keep weights that are put aside."""
    base = base_of(adapted)
    for path, module in list(base.named_modules()):
        if isinstance(module, BaseTunerLayer):
            above, _, name = path.rpartition(".")
            setattr(base.get_submodule(above), name, module.get_base_layer())
    return base


def grow(adapted: PeftModel, site: Site, rank: int, seed: int) -> PeftModel:
    """The adapter at a larger rank or on more layers, computing exactly what it computed before.

    Learned rows of A and columns of B are kept; new ones start with B zero.

    Raises:
        ValueError: the new adapter does not contain the old one.
    """
    learned = {name: p.detach().clone() for name, p in parameters(adapted).items()}
    grown = attach(detach(adapted), site, rank, seed)
    fresh = parameters(grown)
    missing = [name for name in learned if name not in fresh]
    if missing:
        raise ValueError(f"the grown adapter lacks {missing[0]}")
    with torch.no_grad():
        for name, old in learned.items():
            _embed(fresh[name], old)
    return grown


def start_from(adapted: PeftModel, folder: Path) -> None:
    """Let a fresh adapter compute what the saved one in a folder does; its site is the same, its rank no smaller.

    Raises:
        ModelError: the file is damaged, or the new adapter does not contain it.
    """
    fresh = parameters(adapted)
    try:
        saved = load_file(folder / "adapter_model.safetensors")
        with torch.no_grad():
            for name, old in saved.items():
                _embed(fresh[name.replace(".weight", ".default.weight")], old)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{folder}: cannot be trained on ({error})") from error


def _embed(new: Tensor, old: Tensor) -> None:
    if any(a < b for a, b in zip(new.shape, old.shape, strict=True)):
        raise ValueError(f"an adapter cannot shrink from {tuple(old.shape)} to {tuple(new.shape)}")
    new[tuple(slice(0, n) for n in old.shape)] = old


def save(
    adapted: PeftModel, folder: Path, base: str, revision: str | None = None, activation_tokens: Sequence[int] = ()
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Args:
        adapted: The model with its adapter.
        folder: Where to.
        base: All that is told of the base: a hub id or a folder, which PEFT's own classes load.
        revision: Of that model on the hub.
        activation_tokens: What PEFT shall let the adapter act after; nothing of one that always acts.

    Raises:
        OSError: the disk is full or read-only.
    """
    config = adapted.peft_config["default"]
    config.base_model_name_or_path, config.revision = base, revision
    cast(LoraConfig, config).alora_invocation_tokens = list(activation_tokens) or None
    try:
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
    except SafetensorError as error:  # it has no number, only words
        full = "space" in str(error) or "os error 28" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, f"{error}", str(folder)) from error
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's card: a blank form that names the base's folder
    shared = (folder / "adapter_config.json").stat().st_mode
    (folder / "adapter_model.safetensors").chmod(shared)  # safetensors lets its owner alone read it


def load_saved(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter of a PEFT folder, as stock PEFT loads it.

    Raises:
        ModelError: a file is missing, truncated or does not fit the model.
    """
    try:
        kind = PeftConfig.from_pretrained(str(folder), local_files_only=True).peft_type
        if kind != PeftType.LORA:  # others may make PEFT open a file that the folder names
            raise ValueError(f"peft_type {kind!s:.40} instead of LORA")
        if placement.is_spread(model):
            return _loaded_beside_hooks(model, folder)
        return PeftModel.from_pretrained(model, str(folder), local_files_only=True).eval()
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(f"{folder}: the adapter cannot be loaded ({type(error).__name__}: {first:.300})") from error


def _loaded_beside_hooks(model: PreTrainedModel, folder: Path) -> PeftModel:
    """As `PeftModel.from_pretrained`, which spreads the model anew, into a folder of its own for what goes to disk."""
    config = LoraConfig.from_pretrained(str(folder), local_files_only=True)
    config.inference_mode = True
    with placement.stand_ins(model):
        adapted = get_peft_model(model, config)
    result: Any = set_peft_model_state_dict(adapted, load_file(folder / "adapter_model.safetensors"))
    if result.unexpected_keys:
        raise ValueError(f"{result.unexpected_keys[0]} is no part of it")
    return cast(PeftModel, adapted).eval()


def first_adapted_layer(adapted: PeftModel) -> int:
    """The lowest layer that carries an adapter: everything below computes the same at every step."""
    config = cast(LoraConfig, adapted.peft_config["default"])
    return min(cast(list[int], config.layers_to_transform))


def realised_rank(adapted: PeftModel) -> int:
    """The rank every lora_A has.

    Raises:
        ValueError: ranks differ between modules.
    """
    ranks = {p.shape[0] for name, p in parameters(adapted).items() if "lora_A" in name}
    if len(ranks) != 1:
        raise ValueError(f"ranks differ between modules: {sorted(ranks)}")
    return ranks.pop()
