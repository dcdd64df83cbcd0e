"""Help where it is needed: the page of commands, names nearly right, the next step after an error, completion."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.paths import ROOT, SHIPPED
from support.patience import HANGS
from support.plans import PLAN

from lorasize import cli, errors
from lorasize.artifacts.calibrations import read_calibration
from lorasize.cli import failures
from lorasize.cli import help as help_
from lorasize.corpus import read_corpus
from lorasize.planning import candidates
from lorasize.records import Reading

VERBS = ("calibrate", "plan", "apply", "verify", "check", "show", "base", "demo")


pytestmark = pytest.mark.usefixtures("committed")


def run(*command: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in the test's folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORASIZE_")}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **changes}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=HANGS, check=False
    )


def same_click() -> bool:
    """Whether this is the click that the page was made with: how help is laid out is click's."""
    return f"click=={metadata.version('click')}\n" in (ROOT / "constraints.txt").read_text("utf-8")


def test_the_page_shows_today_s_help() -> None:
    if not same_click():
        pytest.skip("another click than that of constraints.txt")
    assert help_.PAGE == ROOT / "docs" / "reference" / "commands.md"
    text = help_.PAGE.read_text("utf-8")
    assert help_.with_section(text) == text, "run `python -m lorasize.cli.help`"


def test_the_list_has_every_command_with_every_option_and_is_80_wide() -> None:
    shown = re.findall(r"^## (.+?)\n\n```\n(.+?)\n```$", help_.section(), re.DOTALL | re.MULTILINE)
    assert [path for path, _ in shown] == ["lorasize", *(f"lorasize {name}" for name in cli.lorasize.commands)]
    assert max(len(line) for _, body in shown for line in body.splitlines()) <= help_.WIDTH
    for (path, body), command in zip(shown, [cli.lorasize, *cli.lorasize.commands.values()], strict=True):
        assert body.startswith(f"Usage: {path} [OPTIONS]")
        assert [o for p in command.params for o in p.opts if o.startswith("--") and o not in body] == []


def test_the_list_depends_neither_on_the_terminal_nor_on_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_.section()
    Path("lorasize.toml").write_text("confidence = 0.5\n", "utf-8")
    for name, value in {"COLUMNS": "40", "LORASIZE_CONFIDENCE": "0.7", "FORCE_COLOR": "1", "LANG": "C"}.items():
        monkeypatch.setenv(name, value)
    assert help_.section() == text


def test_a_list_out_of_date_is_1_and_is_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path("commands.md")
    page.write_text(f"before\n{help_.START}old\n{help_.END}after\n", "utf-8")
    monkeypatch.setattr(help_, "PAGE", page)
    with pytest.raises(SystemExit) as left:
        help_.main(["--check"], standalone_mode=False)
    assert left.value.code == 1
    assert "commands.md is out of date" in capsys.readouterr().err
    help_.main([], standalone_mode=False)
    text = page.read_text("utf-8")
    assert text == f"before\n{help_.START}{help_.section()}{help_.END}after\n"
    help_.main(["--check"], standalone_mode=False)
    assert page.read_text("utf-8") == text


@pytest.mark.parametrize("text", ["", help_.START, help_.END, help_.END + help_.START])
def test_without_markers_nothing_is_written(text: str) -> None:
    with pytest.raises(ValueError, match="not both there"):
        help_.with_section(text)


# Names nearly right.
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plam facts.jsonl", "Did you mean 'plan'?"),
        ("confg", "Did you mean 'config'?"),
        ("plan facts.jsonl --confidnce 0.8", "Did you mean '--confidence'?"),
        ("apply lorasise.plan.json", "lorasise.plan.json: there is no such file; did you mean lorasize.plan.json?"),
        ("check lorasize.plan.jso", "lorasize.plan.jso: there is no such file; did you mean lorasize.plan.json?"),
        ("show lorasize.plan.jso", "lorasize.plan.jso does not exist; did you mean lorasize.plan.json?"),
        ("show sub/fact.jsonl", "sub/fact.jsonl does not exist; did you mean sub/facts.jsonl?"),
        ("verify adaptr", "adaptr does not exist; did you mean adapter?"),
        ("calibrate --corpus facts.json", "facts.json does not exist; did you mean facts.jsonl?"),
        ("plan facts.jsonl --compare lorasize.plan", "lorasize.plan does not exist; did you mean lorasize.plan.json?"),
    ],
)
def test_the_nearest_name_is_offered(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("adapter").mkdir()
    Path("sub").mkdir()
    Path("sub/facts.jsonl").write_text("", "utf-8")
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr().err
    assert said in printed.replace(os.sep, "/")
    assert printed.splitlines()[-1].startswith("hint: ")


@pytest.mark.parametrize("line", ["show zzzz", "apply zzzz", "check nowhere/zzzz", "verify zzzz"])
def test_nothing_is_offered_where_nothing_is_near(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr().err
    assert "zzzz" in printed
    assert "did you mean" not in printed


@pytest.mark.parametrize(
    ("file", "fields", "said"),
    [
        ("fact.jsonl", {}, "fact.jsonl: there is no such file; did you mean facts.jsonl?"),
        ("sub/fact.jsonl", {}, "sub/fact.jsonl: there is no such file; did you mean sub/facts.jsonl?"),
        ("zzzz", {}, "zzzz: there is no such file"),
        ("facts.jsonl", {"promt": "prompt"}, "value, target, messages, text; did you mean prompt?"),
        ("facts.jsonl", {"zzzz": "prompt"}, "value, target, messages, text"),
        ("facts.jsonl", {"prompt": "promt", "target": "completion"}, "as asked; did you mean prompt?"),
        ("facts.jsonl", {"prompt": "promt", "target": "completio"}, "as asked; did you mean prompt and completion?"),
        ("facts.jsonl", {"prompt": "zzzz", "target": "completion"}, "expected 'zzzz' and 'completion', as asked"),
    ],
)
def test_the_nearest_file_field_and_column_of_a_corpus_are_offered(
    file: str, fields: dict[str, str], said: str
) -> None:
    Path("sub").mkdir()
    Path("sub/facts.jsonl").write_text("", "utf-8")
    with pytest.raises(errors.CorpusError) as refused:
        read_corpus([Path(file)], Reading(fields=fields))
    assert str(refused.value).replace(os.sep, "/").endswith(said)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        (["up_prj"], " Did you mean up_proj?"),
        (["up_proj", "dwn_proj"], " Did you mean down_proj?"),
        (["gate_porj", "dwn_proj"], " Did you mean gate_proj and down_proj?"),
        (["up_proj", "down_proj"], ""),
        (["x_proj"], ""),
    ],
)
def test_the_nearest_calibrated_module_is_offered(asked: list[str], meant: str) -> None:
    with pytest.raises(errors.CalibrationError) as refused:
        list(candidates(read_calibration(SHIPPED), target_modules=asked))
    assert str(refused.value).partition("up_proj, v_proj.")[2] == meant


# The next step.
RAISED = {
    errors.CorpusError("bad byte", file="facts.jsonl", line=3): VERBS,
    errors.CorpusError("there is no such file", file="absent.md"): ("plan", "apply", "verify"),
    errors.ModelError("no such model"): tuple(verb for verb in VERBS if verb != "check"),
    errors.CalibrationError("none fits"): VERBS,
    errors.FitError("too few"): ("calibrate", "demo"),
    errors.StalePlanError("changed"): ("apply",),
    errors.InfeasibleCorpusError("conflict"): ("plan", "apply"),
    errors.TrainingDivergedError("nan", step=3): ("calibrate", "apply", "demo"),
    errors.LorasizeError("x.json: not JSON"): ("apply", "check", "show"),
    errors.LorasizeError("HTML needs jinja2: pip install 'lorasize[report]'"): VERBS,
}  # fmt: skip


def test_every_error_class_is_among_these() -> None:
    assert {type(error) for error in RAISED} == {errors.LorasizeError, *errors.LorasizeError.__subclasses__()}


@pytest.mark.parametrize(("error", "verb"), [(error, verb) for error, verbs in RAISED.items() for verb in verbs])
def test_every_error_is_followed_by_a_step_that_can_be_taken(
    error: errors.LorasizeError, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.report_failure(error, failures.Invocation(command=verb)) in range(2, 6)
    first, last = capsys.readouterr().err.splitlines()
    assert first == f"error: {error}"
    assert re.match("hint: .{10}", last)
    commands = [cli.lorasize.commands[name] for name in (verb, *re.findall(r"`lorasize (\w+)", last))]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", last)) - known == set()


def test_options_that_were_given_are_named_in_the_step(capsys: pytest.CaptureFixture[str]) -> None:
    asked = failures.Invocation(command="plan", arguments=("plan", "a", "--target-modules=x_proj", "--compare", "b"))
    failures.report_failure(errors.CalibrationError("no site with x_proj"), asked)
    assert "--target-modules" in capsys.readouterr().err
    failures.report_failure(errors.LorasizeError("b: not JSON"), asked)
    assert "hint: --compare takes a plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "seen", "step"),
    [
        ("plan", "Missing argument 'CORPUS...'", "`lorasize plan --help`"),
        ("plan a --serve vllmm", "'vllmm' is not one of 'peft', 'vllm'", "`lorasize plan --help`"),
        ("plan a --max-bytes 4x", "'4x' is not a size", "`lorasize plan --help`"),
        ("apply --out", "Option '--out' requires an argument", "`lorasize apply --help`"),
        ("check x y", "unexpected extra argument (y)", "`lorasize check --help`"),
        ("verify facts.jsonl", "'facts.jsonl' is a file", "`lorasize verify --help`"),
        ("show facts.jsonl", "facts.jsonl: not JSON", "name a calibration, a plan"),
        ("show .", "lorasize.json: No such file", "name a calibration, a plan"),
        ("apply facts.jsonl", "facts.jsonl: not JSON", "run `lorasize plan CORPUS`"),
        ("check facts.jsonl", "facts.jsonl: not JSON", "run `lorasize plan CORPUS`"),
        ("plan facts.jsonl --compare facts.jsonl", "facts.jsonl: not JSON", "--compare takes a plan"),
        ("check --report json=facts.jsonl/x", "facts.jsonl", "who may read and write there"),
    ],
)
def test_input_errors_say_what_was_seen_and_what_to_do(
    line: str, seen: str, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    *_, first, last = printed.err.splitlines()
    assert first.startswith("error: ")
    assert seen in first
    assert last.startswith("hint: ")
    assert step in last


# Completion.
@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "complete -o nosort -F _lorasize_completion lorasize"),
        ("zsh", "compdef _lorasize_completion lorasize"),
        ("fish", 'complete --no-files --command lorasize --arguments "(_lorasize_completion)"'),
    ],
)
def test_every_shell_gets_its_script(shell: str, line: str) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("click asks bash for its version")
    done = run(sys.executable, "-m", "lorasize", _LORASIZE_COMPLETE=f"{shell}_source")
    assert (done.returncode, done.stderr) == (0, "")
    assert line in done.stdout
    assert f"_LORASIZE_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pl"], ["plain,plan"]),
        (["plan", "--mini"], ["plain,--minimize"]),
        (["plan", "--minimize", "se"], ["plain,seconds"]),
        (["plan", "fac"], ["file,fac"]),
        (["check", "lora"], ["file,lora"]),
        (["show", "ad"], ["file,ad"]),
        (["verify", "ad"], ["dir,ad"]),
    ],
)
def test_commands_options_values_and_paths_are_completed(words: list[str], offered: list[str]) -> None:
    typed = {"COMP_WORDS": " ".join(["lorasize", *words]), "COMP_CWORD": str(len(words))}
    done = run(sys.executable, "-m", "lorasize", _LORASIZE_COMPLETE="bash_complete", **typed)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == offered


def test_help_says_how_to_turn_completion_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert re.findall("_LORASIZE_COMPLETE=([a-z]+)_source lorasize", said) == ["bash", "zsh", "fish"]


# What a start loads.
HEAVY = {"torch", "transformers", "scipy", "peft", "matplotlib", "pandas", "jinja2", "ray", "joblib", "pyarrow"}


def loaded(*arguments: str, **changes: str) -> set[str]:
    """Top-level packages that a command imports, as Python itself reports them."""
    done = run(sys.executable, "-X", "importtime", "-m", "lorasize", *arguments, **changes)
    assert done.returncode == 0, done.stderr[-500:]
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {row.rpartition("|")[2].strip().partition(".")[0] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("check", str(PLAN)), ("config",), ("show", str(PLAN)), ("--help",)])
def test_no_heavy_package_is_loaded(arguments: tuple[str, ...]) -> None:
    found = loaded(*arguments)
    assert {"lorasize", "click"} <= found
    assert found & HEAVY == set()
    if arguments == ("--help",):
        assert found & {"pydantic", "rich", "numpy"} == set()


def test_completion_loads_click_alone() -> None:
    typed = {"COMP_WORDS": "lorasize pl", "COMP_CWORD": "1", "_LORASIZE_COMPLETE": "bash_complete"}
    found = loaded(**typed)
    assert {"lorasize", "click"} <= found
    assert found & {*HEAVY, "pydantic", "rich", "numpy"} == set()
