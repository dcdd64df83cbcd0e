"""What no rank can recall: one context, two next tokens. Told from texts and from ids, before weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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


def conflicts(passages: Sequence[Passage]) -> Iterator[FeasibilityIssue]:
    """Records of one prompt that go on differently: no rank can hold both, whatever the tokenizer."""
    first: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}
    for k, passage in enumerate(passages):
        if passage.kind != "record":
            continue
        j = first.setdefault((passage.prompt, passage.messages), k)
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
