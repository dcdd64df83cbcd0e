"""The command check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorasize.cli import options
from lorasize.cli.failures import CALIBRATION, DONE, INFEASIBLE, OVER_BUDGET, Invocation
from lorasize.cli.options import PLAN_FILE
from lorasize.cli.output import emit, parse_reports, spare_inputs


@click.command(
    epilog="""\b
Example:
  lorasize check
  lorasize check facts.plan.json --max-parameters 20000 --report github
"""
)
@click.argument("plan_file", metavar="[PLAN]", type=options.any_path, default=PLAN_FILE)
@options.budgets
@options.output
@click.pass_obj
def check(invocation: Invocation, /, plan_file: Path, **chosen: Any) -> int:
    """Check PLAN (lorasize.plan.json) against the corpus on disk and the budgets, without a model.

    Exits with 1 over budget, with 3 when corpus, calibration or recipe changed since, and with 5 when no rank can hold
    the corpus.
    """
    targets = parse_reports(chosen["reports"])
    from lorasize.artifacts.plans import read_plan
    from lorasize.verbs import check as verb

    plan = read_plan(options.require_file(plan_file))
    invocation.corpus = tuple(file.path for file in plan.corpus.files)
    spare_inputs(targets, (plan_file, *map(Path, invocation.corpus)))
    result = verb.check(plan, str(plan_file), options.limits_of(chosen))
    emit(result, targets)
    return {"ok": DONE, "over_budget": OVER_BUDGET, "stale": CALIBRATION, "infeasible": INFEASIBLE}[result.status]
