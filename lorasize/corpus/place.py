"""Where a record stands: its passages, its errors, and its values as text or as what a chat template is given."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from lorasize.corpus.files import REFUSED, refusal
from lorasize.corpus.tables import Written, name_of
from lorasize.errors import CorpusError
from lorasize.records import Passage, PassageKind


@dataclass(frozen=True)
class Place:
    """A file and a line."""

    file: str
    line: int

    def __str__(self) -> str:
        """The place as messages name it."""
        return f"{self.file}:{self.line}"

    def error(self, message: str) -> CorpusError:
        """An error that names this place, on one line whatever the columns are called."""
        return CorpusError(f"{' '.join(message.split()):.600}", file=self.file, line=self.line)

    def passage(
        self,
        target: str,
        prompt: str = "",
        *,
        messages: Sequence[tuple[str, str]] = (),
        chat: str = "",
        text: bool = False,
    ) -> Passage:
        """A passage from here, not yet named."""
        kind: PassageKind = "text" if text else "record"
        return Passage(
            id="", file=self.file, line=self.line, prompt=prompt, target=target, messages=tuple(messages), kind=kind,
            chat=chat,
        )  # fmt: skip

    def target(self, value: object, name: str) -> str:
        """The value as text to memorise."""
        text = self.string(value, name)
        if not text:
            raise self.error(f"{name!r} is empty, so there is nothing to memorise; fill it in or take the record out")
        return text

    def string(self, value: object, name: str) -> str:
        """The value as text; a number as its JSON text."""
        if isinstance(value, Decimal) and value.is_finite():
            return str(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                return json.dumps(value)
            raise self.error(f"{name!r} is {_NOT_FINITE[str(value)]}; fill it in or take the record out")
        if not isinstance(value, str):
            raise self.error(f"{name!r} is {name_of(value)}; it must be text or a number")
        if found := REFUSED.search(value):
            raise self.error(refusal(found[0]))
        return str(value)

    def parsed(self, value: object, name: str, kind: type[object]) -> object:
        """A list or an object for the chat template, also where a column holds its JSON text, as TRL takes it."""
        found = value
        if isinstance(value, str):
            try:
                found = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self.error(f"{name!r} is text, and not JSON: {error}") from None
        if not isinstance(found, kind):
            raise self.error(f"{name!r} is {name_of(found)}; it must be {'a list' if kind is list else 'an object'}")
        return self.plain(found)

    def plain(self, value: Any) -> Any:
        """The value as JSON gives it, numbers as numbers; without what Arrow fills in where a row has nothing."""
        if isinstance(value, Written):
            try:
                return value.number
            except ValueError as error:
                raise self.error(f"the number {value:.40} cannot be read: {error}") from None
        if isinstance(value, dict):
            return {str(key): self.plain(one) for key, one in value.items() if one is not None}
        return [self.plain(one) for one in value] if isinstance(value, list | tuple) else value

    def as_json(self, value: object) -> str:
        """The JSON text of a value, refused where it has none."""
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(f"what stands beside the messages is not JSON: {error}") from None
        if found := REFUSED.search(text):
            raise self.error(refusal(found[0]))
        return text


_NOT_FINITE = {"nan": "NaN, which tables write where a cell is empty", "inf": "infinite", "-inf": "infinite"}
