"""The verb and the command capacity, on a tiny model by another one's calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasize import cli
from lorasize.artifacts.plans import read_plan
from lorasize.artifacts.read_any import read_artifact
from lorasize.records import Capacity

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_folder")]


def test_it_is_told_with_what_it_goes_by(able_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["capacity", "--model", str(able_llama), "--rank", "8", "--device", "cpu", "-q"]
    assert cli.main([*command, "--report", "json=held.json"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    found = Capacity.model_validate_json(Path("held.json").read_text("utf-8"))
    (one,) = found.holdings
    assert said.startswith(f"Rank 8 on {', '.join(one.target_modules)} holds {one.random_tokens:,} tokens drawn")
    assert "Not calibrated: these are figures of" in said
    assert one.max_drift == 0.02
    assert read_artifact(Path("held.json")) == found
    assert cli.main(["show", "held.json", "--report", "junit"]) == 2
    assert "--report junit: a capacity is shown as table or json" in capsys.readouterr().err
    assert cli.main(["show", "held.json"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == said


def test_without_a_bound_every_probed_site_is_told(able_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sample.txt").write_text("the cat sat on the mat and the dog sat on the log\n" * 8, "utf-8")
    command = ["capacity", "sample.txt", "--model", str(able_llama), "--rank", "2", "--device", "cpu", "-q"]
    assert cli.main([*command, "--max-drift", "off", "--report", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sample"] == "sample.txt"
    assert len(found["holdings"]) > 3
    assert all(one["max_drift"] is None for one in found["holdings"])
    best = max(found["holdings"], key=lambda one: one["nats"])
    assert best["sample_tokens"] == int(best["nats"] / found["sample_loss"])


def test_what_cannot_be_answered_is_refused(able_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["capacity", "--model", str(able_llama), "--rank", "2", "--device", "cpu", "-q"]
    Path("short.txt").write_text("a", "utf-8")
    cases = [
        (["--target-modules", "no_proj"], 3, "no site with modules no_proj"),
        (["--layers", "20-14"], 2, "'20-14' names no layers, such as 14-24,26 or all"),
        (["--layers", "1,x"], 2, "names no layers"),
        (["--layers", "0-99999999999"], 2, "names no layers"),
        (["--layers", "77"], 3, "in none of the layers asked for"),
        (["--layers", "0", "--max-drift", "0.01"], 3, "Under a bound on drift adapters sit on"),
        (["--target-modules", "q_proj", "--max-drift", "0.01"], 3, "Under a bound on drift adapters sit on"),
        (["short.txt"], 2, "holds a single token"),
        (["absent.txt"], 2, "absent.txt"),
    ]
    for more, code, said in cases:
        assert cli.main([*command, *more]) == code, more
        assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_plan_answers_for_modules_that_were_not_probed_together(
    able_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("page.txt").write_text("the red fox ran over seven hills and never came back\n", "utf-8")
    command = ["plan", "page.txt", "--model", str(able_llama), "--device", "cpu", "-q", "--rank", "4"]
    assert cli.main([*command, "--target-modules", "q_proj,v_proj", "--layers", "all"]) == 0
    capsys.readouterr()
    plan = read_plan(Path("lorasize.plan.json"))
    assert plan.adapter is not None
    assert (plan.adapter.rank, plan.adapter.target_modules) == (4, ("q_proj", "v_proj"))
    assert plan.adapter.layers_to_transform == (0, 1, 2, 3)
    assert plan.max_drift is None
    assert any("put together from probes of single modules" in warning for warning in plan.warnings)
    assert cli.main([*command, "--layers", "1-2"]) == 0  # the modules that are probed most
    assert read_plan(Path("lorasize.plan.json")).adapter.layers_to_transform == (1, 2)  # type: ignore[union-attr]
