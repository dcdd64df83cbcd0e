"""What is said of what adapters of a rank can hold."""

from __future__ import annotations

from collections.abc import Iterator

from lorasize.records import Capacity, Holding
from lorasize.report.facts import Fact, Listing
from lorasize.report.text import layers
from lorasize.units import format_bytes


def capacity_verdict(found: Capacity) -> str:
    """The answer in a sentence: of the site that comes first."""
    first, chance = found.holdings[0], f"{found.confidence:.0%} likely"
    if first.nats == 0.0:
        return f"Rank {found.rank} on {_modules(first)} holds nothing that is {chance} to come back whole."
    return (
        f"Rank {found.rank} on {_modules(first)} holds {first.random_tokens:,} tokens drawn at random, or "
        f"{first.sample_tokens:,} of {found.sample}, {chance}."
    )


def capacity_facts(found: Capacity) -> Iterator[Fact]:
    """What the tokens are of, and of which model."""
    yield "model", f"{found.model} · {found.dtype} · {found.device}"
    yield found.sample, f"{found.sample_loss:.2f} nats per token to the base model, random text {found.random_loss:.2f}"


def holding_rows(found: Capacity) -> Listing:
    """Columns, and one row a site."""
    columns = [
        ("modules", False), ("layers", False), ("parameters", True), ("size", True), ("other text", False),
        ("bits", True), ("random tokens", True), (f"tokens of {found.sample}", True),
    ]  # fmt: skip
    return columns, [_row(one) for one in found.holdings]


def _row(one: Holding) -> list[str]:
    bound = "no bound" if one.max_drift is None else f"within {one.max_drift:g}"
    rough = "~" if one.extrapolated else ""
    held = [f"{rough}{value:,.0f}" for value in (one.bits, one.random_tokens, one.sample_tokens)]
    where = layers(one.layers_to_transform).partition(" ")[2]
    return [_modules(one), where, f"{one.n_parameters:,}", format_bytes(one.bytes), bound, *held]


def _modules(one: Holding) -> str:
    return ", ".join(one.target_modules)
