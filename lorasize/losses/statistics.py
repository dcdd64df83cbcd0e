"""What a base model's linear layers read, and how much its predictions mind a change of what they write.

For each adapted matrix W two statistics over general text: C = E[x xᵀ] of its inputs, and the diagonal of G = E[g gᵀ],
where g is the gradient at its outputs of the loss of labels that are drawn from the model's own predictions. Then
½ · tr(ΔWᵀ G ΔW C) is how far a small change ΔW moves the predictions on such text: KL(base ‖ changed), nats per token.

Source: Martens & Grosse 2015 (K-FAC); with a diagonal G the bound was kept: docs/log/harm.md#a-bound-on-drift.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lorasize.artifacts.files import cache_folder, write_whole
from lorasize.errors import ModelError
from lorasize.losses.batches import Batch, make_batches
from lorasize.losses.frozen_layers import Suffix
from lorasize.losses.head import OwnLogits, checked_head
from lorasize.losses.texts import POSITIONS, texts, windows_of
from lorasize.losses.token_losses import drawn_gradient
from lorasize.models import BaseModel, decoder_layers
from lorasize.models.devices import is_out_of_memory
from lorasize.models.shapes import stack_path

TOKENS_OF_A_KIND = 512  # of general text, two windows: docs/log/harm.md#how-hard-to-pull
_BATCH = 1024  # positions at once; not tuned
_VERSION = "1"  # of what is measured, and of the general text

Follow = Callable[[int, int], None]  # batches done, batches in all


@dataclass(frozen=True)
class Statistics:
    """Of one linear layer.

    Attributes:
        inputs: C = E[x xᵀ], shape (d_in, d_in), float32.
        gradients: Diagonal of G, nats² per squared unit of output, shape (d_out,), float32.
    """

    inputs: Tensor
    gradients: Tensor


def statistics_of(
    base: BaseModel, paths: Sequence[str], more: str = "", progress: Follow = lambda done, total: None
) -> dict[str, Statistics]:
    """The statistics of these linear layers, from the cache or measured and put there.

    Args:
        base: The model; an adapter in it must be put aside.
        paths: Names of the linear layers inside the model.
        more: Text of the user's that counts beside the general text.
        progress: Told of the batches that were run and of all there are, where any must be.
    """
    place = _place(base, more)
    known = _read(place)
    missing = [path for path in paths if path not in known]
    if missing:
        known |= _measured(base, missing, more, progress)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, no more
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(save(_tensors(known)), place)
    return {path: known[path] for path in paths}


def taken_over(base: BaseModel, more: str = "") -> tuple[str, int]:
    """The digest of the text that the statistics are over, with `more` of the user's beside it, and its tokens."""
    several = _texts(more)
    n = sum(len(window.target_ids) for text in several for window in windows_of(base, text, TOKENS_OF_A_KIND))
    return hashlib.sha256("\0".join(several).encode()).hexdigest(), n


def _texts(more: str) -> list[str]:
    return [*texts("general").values(), *[more] * bool(more)]


def _place(base: BaseModel, more: str) -> Path:
    key = f"{base.fingerprint.digest} {base.dtype} {base.quantization} {_VERSION} {TOKENS_OF_A_KIND} {more}"
    return cache_folder() / "statistics" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _tensors(known: Mapping[str, Statistics]) -> dict[str, Tensor]:
    inputs = {f"inputs {path}": one.inputs for path, one in known.items()}
    return inputs | {f"gradients {path}": one.gradients for path, one in known.items()}


def _read(place: Path) -> dict[str, Statistics]:
    """What the cache holds; nothing where there is none, or it is damaged."""
    try:
        tensors = load_file(place)
    except (OSError, SafetensorError):
        return {}
    paths = [name.removeprefix("inputs ") for name in tensors if name.startswith("inputs ")]
    return {path: Statistics(tensors[f"inputs {path}"], tensors[f"gradients {path}"]) for path in paths}


def _measured(base: BaseModel, paths: Sequence[str], more: str, progress: Follow) -> dict[str, Statistics]:
    """One forward and backward pass over the general text, a window at a time where memory does not suffice for more.

    Raises:
        ModelError: it does not suffice for one.
    """
    for positions in (_BATCH, POSITIONS):
        try:
            return _measured_in(base, paths, more, positions, progress)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    raise ModelError(
        f"out of memory on {POSITIONS} positions of general text, which a bound on drift needs once: take a device "
        "with more memory, smaller weights, or no bound"
    )


def _measured_in(
    base: BaseModel, paths: Sequence[str], more: str, positions: int, progress: Follow
) -> dict[str, Statistics]:
    """The same in batches of so many positions."""
    rows = [window for text in _texts(more) for window in windows_of(base, text, TOKENS_OF_A_KIND)]
    few = torch.tensor([rows[0].target_ids[:16]], device=base.device)
    head = checked_head(base.model, few)
    own = isinstance(head, OwnLogits)
    batches = make_batches(base.model, rows, None, min(positions, head.chunk) if own else positions, base.device)
    sums, draw = _Sums(base.model, paths), torch.Generator(base.device).manual_seed(0)
    whole = Suffix(base.model, None, logits=own)
    with sums.watching():
        for done, batch in enumerate(batches):
            progress(done, len(batches))
            hidden = whole.run(batch.ids, None)[batch.rows, batch.columns]
            sums.add(batch, hidden, drawn_gradient(head, hidden.detach(), draw))
    return sums.means()


class _Sums:
    """Σ x xᵀ and Σ g² of linear layers, batch by batch."""

    def __init__(self, model: nn.Module, paths: Sequence[str]) -> None:
        self._modules = {path: model.get_submodule(path) for path in paths}
        stack = stack_path(model)
        first = min(int(path.removeprefix(f"{stack}.").split(".")[0]) for path in paths)
        self._entry = decoder_layers(model)[first]
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._n = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the layers read and write, with a graph from the first of them on, while this is open."""
        with ExitStack() as stack:
            stack.callback(self._entry.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
            for path, module in self._modules.items():
                stack.callback(module.register_forward_hook(self._keeper(path)).remove)
            with torch.enable_grad():
                yield

    def add(self, batch: Batch, hidden: Tensor, gradient: Tensor) -> None:
        """Count what was seen of the batch whose final states are `hidden`, with this gradient on them."""
        outputs = [written for _, written in self._seen.values()]
        found = torch.autograd.grad(hidden, outputs, gradient.to(hidden.dtype), allow_unused=True)
        real = _real(batch)
        for (path, (read, written)), g in zip(self._seen.items(), found, strict=True):
            x = _rows(read, real).detach().float()
            squares = _rows(torch.zeros_like(written) if g is None else g, real).float().square().sum(dim=0)
            before = self._sums.get(path)
            self._sums[path] = (
                x.T @ x if before is None else before[0].addmm_(x.T, x),
                squares if before is None else before[1].add_(squares),
            )
        self._n += int(real.sum())
        self._seen.clear()

    def means(self) -> dict[str, Statistics]:
        """Of all that was counted, on the host."""
        return {path: Statistics((c / self._n).cpu(), (g / self._n).cpu()) for path, (c, g) in self._sums.items()}

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (args[0].detach().requires_grad_(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}

    def _keeper(self, path: str) -> Callable[..., None]:
        def keep(_: nn.Module, args: tuple[Any, ...], written: Tensor) -> None:
            self._seen[path] = (args[0], written)

        return keep


def _rows(seen: Tensor, real: Tensor) -> Tensor:
    """What was seen at these positions, shape (position, width). Some models lay out their passages end to end."""
    flat = seen.reshape(-1, seen.shape[-1])
    return flat[real.flatten()] if len(flat) == real.numel() else flat


def _real(batch: Batch) -> Tensor:
    """Which positions are no padding, shape (passage, position). The first counts too: all others attend to it."""
    last = batch.columns.new_zeros(len(batch.ids)).scatter_reduce(0, batch.rows, batch.columns, "amax")
    return torch.arange(batch.ids.shape[1], device=batch.ids.device)[None] <= last[:, None]
