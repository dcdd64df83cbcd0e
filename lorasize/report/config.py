"""The configuration in force, as a table."""

from __future__ import annotations

from rich.console import Group

from lorasize.records import Config
from lorasize.report.text import label, listing


def config_table(config: Config) -> Group:
    """One line a key: its value and where that comes from; then the files that were read."""
    rows = [[v.key, _shown(v.value), v.source] for v in config.values]
    files = [label(f"read: {file}", "dim") for file in config.files]
    return Group(listing([("key", False), ("value", False), ("source", False)], rows), *files)


def _shown(value: str | float | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:,}"
