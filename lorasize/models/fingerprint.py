"""Digests of a model folder: weights, config and tokenizer; and whether a folder is the one expected."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorasize.artifacts.files import file_sha256
from lorasize.errors import ModelError
from lorasize.models.conversion import reason
from lorasize.records import ModelFingerprint

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_VOLATILE_CONFIG = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache", "_commit_hash")
# How and where a tokenizer was loaded, which transformers writes too: read offline, the same one differs.
_VOLATILE_TOKENIZER = (
    "transformers_version",
    "name_or_path",
    "is_local",
    "local_files_only",
    "cache_dir",
    "revision",
    "_commit_hash",
)


def fingerprint(folder: Path) -> ModelFingerprint:
    """Digests of weights, config and tokenizer files; keys that do not change the output are left out."""
    weights = hashlib.sha256()
    with ThreadPoolExecutor() as threads:  # a large model comes in several files
        for one in threads.map(file_sha256, sorted(folder.glob("*.safetensors"))):
            weights.update(one.encode())
    tokenizer = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (file := folder / name).is_file():
            volatile = name == "tokenizer_config.json"
            digest = _settings_sha256(file, _VOLATILE_TOKENIZER) if volatile else file_sha256(file)
            tokenizer.update(f"{name}:{digest};".encode())
    return ModelFingerprint(
        weights=weights.hexdigest(),
        config=_settings_sha256(folder / "config.json", _VOLATILE_CONFIG),
        tokenizer=tokenizer.hexdigest(),
    )


def check_base(expected: ModelFingerprint, seen: ModelFingerprint, ref: str) -> None:
    """Refuse a base model that is not the one the adapter was trained on.

    Raises:
        ModelError: naming what differs.
    """
    parts = {"weights": "weights", "config": "config", "tokenizer": "tokenizer or chat template"}
    different = [name for part, name in parts.items() if getattr(seen, part) != getattr(expected, part)]
    if different:
        what = ", ".join(different)
        raise ModelError(f"{ref} is another base model than the adapter was trained on: its {what} differ")


def _settings_sha256(path: Path, volatile: tuple[str, ...]) -> str:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in values.items() if key not in volatile}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON settings ({reason(error)})") from error
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
