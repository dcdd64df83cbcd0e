"""A record as JSON: the document that lorasize writes and reads, safe to print in a build log."""

from __future__ import annotations

import os

from pydantic import BaseModel

from lorasize.records import to_json as record_json


def to_json(record: BaseModel) -> str:
    """The record's one JSON document; in GitHub Actions written so that no corpus text in it reads as a command."""
    text = record_json(record)
    return text.replace("##[", "#\\u0023[") if "GITHUB_ACTIONS" in os.environ else text
