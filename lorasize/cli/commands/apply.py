"""The command apply."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.engines import chosen_to_prove, prove_with
from lorasize.cli.failures import DONE, NOT_PROVEN, OVER_BUDGET, Invocation
from lorasize.cli.options import ADAPTER_FOLDER, PLAN_FILE
from lorasize.cli.output import emit, parse_reports, say, spare_inputs

if TYPE_CHECKING:
    from lorasize.recall.engines.llama_cpp import LlamaCpp
    from lorasize.recall.engines.vllm import Vllm
    from lorasize.records import Plan
    from lorasize.verbs.apply import Applied


_MAX_DRIFT = 0.05  # nats per token, where a text to retain is named and no bound


@click.command(
    epilog="""\b
Example:
  lorasize apply
  lorasize apply facts.plan.json --out adapters/facts --time-limit "20 min"
  lorasize apply --prove-with llama.cpp --engine-model base.Q8_0.gguf
"""
)
@click.argument("plan_file", metavar="[PLAN]", type=options.any_path, default=PLAN_FILE)
@options.all_of(options.same_model, options.revision, options.device, options.device_map)
@options.attention("the plan's, else the best that the model has here")
@options.seed
@click.option(
    "--threshold", type=options.PROBABILITY, default=0.5, show_default=True, help="p that every token must exceed."
)
@click.option(
    "--margin", type=options.Finite(0.0, 0.5, max_open=True),
    help="Added to the threshold in training; by default 0.02, in 16 bits 0.1, and more where decoding is measured to "
    "need it.",
)  # fmt: skip
@click.option("--max-steps", type=options.AT_LEAST_ONE, default=3000, show_default=True, help="Optimiser steps.")
@click.option("--time-limit", callback=options.duration, metavar="TIME", help='Training at most, such as "20 min".')
@click.option("--escalate/--no-escalate", default=True, show_default=True, help="Grow the adapter when it stalls.")
@click.option(
    "--base-adapter", type=options.existing_folder, metavar="FOLDER",
    help="Adapter to start from; by default the one that the plan names, if any.",
)  # fmt: skip
@click.option(
    "--retain", type=options.existing_file, metavar="FILE",
    help="Text of yours that must not suffer, 2,048 tokens of it, beside lorasize's own.",
)  # fmt: skip
@click.option(
    "--max-drift", callback=options.drift, metavar="NATS|off",
    help="What other text may move by, nats per token; the plan's by default, where it has none 0.05 with --retain.",
)  # fmt: skip
@click.option("--method", type=click.Choice(options.METHODS), default="memft", show_default=True, help="Objective.")
@click.option(
    "--learn/--no-learn", default=None,
    help="Add this run to the calibration that planned it. By default yours is; --learn also copies a shipped one.",
)  # fmt: skip
@prove_with
@options.out(ADAPTER_FOLDER, "Adapter folder.")
@options.output
@click.pass_obj
def apply(invocation: Invocation, /, plan_file: Path, **chosen: Any) -> int:
    """Train the adapter of PLAN (lorasize.plan.json) and prove from disk that it recalls the corpus.

    Exits with 4 when some passage does not come back, some token is not above the threshold, or --max-drift is broken.
    """
    targets = parse_reports(chosen["reports"])
    engine = chosen_to_prove(chosen)
    from lorasize.records import MARGIN

    if chosen["threshold"] + (MARGIN if chosen["margin"] is None else chosen["margin"]) >= 1:
        raise click.UsageError("--threshold and --margin together must stay below 1")
    from lorasize.artifacts.plans import read_plan
    from lorasize.cli import companions

    plan = _with_model(read_plan(options.require_file(plan_file)), chosen["model"], chosen["revision"])
    invocation.model, invocation.corpus = plan.model.ref, tuple(file.path for file in plan.corpus.files)
    spare_inputs(targets, (plan_file, chosen["retain"], chosen["engine_model"], *map(Path, invocation.corpus)))
    if plan.status == "over_budget":
        return _refuse_over_budget(plan, plan_file)
    if plan.status == "infeasible":
        _list_issues(plan)
    applied = _apply(plan, chosen, engine)
    emit(applied.memorization, targets, lambda: companions.of_apply(applied))
    return DONE if applied.memorization.proven else NOT_PROVEN


def _with_model(plan: Plan, ref: str | None, revision: str | None) -> Plan:
    """The plan with the model that the command line names, if it does; loading it shows whether it is the same."""
    source = click.get_current_context().get_parameter_source
    named = {"ref": ("model", ref), "revision": ("revision", revision)}
    line = click.core.ParameterSource.COMMANDLINE
    changes = {name: value for name, (option, value) in named.items() if source(option) is line}
    if "ref" in changes:
        changes.setdefault("revision", None)
    return plan.model_copy(update={"model": plan.model.model_copy(update=changes)})


def _apply(plan: Plan, chosen: dict[str, Any], engine: LlamaCpp | Vllm | None) -> Applied:
    from lorasize.report import Progress
    from lorasize.training.run import ApplyOptions, Loading
    from lorasize.verbs import apply as verb

    if chosen["retain"] is not None and chosen["max_drift"] is None and plan.max_drift is None:
        chosen["max_drift"] = _MAX_DRIFT
    names = ("method", "threshold", "margin", "max_steps", "time_limit", "escalate", "seed", "device", "retain")
    loading = Loading(chosen["attn"], chosen["device_map"])
    how = ApplyOptions(**{name: chosen[name] for name in (*names, "max_drift", "base_adapter")}, loading=loading)
    with Progress(quiet=chosen["quiet"]) as progress:
        as_planned = how.max_drift in (None, math.inf if plan.max_drift is None else plan.max_drift)
        progress.expect(plan if as_planned else None)  # else it is of another adapter
        progress.doing("loading the model")
        applied = verb.apply(plan, chosen["out"], how, progress.event, engine)
        progress.note(f"wrote {applied.folder}")
        if applied.folder != chosen["out"]:
            progress.note(f"{chosen['out']} holds a proven adapter and stays as it is")
        if chosen["learn"] is not False and (learned := _learn(plan, applied, asked=chosen["learn"] is True)):
            progress.note(learned)
    return applied


def _learn(plan: Plan, applied: Applied, *, asked: bool) -> str | None:
    """What the calibration learned from a run, or why nothing where that was asked for."""
    from lorasize.report import learned_line
    from lorasize.verbs.learn import learn

    if applied.observation is None:
        why = "a run that was limited, began from another adapter or was not under the plan's bound is not like a probe"
    else:
        learned = learn(plan.inputs.calibration_sha256, applied.observation, copy_shipped=asked)
        if not isinstance(learned, str):
            return learned_line(learned)
        why = learned
    return f"nothing was learned: {why}" if asked else None


def _refuse_over_budget(plan: Plan, file: Path) -> int:
    over = ", ".join(budget.id for budget in plan.budgets if budget.result == "fail")
    say(f"error: {file} is over budget ({over}): it is not applied")
    say("hint: plan again with another budget, or without one")
    return OVER_BUDGET


def _list_issues(plan: Plan) -> None:
    for issue in plan.feasibility.issues:
        say(f"{issue.file}:{issue.line}: {issue.message}")
