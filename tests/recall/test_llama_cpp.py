"""llama.cpp as the engine: what its process says, and that it is gone whatever happens. The package is a stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engines import assert_ended, assert_one_line, content
from support.patience import HANGS

from lorasize import cli
from lorasize.artifacts import adapter_folder
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.recall.engines.llama_cpp import LlamaCpp
from lorasize.recall.engines.local import SCRIPT
from lorasize.records import Engine, RecallReport
from lorasize.report.facts.recall import is_proven
from lorasize.verbs.verify import verify

Tell = Callable[..., LlamaCpp]


@pytest.fixture
def tell(tmp_path: Path, tell_engine: Callable[..., None]) -> Tell:
    """`tell(fault=…, at=…, instead={n: answer})` says what the engine does; llama.cpp with the base as a GGUF file."""

    def write(instead: dict[int, Any] | None = None, patience: float = HANGS, **told: Any) -> LlamaCpp:
        tell_engine(instead, **told)
        (tmp_path / "base.gguf").write_bytes(b"GGUF\3\0\0\0" + b"general.file_type\4\0\0\0\3\0\0\0")
        return LlamaCpp(tmp_path / "base.gguf", patience=patience)

    return write


def test_all_comes_back(memorised: Path, passages: list[EncodedPassage], tell: Tell) -> None:
    told: list[tuple[int, int]] = []
    report = verify(memorised, passages, engine=tell(), notify=lambda *n: told.append(n))
    assert (report.recalled, report.threshold_met, report.n_passages) == (True, True, 3)
    assert report.min_probability == pytest.approx(0.9048, abs=1e-4)
    assert report.min_logit_margin == pytest.approx(2.9)
    assert report.engine == Engine(name="llama.cpp", version="xllamacpp 1.2.3", model="base.gguf")
    assert (report.dtype, report.device, report.attn_implementation) == ("Q4_1", "cpu", "llama.cpp")
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert RecallReport.model_validate_json(report.model_dump_json(by_alias=True)) == report


def test_a_record_without_an_engine_is_still_read(memorised: Path, passages: list[EncodedPassage], tell: Tell) -> None:
    record = verify(memorised, passages, engine=tell()).model_dump(by_alias=True, mode="json")
    del record["engine"]
    assert RecallReport.model_validate(record).engine is None


def test_the_first_lost_token_is_named(memorised: Path, passages: list[EncodedPassage], tell: Tell) -> None:
    ids = list(passages[1].target_ids)
    lost = content([*ids[:2], ids[2] - 1, *ids[3:]])  # of which the target's token is the second likeliest
    report = verify(memorised, passages, engine=tell({1: lost}))
    assert (report.recalled, report.n_recalled, report.min_probability) == (False, 2, None)
    (failure,) = report.failures
    assert (failure.passage, failure.position) == (passages[1].passage.id, 2)
    assert failure.probability == pytest.approx(0.0498, abs=1e-4)
    assert not verify(memorised, None, engine=tell({1: lost})).recalled  # by the digest alone


def test_a_text_that_ends_too_early_or_never_is_lost(
    memorised: Path, passages: list[EncodedPassage], tell: Tell
) -> None:
    ids = passages[1].target_ids
    early = verify(memorised, passages, engine=tell({1: content([*ids[:3], ids[-1]])}))
    assert [failure.position for failure in early.failures] == [3]
    never = verify(memorised, passages, engine=tell({1: content([*ids[:-1], 5], stops=False)}))
    assert [failure.position for failure in never.failures] == [len(ids) - 1]


def test_a_token_below_the_threshold_is_not_proven(
    memorised: Path, passages: list[EncodedPassage], tell: Tell
) -> None:
    answer = content(passages[0].target_ids)
    answer["choices"][0]["logprobs"]["content"][0]["logprob"] = -0.9
    report = verify(memorised, passages, engine=tell({0: answer}))
    assert (report.recalled, report.threshold_met) == (True, False)


@pytest.mark.parametrize(("low", "untold", "proven"), [(0, "last", False), (1, "one", False), (None, "last", True)])
def test_a_p_that_is_told_counts_where_others_are_not(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, low: int | None, untold: str, proven: bool
) -> None:
    """An engine that tells no p of the stop token, or of one passage, hides no token below the threshold."""
    instead = {n: content(one.target_ids) for n, one in enumerate(passages)}
    for n, answer in instead.items():
        entries = answer["choices"][0]["logprobs"]["content"]
        if untold == "last" or n == 0:
            entries[-1]["logprob"] = None
        if n == low:
            entries[1]["logprob"] = -0.9
    report = verify(memorised, passages, engine=tell(instead))
    assert report.recalled
    assert is_proven(report) is proven


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"fault": "absent"}, "the package xllamacpp, which holds llama.cpp, is not installed for .*: pip install"),
        ({"fault": "load"}, r"llama.cpp ended \(exit code 1\), at the start: model arch and LoRA arch mismatch"),
        ({"fault": "dies", "at": 2}, r"llama.cpp ended \(signal 9\), at passage 2 of 3 \(.*\): GGML_ASSERT"),
        ({"fault": "refuses", "at": 3}, r"llama.cpp: refused \(request exceeds the available context size\)"),
    ],
    ids=["absent", "load", "dies", "refuses"],
)
def test_an_engine_that_fails_is_one_line(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, told: dict[str, Any], said: str
) -> None:
    assert_one_line(lambda: verify(memorised, passages, engine=tell(**told)), said)


def test_an_engine_that_hangs_is_ended_with_all_that_it_started(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="llama.cpp gave no answer within 5.0 s, at passage 2 of 3"):
        verify(memorised, passages, engine=tell(patience=5.0, fault="hangs", at=2))
    assert_ended(tmp_path / "pids")


def test_an_engine_whose_asker_is_gone_ends(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, tmp_path: Path
) -> None:
    tell(fault="hangs", at=1)
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF")
    job = {"model": "base.gguf", "adapter": str(tmp_path / "adapter.gguf"), "n_context": 256, "n_probs": 5}
    job |= {"prompts": [list(passages[0].prompt_ids)], "n_tokens": [4]}
    command = [sys.executable, str(SCRIPT), "llama.cpp"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"version": "1.2.3"}
        while not (tmp_path / "pids").exists():
            time.sleep(0.02)
        process.stdin.close()  # as when the process that asked is killed
        assert process.wait(timeout=HANGS) == 1
    os.kill(int((tmp_path / "pids").read_text("utf-8").split()[1]), 9)


def test_what_cannot_be_started_is_one_line(memorised: Path, tell: Tell, tmp_path: Path) -> None:
    how = tell()
    with pytest.raises(ModelError, match="nowhere: cannot be started"):
        verify(memorised, None, engine=LlamaCpp(how.model, python=str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match="llama.cpp ended"):
        verify(memorised, None, engine=LlamaCpp(how.model, python="/bin/false"))
    with pytest.raises(ModelError, match=r"absent.gguf: no such file"):
        verify(memorised, None, engine=LlamaCpp(tmp_path / "absent.gguf"))
    with pytest.raises(ModelError, match="which GGUF file of the base is served is not known: name it"):
        verify(memorised, None, engine=LlamaCpp())


@pytest.mark.usefixtures("_folder")
def test_the_command_has_the_same_exit_codes(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(memorised), "--engine", "llama.cpp", "--engine-model", str(tell().model), "-q"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert said.startswith("RECALLED: 3 of 3 passages recalled")
    assert "decoded greedily by llama.cpp (xllamacpp 1.2.3): base.gguf, Q4_1, cpu" in " ".join(said.split())
    tell({1: content(passages[1].target_ids[:-1], stops=False)})
    assert cli.main([*command, "--report", "json"]) == 4
    assert json.loads(capsys.readouterr().out)["engine"]["name"] == "llama.cpp"
    tell(fault="dies", at=2)
    assert cli.main(command) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: llama.cpp ended (signal 9), at passage 2 of 3")
    assert hint.startswith("hint: --engine-model names the base as it is served")
    tell(fault="absent")
    assert cli.main(command) == 2
    assert "name the Python that has it with --engine-python" in capsys.readouterr().err


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--engine", "sglang"], "'sglang' is no engine; known are transformers, llama.cpp, vllm or the address of a"),
        (["--engine", "llama.cpp", "--merged"], "--merged is for transformers, not for llama.cpp"),
        (["--engine", "llama.cpp", "--dtype", "bfloat16"], "--dtype is for transformers and vllm, not for llama.cpp"),
        (["--engine-python", "python3"], "--engine-python is for llama.cpp and vllm, not for transformers"),
        (["--engine", "http://a/v1"], "--served-model must say what the server calls the adapter"),
        (["--engine", "http://a/v1", "--served-model", "a", "--engine-model", "b"], "vllm, not for a server"),
    ],
)
def test_options_of_another_engine_are_refused(
    memorised: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["verify", str(memorised), *options]) == 2
    assert said in capsys.readouterr().err


def test_changed_weights_are_told(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(memorised, tmp_path / "adapter"))
    data = bytearray((folder / adapter_folder.WEIGHTS).read_bytes())
    data[-4] ^= 1
    (folder / adapter_folder.WEIGHTS).write_bytes(data)
    assert verify(folder, passages, engine=tell()).changed_files == (adapter_folder.WEIGHTS,)


@pytest.mark.usefixtures("_folder")
def test_an_exported_file_is_proven_on_demand(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "facts.gguf"
    command = ["export", str(memorised), "--out", str(out), "--prove", "--engine-model", str(tell().model)]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\n"
    assert said.err.startswith("RECALLED: 3 of 3 passages recalled")
    tell({1: content(passages[1].target_ids[:-1], stops=False)})
    assert cli.main(command) == 4
    verdict, lost, how = capsys.readouterr().err.splitlines()
    assert verdict.startswith("LOST: 2 of 3 passages recalled")
    assert lost == "corpus.jsonl:2: a text that does not stop (the corpus is not at hand)"
    assert how.startswith("decoded greedily by llama.cpp (xllamacpp 1.2.3): base.gguf")
    tell(fault="load")
    assert cli.main(command) == 2
    assert capsys.readouterr().err.splitlines()[1].startswith("hint: --engine-model names the base as it is served")


@pytest.mark.usefixtures("_folder")
def test_what_ollama_is_given_is_proven_by_llama_cpp(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = ["export", str(memorised), "--format", "ollama", "--out", str(tmp_path / "facts"), "--prove"]
    command += ["--engine-model", str(tell().model)]
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert said.startswith("RECALLED: 3 of 3 passages recalled")
    assert said.endswith("Ollama itself was not run: check there what it answers\n")
    tell({1: content(passages[1].target_ids[:-1], stops=False)})
    assert cli.main(command) == 4
