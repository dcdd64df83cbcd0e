"""Decoding itself on Llama and on GPT-2, in batches and merged; what its gap asks of training, and is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import records as made

from lorasize import models
from lorasize.artifacts import adapter_folder
from lorasize.corpus import read_corpus
from lorasize.corpus.tokens import encode_corpus
from lorasize.models import adapters
from lorasize.recall import decoding, process, verdict
from lorasize.recall.margin import next_target_probability
from lorasize.recall.process import decode_afresh
from lorasize.records import Decoded, DecodeJob, Memorization, Reading, Site
from lorasize.report.facts.recall import smallest

SITES = {"llama": ("up_proj", "o_proj"), "gpt2": ("c_fc", "attn.c_proj")}
PROMPTS = ((5, 9, 40, 41, 300, 7, 7, 12), (17,), (60, 61, 62), (90, 300, 3, 4, 5))
N_TOKENS = (6, 9, 1, 12)


@pytest.fixture(scope="module", params=SITES)
def served(
    request: pytest.FixtureRequest, torch: Any, tiny_llama: Path, tiny_gpt2: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Path]:  # fmt: skip
    """Base and adapter folder: tiny models whose weights are ten times as large, the adapter at random."""
    source = {"llama": tiny_llama, "gpt2": tiny_gpt2}[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = models.load(str(source), device="cpu").model
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.dim() == 2 else 1)
        model.save_pretrained(folder / "base")
        adapted = adapters.attach(model, Site(target_modules=SITES[request.param], layers_to_transform=(1, 2)), 4, 0)
        for parameter in adapters.parameters(adapted).values():
            parameter.normal_(std=0.2)
    adapters.save(adapted, folder / "adapter", "base")
    return folder / "base", folder / "adapter"


def job(served: tuple[Path, Path], **how: Any) -> DecodeJob:
    """All the prompts, without targets unless given."""
    known = {"base": str(served[0]), "adapter": str(served[1]), "device": "cpu", "dtype": "float32"}
    return DecodeJob(**{**known, "prompts": PROMPTS, "targets": (), "n_tokens": N_TOKENS, **how})


def by_hand(torch: Any, served: tuple[Path, Path], dtype: str, merged: bool) -> Iterator[tuple[list[int], Any]]:
    """Ids and logits of each prompt: greedy, one at a time, the whole text read anew at each step.

    Merged weights are W + B A, added in float32 and rounded to the dtype.
    """
    from safetensors.torch import load_file

    model = models.load_weights(served[0], torch.device("cpu"), getattr(torch, dtype))
    if merged:
        weights = load_file(served[1] / adapter_folder.WEIGHTS)
        for name in [name for name in weights if "lora_A" in name]:
            delta = weights[name.replace("lora_A", "lora_B")] @ weights[name]
            module = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            update = delta.T if models.transposes_weights(model) else delta
            module.weight.data = (module.weight.data.float() + update).to(module.weight.dtype)
    else:
        model = adapters.load_saved(model, served[1])
    for prompt, n_tokens in zip(PROMPTS, N_TOKENS, strict=True):
        ids, seen = list(prompt), []
        for _ in range(n_tokens):
            with torch.no_grad():
                seen.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float())
            ids.append(int(seen[-1].argmax()))
        yield ids[len(prompt) :], torch.stack(seen)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_batch_gives_what_each_prompt_gives_alone(
    torch: Any, served: tuple[Path, Path], batch_size: int, merged: bool
) -> None:
    """Also under absolute positions, which GPT-2 has: padding on the left must not shift them."""
    found = list(decoding.decode(job(served, batch_size=batch_size, merged=merged)))
    assert {one.batch_size for one in found} == {None}  # as it was asked for
    for one, (ids, logits) in zip(found, by_hand(torch, served, "float32", merged), strict=True):
        assert list(one.ids) == ids
        p = torch.softmax(logits, dim=-1).max(dim=-1).values
        assert one.probabilities == pytest.approx(p.tolist(), rel=1e-3)
        best = logits.topk(2, dim=-1).values
        assert one.logit_margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), rel=1e-2, abs=1e-4)
        assert one.decoding_gap is not None
        assert one.decoding_gap < 1e-3


def test_prompts_of_equal_length_are_decoded_together_unless_asked_otherwise(
    torch: Any, served: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is padded, results keep their order, and one whose target is far longer stands alone."""
    three, two, more = (5, 9, 40), (7, 8), (6, 10, 41)
    how = {"prompts": (three, two, more, (4, 5, 6)), "n_tokens": (4, 3, 6, 30), "targets": ()}
    monkeypatch.setattr(decoding, "_pads", lambda *_: pytest.fail("nothing is padded"))
    found = list(decoding.decode(job(served, batch_size=None, **how)))
    alone = list(decoding.decode(job(served, batch_size=1, **how)))
    assert [one.ids for one in found] == [one.ids for one in alone]
    assert [one.batch_size for one in found] == [2, 1, 2, 1]  # 4 and 6 are of one kind, 30 is not
    assert [len(one.ids) for one in found] == [4, 3, 6, 30]
    assert all(one.decoding_gap is not None and one.decoding_gap < 1e-3 for one in found)


def test_as_many_are_decoded_together_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {"prompts": ((1, 2),) * 5, "n_tokens": (4,) * 5}
    one = job((Path("base"), Path("adapter")), **how)
    assert decoding._alike(one) == [[0, 1, 2, 3, 4]]
    monkeypatch.setattr(decoding, "_POSITIONS", 20)  # room for two of 2 + 8
    assert decoding._alike(one) == [[0, 1], [2, 3], [4]]
    monkeypatch.setattr(decoding, "_ROWS", 1)
    assert decoding._alike(one) == [[0], [1], [2], [3], [4]]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 8])
def test_merged_weights_in_bfloat16_are_rounded_sums(
    torch: Any, served: tuple[Path, Path], batch_size: int
) -> None:
    """Each token that came is, up to bfloat16's noise, the likeliest of the model merged by hand."""
    targets = tuple(tuple(ids) for ids, _ in by_hand(torch, served, "bfloat16", True))
    how = {"dtype": "bfloat16", "merged": True, "batch_size": batch_size, "targets": targets}
    merged, plain = (list(decoding.decode(job(served, **how | change))) for change in ({}, {"merged": False}))
    for one, (ids, logits) in zip(merged, by_hand(torch, served, "bfloat16", True), strict=True):
        p = torch.softmax(logits, dim=-1).max(dim=-1).values
        assert one.probabilities == pytest.approx(p.tolist(), rel=0.2, abs=0.02)
        same = next((i for i, (got, wanted) in enumerate(zip(one.ids, ids, strict=True)) if got != wanted), None)
        assert same is None or logits[same].max() - logits[same][one.ids[same]] < 0.1 * logits[same].abs().max()
    assert [one.probabilities for one in merged] != [one.probabilities for one in plain]


def test_padding_that_is_not_masked_is_seen_in_the_gap(
    torch: Any, served: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: with a mask of ones, pads count as text and positions are shifted."""
    right = decoding._padded
    monkeypatch.setattr(decoding, "_padded", lambda *a, **k: (right(*a, **k)[0], torch.ones_like(right(*a, **k)[1])))
    alone = list(decoding.decode(job(served, batch_size=4)))  # it is seen beforehand, and nothing is padded then
    assert all(one.decoding_gap is not None and one.decoding_gap < 1e-3 for one in alone)
    assert {one.batch_size for one in alone} == {1}
    monkeypatch.setattr(decoding, "_pads", lambda *_: True)
    found = list(decoding.decode(job(served, batch_size=4)))
    gaps = [one.decoding_gap for one in found]
    assert all(gap is not None and gap > 1e-2 for gap in gaps[1:])
    assert gaps[0] is not None  # the longest prompt has no padding
    assert gaps[0] < 1e-3


def test_decoding_goes_step_by_step_on_its_cache(served: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over the prompts, then a token a row; besides it, one pass over each passage alone."""
    widths: list[tuple[int, int]] = []
    load = models.load_weights

    def watched(*arguments: Any) -> Any:
        model = load(*arguments)
        embedding = model.get_input_embeddings()
        embedding.register_forward_pre_hook(lambda _, ids: widths.append(tuple(ids[0].shape)))
        return model

    monkeypatch.setattr(models, "load_weights", watched)
    monkeypatch.setattr(decoding, "_pads", lambda *_: True)  # which runs it too
    list(decoding.decode(job(served, batch_size=4)))
    alone = [(1, len(prompt) + n - 1) for prompt, n in zip(PROMPTS, N_TOKENS, strict=True)]
    assert widths == [(4, 8), *[(4, 1)] * (max(N_TOKENS) - 1), *alone]


def test_the_gap_ends_where_decoding_leaves_the_target(torch: Any) -> None:
    """After the first other token, the two look at different texts."""
    one_pass, stepwise = torch.tensor([-0.1, -0.2, -0.3]), torch.tensor([-0.1, -0.25, -9.0, 0.0])
    assert float(decoding._gap(one_pass, stepwise, (4, 5, 6), (4, 5, 6))) == pytest.approx(8.7)
    assert float(decoding._gap(one_pass, stepwise, (4, 5, 6), (4, 7, 6))) == pytest.approx(0.05)
    assert float(decoding._gap(one_pass, stepwise, (4, 5, 6), (7, 5, 6))) == 0


def decoded(ids: tuple[int, ...], **changes: Any) -> Decoded:
    """What the fresh process might say."""
    known = {"probabilities": (0.9,) * len(ids), "attn_implementation": "sdpa", "logit_margin": 1.0}
    return Decoded(**{**known, "ids": ids, "decoding_gap": 0.01, **changes})


@pytest.mark.parametrize(
    ("changes", "margin", "gap"),
    [
        ([{}, {"logit_margin": 0.2}, {"decoding_gap": 0.3}], 0.2, 0.3),
        ([{}, {"logit_margin": None}, {}], None, 0.01),
        ([{}, {}, {"decoding_gap": None}], 1.0, None),
    ],
)
def test_the_report_takes_the_worst_passage(
    memorised: Path, able_llama: Path, monkeypatch: pytest.MonkeyPatch, changes: list[dict[str, Any]],
    margin: float | None, gap: float | None,
) -> None:  # fmt: skip
    addresses = adapter_folder.read_addresses(memorised)
    corpus = read_corpus([memorised.parent / "corpus.jsonl"])[0]
    targets = encode_corpus(corpus, models.load_tokenizer(able_llama), Reading(), 256)
    said = [decoded(one.target_ids, **change) for one, change in zip(targets, changes, strict=True)]
    monkeypatch.setattr(verdict, "decode_afresh", lambda job: said)
    report = verdict.decode_and_compare(
        memorised, able_llama, addresses, targets, verdict.DecodeSettings(device="cpu"), threshold=0.5
    )
    assert (report.recalled, report.min_logit_margin, report.decoding_gap) == (True, margin, gap)


@pytest.mark.parametrize(
    ("p", "gap", "trained", "to"),
    [
        (0.52, 1e-5, 0.52, None),  # float32: a margin of 0.02 is ample
        (0.52, 0.039, 0.52, None),  # 0.52 · exp(−0.039) is still above ½
        (0.52, 0.040, 0.52, 0.594),  # and no longer: the least rise, 0.3 in log-odds
        (0.6, 0.39, 0.62, 0.733),  # short by 0.21 nats at 1 − p = 0.4: 0.52 more in log-odds
        (0.3, 0.1, 0.52, 0.722),
        (0.0, 0.1, 0.52, 0.95),
        (0.6, 0.39, 0.95, None),  # there is nothing above
        (None, 0.1, 0.52, None),
        (0.52, None, 0.52, None),
    ],
)
def test_what_to_train_to_next(p: float | None, gap: float | None, trained: float, to: float | None) -> None:
    report = made.recall(min_probability=p, decoding_gap=gap)
    assert next_target_probability(report, 0.5, trained) == (None if to is None else pytest.approx(to, abs=2e-3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"decoding_gap": 0.02}, ""),
        ({"min_logit_margin": 0.01234}, "smallest p 0.5200, smallest logit margin 0.0123"),
        (
            {"min_logit_margin": -0.5, "decoding_gap": 0.0211},
            "smallest p 0.5200, smallest logit margin -0.5; decoding step by step shifts ln p by at most 0.021",
        ),
    ],
)
def test_what_is_smallest_in_words(changes: dict[str, float], said: str) -> None:
    assert smallest(made.recall(min_probability=0.52, **changes)) == said


def test_a_record_from_before_reads_as_it_was_decoded(memorised: Path) -> None:
    """Folders written without the newer fields were decoded unmerged."""
    document = json.loads((memorised / adapter_folder.RECORD).read_text("utf-8"))
    assert document["recall"].pop("merged") is False
    assert Memorization.model_validate(document).recall.merged is False


@pytest.mark.parametrize(
    ("batch_size", "max_positions", "together"),
    [(2, 999, [[0, 1], [2, 3]]), (4, 20, [[0, 1, 2, 3]]), (4, 19, [[0, 1, 2], [3]]), (4, 5, [[0], [1], [2], [3]])],
)
def test_a_batch_has_no_more_positions_than_the_model(
    batch_size: int, max_positions: int, together: list[list[int]]
) -> None:
    """The longest prompt and the most tokens of a batch may belong to different passages."""
    one = job((Path("base"), Path("adapter")), batch_size=batch_size)
    assert list(decoding._together(one, max_positions)) == together


@pytest.mark.slow
def test_passages_that_fit_alone_are_decoded_in_batches(served: tuple[Path, Path]) -> None:
    """Prompts of 200 and 4 tokens with targets of 20 and 200: together they would pass the 256 positions."""
    long, short = tuple(k % 390 + 3 for k in range(200)), (5, 9, 40, 41)
    how = {"prompts": (long, short), "n_tokens": (20, 200)}
    alone, both = (list(decoding.decode(job(served, batch_size=n, **how))) for n in (1, 2))
    assert [one.ids for one in both] == [one.ids for one in alone]


PRINTS = """
import sys

class Talkative:
    def find_spec(name, path=None, target=None):
        if name == "peft":
            print("a banner", flush=True)

sys.meta_path.insert(0, Talkative)
"""


@pytest.mark.slow
def test_a_library_that_prints(served: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What libraries print as they are imported does not get between the records of the fresh process."""
    (tmp_path / "sitecustomize.py").write_text(PRINTS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert [one.ids for one in decode_afresh(job(served))] == [one.ids for one in decoding.decode(job(served))]


@pytest.mark.slow
def test_a_process_that_stands_by_decodes_the_first_job_and_none_outlives_the_work(served: tuple[Path, Path]) -> None:
    wanted = [one.ids for one in decoding.decode(job(served))]
    with process.standing_by(wanted=True):
        (early,) = process._standing_by
        first = [one.ids for one in decode_afresh(job(served))]
        assert early.process.returncode == 0
        assert [one.ids for one in decode_afresh(job(served))] == first == wanted  # a second job: one that starts then
    with process.standing_by(wanted=True):
        (unused,) = process._standing_by
    assert unused.process.returncode is not None
    with process.standing_by(wanted=False):
        assert process._standing_by == []
