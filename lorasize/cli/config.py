"""Configuration files: `[tool.lorasize]` in pyproject.toml and, above it, lorasize.toml, both in the current folder.

What they say becomes click's defaults, so that an option on the command line or in the environment wins over it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lorasize.cli.nearest import near

_STRING, _WHOLE, _NUMBER, _AMOUNT = (str,), (int,), (int, float), (str, int, float)
KEYS: dict[str, tuple[type, ...]] = {
    "model": _STRING, "revision": _STRING, "device": _STRING, "dtype": _STRING, "attn": _STRING, "seed": _WHOLE,
    "confidence": _NUMBER, "minimize": _STRING, "serve": _STRING, "preset": _STRING, "passage_tokens": _WHOLE,
    "threshold": _NUMBER, "margin": _NUMBER, "secrets": _STRING, "quantize": _STRING, "device_map": _STRING,
}  # fmt: skip
BUDGET_KEYS: dict[str, tuple[type, ...]] = {
    "rank": _WHOLE, "parameters": _WHOLE, "bytes": _AMOUNT, "seconds": _AMOUNT, "memory": _AMOUNT,
    "drift": _AMOUNT,
}  # fmt: skip

_MAX_BYTES = 10_000_000  # of a file
_LONGEST = 500  # characters of a value

BUDGET_DETAILS: dict[str, tuple[type, ...]] = {"level": _STRING, "against": _STRING}


@dataclass(frozen=True)
class Place:
    """Where options are set: by what name messages call it, in which file, and to what."""

    name: str
    file: Path
    options: Mapping[str, Any]


def read_config(folder: Path) -> dict[str, Any]:
    """Option names and values from the folder's configuration files; empty when there are none.

    Raises:
        click.UsageError: a file is not TOML, or holds an unknown key or a value of the wrong kind.
    """
    options: dict[str, Any] = {}
    for place in read_places(folder):
        for name, value in place.options.items():
            options[name] = [*options.get(name, ()), *value] if isinstance(value, list) else value
    return options


def read_places(folder: Path) -> tuple[Place, Place]:
    """The two places, the weaker first; a file that is not there sets nothing.

    Raises:
        click.UsageError: as `read_config`.
    """
    project, own = folder / "pyproject.toml", folder / "lorasize.toml"
    tool = _load(project).get("tool", {})
    section = tool.get("lorasize", {}) if isinstance(tool, dict) else {}
    name = f"{project.name} [tool.lorasize]"
    return Place(name, project, _options(section, name)), Place(own.name, own, _options(_load(own), own.name))


def setter(places: Iterable[Place], option: str, entry: str = "") -> str:
    """The name of the place whose value of this option counts; of a list, of its last entry that begins so."""
    named = [
        place.name
        for place in places
        if option in place.options and (not entry or any(e.startswith(entry) for e in place.options[option]))
    ]
    return named[-1] if named else ""


def variable(context: click.Context, option: str) -> str:
    """The environment variable that sets this option of a command."""
    return f"{context.auto_envvar_prefix}_{option.upper()}"


def _load(path: Path) -> dict[str, Any]:
    from lorasize.artifacts.files import read_text

    try:
        return tomllib.loads(read_text(path, _MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise click.UsageError(f"{path.name}: cannot be read as TOML: {' '.join(str(error).split()):.300}") from None


def _options(section: Any, place: str) -> dict[str, Any]:
    if not isinstance(section, Mapping):
        raise click.UsageError(f"{place}: must be a table")
    budget = section.get("budget", {})
    if not isinstance(budget, Mapping):
        raise click.UsageError(f"{place}: budget must be a table")
    plain = {key: value for key, value in section.items() if key != "budget"}
    _check(plain, KEYS, place)
    return plain | _budgets(budget, f"{place} budget")


def _budgets(section: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Budgets as options: `bytes = "4 MB"`, or `bytes = { limit = "4 MB", level = "warn", against = "upper" }`."""
    options: dict[str, Any] = {}
    details = {key: value for key, value in section.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in section.items() if key not in details or key not in BUDGET_KEYS}
    _check(plain, BUDGET_KEYS, place)
    for key, value in section.items():
        detail = details.get(key, {"limit": value})
        _check(detail, {**BUDGET_DETAILS, "limit": BUDGET_KEYS[key]}, f"{place} {key}")
        if "limit" in detail:
            options[f"max_{key}"] = detail["limit"]
        for name, option in (("level", "levels"), ("against", "against")):
            if name in detail:
                options.setdefault(option, []).append(f"{key}={detail[name]}")
    return options


def _check(section: Mapping[str, Any], known: Mapping[str, tuple[type, ...]], place: str) -> None:
    for key, value in section.items():
        if key not in known:
            meant = near(key, known) or f"; known are {', '.join(known)}"
            raise click.UsageError(f"{place}: unknown key {key!r:.80}{meant}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            wanted = " or ".join({str: "text", int: "a whole number", float: "a number"}[kind] for kind in known[key])
            raise click.UsageError(f"{place}: {key} is {_display(value)}, not {wanted}")
        if isinstance(value, int | float) and not -(2**63) <= value < 2**63:  # TOML's own range; NaN is in none
            raise click.UsageError(f"{place}: {key} is {_display(value)}, which is out of range")
        if isinstance(value, str) and len(value) > _LONGEST:
            raise click.UsageError(f"{place}: {key} is text of {len(value)} characters, more than {_LONGEST}")


def _display(value: Any) -> str:
    """A value as a message shows it; by its kind where it may be of any length, or a number too long to write."""
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    return f"{value!r:.80}" if isinstance(value, str | int | float) else f"a {type(value).__name__}"
