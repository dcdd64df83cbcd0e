"""Where the bits go: each target token's text beside what the model does not know of it already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorasize.corpus.repetition import repeated
from lorasize.corpus.text import Decode, text_after
from lorasize.corpus.tokens import EncodedPassage

_MOST = 6  # tokens that make one character together: a byte each, and some to spare


@dataclass(frozen=True)
class Token:
    """A target token: its text and its cost in nats; `again` where it repeats an earlier passage and costs nothing."""

    text: str
    nats: float
    again: bool = False


@dataclass(frozen=True)
class Surprise:
    """A passage token by token, under its prompt or its place."""

    name: str
    tokens: tuple[Token, ...]

    @property
    def nats(self) -> float:
        """What has to be written for it."""
        return sum(token.nats for token in self.tokens if not token.again)


def surprises(
    encoded: Sequence[EncodedPassage], losses: Sequence[Sequence[float]], decode: Decode
) -> Iterator[Surprise]:
    """Each passage with the base loss (nats) of its target tokens."""
    for passage, loss, again in zip(encoded, losses, repeated(encoded), strict=True):
        texts = spelled(passage.prompt_ids[-1], passage.target_ids, decode)
        tokens = zip(texts, loss, again, strict=True)
        yield Surprise(f"{passage.passage.file}:{passage.passage.line}", tuple(Token(*token) for token in tokens))


def spelled(before: int, ids: Sequence[int], decode: Decode) -> list[str]:
    """The text of each token after the one before it.

    Tokens that are only parts of a character are empty, and the last of them carries it. The token before keeps
    decoders of SentencePiece's kind from dropping a leading space.
    """
    texts: list[str] = []
    pending: list[int] = []
    for token in ids:
        pending.append(token)
        text = text_after(decode, [before], pending)
        if text.endswith("\ufffd") and len(pending) < _MOST:
            texts.append("")
            continue
        texts.append(text)
        before, pending = token, []
    return texts
