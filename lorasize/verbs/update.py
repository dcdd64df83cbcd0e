"""An update: a corpus that changed, onto the adapter that holds it as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasize.artifacts.adapter_folder import (
    CONFIG,
    PASSAGES,
    RECORD,
    WEIGHTS,
    changed_files,
    read_addresses,
    read_record,
)
from lorasize.artifacts.files import file_sha256
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.models.fingerprint import check_base
from lorasize.records import Activation, AdapterSpec, Memorization, ModelFingerprint, PassageAddress, PlanUpdate


@dataclass(frozen=True)
class BaseAdapter:
    """The adapter to start from: its folder, its record, and the passages it holds."""

    folder: Path
    record: Memorization
    addresses: tuple[PassageAddress, ...]

    @property
    def spec(self) -> AdapterSpec:
        """Its site and rank."""
        return self.record.adapter


@dataclass(frozen=True)
class Change:
    """Passages by what became of them. Prompts tell passages apart; targets are compared by digest."""

    unchanged: tuple[EncodedPassage, ...]
    changed: tuple[EncodedPassage, ...]
    added: tuple[EncodedPassage, ...]
    removed: tuple[PassageAddress, ...]

    def counts(self) -> dict[str, Any]:
        """How many of each, by the names that `Update` and `PlanUpdate` share."""
        return {
            "n_unchanged": len(self.unchanged),
            "n_changed": len(self.changed),
            "n_added": len(self.added),
            "n_removed": len(self.removed),
        }


def read_base_adapter(folder: Path, base: ModelFingerprint, ref: str) -> BaseAdapter:
    """The adapter in a folder, which must belong to the base model of this fingerprint.

    Raises:
        ModelError: it is no adapter folder of lorasize, is not what was proven, or was trained on another base.
    """
    record = read_record(folder)
    check_base(record.model_fingerprint, base, ref)
    if changed := [name for name in changed_files(folder) if name in (WEIGHTS, CONFIG, PASSAGES, RECORD)]:
        raise ModelError(f"{folder / changed[0]} changed since it was proven: name an adapter that `verify` passes")
    return BaseAdapter(folder, record, tuple(read_addresses(folder)))


def compare(old: Sequence[PassageAddress], new: Sequence[EncodedPassage]) -> Change:
    """What became of each passage."""
    held = {passage.prompt_ids: passage.target_sha256 for passage in old}
    now = {passage.prompt_ids for passage in new}
    same = [p for p in new if held.get(p.prompt_ids) == p.address().target_sha256]
    added = [p for p in new if p.prompt_ids not in held]
    changed = [p for p in new if p.prompt_ids in held and held[p.prompt_ids] != p.address().target_sha256]
    removed = [p for p in old if p.prompt_ids not in now]
    return Change(tuple(same), tuple(changed), tuple(added), tuple(removed))


def priced(adapter: BaseAdapter, change: Change, nats: float) -> PlanUpdate:
    """The plan's record of an update that needs so many nats written beyond what the adapter holds."""
    return PlanUpdate(
        adapter=str(adapter.folder),
        weights_sha256=file_sha256(adapter.folder / WEIGHTS),
        **change.counts(),
        nats=nats,
    )


def require_room(old: AdapterSpec, new: AdapterSpec, folder: Path) -> None:
    """Refuse an adapter that cannot contain the old one.

    Raises:
        ModelError: another site, or a smaller rank.
    """
    if new.site != old.site or new.rank < old.rank:
        raise ModelError(
            f"{folder} has rank {old.rank} of {', '.join(old.target_modules)} in layers "
            f"{', '.join(map(str, old.layers_to_transform))}; the plan is for another adapter: plan with it as the base"
        )


def require_activation(old: BaseAdapter, new: Activation | None) -> None:
    """Refuse to train an activated adapter on for a place where it did not act before, or for none.

    Raises:
        ModelError: what the old adapter acts after is not what the new one does.
    """
    held = old.record.plan.activation
    if held is None or (new is not None and new.alora_invocation_tokens == held.alora_invocation_tokens):
        return
    raise ModelError(
        f"{old.folder} acts after {held.text!r} alone, the plan's adapter does not: plan with it as the base, to act "
        "after the same"
    )
