"""What is said of a calibration: the law, what a parameter is worth where, the transition, and what a step costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lorasize.records import BoundedLaw, Calibration
from lorasize.report.facts import Fact, Listing
from lorasize.report.text import count, layers
from lorasize.units import format_bytes

if TYPE_CHECKING:
    from lorasize.verbs.learn import Learned


def site_rows(calibration: Calibration) -> Listing:
    """Columns, and one row a site."""
    columns = [("modules", False), ("layers", False), ("parameters per rank", True), ("efficiency", True)]
    rows = [
        [
            ", ".join(s.target_modules), layers(s.layers_to_transform).partition(" ")[2], f"{s.parameters_per_rank:,}",
            f"{s.efficiency:.2f} ± {s.stderr:.2f}",
        ]
        for s in calibration.sites
    ]  # fmt: skip
    return columns, rows


def calibration_facts(calibration: Calibration) -> Iterator[Fact]:
    """Names and what was fitted, from the model to its memory."""
    law, transition, cost = calibration.law, calibration.transition, calibration.cost
    yield "model", f"{calibration.model.architecture} · {count(calibration.model.n_layers, 'layer')}"
    weights = "" if calibration.quantization is None else f" · {calibration.quantization} weights"
    yield "device", f"{calibration.device} · {calibration.dtype}{weights}"
    yield "law", (
        f"reduction = {law.coefficient:.3g} · N^{law.parameter_exponent:.3f} · tokens^-{law.length_exponent:.3f} "
        f"{'-' if law.offset < 0 else '+'} {abs(law.offset):.3g} nats per token"
    )
    yield "fit", (
        f"r² {law.r_squared:.3f} · residual {law.residual_stderr:.3f} nats · "
        f"{count(law.n_observations, 'observation')} · reference loss {law.reference_loss:.2f} nats"
    )
    (n_lo, n_hi), (l_lo, l_hi) = law.parameters_range, law.tokens_range
    yield "range", f"{n_lo:,.0f} to {n_hi:,.0f} effective parameters · {l_lo:,.0f} to {l_hi:,.0f} tokens"
    yield "transition", (
        f"ln slack {transition.location:.3f} ± {transition.location_stderr:.3f} for an even chance · scale "
        f"{transition.scale:.3f} · {transition.n_successes} of {transition.n_observations} probes held every token"
    )
    yield "steps", (
        f"{transition.steps_coefficient:.0f} · slack^-{transition.steps_exponent:.2f}, "
        f"spread {transition.steps_spread:.2f} in ln steps"
    )
    yield "seconds per step", (
        f"{cost.seconds_overhead:.3g} + tokens · ({cost.seconds_per_layer_token:.3g} · layers + "
        f"{cost.seconds_per_head_token:.3g}) ± {cost.relative_spread:.0%}, "
        f"{cost.seconds_setup:.3g} before the first"
    )
    if (law_under := calibration.bounded) is not None:
        yield f"bound of {law_under.max_drift:g}", bounded_line(law_under)
    if (rates := calibration.rates) is not None:
        copied = format_bytes(rates.copy_bytes_per_second)
        yield "rates", f"products {rates.matmul_flops / 1e9:,.0f} GFLOP/s · copies {copied}/s"
    fixed = cost.memory_base_bytes + cost.memory_overhead_bytes
    yield "memory", f"{format_bytes(fixed)} + {format_bytes(cost.memory_bytes_per_token)} a position of a step"


def bounded_line(law: BoundedLaw) -> str:
    """What is known of adapters under a bound on drift, in a line."""
    found = law.transition
    least = law.parameters_per_nat * math.exp(found.location)
    at = ", ".join(law.target_modules), layers(law.layers_to_transform)
    return (
        f"{at[0]} · {at[1]} · even chance at {least:.1f} parameters a nat (± {found.location_stderr:.0%}) · "
        f"{found.n_successes} of {found.n_observations} probes held every token · steps take {law.slowdown:.1f} times "
        f"as long · drift {law.drift:.3f} nats per token"
    )


def provenance_facts(calibration: Calibration) -> Iterator[Fact]:
    """How it came about: the recipe, what was held out, and what else was noted."""
    yield "recipe", calibration.recipe
    if calibration.held_out:
        yield "held out", count(len(calibration.held_out), "observation")
    yield from calibration.provenance.items()


def learned_line(learned: Learned) -> str:
    """What one more observation changed, in one line."""
    before, after, what = learned.before.transition, learned.after.transition, "fitted again"
    n = count(len(learned.after.observations), "observation")
    if learned.before.bounded is not None and learned.before.bounded != (law := learned.after.bounded) and law:
        before, after, what = learned.before.bounded.transition, law.transition, "its law under a bound fitted again"
        n = count(len(law.observations), "observation")
    both = (before, after)
    was, now = (f"{t.location:.3f} ± {t.location_stderr:.3f}" for t in both)
    return f"{learned.path}: {what} with this run, {n}; an even chance of recall at ln slack {was} → {now}"
