"""What becomes of a token under an adapter: its loss, KL from the base model and its likeliest token, against torch."""

from __future__ import annotations

from typing import Any

from lorasize.losses.head import Head
from lorasize.losses.token_losses import compared, predicted


def test_what_is_compared_is_what_torch_says(torch: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, base = torch.randn(50, 8, generator=generator), torch.randn(30, 8, generator=generator)
    hidden = base + 0.3 * torch.randn(30, 8, generator=generator)
    targets = torch.randint(50, (30,), generator=generator)
    before, after = (torch.log_softmax(states @ weight.t(), -1) for states in (base, hidden))
    head, rows = Head(weight, None, None, 1.0), torch.arange(30)
    for what in (base, predicted(head, base, targets)):
        found = compared(head, hidden, what, targets)
        torch.testing.assert_close(found[:, 0], -before[rows, targets])
        torch.testing.assert_close(found[:, 1], -after[rows, targets])
        torch.testing.assert_close(found[:, 2], (before.exp() * (before - after)).sum(-1), rtol=1e-4, atol=1e-5)
        assert found[:, 3].bool().tolist() == (before.argmax(-1) == after.argmax(-1)).tolist()


def test_one_product_with_the_head_says_what_two_say(torch: Any) -> None:
    """Of heads with a bias and a scale too; one with a soft cap, or in 16 bits, is no plain product."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(400, 16, generator=generator), torch.randn(400, generator=generator)
    base = torch.randn(70, 16, generator=generator)
    hidden = base + 0.1 * torch.randn(70, 16, generator=generator)
    targets = torch.randint(400, (70,), generator=generator)
    for head in (Head(weight, None, None, 1.0), Head(weight, bias, None, 0.3)):
        known = predicted(head, base, targets)
        one, two = (compared(head, hidden, what, targets) for what in (known, base))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
        same = compared(head, base, known, targets)
        torch.testing.assert_close(same[:, 2], torch.zeros(70), rtol=0, atol=2e-5)
        assert same[:, 3].all()
    assert predicted(Head(weight, None, 30.0, 1.0), base, targets) is None
    assert predicted(Head(weight.bfloat16(), None, None, 1.0), base, targets) is None
