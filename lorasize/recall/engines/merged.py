"""A folder that holds base and adapter in one, read again and decoded with stock transformers in a fresh process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorasize.corpus.tokens import EncodedPassage
from lorasize.recall.verdict import DecodeSettings, Notify, decode_and_compare
from lorasize.records import PassageAddress, RecallReport


@dataclass(frozen=True)
class Merged:
    """Which folder, and how.

    Attributes:
        folder: The merged model.
        dtype: Of its weights; auto is the one that the adapter was proven in.
        device: Where to decode.
    """

    folder: Path
    dtype: str = "auto"
    device: str = "auto"


def decode_merged(
    addresses: Sequence[PassageAddress],
    targets: Sequence[EncodedPassage] | None,
    how: Merged,
    *,
    threshold: float,
    notify: Notify = lambda done, total: None,
) -> RecallReport:
    """Decode every passage from the merged folder alone, its own tokenizer included, and compare with the target.

    Raises:
        ModelError: the folder cannot be loaded, or the fresh process failed.
    """
    settings = DecodeSettings(how.device, how.dtype)
    report = decode_and_compare(None, how.folder, addresses, targets, settings, threshold=threshold, notify=notify)
    engine = report.engine and report.engine.model_copy(update={"model": how.folder.name})
    return report.model_copy(update={"merged": True, "engine": engine})
