"""The command config: what the options are set to here, and where each value comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorasize.cli import options
from lorasize.cli.config import BUDGET_KEYS, KEYS, read_places, setter, variable
from lorasize.cli.failures import DONE
from lorasize.cli.output import emit, parse_reports, require_plain

if TYPE_CHECKING:
    from lorasize.records import Config, ConfigValue

_COMMANDS = {"calibrate": [], "plan": ["CORPUS"], "apply": []}  # every key is an option of one; what each must be given


@click.command(
    epilog="""\b
Example:
  lorasize config
  LORASIZE_DEVICE=cpu lorasize config --report json
"""
)
@options.plain_report
@click.pass_context
def config(context: click.Context, reports: tuple[str, ...]) -> int:
    """Show every key of lorasize.toml: the value that counts here, and what sets it.

    That is an environment variable LORASIZE_…, lorasize.toml, pyproject.toml, or the default.
    """
    targets = parse_reports(reports)
    require_plain(targets, "a configuration")
    emit(in_force(context.find_root()), targets)
    return DONE


def in_force(root: click.Context) -> Config:
    """Every key with the value that click gives a command which is run without options.

    Raises:
        click.UsageError: a value is not one of those that its option takes.
    """
    from lorasize.records import Config

    assert isinstance(root.command, click.Group)
    known = root.command.commands
    contexts = [known[name].make_context(name, [*given], parent=root) for name, given in _COMMANDS.items()]
    files = tuple(str(place.file.resolve()) for place in read_places(Path()) if place.options)
    return Config(values=tuple(_values(contexts)), files=files)


def _values(contexts: Sequence[click.Context]) -> Iterator[ConfigValue]:
    for key in KEYS:
        yield _value(contexts, key, key)
    for name in BUDGET_KEYS:
        yield _value(contexts, f"budget.{name}", f"max_{name}")
        yield _value(contexts, f"budget.{name}.level", "levels", name, "error")
        against = "upper" if name in ("seconds", "drift") else "point"
        yield _value(contexts, f"budget.{name}.against", "against", name, against)


def _value(
    contexts: Sequence[click.Context], key: str, option: str, budget: str = "", default: str = ""
) -> ConfigValue:
    """The value of an option, or what it says of one budget."""
    from lorasize.records import ConfigValue

    context = next(context for context in contexts if option in context.params)
    value: Any = context.params[option]
    if budget and budget not in value:
        return ConfigValue(key=key, value=default, source="default")
    source = _source(context, option, f"{budget}=" if budget else "")
    return ConfigValue(key=key, value=value[budget] if budget else value, source=source)


def _source(context: click.Context, option: str, entry: str) -> str:
    source = context.get_parameter_source(option)
    if source is click.core.ParameterSource.ENVIRONMENT:
        return variable(context, option)
    return setter(read_places(Path()), option, entry) if source is click.core.ParameterSource.DEFAULT_MAP else "default"
