"""Options that several commands share, and the types of their values. Import costs click alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lorasize.cli.nearest import ExistingPath, near_path
from lorasize.errors import LorasizeError
from lorasize.units import parse_bytes, parse_seconds

if TYPE_CHECKING:
    from lorasize.planning import Limits

Command = TypeVar("Command", bound=Callable[..., Any])

PLAN_FILE = "lorasize.plan.json"
ADAPTER_FOLDER = "adapter"
_MOST_LAYERS = 10_000
MAX_RANK = 4096  # that of `records`, whose import takes longer than the rest of `--help`

DTYPES = ("auto", "float32", "bfloat16", "float16")
PRESETS = ("brief", "quick", "standard", "thorough")
MINIMIZE = ("parameters", "bytes", "seconds")
SERVE = ("peft", "vllm", "llama.cpp", "merged")
QUANTIZE = ("none", "nf4", "int8")
ATTENTION = ("auto", "eager", "sdpa", "flash_attention_2")
METHODS = ("memft", "memft-ot", "memft-sw", "sft")
FORMATS = ("auto", "text", "markdown", "json", "jsonl", "csv", "tsv", "parquet")
COLUMNS = ("strict", "warn", "ignore")


class Finite(click.FloatRange):
    """A number in a range; NaN, which compares with nothing, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


PROBABILITY = Finite(0.0, 1.0, min_open=True, max_open=True)
AT_LEAST_ONE = click.IntRange(1, 10**15)


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes meant by a size such as "4 MB"."""
    return None if value is None else round(_parse(parse_bytes, value, context, parameter))


def duration(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Seconds meant by a time such as "15 min"."""
    return None if value is None else _parse(parse_seconds, value, context, parameter)


def _parse(
    parse: Callable[[str], float], value: str, context: click.Context, parameter: click.Parameter
) -> float:
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def drift(context: click.Context, parameter: click.Parameter, value: str | float | None) -> float | None:
    """Nats per token meant by a bound on drift; infinite for "off"."""
    if value is None:
        return None
    if str(value).strip().lower() == "off":
        return math.inf
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise click.BadParameter(f"{value!r} is neither a number from 0 on nor off", context, parameter)
    return number


def layers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Decoder layers meant by "14-24,26"; none of them for "all", which is every one."""
    if value is None or value.strip().lower() == "all":
        return None if value is None else ()
    try:
        ends = [[int(end) for end in part.split("-")] for part in value.split(",")]
        if any(len(pair) > 2 or pair != sorted(pair) or pair[-1] > _MOST_LAYERS for pair in ends):
            raise ValueError
    except ValueError:
        raise click.BadParameter(f"{value!r} names no layers, such as 14-24,26 or all", context, parameter) from None
    return tuple(sorted({k for pair in ends for k in range(pair[0], pair[-1] + 1)}))


def assignments(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The columns named by `name=column` values."""
    pairs = [value.partition("=") for value in values]
    wrong = [value for value, (name, _, column) in zip(values, pairs, strict=True) if not (name and column)]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not of the form name=column", context, parameter)
    return {name: column for name, _, column in pairs}


def json_object(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any]:
    """The JSON object that the value spells; empty when there is none."""
    try:
        found = {} if value is None else json.loads(value, parse_constant=float)
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"not JSON: {error}", context, parameter) from None
    if not isinstance(found, dict):
        raise click.BadParameter("must be a JSON object, such as '{\"enable_thinking\": false}'", context, parameter)
    return found


def require_file(path: Path) -> Path:
    """The path.

    Raises:
        LorasizeError: nothing is there; the nearest name is offered.
    """
    if not path.exists():
        raise LorasizeError(f"{path}: there is no such file{near_path(path)}")
    return path


def all_of(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Several options as one decorator, in the order in which help shows them."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


model = click.option("--model", metavar="MODEL", help="Base model: a folder, .gguf file, hub id or builtin:… name.")
same_model = click.option(
    "--model", metavar="MODEL", help="The plan's base model where it is named otherwise here, such as a folder."
)
revision = click.option("--revision", help="Revision of a model on the hub.")
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda[:i], mps or xpu.")
dtype = click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="Of the base model.")


def attention(auto: str) -> Callable[[Command], Command]:
    """The attention kernel; `auto` says what it is where none is named."""
    return click.option(
        "--attn", type=click.Choice(ATTENTION), default="auto", show_default=True,
        help=f"Attention kernel; auto is {auto}.",
    )  # fmt: skip


attn = attention("the best that the model has here")
quantize = click.option(
    "--quantize", type=click.Choice(QUANTIZE), default="none", show_default=True,
    help="Quantise the base model's weights as they are read, by bitsandbytes.",
)  # fmt: skip
quantize_as_proven = click.option(
    "--quantize", "quantize_as", type=click.Choice(("auto", *QUANTIZE)), default="auto", show_default=True,
    help="Quantise the base model's weights as they are read; auto: as it was proven.",
)  # fmt: skip
device_map = click.option(
    "--device-map", metavar="MAP",
    help="Spread the model over devices, memory and disk: auto, or with limits auto,cpu=8GB.",
)
seed = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of all random numbers."
)
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress and no messages but errors.")
report = click.option(
    "--report", "reports", multiple=True, metavar="FORMAT[=PATH]", allow_from_autoenv=False,
    help="table, json, github, junit, markdown or html; repeatable. Without PATH, or with -, to standard output.",
)  # fmt: skip
plain_report = click.option(
    "--report", "reports", multiple=True, metavar="FORMAT[=PATH]", allow_from_autoenv=False,
    help="table or json; repeatable. Without PATH, or with -, to standard output.",
)  # fmt: skip
output = all_of(quiet, report)
decoding = all_of(
    click.option(
        "--merged/--no-merged", default=None,
        help="Add the adapter to the base's weights first, in their dtype; by default as it was proven.",
    ),
    click.option(
        "--batch-size", type=AT_LEAST_ONE,
        help="Prompts decoded together, padded; by default up to 16 of equal length, unpadded, and on a card one.",
    ),
    attention("as it was proven"),
)

existing = ExistingPath(exists=True, path_type=Path)
existing_file = ExistingPath(exists=True, dir_okay=False, path_type=Path)
existing_folder = ExistingPath(exists=True, file_okay=False, path_type=Path)
any_path = click.Path(path_type=Path)
path_or_name = click.Path()  # as it was typed: hf:// is no path


target_modules = click.option("--target-modules", multiple=True, help="These modules; comma-separated or repeatable.")
at_layers = click.option(
    "--layers", callback=layers, metavar="LAYERS",
    help="These decoder layers, such as 14-24,26, or all; by default those that the modules were probed in.",
)  # fmt: skip


def out(default: str, what: str) -> Callable[[Command], Command]:
    """Where a command writes; never taken from the environment, which would mean every command's."""
    return click.option(
        "--out", type=any_path, default=default, show_default=True, help=what, allow_from_autoenv=False
    )


def pairs_of(
    known: tuple[str, ...], values: tuple[str, ...], what: str
) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, str]]:
    """A callback that reads `name=value` pairs of known names and values."""

    def read(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
        pairs = assignments(context, parameter, given)
        for name, value in pairs.items():
            if name not in known:
                raise click.BadParameter(f"no budget {name!r}; known are {', '.join(known)}", context, parameter)
            if value not in values:
                message = f"{value!r} is no {what}; known are {', '.join(values)}"
                raise click.BadParameter(message, context, parameter)
        return pairs

    return read


BUDGETS = ("rank", "parameters", "bytes", "seconds", "memory", "drift")
LEVELS = ("off", "warn", "error")
ESTIMATES = ("point", "upper")

budgets = all_of(
    click.option("--max-rank", type=AT_LEAST_ONE, help="Budget."),
    click.option("--max-parameters", type=AT_LEAST_ONE, help="Budget."),
    click.option("--max-bytes", callback=size, metavar="SIZE", help='Budget for the weights on disk, such as "4 MB".'),
    click.option("--max-seconds", callback=duration, metavar="TIME", help='Budget for training, such as "15 min".'),
    click.option("--max-memory", callback=size, metavar="SIZE", help='Budget for memory, such as "8 GB".'),
    click.option(
        "--max-drift", callback=drift, metavar="NATS|off",
        help="What other text may move by, nats per token; 0.02 by default, of corpora of up to 26,000 positions. off: "
        "no bound, whatever it does to it.",
    ),
    click.option(
        "--budget-level", "levels", multiple=True, metavar="NAME=LEVEL", callback=pairs_of(BUDGETS, LEVELS, "level"),
        help="off, warn or error (the default) for a budget, such as seconds=warn; repeatable.",
    ),
    click.option(
        "--budget-against", "against", multiple=True, metavar="NAME=ESTIMATE",
        callback=pairs_of(BUDGETS, ESTIMATES, "estimate"),
        help="point or upper estimate for a budget, such as rank=upper; repeatable.",
    ),
)  # fmt: skip


def limits_of(chosen: dict[str, Any]) -> Limits:
    """The budgets among a command's options."""
    from lorasize.planning import Limits

    maxima = {f"max_{name}": chosen[f"max_{name}"] for name in BUDGETS}
    maxima["max_drift"] = None if maxima["max_drift"] == math.inf else maxima["max_drift"]
    return Limits(**maxima, levels=chosen["levels"], against=chosen["against"])


def quantization(chosen: dict[str, Any]) -> str | None:
    """The quantisation among a command's options; None for weights as they are."""
    return None if chosen["quantize"] == "none" else str(chosen["quantize"])


def split_modules(values: tuple[str, ...]) -> tuple[str, ...] | None:
    """Module names from repeated, comma-separated values; None when none is given."""
    names = [name.strip() for value in values for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in names if name)) or None


def model_ref(argument: str | None, option: str | None) -> str | None:
    """The model named as an argument or as an option; the option may also come from a configuration."""
    source = click.get_current_context().get_parameter_source("model")
    if argument and option and argument != option and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(f"two models are named: {argument} and --model {option}")
    return argument or option


def unless_configured(name: str, value: str | None) -> str | None:
    """The value unless a configuration file set it: an adapter knows its own base model better."""
    source = click.get_current_context().get_parameter_source(name)
    return None if source is click.core.ParameterSource.DEFAULT_MAP else value
