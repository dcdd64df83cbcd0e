"""Text that an adapter is not trained on, to see what it does to it: by how much loss and predictions move.

Mean loss alone would hide change: a text may gain where another loses. So the divergence from the base model's
predictions, KL(base ‖ adapted), is measured beside it, and the share of positions whose likeliest token stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorasize.artifacts.events import Measuring
from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.neutral import neutral_text, windows
from lorasize.losses.statistics import Statistics, statistics_of
from lorasize.losses.texts import texts, windows_of
from lorasize.losses.token_losses import compared, divergence_gradient
from lorasize.models import BaseModel
from lorasize.models.adapters import adapted_pairs
from lorasize.records import RETAINED, Drift, KindDrift
from lorasize.training.base_states import Known, known_by_the_base, seen_by_the_base
from lorasize.training.fast_path import FastPath
from lorasize.training.guard import Guard, GuardState
from lorasize.training.rate import BOUNDED_RATE

if TYPE_CHECKING:
    from peft import PeftModel

# Tokens of each kind of text that is watched, of each that is shown, and of the user's own; not tuned.
TOKENS_WATCHED, TOKENS_SHOWN, TOKENS_RETAINED = 48, 160, 2048
WATCHED_SHARE = 1.25  # of the bound, that what is watched may use up: docs/log/harm.md#what-is-watched-moves-more
_PROMPTS_PULL = 1.0  # of the pull on prompts, beside the loss to be learned: docs/log/harm.md#what-a-prompt-begins-with
_PROMPT_TOKENS, _PROMPT_POSITIONS = 16, 128  # of a prompt, and of all; not tuned
_ROOM = 0.6  # share of the bound up to which there is room to pull less; not tuned
_EVERY = 5  # steps between two measurements while the bound is broken; not tuned
# Share of stubborn tokens below which harm is undone all the same: docs/log/harm.md#one-token-of-thousands
_NEARLY_NONE = 0.001
_TIGHTER = 0.8  # of what other texts must fall to, that the watched ones must; not tuned


@dataclass(frozen=True)
class OtherText:
    """Text that an adapter is not trained on, and what the base model is known to do on such text.

    Attributes:
        passages: Windows of each text, by its kind.
        bound: Nats per token that loss and predictions may move by; None where they are only measured.
        statistics: Of the linear layers that the adapter sits on, by name; needed where there is a bound.
        kept_for: The base model, where what it makes of the texts may be kept between runs: none of them is a user's.
    """

    passages: Mapping[str, Sequence[EncodedPassage]]
    bound: float | None = None
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    kept_for: BaseModel | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts of the corpus, position by position, and what the base model makes of them.

    A prompt begins as other text does: with a bracket, a quotation mark, a word. What the adapter says there is no part
    of what it is to hold, and nothing else keeps it from saying something else.

    Attributes:
        path: The batches, through the layers and the head that the corpus runs through.
        predicted: What the base model predicts for each batch, probabilities of shape (vocabulary, token).
    """

    path: FastPath
    predicted: Sequence[Tensor]

    def pull(self) -> None:
        """Add the gradient of KL(base ‖ adapted) on the prompts, as a mean over positions, to the parameters'."""
        n = sum(len(batch.targets) for batch in self.path.batches)
        for batch, base in zip(self.path.batches, self.predicted, strict=True):
            hidden = self.path.hidden(batch)
            gradient = divergence_gradient(self.path.head, hidden.detach(), base)
            hidden.backward(gradient * (_PROMPTS_PULL / n))


@dataclass
class Control:
    """Texts in batches, and what the base model makes of them.

    Attributes:
        path: The batches, through the layers and the head that the corpus runs through.
        kinds: The kind of each passage of the batches, by its index.
        known: What the base model makes of each batch.
        bound: Nats per token that loss and predictions may move by; None where they are only measured.
        guard: What holds the adapter back; None without a bound.
        prompts: What holds it back on the beginnings of the corpus's own prompts; None where nothing is to be held.
        drift: As last measured.
        waited: Steps since then.
        tightened: How often the bound was tightened.
    """

    path: FastPath
    kinds: Sequence[str]
    known: Sequence[Known]
    bound: float | None
    guard: Guard | None = None
    prompts: Prompts | None = None
    drift: Drift | None = None
    waited: int = 0
    tightened: int = 0

    @property
    def allowed_rate(self) -> float | None:
        """The fastest learning rate that the bound allows; None without one."""
        return None if self.guard is None else self.guard.rate(BOUNDED_RATE)

    @property
    def harmed(self) -> bool:
        """Whether the bound is broken by what was last measured."""
        return self.drift is not None and self.drift.broken

    @property
    def harms(self) -> bool:
        """Whether the texts moved at all."""
        return self.drift is not None and self.drift.share_of_bound > 0.0

    @property
    def moved(self) -> float | None:
        """How far the texts had moved when last measured, nats per token; None without a bound."""
        return None if self.bound is None or self.drift is None else self.drift.moved

    @torch.no_grad()
    def measure(self) -> Drift:
        """What the adapter as it is does to the texts."""
        sums: dict[str, Tensor] = {}
        with self.path.suffix.entered():
            for batch, base in zip(self.path.batches, self.known, strict=True):
                seen = compared(self.path.head, self.path.hidden(batch), base, batch.targets)
                for passage, piece in zip(batch.passages, seen.split(list(batch.lengths)), strict=True):
                    kind = self.kinds[passage]
                    one = torch.cat([piece.sum(dim=0), piece.new_tensor([len(piece)])])
                    sums[kind] = sums[kind] + one if kind in sums else one
        self.drift, self.waited = _record(sums, self.bound), 0
        return self.drift

    @property
    def fresh(self) -> bool:
        """Whether no step was taken since it was last measured."""
        return self.drift is not None and self.waited == 0

    def judge(self) -> Drift:
        """Measure if need be, with the guard told of harm that was not there before."""
        before = self.harmed
        found = self.drift if self.drift is not None and self.fresh else self.measure()
        if self.guard is not None and found.broken and not before:
            self.guard.harm_found()
        return found

    def tighten(self, share: float) -> None:
        """Have the texts move less: others, which nobody watched, moved by so many times their own bound.

        Takes it that both move in proportion, from what was last measured here.
        """
        assert self.drift is not None
        assert self.bound is not None
        self.bound *= _TIGHTER * self.drift.share_of_bound / share
        self.drift = self.drift.model_copy(update={"bound": self.bound})
        self.tightened += 1
        if self.guard is not None:
            self.guard.harm_found()

    def pull(self) -> None:
        """Add to the gradients what holds the adapter back."""
        if self.guard is not None:
            self.guard.pull()
        if self.prompts is not None:
            self.prompts.pull()

    def stepped(self, loss: float, stubborn: float, n_parts: int = 1) -> None:
        """After a step on the corpus.

        Args:
            loss: Its mean loss, nats per token.
            stubborn: Share of its tokens that have not passed.
            n_parts: Steps that one look at all of it takes.
        """
        self.waited += 1
        if self.guard is None:
            return
        slow = self.guard.stepped(loss, stubborn)
        if self.harmed or stubborn > 0:
            self.guard.balance(held=stubborn == 0 or (self.harmed and stubborn < _NEARLY_NONE), n_parts=n_parts)
        if slow or (self.harmed and self.waited >= _EVERY):
            found = self.judge()
            if slow and found.share_of_bound < _ROOM:
                self.guard.soften()

    def to_json(self) -> dict[str, Any]:
        """What later steps depend on, as JSON values."""
        return {
            "drift": None if self.drift is None else self.drift.model_dump(),
            "waited": self.waited,
            "bound": self.bound,
            "tightened": self.tightened,
            "guard": None if self.guard is None else self.guard.state.to_json(),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Continue where `to_json` was taken."""
        self.drift = None if values["drift"] is None else Drift(**values["drift"])
        self.waited, self.bound, self.tightened = values["waited"], values["bound"], values["tightened"]
        if self.guard is not None:
            self.guard.state = GuardState.from_json(values["guard"])


def _record(sums: Mapping[str, Tensor], bound: float | None) -> Drift:
    kinds = []
    for kind, one in sorted(sums.items()):
        before, after, divergence, same, n = one.tolist()
        kinds.append(
            KindDrift(kind=kind, before=before / n, after=after / n, divergence=divergence / n, unchanged=same / n)
        )
    mean = {name: sum(getattr(k, name) for k in kinds) / len(kinds) for name in ("before", "after", "divergence")}
    return Drift(
        before=mean["before"],
        after=mean["after"],
        nats=mean["after"] - mean["before"],
        bound=bound,
        divergence=mean["divergence"],
        kinds={one.kind: one.after - one.before for one in kinds},
        texts=tuple(kinds),
    )


def control_of(
    adapted: PeftModel, corpus: FastPath, other: OtherText, encoded: Sequence[EncodedPassage] = ()
) -> Control:
    """The texts as batches, with the base model's states on them, which are run once and without the adapter.

    Args:
        adapted: The model with its adapter, which is put aside while this runs.
        corpus: The fast path of the corpus that is trained on; the texts run through the same layers and head.
        other: The texts.
        encoded: The corpus, whose prompts are held to what the base model makes of them where there is a bound.
    """
    texts = [window for windows in other.passages.values() for window in windows]
    kinds = [kind for kind, windows in other.passages.items() for _ in windows]
    path, known = known_by_the_base(adapted, corpus, texts, other.kept_for)
    if other.bound is None:
        return Control(path, kinds, known, None)
    begins = [] if corpus.gated else _beginnings(encoded)
    prompts = _prompts(adapted, corpus, begins) if begins else None
    return Control(path, kinds, known, other.bound, Guard(adapted, other.statistics), prompts)


@torch.no_grad()
def _prompts(adapted: PeftModel, corpus: FastPath, begins: Sequence[EncodedPassage]) -> Prompts:
    """These prompts with what the base model predicts in them."""
    path, states = seen_by_the_base(adapted, corpus, begins)
    return Prompts(path, [torch.softmax(path.head.logits(one), dim=0) for one in states])


def _beginnings(encoded: Sequence[EncodedPassage]) -> list[EncodedPassage]:
    """Prompts of which no other one shares most, as texts that are predicted from their first token on."""
    found: list[EncodedPassage] = []
    known: set[tuple[int, ...]] = set()
    room = _PROMPT_POSITIONS
    for one in encoded:
        ids = one.prompt_ids[: _PROMPT_TOKENS + 1]
        begun = [ids[:n] for n in range(1, len(ids))]
        if sum(start in known for start in begun) <= len(begun) / 2 and len(begun) <= room and begun:
            found.append(EncodedPassage(one.passage, ids[:1], ids[1:]))
            known.update(begun)
            room -= len(begun)
    return found


def other_text(
    base: BaseModel,
    adapted: PeftModel,
    retained: str,
    bound: float | None,
    notify: Callable[[Measuring], None] = lambda event: None,
) -> OtherText | None:
    """The texts that are watched under a bound, with the base model's statistics; None without one.

    Args:
        base: The base model.
        adapted: The same with its adapter.
        retained: Text of the user's that counts as well.
        bound: Nats per token that loss and predictions on them may move by.
        notify: Told of what takes long.
    """
    if bound is None:
        return None
    watched = {kind: windows_of(base, text, TOKENS_WATCHED) for kind, text in texts("control").items()}
    paths = list(adapted_pairs(adapted))
    with adapted.disable_adapter():
        statistics = statistics_of(base, paths, retained, lambda done, total: notify(Measuring(done, total)))
    kept_for = None if retained else base
    return OtherText(watched | _retained(base, retained), WATCHED_SHARE * bound, statistics, kept_for)


def _retained(base: BaseModel, text: str) -> dict[str, list[EncodedPassage]]:
    return {RETAINED: windows_of(base, text, TOKENS_RETAINED)} if text else {}


def shown_drift(
    base: BaseModel, adapted: PeftModel, corpus: FastPath, retained: str = "", *, bounded: bool = True
) -> Drift:
    """What an adapter does to texts that its training did not look at, and to the user's own.

    Args:
        base: The base model.
        adapted: The same with its adapter.
        corpus: The fast path of the corpus that it was trained on.
        retained: Text of the user's that must not suffer.
        bounded: Whether the texts are those of the report; else the neutral one, as for the probes of a calibration.
    """
    shown = {kind: windows_of(base, text, TOKENS_SHOWN) for kind, text in texts("report").items()}
    if not bounded:
        shown = {"neutral": windows(neutral_text(), base.tokenizer, base.max_positions - 1, base.n_ids)}
    other = OtherText(shown | _retained(base, retained), kept_for=None if retained else base)
    return control_of(adapted, corpus, other).measure()
