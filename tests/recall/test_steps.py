"""Decoding by recorded steps, without a card: the step is run instead of replayed, and compared with `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import adapter, disturb

from lorasize import models
from lorasize.models import BaseModel
from lorasize.recall import decoding
from lorasize.recall.steps import Steps, recorded
from lorasize.records import DecodeJob, Site


@pytest.fixture(scope="module")
def bases(torch: Any, tiny_llama: Path, tiny_gpt2: Path) -> dict[str, BaseModel]:
    """Tiny models in memory, without settings of their own for decoding."""
    from transformers import GenerationConfig

    folders = {"llama": tiny_llama, "gpt2": tiny_gpt2}
    loaded = {name: models.load(str(folder), device="cpu") for name, folder in folders.items()}
    for base in loaded.values():
        base.model.generation_config = GenerationConfig()
    return loaded


SITES = {"llama": "up_proj", "gpt2": "c_fc"}
PROMPTS = ((5, 9, 40, 41, 300, 7, 7, 12), (17,), (60, 61, 62), (90, 300, 3, 4, 5))
N_TOKENS = (6, 9, 1, 12)


def job(targets: Any = ()) -> DecodeJob:
    return DecodeJob(
        base="", adapter="", device="cpu", dtype="float32", prompts=PROMPTS, targets=targets, n_tokens=N_TOKENS,
        attn_implementation="sdpa", batch_size=1, merged=False,
    )  # fmt: skip


def decoded(model: Any, wanted: Any, greedy: Any) -> list[Any]:
    found = []
    for row in range(len(PROMPTS)):
        found += decoding._decode_batch(model, job(wanted), [row], greedy)
    return found


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("known", [True, False])
def test_recorded_steps_give_what_generate_gives(
    torch: Any, bases: dict[str, BaseModel], name: str, known: bool
) -> None:
    """The same tokens and the same ln p, of the targets where they are known, one prompt after another."""
    site = Site(target_modules=(SITES[name],), layers_to_transform=(1, 2))
    with adapter(bases[name], site, 2) as adapted:
        disturb(torch, adapted)
        plainly = decoding._one_by_one(adapted, job())
        wanted = tuple(tuple(range(20, 20 + n)) for n in N_TOKENS) if known else ()
        expected = decoded(adapted, wanted, plainly)
        ours = Steps(adapted, max(len(p) + n for p, n in zip(PROMPTS, N_TOKENS, strict=True)), torch.device("cpu"))
        found = decoded(adapted, wanted, ours.decode)
    assert [one.ids for one in found] == [one.ids for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.decoding_gap == pytest.approx(other.decoding_gap, abs=1e-4)


class Card:
    """A device that says it is a card, and computes on the CPU."""

    type = "cuda"


@pytest.fixture
def on_a_card(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Steps.__init__
    monkeypatch.setattr(Steps, "__init__", lambda s, model, n, device: plain(s, model, n, torch.device("cpu")))
    monkeypatch.setattr(Steps, "record", lambda self, prompt: None)


@pytest.mark.usefixtures("on_a_card")
def test_steps_that_give_something_else_are_not_used(
    torch: Any, bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tokens, another ln p, or an error as it is recorded."""
    model, device = bases["llama"].model, torch.device("cpu")

    def plainly(prompt: Any, wanted: Any, n: int) -> Any:
        (ids,), log_p = decoding._generated(model, device, [prompt], [], n)
        return ids, log_p[0]

    def tried() -> Any:
        return recorded(model, 24, (17, 5), Card(), plainly)  # type: ignore[arg-type]

    assert tried() is not None
    assert recorded(model, 24, (17, 5), device, plainly) is None  # a CPU is no card
    own = Steps.decode
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "decode", lambda s, *a: ([3] * 12, own(s, *a)[1]))
        assert tried() is None
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "decode", lambda s, *a: (own(s, *a)[0], own(s, *a)[1] - 1.0))
        assert tried() is None
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "record", lambda self, prompt: 1 // 0)
        assert tried() is None


def test_a_window_that_slides_has_no_recorded_steps(torch: Any, bases: dict[str, BaseModel]) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match="no fixed size"):
        Steps(MistralForCausalLM(config), 24, torch.device("cpu"))
