"""Tokens that the head cannot tell apart: the bound against hidden states found by search, and what plan says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.corpora import records
from support.models import edit_head

from lorasize import models
from lorasize.errors import ModelError
from lorasize.losses.head import Head
from lorasize.losses.reach import DISTINCT, Reach, hardship_under, reach_of
from lorasize.probing import probe_passage
from lorasize.records import Calibration, ProbeSpec
from lorasize.verbs.plan import PlanOptions, plan

WIDTH, VOCABULARY, LENGTH = 8, 30, 5.0
HEADS = {
    "plain": (False, None, 1.0),
    "bias": (True, None, 1.0),
    "softcap": (False, 3.0, 1.0),
    "all three": (True, 6.0, 0.5),
}


def a_head(torch: Any, name: str) -> Head:
    """A head whose tokens 1 and 2 are the same, 3 nearly 4, and 5 to 9 nearly each other."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    weight[2] = weight[1]
    weight[4] = weight[3] + 0.01 * torch.randn(WIDTH, generator=generator)
    weight[5:10] = weight[5] + 0.02 * torch.randn(5, WIDTH, generator=generator)
    bias = 0.1 * torch.randn(VOCABULARY, generator=generator)
    bias[2] = bias[1]
    has_bias, softcap, scale = HEADS[name]
    return Head(weight, bias if has_bias else None, softcap, scale)


def searched(torch: Any, head: Head) -> Any:
    """The best log-odds of each token that gradient ascent finds among hidden states of at most LENGTH."""
    hidden = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(2)).requires_grad_()
    climber = torch.optim.Adam([hidden], lr=0.1)
    for _ in range(400):
        inside = hidden * (LENGTH / hidden.norm(dim=1, keepdim=True)).clamp(max=1.0)
        raw = inside @ head.weight.t() + (0.0 if head.bias is None else head.bias)
        logits = raw * head.scale
        logits = logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)
        own = logits.diagonal()
        others = logits.masked_fill(torch.eye(VOCABULARY, dtype=torch.bool), -math.inf)
        odds = own - others.logsumexp(dim=1)
        climber.zero_grad()
        (-odds.sum()).backward()
        climber.step()
    return odds.detach()


@pytest.mark.parametrize("name", HEADS)
def test_no_hidden_state_exceeds_the_bound(torch: Any, name: str) -> None:
    head = a_head(torch, name)
    bound, found = Reach(head, LENGTH).log_odds(range(VOCABULARY)), searched(torch, head)
    assert (found <= bound + 1e-4).all()
    assert found[1] <= 1e-4
    assert -0.2 < bound[1] <= 1e-4
    assert (bound[5:10] < 2.0).all()
    assert (bound[11:] > bound[5:10].max()).all()
    if name == "plain":
        assert found[1] > -0.1  # of two equal rows, p comes up to ½ and never exceeds it


def test_the_rough_distances_do_not_matter(torch: Any) -> None:
    """Beside rows of length 1,000 a distance by products would be off by more than itself."""
    weight = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    weight[:, 0] += 1000.0
    weight[1] = weight[0]
    bound = Reach(Head(weight, None, None, 1.0), 1.0).log_odds([0, 2])
    direct = [(weight - weight[k]).norm(dim=1) for k in (0, 2)]
    for k, distances in enumerate(direct):
        distances[(0, 2)[k]] = math.inf
        assert float(bound[k]) == pytest.approx(float(-torch.logsumexp(-distances, 0)), abs=0.02)


def test_twins_are_impossible_and_near_ones_hard(torch: Any) -> None:
    hard = hardship_under(Reach(a_head(torch, "plain"), LENGTH), [1, 3, 5, 20, 20])
    assert set(hard.impossible) == {1}
    assert hard.impossible[1] == [2]
    assert set(hard.narrow) == {3, 5}
    assert hardship_under(Reach(a_head(torch, "plain"), LENGTH), []).impossible == {}


def test_many_rows_that_are_nearly_alike_are_not_called_equal(torch: Any) -> None:
    """Distances by products of so long rows are off by more than themselves: nothing that is said rests on them."""
    draw = torch.Generator().manual_seed(0)
    weight = 300.0 + 0.003 * torch.randn(200, 16, generator=draw)
    weight[1] = weight[0]
    hard = hardship_under(Reach(Head(weight, None, None, 1.0), LENGTH), range(200))
    assert set(hard.impossible) == {0, 1}


SPEC = ProbeSpec(
    target_modules=("up_proj",), layers_to_transform=(2,), rank=1, kind="random", n_tokens=200, seed=0, max_steps=1
)


def test_a_probe_never_draws_a_token_that_has_a_twin(able_llama: Path, tmp_path: Path) -> None:
    """Half of the vocabulary is one row: what is drawn is the other half, and the same where no row has a twin."""
    plain = models.load(str(able_llama), device="cpu")
    twinned = models.load(str(edit_head(able_llama, tmp_path, {token: 10 for token in range(10, 210)})), device="cpu")
    before, after = (probe_passage(base, SPEC).target_ids[:-1] for base in (plain, twinned))
    assert any(10 <= token < 210 for token in before)
    assert not any(10 <= token < 210 for token in after)
    assert len(after) == len(before) == 199
    assert (reach_of(twinned).log_odds(after) > DISTINCT).all()


def test_a_head_that_tells_nothing_apart_is_refused(able_llama: Path, tmp_path: Path) -> None:
    same = models.load(str(edit_head(able_llama, tmp_path, {token: 0 for token in range(400)})), device="cpu")
    with pytest.raises(ModelError, match="so alike that most tokens can hardly be told apart"):
        probe_passage(same, SPEC)


@pytest.fixture
def twinned(able_llama: Path, tmp_path: Path, tokenizer: Any) -> Path:
    """The able Llama with the row of "Q" in place of that of "Z"."""
    (q,), (z,) = (tokenizer(letter, add_special_tokens=False).input_ids for letter in "QZ")
    return edit_head(able_llama, tmp_path / "twinned", {z: q})


def test_a_corpus_that_needs_one_is_infeasible_at_its_line(
    twinned: Path, calibrated_llama: tuple[Calibration, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.txt"
    page.write_text("The pier is long.\nIts letter is Z.\n", encoding="utf-8")
    sized = plan([page], ref=str(twinned), device="cpu", options=PlanOptions())
    assert sized.plan.status == "infeasible"
    (issue,) = sized.plan.feasibility.issues
    assert (issue.kind, issue.line, issue.passages) == ("token", 2, (0, 0))
    assert "'Z'), whose row of the model's output embedding is that of token" in issue.message
    assert "'Q')" in issue.message


def test_a_record_that_needs_one_is_named_by_its_line(twinned: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.jsonl"
    book.write_text(records(("one:", "good"), ("two:", "Q")), encoding="utf-8")
    sized = plan([book], ref=str(twinned), device="cpu")
    assert [issue.line for issue in sized.plan.feasibility.issues] == [2]
