"""Records read from JSON files: bounded, of the schema asked for, with nothing unknown in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from lorasize.artifacts.files import read_text, reason
from lorasize.errors import LorasizeError

Record = TypeVar("Record", bound=BaseModel)


def read_record(path: Path, kind: type[Record], name: str, error: Callable[[str], LorasizeError]) -> Record:
    """The record in a JSON file of the schema `name`/1.

    Raises:
        LorasizeError: `error`'s kind: missing, over 50 MB, not JSON, of another schema, or with values that are none.
    """
    try:
        text = read_text(path)
        _check_schema(json.loads(text, parse_constant=_no_constant), name)
        return kind.model_validate_json(text)
    except ValidationError as problem:
        raise error(f"{path}: not a valid {name}: {_first(problem)}") from None
    except json.JSONDecodeError as problem:
        raise error(f"{path}: not JSON (line {problem.lineno}: {problem.msg})") from None
    except RecursionError:
        raise error(f"{path}: not a {name}: nested too deeply") from None
    except (OSError, ValueError) as problem:  # a UnicodeDecodeError is a ValueError
        raise error(f"{path}: {reason(problem)}") from None


def _no_constant(constant: str) -> NoReturn:
    raise ValueError(f"holds {constant}, which is no number")


def _check_schema(data: Any, name: str) -> None:
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, str) or not schema.startswith(f"{name}/"):
        raise ValueError(f"not a {name}: its schema is {schema!r:.80}")
    if schema != f"{name}/1":
        advice = "update lorasize or make the file again"
        raise ValueError(f"schema {schema!r:.80}, while this version reads {name}/1: {advice}")


def _first(problem: ValidationError) -> str:
    errors = problem.errors(include_url=False, include_input=False, include_context=False)
    place = ".".join(str(part) for part in errors[0]["loc"]) or "top level"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{' '.join(place.split()):.200}: {errors[0]['msg']}{more}"
