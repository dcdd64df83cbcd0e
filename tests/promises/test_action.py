"""The GitHub Action on the example repository: its own scripts, run as a runner would."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.action import EXAMPLE, REMAKE, STEP, Act, Run

from lorasize.artifacts.plans import read_plan

HOSTILE = ('x"; touch pwned; "', "$(touch pwned)", "`touch pwned`", "x' ; touch pwned ; '", "x\ntouch pwned", "-x")

pytestmark = [
    pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="the stand-ins are shell scripts"),
]  # fmt: skip


def _into_folder(workspace: Path, name: str) -> Path:
    """The example one folder down; nothing of it stays where it was."""
    shutil.copytree(EXAMPLE, workspace / name)
    (workspace / "lorasize.plan.json").unlink()
    return workspace / name


def errors(run: Run) -> list[str]:
    """Where the annotations stand, and how each begins."""
    return re.findall(r"^::error title=lorasize,(.*?::\S*)", run.log, flags=re.MULTILINE)


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


def test_annotations_are_relative_to_the_checkout(act: Act, workspace: Path) -> None:
    folder = _into_folder(workspace, "texts")
    shutil.copytree(folder / "grown", folder, dirs_exist_ok=True)
    assert errors(act(working_directory="texts"))[0] == "file=texts/stations.jsonl,line=7::parameters:"


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
    own = STEP["install"]["env"]["CHECK_PACKAGES"].split()
    assert packages[packages.index("--") + 1 :] == [*own, *text.partition("\n")[0].split()]
    assert list(tmp_path.rglob("pwned*")) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_s_name_runs_nothing(name: str, act: Act, workspace: Path, tmp_path: Path) -> None:
    _into_folder(workspace, name)
    run = act(working_directory=name, comment="true", pull_request="5")
    assert (run.code, run.outputs["status"]) == (0, "ok"), run.log
    assert list(tmp_path.rglob("pwned*")) == []
