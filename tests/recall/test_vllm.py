"""vLLM as the engine: what its process says, and that it is gone whatever happens. The package is a stand-in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engines import assert_ended, assert_one_line, content, gone
from support.patience import HANGS

from lorasize import cli
from lorasize.artifacts.adapter_folder import CONFIG
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.recall.engines.local import SCRIPT
from lorasize.recall.engines.vllm import Vllm
from lorasize.records import Engine, RecallReport
from lorasize.report.facts.recall import is_proven
from lorasize.verbs.verify import verify

Tell = Callable[..., Vllm]


@pytest.fixture
def tell(tell_engine: Callable[..., None]) -> Tell:
    """`tell(fault=…, at=…, instead={n: answer})` says what the engine does; vLLM with the base's own folder."""

    def write(instead: dict[int, Any] | None = None, patience: float = HANGS, **told: Any) -> Vllm:
        tell_engine(instead, **told)
        return Vllm(patience=patience)

    return write


def with_settings(folder: Path, place: Path, **settings: Any) -> Path:
    """A copy of an adapter folder with other settings in `adapter_config.json`."""
    copy = Path(shutil.copytree(folder, place / "adapter"))
    told = json.loads((copy / CONFIG).read_text("utf-8"))
    (copy / CONFIG).write_text(json.dumps({**told, **settings}), "utf-8")
    return copy


def test_all_comes_back(memorised: Path, passages: list[EncodedPassage], tell: Tell) -> None:
    told: list[tuple[int, int]] = []
    asked = {"max_lora_rank": 8, "dtype": "float32", "max_num_seqs": 1, "enable_prefix_caching": False}
    report = verify(memorised, passages, engine=tell(asked=asked), notify=lambda *n: told.append(n))
    assert (report.recalled, report.threshold_met, report.n_passages) == (True, True, 3)
    assert report.min_probability == pytest.approx(0.9048, abs=1e-4)
    assert report.min_logit_margin == pytest.approx(2.9)
    assert report.engine == Engine(name="vLLM", version="vllm 9.8.7", model=None)
    assert (report.dtype, report.device, report.attn_implementation) == ("float32", "cpu", "vLLM")
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert RecallReport.model_validate_json(report.model_dump_json(by_alias=True)) == report


def test_the_dtype_is_the_one_asked_for(memorised: Path, passages: list[EncodedPassage], tell: Tell) -> None:
    tell(asked={"dtype": "bfloat16"})
    assert verify(memorised, passages, engine=Vllm(dtype="bfloat16")).dtype == "bfloat16"


def test_the_first_lost_token_is_named(memorised: Path, passages: list[EncodedPassage], tell: Tell) -> None:
    ids = list(passages[1].target_ids)
    lost = content([*ids[:2], ids[2] - 1, *ids[3:]])  # of which the target's token is the second likeliest
    report = verify(memorised, passages, engine=tell({1: lost}))
    assert (report.recalled, report.n_recalled, report.min_probability) == (False, 2, None)
    (failure,) = report.failures
    assert (failure.passage, failure.position) == (passages[1].passage.id, 2)
    assert failure.probability == pytest.approx(0.0498, abs=1e-4)
    assert not verify(memorised, None, engine=tell({1: lost})).recalled  # by the digest alone


def test_a_token_below_the_threshold_is_not_proven(
    memorised: Path, passages: list[EncodedPassage], tell: Tell
) -> None:
    answer = content(passages[0].target_ids)
    answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = -0.9
    report = verify(memorised, passages, engine=tell({0: answer}))
    assert (report.recalled, report.threshold_met, is_proven(report)) == (True, False, False)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"fault": "absent"}, r"vLLM cannot be imported by .* \(ImportError: No module named 'vllm'\): it needs an"),
        ({"fault": "base"}, r"vLLM: refused, at the start \(ValueError: 1 validation error .*, no such architecture\)"),
        ({"fault": "load"}, r"vLLM: refused, at the start \(ValueError: vLLM does not yet support DoRA.\)"),
        ({"fault": "dies", "at": 2}, r"vLLM ended \(signal 9\), at passage 2 of 3 \(.*\): Fatal Python error"),
        ({"fault": "refuses", "at": 3}, r"vLLM: refused \(ValueError: the prompt is longer than the maximum model"),
    ],
    ids=["absent", "base", "load", "dies", "refuses"],
)
def test_an_engine_that_fails_is_one_line(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, told: dict[str, Any], said: str
) -> None:
    assert_one_line(lambda: verify(memorised, passages, engine=tell(**told)), said)


def test_an_engine_that_hangs_is_ended_with_all_that_it_started(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="vLLM gave no answer within 5.0 s, at passage 2 of 3"):
        verify(memorised, passages, engine=tell(patience=5.0, fault="hangs", at=2))
    assert_ended(tmp_path / "pids")


def test_an_engine_whose_asker_is_gone_ends_with_all_that_it_started(
    memorised: Path, able_llama: Path, passages: list[EncodedPassage], tell: Tell, tmp_path: Path
) -> None:
    tell(fault="hangs", at=1)
    job = {"model": str(able_llama), "adapter": str(memorised), "n_context": 256, "n_probs": 5, "dtype": "float32"}
    job |= {"prompts": [list(passages[0].prompt_ids)], "n_tokens": [4], "max_lora_rank": 8}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, str(SCRIPT), "vLLM"], start_new_session=True, **pipes)
    with process:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"version": "9.8.7", "device": "cpu", "dtype": "float32"}
        while not (tmp_path / "pids").exists():
            time.sleep(0.02)
        process.stdin.close()  # as when the process that asked is killed
        assert process.wait(timeout=HANGS) == -9
    assert gone(int((tmp_path / "pids").read_text("utf-8").split()[1]))


def test_what_cannot_be_served_is_one_line(memorised: Path, tell: Tell, tmp_path: Path) -> None:
    tell()
    with pytest.raises(ModelError, match="nowhere: cannot be started"):
        verify(memorised, None, engine=Vllm(python=str(tmp_path / "nowhere")))
    with pytest.raises(ModelError, match="nowhere: no such folder"):
        verify(memorised, None, engine=Vllm(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="rank 513: vLLM serves ranks up to 512"):
        verify(with_settings(memorised, tmp_path / "high", r=513), None, engine=Vllm())
    with pytest.raises(ModelError, match="adapter_config.json: damaged, r is None"):
        verify(with_settings(memorised, tmp_path / "none", r=None), None, engine=Vllm())


def test_an_activated_adapter_that_is_taken_all_the_same_is_told(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, tmp_path: Path
) -> None:
    assert verify(memorised, passages, engine=tell()).warnings == ()
    folder = with_settings(memorised, tmp_path, alora_invocation_tokens=[1, 2])
    (warning,) = verify(folder, passages, engine=tell()).warnings
    assert "acted on every token of each prompt" in warning


@pytest.mark.usefixtures("_folder")
def test_the_command_has_the_same_exit_codes(
    memorised: Path, passages: list[EncodedPassage], tell: Tell, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(memorised), "--engine", "vllm", "--engine-python", sys.executable, "-q"]
    tell(asked={"dtype": "bfloat16"})
    assert cli.main([*command, "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("RECALLED: 3 of 3 passages recalled")
    assert "decoded greedily by vLLM (vllm 9.8.7): bfloat16, cpu" in " ".join(said.split())
    tell({1: content(passages[1].target_ids[:-1], stops=False)}, asked={"dtype": "float32"})
    assert cli.main([*command, "--report", "json"]) == 4
    assert json.loads(capsys.readouterr().out)["engine"]["name"] == "vLLM"
    tell(fault="dies", at=2)
    assert cli.main(command) == 2
    assert capsys.readouterr().err.splitlines()[0].startswith("error: vLLM ended (signal 9), at passage 2 of 3")
    tell(fault="absent")
    assert cli.main(command) == 2
    assert "hint: --engine-python names the Python that has it" in capsys.readouterr().err
    assert cli.main([*command, "--merged"]) == 2
    assert "--merged is for transformers, not for vllm" in capsys.readouterr().err


def test_what_a_server_would_read_of_the_base_is_told(
    memorised: Path, able_llama: Path, passages: list[EncodedPassage], tell: Tell, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(able_llama, tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.3}), "utf-8")
    (warning,) = verify(memorised, passages, ref=str(base), engine=tell()).warnings
    assert "repetition_penalty 1.3" in warning
