"""How right the time left is that `apply` shows: by finished runs, whose folders hold every step they took.

    python benchmarks/time_left.py FOLDER... [--knots]

Every adapter folder beneath FOLDER whose run held its corpus without growing is taken once: at a tenth, a quarter,
half, three quarters and nine tenths of its steps, what was said to be left beside what was. `--knots` prints what
`law.time_left` goes by: for each share of the first loss, ln(steps in all ÷ steps so far), its median and a standard
deviation by the middle eight tenths.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from lorasize.law.time_left import steps_in_all
from lorasize.records import Estimate

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 0.9)
SHARES = (1.0, 0.8, 0.6, 0.42, 0.3, 0.2, 0.12, 0.08, 0.045, 0.02, 0.008)


def runs(folders: Sequence[Path]) -> Iterator[tuple[list[dict[str, Any]], int, Estimate | None]]:
    """The step reports of each run, its steps in all, and those that its plan predicted."""
    seen = set()
    for file in sorted(file for folder in folders for file in folder.rglob("events.jsonl")):
        try:
            told = json.loads((file.parent / "lorasize.json").read_text(encoding="utf-8"))
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError):
            continue
        steps = [one for one in lines if one.get("event") == "step"]
        if told.get("outcome") != "memorized" or told["escalations"] or told.get("update") or len(steps) < 8:
            continue
        key = (told["steps"], steps[0]["loss"], steps[-2]["loss"])
        if steps[0]["step"] == 1 and key not in seen:
            seen.add(key)
            said = (told["plan"] or {}).get("prediction")
            yield steps, told["steps"], None if said is None else Estimate(**said["steps"])


def by_the_plan(planned: Estimate, step: int) -> float:
    """Steps in all of a run that goes on so long, by its plan alone: the median of what lies beyond."""
    spread = math.log(planned.hi / planned.lo) / (2 * NormalDist().inv_cdf(0.95))
    steps = NormalDist(math.log(planned.point), spread)
    passed = min(steps.cdf(math.log(step)), 1.0 - 1e-9)
    return math.exp(steps.inv_cdf((1.0 + passed) / 2.0))


def _factors(errors: Sequence[float]) -> str:
    median, tenth = statistics.median(errors), statistics.quantiles(errors, n=10)[-1]
    return f"{math.exp(median):.2f} in the median, {math.exp(tenth):.2f} in one of ten"


def knots(found: Sequence[tuple[list[dict[str, Any]], int, Estimate | None]]) -> None:
    """Print the table; a run counts once for each share, by the middle of its steps there."""
    edges = [math.inf, *(math.sqrt(a * b) for a, b in zip(SHARES, SHARES[1:], strict=False)), 0.0]
    for share, hi, lo in zip(SHARES, edges, edges[1:], strict=False):
        ratios = []
        for steps, in_all, _ in found:
            held = next((one["step"] for one in steps if one["n_stubborn"] == 0), in_all)
            at = [one["step"] for one in steps if lo <= one["loss"] / steps[0]["loss"] < hi and one["step"] <= held]
            at = [step for step in at if step < in_all]
            ratios += [math.log(in_all / at[len(at) // 2])] if at else []
        tenths = statistics.quantiles(ratios, n=10)
        print(f"{share:5} {len(ratios):4} runs {statistics.median(ratios):5.2f} {(tenths[-1] - tenths[0]) / 2.56:5.2f}")


def main() -> None:
    """Print the table of errors, or the knots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--knots", action="store_true")
    asked = parser.parse_args()
    found = list(runs(asked.folders))
    if asked.knots:
        knots(found)
        return
    for fraction in FRACTIONS:
        alone, both, covered = [], [], []
        for steps, in_all, planned in found:
            now = next((one for one in steps if one["step"] >= max(2, fraction * in_all)), None)
            if planned is None or now is None or now["step"] >= in_all:
                continue
            left = in_all - now["step"] + 0.5
            told = steps_in_all(planned, now["step"], now["loss"] / steps[0]["loss"])
            alone.append(abs(math.log((by_the_plan(planned, now["step"]) - now["step"] + 0.5) / left)))
            both.append(abs(math.log((told.point - now["step"] + 0.5) / left)))
            covered.append(told.lo <= in_all <= told.hi)
        print(
            f"after {fraction:4.0%} of the steps, {len(both)} runs: off by a factor of {_factors(both)} "
            f"(by the plan alone {_factors(alone)}); inside the interval {statistics.mean(covered):.0%}"
        )


if __name__ == "__main__":
    main()
