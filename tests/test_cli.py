"""Commands: what they read, write, print and return. Slow verbs are replaced by records."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import test_report as made

from lorasize import cli, errors
from lorasize import records as r
from lorasize.catalog import calibration_path, read_calibration, read_plan, write_calibration, write_plan
from lorasize.cli import config, failures, options
from lorasize.memorization import Applied
from lorasize.sizing import Sized

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("calibrate", "plan", "apply", "verify", "check", "show", "base", "demo")

Recorded = dict[str, Any]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and no setting from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name in ("GITHUB_ACTIONS", "NO_COLOR", "FORCE_COLOR") or (
            name.startswith("LORASIZE_") and name != "LORASIZE_CACHE"
        ):
            monkeypatch.delenv(name)


def start(*arguments: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    code = "import sys; from lorasize.cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **changes}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorded]:
    """`planned(plan)` makes the verb plan return it; what the verb was asked is kept."""

    def replace(plan: r.Plan | Exception) -> Recorded:
        asked: Recorded = {}

        def verb(corpus: Any, **arguments: Any) -> Any:
            asked.update(arguments, corpus=corpus)
            if isinstance(plan, Exception):
                raise plan
            return Sized(plan, ())

        monkeypatch.setattr("lorasize.sizing.plan", verb)
        return asked

    return replace


@pytest.fixture
def applied(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorded]:
    """`applied(memorization, observation)` makes the verb apply return them, or raise."""

    def replace(result: r.Memorization | BaseException, observation: r.Observation | None = None) -> Recorded:
        asked: Recorded = {}

        def verb(plan: r.Plan, out: Path, how: Any, notify: Any) -> Any:
            asked.update(plan=plan, out=out, how=how)
            if isinstance(result, BaseException):
                raise result
            notify(made.step(1))
            return Applied(result, made.recall(), (), observation=observation)

        monkeypatch.setattr("lorasize.memorization.apply", verb)
        return asked

    return replace


# ---------------------------------------------------------------- help and start
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
    from lorasize.calibration import Preset

    reading = r.Reading.model_fields["format"].annotation
    pairs = [(options.PRESETS, Preset), (options.FORMATS, reading), (options.MINIMIZE, r.Minimize)]
    pairs += [(options.SERVE, r.Serve), (options.METHODS, r.Method)]
    assert [offered for offered, kind in pairs if offered != get_args(kind)] == []


def test_defaults_are_those_of_the_verbs() -> None:
    from lorasize.memorization import ApplyOptions
    from lorasize.sizing import PlanOptions

    def defaults(command: str) -> dict[str, Any]:
        return {p.name: p.default for p in cli.lorasize.commands[command].params if p.name is not None}

    how, wanted = defaults("apply"), defaults("plan")
    names = ("method", "threshold", "max_steps", "escalate", "seed", "device")
    assert {name: how[name] for name in names} == {name: getattr(ApplyOptions(), name) for name in names}
    assert {n: wanted[n] for n in ("confidence", "minimize", "serve")} == {
        n: getattr(PlanOptions(), n) for n in ("confidence", "minimize", "serve")
    }
    assert wanted["passage_tokens"] == r.Reading().passage_tokens


# ---------------------------------------------------------------- exit codes
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
    assert {kind for kind, _ in failures._CODES} == {errors.LorasizeError, *errors.LorasizeError.__subclasses__()}


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

    monkeypatch.setattr("lorasize.calibration.calibrate", verb)
    assert cli.main(["calibrate", "-q"]) == 130
    assert "the same command goes on where it stopped" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_is_143(applied: Callable[..., Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    write_plan(made.plan(), Path("lorasize.plan.json"))
    before = signal.getsignal(signal.SIGTERM)

    def verb(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("lorasize.memorization.apply", verb)
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


# ---------------------------------------------------------------- plan
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
    assert asked["corpus"] == (Path("a.csv"), Path("b.md"))
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
    monkeypatch.setattr("lorasize.catalog.search_path", lambda: [tmp_path])
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


# ---------------------------------------------------------------- reports
@pytest.mark.parametrize(("flags", "learns"), [([], True), (["--no-learn"], False)])
def test_apply_adds_its_run_to_the_calibration(
    flags: list[str], learns: bool, applied: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    from lorasize.catalog import search_path

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


# ---------------------------------------------------------------- apply
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


# ---------------------------------------------------------------- calibrate, verify, show, base
@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    asked: Recorded = {}

    def verb(ref: str, *, folder: Path, **arguments: Any) -> tuple[r.Calibration, Path]:
        asked.update(arguments, ref=ref, folder=folder)
        path = folder / "tiny.cpu.float32.json"
        write_calibration(made.calibration(), path)
        return made.calibration(), path

    monkeypatch.setattr("lorasize.calibration.calibrate", verb)
    return asked


def test_calibrate_passes_its_options_on(calibrated: Recorded, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("sample", encoding="utf-8")
    line = "calibrate m --preset quick --seed 2 --corpus s.txt --device cpu --out there -q"
    assert cli.main([*line.split(), "--time-limit", "1 h"]) == 0
    assert (calibrated["ref"], calibrated["preset"], calibrated["seed"]) == ("m", "quick", 2)
    assert (calibrated["corpus"], calibrated["time_limit"]) == ((Path("s.txt"),), 3600.0)
    assert (calibrated["folder"], calibrated["device"]) == (Path("there"), "cpu")


def test_calibrate_into_a_file(calibrated: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", "--out", "mine.json"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]
    assert "wrote mine.json" in capsys.readouterr().err


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path) -> Callable[..., Recorded]:
    """`verified(report)` makes an adapter folder and the verb verify return this report."""

    def replace(result: r.RecallReport) -> Recorded:
        import hashlib

        asked: Recorded = {}
        (tmp_path / "adapter").mkdir()
        (tmp_path / "page.md").write_bytes(b"One line.\n")
        files = (r.CorpusFile(path="page.md", sha256=hashlib.sha256(b"One line.\n").hexdigest()),)
        corpus = r.CorpusSummary(n_passages=1, n_tokens=5, sha256="a", files=files)
        model = r.PlanModel(ref=str(tiny_llama), fingerprint="f", dtype="float32", n_layers=4)
        record = made.memorization(plan=made.plan(corpus=corpus, model=model))
        (tmp_path / "adapter" / "lorasize.json").write_text(r.to_json(record), encoding="utf-8")

        def verb(folder: Path, encoded: Any, **arguments: Any) -> r.RecallReport:
            asked.update(arguments, folder=folder, encoded=encoded)
            return result

        monkeypatch.setattr("lorasize.recall.verify", verb)
        return asked

    return replace


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (made.recall(), 0), (made.recall(recalled=False), 4), (made.recall(threshold_met=False), 4),
        (made.recall(changed_files=("README.md",)), 4),
    ],
)  # fmt: skip
def test_verify_is_0_only_when_all_is_proven(
    report: r.RecallReport, code: int, verified: Callable[..., Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    verified(report)
    assert cli.main(["verify", "adapter"]) == code
    assert ("README.md" in capsys.readouterr().out) == bool(report.changed_files)


def test_verify_takes_the_planned_corpus_while_it_is_unchanged(
    verified: Callable[..., Recorded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = verified(made.recall())
    assert cli.main(["verify", "adapter"]) == 0
    assert [p.passage.target for p in asked["encoded"]] == ["One line."]
    assert asked["dtype"] == "float32"
    (tmp_path / "page.md").write_bytes(b"Another line.\n")
    assert cli.main(["verify", "adapter"]) == 0
    assert asked["encoded"] is None
    assert "compared by their digests" in capsys.readouterr().err
    assert cli.main(["verify", "adapter", "page.md"]) == 0
    assert [p.passage.target for p in asked["encoded"]] == ["Another line."]


def test_verify_ignores_a_configured_model(verified: Callable[..., Recorded], tmp_path: Path) -> None:
    asked = verified(made.recall())
    (tmp_path / "lorasize.toml").write_text('model = "another"\n', encoding="utf-8")
    assert cli.main(["verify", "adapter", "-q"]) == 0
    assert asked["ref"] is None


@pytest.mark.parametrize("name", made.RECORDS)
def test_show_reads_every_artifact(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = made.RECORDS[name]
    Path("x.json").write_text(r.to_json(record), encoding="utf-8")
    assert cli.main(["show", "x.json"]) == 0
    assert capsys.readouterr().out == made.shown(record)
    assert cli.main(["show", "x.json", "--report", "json"]) == 0
    assert capsys.readouterr().out == r.to_json(record)


def test_show_reads_an_adapter_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("adapter").mkdir()
    Path("adapter/lorasize.json").write_text(r.to_json(made.memorization()), encoding="utf-8")
    assert cli.main(["show", "adapter"]) == 0
    assert capsys.readouterr().out.startswith("MEMORIZED")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"schema": 3}', '{"schema": "lorasize.memorization/2"}', '{"schema": "lorasize.memorization/1"}',
     '{"schema": "other/1"}', "[" * 100_000, '{"schema": "lorasize.recall/1", "min_probability": NaN}'],
)  # fmt: skip
def test_show_refuses_what_is_no_artifact(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.json").write_text(content, encoding="utf-8")
    assert cli.main(["show", "x.json"]) == 2
    assert capsys.readouterr().err.startswith("error: x.json: ")


def test_base_prints_the_folder_alone(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["base", str(tiny_llama)]) == 0
    assert capsys.readouterr().out == f"{tiny_llama}\n"


# ---------------------------------------------------------------- configuration
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


# ---------------------------------------------------------------- demo
@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, calibrated: Recorded) -> Recorded:
    """The demo with its verbs replaced; `lost` makes verify lose a passage."""
    state: Recorded = {"lost": False, "plan": made.plan(), "calibrated": calibrated}
    encoded = (SimpleNamespace(passage=SimpleNamespace(id="page.md:1", target="On [Tuesday]")),)

    def plan(corpus: Any, **arguments: Any) -> Any:
        state.update(arguments, corpus=corpus)
        return Sized(state["plan"], ())

    def apply(plan: r.Plan, out: Path, how: Any, notify: Any) -> Any:
        return Applied(made.memorization(), made.recall(), encoded)  # type: ignore[arg-type]

    monkeypatch.setattr("lorasize.models.BUILTIN", str(tiny_llama))
    monkeypatch.setattr("lorasize.sizing.plan", plan)
    monkeypatch.setattr("lorasize.memorization.apply", apply)
    monkeypatch.setattr("lorasize.recall.verify", lambda *_, **__: made.recall(recalled=not state["lost"]))
    return state


def test_demo_runs_all_of_it(staged: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--device", "cpu"]) == 0
    folder = Path("lorasize-demo")
    assert staged["corpus"] == [folder / "page.md", folder / "table.jsonl"]
    assert (folder / "page.md").read_bytes() == (ROOT / "examples" / "update" / "page.md").read_bytes()
    assert (folder / "lorasize.plan.json").is_file()
    assert staged["calibrated"]["preset"] == "quick"
    said = capsys.readouterr()
    assert ["recalled", "page.md:1"] in [line.split()[:2] for line in said.out.splitlines()]
    assert "On [Tuesday]" in said.out
    assert "in all" in said.out.splitlines()[-1]
    assert [stage for stage in ("calibrate:", "plan:", "apply:", "verify:") if f"\n{stage}" not in said.err] == []


def test_demo_with_a_lost_passage_is_4(staged: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    staged["lost"] = True
    assert cli.main(["demo", "--device", "cpu", "-q"]) == 4
    assert "LOST" in capsys.readouterr().out


def test_demo_stops_at_an_infeasible_plan(staged: Recorded) -> None:
    staged["plan"] = made.infeasible()
    assert cli.main(["demo", "--device", "cpu", "-q"]) == 5


def test_demo_reuses_a_finished_quick_calibration(
    staged: Recorded, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorasize import models

    path = calibration_path(str(tiny_llama), "cpu", "float32", Path("lorasize-demo/calibrations"))
    fingerprint = models.fingerprint(tiny_llama)
    model = made.calibration().model.model_copy(update={"ref": str(tiny_llama), "fingerprint": fingerprint})
    here = models.device_name(models.pick_device("cpu"))

    def rerun(**changes: Any) -> bool:
        staged["calibrated"].clear()
        write_calibration(made.calibration(model=model, device=here, **changes), path)
        assert cli.main(["demo", "--device", "cpu"]) == 0
        return not staged["calibrated"]

    assert rerun()
    assert f"reusing {path}" in capsys.readouterr().err
    assert staged["options"].calibration == path
    assert not rerun(provenance={"preset": "thorough"})
    assert not rerun(dtype="float16")


def test_demo_keeps_files_already_there(staged: Recorded) -> None:
    Path("lorasize-demo").mkdir()
    Path("lorasize-demo/page.md").write_text("mine", encoding="utf-8")
    assert cli.main(["demo", "--device", "cpu", "-q"]) == 0
    assert Path("lorasize-demo/page.md").read_text(encoding="utf-8") == "mine"
