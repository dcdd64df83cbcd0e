"""The fast path against the plain model, and what is done where the two differ.

Tolerances: the fast path runs the same float32 operations in another order, so losses agree to 1e-5 nats and
gradients to 1e-4 of their largest value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from support.models import adapter, disturb, plain_losses, random_passages

from lorasize import models
from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.base import base_losses
from lorasize.losses.batches import Batch, make_batches, sequence_length
from lorasize.losses.frozen_layers import Suffix, suffix_of
from lorasize.losses.head import head_of
from lorasize.losses.token_losses import loss_and_gradient
from lorasize.models import BaseModel, adapters
from lorasize.records import Site
from lorasize.training import Trainer, TrainingOptions

LAYERS = {"first": (0,), "middle": (2,), "last": (3,), "two": (1, 3)}
SHAPES = {
    "one passage": ([(5, 12)], 4096),
    "padded together": ([(5, 12), (1, 3), (9, 30), (2, 1)], 4096),
    "several batches": ([(5, 12), (1, 3), (9, 30), (2, 1), (4, 30)], 40),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(("name", "module"), [("llama", "up_proj"), ("gpt2", "c_fc"), ("llama", "v_proj")])
def test_the_fast_path_gives_the_plain_model_s_losses_and_gradients(
    torch: Any, bases: dict[str, BaseModel], name: str, module: str, layers: str, shape: str
) -> None:
    base, (sizes, batch_tokens) = bases[name], SHAPES[shape]
    encoded = random_passages(torch, sizes)
    with adapter(base, Site(target_modules=(module,), layers_to_transform=LAYERS[layers]), 2) as adapted:
        disturb(torch, adapted)
        expected = [plain_losses(torch, adapted, one) for one in encoded]
        sum(loss.sum() for loss in expected).backward()
        wanted = {n: p.grad.clone() for n, p in adapters.parameters(adapted).items()}
        adapted.zero_grad()
        trainer = Trainer(adapted, encoded, TrainingOptions(batch_tokens=batch_tokens))
        assert torch.allclose(trainer.evaluate().losses, torch.cat(expected).detach(), atol=1e-5)
        accumulate_gradients(torch, base, adapters.first_adapted_layer(adapted), encoded, batch_tokens)
        found = {n: p.grad.clone() for n, p in adapters.parameters(adapted).items()}
    for key, gradient in wanted.items():
        assert gradient.any()
        assert torch.allclose(found[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), key


def accumulate_gradients(
    torch: Any, base: BaseModel, first: int, encoded: Sequence[EncodedPassage], batch_tokens: int
) -> None:
    """Gradients of the summed token losses by the fast path, as the loop takes them."""
    suffix, head = Suffix(base.model, first), head_of(base.model)
    batches = make_batches(base.model, encoded, first, batch_tokens, base.device)
    assert sorted(i for batch in batches for i in batch.passages) == list(range(len(encoded)))
    with suffix.entered():
        for batch in batches:
            hidden = suffix.run(batch.ids, batch.stored)[batch.rows, batch.columns]
            gradient = loss_and_gradient(head, hidden.detach(), batch.targets, lambda s: torch.ones_like(s.loss))[2]
            hidden.backward(gradient)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_model_is_itself_again_after_the_fast_path(
    torch: Any, bases: dict[str, BaseModel], name: str, layers: str
) -> None:
    base, encoded = bases[name], random_passages(torch, [(4, 6)])
    with torch.no_grad():
        before = plain_losses(torch, base.model, encoded[0])
        suffix = Suffix(base.model, LAYERS[layers][0])
        with pytest.raises(KeyError), suffix.entered():
            raise KeyError
        assert torch.equal(plain_losses(torch, base.model, encoded[0]), before)
    assert not any(layer._forward_pre_hooks for layer in models.decoder_layers(base.model))


def grown_wild(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entered above its frozen layers, every model gives something else than itself."""
    run = Suffix.run
    monkeypatch.setattr(
        Suffix, "run",
        lambda self, ids, stored: (1.0 if self.first is None else 1.05) * run(self, ids, stored),
    )  # fmt: skip


def crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that hand on something besides their output, which is not there when they are passed over."""
    monkeypatch.setattr(Suffix, "_pass", lambda *_, **__: {}["sliding_attention"])


def in_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of several streams beside each other."""
    from lorasize.losses import frozen_layers

    before = frozen_layers.states_before
    monkeypatch.setattr(frozen_layers, "states_before", lambda *given: before(*given).expand(3, -1, -1, -1))


SETTINGS: dict[str, dict[str, float]] = {"scaled": {"logits_scaling": 2.0}, "capped": {"final_logit_softcapping": 0.1}}


@pytest.mark.parametrize("odd", [grown_wild, crashing, in_streams, "scaled", "capped"])
def test_where_the_fast_path_is_not_the_model_the_whole_model_is_run(
    torch: Any, bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch, odd: Any
) -> None:
    """Same losses and gradients as autograd through the model itself, and it is said."""
    base, encoded = bases["llama"], random_passages(torch, [(4, 6), (3, 9), (30, 40)])
    site = Site(target_modules=("up_proj",), layers_to_transform=(2,))
    with adapter(base, site, 2) as adapted:
        disturb(torch, adapted)
        expected = [plain_losses(torch, adapted, one) for one in encoded]
        sum(loss.sum() for loss in expected).backward()
        wanted = [p.grad.clone() for p in adapters.parameters(adapted).values()]
        adapted.zero_grad()
        if isinstance(odd, str):  # a setting that means something else in this model
            for name, value in SETTINGS[odd].items():
                monkeypatch.setattr(base.model.config, name, value, raising=False)
        else:
            odd(monkeypatch)
        trainer = Trainer(adapted, encoded, TrainingOptions(method="sft"))
        assert torch.allclose(trainer.evaluate().losses, torch.cat(expected).detach(), atol=1e-5)
        with trainer._path.suffix.entered():
            trainer._accumulated(trainer._path.batches)
        found = [p.grad.clone() for p in adapters.parameters(adapted).values()]
        (note,) = trainer.notes
    assert ("its head does more" if isinstance(odd, str) else "all of it is run") in note
    for gradient, same in zip(wanted, found, strict=True):
        assert gradient.any()
        assert torch.allclose(same, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_an_adapter_below_the_layer_entered_is_no_fast_path(torch: Any, bases: dict[str, BaseModel]) -> None:
    """A layer whose weights stand twice in the model: what lies below the second is not frozen."""
    site = Site(target_modules=("up_proj",), layers_to_transform=(1,))
    with adapter(bases["llama"], site, 1) as adapted:
        ids, base = torch.arange(20, 40)[None], adapters.base_of(adapted)
        with adapted.disable_adapter():
            assert (suffix_of(base, 1, ids).first, suffix_of(base, 2, ids).first) == (1, None)
    assert suffix_of(bases["llama"].model, 2, ids).first == 2


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_head_that_is_not_understood_leaves_base_losses_as_they_are(
    torch: Any, bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    base, encoded = bases["llama"], random_passages(torch, [(4, 6), (30, 2)])
    before = base_losses(base, encoded)
    for name, value in SETTINGS[setting].items():
        monkeypatch.setattr(base.model.config, name, value, raising=False)
    for loss, same in zip(base_losses(base, encoded), before, strict=True):
        assert torch.allclose(loss, same, atol=1e-5)


def test_rows_of_a_batch(torch: Any, bases: dict[str, BaseModel]) -> None:
    encoded = random_passages(torch, [(4, 3), (4, 5), (3, 4)])
    (batch,) = make_batches(bases["llama"].model, encoded, 1, 4096, torch.device("cpu"))
    assert batch.passages == (1, 0, 2)
    assert batch.ids.shape == (3, max(map(sequence_length, encoded))) == (3, 8)
    part: Batch = batch.select([0, 2])
    assert (part.passages, part.lengths, part.stored.shape[0]) == ((1, 2), (5, 4), 2)
    assert part.rows.tolist() == [0] * 5 + [1] * 4
    assert part.columns.tolist() == [3, 4, 5, 6, 7, 2, 3, 4, 5]
    assert part.targets.tolist() == [*encoded[1].target_ids, *encoded[2].target_ids]
    assert torch.equal(part.stored[1], batch.stored[2])
    assert batch.select([0, 1, 2]) is batch


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_base_losses_are_the_plain_model_s(
    torch: Any, bases: dict[str, BaseModel], name: str, batch_tokens: int
) -> None:
    base, encoded = bases[name], random_passages(torch, [(5, 12), (1, 3), (9, 30), (2, 1)])
    found = base_losses(base, encoded, batch_tokens)
    assert [len(loss) for loss in found] == [12, 3, 30, 1]
    with torch.no_grad():
        for loss, one in zip(found, encoded, strict=True):
            assert torch.allclose(loss, plain_losses(torch, base.model, one), atol=1e-5)
