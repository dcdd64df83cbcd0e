"""From an adapter folder to the base model it was proven on."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lorasize.artifacts.adapter_folder import CONFIG
from lorasize.artifacts.files import read_text
from lorasize.errors import ModelError
from lorasize.models.references import resolve
from lorasize.records import Memorization


def recorded_base(adapter: Path, record: Memorization, revision: str | None = None) -> Path:
    """The folder of the model that an adapter was made for: as it was named then, else where it lay.

    The name may lead nowhere from the folder one stands in; the place may be that of another machine. Whether what
    is there is still that model is for `check_base` to say.

    Args:
        adapter: The adapter folder.
        record: What its `lorasize.json` says.
        revision: Of the model on the hub; the recorded one when None.

    Raises:
        ModelError: it is in neither.
    """
    named = record.plan.model
    try:
        return resolve(named.ref, revision or named.revision)
    except ModelError:
        place = _place(adapter)
        if place is None:
            raise
        return resolve(place)


def _place(adapter: Path) -> str | None:
    """The folder that `adapter_config.json` names, where it is one of this machine."""
    try:
        place = json.loads(read_text(adapter / CONFIG))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return place if isinstance(place, str) and os.path.isabs(place) and os.path.isdir(place) else None
