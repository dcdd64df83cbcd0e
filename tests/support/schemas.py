"""Documents against the published schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
from support.paths import ROOT

FOLDER = ROOT / "docs" / "schemas"


def wrong_in(document: dict[str, Any]) -> list[str]:
    """Where a document does not fit the schema it names, as published."""
    name = document["schema"].removeprefix("lorasize.").replace("/", ".")
    schema = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]
