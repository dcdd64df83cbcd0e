"""Whether two calibrations of one model say the same within their stated errors.

    lorasize calibrate --preset standard --seed 100 --out second.json
    python benchmarks/calibrations_agree.py second.json [first.json]

`first.json` is the calibration of that model on a CPU that is shipped, when left out. Printed: each quantity of both,
and the difference in standard errors of the difference: efficiencies of the sites they share, the location of the
transition, and the law's predictions at the reference site, whose errors are those of one new observation.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lorasize.artifacts.calibrations import read_calibration
from lorasize.law.form import predict, predict_gradient
from lorasize.records import Calibration, Law

SIZES = ((1152, 60), (2112, 60), (2112, 200), (4224, 200), (4224, 400), (8448, 400), (8448, 600))  # parameters, tokens

Row = tuple[str, float, float, float, float]  # what, first, its error, second, its error


def predicted(law: Law, n_parameters: float, n_tokens: float) -> tuple[float, float]:
    """Loss reduction and the standard error of one new observation of it, by the delta method; nats per token."""
    gradient = predict_gradient(law, n_parameters, n_tokens)
    variance = float(gradient @ np.array(law.covariance) @ gradient)
    return predict(law, n_parameters, n_tokens), math.hypot(math.sqrt(max(variance, 0.0)), law.residual_stderr)


def rows(first: Calibration, second: Calibration) -> Iterator[Row]:
    """Everything that both say."""
    sites = {s.site: s for s in second.sites}
    for one in first.sites:
        other = sites.get(one.site)
        if other is not None and one.stderr > 0:
            where = f"{', '.join(one.target_modules)} in {', '.join(map(str, one.layers_to_transform))}"
            yield f"efficiency of {where}", one.efficiency, one.stderr, other.efficiency, other.stderr
    a, b = first.transition, second.transition
    yield "ln slack of an even chance", a.location, a.location_stderr, b.location, b.location_stderr
    for n, tokens in SIZES:
        # Beyond the base loss a prediction means nothing but "all of it".
        if predict(first.law, n, tokens) < 1.5 * first.law.reference_loss:
            one_said, other_said = (predicted(c.law, n, tokens) for c in (first, second))
            yield f"nats a token lost, {n:,} parameters, {tokens} tokens", *one_said, *other_said


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("second", type=Path)
    parser.add_argument("first", type=Path, nargs="?")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    second = read_calibration(chosen.second)
    shipped = Path(__file__).resolve().parent.parent / "calibrations"
    first = read_calibration(chosen.first or next(shipped.glob(f"{second.model.ref.replace(':', '-')}.cpu.*.json")))
    compared = [(*row, (row[3] - row[1]) / math.hypot(row[2], row[4])) for row in rows(first, second)]
    if chosen.json:
        print(json.dumps(compared))
        return
    for what, one, error, other, error_other, z in compared:
        print(f"{what:48} {one:7.3f} ± {error:.3f} {other:7.3f} ± {error_other:.3f}  {z:+.2f}")
    print(f"largest difference: {max(abs(row[-1]) for row in compared):.2f} standard errors")


if __name__ == "__main__":
    main()
