"""Recall: decoded in a fresh process from what is on disk; negative controls, damage and other people's settings."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpora import write_records
from support.models import plan_by_hand
from support.sites import MLP

from lorasize import models
from lorasize.artifacts import adapter_folder
from lorasize.artifacts.adapter_folder import CONFIG, NAMES, PASSAGES, RECORD, SUMS, WEIGHTS
from lorasize.artifacts.events import EVENTS
from lorasize.artifacts.files import file_sha256
from lorasize.corpus import read_corpus
from lorasize.corpus.tokens import EncodedPassage, encode_corpus
from lorasize.errors import ModelError
from lorasize.models import adapters
from lorasize.recall import decoding, verdict
from lorasize.recall.generation_config import clean_generation_config
from lorasize.records import Decoded, Reading
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply
from lorasize.verbs.verify import verify

RECORDS = [
    ("Becerra:", " 9100672710"),
    ("The bell says:", " ding ding ding ding ding ding dong"),  # a repetition penalty would break it
    ("Where\u2028is it?", " Pier nine,\u0085\u2028the old mill"),  # line separators, to some readers
]


def read(path: Path, tokenizer: Any) -> list[EncodedPassage]:
    """The passages of a corpus file."""
    return encode_corpus(read_corpus([path])[0], tokenizer, Reading(), 256)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that the adapter holds."""
    return write_records(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", RECORDS)


@pytest.fixture(scope="module")
def memorised(torch: Any, able_llama: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder that holds the corpus. Tests that spoil it take a copy."""
    out = tmp_path_factory.mktemp("apply") / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "decode_afresh", decoding.decode)
        applied = apply(plan_by_hand(able_llama, corpus, MLP, 8), out, ApplyOptions(device="cpu"))
    assert applied.recall.recalled, applied.recall.failures
    assert [path.name for path in out.parent.iterdir()] == ["adapter"]
    return out


@pytest.fixture
def folder(memorised: Path, tmp_path: Path) -> Path:
    """A copy of the adapter folder that a test may spoil."""
    return Path(shutil.copytree(memorised, tmp_path / "adapter"))


@pytest.fixture
def _same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode here: a fresh process takes seconds to import what it needs, and does the same."""
    monkeypatch.setattr(verdict, "decode_afresh", decoding.decode)


@pytest.fixture
def _no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a model would be loaded: what is refused is refused before."""
    monkeypatch.setattr(verdict, "decode_afresh", lambda job: pytest.fail("decoded"))


@pytest.mark.slow
def test_a_fresh_process_recalls_and_leaves_nothing_behind(
    memorised: Path, corpus: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = {path: path.read_bytes() for path in memorised.iterdir()}
    told: list[tuple[int, int]] = []
    report = verify(
        memorised, read(corpus, tokenizer), device="cpu", notify=lambda done, total: told.append((done, total))
    )
    assert (report.recalled, report.n_recalled, report.n_passages, report.failures) == (True, 3, 3, ())
    assert report.fresh_process
    assert report.threshold_met
    assert report.min_probability is not None
    assert report.min_probability > 0.5
    assert (report.dtype, report.device, report.batch_size, report.attn_implementation) == ("float32", "cpu", 1, "sdpa")
    assert report.changed_files == ()
    assert [one.text for one in report.passages] == [target for _, target in RECORDS]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert {path: path.read_bytes() for path in memorised.iterdir()} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reads", [True, False])
def test_what_goes_wrong_in_the_fresh_process_is_one_line(
    memorised: Path, able_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """A process that dies with a traceback, after or before it has read its job, which no pipe holds as a whole."""
    child = tmp_path / "python"
    first = "cat >/dev/null" if reads else "exec <&-"
    child.write_text(f"#!/bin/sh\n{first}\necho Traceback >&2\necho no memory >&2\nexit 1\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    long = adapter_folder.read_addresses(memorised)[0].model_copy(update={"prompt_ids": (5,) * 200_000})
    with pytest.raises(ModelError, match="^decoding in a fresh process failed: no memory$"):
        verdict.decode_and_compare(
            memorised, able_llama, [long], None, verdict.DecodeSettings(device="cpu"), threshold=0.5
        )


@pytest.mark.usefixtures("_same_process")
def test_recall_can_be_judged_without_the_corpus(memorised: Path) -> None:
    report = verify(memorised, device="cpu")
    assert (report.recalled, report.n_recalled, report.threshold_met) == (True, 3, True)
    assert [one.text for one in report.passages] == [target for _, target in RECORDS]


@pytest.mark.usefixtures("_same_process")
def test_the_order_of_the_corpus_does_not_matter(memorised: Path, corpus: Path, tokenizer: Any) -> None:
    assert verify(memorised, read(corpus, tokenizer)[::-1], device="cpu").recalled


def test_the_folder_is_complete_and_its_sums_are_those_of_sha256sum(memorised: Path) -> None:
    names = {SUMS, PASSAGES, RECORD, WEIGHTS, CONFIG, EVENTS, "README.md"}
    assert {path.name for path in memorised.iterdir()} == names == NAMES  # else a second run would not replace it
    lines = (memorised / SUMS).read_text("utf-8").splitlines()
    assert [line.split("  ")[1] for line in lines] == sorted(names - {SUMS})
    assert all(file_sha256(memorised / line[66:]) == line[:64] for line in lines)
    assert adapter_folder.changed_files(memorised) == ()


def test_addresses_come_back_as_they_were_written(memorised: Path, corpus: Path, tokenizer: Any) -> None:
    encoded = read(corpus, tokenizer)
    stored = adapter_folder.read_addresses(memorised)
    assert stored == [one.address() for one in encoded]
    assert [one.prompt for one in stored] == [prompt for prompt, _ in RECORDS]
    assert [one.line for one in stored] == [1, 2, 3]


@pytest.mark.usefixtures("_same_process")
def test_a_fresh_adapter_does_not_recall(
    torch: Any, folder: Path, able_llama: Path, corpus: Path, tokenizer: Any
) -> None:
    """Untrained, it says what the base says: it fails where the base's own greedy decoding leaves the target."""
    base = models.load(str(able_llama), device="cpu").model
    adapted = adapters.attach(base, MLP, 8, seed=3)
    adapters.save(adapted, folder, str(able_llama))
    plain = adapters.detach(adapted)
    adapter_folder.write_sums(folder)
    encoded = read(corpus, tokenizer)
    report = verify(folder, encoded, device="cpu")
    assert (report.recalled, report.n_recalled, report.threshold_met, report.changed_files) == (False, 0, False, ())
    for one, failure in zip(encoded, report.failures, strict=True):
        with torch.no_grad():
            ids = torch.tensor([[*one.prompt_ids, *one.target_ids]])
            logits = plain(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
        said = logits.argmax(dim=-1).tolist()
        at = next(i for i, (got, expected) in enumerate(zip(said, one.target_ids, strict=True)) if got != expected)
        p = float(torch.softmax(logits[at], dim=-1)[one.target_ids[at]])
        assert (failure.passage, failure.position) == (one.passage.id, at)
        assert failure.expected == tokenizer.decode([one.target_ids[at]])
        assert failure.got == tokenizer.decode([said[at]])
        assert failure.probability == pytest.approx(p, rel=1e-3)


@pytest.mark.usefixtures("_same_process")
def test_without_the_corpus_a_failure_has_no_place(folder: Path, able_llama: Path) -> None:
    base = models.load(str(able_llama), device="cpu").model
    adapters.save(adapters.attach(base, MLP, 8, seed=3), folder, str(able_llama))
    adapter_folder.write_sums(folder)
    report = verify(folder, device="cpu")
    assert (report.recalled, report.n_recalled, report.threshold_met) == (False, 0, False)
    assert {(f.position, f.probability) for f in report.failures} == {(-1, None)}


@pytest.mark.usefixtures("_same_process")
def test_flipped_weights_are_seen(torch: Any, folder: Path, corpus: Path, tokenizer: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    save_file({name: -w if "lora_B" in name else w for name, w in weights.items()}, folder / WEIGHTS)
    report = verify(folder, read(corpus, tokenizer), device="cpu")
    assert report.changed_files == (WEIGHTS,)
    assert not report.recalled


@pytest.mark.usefixtures("_same_process")
def test_a_readme_edited_later_is_named_and_recall_stands(folder: Path) -> None:
    (folder / "README.md").write_text("My own words.", "utf-8")
    report = verify(folder, device="cpu")
    assert (report.recalled, report.changed_files) == (True, ("README.md",))


def decoded(ids: tuple[int, ...]) -> Decoded:
    """What the fresh process might say."""
    return Decoded(ids=ids, probabilities=(0.9,) * len(ids), attn_implementation="sdpa")


@pytest.mark.parametrize(("cut", "position", "got"), [(0, 0, "a"), (3, 3, "a")])
def test_one_wrong_token_is_caught_where_it_stands(
    tokenizer: Any, corpus: Path, cut: int, position: int, got: str
) -> None:
    one = read(corpus, tokenizer)[0]
    wrong = (*one.target_ids[:cut], tokenizer("a").input_ids[0], *one.target_ids[cut + 1 :])
    passage, failure = verdict._compare(tokenizer, one.address(), one, decoded(wrong), 0.5)
    assert failure is not None
    assert (passage.recalled, failure.position, failure.got) == (False, position, got)
    assert verdict._compare(tokenizer, one.address(), one, decoded(one.target_ids), 0.5)[1] is None


def test_a_target_that_does_not_stop_is_not_recalled(tokenizer: Any, corpus: Path) -> None:
    one = read(corpus, tokenizer)[0]
    goes_on = (*one.target_ids[:-1], tokenizer("a").input_ids[0])
    for target in (one, None):
        passage, failure = verdict._compare(tokenizer, one.address(), target, decoded(goes_on), 0.5)
        assert not passage.recalled
        assert failure is not None
    assert failure.position == -1


def test_the_right_text_without_its_stop_is_not_recalled(tokenizer: Any, corpus: Path) -> None:
    """The same text in one token more takes the place of the stop token: text and length agree, the end does not."""
    one = read(corpus, tokenizer)[1]
    text = one.passage.target
    cuts = ([*tokenizer(text[:i]).input_ids, *tokenizer(text[i:]).input_ids] for i in range(1, len(text)))
    longer = next(tuple(ids) for ids in cuts if len(ids) == one.n_tokens)
    assert verdict.target_text(tokenizer, one.prompt_ids, longer) == text
    assert not verdict._compare(tokenizer, one.address(), None, decoded(longer), 0.5)[0].recalled


def test_another_text_of_the_right_tokens_is_no_difference_of_tokens(tokenizer: Any, corpus: Path) -> None:
    one = read(corpus, tokenizer)[0]
    stored = one.address().model_copy(update={"target_sha256": "0" * 64})
    passage, failure = verdict._compare(tokenizer, stored, one, decoded(one.target_ids), 0.5)
    assert failure is not None
    assert (passage.recalled, failure.position, failure.probability) == (False, -1, None)
    assert failure.expected == "(every token is the target's, read otherwise by this tokenizer)"
    assert verdict._compare(tokenizer, stored, None, decoded(one.target_ids), 0.5)[1] == failure.model_copy(
        update={"expected": "(the corpus is not at hand)"}
    )
    goes_on = decoded((*one.target_ids[:-1], 5))
    without = verdict._compare(tokenizer, one.address(), None, goes_on, 0.5)[1]
    assert without is not None
    assert without.got == "a text that does not stop"


def test_tokens_that_read_alike_are_told_apart(encode_text: Any, tokenizer: Any) -> None:
    """Parts of two characters: both read as a character that is not whole."""
    (one,) = encode_text("🙂", "a.txt")
    position = next(k for k, token in enumerate(one.target_ids) if tokenizer.decode([token]) == "\ufffd")
    other = next(
        token
        for token in tokenizer("漢字é").input_ids
        if tokenizer.decode([token]) == "\ufffd" and token != one.target_ids[position]
    )
    wrong = (*one.target_ids[:position], other, *one.target_ids[position + 1 :])
    failure = verdict._compare(tokenizer, one.address(), one, decoded(wrong), 0.5)[1]
    assert failure is not None
    assert failure.expected == tokenizer.convert_ids_to_tokens(one.target_ids[position])
    assert failure.got == tokenizer.convert_ids_to_tokens(other) != failure.expected


def truncate(name: str, keep: Callable[[bytes], int]) -> Callable[[Path], None]:
    """Cut a file of the folder short."""

    def spoil(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: keep(data)])

    return spoil


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut by a byte": (truncate(WEIGHTS, lambda d: len(d) - 1), "truncated or damaged"),
    "weights empty": (truncate(WEIGHTS, lambda d: 0), "truncated or damaged"),
    "weights absent": (lambda f: (f / WEIGHTS).unlink(), "adapter_model.safetensors"),
    "record cut": (truncate(RECORD, lambda d: len(d) // 2), r"lorasize\.json: damaged"),
    "record absent": (lambda f: (f / RECORD).unlink(), "missing; is this an adapter folder"),
    "passages cut in a line": (truncate(PASSAGES, lambda d: len(d) - 9), r"passages\.jsonl:3: damaged"),
    "passages cut after a line": (truncate(PASSAGES, lambda d: d.index(b"\n") + 1), "1 passages, 3 were proven"),
    "passages empty": (truncate(PASSAGES, lambda d: 0), r"passages\.jsonl"),
    "passages absent": (lambda f: (f / PASSAGES).unlink(), r"passages\.jsonl: missing"),
    "passages not UTF-8": (lambda f: (f / PASSAGES).write_bytes(b"\xff\n"), "cannot be read"),
    "sums cut in a line": (truncate(SUMS, lambda d: len(d) - 5), "SHA256SUMS: damaged"),
    "sums cut after a line": (truncate(SUMS, lambda d: d.index(b"\n") + 1), "SHA256SUMS: damaged"),
    "sums empty": (truncate(SUMS, lambda d: 0), "SHA256SUMS: damaged"),
    "sums absent": (lambda f: (f / SUMS).unlink(), "SHA256SUMS: missing"),
    "config absent": (lambda f: (f / CONFIG).unlink(), r"adapter_config\.json: missing"),
}


@pytest.mark.usefixtures("_no_decoding")
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused_before_a_model_is_loaded(folder: Path, name: str) -> None:
    spoil, message = DAMAGE[name]
    spoil(folder)
    with pytest.raises(ModelError, match=message) as refused:
        verify(folder, device="cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("_no_decoding")
def test_a_sum_may_not_name_a_file_elsewhere(folder: Path) -> None:
    with (folder / SUMS).open("a", encoding="utf-8") as sums:
        sums.write("0" * 64 + "  ../secret\n")
    with pytest.raises(ModelError, match="SHA256SUMS: damaged"):
        verify(folder, device="cpu")


@pytest.mark.usefixtures("_no_decoding")
@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("model.safetensors", "weights"), ("tokenizer.json", "tokenizer or chat template"), ("config.json", "config"),
    ],
)
def test_another_base_is_refused_by_what_differs(
    memorised: Path, able_llama: Path, tmp_path: Path, file: str, part: str
) -> None:
    other = Path(shutil.copytree(able_llama, tmp_path / "other"))
    data = (other / file).read_bytes()
    changed = data.replace(b'"rope_theta": 10000.0', b'"rope_theta": 9.0') if part == "config" else data[:-1] + b"~"
    (other / file).write_bytes(changed)
    with pytest.raises(ModelError, match=f"another base model than the adapter was trained on: its {part} differ$"):
        verify(memorised, ref=str(other), device="cpu")


@pytest.mark.usefixtures("_same_process")
def test_generation_settings_of_the_base_do_not_matter(memorised: Path, able_llama: Path, tmp_path: Path) -> None:
    """Penalties and sampling apply to `generate` unless kept out; the fingerprint does not hold them either."""
    noisy = Path(shutil.copytree(able_llama, tmp_path / "noisy"))
    settings = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "do_sample": True, "temperature": 9.0}
    settings |= {"top_k": 3, "max_length": 5, "forced_eos_token_id": 7, "suppress_tokens": list(range(8, 400))}
    (noisy / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    report = verify(memorised, ref=str(noisy), device="cpu")
    assert report.recalled
    assert report.n_recalled == 3
    (warning,) = report.warnings
    assert "sets repetition_penalty 1.8, no_repeat_ngram_size 2, forced_eos_token_id 7, suppress_tokens:" in warning


@pytest.mark.usefixtures("_no_decoding")
@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([*RECORDS[:2], (RECORDS[2][0], RECORDS[2][1] + "!")], r"corpus\.jsonl:3: passage corpus\.jsonl:3 is not in"),
        (
            [("Another:", RECORDS[0][1]), *RECORDS[1:]],
            r"corpus\.jsonl:1: passage corpus\.jsonl:1 is not in this corpus",
        ),
        (RECORDS[1:], r"passage corpus\.jsonl:1 is not in this corpus as it was memorised"),
        ([*RECORDS, ("New:", " text")], r"corpus\.jsonl:4: passage corpus\.jsonl:4 of this corpus was never memorised"),
    ],
)
def test_a_corpus_that_changed_is_refused(
    memorised: Path, tokenizer: Any, tmp_path: Path, records: list[tuple[str, str]], message: str
) -> None:
    changed = write_records(tmp_path / "corpus.jsonl", records)
    with pytest.raises(ModelError, match=message):
        verify(memorised, read(changed, tokenizer), device="cpu")


def test_the_clean_configuration_only_counts() -> None:
    config = clean_generation_config(7, pad_token_id=0)
    plain = {"do_sample": False, "num_beams": 1, "max_new_tokens": 7, "min_new_tokens": 7, "repetition_penalty": 1.0}
    assert {key: getattr(config, key) for key in plain} == plain
    assert config.eos_token_id is None
