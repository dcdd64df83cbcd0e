"""Credentials and personal data in a corpus: of what kind, in which file and line. The secret itself is never kept.

An adapter makes its corpus extractable; whoever plans one should know beforehand what will be. Credentials are found by
the rules of kingfisher, in this process and without a network; personal data by the four shapes below. Both judge by
looks alone: a serial number may pass for a phone number, and a name or an address is never seen.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lorasize.artifacts.files import cache_folder
from lorasize.errors import CorpusError, LorasizeError
from lorasize.records import Finding, Level, Passage

if TYPE_CHECKING:
    from kingfisher_sdk import Scanner

KEPT = 10  # findings of each kind in a plan
PERSONAL = {"iban": "IBANs", "card": "card numbers", "phone": "phone numbers", "email": "e-mail addresses"}
UNSEEN = "Credentials were not looked for: kingfisher-secret-scanner is not installed."


def scan(passages: Iterable[Passage], level: Level) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """The first `KEPT` findings of each kind, and a sentence about each kind.

    Raises:
        CorpusError: The level is "error" and something was found.
        LorasizeError: The level is "error" and credentials cannot be looked for.
    """
    if level == "off":
        return (), ()
    if level == "error" and scanner() is None:
        raise LorasizeError(f"{UNSEEN} Install it: pip install kingfisher-secret-scanner")
    kinds: dict[str, list[Finding]] = {}
    for finding in find_all(passages):
        kinds.setdefault(finding.kind, []).append(finding)
    if level == "error" and kinds:
        raise _refusal(kinds)
    notes = [_sentence(kind, findings) for kind, findings in kinds.items()]
    first = tuple(finding for findings in kinds.values() for finding in findings[:KEPT])
    return first, (*notes, *[UNSEEN] * (scanner() is None))


def named(kind: str) -> str:
    """What findings of this kind look like, in the plural."""
    return PERSONAL.get(kind, f"credentials ({kind})")


def _sentence(kind: str, findings: list[Finding]) -> str:
    place = f"{findings[0].file}:{findings[0].line}"
    if len(findings) == 1:
        return f"1 line seems to hold {named(kind)}, at {place}; the adapter will make it extractable."
    lines = f"{len(findings):,} lines seem to hold {named(kind)}, the first at {place}"
    return f"{lines}; the adapter will make them extractable."


def _refusal(kinds: dict[str, list[Finding]]) -> CorpusError:
    first = next(iter(kinds.values()))[0]
    counts = ", ".join(f"{named(kind)} on {len(findings):,}" for kind, findings in kinds.items())
    message = f"seems to hold {named(first.kind)} (lines in all: {counts}); an adapter would make them extractable: "
    return CorpusError(message + "take them out, or only warn of secrets", file=first.file, line=first.line)


def _said(passage: Passage) -> Iterator[str]:
    """All that a passage gives to the model or asks of it."""
    yield from (said for _, said in passage.messages)
    yield passage.chat
    yield passage.prompt
    yield from (said for _, said in passage.columns)
    yield passage.target


def find_all(passages: Iterable[Passage]) -> tuple[Finding, ...]:
    """Every line of prompts and targets that looks like a secret, once for each kind, in the order of the corpus.

    A record counts as the line at which it starts.
    """
    findings: dict[Finding, None] = {}
    for passage in passages:
        text = "\n".join(filter(None, _said(passage)))
        for kind, line in (*_credentials(text), *personal(text)):
            number = passage.line + (line if passage.start is not None else 0)
            findings[Finding(kind=kind, file=passage.file, line=number)] = None
    return tuple(findings)


def _credentials(text: str) -> Iterator[tuple[str, int]]:
    """Pairs (kind, lines before it)."""
    rules = scanner()
    for finding in rules.scan(text) if rules is not None else ():
        if finding.visible:
            yield re.split(r"[./]", finding.rule_id)[-1], finding.location["line"] - 1


@functools.cache
def scanner() -> Scanner | None:
    """Kingfisher's scanner, which forgets what it finds; None where it is not installed.

    Its rules take seconds to compile, so that they are kept beside the converted models.
    """
    try:
        from kingfisher_sdk import Rules, Scanner
    except ImportError:
        return None
    return Scanner(Rules(cache_dir=cache_folder() / "secret-rules"), redact=True)


def personal(text: str) -> Iterator[tuple[str, int]]:
    """Pairs (kind, lines before it). A secret is blanked out, so that nothing counts as two kinds."""
    breaks = [match.start() for match in re.finditer("\n", text)]
    for kind, (shape, holds) in _SHAPES.items():
        text, places = _blanked(text, shape, holds)
        yield from ((kind, bisect_left(breaks, place)) for place in places)


def _blanked(text: str, shape: re.Pattern[str], holds: Callable[[str], bool]) -> tuple[str, list[int]]:
    """The text with what has this shape, and holds, turned into spaces; and where that was."""
    places: list[int] = []

    def blank(match: re.Match[str]) -> str:
        if not holds(match[0]):
            return match[0]
        places.append(match.start())
        return " " * len(match[0])

    return shape.sub(blank, text), places


def _is_iban(text: str) -> bool:
    """Whether the check digits are right (ISO 7064, MOD 97-10), with or without the words after it."""
    groups = text.split(" ")
    return any(_has_right_check_digits("".join(groups[:n])) for n in range(1, len(groups) + 1))


def _has_right_check_digits(iban: str) -> bool:
    return len(iban) >= 15 and int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1


def _is_card(text: str) -> bool:
    """Whether the last digit is right (Luhn)."""
    digits = [int(c) for c in text if c.isdigit()]
    return sum(d if k % 2 == 0 else sum(divmod(2 * d, 10)) for k, d in enumerate(reversed(digits))) % 10 == 0


# Every repetition has an upper end, and no shape begins in the middle of a word: time is linear in the text.
_BEFORE, _AFTER = r"(?<![\w+/=#$€@`-])(?<![0-9]\.)", r"(?![\w/@-]|\.[0-9])"
_PHONES = (
    r"\+[1-9](?:[ ()/-]{0,2}[0-9]){7,14}",  # with a country's code
    r"(?:\+?1[-. ])?(?:\([0-9]{3}\) ?|[0-9]{3}[-. ])[0-9]{3}[-. ][0-9]{4}",  # as North America groups ten digits
    r"(?=(?:[()/ -]{0,2}[0-9]){10,13}(?![0-9]))\(?0[1-9][0-9]{0,3}\)?(?:[ /-][0-9]{2,8}){1,4}",  # with a trunk's 0
    r"(?!0123456789)0[1-9][0-9]{8,9}|[2-9][0-9]{9}",  # bare; ten digits that begin with 1 are a time in seconds
)
_CARDS = r"3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5}|[2-6][0-9]{3}(?:[ -]?[0-9]{4}){3}"
_SHAPES: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "iban": (re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"), _is_iban),
    "card": (re.compile(f"{_BEFORE}(?:{_CARDS}){_AFTER}"), _is_card),
    "phone": (re.compile(f"{_BEFORE}(?:{'|'.join(_PHONES)}){_AFTER}"), bool),
    "email": (re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])"), bool),
}
