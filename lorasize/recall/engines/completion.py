"""What an engine answers in the form of OpenAI's completions, as `Decoded`: llama.cpp, vLLM and servers like them.

They agree on the form, but not on how ids are told: `token_ids` beside the text (vLLM), an `id` in each entry of
`logprobs.content` (llama.cpp), or names such as `token_id:42` in `logprobs.tokens` (vLLM, when asked).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorasize.errors import ModelError
from lorasize.records import Decoded

N_PROBS = 5  # likeliest tokens asked for at each place: the most that OpenAI's form allows
_NAMED = "token_id:"


@dataclass(frozen=True)
class _Place:
    """One decoded token: its id, ln p, and ln p of the likeliest tokens by id; what an engine does not tell is None."""

    id: int | None
    log_p: float | None
    likeliest: Mapping[int, float]


def decoded_of(answer: Any, target: Sequence[int], n_tokens: int, stop: int | None, engine: str) -> Decoded:
    """What an answer says of one passage.

    Args:
        answer: The engine's answer, as read from JSON.
        target: The ids that should come; empty where they are not at hand.
        n_tokens: How many were asked for.
        stop: The stop token, which some engines end on without telling it.
        engine: Its name, for messages.

    Raises:
        ModelError: it is a refusal, or no completion.
    """
    choice = _choice(answer, engine)
    try:
        places = _places(choice)
        text, ended = str(choice.get("text") or ""), choice.get("finish_reason") == "stop"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{engine}: its answer cannot be read ({type(error).__name__}: {error!s:.200})") from error
    ids = [place.id for place in places if place.id is not None]
    if not ids or len(ids) < len(places):
        return Decoded(ids=(), probabilities=(), attn_implementation=engine, text=text, stopped=ended)
    if ended and stop is not None and ids[-1] != stop and len(ids) < n_tokens:
        ids.append(stop)
    wanted = tuple(target) or tuple(ids)
    log_p = _known(places, wanted)
    margins = [_margin(place, token) for place, token in zip(places, wanted, strict=False)]
    whole = tuple(ids) == wanted and len(places) == len(wanted) and None not in margins
    return Decoded(
        ids=tuple(ids),
        probabilities=tuple(math.exp(min(value, 0.0)) for value in log_p),
        attn_implementation=engine,
        logit_margin=min(margin for margin in margins if margin is not None) if whole else None,
    )


def _choice(answer: Any, engine: str) -> Mapping[str, Any]:
    if isinstance(answer, Mapping) and answer.get("error"):
        error = answer["error"]
        said = error.get("message", error) if isinstance(error, Mapping) else error
        raise ModelError(f"{engine}: refused ({' '.join(str(said).split()):.300})")
    try:
        choice = answer["choices"][0]
    except (KeyError, TypeError, IndexError):
        raise ModelError(f"{engine}: its answer is no completion ({' '.join(str(answer).split()):.200})") from None
    if not isinstance(choice, Mapping):
        raise ModelError(f"{engine}: its answer is no completion ({' '.join(str(answer).split()):.200})")
    return choice


def _places(choice: Mapping[str, Any]) -> list[_Place]:
    told = choice.get("logprobs") or {}
    if told.get("content") is not None:
        return [_place(entry) for entry in told["content"]]
    ids, log_ps, tops = choice.get("token_ids"), told.get("token_logprobs"), told.get("top_logprobs")
    if ids is None:
        ids = [_id_of(token) for token in told.get("tokens") or ()]
    log_ps, tops = (list(values or ()) + [None] * (len(ids) - len(values or ())) for values in (log_ps, tops))
    return [_Place(one, _number(p), _named(top)) for one, p, top in zip(ids, log_ps, tops, strict=False)]


def _place(entry: Mapping[str, Any]) -> _Place:
    """An entry of `logprobs.content`, as in OpenAI's chats; llama.cpp adds the id."""
    likeliest = {int(one["id"]): float(one["logprob"]) for one in entry.get("top_logprobs") or () if "id" in one}
    found = entry.get("id", _id_of(entry.get("token")))
    return _Place(None if found is None else int(found), _number(entry.get("logprob")), likeliest)


def _named(top: Mapping[str, float] | None) -> dict[int, float]:
    known = ((_id_of(token), float(value)) for token, value in (top or {}).items())
    return {token: value for token, value in known if token is not None}


def _id_of(token: Any) -> int | None:
    """The id that a token is named by; None of a token that is named by its text."""
    name = token.removeprefix(_NAMED) if isinstance(token, str) and token.startswith(_NAMED) else ""
    return int(name) if name.isdecimal() else None


def _number(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is None or math.isfinite(number) else None


def _known(places: Sequence[_Place], wanted: Sequence[int]) -> list[float]:
    """Their ln p, as far as it is known: to the first that was not decoded, with that one if it was likely."""
    found: list[float] = []
    for place, token in zip(places, wanted, strict=False):
        log_p = place.log_p if place.id == token else place.likeliest.get(token)
        if log_p is None:
            break
        found.append(log_p)
        if place.id != token:
            break
    return found


def _margin(place: _Place, token: int) -> float | None:
    """By how much the token's logit exceeds the largest other: the difference of their ln p."""
    others = [value for other, value in place.likeliest.items() if other != token]
    return None if place.log_p is None or not others else place.log_p - max(others)
