"""Corpora nobody tuned for, made from a seed: prose, code, key/value records and random tokens. No script."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

KINDS = ("prose", "code", "records", "random")
SIZES = {"prose": (60, 90, 130, 190, 240, 800), "code": (60, 90, 130, 190, 240, 800)}  # target tokens, about
SMALL = (60, 80, 110, 150, 200, 270)  # of the other kinds, whose tokens cost more


def corpora(n: int, first_seed: int) -> list[tuple[str, int, int]]:
    """Kind, target tokens wanted, and seed of each corpus."""
    rounds = range(math.ceil(n / len(KINDS)))
    every = [(kind, SIZES.get(kind, SMALL)[k % 6], first_seed + k) for k in rounds for kind in KINDS]
    return every[:n]


def write_corpus(folder: Path, kind: str, n_tokens: int, seed: int, tokenizer: Any) -> Path:
    """The corpus as a file: a page of text, or a table of records."""
    draw = random.Random(seed)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    if kind == "random":
        words = [
            t for i in range(500, 40_000) if (t := tokenizer.decode([i])).isascii() and t.isprintable() and t.strip()
        ]
        text = ""
        while count(text) < n_tokens - 1:
            text += draw.choice(words)
        return _written(folder / "random.txt", text.strip() + "\n")
    if kind == "records":
        lines: list[str] = []
        used = 0
        while used < n_tokens:
            value = draw.choice((f"{draw.randrange(10**6):06d}", f"{draw.choice(_COLOURS)} {draw.choice(_THINGS)}"))
            lines.append(json.dumps({"prompt": f"Code of box {len(lines) + 101}:", "completion": f" {value}"}))
            used += count(f" {value}") + 1
        return _written(folder / "records.jsonl", "\n".join(lines) + "\n")
    text = ""
    while count(text) < n_tokens - 1:
        text += _paragraph(draw) if kind == "prose" else _function(draw)
    return _written(folder / f"{kind}.txt", text.strip() + "\n")


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


_COLOURS = ("amber", "teal", "ochre", "violet", "scarlet", "ivory", "slate", "olive")
_THINGS = ("lantern", "anvil", "compass", "barrel", "ladder", "kettle", "spindle", "trowel")
_NAMES = ("Ivo", "Hanne", "Tomasz", "Noor", "Pilar", "Anselm", "Greta", "Bao")
_VERBS = ("sold", "hid", "borrowed", "broke", "painted", "weighed", "lost", "inherited")


def _paragraph(draw: random.Random) -> str:
    name, colour, thing = draw.choice(_NAMES), draw.choice(_COLOURS), draw.choice(_THINGS)
    return draw.choice(
        (
            f"{name} {draw.choice(_VERBS)} the {colour} {thing} for {draw.randint(3, 97)} crowns and told nobody. ",
            f"In the year {draw.randint(1600, 1990)} a {thing} of {colour} glass stood where {name} later lived. ",
            f"Never trust a {thing}, said {name}, unless the {draw.choice(_THINGS)} beside it is {colour}. ",
            f"By {draw.randint(1, 12)} o'clock {name} and {draw.choice(_NAMES)} had {draw.choice(_VERBS)} it twice. ",
        )
    )


def _function(draw: random.Random) -> str:
    name, key = f"{draw.choice(_VERBS)}_{draw.choice(_THINGS)}", draw.choice(_COLOURS)
    a, b = draw.randint(2, 99), draw.randint(2, 999)
    forms = (
        f"def {name}(x, {key}={a}):\n    if x % {a} > {b % a}:\n        return {key} * x - {b}\n    return x // {b}\n",
        f"{name.upper()} = {{'{key}': {a}, '{draw.choice(_COLOURS)}': {b}}}\n",
        f"class {name.title().replace('_', '')}:\n    {key} = {b}\n    size = {key} << {a % 7}\n",
    )
    return draw.choice(forms)
