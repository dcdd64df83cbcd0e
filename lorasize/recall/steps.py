"""Greedy decoding on a CUDA card with its step recorded, as servers do: one launch a token instead of a thousand.

The step is the model's own forward pass with a cache of fixed size. Where the model has no such cache, or what is
recorded does not give what `generate` does, `generate` decodes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

_TRIED = 12  # tokens decoded both ways before recorded steps are trusted; not tuned
_ALIKE = 0.2  # of ln p, which a card shifted by 0.14: docs/log/speed.md#the-proof-on-a-card-negative

Greedy = Callable[[Sequence[int], Sequence[int], int], tuple[list[int], Tensor]]


class Steps:
    """One prompt at a time, each step a replay."""

    def __init__(self, model: Any, longest: int, device: torch.device) -> None:
        """Nothing is recorded yet.

        Args:
            model: The causal language model, with its adapter.
            longest: Positions of the longest prompt with its target.
            device: Where it is.

        Raises:
            ValueError: the model has no cache of fixed size, or one that is more than keys and values by position.
        """
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._cache = StaticCache(config=plain.config, max_cache_len=longest)
        if any(type(layer) is not StaticLayer for layer in self._cache.layers):
            raise ValueError("a window or a state that runs on has no fixed size")
        # As transformers calls it: until 5.23 otherwise.
        self._named = "cache" if "cache" in inspect.signature(plain.forward).parameters else "past_key_values"
        self._model = model
        self._token = torch.zeros((1, 1), dtype=torch.long, device=device)
        self._wanted = torch.zeros(1, dtype=torch.long, device=device)
        self._log_p = torch.zeros(2, device=device)  # of the token that is wanted, and of the likeliest
        self._play: Callable[[], None] = self._step

    @torch.no_grad()
    def record(self, prompt: Sequence[int]) -> None:
        """Record the step, after a prompt of any kind."""
        self._read(prompt, 0)
        stream, now = torch.cuda.Stream(), torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            stream.wait_stream(now)
            with torch.cuda.stream(stream):
                self._step()
            now.wait_stream(stream)
            with torch.cuda.graph(graph):
                self._step()
        finally:
            torch.cuda.set_stream(now)  # a recording that breaks off leaves its own behind
            torch.cuda.synchronize()  # what still runs reads what is freed when this fails
        self._play = graph.replay

    @torch.no_grad()
    def decode(self, prompt: Sequence[int], wanted: Sequence[int], n_tokens: int) -> tuple[list[int], Tensor]:
        """The tokens after a prompt, and ln p of each wanted token; of the likeliest where none is wanted."""
        ids = torch.tensor(list(wanted) or [0] * n_tokens, device=self._token.device)
        place = 0 if wanted else 1
        self._read(prompt, int(ids[0]))
        tokens, log_p = [self._token[0].clone()], [self._log_p[place : place + 1].clone()]
        for k in range(1, n_tokens):
            self._wanted.copy_(ids[min(k, len(ids) - 1)][None])
            self._play()
            tokens.append(self._token[0].clone())
            log_p.append(self._log_p[place : place + 1].clone())
        return torch.cat(tokens).tolist(), torch.cat(log_p).cpu()

    def _read(self, prompt: Sequence[int], wanted: int) -> None:
        """Fill the cache with the prompt, and choose the first token."""
        self._cache.reset()
        self._wanted.fill_(wanted)
        self._choose(torch.tensor([list(prompt)], device=self._token.device))

    def _step(self) -> None:
        self._choose(self._token)

    def _choose(self, ids: Tensor) -> None:
        """The likeliest token after these, which takes the place of the one before."""
        given = {"input_ids": ids, "use_cache": True, self._named: self._cache}
        scores = torch.log_softmax(self._model(**given).logits[0, -1].float(), dim=-1)
        self._log_p.copy_(torch.cat([scores[self._wanted], scores.amax()[None]]))
        self._token.copy_(scores.argmax()[None, None])


def recorded(model: Any, longest: int, prompt: Sequence[int], device: torch.device, plainly: Greedy) -> Greedy | None:
    """Decoding by recorded steps, where it can be had and gives what decoding `plainly` gives after this prompt.

    Args:
        model: The causal language model, with its adapter.
        longest: Positions of the longest prompt with its target.
        prompt: The shortest prompt.
        device: Where the model is.
        plainly: Decodes a prompt by `generate`.
    """
    if device.type != "cuda":
        return None
    n = min(_TRIED, longest - len(prompt))
    try:
        steps = Steps(model, longest, device)
        steps.record(prompt)
        found, wanted = steps.decode(prompt, (), n), plainly(prompt, (), n)
    except Exception:  # each kind of model fails in its own way
        return None
    same = found[0] == wanted[0] and torch.allclose(found[1], wanted[1], atol=_ALIKE)
    return steps.decode if same else None
