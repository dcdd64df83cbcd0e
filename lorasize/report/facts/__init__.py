"""What is said of a record, whatever the format: a verdict, names with what there is to say, columns with rows.

Nothing here knows a format: text is neither cleaned nor escaped yet, and rich, matplotlib and jinja2 are not imported.
"""

from __future__ import annotations

Fact = tuple[str, str]
"""A name, and what there is to say; empty where there is nothing."""

Listing = tuple[list[tuple[str, bool]], list[list[str]]]
"""Columns, each with its name and whether it holds numbers, and rows."""
