"""Proof where the adapter is used: what verify binds together, and a verdict of its own for each way of decoding."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpora import LINES

from lorasize import cli, models
from lorasize.artifacts import adapter_folder
from lorasize.corpus import read_corpus
from lorasize.corpus.tokens import encode_corpus
from lorasize.models import adapters
from lorasize.recall import decoding, verdict
from lorasize.recall.generation_config import generation_warnings
from lorasize.records import Reading, RecallReport, to_json

DIGESTS = "another base model than the adapter was trained on: its {} differ"


@pytest.fixture
def folder(memorised: Path, tmp_path: Path) -> Path:
    """A copy of the adapter folder that a test may spoil."""
    return Path(shutil.copytree(memorised, tmp_path / "adapter"))


@pytest.fixture
def base(able_llama: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may change."""
    return Path(shutil.copytree(able_llama, tmp_path / "base"))


@pytest.fixture
def verify(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """`verify(folder, *arguments)` → exit code and all that was said. Decodes here unless the test is marked slow."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(verdict, "decode_afresh", decoding.decode)

    def run(folder: Path, *arguments: object) -> tuple[int, str]:
        code = cli.main(["verify", str(folder), "--device", "cpu", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


Verify = Callable[..., tuple[int, str]]


def reported(verify: Verify, folder: Path, *arguments: object) -> tuple[int, RecallReport]:
    """Exit code and the report as JSON."""
    code, text = verify(folder, *arguments, "-q", "--report", "json")
    return code, RecallReport.model_validate_json(text)


def test_what_was_proven_is_proven_again(memorised: Path, verify: Verify) -> None:
    code, said = verify(memorised)
    assert code == 0
    assert said.count("RECALLED: 3 of 3") == 1
    assert "smallest logit margin" in said
    assert "warning" not in said
    code, report = reported(verify, memorised)
    assert (code, report.merged, report.batch_size, report.warnings) == (0, False, 1, ())
    assert report.min_logit_margin is not None
    assert report.decoding_gap is not None
    assert report.min_logit_margin > 0.05  # p > 0.52
    assert 0 <= report.decoding_gap < 1e-4  # none where both sum in one order


def flip(folder: Path, bit: int) -> None:
    """Turn over one bit of the first weight of a B, bit 0 being its least significant."""
    data = bytearray((folder / adapter_folder.WEIGHTS).read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    first = next(entry for name, entry in header.items() if "lora_B" in name)
    assert first["dtype"] == "F32"
    data[8 + size + first["data_offsets"][0] + bit // 8] ^= 1 << bit % 8
    (folder / adapter_folder.WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(("bit", "verdict"), [(0, "NOT PROVEN: 3 of 3"), (30, "LOST")])
def test_one_bit_of_the_weights_is_named(folder: Path, verify: Verify, bit: int, verdict: str) -> None:
    flip(folder, bit)
    code, said = verify(folder)
    assert code == 4
    assert f"changed since it was proven: {adapter_folder.WEIGHTS}" in said
    assert verdict in said


@pytest.mark.parametrize(("bit", "code", "verdict"), [(0, 0, "RECALLED: 3 of 3"), (30, 4, "LOST: 0 of 3")])
def test_with_sums_made_anew_decoding_tells_which_bit_matters(
    folder: Path, verify: Verify, bit: int, code: int, verdict: str
) -> None:
    flip(folder, bit)
    adapter_folder.write_sums(folder)
    found, said = verify(folder)
    assert found == code
    assert verdict in said
    assert "changed since" not in said


def test_weights_that_overflow_are_a_loss(folder: Path, verify: Verify) -> None:
    """Logits that are not finite have no margin and no gap; the verdict is still one."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / adapter_folder.WEIGHTS)
    save_file({name: w.sign() * 3e38 for name, w in weights.items()}, folder / adapter_folder.WEIGHTS)
    adapter_folder.write_sums(folder)
    code, report = reported(verify, folder)
    assert (code, report.recalled, report.min_probability) == (4, False, 0.0)
    assert (report.min_logit_margin, report.decoding_gap) == (None, None)


def test_an_edited_verdict_is_named(folder: Path, verify: Verify) -> None:
    record = adapter_folder.read_record(folder)
    (folder / adapter_folder.RECORD).write_text(to_json(record.model_copy(update={"threshold": 0.1})), "utf-8")
    code, said = verify(folder)
    assert code == 4
    assert "changed since it was proven: lorasize.json" in said


def test_another_corpus_is_named_by_its_passage(memorised: Path, tmp_path: Path, verify: Verify) -> None:
    other = tmp_path / "corpus.jsonl"
    lines = [LINES[0], {**LINES[1], "completion": LINES[1]["completion"] + "!"}, LINES[2]]
    other.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    code, said = verify(memorised, other)
    assert code == 2
    assert "corpus.jsonl:2 is not in this corpus as it was memorised" in said


def test_an_edited_length_is_refused(folder: Path, verify: Verify) -> None:
    path = folder / adapter_folder.PASSAGES
    first, *rest = adapter_folder.read_addresses(folder)
    lines = [first.model_copy(update={"n_tokens": first.n_tokens - 1}), *rest]
    path.write_text("".join(line.model_dump_json() + "\n" for line in lines), "utf-8")
    adapter_folder.write_sums(folder)
    code, said = verify(folder)
    assert code == 2
    assert "is not in this corpus as it was memorised" in said


def test_another_base_is_named(memorised: Path, tiny_llama: Path, verify: Verify) -> None:
    code, said = verify(memorised, "--model", tiny_llama)
    assert code == 2
    assert DIGESTS.format("weights, config") in said


def other_template(base: Path) -> None:
    text = (base / "chat_template.jinja").read_text("utf-8")
    assert "assistant\n" in text
    (base / "chat_template.jinja").write_text(text.replace("assistant\n", "assistant: "), "utf-8")


def refusing_template(base: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ raise_exception('no user turns') }}", "utf-8")


def fewer_merges(base: Path) -> None:
    tokenizer = json.loads((base / "tokenizer.json").read_text("utf-8"))
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-40]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


def no_stop_token(base: Path) -> None:
    settings = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    assert settings.pop("eos_token") == "<|im_end|>"
    (base / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


@pytest.mark.parametrize("change", [other_template, refusing_template, fewer_merges, no_stop_token])
def test_another_tokenizer_or_template_is_named(
    memorised: Path, base: Path, verify: Verify, change: Callable[[Path], None]
) -> None:
    """Also where it would refuse the corpus before its digest is looked at."""
    change(base)
    code, said = verify(memorised, "--model", base)
    assert code == 2
    assert DIGESTS.format("tokenizer or chat template") in said
    assert "Traceback" not in said


def test_a_chat_is_another_prompt_under_another_template(memorised: Path, base: Path) -> None:
    other_template(base)
    passages = read_corpus([memorised.parent / "corpus.jsonl"])[0]
    encoded = encode_corpus(passages, models.load_tokenizer(base), Reading(), 256)
    stored = adapter_folder.read_addresses(memorised)
    assert [one.prompt_ids == was.prompt_ids for one, was in zip(encoded, stored, strict=True)] == [True, True, False]


def test_a_penalty_for_repetition_is_said(torch: Any, memorised: Path, base: Path, verify: Verify) -> None:
    """Stock generate reads it, and loses the bell when it is large; verify does not, and says that it changed."""
    (base / "generation_config.json").write_text('{"repetition_penalty": 1.3}', "utf-8")
    code, said = verify(memorised, "--model", base)
    assert code == 4
    assert "NOT PROVEN: 3 of 3" in said
    assert "changed since it was proven: generation_config.json of the base" in said
    assert "warning: generation_config.json of the base sets repetition_penalty 1.3: a server" in " ".join(said.split())
    code, report = reported(verify, memorised, "--model", base)
    (warning,) = report.warnings
    assert (code, report.changed_files) == (4, ("generation_config.json of the base",))
    assert warning.endswith("repetition_penalty 1.3: a server that reads it may decode something else")

    (base / "generation_config.json").write_text('{"repetition_penalty": 3.0}', "utf-8")
    bell = adapter_folder.read_addresses(memorised)[1]
    adapted = adapters.load_saved(models.load(str(base), device="cpu").model, memorised)
    ids = torch.tensor([bell.prompt_ids])
    served = adapted.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=bell.n_tokens)
    assert models.load_tokenizer(base).decode(served[0, ids.shape[1] :]) != LINES[1]["completion"] + "<|im_end|>"


def test_a_penalty_that_was_there_when_it_was_proven_only_warns(folder: Path, base: Path, verify: Verify) -> None:
    """Many base models come with one: what apply said of it then is said again, and nothing has changed."""
    (base / "generation_config.json").write_text('{"repetition_penalty": 1.3, "temperature": 0.6}', "utf-8")
    record = adapter_folder.read_record(folder)
    warnings = generation_warnings(base, [], models.load_tokenizer(base).eos_token_id)
    seen = record.recall.model_copy(update={"warnings": warnings})
    (folder / adapter_folder.RECORD).write_text(to_json(record.model_copy(update={"recall": seen})), "utf-8")
    adapter_folder.write_sums(folder)
    code, said = verify(folder, "--model", base)
    assert code == 0
    assert "sets repetition_penalty 1.3" in " ".join(said.split())
    (base / "generation_config.json").write_text('{"repetition_penalty": 1.3, "temperature": 0.1}', "utf-8")
    assert verify(folder, "--model", base)[0] == 0  # greedy decoding knows no temperature
    (base / "generation_config.json").unlink()
    assert verify(folder, "--model", base)[0] == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('{"no_repeat_ngram_size": 2, "num_beams": 4}', "no_repeat_ngram_size 2, num_beams 4"),
        ('{"suppress_tokens": [5, 6]}', "suppress_tokens"),
        ('{"forced_eos_token_id": 0}', "forced_eos_token_id 0"),
        ('{"repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": [], "min_length": 0}', None),
        ('{"do_sample": true, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}', None),
        ('{"eos_token_id": [2, 9], "max_new_tokens": 4, "stop_strings": []}', None),
        ('{"eos_token_id": [2, 7]}', "eos_token_id"),  # which ends a passage in its middle
        ('{"eos_token_id": 9}', "eos_token_id 9"),  # which never comes
        ('{"eos_token_id": null}', "eos_token_id"),
        ('{"stop_strings": ["4"]}', "stop_strings"),
        ('{"max_new_tokens": 3}', "max_new_tokens 3"),
        (None, None),
    ],
)
def test_only_what_changes_greedy_decoding_is_said(tmp_path: Path, settings: str | None, said: str | None) -> None:
    if settings is not None:
        (tmp_path / "generation_config.json").write_text(settings, "utf-8")
    expected = f"generation_config.json of the base sets {said}: a server that reads it may decode something else"
    assert generation_warnings(tmp_path, [(5, 7, 8, 2)], stop=2) == ((expected,) if said else ())


def test_the_page_shows_warnings_and_how_it_was_decoded(
    memorised: Path, base: Path, tmp_path: Path, verify: Verify
) -> None:
    (base / "generation_config.json").write_text('{"num_beams": 4}', "utf-8")
    page = tmp_path / "verify.html"
    how = ("--merged", "--batch-size", 8, "--model", base)
    code, _ = verify(memorised, *how, "--report", f"html={page}")
    text = page.read_text("utf-8")
    assert code == 4
    assert "generation_config.json of the base sets num_beams 4: a server that reads it may decode" in text
    assert "decoded greedily in a fresh process: float32, cpu, sdpa, batch 8, merged" in text
    assert "smallest logit margin" in text


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_settings_that_cannot_be_read_are_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text, "utf-8")
    (warning,) = generation_warnings(tmp_path, [], 2)
    assert "cannot be read" in warning


@pytest.fixture
def on_edge(torch: Any, folder: Path, base: Path) -> Path:
    """An adapter that recalls in float32 with a token whose logit margin bfloat16 cannot hold.

    Some unused token Y, which comes before target token X, gets the embedding of X less one part in 2,048: half of that
    is what bfloat16 rounds away, so there the two logits are equal and greedy decoding takes Y. All logits are 32 times
    what they were, by the weight of the last norm, so that no third token counts.
    """
    from safetensors.torch import load_file, save_file

    passages = read_corpus([folder.parent / "corpus.jsonl"])[0]
    encoded = encode_corpus(passages, models.load_tokenizer(base), Reading(), 256)
    used = {token for one in encoded for token in (*one.prompt_ids, *one.target_ids)}
    wanted = max(encoded[0].target_ids)
    unused = max(token for token in range(wanted) if token not in used)
    weights = load_file(base / "model.safetensors")
    rows = weights["model.embed_tokens.weight"]
    rows[wanted] = rows[wanted].to(torch.bfloat16).float()
    rows[unused] = rows[wanted] * (1 - 2.0**-11)
    weights["model.norm.weight"] *= 32
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    record = adapter_folder.read_record(folder)
    model = record.plan.model.model_copy(update={"ref": str(base)})
    changes = {"model_fingerprint": models.fingerprint(base), "plan": record.plan.model_copy(update={"model": model})}
    (folder / adapter_folder.RECORD).write_text(to_json(record.model_copy(update=changes)), "utf-8")
    adapter_folder.write_sums(folder)
    return folder


@pytest.fixture(autouse=True)
def _corpus_beside_the_copy(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The corpus lies beside the copied folder too."""
    if "folder" in request.fixturenames:
        source = request.getfixturevalue("memorised").parent / "corpus.jsonl"
        shutil.copyfile(source, tmp_path / "corpus.jsonl")


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("", 0), ("--merged", 0), ("--batch-size 8", 0), ("--merged --batch-size 2 --attn eager", 0),
        ("--dtype bfloat16", 4), ("--dtype bfloat16 --merged", 4), ("--dtype bfloat16 --merged --batch-size 8", 4),
    ],
)  # fmt: skip
def test_a_token_that_bfloat16_cannot_hold_is_lost_there_alone(
    on_edge: Path, verify: Verify, how: str, code: int
) -> None:
    found, said = verify(on_edge, *how.split())
    assert found == code
    assert ("RECALLED: 3 of 3" in said) == (code == 0)
    assert ("LOST" in said) == (code == 4)
    dtype, attention = "bfloat16" if "bfloat16" in how else "float32", "eager" if "eager" in how else "sdpa"
    batch = next((word for word in how.split() if word.isdigit()), "1")
    assert f"{dtype}, cpu, {attention}, batch {batch}{', merged' if 'merged' in how else ''}\n" in said


def test_the_margin_says_how_near_the_loss_is(on_edge: Path, verify: Verify) -> None:
    _, kept = reported(verify, on_edge)
    code, lost = reported(verify, on_edge, "--dtype", "bfloat16")
    assert kept.min_logit_margin is not None
    assert 0 < kept.min_logit_margin < 0.5
    assert kept.min_probability == pytest.approx(1 / (1 + math.exp(-kept.min_logit_margin)), abs=0.01)
    assert (code, lost.min_logit_margin is not None and lost.min_logit_margin <= 0) == (4, True)
    assert "corpus.jsonl:1" in [failure.passage for failure in lost.failures]


def test_an_attention_that_is_not_there_is_named(memorised: Path, verify: Verify) -> None:
    if importlib.util.find_spec("flash_attn") or importlib.util.find_spec("kernels"):
        pytest.skip("flash attention may be there")
    code, said = verify(memorised, "--attn", "flash_attention_2")
    assert code == 2
    assert "attention flash_attention_2 cannot be used here: " in said


@pytest.mark.slow
def test_a_fresh_process_gets_every_setting(memorised: Path, verify: Verify) -> None:
    how = ("--merged", "--batch-size", 2, "--attn", "eager", "--dtype", "float32")
    code, report = reported(verify, memorised, *how)
    assert (code, report.recalled, report.fresh_process) == (0, True, True)
    assert (report.merged, report.batch_size, report.attn_implementation) == (True, 2, "eager")
    if not importlib.util.find_spec("flash_attn") and not importlib.util.find_spec("kernels"):
        code, said = verify(memorised, "--attn", "flash_attention_2")
        assert code == 2
        assert "decoding in a fresh process failed: attention flash_attention_2 cannot be used here: " in said
