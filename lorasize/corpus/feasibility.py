"""What no rank can recall: one context, two next tokens; or a token that the model's head cannot tell from another.

The first is told from texts and from ids, before weights are loaded; the second once `losses.reach` has seen the head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from lorasize.corpus.text import Decode
from lorasize.corpus.tokens import EncodedPassage
from lorasize.records import Feasibility, FeasibilityIssue, Passage


def feasibility(encoded: Sequence[EncodedPassage]) -> Feasibility:
    """Every passage that asks for another next token after a context that an earlier passage shares.

    No rank can hold both: greedy decoding gives one token after one context. One issue a later passage, at its first
    such token. Exact duplicates are fine. Passages with a common context are parted token by token, as in a trie that
    keeps only its branches with company: time grows with the tokens shared, memory with the number of passages.
    """
    found: dict[int, tuple[int, int]] = {}
    stack = [(0, list(range(len(encoded))))]
    while stack:
        depth, members = stack.pop()
        branches: dict[int, list[int]] = {}
        targets: list[tuple[int, int]] = []
        for member in members:
            one = encoded[member]
            at = depth - len(one.prompt_ids)
            if at >= one.n_tokens:
                continue
            token = one.target_ids[at] if at >= 0 else one.prompt_ids[depth]
            branches.setdefault(token, []).append(member)
            if at >= 0:
                targets.append((member, token))
        for later, earlier in _conflicts(targets):
            found.setdefault(later, (earlier, depth - len(encoded[later].prompt_ids)))
        stack += [(depth + 1, branch) for branch in branches.values() if len(branch) > 1]
    issues = tuple(_issue(encoded, earlier, later, at) for later, (earlier, at) in sorted(found.items()))
    return Feasibility(feasible=not issues, issues=issues)


def _conflicts(targets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Pairs (later, first earlier with another token) among passages, in order, with the token each wants here."""
    first: dict[int, int] = {}  # token → the first passage that wants it; the first two tokens answer every question
    for member, token in targets:
        earlier = next((passage for other, passage in first.items() if other != token), None)
        if earlier is not None:
            yield member, earlier
        if len(first) < 2:
            first.setdefault(token, member)


def _issue(encoded: Sequence[EncodedPassage], earlier: int, later: int, at: int) -> FeasibilityIssue:
    one, two = encoded[earlier].passage, encoded[later].passage
    same_prompt = at == 0 and encoded[earlier].prompt_ids == encoded[later].prompt_ids
    shared = "have the same prompt" if same_prompt else f"share everything before target token {at}"
    places = f"{one.file}:{one.line} and {two.file}:{two.line}"
    return FeasibilityIssue(
        kind="same_prompt" if same_prompt else "same_prefix",
        passages=(earlier, later),
        position=at,
        file=two.file,
        line=two.line,
        message=f"{places} {shared} but go on differently; no rank can hold both: make their prompts differ",
    )


def unreachable(encoded: Sequence[EncodedPassage], twins: Mapping[int, Sequence[int]], decode: Decode) -> Feasibility:
    """Every passage that asks for a token which the model's head cannot tell from its twins; one issue a passage.

    Args:
        encoded: The corpus.
        twins: Each token that no rank can lift above ½, and the tokens it cannot be told from, nearest first.
        decode: Token ids to text.
    """
    issues = []
    for k, one in enumerate(encoded):
        at = next((at for at, token in enumerate(one.target_ids) if token in twins), None)
        if at is not None:
            issues.append(_token_issue(one, k, at, twins[one.target_ids[at]], decode))
    return Feasibility(feasible=not issues, issues=tuple(issues))


def _token_issue(one: EncodedPassage, k: int, at: int, twins: Sequence[int], decode: Decode) -> FeasibilityIssue:
    token, line = one.target_ids[at], line_of(one, at, decode)
    others = f" and {count} more" if (count := len(twins) - 1) > 0 else ""
    alike = f"{token_name(twins[0], decode)}{others}" if twins else "others"
    return FeasibilityIssue(
        kind="token",
        passages=(k, k),
        position=at,
        file=one.passage.file,
        line=line,
        message=f"the target needs {token_name(token, decode)}, whose row of the model's output "
        f"embedding is that of {alike}: it never exceeds ½, so no rank can hold it: write it in other words",
    )


def narrow_note(encoded: Sequence[EncodedPassage], bounds: Mapping[int, float], decode: Decode) -> str:
    """The warning of target tokens that the head tells only just from others; `bounds` are on their log-odds."""
    token = min(bounds, key=lambda token: bounds[token])
    one, at = next((one, one.target_ids.index(token)) for one in encoded if token in one.target_ids)
    place = f"{one.passage.file}:{line_of(one, at, decode)}"
    others = f", and {more} more target token{'s' * (more > 1)} like it" if (more := len(bounds) - 1) else ""
    most = 1.0 / (1.0 + math.exp(-bounds[token]))
    return (
        f"Hard to hold: {token_name(token, decode)} at {place}{others}. The model's output embedding tells it only "
        f"just from others: with hidden states as long as this model's its p is at most {most:.2g}. It will take many "
        "steps, or never be held; write it in other words if you can."
    )


def token_name(token: int, decode: Decode) -> str:
    """A token as messages call it: its id and its text."""
    return f"token {token} ({decode([token])!r:.60})"


def line_of(one: EncodedPassage, at: int, decode: Decode) -> int:
    """The line of the file on which a target token stands; that of the record where a record is a line."""
    if one.passage.start is None:
        return one.passage.line
    return one.passage.line + decode(one.target_ids[:at]).count("\n")


def conflicts(passages: Sequence[Passage]) -> Iterator[FeasibilityIssue]:
    """Records of one prompt that go on differently: no rank can hold both, whatever the tokenizer."""
    first: dict[tuple[object, ...], int] = {}
    for k, passage in enumerate(passages):
        if passage.kind != "record":
            continue
        j = first.setdefault((passage.prompt, passage.messages, passage.chat, passage.columns), k)
        if passages[j].target != passage.target:
            one, two = (f"{p.file}:{p.line}" for p in (passages[j], passage))
            yield FeasibilityIssue(
                kind="same_prompt",
                passages=(j, k),
                position=None,
                file=passage.file,
                line=passage.line,
                message=f"{one} and {two} have the same prompt but go on differently; no rank can hold both: "
                "make their prompts differ",
            )
