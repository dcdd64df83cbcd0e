"""The nearest name that is known, where one is given that is not."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click


def near(name: str, known: Iterable[str]) -> str:
    """A question that offers the nearest known name; empty when none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""


def near_path(path: Path) -> str:
    """The same for a path, among what lies beside it."""
    siblings = {sibling.name: sibling for sibling in path.parent.iterdir()} if path.parent.is_dir() else {}
    matches = difflib.get_close_matches(path.name, siblings, n=1)
    return f"; did you mean {siblings[matches[0]]}?" if matches else ""


class ExistingPath(click.Path):
    """A path at which there must be something; the nearest name is offered where there is nothing."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """The path as click reads it."""
        if not os.path.lexists(value):
            self.fail(f"{value} does not exist{near_path(Path(value))}", param, ctx)
        return super().convert(value, param, ctx)
