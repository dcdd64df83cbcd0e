"""What the action installs, and the files themselves: action, workflow, pre-commit hook and committed plans."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.action import ACTION, EXAMPLE, REMAKE, STEP, STEPS, WORKFLOW, Act
from support.paths import ROOT
from support.patience import HANGS

from lorasize.artifacts.plans import read_plan
from lorasize.cli import main
from lorasize.records import Plan

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts"),
]  # fmt: skip


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
        ("show lorasize.plan.json --report html=a.html", ("CHECK_PACKAGES", "HTML_PACKAGES")),
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
    subprocess.run(["bash", again / "remake.sh"], env=environment, capture_output=True, check=True, timeout=HANGS)
    for name in ("lorasize.plan.json", "grown/lorasize.plan.json"):
        made, committed = read_plan(again / name), read_plan(EXAMPLE / name)
        assert of_any_machine(made) == of_any_machine(committed)
        assert made.adapter is not None
        assert committed.adapter is not None
        # float32 sums in another order: a token's loss of some nats moves by 1e-5 of a nat
        assert made.adapter.bits_per_parameter == pytest.approx(committed.adapter.bits_per_parameter, rel=1e-4)


def of_any_machine(plan: Plan) -> tuple[Any, ...]:
    """What a plan says that is the same wherever it is made."""
    assert plan.adapter is not None
    adapter = plan.adapter.model_dump(exclude={"bits_per_parameter"})
    return adapter, plan.corpus, plan.status, plan.inputs.model_dump(exclude={"same_device"})
