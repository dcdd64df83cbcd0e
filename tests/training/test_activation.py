"""What is trained is what PEFT runs: losses and gradients against its own activated forward pass.

Tolerances as in test_fast_path.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.models import disturb, random_passages

from lorasize.corpus.tokens import EncodedPassage
from lorasize.losses.base import base_losses
from lorasize.losses.frozen_layers import Suffix
from lorasize.models import BaseModel, adapters
from lorasize.records import Site
from lorasize.training import Trainer, TrainingOptions
from lorasize.training.graphs import Graphs, Recording

SITES = [("llama", "up_proj", (2,)), ("llama", "v_proj", (1, 3)), ("gpt2", "c_fc", (0, 2))]
BEGINS = (0, 3, 9, 1)


def passages(torch: Any) -> list[EncodedPassage]:
    sizes = [(5, 12), (4, 3), (12, 30), (2, 1)]
    return [replace(one, active_from=k) for one, k in zip(random_passages(torch, sizes), BEGINS, strict=True)]


def by_peft(torch: Any, base: BaseModel, site: Site, encoded: Sequence[EncodedPassage]) -> tuple[Any, dict[str, Any]]:
    """Token losses and the gradients of their sum, by PEFT's activated LoRA on one passage at a time."""
    adapted = adapters.attach(base.model, site, 2, 0, (1,))  # told where to act, it looks for nothing
    disturb(torch, adapted)
    losses = []
    for one in encoded:
        ids = torch.tensor([[*one.prompt_ids, *one.target_ids]])
        logits = adapted(input_ids=ids, use_cache=False, alora_offsets=[ids.shape[1] - one.active_from]).logits
        told = logits[0, len(one.prompt_ids) - 1 : -1].float()
        losses.append(
            torch.nn.functional.cross_entropy(told, torch.tensor(one.target_ids), reduction="none")
        )
    torch.cat(losses).sum().backward()
    found = {name: p.grad.clone() for name, p in adapters.parameters(adapted).items()}
    adapters.detach(adapted)
    return torch.cat(losses).detach(), found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("name", "module", "layers"), SITES)
def test_losses_and_gradients_are_those_of_peft(
    torch: Any, bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch, name: str, module: str,
    layers: tuple[int, ...], whole: bool,
) -> None:  # fmt: skip
    """On the fast path, and where the whole model is run at every step."""
    base, site = bases[name], Site(target_modules=(module,), layers_to_transform=layers)
    encoded = passages(torch)
    expected, wanted = by_peft(torch, base, site, encoded)
    if whole:
        monkeypatch.setattr("lorasize.losses.frozen_layers._enters", lambda *_: False)
    adapted = adapters.attach(base.model, site, 2, 0)
    try:
        disturb(torch, adapted)
        trainer = Trainer(adapted, encoded, TrainingOptions(method="sft", batch_tokens=60))
        assert len(trainer._path.batches) > 1
        assert (trainer._path.suffix.first is None) is whole
        assert torch.allclose(trainer.evaluate().losses, expected, atol=1e-5)
        assert torch.allclose(torch.cat(base_losses(base, encoded)), expected, atol=1e-5)
        parts = [batch.select([k]) for batch in trainer._path.batches for k in range(len(batch.passages))]
        with trainer._path.suffix.entered():
            trainer._accumulated(parts)
        for key, p in adapters.parameters(adapted).items():
            most = float(wanted[key].abs().max())
            assert torch.allclose(p.grad, wanted[key], rtol=1e-3, atol=1e-4 * most), key
        adapted.zero_grad()
        plain = Trainer(adapted, [replace(one, active_from=0) for one in encoded], TrainingOptions())
        assert all(batch.active is None for batch in plain._path.batches)
        assert not torch.allclose(plain.evaluate().losses, expected, atol=1e-3)
    finally:
        adapters.detach(adapted)
    assert not any(module._forward_hooks for module in base.model.modules())


def test_a_recorded_pass_acts_where_a_plain_one_does(
    torch: Any, bases: dict[str, BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def recorded(self: Graphs, shape: tuple[int, int, int], batch: Any) -> Recording:
        recording = Recording.for_shape(shape, batch, self._path.head)

        class Played:
            def replay(self_) -> None:  # noqa: N805
                recording.seen, recording.gradients = self._pass(recording)

        recording.graph = Played()
        return recording

    monkeypatch.setattr(Graphs, "_recorded", recorded)
    adapted = adapters.attach(bases["llama"].model, Site(target_modules=("up_proj",), layers_to_transform=(2,)), 2, 0)
    try:
        disturb(torch, adapted)
        trainer = Trainer(adapted, passages(torch), TrainingOptions(batch_tokens=60))
        found = list(adapters.parameters(adapted).values())
        for batch in trainer._path.batches:
            with trainer._path.suffix.entered():
                trainer._passes.whole_batches = False
                plain, wanted = trainer._passes.learn(batch, None), [p.grad.clone() for p in found]
                adapted.zero_grad()
                trainer._passes.whole_batches = True
                looked, gradients = trainer._passes.learn(batch, 0), [p.grad.clone() for p in found]
                adapted.zero_grad()
            assert torch.allclose(looked.losses.loss, plain.losses.loss, atol=1e-5)
            for one, other in zip(gradients, wanted, strict=True):
                assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    finally:
        adapters.detach(adapted)


def test_states_before_the_text_are_the_base_s(torch: Any, bases: dict[str, BaseModel]) -> None:
    """To the last bit: the adapter adds zero there."""
    base, ids = bases["llama"], torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        plain = Suffix(base.model, None).run(ids, None)
        adapted = adapters.attach(base.model, Site(target_modules=("v_proj",), layers_to_transform=(0, 3)), 2, 0)
        disturb(torch, adapted)
        suffix = Suffix(base.model, None)
        suffix.active = torch.arange(6)[None] >= 4
        with suffix.entered():
            found = suffix.run(ids, None)
        adapters.detach(adapted)
    assert torch.equal(found[:, :4], plain[:, :4])
    assert not torch.allclose(found[:, 4:], plain[:, 4:], atol=1e-4)
