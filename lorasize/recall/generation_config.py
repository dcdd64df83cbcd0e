"""Plain greedy decoding, and what a base's own `generation_config.json` would do to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

SETTINGS = "generation_config.json"


# What in it makes greedy decoding give other tokens, and the value that does not.
_NEUTRAL: dict[str, int | None] = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "guidance_scale": 1, "num_beams": 1, "min_length": 0, "min_new_tokens": 0,
    "sequence_bias": None, "bad_words_ids": None, "suppress_tokens": None, "begin_suppress_tokens": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "exponential_decay_length_penalty": None,
    "stop_strings": None,
}  # fmt: skip


def clean_generation_config(n_tokens: int, pad_token_id: int) -> GenerationConfig:
    """Plain greedy decoding of exactly `n_tokens` tokens: no sampling, no penalty, no early stop."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,
        repetition_penalty=1.0,
        pad_token_id=pad_token_id,
        eos_token_id=None,
        bos_token_id=None,
    )


@contextmanager
def put_aside(model: Any) -> Iterator[None]:
    """Let the model's own settings be none for the block: transformers fills what a config leaves open from them."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def generation_warnings(base: Path, wanted: Sequence[Sequence[int]], stop: int | None) -> tuple[str, ...]:
    """What the base's `generation_config.json` does to greedy decoding where it is read; here it is not.

    Args:
        base: The base model's folder.
        wanted: Ids of each passage, its stop token included.
        stop: The stop token.
    """
    path = base / SETTINGS
    if not path.is_file():
        return ()
    try:
        settings = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        return (f"{SETTINGS} of the base cannot be read ({error})",)
    swaying = {n: v for n, v in settings.items() if n in _NEUTRAL and v not in (None, _NEUTRAL[n], [], {})}
    swaying |= {n: settings[n] for n in _stopping(settings, wanted, stop)}
    named = ", ".join(f"{n} {v}" if isinstance(v, int | float) else n for n, v in swaying.items())
    what = f"{SETTINGS} of the base sets {named}: a server that reads it may decode something else"
    return (what,) if swaying else ()


def _stopping(settings: dict[str, Any], wanted: Sequence[Sequence[int]], stop: int | None) -> Iterator[str]:
    """Settings that end a passage too early, or never."""
    ends = settings.get("eos_token_id", stop)
    ends = ends if isinstance(ends, list) else [ends]
    if stop not in ends or any(token in ends for ids in wanted for token in ids[:-1]):
        yield "eos_token_id"
    most = settings.get("max_new_tokens")
    if isinstance(most, int) and any(len(ids) > most for ids in wanted):
        yield "max_new_tokens"
