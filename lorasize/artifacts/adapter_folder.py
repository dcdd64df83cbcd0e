"""The adapter folder: who its passages are, the sums that bind its files, and the base model it belongs to.

Texts are named by digests here; nothing of the corpus but prompts is written. `adapters` saves the weights, `recall`
judges what the folder recalls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorasize.artifacts.files import file_sha256, pointer_note, read_text, reason
from lorasize.errors import ModelError
from lorasize.records import Memorization, PassageAddress

SUMS = "SHA256SUMS"
PASSAGES = "passages.jsonl"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_MAX_BYTES = 10**9


def write_addresses(addresses: Sequence[PassageAddress], folder: Path) -> None:
    """Write `passages.jsonl`."""
    lines = [address.model_dump_json(exclude_none=True) + "\n" for address in addresses]
    (folder / PASSAGES).write_text("".join(lines), encoding="utf-8")


def read_addresses(folder: Path) -> list[PassageAddress]:
    """The passages an adapter folder claims to hold.

    Raises:
        ModelError: the file is missing or damaged.
    """
    found = []
    lines = _read_text(folder / PASSAGES).removesuffix("\n").split("\n")  # a prompt may hold other line separators
    for number, line in enumerate(lines, 1):
        try:
            found.append(PassageAddress.model_validate_json(line))
        except ValidationError as error:
            raise ModelError(f"{folder / PASSAGES}:{number}: damaged ({error.errors()[0]['msg']})") from error
    return found


def read_record(folder: Path) -> Memorization:
    """The folder's `lorasize.json`.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        return Memorization.model_validate_json(_read_text(folder / RECORD))
    except ValidationError as error:
        raise ModelError(f"{folder / RECORD}: damaged ({error.errors()[0]['msg']})") from error


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file of PEFT or transformers, such as `adapter_config.json`.

    Raises:
        ModelError: they cannot be read.
    """
    try:
        return dict(json.loads(read_text(path)))
    except (OSError, ValueError, TypeError) as error:
        what = str(error) if isinstance(error, TypeError) else reason(error)
        raise ModelError(f"{path}: not readable as JSON settings ({what})") from error
    except RecursionError:
        raise ModelError(f"{path}: not readable as JSON settings (nested too deeply)") from None


def _read_text(path: Path) -> str:
    try:
        return read_text(path, _MAX_BYTES)
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; is this an adapter folder written by lorasize?") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({reason(error)})") from error


def write_sums(folder: Path) -> None:
    """Write `SHA256SUMS` over every other file of the folder, in the format of `sha256sum`."""
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != SUMS)
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def changed_files(folder: Path) -> tuple[str, ...]:
    """Files that are not the ones the verdict was given on.

    Raises:
        ModelError: a file is missing, or the list of sums is damaged.
    """
    listed = {}
    for line in _read_text(folder / SUMS).splitlines():
        digest, _, name = line.partition("  ")
        if len(digest) != 64 or not name.isprintable() or not 0 < len(name.encode()) < 256 or "/" in name:
            raise ModelError(f"{folder / SUMS}: damaged")
        listed[name] = digest
    absent = [name for name in (WEIGHTS, CONFIG, PASSAGES, RECORD) if name not in listed]
    if absent:
        raise ModelError(f"{folder / SUMS}: damaged, {absent[0]} is not listed")
    gone = [name for name in listed if not (folder / name).is_file()]
    if gone:
        raise ModelError(f"{folder / gone[0]}: missing")
    return tuple(name for name, digest in listed.items() if file_sha256(folder / name) != digest)


def check_weights(folder: Path) -> None:
    """Refuse weights that cannot be read, before a model is loaded for them.

    Raises:
        ModelError: they are missing, truncated, or hold NaN or an infinity.
    """
    from safetensors import SafetensorError, safe_open  # here: `check` and `show` run without it

    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder / WEIGHTS}: missing, or not a regular file")
    if pointer := pointer_note(folder / WEIGHTS):
        raise ModelError(f"{folder / WEIGHTS}: {pointer}")
    try:
        with safe_open(str(folder / WEIGHTS), framework="pt") as weights:
            sound = all(weights.get_tensor(name).isfinite().all() for name in weights.keys())  # noqa: SIM118
    except (SafetensorError, OSError, MemoryError, RuntimeError) as error:  # the last of a dtype without that test
        raise ModelError(f"{folder / WEIGHTS}: truncated or damaged ({' '.join(str(error).split()):.300})") from error
    if not sound:
        raise ModelError(f"{folder / WEIGHTS}: truncated or damaged (it holds NaN or an infinity)")


RECORD = "lorasize.json"  # in every adapter folder that lorasize wrote


NAMES = {RECORD, "SHA256SUMS", "README.md", "adapter_config.json", "adapter_model.safetensors"}  # and all that is


NAMES |= {"events.jsonl", "passages.jsonl"}
