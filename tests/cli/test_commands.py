"""The commands plan and apply: what they read, write, print and return. Slow verbs are replaced by records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import records as made
from support.paths import ROOT
from support.patience import HANGS
from support.verbs import Recorded

from lorasize import cli, errors
from lorasize import records as r
from lorasize.artifacts.calibrations import read_calibration, write_calibration
from lorasize.artifacts.plans import read_plan, write_plan

pytestmark = pytest.mark.usefixtures("_folder")


def start(*arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    code = "import sys; from lorasize.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **changes}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=HANGS, check=False
    )


# Plan.
@pytest.mark.parametrize(
    ("plan", "code"), [(made.plan(), 0), (made.over_budget(), 1), (made.infeasible(), 5)], ids=["ok", "over", "no"]
)
def test_plan_writes_the_plan_and_returns_its_status(
    plan: r.Plan, code: int, planned: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    planned(plan)
    assert cli.main(["plan", "page.md"]) == code
    assert read_plan(Path("lorasize.plan.json")) == plan
    said = capsys.readouterr()
    assert said.out.split(":")[0].split(" ")[0] in ("OK", "OVER", "INFEASIBLE")
    assert "wrote lorasize.plan.json" in said.err


def test_plan_options_reach_the_verb(planned: Callable[..., Recorded]) -> None:
    asked = planned(made.plan())
    first = "plan a.csv b.md --model m --revision v --device cpu --dtype bfloat16 --confidence 0.8 --minimize seconds"
    then = "--rank 3 --target-modules up_proj,down_proj --target-modules q_proj --serve vllm --prompt-template {file}"
    last = "--passage-tokens 64 --field prompt=question --field target=answer --format csv --max-rank 8"
    line = [*first.split(), *then.split(), *last.split(), "--max-memory", "2GiB"]
    line += ["--max-parameters", "9000", "--out", "x/y.json", "-q"]
    assert cli.main([*line, "--max-bytes", "4 MB", "--max-seconds", "15 min"]) == 0
    wanted = asked["options"]
    assert asked["corpus"] == ("a.csv", "b.md")
    assert [asked[n] for n in ("ref", "revision", "device", "dtype")] == ["m", "v", "cpu", "bfloat16"]
    assert wanted.target_modules == ("up_proj", "down_proj", "q_proj")
    assert (wanted.confidence, wanted.minimize, wanted.rank, wanted.serve) == (0.8, "seconds", 3, "vllm")
    assert wanted.reading == r.Reading(
        format="csv", fields={"prompt": "question", "target": "answer"}, prompt_template="{file}", passage_tokens=64
    )
    limits = wanted.limits
    assert (limits.max_rank, limits.max_parameters, limits.max_bytes) == (8, 9000, 4_000_000)
    assert (limits.max_seconds, limits.max_memory) == (900.0, 2 * 2**30)
    assert Path("x/y.json").is_file()


def test_plan_uses_the_builtin_model_by_default(planned: Callable[..., Recorded]) -> None:
    from lorasize.models import BUILTIN

    asked = planned(made.plan())
    assert cli.main(["plan", "a", "-q"]) == 0
    assert asked["ref"] == BUILTIN
    assert asked["options"].target_modules is None


def test_conflict_names_both_lines(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"key": "Port:", "value": "80"}, {"key": "Host:", "value": " a"}, {"key": "Port:", "value": "443"}]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert cli.main(["plan", "facts.jsonl", "--model", str(tiny_llama), "--device", "cpu"]) == 5
    said = " ".join(capsys.readouterr().out.split())
    assert "facts.jsonl:3: facts.jsonl:1 and facts.jsonl:3 have the same prompt" in said
    assert read_plan(Path("lorasize.plan.json")).status == "infeasible"
    assert cli.main(["apply"]) == 5
    assert "facts.jsonl:1 and facts.jsonl:3" in capsys.readouterr().err


def test_no_calibration_in_reach_is_3(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lorasize.artifacts.calibrations.search_path", lambda: [tmp_path])
    (tmp_path / "page.md").write_text("One line.\n", encoding="utf-8")
    assert cli.main(["plan", "page.md", "--model", str(tiny_llama), "--device", "cpu", "-q"]) == 3
    assert f"hint: run `lorasize calibrate {tiny_llama}`" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["tiny_llama", "tiny_gpt2"])
def test_without_a_calibration_another_model_s_stands_in(
    architecture: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.md").write_text("One line.\n", encoding="utf-8")
    folder = request.getfixturevalue(architecture)
    assert cli.main(["plan", "page.md", "--model", str(folder), "--device", "cpu", "-q"]) == 0
    made_up = read_plan(Path("lorasize.plan.json"))
    assert made_up.prediction is not None
    assert made_up.prediction.extrapolated
    assert made_up.warnings[0].startswith("Not calibrated: these figures are those of builtin:smollm2")
    assert "Not calibrated" in capsys.readouterr().out
    own = Path("calibrations") / "mine.json"
    own.parent.mkdir()
    own.write_text("{", encoding="utf-8")
    assert cli.main(["plan", "page.md", "--model", str(folder), "--device", "cpu", "-q"]) == 0
    assert f"A calibration that does not fit: {own}: not JSON" in read_plan(Path("lorasize.plan.json")).warnings[-1]


def test_missing_corpus_is_2(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "absent.md", "--model", str(tiny_llama), "--device", "cpu", "-q"]) == 2
    assert capsys.readouterr().err.startswith("error: absent.md: there is no such file")


# Reports.
@pytest.mark.parametrize(("flags", "learns"), [([], True), (["--no-learn"], False)])
def test_apply_adds_its_run_to_the_calibration(
    flags: list[str], learns: bool, applied: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    from lorasize.artifacts.calibrations import search_path

    shipped = next(search_path()[-1].glob("*.json"))
    own = Path("calibrations") / shipped.name
    before = read_calibration(shipped).model_copy(update={"provenance": {"preset": "mine"}})
    write_calibration(before, own)
    seen = before.observations[0]
    observation = seen.model_copy(update={"probe": seen.probe.model_copy(update={"seed": 99})})
    plan = made.plan()
    inputs = plan.inputs.model_copy(update={"calibration_sha256": r.digest(before)})
    write_plan(plan.model_copy(update={"inputs": inputs}), Path("lorasize.plan.json"))
    applied(made.memorization(), observation)
    assert cli.main(["apply", *flags]) == 0
    assert (len(read_calibration(own).observations) == len(before.observations) + 1) is learns
    assert ("fitted again with this run" in capsys.readouterr().err) is learns


@pytest.mark.parametrize("value", ["json", "json=-"])
def test_json_is_one_document_on_stdout(
    value: str, planned: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    planned(made.infeasible())
    assert cli.main(["plan", "a", "--report", value, "--report", "table=t.txt", "--report", "github=g"]) == 5
    assert r.Plan.model_validate_json(capsys.readouterr().out) == made.infeasible()
    assert Path("t.txt").read_text(encoding="utf-8").startswith("INFEASIBLE")
    assert Path("g").read_text(encoding="utf-8").startswith("::error ")


def test_json_in_a_file_leaves_the_table_on_stdout(
    planned: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    planned(made.plan())
    assert cli.main(["plan", "a", "--report", "json=out/p.json"]) == 0
    assert json.loads(Path("out/p.json").read_text(encoding="utf-8"))["schema"] == "lorasize.plan/1"
    assert capsys.readouterr().out.startswith("OK:")


def test_json_is_utf8_whatever_the_terminal(tmp_path: Path) -> None:
    write_plan(made.plan(warnings=("ünï ½",)), tmp_path / "p.json")
    run = start("show", "p.json", "--report", "json", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert json.loads(run.stdout)["warnings"] == ["ünï ½"]
    assert start("show", "p.json", cwd=tmp_path, PYTHONIOENCODING="ascii").stdout.isascii()


def test_foreign_text_cannot_act(
    planned: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    name = "x\n::stop-commands::t\n##[add-path]y\x1b[2J[bold]"
    planned(errors.CorpusError("odd", file=name))
    assert cli.main(["plan", "a"]) == 2
    said = capsys.readouterr()
    planned(made.infeasible(made.issue(name)))
    assert cli.main(["plan", "a", "--out", "p.json"]) == 5
    more = capsys.readouterr()
    everything = said.out + said.err + more.out + more.err
    assert made.command_lines(everything) == []
    assert "\x1b" not in everything
    assert "[bold]" in said.err
    assert "[bold]" in more.out


# Apply.
@pytest.mark.parametrize(
    ("change", "code"),
    [({}, 0), ({"recalled": False}, 4), ({"threshold_met": False}, 4), ({"outcome": r.Outcome.TIME_LIMIT}, 4)],
)
def test_apply_is_0_only_when_all_is_proven(
    change: dict[str, Any], code: int, applied: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(made.plan(), Path("lorasize.plan.json"))
    applied(made.memorization(**change))
    assert cli.main(["apply", "--report", "json"]) == code
    said = capsys.readouterr()
    assert json.loads(said.out)["schema"] == "lorasize.memorization/1"
    assert "step 1: 12 of 768 tokens stubborn" in said.err


def test_apply_options_reach_the_verb(applied: Callable[..., Recorded]) -> None:
    write_plan(made.plan(), Path("p.json"))
    asked = applied(made.memorization())
    line = "apply p.json --out o --device cpu --seed 3 --threshold 0.6 --margin 0.1 --max-steps 7 --no-escalate"
    assert cli.main([*line.split(), "--method", "sft", "--time-limit", "2 min", "-q"]) == 0
    how = asked["how"]
    assert (asked["out"], how.device, how.seed, how.threshold, how.margin) == (Path("o"), "cpu", 3, 0.6, 0.1)
    assert (how.max_steps, how.escalate, how.method, how.time_limit) == (7, False, "sft", 120.0)


def test_apply_refuses_a_plan_over_budget(
    applied: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(made.over_budget(), Path("lorasize.plan.json"))
    asked = applied(made.memorization())
    assert cli.main(["apply"]) == 1
    assert asked == {}
    assert "over budget (bytes)" in capsys.readouterr().err


def test_quiet_leaves_results_alone(applied: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(made.plan(), Path("lorasize.plan.json"))
    applied(made.memorization())
    assert cli.main(["apply", "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("MEMORIZED")
    assert said.err == ""
