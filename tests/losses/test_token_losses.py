"""Token losses and their gradients against autograd, and each objective against weights worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lorasize.errors import ModelError
from lorasize.losses import head
from lorasize.losses.head import Head, OwnLogits, alike, checked_head, head_of
from lorasize.losses.token_losses import TokenLosses, loss_and_gradient, token_losses
from lorasize.training.objectives import Objective, curriculum_share
from lorasize.units import LN2

N, WIDTH, VOCABULARY = 90, 8, 50
HEADS = {
    "plain": (False, None, 1.0),
    "bias": (True, None, 1.0),
    "softcap": (False, 3.0, 1.0),
    "scale": (False, None, 0.25),
    "all three": (True, 5.0, 4.0),
}
ROOMS = {"one chunk": 256 * 2**20, "many chunks": 16 * 4 * VOCABULARY}


@pytest.fixture(params=ROOMS)
def _room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits held at once: of all tokens, or of 16."""
    monkeypatch.setattr(head, "_CHUNK_BYTES", ROOMS[request.param])


@pytest.fixture
def case(torch: Any) -> tuple[Any, Any, Callable[[str], Head]]:
    """Hidden states, targets, and a maker of heads; a third of the targets is what the head would say."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(N, WIDTH, generator=generator)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    bias = torch.randn(VOCABULARY, generator=generator)
    targets = torch.randint(VOCABULARY, (N,), generator=generator)
    targets[::3] = (hidden @ weight.t()).argmax(dim=1)[::3]

    def head(name: str) -> Head:
        has_bias, softcap, scale = HEADS[name]
        return Head(weight, bias if has_bias else None, softcap, scale)

    return hidden, targets, head


def plain_logits(torch: Any, head: Head, hidden: Any) -> Any:
    """Logits by the definition, for autograd."""
    raw = hidden @ head.weight.t() * 1.0
    raw = raw if head.bias is None else raw + head.bias
    raw = raw * head.scale
    return raw if head.softcap is None else head.softcap * torch.tanh(raw / head.softcap)


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize("name", HEADS)
def test_token_losses_are_cross_entropies(torch: Any, case: Any, name: str) -> None:
    hidden, targets, head = case[0], case[1], case[2](name)
    logits = plain_logits(torch, head, hidden)
    found = token_losses(head, hidden, targets)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    assert found.loss.dtype == torch.float32
    assert torch.allclose(found.loss, expected, atol=1e-5)
    assert torch.equal(found.correct, logits.argmax(dim=1) == targets)
    assert 0 < int(found.correct.sum()) < N


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_gradients_are_autograd_s(torch: Any, case: Any, name: str, share: float) -> None:
    hidden, targets, head = case[0].requires_grad_(), case[1], case[2](name)
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(N, generator=generator) * (torch.rand(N, generator=generator) < share)
    given: list[TokenLosses] = []

    def weigh(seen: TokenLosses) -> Any:
        given.append(seen)
        return weights.clone()

    each = torch.nn.functional.cross_entropy(plain_logits(torch, head, hidden), targets, reduction="none")
    (each * weights).sum().backward()
    found, used, gradient = loss_and_gradient(head, hidden.detach(), targets, weigh)
    assert len(given) == 1
    assert torch.allclose(found.loss, each.detach(), atol=1e-5)
    assert torch.equal(given[0].loss, found.loss)
    assert torch.equal(used, weights)
    assert torch.allclose(gradient, hidden.grad, atol=1e-5 * float(hidden.grad.abs().max().clamp(min=1.0)))
    assert not gradient[weights == 0].any()
    assert gradient[weights > 0].any(dim=1).all()


@pytest.mark.usefixtures("_room")
def test_nothing_given_is_changed(torch: Any, case: Any) -> None:
    """Buffers are reused inside: what was given and what was returned before must not be among them."""
    hidden, targets, head = case[0], case[1], case[2]("all three")
    weight, bias, before = head.weight.clone(), head.bias.clone(), hidden.clone()
    first, _, gradient = loss_and_gradient(head, hidden, targets, lambda seen: torch.ones(N))
    kept = first.loss.clone(), gradient.clone()
    loss_and_gradient(head, -hidden, targets.flip(0), lambda seen: torch.ones(N))
    token_losses(head, 2 * hidden, targets)
    assert torch.equal(first.loss, kept[0])
    assert torch.equal(gradient, kept[1])
    assert torch.equal(head.weight, weight)
    assert torch.equal(head.bias, bias)
    assert torch.equal(hidden, before)


@pytest.mark.usefixtures("_room")
def test_a_bfloat16_head_gives_float32_losses(torch: Any, case: Any) -> None:
    hidden, targets, exact = case[0], case[1], case[2]("plain")
    head = Head(exact.weight.bfloat16(), None, None, 1.0)
    found, _, gradient = loss_and_gradient(head, hidden.bfloat16(), targets, lambda seen: torch.ones(N))
    assert found.loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    # Two factors are rounded by 2⁻⁹ of themselves in each of eight products of about 1, and the sum, which is below 16.
    assert torch.allclose(found.loss, token_losses(exact, hidden, targets).loss, atol=0.2)


def test_a_sure_token_loses_nothing_and_a_hopeless_one_stays_finite(torch: Any) -> None:
    head = Head(torch.tensor([[0.0], [200.0]]), None, None, 1.0)
    found = token_losses(head, torch.ones(2, 1), torch.tensor([1, 0]))
    assert found.loss.tolist() == [0.0, 200.0]
    assert found.correct.tolist() == [True, False]


def tiny(torch: Any, name: str, changes: dict[str, Any]) -> Any:
    """A random causal model of a kind that transformers has."""
    import transformers

    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 1}
    shape |= {"pad_token_id": 0, "initializer_range": 0.5, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**shape)).eval()


def test_a_model_that_multiplies_where_others_divide_gives_its_own_logits(torch: Any) -> None:
    """HyperCLOVAX: its `logits_scaling` is what Granite divides by, and the loss would be 53 nats for 4.3."""
    model, ids = tiny(torch, "HyperCLOVAX", {"logits_scaling": 0.125}), torch.arange(2, 22)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    own = float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))
    assert float(token_losses(head_of(model), hidden, ids[0, 1:]).loss.mean()) > 10 * own
    found = checked_head(model, ids)
    assert isinstance(found, OwnLogits)
    assert float(token_losses(found, logits, ids[0, 1:]).loss.mean()) == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "softcap", "scale"),
    [
        ("Llama", {}, None, 1.0),
        ("Gemma2", {"final_logit_softcapping": 7.0}, 7.0, 1.0),
        ("Cohere", {"logit_scale": 0.25}, None, 0.25),
        ("Granite", {"logits_scaling": 8.0}, None, 0.125),
    ],
)
def test_the_head_says_what_the_model_says(
    torch: Any, name: str, changes: dict[str, Any], softcap: float | None, scale: float
) -> None:
    model = tiny(torch, name, changes)
    ids = torch.arange(2, 22)[None]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    head = checked_head(model, ids)
    assert isinstance(head, Head)
    assert (head.softcap, head.scale) == (softcap, scale)
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    assert torch.allclose(token_losses(head, hidden, ids[0, 1:]).loss, expected, atol=1e-5)


def test_a_model_that_looks_ahead_is_refused(torch: Any) -> None:
    import transformers

    changes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    ids, kind = torch.arange(2, 22)[None], transformers.BertLMHeadModel
    for is_decoder in (True, False):
        model = kind(transformers.BertConfig(**changes, intermediate_size=48, is_decoder=is_decoder)).eval()
        torch.nn.init.normal_(model.bert.encoder.layer[0].attention.self.value.weight)
        if is_decoder:
            assert checked_head(model, ids)
        else:
            with pytest.raises(ModelError, match="BertLMHeadModel looks ahead"):
                checked_head(model, ids)


def test_a_model_without_a_head_is_refused() -> None:
    class Headless:
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ModelError, match="Headless has no linear LM head"):
        head_of(Headless())


@pytest.mark.usefixtures("_room")
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_own_logits_are_a_head_that_does_nothing(torch: Any, case: Any, share: float) -> None:
    hidden, targets, head = case[0], case[1], case[2]("all three")
    logits = plain_logits(torch, head, hidden).requires_grad_()
    weights = torch.rand(N, generator=torch.Generator().manual_seed(5)) * (torch.arange(N) < share * N)
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (each * weights).sum().backward()
    kept = logits.detach().clone()
    own = OwnLogits(VOCABULARY)
    found, _, gradient = loss_and_gradient(own, logits.detach(), targets, lambda seen: weights.clone())
    assert torch.allclose(found.loss, each.detach(), atol=1e-5)
    assert torch.allclose(gradient, logits.grad, atol=1e-5)
    assert torch.equal(logits.detach(), kept)


def test_a_difference_at_one_position_is_no_rounding(torch: Any) -> None:
    wanted = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    wanted[0] *= 1000.0  # the first position's states may be that much longer
    other = wanted.clone()
    assert alike(other, wanted)
    other[7] *= 1.02
    assert not alike(other, wanted)
    assert alike(other.bfloat16(), wanted.bfloat16())
    assert not alike(other[:8], wanted)
    wanted[3, 3] = float("nan")
    assert not alike(wanted, wanted)


P = (0.10, 0.49, 0.50, 0.51, 0.81, 0.83, 0.99)


def seen(torch: Any, probabilities: tuple[float, ...], wrong: tuple[int, ...] = ()) -> TokenLosses:
    """Token losses of these p; the tokens at `wrong` are not the argmax."""
    correct = torch.tensor([i not in wrong for i in range(len(probabilities))])
    return TokenLosses(-torch.log(torch.tensor(probabilities)), correct)


@pytest.mark.parametrize(
    ("method", "many", "expected"),
    [
        ("sft", False, (1, 1, 1, 1, 1, 1, 1)),
        ("memft", False, (1, 1, 1, 1, 1, 0, 0)),
        ("memft-ot", False, (1, 1, 1, 0, 0, 0, 0)),
        ("memft-sw", True, (1, 1, 1, 0, 0, 0, 0)),
    ],
)
def test_who_is_trained_on(torch: Any, method: Any, many: bool, expected: tuple[int, ...]) -> None:
    weights = Objective(method, many=many).weights(seen(torch, P), [0], [len(P)])
    assert (weights > 0).int().tolist() == list(expected)
    if method != "memft":
        assert weights.tolist() == list(expected)


def test_ours_weighs_a_token_by_the_root_of_its_loss(torch: Any) -> None:
    weights = Objective("memft").weights(seen(torch, P), [0], [len(P)])
    assert weights.tolist() == pytest.approx([math.sqrt(-math.log(p)) if p < 0.82 else 0.0 for p in P], abs=1e-6)


def test_a_token_exactly_at_the_threshold_is_stubborn(torch: Any) -> None:
    at = TokenLosses(torch.tensor([LN2, LN2 - 1e-6]), torch.tensor([True, True]))
    assert Objective("memft-sw", many=True).weights(at, [0], [2]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("method", "many"), [("memft", False), ("memft-ot", False), ("memft-sw", True)]
)
def test_when_no_token_is_left(torch: Any, method: Any, many: bool) -> None:
    """The published OT falls back to the full loss of the step, which is for the trainer to see."""
    assert Objective(method, many=many).weights(seen(torch, (0.9, 0.95)), [0], [2]).tolist() == [0.0, 0.0]


def test_a_threshold_above_the_release_moves_the_release(torch: Any) -> None:
    weights = Objective("memft", threshold=0.9).weights(seen(torch, (0.6, 0.8, 0.89, 0.91)), [0], [4])
    assert (weights > 0).tolist() == [True, True, True, False]


def by_hand(probability: float, ahead: int, size: float) -> float:
    """Weight of one token in the sliding window, `ahead` positions after its anchor."""
    soft = 1 / (1 + math.exp(-10 * (-math.log(probability) - math.log(2))))
    if ahead < 0:
        return soft
    return soft * (math.exp(-ahead / 20) if ahead <= size else 0.01)


def test_the_sliding_window_by_hand(torch: Any) -> None:
    probabilities = tuple(0.3 + 0.6 * (i % 2) for i in range(70))
    weights = Objective("memft-sw").weights(seen(torch, probabilities, wrong=(4, 9)), [0], [70])
    expected = [by_hand(p, i - 4, 50) for i, p in enumerate(probabilities)]
    assert weights.tolist() == pytest.approx(expected, rel=1e-4)
    assert weights[54] > 4 * weights[56] > 0  # 50 and 52 ahead, the same p: inside and beyond the window


def test_the_window_grows_while_its_anchor_is_stuck_and_shrinks_when_it_moves(torch: Any) -> None:
    objective = Objective("memft-sw")
    probabilities = (0.3,) * 300

    def reach(anchor: int) -> int:
        weights = objective.weights(seen(torch, probabilities, wrong=(anchor,)), [0], [300])
        by_decay = torch.tensor([by_hand(0.3, i - anchor, math.inf) for i in range(300)])
        return int(torch.isclose(weights, by_decay, rtol=1e-3).nonzero().max()) - anchor

    assert [reach(0) for _ in range(4)] == [50, 50, 50, 75]
    assert [reach(0) for _ in range(7)] == [100, 125, 150, 175, 200, 200, 200]
    assert reach(1) == 50


def test_each_passage_has_a_window_of_its_own(torch: Any) -> None:
    objective = Objective("memft-sw")
    both = seen(torch, (0.3,) * 6, wrong=(0, 5))
    weights = objective.weights(both, [8, 3], [3, 3])
    expected = [by_hand(0.3, ahead, 50) for ahead in (0, 1, 2, -2, -1, 0)]
    assert weights.tolist() == pytest.approx(expected, rel=1e-4)
    for _ in range(3):
        objective.weights(seen(torch, (0.3,) * 3, wrong=(2,)), [3], [3])
    assert (objective.windows[8].size, objective.windows[3].size) == (50.0, 75.0)


def test_without_a_wrong_argmax_the_window_is_soft_everywhere(torch: Any) -> None:
    weights = Objective("memft-sw").weights(seen(torch, (0.3, 0.5, 0.9)), [0], [3])
    assert weights.tolist() == pytest.approx([by_hand(p, -1, 50) for p in (0.3, 0.5, 0.9)], rel=1e-4)
    assert weights[1] == pytest.approx(0.5, abs=1e-4)


def test_the_curriculum() -> None:
    shares = {0.0: 0.2, 0.09: 0.2, 0.1: 0.4, 0.25: 0.6, 0.3: 0.8, 0.39: 0.8, 0.4: 1.0, 0.7: 1.0, 1.0: 1.0}
    assert {progress: round(curriculum_share(progress), 6) for progress in shares} == shares


@pytest.mark.parametrize(("vocabulary", "tokens"), [(151_936, 384), (128_256, 512), (49_152, 1344), (10**8, 16)])
def test_chunks_are_of_a_length_that_cards_multiply_fast(torch: Any, vocabulary: int, tokens: int) -> None:
    """A row of 441 logits, as a quarter of a gigabyte would hold of Qwen's, made a step half as long again."""
    weight = torch.empty((vocabulary, 1), device="meta")
    assert Head(weight, None, None, 1.0).chunk == OwnLogits(vocabulary).chunk == tokens
