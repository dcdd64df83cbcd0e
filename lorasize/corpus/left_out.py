"""What of a corpus is not memorised, and what was guessed: kept while reading, said afterwards, never in silence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from lorasize.corpus.tables import Record
from lorasize.errors import CorpusError

_PLACES = 3  # of turns named in a sentence


@dataclass
class LeftOut:
    """What reading came across.

    Attributes:
        strict: Whether a column that is neither used nor named is an error.
        unused: Such columns, and the place at which each first holds something.
        turns: Places and kinds of the turns that train nothing.
        said: Other sentences, each once.
    """

    strict: bool = False
    unused: dict[str, str] = field(default_factory=dict)
    turns: dict[str, list[str]] = field(default_factory=dict)
    said: dict[str, None] = field(default_factory=dict)

    def columns(self, file: str, line: int, record: Record, used: Iterable[str]) -> None:
        """Note the columns of a record that hold something and are not among the used.

        Raises:
            CorpusError: there is one, and reading is strict.
        """
        for column in [column for column in record.keys() - set(used) if not is_blank(record[column])]:
            if self.strict:
                more = "is neither used nor named; name it in the prompt template or as a field, or take it out"
                raise CorpusError(f"the column {column!r:.80} {more}", file=file, line=line)
            self.unused.setdefault(column, f"{file}:{line}")

    def silent(self, place: str, why: str) -> None:
        """Note turns at a place that train nothing."""
        self.turns.setdefault(why, []).append(place)

    def say(self, sentence: str) -> None:
        """Note a sentence, once."""
        self.said[sentence] = None

    def sentences(self) -> Iterator[str]:
        """What the user must know."""
        yield from self.said
        if self.unused:
            named = ", ".join(f"{name_of_column(column)} ({place})" for column, place in sorted(self.unused.items()))
            yield f"Columns that are neither used nor named, and so not memorised: {named}."
        for why, places in self.turns.items():
            more = f" and {len(places) - _PLACES:,} more" if len(places) > _PLACES else ""
            yield f"Turns that train nothing, {why}: {', '.join(places[:_PLACES])}{more}."


def name_of_column(column: str) -> str:
    """A column as messages call it, on one line."""
    return " ".join(f"{column:.60}".split()) or "(no name)"


def is_blank(value: object) -> bool:
    """Whether a value holds nothing, as Arrow fills what a row does not have."""
    if isinstance(value, dict):
        return all(map(is_blank, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_blank, value))
    return value is None or value == "" or isinstance(value, float) and math.isnan(value)
