"""How big must the adapter be to hold this text word for word, and did it?

The verbs as functions, and what they take and give back; each is loaded when it is first used, so that importing the
package costs nothing. `examples/library_use.py` runs them one after another.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorasize.errors import (
        CalibrationError,
        CorpusError,
        FitError,
        InfeasibleCorpusError,
        LorasizeError,
        ModelError,
        StalePlanError,
        TrainingDivergedError,
    )
    from lorasize.planning import Limits
    from lorasize.records import (
        Calibration,
        Capacity,
        Check,
        Memorization,
        Outcome,
        Plan,
        Reading,
        RecallReport,
        StepReport,
    )
    from lorasize.training.run import ApplyOptions
    from lorasize.verbs.apply import Applied, apply
    from lorasize.verbs.calibrate import calibrate
    from lorasize.verbs.capacity import capacity
    from lorasize.verbs.check import check
    from lorasize.verbs.export import export
    from lorasize.verbs.plan import PlanOptions, Sized, plan
    from lorasize.verbs.verify import verify

__version__ = "0.1.0"

__all__ = [
    "Applied",
    "ApplyOptions",
    "Calibration",
    "CalibrationError",
    "Capacity",
    "Check",
    "CorpusError",
    "FitError",
    "InfeasibleCorpusError",
    "Limits",
    "LorasizeError",
    "Memorization",
    "ModelError",
    "Outcome",
    "Plan",
    "PlanOptions",
    "Reading",
    "RecallReport",
    "Sized",
    "StalePlanError",
    "StepReport",
    "TrainingDivergedError",
    "__version__",
    "apply",
    "calibrate",
    "capacity",
    "check",
    "export",
    "plan",
    "verify",
]

_HOMES = {
    "planning": ("Limits",),
    "records": (
        "Calibration", "Capacity", "Check", "Memorization", "Outcome", "Plan", "Reading", "RecallReport", "StepReport",
    ),
    "training.run": ("ApplyOptions",),
    "verbs.apply": ("Applied", "apply"),
    "verbs.calibrate": ("calibrate",),
    "verbs.capacity": ("capacity",),
    "verbs.check": ("check",),
    "verbs.export": ("export",),
    "verbs.plan": ("PlanOptions", "Sized", "plan"),
    "verbs.verify": ("verify",),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None and name in __all__ and name.endswith("Error"):
        home = "errors"
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
