"""Records as JSON, and their digests."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel


def to_json(record: BaseModel) -> str:
    """The record as indented JSON with a final newline, contract names (`schema`, `from`) used."""
    return record.model_dump_json(by_alias=True, indent=2) + "\n"


def digest(record: BaseModel) -> str:
    """sha256 (hex) of the record's canonical JSON."""
    canonical = json.dumps(record.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
