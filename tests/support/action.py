"""A runner of action.yml: its own scripts on a copy of the example repository, with stand-ins for pip and gh."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from support.paths import ROOT
from support.patience import HANGS

EXAMPLE = ROOT / "examples" / "ci"
WORKFLOW = EXAMPLE / ".github" / "workflows" / "lorasize.yml"
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
STEP = {step["id"]: step for step in STEPS}
REMAKE = "\nThe plans in examples/ci no longer fit the shipped calibration? Run `bash examples/ci/remake.sh`."

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
        encoding="utf-8", timeout=HANGS,
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
