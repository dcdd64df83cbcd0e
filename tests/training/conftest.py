"""Tiny models in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorasize import models
from lorasize.models import BaseModel


@pytest.fixture(scope="module")
def bases(torch: Any, tiny_llama: Path, tiny_gpt2: Path, able_llama: Path) -> dict[str, BaseModel]:
    """Tiny models in memory."""
    folders = {"llama": tiny_llama, "gpt2": tiny_gpt2, "able": able_llama}
    return {name: models.load(str(folder), device="cpu") for name, folder in folders.items()}
