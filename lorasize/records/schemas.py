"""The JSON schema of every artifact: `python -m lorasize.records.schemas docs/schemas` writes the published ones.

A schema says what a reader may rely on. Fields may be added within a major version, so other fields than those named
are allowed there, while lorasize itself refuses what it does not know.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lorasize.records.capacity import Capacity
from lorasize.records.check import Check
from lorasize.records.config import Config
from lorasize.records.fit import Calibration
from lorasize.records.plan import Plan
from lorasize.records.run import Memorization, RecallReport

ARTIFACTS: tuple[type[BaseModel], ...] = (Calibration, Plan, Memorization, RecallReport, Check, Config, Capacity)


def schemas() -> dict[str, str]:
    """File name (`plan.1.json`) and text of each artifact's schema."""
    return {_file_name(artifact): _text(artifact) for artifact in ARTIFACTS}


def _file_name(artifact: type[BaseModel]) -> str:
    name, _, major = str(artifact.model_fields["schema_"].default).partition("/")
    return f"{name.removeprefix('lorasize.')}.{major}.json"


def _text(artifact: type[BaseModel]) -> str:
    found = artifact.model_json_schema(by_alias=True, mode="serialization")
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(draft | _open(found), indent=2, ensure_ascii=False) + "\n"


def _open(part: Any) -> Any:
    """The schema without `additionalProperties: false`."""
    if isinstance(part, list):
        return [_open(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {key: _open(value) for key, value in part.items() if (key, value) != ("additionalProperties", False)}


def main() -> None:
    """Write every schema into the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
