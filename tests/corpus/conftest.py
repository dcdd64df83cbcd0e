"""A writer of corpus files."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.corpora import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a corpus file and gives its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write
