"""The commands that make something: calibrate, plan, apply. Each turns its options into one call of a verb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.failures import DONE, INFEASIBLE, NOT_PROVEN, OVER_BUDGET, Invocation
from lorasize.cli.output import emit, parse_reports, say, spare, spare_inputs

if TYPE_CHECKING:
    from lorasize.memorization import Applied
    from lorasize.records import Plan
    from lorasize.sizing import PlanOptions

PLAN_FILE = "lorasize.plan.json"
ADAPTER_FOLDER = "adapter"
_PLAN_OPTIONS = ("calibration", "confidence", "minimize", "rank", "serve", "secrets", "base_adapter")
_MAX_DRIFT = 0.05  # nats per token, where a text to retain is named and no bound


# ---------------------------------------------------------------- calibrate
@click.command(
    epilog="""\b
Example:
  lorasize calibrate
  lorasize calibrate owner/model --device cuda --preset thorough
"""
)
@click.argument("base_model", metavar="[MODEL]", required=False)
@options.all_of(options.model, options.revision, options.device, options.dtype, options.seed)
@click.option(
    "--preset", type=click.Choice(options.PRESETS), default="quick", show_default=True, help="How much is probed."
)
@click.option("--corpus", type=options.existing_file, multiple=True, help="Probe on text of this kind too; repeatable.")
@click.option("--time-limit", callback=options.duration, metavar="TIME", help='No further probe after, say, "15 min".')
@click.option(
    "--executor", default="local", show_default=True, metavar="WHERE", help="local, ray or ray://host:port."
)
@click.option("--workers", type=options.AT_LEAST_ONE, default=1, show_default=True, help="Probes at the same time.")
@options.out("calibrations", "Folder, or a file that ends in .json.")
@options.output
@click.pass_obj
def calibrate(invocation: Invocation, /, base_model: str | None, **chosen: Any) -> int:
    """Measure how much an adapter of MODEL can hold, by small training runs on this device.

    An interrupted calibration goes on where it stopped when the same command is run again.
    """
    targets = parse_reports(chosen["reports"])
    spare_inputs(targets, chosen["corpus"])
    if chosen["out"].suffix == ".json":
        spare(chosen["out"], "lorasize.calibration")
    invocation.model = model_ref(base_model, chosen["model"])
    from lorasize import calibration, models
    from lorasize.probing import executor
    from lorasize.report import Progress

    out: Path = chosen["out"]
    single = out.suffix == ".json"
    folder = out.with_name(f".{out.name}.partial") if single else out
    with Progress(quiet=chosen["quiet"]) as progress:
        progress.doing("loading the model")
        made, path = calibration.calibrate(
            invocation.model or models.BUILTIN, revision=chosen["revision"], device=chosen["device"],
            dtype=chosen["dtype"], preset=chosen["preset"], corpus=chosen["corpus"], seed=chosen["seed"],
            time_limit=chosen["time_limit"], folder=folder, execute=executor(chosen["executor"], chosen["workers"]),
            notify=progress.probe,
        )  # fmt: skip
        if single:
            path = _moved(path, out)
        progress.note(f"wrote {path}")
    emit(made, targets)
    return DONE


def model_ref(argument: str | None, option: str | None) -> str | None:
    """The model named as an argument or as an option; the option may also come from a configuration."""
    source = click.get_current_context().get_parameter_source("model")
    if argument and option and argument != option and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(f"two models are named: {argument} and --model {option}")
    return argument or option


def _moved(path: Path, out: Path) -> Path:
    os.replace(path, out)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
    return out


# ---------------------------------------------------------------- plan
@click.command(
    epilog="""\b
Example:
  lorasize plan page.md table.jsonl
  lorasize plan facts.csv --field prompt=question --max-bytes "4 MB"
"""
)
@click.argument("corpus", nargs=-1, required=True, type=options.any_path)
@options.all_of(options.model, options.revision, options.device, options.dtype)
@click.option("--calibration", type=options.existing_file, help="Calibration file, instead of the nearest that fits.")
@click.option(
    "--confidence", type=options.PROBABILITY, default=0.9, show_default=True, help="Wanted success probability."
)
@click.option(
    "--minimize", type=click.Choice(options.MINIMIZE), default="parameters", show_default=True,
    help="What the adapter should be small in.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(1, 4096), help="This rank; the plan says what it predicts.")
@click.option(
    "--base-adapter", type=options.existing_folder, metavar="FOLDER",
    help="Adapter that holds the corpus as it was; the plan is for training on from it.",
)  # fmt: skip
@click.option("--target-modules", multiple=True, help="These modules; comma-separated or repeatable.")
@click.option(
    "--serve", type=click.Choice(options.SERVE), default="peft", show_default=True, help="Where it will be used."
)
@click.option("--prompt-template", help="Address given to a text passage.")
@click.option("--passage-tokens", type=click.IntRange(min=8), default=512, show_default=True, help="Longest passage.")
@click.option(
    "--field", "fields", callback=options.assignments, metavar="NAME=COLUMN", multiple=True,
    help="Column of a role, such as prompt=question; repeatable.",
)  # fmt: skip
@click.option("--format", "format_", type=click.Choice(options.FORMATS), default="auto", show_default=True)
@click.option(
    "--secrets", type=click.Choice(options.LEVELS), default="warn", show_default=True,
    help="Lines that look like credentials or personal data.",
)  # fmt: skip
@options.budgets
@click.option("--compare", type=options.existing_file, metavar="OLD", help="Plan to report the difference to.")
@options.out(PLAN_FILE, "Plan file.")
@options.output
@click.pass_obj
def plan(invocation: Invocation, /, corpus: tuple[Path, ...], **chosen: Any) -> int:
    """Find the smallest adapter that will hold CORPUS word for word.

    CORPUS is text, Markdown, JSONL, CSV, TSV or Parquet. Exits with 1 over budget and with 5 when no rank can hold it.
    """
    targets = parse_reports(chosen["reports"])
    spare_inputs(targets, (*corpus, chosen["calibration"], chosen["compare"]))
    spare(chosen["out"], "lorasize.plan")
    invocation.model = chosen["model"]
    invocation.corpus = tuple(map(str, corpus))
    from lorasize import models, sizing
    from lorasize.catalog import read_plan, write_plan
    from lorasize.cli import beside
    from lorasize.planning import compare
    from lorasize.report import Progress

    old = None if chosen["compare"] is None else read_plan(chosen["compare"])
    with Progress(quiet=chosen["quiet"]) as progress:
        progress.doing("measuring what the corpus asks of the model")
        sized = sizing.plan(
            corpus, ref=chosen["model"] or models.BUILTIN, revision=chosen["revision"], device=chosen["device"],
            dtype=chosen["dtype"], options=_plan_options(chosen),
        )  # fmt: skip
        made = sized.plan
        if old is not None:
            made = made.model_copy(update={"compared": compare(old, made)})
        write_plan(made, chosen["out"])
        progress.note(f"wrote {chosen['out']}")
    emit(made, targets, lambda: beside.of_plan(sized))
    return {"ok": DONE, "over_budget": OVER_BUDGET, "infeasible": INFEASIBLE}[made.status]


def _plan_options(chosen: dict[str, Any]) -> PlanOptions:
    from lorasize.records import Reading
    from lorasize.sizing import PlanOptions

    return PlanOptions(
        reading=Reading(
            format=chosen["format_"], fields=dict(chosen["fields"]), prompt_template=chosen["prompt_template"],
            passage_tokens=chosen["passage_tokens"],
        ),
        target_modules=options.split_modules(chosen["target_modules"]),
        limits=options.limits_of(chosen),
        **{name: chosen[name] for name in _PLAN_OPTIONS},
    )  # fmt: skip


# ---------------------------------------------------------------- apply
@click.command(
    epilog="""\b
Example:
  lorasize apply
  lorasize apply facts.plan.json --out adapters/facts --time-limit "20 min"
"""
)
@click.argument("plan_file", metavar="[PLAN]", type=options.any_path, default=PLAN_FILE)
@options.all_of(options.same_model, options.revision, options.device, options.seed)
@click.option(
    "--threshold", type=options.PROBABILITY, default=0.5, show_default=True, help="p that every token must exceed."
)
@click.option(
    "--margin", type=options.Finite(0.0, 0.5, max_open=True),
    help="Added to the threshold in training; by default 0.02, and more where decoding is measured to need it.",
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
    help="Text that must not suffer, 2,048 tokens of it; by default a neutral text of lorasize's, only measured.",
)  # fmt: skip
@click.option(
    "--max-drift", type=options.Finite(min=0.0), metavar="NATS",
    help="What the loss on that text may grow by, nats per token; 0.05 with --retain.",
)  # fmt: skip
@click.option("--method", type=click.Choice(options.METHODS), default="memft", show_default=True, help="Objective.")
@click.option(
    "--learn/--no-learn", default=None,
    help="Add this run to the calibration that planned it. By default yours is; --learn also copies a shipped one.",
)  # fmt: skip
@options.out(ADAPTER_FOLDER, "Adapter folder.")
@options.output
@click.pass_obj
def apply(invocation: Invocation, /, plan_file: Path, **chosen: Any) -> int:
    """Train the adapter of PLAN (lorasize.plan.json) and prove from disk that it recalls the corpus.

    Exits with 4 when some passage does not come back, some token is not above the threshold, or --max-drift is broken.
    """
    targets = parse_reports(chosen["reports"])
    from lorasize.records import MARGIN

    if chosen["threshold"] + (MARGIN if chosen["margin"] is None else chosen["margin"]) >= 1:
        raise click.UsageError("--threshold and --margin together must stay below 1")
    from lorasize.catalog import read_plan

    read = _elsewhere(read_plan(options.there(plan_file)), chosen["model"], chosen["revision"])
    invocation.model, invocation.corpus = read.model.ref, tuple(file.path for file in read.corpus.files)
    spare_inputs(targets, (plan_file, chosen["retain"], *map(Path, invocation.corpus)))
    if read.status == "over_budget":
        return _refuse_over_budget(read, plan_file)
    if read.status == "infeasible":
        _list_issues(read)
    applied = _apply(read, chosen)
    from lorasize.cli import beside

    emit(applied.memorization, targets, lambda: beside.of_apply(applied))
    return DONE if applied.memorization.proven else NOT_PROVEN


def _elsewhere(plan: Plan, ref: str | None, revision: str | None) -> Plan:
    """The plan with its model named otherwise on the command line; that it is the same is seen when it is loaded."""
    source = click.get_current_context().get_parameter_source
    told = {"ref": ("model", ref), "revision": ("revision", revision)}
    line = click.core.ParameterSource.COMMANDLINE
    changes = {name: value for name, (option, value) in told.items() if source(option) is line}
    if "ref" in changes:
        changes.setdefault("revision", None)
    return plan.model_copy(update={"model": plan.model.model_copy(update=changes)})


def _apply(plan: Plan, chosen: dict[str, Any]) -> Applied:
    from lorasize import memorization, session
    from lorasize.report import Progress

    if chosen["retain"] is not None and chosen["max_drift"] is None:
        chosen["max_drift"] = _MAX_DRIFT
    names = ("method", "threshold", "margin", "max_steps", "time_limit", "escalate", "seed", "device", "retain")
    how = session.ApplyOptions(**{name: chosen[name] for name in (*names, "max_drift", "base_adapter")})
    with Progress(quiet=chosen["quiet"]) as progress:
        progress.expect(plan.prediction)
        progress.doing("loading the model")
        applied = memorization.apply(plan, chosen["out"], how, progress.event)
        progress.note(f"wrote {applied.folder}")
        if applied.folder != chosen["out"]:
            progress.note(f"{chosen['out']} holds a proven adapter and stays as it is")
        if chosen["learn"] is not False:
            learned = _learn(plan, applied, asked=chosen["learn"] is True)
            if learned:
                progress.note(learned)
    return applied


def _learn(plan: Plan, applied: Applied, *, asked: bool) -> str | None:
    """What the calibration learned from a run, or why nothing where that was asked for."""
    from lorasize.learning import learn
    from lorasize.report import learned_line

    if applied.observation is None:
        why: str = "a run that was limited, bounded or began from another adapter is not as probes train"
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


COMMANDS = (calibrate, plan, apply)
