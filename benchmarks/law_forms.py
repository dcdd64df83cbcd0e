"""Compare the law with and without its soft ceiling: how it fits, how it predicts what was held out.

    python benchmarks/law_forms.py [CALIBRATION.json …] [--points paper_law_points.csv] [--bootstrap N] [--refit]

For each calibration (every shipped one by default) and each form: the exponents, r² on probes that show a limit, how
well slack separates probes that held every token from those that did not, and the held-out error: each probe that shows
a limit is predicted by a law fitted on the others, root mean square, as a share of the base loss.

`--points`: a table rank, n_tokens, loss_reduction_nats at one site (8,192 parameters a rank, ceiling 14 nats), such as
the paper's; each form is fitted on points of at most 3,000 tokens and predicts those of 10,000.

`--bootstrap`: the standard error of ln N, the effective parameters of an even chance at 60, 200 and 600 tokens of
random text, by the covariances and by N refits on observations drawn with replacement within each site.

`--refit` writes each calibration again: law, efficiencies, transition, memory and the law under a bound on drift,
fitted on the observations in it.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path

from lorasize.artifacts.calibrations import read_calibration, write_calibration
from lorasize.errors import FitError
from lorasize.law.bounded import fit_bounded
from lorasize.law.fit import Fit, LawPoint, fit_law
from lorasize.law.form import predict, required_parameters, soft_capped
from lorasize.law.next_probes import DEMANDS, size_gradients
from lorasize.law.observations import Fitted, fit_observations, law_points, transition_points
from lorasize.probing.costs import memory_terms
from lorasize.records import Calibration, Observation, Site

FORMS = {"paper's form": False, "soft ceiling": True}


def predicted(fit: Fit, point: LawPoint, ceiling: float, *, soft: bool) -> float:
    """Loss reduction that a fit expects at a point, at most the ceiling."""
    reached = predict(fit.law, point.n_parameters * fit.efficiencies[point.site_index][0], point.n_tokens)
    return ceiling * soft_capped(reached / ceiling) if soft else min(reached, ceiling)


def root_mean_square(errors: Sequence[float]) -> float:
    """Root of the mean of the squares."""
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def held_out_error(points: Sequence[LawPoint], ceiling: float, *, soft: bool) -> float:
    """Error on each uncensored point by the law of the others, as a share of the ceiling; sites keep one point.

    NaN where the others do not identify the law.
    """
    errors = []
    for k, point in enumerate(points):
        rest = [*points[:k], *points[k + 1 :]]
        if point.censored or all(p.site_index != point.site_index for p in rest):
            continue
        try:
            fit = fit_law(rest, reference_loss=ceiling, soft_ceiling=soft)
        except FitError:
            return math.nan  # a quick calibration has no point to spare
        errors.append((predicted(fit, point, ceiling, soft=soft) - point.loss_reduction) / ceiling)
    return root_mean_square(errors)


def describe(calibration: Calibration, *, soft: bool) -> str:
    """One line about one form."""
    ceiling = calibration.law.reference_loss
    points = law_points(calibration.observations, ceiling)
    try:
        fit = fit_law(points, reference_loss=ceiling, soft_ceiling=soft)
    except FitError as error:
        return f"not identified: {error}"
    efficiencies = [
        s.model_copy(update={"efficiency": value, "stderr": stderr})
        for s, (value, stderr) in zip(calibration.sites, fit.efficiencies, strict=True)
    ]
    slacks = transition_points(calibration.observations, fit.law, efficiencies)
    held = min(p.slack for p in slacks if p.success)
    lost = max((p.slack for p in slacks if not p.success), default=0.0)
    law = fit.law
    return (
        f"alpha {law.parameter_exponent:.2f}  beta {law.length_exponent:.2f}  r2 {law.r_squared:.4f}  held-out "
        f"{held_out_error(points, ceiling, soft=soft):.1%}  slack: least success {held:.2f}, most failure {lost:.2f}"
    )


def far_error(path: Path, *, soft: bool) -> str:
    """r² on all points, and the error on 10,000 tokens of a law fitted on at most 3,000."""
    with path.open(encoding="utf-8") as stream:
        rows = [(int(r["rank"]), int(r["n_tokens"]), float(r["loss_reduction_nats"])) for r in csv.DictReader(stream)]
    points = [LawPoint(0, 8192.0 * rank, n_tokens, reduction) for rank, n_tokens, reduction in rows]
    near = fit_law([p for p in points if p.n_tokens <= 3000], reference_loss=14.0, soft_ceiling=soft)
    errors = [predicted(near, p, 14.0, soft=soft) - p.loss_reduction for p in points if p.n_tokens == 10_000]
    whole = fit_law(points, reference_loss=14.0, soft_ceiling=soft).law
    return f"r2 {whole.r_squared:.4f}  error at 10,000 tokens {root_mean_square(errors):.3f} nats"


def sizes(fitted: Fitted) -> list[float]:
    """The logarithm of N for an even chance at each of DEMANDS."""
    reduction = fitted.law.reference_loss * math.exp(fitted.transition.location)
    return [math.log(max(1.0, required_parameters(fitted.law, reduction, n))) for n in DEMANDS]


def bootstrap(calibration: Calibration, n: int) -> str:
    """Standard errors of ln N, by the covariances and by refits on drawn observations."""
    groups: dict[Site, list[Observation]] = {}
    for o in calibration.observations:
        groups.setdefault(o.probe.site, []).append(o)
    draw, refits, open_designs = random.Random(0), [], 0
    while len(refits) < n and open_designs < n:
        try:
            refits.append(sizes(fit_observations([o for g in groups.values() for o in draw.choices(g, k=len(g))])))
        except FitError:
            open_designs += 1  # a draw that leaves the law open says nothing
    fitted = fit_observations(calibration.observations)
    location = fitted.transition.location_stderr**2
    by_covariance = [math.sqrt(g @ fitted.law.covariance @ g + h * h * location) for g, h in size_gradients(fitted)]
    drawn = [statistics.stdev(column) for column in zip(*refits, strict=True)]
    pairs = ", ".join(
        f"{d:.0f} tokens {a:.2f} / {b:.2f}" for d, a, b in zip(DEMANDS, by_covariance, drawn, strict=True)
    )
    return f"standard error of ln N, covariances / {len(refits)} refits ({open_designs} left it open): {pairs}"


def main() -> None:
    """Print both forms for each calibration, and for the points if given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calibration", nargs="*", type=Path)
    parser.add_argument("--points", type=Path)
    parser.add_argument("--bootstrap", type=int, default=0, metavar="N")
    parser.add_argument("--refit", action="store_true")
    chosen = parser.parse_args()
    for path in chosen.calibration or sorted((Path(__file__).parent.parent / "calibrations").glob("*.json")):
        calibration = read_calibration(path)
        print(f"{path.name}: {len(calibration.observations)} observations")
        if chosen.refit:
            fitted = fit_observations(calibration.observations)
            cost, bounded = calibration.cost, calibration.bounded
            on_cpu = calibration.device.startswith("cpu")
            overhead, per_token = memory_terms(calibration.observations, cost.memory_base_bytes, of_process=on_cpu)
            memory = {"memory_overhead_bytes": overhead, "memory_bytes_per_token": per_token}
            parts: dict[str, object] = {"law": fitted.law, "sites": fitted.sites, "transition": fitted.transition}
            if bounded is not None:
                parts["bounded"] = fit_bounded(bounded.observations, bounded.slowdown)
            parts["cost"] = cost.model_copy(update=memory)
            write_calibration(calibration.model_copy(update=parts), path)
        for name, soft in FORMS.items():
            print(f"  {name}  {describe(calibration, soft=soft)}")
        if chosen.bootstrap:
            print(f"  {bootstrap(calibration, chosen.bootstrap)}")
    if chosen.points:
        print(chosen.points.name)
        for name, soft in FORMS.items():
            print(f"  {name}  {far_error(chosen.points, soft=soft)}")


if __name__ == "__main__":
    main()
