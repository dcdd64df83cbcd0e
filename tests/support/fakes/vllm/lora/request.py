"""How vLLM is told of an adapter."""

from __future__ import annotations

from types import SimpleNamespace


def LoRARequest(name: str, number: int, path: str) -> SimpleNamespace:
    """An adapter by its folder."""
    assert (name, number) == ("adapter", 1)
    return SimpleNamespace(path=path)
