"""Records as JSON, their digests, and files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel


def to_json(record: BaseModel) -> str:
    """The record as indented JSON with a final newline, contract names (`schema`, `from`) used."""
    return record.model_dump_json(by_alias=True, indent=2) + "\n"


def digest(record: BaseModel) -> str:
    """sha256 (hex) of the record's canonical JSON.

    Fields at their defaults are left out, so that a field added in a later version does not make a plan stale.
    """
    told = record.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    canonical = json.dumps([type(record).__name__, told], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
