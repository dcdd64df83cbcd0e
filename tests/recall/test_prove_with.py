"""An adapter proven by the engine that serves it: training goes on where a token is lost there. It is a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.engines import content
from support.models import plan_by_hand
from support.patience import HANGS
from support.sites import MLP

from lorasize import cli
from lorasize.artifacts.events import Raised
from lorasize.artifacts.plans import write_plan
from lorasize.corpus.tokens import EncodedPassage
from lorasize.errors import ModelError
from lorasize.recall.engines.llama_cpp import LlamaCpp
from lorasize.recall.margin import next_for_engine
from lorasize.records import Memorization, PassageRecall, Plan, RecallReport, StepReport
from lorasize.training.run import ApplyOptions
from lorasize.verbs.apply import apply

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_same_process")]

ON_CPU = ApplyOptions(device="cpu")


@pytest.fixture
def plan(able_llama: Path, memorised: Path) -> Plan:
    """A plan whose adapter holds the passages."""
    return plan_by_hand(able_llama, memorised.parent / "corpus.jsonl", MLP, 8)


@pytest.fixture
def engine(tmp_path: Path) -> LlamaCpp:
    """llama.cpp with the base as a GGUF file."""
    (tmp_path / "base.gguf").write_bytes(b"GGUF\3\0\0\0" + b"general.file_type\4\0\0\0\7\0\0\0")
    return LlamaCpp(tmp_path / "base.gguf", patience=HANGS)


def unsure(passage: EncodedPassage) -> dict[str, Any]:
    """A passage that comes back with one token below ½."""
    answer = content(passage.target_ids)
    answer["choices"][0]["logprobs"]["content"][0]["logprob"] = -0.9
    return answer


def test_what_it_decoded_is_part_of_the_record(
    plan: Plan, engine: LlamaCpp, tell_engine: Callable[..., None], tmp_path: Path
) -> None:
    tell_engine()
    record = apply(plan, tmp_path / "out", ON_CPU, engine=engine).memorization
    assert record.proven
    assert record.margin == 0.02
    assert record.served is not None
    assert record.served.engine is not None
    assert (record.served.engine.name, record.served.dtype, record.served.n_recalled) == ("llama.cpp", "Q8_0", 3)
    assert record.recall.engine is not None
    assert record.recall.engine.name == "transformers"
    kept = (tmp_path / "out" / "lorasize.json").read_text("utf-8")
    assert Memorization.model_validate_json(kept) == record
    assert "served by llama.cpp (xllamacpp 1.2.3, base.gguf, Q8_0)" in (tmp_path / "out" / "README.md").read_text()


def test_training_goes_on_until_the_engine_loses_none(
    plan: Plan, engine: LlamaCpp, tell_engine: Callable[..., None], passages: list[EncodedPassage], tmp_path: Path
) -> None:
    tell_engine({1: unsure(passages[1])})
    raised: list[Raised] = []

    def listen(event: Any) -> None:
        if isinstance(event, Raised):
            raised.append(event)
            tell_engine()  # with the larger margin it is well

    record = apply(plan, tmp_path / "out", ON_CPU, listen, engine).memorization
    (one,) = raised
    assert one.engine == "llama.cpp"
    assert record.proven
    assert record.margin == pytest.approx(one.to - 0.5)
    assert record.min_probability > one.to


@pytest.mark.usefixtures("_folder")
def test_what_is_lost_where_it_is_served_is_not_proven(
    plan: Plan,
    engine: LlamaCpp,
    tell_engine: Callable[..., None],
    passages: list[EncodedPassage],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_engine({1: unsure(passages[1])})
    write_plan(plan, tmp_path / "plan.json")
    command = ["apply", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out"), "--device", "cpu", "-q"]
    command += ["--margin", "0.02", "--prove-with", "llama.cpp", "--engine-model", str(engine.model)]
    assert cli.main(command) == 4
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("NOT PROVEN where it is served: 3 of 3 passages come back · min p 0.4065 · decoded greedily")
    assert cli.main([*command, "--report", "junit"]) == 4
    assert 'name="recalled where it is served"' in capsys.readouterr().out
    assert cli.main([*command, "--report", "github"]) == 4
    assert "::error title=lorasize::served: 3 of 3 passages come back" in capsys.readouterr().out


def test_an_engine_that_is_not_there_is_refused_before_training(
    plan: Plan, engine: LlamaCpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    monkeypatch.setenv("PYTHONPATH", "")  # no stand-in
    cases = [
        (engine, r"the package xllamacpp, .* is not installed"),
        (LlamaCpp(engine.model, python=str(tmp_path / "nowhere")), "nowhere: cannot be started"),
        (LlamaCpp(tmp_path / "absent.gguf"), r"absent.gguf: no such file"),
        (LlamaCpp(), "which GGUF file of the base is served is not known"),
    ]
    for one, said in cases:
        with pytest.raises(ModelError, match=said):
            apply(plan, tmp_path / "out", ON_CPU, events.append, one)
    assert not any(isinstance(event, StepReport) for event in events)


@pytest.mark.usefixtures("_folder")
def test_its_options_need_it(
    plan: Plan, engine: LlamaCpp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(plan, tmp_path / "plan.json")
    command = ["apply", str(tmp_path / "plan.json")]
    assert cli.main([*command, "--engine-model", str(engine.model)]) == 2
    assert "--engine-model is for --prove-with" in capsys.readouterr().err
    assert cli.main([*command, "--prove-with", "llama.cpp"]) == 2
    assert "hint: --engine-model names the base as it is served (for llama.cpp a GGUF file);" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lowest", "lost", "trained", "to"),
    [
        (0.53, None, 0.52, None),  # above the threshold: enough
        (0.45, None, 0.52, 0.594),  # at least 0.3 of log-odds more
        (0.30, None, 0.60, 0.829),  # 1.25 times the log-odds that were lost, above ½
        (None, 0.01, 0.52, 0.95),  # a token that is lost, far below: as far as training is taken
        (None, None, 0.70, 0.759),  # lost, and no p told
        (0.45, None, 0.95, None),  # as far as it goes
    ],
)
def test_the_next_p_follows_what_the_engine_takes(
    lowest: float | None, lost: float | None, trained: float, to: float | None
) -> None:
    recalled = lowest is not None
    passage = PassageRecall(passage="a", recalled=recalled, n_tokens=3, min_probability=lowest, text="x")
    failure = {"passage": "a", "position": 1, "expected": "b", "got": "c", "probability": lost}
    report = RecallReport.model_validate(
        {
            "recalled": recalled, "n_passages": 1, "n_recalled": int(recalled), "min_probability": lowest,
            "threshold_met": (lowest or 0.0) > 0.5, "failures": [] if recalled else [failure], "passages": [passage],
            "dtype": "Q8_0", "device": "cpu", "attn_implementation": "llama.cpp", "batch_size": 1,
            "fresh_process": True, "engine": {"name": "llama.cpp", "version": "1"},
        }
    )  # fmt: skip
    raised = next_for_engine(report, 0.5, trained)
    assert (None if raised is None else raised.to) == (None if to is None else pytest.approx(to, abs=2e-3))
