"""Compare the law with and without its soft ceiling, fitted on one calibration's own observations.

    python benchmarks/law_forms.py [CALIBRATION.json]

Prints, for each form, the exponents, r² and how well slack separates probes that held every token from those that did
not. Without an argument: every shipped calibration.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lorasize.calibration import law_points, transition_points
from lorasize.catalog import read_calibration
from lorasize.errors import FitError
from lorasize.law import fit_law
from lorasize.records import Calibration


def describe(calibration: Calibration, *, soft_ceiling: bool) -> str:
    """One line about one form."""
    points = law_points(calibration.observations, calibration.law.reference_loss)
    try:
        fit = fit_law(points, reference_loss=calibration.law.reference_loss, soft_ceiling=soft_ceiling)
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
        f"alpha {law.parameter_exponent:.2f}  beta {law.length_exponent:.2f}  r2 {law.r_squared:.3f}  "
        f"least slack of a success {held:.2f}  most slack of a failure {lost:.2f}"
    )


def main() -> None:
    """Print both forms for each calibration."""
    shipped = sorted((Path(__file__).parent.parent / "calibrations").glob("*.json"))
    for path in [Path(argument) for argument in sys.argv[1:]] or shipped:
        calibration = read_calibration(path)
        print(f"{path.name}: {len(calibration.observations)} observations")
        print(f"  paper's form  {describe(calibration, soft_ceiling=False)}")
        print(f"  soft ceiling  {describe(calibration, soft_ceiling=True)}")


if __name__ == "__main__":
    main()
