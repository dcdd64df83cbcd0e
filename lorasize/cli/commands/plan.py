"""The command plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.failures import DONE, INFEASIBLE, OVER_BUDGET, Invocation
from lorasize.cli.options import PLAN_FILE
from lorasize.cli.output import emit, parse_reports, spare, spare_inputs

if TYPE_CHECKING:
    from lorasize.verbs.plan import PlanOptions

_PLAN_OPTIONS: tuple[str, ...] = ("calibration", "confidence", "minimize", "rank", "serve", "secrets", "base_adapter")
_PLAN_OPTIONS += ("activate_after", "max_drift", "layers")


@click.command(
    epilog="""\b
Example:
  lorasize plan page.md table.jsonl
  lorasize plan facts.csv --field prompt=question --max-bytes "4 MB"
  lorasize plan page.md --rank 16 --target-modules q_proj,v_proj --layers all
"""
)
@click.argument("corpus", nargs=-1, required=True, type=options.path_or_name)
@options.all_of(options.model, options.revision, options.device, options.dtype, options.attn)
@options.all_of(options.quantize, options.device_map)
@click.option("--calibration", type=options.existing_file, help="Calibration file, instead of the nearest that fits.")
@click.option(
    "--confidence", type=options.PROBABILITY, default=0.9, show_default=True, help="Wanted success probability."
)
@click.option(
    "--minimize", type=click.Choice(options.MINIMIZE), default="parameters", show_default=True,
    help="What the adapter should be small in.",
)  # fmt: skip
@click.option("--rank", type=click.IntRange(1, options.MAX_RANK), help="This rank; the plan says what it predicts.")
@click.option(
    "--base-adapter", type=options.existing_folder, metavar="FOLDER",
    help="Adapter that holds the corpus as it was; the plan is for training on from it.",
)  # fmt: skip
@options.all_of(options.target_modules, options.at_layers)
@click.option(
    "--serve", type=click.Choice(options.SERVE), default="peft", show_default=True, help="Where it will be used."
)
@click.option(
    "--activate-after", metavar="TEXT",
    help="Let the adapter act after this text of every prompt alone; auto: all that the prompts begin with.",
)  # fmt: skip
@click.option(
    "--prompt-template", metavar="TEMPLATE",
    help="Address given to a text passage, prompt of a record; {prompt}, {file}, {number} or any column.",
)  # fmt: skip
@click.option("--passage-tokens", type=click.IntRange(min=8), default=512, show_default=True, help="Longest passage.")
@click.option(
    "--field", "fields", callback=options.assignments, metavar="NAME=COLUMN", multiple=True,
    help="Column of a role, such as prompt=question; repeatable.",
)  # fmt: skip
@click.option("--format", "format_", type=click.Choice(options.FORMATS), default="auto", show_default=True)
@click.option(
    "--columns", type=click.Choice(options.COLUMNS), default="warn", show_default=True,
    help="Columns that are neither used nor named: strict is an error.",
)  # fmt: skip
@click.option("--system", metavar="TEXT", help="System turn of chats that have none.")
@click.option(
    "--chat-template-kwargs", metavar="JSON", callback=options.json_object,
    help="Given to the model's chat template, such as '{\"enable_thinking\": false}'.",
)  # fmt: skip
@click.option(
    "--secrets", type=click.Choice(options.LEVELS), default="warn", show_default=True,
    help="Lines that look like credentials or personal data.",
)  # fmt: skip
@options.budgets
@click.option("--compare", type=options.existing_file, metavar="OLD", help="Plan to report the difference to.")
@options.out(PLAN_FILE, "Plan file.")
@options.output
@click.pass_obj
def plan(invocation: Invocation, /, corpus: tuple[str, ...], **chosen: Any) -> int:
    """Find the smallest adapter that will hold CORPUS word for word.

    CORPUS is text, Markdown, JSON, JSONL, CSV, TSV or Parquet, .gz or .zst of them, a folder, a pattern, - for standard
    input, or hf://datasets/OWNER/NAME. Exits with 1 over budget and with 5 when no rank can hold it.
    """
    targets = parse_reports(chosen["reports"])
    spare_inputs(targets, (*map(Path, corpus), chosen["calibration"], chosen["compare"]))
    spare(chosen["out"], "lorasize.plan")
    invocation.model = chosen["model"]
    invocation.corpus = corpus
    from lorasize import models
    from lorasize.artifacts.plans import read_plan, write_plan
    from lorasize.cli import companions
    from lorasize.planning import compare
    from lorasize.report import Progress
    from lorasize.verbs import plan as verb

    old = None if chosen["compare"] is None else read_plan(chosen["compare"])
    with Progress(quiet=chosen["quiet"]) as progress:
        progress.doing("measuring what the corpus asks of the model")
        sized = verb.plan(
            corpus, ref=chosen["model"] or models.BUILTIN, revision=chosen["revision"], device=chosen["device"],
            dtype=chosen["dtype"], attn=chosen["attn"], quantization=options.quantization(chosen),
            device_map=chosen["device_map"], options=_plan_options(chosen),
        )  # fmt: skip
        new = sized.plan
        if old is not None:
            new = new.model_copy(update={"compared": compare(old, new)})
        write_plan(new, chosen["out"])
        progress.note(f"wrote {chosen['out']}")
    emit(new, targets, lambda: companions.of_plan(sized))
    return {"ok": DONE, "over_budget": OVER_BUDGET, "infeasible": INFEASIBLE}[new.status]


def _plan_options(chosen: dict[str, Any]) -> PlanOptions:
    from lorasize.records import Reading
    from lorasize.verbs.plan import PlanOptions

    return PlanOptions(
        reading=Reading(
            format=chosen["format_"], fields=dict(chosen["fields"]), prompt_template=chosen["prompt_template"],
            passage_tokens=chosen["passage_tokens"], columns=chosen["columns"], system=chosen["system"],
            chat_template_kwargs=chosen["chat_template_kwargs"],
        ),
        target_modules=options.split_modules(chosen["target_modules"]),
        limits=options.limits_of(chosen),
        **{name: chosen[name] for name in _PLAN_OPTIONS},
    )  # fmt: skip
