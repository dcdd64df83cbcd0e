"""Any artifact from its file or folder, without a model and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from lorasize.artifacts.adapter_folder import RECORD
from lorasize.artifacts.files import read_text, reason
from lorasize.errors import LorasizeError

if TYPE_CHECKING:
    from pydantic import BaseModel


def read_artifact(path: Path) -> BaseModel:
    """The calibration, plan, memorization or recall report in a file; of an adapter folder, its `lorasize.json`.

    Raises:
        LorasizeError: nothing of that kind is there.
    """
    from lorasize.artifacts.calibrations import read_calibration
    from lorasize.artifacts.plans import read_plan
    from lorasize.records import Capacity, Check, Config, Memorization, RecallReport

    file = path / RECORD if path.is_dir() else path
    text = _text(file)
    schema = _schema(file, text)
    kind = schema.partition("/")[0]
    if kind == "lorasize.calibration":
        return read_calibration(file)
    if kind == "lorasize.plan":
        return read_plan(file)
    kinds = (Memorization, RecallReport, Check, Config, Capacity)
    known: dict[str, type[BaseModel]] = {kind.model_fields["schema_"].default: kind for kind in kinds}
    if schema not in known:
        raise LorasizeError(f"{file}: this version does not read the schema {schema!r:.80}")
    try:
        return known[schema].model_validate_json(text)
    except ValueError as error:
        raise LorasizeError(f"{file}: not a valid {kind}: {_first_line(error)}") from None


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        why = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason(error)
        raise LorasizeError(f"{path}: {why}") from None


def _schema(path: Path, text: str) -> str:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise LorasizeError(f"{path}: not JSON, so no calibration, plan or report") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str):
        raise LorasizeError(f"{path}: names no schema, so it is no calibration, plan or report of lorasize")
    return schema


def _first_line(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (" ".join(lines[1:3]) if len(lines) > 2 else lines[0])[:300]
