"""The command line itself: help, exit codes and configuration. Slow verbs are replaced by records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from support import records as made
from support.paths import ROOT
from support.verbs import Recorded

from lorasize import cli, errors
from lorasize import records as r
from lorasize.artifacts.plans import write_plan
from lorasize.cli import config, failures, options
from lorasize.records.inputs import MAX_RANK

COMMANDS = ("calibrate", "plan", "apply", "verify", "check", "show", "base", "demo")


pytestmark = pytest.mark.usefixtures("_folder")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"Example:\n    lorasize {command}" in capsys.readouterr().out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in said] == []
    assert "Example:" in said
    assert cli.main([]) == 0
    assert capsys.readouterr().out == said


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lorasize, version {cli.__version__}\n"


def test_help_loads_click_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from lorasize.cli import main; code = main(['plan', '--help']); "
        "print(code, [m for m in ('torch', 'transformers', 'peft', 'scipy', 'numpy', 'pydantic', 'rich') "
        "if m in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stderr.strip() == "0 []"


@pytest.mark.parametrize("name", ["plan", "calibration", "memorization"])
def test_show_loads_no_torch(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(r.to_json(made.RECORDS[name]), encoding="utf-8")
    code = (
        "import sys; from lorasize.cli import main; code = main(['show', 'x.json']); "
        "print(code, [m for m in ('torch', 'transformers', 'peft', 'scipy') if m in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stderr.strip() == "0 []"


def test_choices_are_those_of_the_records() -> None:
    from lorasize.probing.presets import PresetName

    reading = r.Reading.model_fields["format"].annotation
    pairs = [(options.PRESETS, PresetName), (options.FORMATS, reading), (options.MINIMIZE, r.Minimize)]
    pairs += [(options.SERVE, r.Serve), (options.METHODS, r.Method)]
    assert [offered for offered, kind in pairs if offered != get_args(kind)] == []
    rank = next(p for p in cli.lorasize.commands["plan"].params if p.name == "rank")
    assert rank.type.max == MAX_RANK  # type: ignore[attr-defined]


def test_defaults_are_those_of_the_verbs() -> None:
    from lorasize.training.run import ApplyOptions
    from lorasize.verbs.plan import PlanOptions

    def defaults(command: str) -> dict[str, Any]:
        return {p.name: p.default for p in cli.lorasize.commands[command].params if p.name is not None}

    how, wanted = defaults("apply"), defaults("plan")
    names = ("method", "threshold", "max_steps", "escalate", "seed", "device")
    assert {name: how[name] for name in names} == {name: getattr(ApplyOptions(), name) for name in names}
    assert {n: wanted[n] for n in ("confidence", "minimize", "serve")} == {
        n: getattr(PlanOptions(), n) for n in ("confidence", "minimize", "serve")
    }
    assert wanted["passage_tokens"] == r.Reading().passage_tokens


# Exit codes.
@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (errors.CorpusError("bad byte", file="a.md", line=3), 2, "--prompt-template"),
        (errors.ModelError("no such model"), 2, "--model"),
        (errors.LorasizeError("odd"), 2, None),
        (errors.CalibrationError("none fits"), 3, "run `lorasize calibrate 'my model'`"),
        (errors.FitError("too few"), 3, "run `lorasize calibrate 'my model' --preset thorough`"),
        (errors.StalePlanError("changed"), 3, "run `lorasize plan 'a b.md'`"),
        (errors.InfeasibleCorpusError("conflict"), 5, "run `lorasize plan 'a b.md'`"),
        (errors.TrainingDivergedError("nan", step=3), 4, "--dtype float32"),
    ],
)
def test_every_error_has_its_code_and_hint(
    error: Exception, code: int, hint: str | None, planned: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    planned(error)
    assert cli.main(["plan", "a b.md", "--model", "my model", "-q"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0] == f"error: {error}"
    assert lines[1:] == [] if hint is None else hint in lines[1] and lines[1].startswith("hint: ")


def test_every_error_class_has_a_code() -> None:
    assert {kind for kind, _ in failures.EXIT_CODES} == {errors.LorasizeError, *errors.LorasizeError.__subclasses__()}


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan",), ("plan", "a", "--confidence", "1.5"), ("plan", "a", "--max-bytes", "4 apples"), ("nothing",),
        ("plan", "a", "--rank", "0"), ("plan", "a", "--field", "x"), ("apply", "--no-such"), ("show", "absent"),
        ("plan", "a", "--report", "html", "--report", "json"), ("plan", "a", "--report", "nonsense"),
        ("plan", "a", "--report", "json="),
        ("plan", "a", "--report", "json", "--report", "table"), ("plan", "a", "--report", "json", "--report", "github"),
        ("calibrate", "one", "--model", "two"), ("apply", "--threshold", "0.9", "--margin", "0.2"),
        ("check", "--budget-level", "rank=loud"), ("check", "--budget-level", "ranks=off"),
    ],
)  # fmt: skip
def test_usage_errors_are_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "--help` shows every option" in said.err.splitlines()[-1]


def test_unexpected_error_leaves_a_traceback(
    planned: Callable[..., Recorded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(ZeroDivisionError("never"))
    assert cli.main(["plan", "a", "-q"]) == 70
    (written,) = (tmp_path / ".lorasize").iterdir()
    assert "ZeroDivisionError: never" in written.read_text(encoding="utf-8")
    assert f".lorasize{os.sep}{written.name}" in capsys.readouterr().err


def test_unwritable_place_is_an_input_error(
    planned: Callable[..., Recorded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(made.plan())
    (tmp_path / "file").write_text("")
    assert cli.main(["plan", "a", "-q", "--out", "file/plan.json"]) == 2
    assert capsys.readouterr().err.startswith("error: file")


def test_interrupt_says_what_is_left(applied: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]) -> None:
    write_plan(made.plan(), Path("lorasize.plan.json"))
    applied(KeyboardInterrupt())
    assert cli.main(["apply"]) == 130
    said = "interrupted: the same command goes on where it stopped; the adapter folder is as it was"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_interrupted_calibration_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lorasize.verbs.calibrate.calibrate", verb)
    assert cli.main(["calibrate", "-q"]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_is_143(applied: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(made.plan(), Path("lorasize.plan.json"))
    before = signal.getsignal(signal.SIGTERM)

    def verb(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("lorasize.verbs.apply.apply", verb)
    assert cli.main(["apply", "-q"]) == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_gone_reader_is_no_error(tmp_path: Path) -> None:
    write_plan(made.plan(), tmp_path / "p.json")
    code = "import sys; from lorasize.cli import main; sys.exit(main())"
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-c", code, "show", "p.json"], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, "")


def test_broken_pipe_of_a_child_is_not_taken_for_a_gone_reader(
    planned: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    planned(BrokenPipeError(32, "Broken pipe"))
    assert cli.main(["plan", "a", "-q"]) == 70
    assert "internal: BrokenPipeError" in capsys.readouterr().err


# Configuration.
def test_precedence(planned: Callable[..., Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = planned(made.plan())

    def confidence(*arguments: str) -> float:
        assert cli.main(["plan", "a", "-q", *arguments]) == 0
        return float(asked["options"].confidence)

    assert confidence() == 0.9
    (tmp_path / "pyproject.toml").write_text('[tool.lorasize]\nconfidence = 0.5\nserve = "vllm"\n', encoding="utf-8")
    assert confidence() == 0.5
    (tmp_path / "lorasize.toml").write_text("confidence = 0.6\n[budget]\nbytes = '4 MB'\nrank = 9\n", encoding="utf-8")
    assert confidence() == 0.6
    assert asked["options"].serve == "vllm"
    assert (asked["options"].limits.max_bytes, asked["options"].limits.max_rank) == (4_000_000, 9)
    monkeypatch.setenv("LORASIZE_CONFIDENCE", "0.7")
    assert confidence() == 0.7
    assert confidence("--confidence", "0.8") == 0.8


def test_model_comes_from_argument_then_environment_then_file(
    calibrated: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lorasize.toml").write_text('model = "file"\nseed = 4\npreset = "quick"\n', encoding="utf-8")
    assert cli.main(["calibrate", "-q"]) == 0
    assert (calibrated["ref"], calibrated["seed"], calibrated["preset"]) == ("file", 4, "quick")
    monkeypatch.setenv("LORASIZE_MODEL", "environment")
    assert cli.main(["calibrate", "-q"]) == 0
    assert calibrated["ref"] == "environment"
    assert cli.main(["calibrate", "argument", "-q"]) == 0
    assert calibrated["ref"] == "argument"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("confidenze = 1", "unknown key 'confidenze'; did you mean confidence?"),
        ("zzzz = 1", "unknown key 'zzzz'; known are model"),
        ("[budget]\nbyte = 1", "lorasize.toml budget: unknown key 'byte'; did you mean bytes?"),
        ("budget = 3", "budget must be a table"),
        ("seed = true", "seed is True, not a whole number"),
        ("confidence = 'high'", "confidence is 'high', not a whole number or a number"),
        ("= 3", "lorasize.toml: cannot be read as TOML"),
        ("confidence = 3.0", "3.0 is not in the range"),
        ("[budget]\nbytes = '4 apples'", "'4 apples' is not a size"),
    ],
)
def test_bad_configuration_is_2(content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lorasize.toml").write_text(content, encoding="utf-8")
    assert cli.main(["plan", "a"]) == 2
    assert said in capsys.readouterr().err


def test_pyproject_is_checked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.lorasize]\nrank = 3\n", encoding="utf-8")
    assert cli.main(["show", "."]) == 2
    assert "pyproject.toml [tool.lorasize]: unknown key 'rank'" in capsys.readouterr().err


def test_every_configuration_key_is_an_option() -> None:
    offered = {p.name for command in cli.lorasize.commands.values() for p in command.params}
    assert {*config.KEYS, *(f"max_{key}" for key in config.BUDGET_KEYS)} - offered == set()
