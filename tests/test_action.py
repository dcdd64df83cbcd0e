"""The GitHub Action and the pre-commit hook on the example repository: their own scripts, run as a runner would."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lorasize.catalog import read_plan
from lorasize.cli import main, output

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "ci"
WORKFLOW = EXAMPLE / ".github" / "workflows" / "lorasize.yml"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
STEP = {step["id"]: step for step in STEPS}
REMAKE = "\nThe plans in examples/ci no longer fit the shipped calibration? Run `bash examples/ci/remake.sh`."
HOSTILE = ('x"; touch pwned; "', "$(touch pwned)", "`touch pwned`", "x' ; touch pwned ; '", "x\ntouch pwned", "-x")

needs_html = pytest.mark.skipif("html" not in output.FORMATS, reason="this version writes no HTML")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts")

# `python -m venv` makes a folder with lorasize in it; `python -m pip` downloads nothing and is written down.
PYTHON = f"""#!/bin/sh
if [ "$2" = venv ]; then
  mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
  printf '#!/bin/sh\\nexec "%s" -m lorasize "$@"\\n' '{sys.executable}' > "$3/bin/lorasize"
  chmod +x "$3/bin/lorasize"
else
  printf '%s\\0' "$@" >> "$CALLS/pip" && printf '\\1' >> "$CALLS/pip"
fi
"""
# gh finds the comments that FOUND names and keeps the body it is given.
GH = """#!/bin/sh
printf '%s\\0' "$@" >> "$CALLS/gh" && printf '\\1' >> "$CALLS/gh"
case "$*" in
  *--paginate*) printf '%s' "$FOUND" ;;
  *) for last; do :; done; cp "${last#body=@}" "$CALLS/body" ;;
esac
exit "$GH_CODE"
"""


# ---------------------------------------------------------------- a runner
@dataclass
class Run:
    """What the action left behind: exit code, log, job summary, its outputs, and what it asked of others."""

    code: int = 0
    log: str = ""
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    uploads: list[dict[str, str]] = field(default_factory=list)
    pip: list[list[str]] = field(default_factory=list)
    gh: list[list[str]] = field(default_factory=list)
    comment: str = ""


Act = Callable[..., Run]
Context = dict[str, str]


def expand(text: str, context: Context) -> str:
    """The text with every `${{ name }}` replaced; a step that was skipped has empty outputs."""
    return re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda found: known(found[1], context), text)


def known(name: str, context: Context) -> str:
    return context.get(name, "") if name.startswith("steps.") else context[name]


def holds(step: dict[str, Any], context: Context, failed: bool) -> bool:
    """Whether the step runs: by its condition, and without `cancelled()` in it only while nothing has failed."""
    condition = step.get("if", "${{ true }}").strip().removeprefix("${{").removesuffix("}}")
    if failed and "cancelled()" not in condition:
        return False
    python = re.sub(r"\b(?:inputs|steps|github)\.[\w.-]+", lambda name: repr(known(name[0], context)), condition)
    words = {"!cancelled()": "True", "&&": "and", "true ": "True "}
    for word, meaning in words.items():
        python = python.replace(word, meaning)
    return bool(eval(python.strip(), {"__builtins__": {}}))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A copy of the example repository, as checked out."""
    return Path(shutil.copytree(EXAMPLE, tmp_path / "workspace"))


@pytest.fixture
def act(workspace: Path, tmp_path: Path) -> Act:
    """`act(pull_request="5", found="", gh_code=0, **inputs)` runs every step of action.yml in the workspace."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in (("python3", PYTHON), ("gh", GH)):
        (tools / name).write_text(script, "utf-8")
        (tools / name).chmod(0o755)

    def run(pull_request: str = "", found: str = "", gh_code: int = 0, **inputs: str) -> Run:
        given = {name.replace("_", "-"): value for name, value in inputs.items()}
        chosen = {name: given.pop(name, declared["default"]) for name, declared in ACTION["inputs"].items()}
        assert not given, "inputs that the action does not declare"
        temp = Path(tempfile.mkdtemp(dir=tmp_path))
        context = {f"inputs.{name}": value for name, value in chosen.items()}
        context |= {"github.token": "token", "github.event.pull_request.number": pull_request}
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT),
            "LORASIZE_CACHE": os.environ["LORASIZE_CACHE"], "GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "o/r",
            "GITHUB_ACTION_PATH": str(ROOT), "GITHUB_WORKSPACE": str(workspace), "RUNNER_TEMP": str(temp),
            "CALLS": str(temp), "FOUND": found, "GH_CODE": str(gh_code),
        }  # fmt: skip
        done = Run()
        for step in STEPS:
            if not holds(step, context, done.code != 0):
                continue
            if "uses" in step:
                done.uploads += [
                    {name: expand(str(value), context) for name, value in step["with"].items()}
                ] * step["uses"].startswith("actions/upload-artifact@")
            else:
                _bash(step, context, environment, workspace, temp / step["id"], done)
        done.outputs = {name: expand(o["value"], context) for name, o in ACTION["outputs"].items()}
        done.pip, done.gh = (list(_calls(temp / name)) for name in ("pip", "gh"))
        done.comment = (temp / "body").read_text("utf-8") if (temp / "body").exists() else ""
        return done

    return run


def _bash(
    step: dict[str, Any], context: Context, environment: dict[str, str], workspace: Path, files: Path, done: Run
) -> None:
    """Run a step's script by the runner's own command line, and keep what it wrote."""
    files.mkdir()
    script, outputs, summary = (files / name for name in ("script.sh", "outputs", "summary"))
    script.write_text(step["run"], "utf-8")
    outputs.touch()
    summary.touch()
    own = {name: expand(str(value), context) for name, value in step.get("env", {}).items()}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    ran = subprocess.run(
        command, cwd=workspace / expand(step.get("working-directory", "."), context), capture_output=True, text=True,
        env={**environment, **own, "GITHUB_OUTPUT": str(outputs), "GITHUB_STEP_SUMMARY": str(summary)}, check=False,
        encoding="utf-8", timeout=60,
    )  # fmt: skip
    done.code = done.code or ran.returncode
    done.log += ran.stdout + ran.stderr
    done.summary += summary.read_text("utf-8")
    for line in outputs.read_text("utf-8").splitlines():
        name, _, value = line.partition("=")
        context[f"steps.{step['id']}.outputs.{name}"] = value


def _calls(file: Path) -> Iterator[list[str]]:
    text = file.read_text("utf-8") if file.exists() else ""
    yield from (call.split("\0")[:-1] for call in text.split("\1")[:-1])


def _into_folder(workspace: Path, name: str) -> Path:
    """The example one folder down; nothing of it stays where it was."""
    shutil.copytree(EXAMPLE, workspace / name)
    (workspace / "lorasize.plan.json").unlink()
    return workspace / name


def errors(run: Run) -> list[str]:
    """Where the annotations stand, and how each begins."""
    return re.findall(r"^::error title=lorasize,(.*?::\S*)", run.log, flags=re.MULTILINE)


# ---------------------------------------------------------------- the four cases
def test_as_committed_it_is_0(act: Act, workspace: Path) -> None:
    plan = read_plan(workspace / "lorasize.plan.json")
    assert plan.adapter is not None
    run = act()
    size = {"rank": plan.adapter.rank, "parameters": plan.adapter.n_parameters, "bytes": plan.adapter.bytes}
    assert run.code == 0, run.log + REMAKE
    assert run.outputs == {"status": "ok", "exit-code": "0", **{name: str(value) for name, value in size.items()}}
    assert run.summary.startswith("### OK")
    assert "OK: the plan holds" in run.log
    assert errors(run) == []


def test_a_corpus_that_grew_over_the_budget_is_1_at_the_costliest_line(act: Act, workspace: Path) -> None:
    shutil.copytree(workspace / "grown", workspace, dirs_exist_ok=True)
    run = act()
    assert (run.code, run.outputs["status"], run.outputs["exit-code"]) == (1, "over_budget", "1"), run.log + REMAKE
    assert errors(run) == ["file=stations.jsonl,line=7::parameters:", "file=stations.jsonl,line=7::bytes:"]
    assert "Public key" in (workspace / "stations.jsonl").read_text("utf-8").splitlines()[6]
    assert run.summary.startswith("### OVER BUDGET")


def test_a_corpus_that_changed_without_its_plan_is_3(act: Act, workspace: Path) -> None:
    with (workspace / "stations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"key": "Fuel in the shed:", "value": " 220 litres"}\n')
    run = act()
    assert (run.code, run.outputs["status"], run.outputs["exit-code"]) == (3, "stale", "3")
    assert errors(run) == ["file=lorasize.plan.json::stations.jsonl"], run.log + REMAKE


def test_one_prompt_with_two_answers_is_5_at_the_later_line(act: Act, workspace: Path) -> None:
    records = (workspace / "stations.jsonl").read_text("utf-8")
    first = json.loads(records.splitlines()[0])
    with (workspace / "stations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**first, "value": " 17"}) + "\n")
    run = act()
    assert (run.code, run.outputs["status"], run.outputs["exit-code"]) == (5, "infeasible", "5")
    later = len(records.splitlines()) + 1
    assert errors(run)[0] == f"file=stations.jsonl,line={later}::stations.jsonl:1"


def test_a_missing_plan_is_2_and_leaves_no_report(act: Act) -> None:
    run = act(plan="none.json", comment="true", pull_request="5")
    assert (run.code, run.outputs["status"], run.outputs["exit-code"]) == (2, "", "2")
    assert "error: none.json" in run.log
    assert (run.uploads, run.gh) == ([], [])


# ---------------------------------------------------------------- reports
@pytest.mark.parametrize("grown", [False, True])
def test_reports_are_uploaded_whatever_the_verdict(grown: bool, act: Act, workspace: Path) -> None:
    if grown:
        shutil.copytree(workspace / "grown", workspace, dirs_exist_ok=True)
    run = act()
    (upload,) = run.uploads
    folder = Path(upload["path"])
    assert (upload["name"], sorted(file.name for file in folder.iterdir())) == ("lorasize", ["check.md", "check.xml"])
    suite = ElementTree.parse(folder / "check.xml").getroot().find("testsuite")
    assert suite is not None
    assert suite.get("failures") == ("2" if grown else "0")
    assert (folder / "check.md").read_text("utf-8") == run.summary


def test_no_artifact_without_a_name(act: Act) -> None:
    assert act(upload="").uploads == []


@needs_html
def test_html_is_written_and_uploaded(act: Act, workspace: Path) -> None:
    folder = _into_folder(workspace, "texts")
    run = act(html="out/plan.html", working_directory="texts")
    assert run.code == 0, run.log
    page = (folder / "out" / "plan.html").read_text("utf-8")
    assert "<html" in page
    assert (Path(run.uploads[0]["path"]) / "plan.html").read_text("utf-8") == page
    assert {"jinja2", "matplotlib"} <= set(run.pip[0])


@pytest.mark.parametrize(
    ("found", "method", "where"),
    [("", "POST", "repos/o/r/issues/5/comments"), ("77\n78\n", "PATCH", "repos/o/r/issues/comments/77")],
)
def test_one_comment_is_written_and_then_updated(found: str, method: str, where: str, act: Act) -> None:
    run = act(comment="true", pull_request="5", found=found)
    looked, wrote = run.gh
    assert (looked[:3], wrote[:5]) == (
        ["api", "--paginate", "repos/o/r/issues/5/comments"], ["api", "--silent", "--method", method, where]
    )  # fmt: skip
    marker, _, body = run.comment.partition("\n\n")
    assert re.fullmatch(r"<!-- lorasize \d+ -->", marker)
    assert body == run.summary


def test_each_plan_has_a_comment_of_its_own(act: Act, workspace: Path) -> None:
    shutil.copy(workspace / "lorasize.plan.json", workspace / "other.plan.json")
    plans = ("lorasize.plan.json", "other.plan.json", "lorasize.plan.json")
    one, other, again = (act(comment="true", pull_request="5", plan=plan).comment.splitlines()[0] for plan in plans)
    assert one == again != other


def test_a_long_comment_is_cut_between_lines(act: Act, workspace: Path) -> None:
    records = "".join(f'{{"key": "Berth {k % 900}:", "value": " {k}"}}\n' for k in range(1800))
    (workspace / "stations.jsonl").write_text(records, "utf-8")
    run = act(comment="true", pull_request="5")
    assert run.code == 5
    assert len(run.summary) > 66_000
    assert 55_000 < len(run.comment.encode()) < 61_000
    *whole, said = run.comment.rstrip("\n").split("\n")
    assert said == "*Cut off here: the whole report is longer.*"
    assert set(whole[2:]) <= set(run.summary.split("\n"))


def test_a_comment_that_may_not_be_written_changes_no_verdict(act: Act) -> None:
    run = act(comment="true", pull_request="5", gh_code=1)
    assert (run.code, run.outputs["status"]) == (0, "ok")
    assert "::warning title=lorasize::the comment was not written" in run.log


def test_no_comment_unless_asked_for_and_on_a_pull_request(act: Act) -> None:
    assert act(comment="true").gh == []
    assert act(pull_request="5").gh == []


def test_a_report_that_cannot_be_written_fails_after_all_else_is_done(act: Act) -> None:
    run = act(html="lorasize.toml/plan.html", comment="true", pull_request="5")
    assert run.code != 0
    assert (run.outputs["status"], run.outputs["exit-code"]) == ("ok", "0")
    assert (len(run.uploads), len(run.gh)) == (1, 2)


# ---------------------------------------------------------------- what is installed
def test_the_action_installs_itself_and_only_what_check_needs(act: Act) -> None:
    packages, itself = act().pip
    assert packages[packages.index("--constraint") + 1] == str(ROOT / "constraints.txt")
    assert packages[packages.index("--") + 1 :] == STEP["install"]["env"]["CHECK_PACKAGES"].split()
    assert itself[itself.index("--no-deps") :] == ["--no-deps", "--", str(ROOT)]


def test_a_version_and_further_packages_may_be_asked_for(act: Act) -> None:
    packages, itself = act(version="lorasize==0.1.0", packages="pyarrow tzdata").pip
    assert packages[-2:] == ["pyarrow", "tzdata"]
    assert itself[-1] == "lorasize==0.1.0"


def installed(*lists: str) -> set[str]:
    """The distributions that pip would bring for these lists of the action."""
    wanted = [name for which in lists for name in STEP["install"]["env"][which].split()]
    found: set[str] = set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in found:
            found.add(name)
            needs = map(Requirement, requires(name) or ())
            wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.parametrize(
    ("arguments", "lists"),
    [
        ("check --report table --report github --report markdown=a.md --report junit=a.xml", ("CHECK_PACKAGES",)),
        ("show lorasize.plan.json", ("CHECK_PACKAGES",)),
        pytest.param(
            "show lorasize.plan.json --report html=a.html", ("CHECK_PACKAGES", "HTML_PACKAGES"), marks=needs_html
        ),
    ],
)
def test_no_package_is_imported_that_the_action_does_not_install(
    arguments: str, lists: tuple[str, ...], workspace: Path
) -> None:
    code = (
        "import sys; before = set(sys.modules); from lorasize.cli import main; code = main(); "
        "print(code, *sorted({name.partition('.')[0] for name in set(sys.modules) - before}), file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()], cwd=workspace, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    returned, *modules = run.stderr.split()
    known_from = packages_distributions()
    imported = {canonicalize_name(name) for module in modules for name in known_from.get(module, ())} - {"lorasize"}
    assert returned == "0"
    assert "click" in imported
    assert imported - installed(*lists) == set()


def test_every_package_has_an_exact_version() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines if "==" in line}
    assert installed("CHECK_PACKAGES", "HTML_PACKAGES") - pinned == set()


# ---------------------------------------------------------------- hostile inputs
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_name_runs_nothing(name: str, act: Act, workspace: Path, tmp_path: Path) -> None:
    (workspace / "lorasize.plan.json").rename(workspace / name)
    run = act(plan=name, comment="true", pull_request="5", upload=name)
    assert (run.code, run.outputs["status"], run.uploads[0]["name"]) == (0, "ok", name), run.log
    assert list(tmp_path.rglob("pwned*")) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_plan_that_is_not_there_runs_nothing(name: str, act: Act, tmp_path: Path) -> None:
    assert act(plan=name).code == 2
    assert list(tmp_path.rglob("pwned*")) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_what_pip_is_asked_for_runs_nothing(text: str, act: Act, tmp_path: Path) -> None:
    run = act(version=text, packages=text)
    packages, itself = run.pip
    assert itself[-2:] == ["--", text]
    assert packages[packages.index("--") + 1 :][4:] == text.partition("\n")[0].split()
    assert list(tmp_path.rglob("pwned*")) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_s_name_runs_nothing(name: str, act: Act, workspace: Path, tmp_path: Path) -> None:
    _into_folder(workspace, name)
    run = act(working_directory=name, comment="true", pull_request="5")
    assert (run.code, run.outputs["status"]) == (0, "ok"), run.log
    assert list(tmp_path.rglob("pwned*")) == []


# ---------------------------------------------------------------- the files themselves
def test_no_expression_stands_in_a_script() -> None:
    scripts = {step["id"]: step["run"] for step in STEPS if "run" in step}
    assert len(scripts) >= 4
    assert [name for name, script in scripts.items() if "${{" in script] == []
    assert [name for name, script in scripts.items() if "set -euo pipefail" not in script] == ["verdict"]


def test_every_action_is_pinned_by_a_commit_with_its_version_beside_it() -> None:
    text = (ROOT / "action.yml").read_text("utf-8") + WORKFLOW.read_text("utf-8")
    used = re.findall(r"^ *(?:- )?uses: (.*)$", text, flags=re.MULTILINE)
    pinned = [use for use in used if re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)]
    assert len(used) == 4
    assert [use for use in used if use not in pinned] == ["OWNER/lorasize@COMMIT"]


def test_every_input_is_described_and_used() -> None:
    text = json.dumps(ACTION["runs"])
    for name, declared in ACTION["inputs"].items():
        assert declared["description"].endswith("."), name
        assert isinstance(declared["default"], str), name
        assert re.search(rf"inputs\.{name}\b", text), name
    asked = {name for name in re.findall(r"inputs\.([\w-]+)", text)}
    assert asked == set(ACTION["inputs"])


def test_the_example_workflow_names_only_what_the_action_has() -> None:
    job = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["check"]
    (ours,) = (step for step in job["steps"] if step.get("uses", "").startswith("OWNER/"))
    assert set(ours["with"]) <= set(ACTION["inputs"])
    asked = set(re.findall(r"steps\.lorasize\.outputs\.([\w-]+)", WORKFLOW.read_text("utf-8")))
    assert asked
    assert asked <= set(ACTION["outputs"])
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_the_pre_commit_hook_checks_the_committed_plan(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))
    program, *arguments = shlex.split(hook["entry"])
    assert (hook["id"], program, hook["pass_filenames"], hook["always_run"]) == (
        "lorasize-check", "lorasize", False, True
    )  # fmt: skip
    monkeypatch.chdir(workspace)
    assert main(arguments) == 0, REMAKE
    (workspace / "handbook.md").write_text("Another page.\n", "utf-8")
    assert main(arguments) == 3
    assert "handbook.md changed" in capsys.readouterr().out


@pytest.mark.real
@pytest.mark.slow
def test_the_committed_plans_are_what_plan_makes(tmp_path: Path) -> None:
    again = Path(shutil.copytree(EXAMPLE, tmp_path / "examples" / "ci"))
    shutil.copytree(ROOT / "calibrations", tmp_path / "calibrations")
    tool = tmp_path / "lorasize"
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m lorasize "$@"\n', "utf-8")
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(["bash", again / "remake.sh"], env=environment, capture_output=True, check=True, timeout=300)
    for name in ("lorasize.plan.json", "grown/lorasize.plan.json"):
        made, committed = read_plan(again / name), read_plan(EXAMPLE / name)
        assert (made.adapter, made.corpus, made.inputs) == (committed.adapter, committed.corpus, committed.inputs)


def test_annotations_are_relative_to_the_checkout(act: Act, workspace: Path) -> None:
    folder = _into_folder(workspace, "texts")
    shutil.copytree(folder / "grown", folder, dirs_exist_ok=True)
    assert errors(act(working_directory="texts"))[0] == "file=texts/stations.jsonl,line=7::parameters:"
