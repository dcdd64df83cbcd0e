"""The command config: every key, its value and what sets it, as the commands themselves take them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from support import records as made

from lorasize import cli
from lorasize import records as r
from lorasize.cli import config
from lorasize.planning import Limits, budgets

PYPROJECT = """\
[tool.lorasize]
confidence = 0.8
serve = "vllm"
[tool.lorasize.budget]
rank = { limit = 8, level = "warn" }
seconds = { limit = "15 min", against = "point" }
"""
OWN = """\
serve = "merged"
[budget]
bytes = { limit = "4 MB", level = "off", against = "upper" }
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and no setting from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("LORASIZE_") and name != "LORASIZE_CACHE"]:
        monkeypatch.delenv(name)


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[Any, str]]:
    """Value and source by key."""
    assert cli.main(["config", "--report", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "lorasize.config/1"
    return {one["key"]: (one["value"], one["source"]) for one in found["values"]}


def test_every_key_is_shown_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys)
    budget = [f"budget.{name}" for name in config.BUDGET_KEYS]
    details = [f"{name}.{detail}" for name in budget for detail in config.BUDGET_DETAILS]
    assert sorted(found) == sorted([*config.KEYS, *budget, *details])
    assert {source for _, source in found.values()} == {"default"}
    root = click.Context(cli.lorasize, **cli.lorasize.context_settings)
    for name, command in cli.lorasize.commands.items():
        taken = command.make_context(name, [], parent=root, resilient_parsing=True).params
        shared = taken.keys() & config.KEYS.keys()
        assert {key: taken[key] for key in shared} == {key: found[key][0] for key in shared}


def test_default_levels_and_estimates_are_those_of_planning(capsys: pytest.CaptureFixture[str]) -> None:
    limits = Limits(max_rank=1, max_parameters=1, max_bytes=1, max_seconds=1, max_memory=1, max_drift=1)
    found = shown(capsys)
    drift = r.Estimate(point=0.1, lo=0.0, hi=0.2)
    held = budgets(limits, made.adapter(), made.prediction(drift=drift))
    assert {budget.id for budget in held} == {*config.BUDGET_KEYS}
    for budget in held:
        assert found[f"budget.{budget.id}.level"] == (budget.level, "default")
        assert found[f"budget.{budget.id}.against"] == (budget.against, "default")


def test_the_place_that_sets_a_value_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, own = "pyproject.toml [tool.lorasize]", "lorasize.toml"
    (tmp_path / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    (tmp_path / "lorasize.toml").write_text(OWN, "utf-8")
    monkeypatch.setenv("LORASIZE_DEVICE", "cpu")
    monkeypatch.setenv("LORASIZE_MAX_MEMORY", "2 GB")
    found = shown(capsys)
    assert {key: value for key, value in found.items() if value[1] != "default"} == {
        "device": ("cpu", "LORASIZE_DEVICE"),
        "confidence": (0.8, project),
        "serve": ("merged", own),
        "budget.rank": (8, project),
        "budget.rank.level": ("warn", project),
        "budget.seconds": (900.0, project),
        "budget.seconds.against": ("point", project),
        "budget.bytes": (4_000_000, own),
        "budget.bytes.level": ("off", own),
        "budget.bytes.against": ("upper", own),
        "budget.memory": (2_000_000_000, "LORASIZE_MAX_MEMORY"),
    }
    monkeypatch.setenv("LORASIZE_SERVE", "peft")
    monkeypatch.setenv("LORASIZE_LEVELS", "rank=off")
    found = shown(capsys)
    assert found["serve"] == ("peft", "LORASIZE_SERVE")
    assert found["budget.rank.level"] == ("off", "LORASIZE_LEVELS")
    assert found["budget.bytes.level"] == ("error", "default")  # the variable stands for the whole option


def test_both_files_may_say_something_of_budgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    (tmp_path / "lorasize.toml").write_text('[budget]\nrank = { level = "error" }\n', "utf-8")
    found = shown(capsys)
    assert found["budget.rank"] == (8, "pyproject.toml [tool.lorasize]")
    assert found["budget.rank.level"] == ("error", "lorasize.toml")
    assert found["budget.seconds.against"] == ("point", "pyproject.toml [tool.lorasize]")


def test_it_shows_what_a_command_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def verb(corpus: Any, **arguments: Any) -> Any:
        asked.update(arguments)
        return SimpleNamespace(plan=made.plan())

    monkeypatch.setattr("lorasize.verbs.plan.plan", verb)
    monkeypatch.setenv("LORASIZE_PASSAGE_TOKENS", "64")
    (tmp_path / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    (tmp_path / "lorasize.toml").write_text(OWN, "utf-8")
    values = {key: value for key, (value, _) in shown(capsys).items()}
    assert cli.main(["plan", "a", "-q"]) == 0
    wanted = asked["options"]
    assert {name: asked[name] for name in ("device", "dtype", "revision")} == {
        name: values[name] for name in ("device", "dtype", "revision")
    }
    assert (wanted.confidence, wanted.minimize, wanted.serve, wanted.reading.passage_tokens) == tuple(
        values[name] for name in ("confidence", "minimize", "serve", "passage_tokens")
    )
    limits = wanted.limits
    for name in config.BUDGET_KEYS:
        assert getattr(limits, f"max_{name}") == values[f"budget.{name}"]
        assert limits.levels.get(name, "error") == values[f"budget.{name}.level"]
    assert limits.against == {"seconds": "point", "bytes": "upper"}


def test_table_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lorasize.toml").write_text(OWN, "utf-8")
    assert cli.main(["config", "--report", "json=c.json"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["key", "value", "source"]
    assert ["model", "–", "default"] in lines
    assert ["serve", "merged", "lorasize.toml"] in lines
    assert ["budget.bytes", "4,000,000", "lorasize.toml"] in lines
    found = r.Config.model_validate_json(Path("c.json").read_text("utf-8"))
    assert found.files == (str((tmp_path / "lorasize.toml").resolve()),)
    assert len(lines) > len(found.values)
    with pytest.raises(ValueError, match="frozen"):
        found.files = ()


def test_a_file_that_sets_nothing_is_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n", "utf-8")
    assert cli.main(["config"]) == 0
    assert "read:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "variables", "said"),
    [
        ("serv = 'x'", {}, ["unknown key 'serv'; did you mean serve?"]),
        ("zzzz = 1", {}, ["unknown key 'zzzz'; known are model"]),
        ("threshold = 3.0", {}, ["3.0 is not in the range", "hint: the value is set in lorasize.toml"]),
        ("[budget]\nbytes = 'x'", {}, ["'x' is not a size", "hint: the value is set in lorasize.toml"]),
        ("", {"LORASIZE_CONFIDENCE": "3"}, ["is not in the range", "hint: the value is that of LORASIZE_CONFIDENCE"]),
    ],
)
def test_what_no_command_would_take_is_refused(
    content: str, variables: dict[str, str], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "lorasize.toml").write_text(content, "utf-8")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["config"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [text for text in said if text not in printed.err] == []


@pytest.mark.parametrize("format_", ["github", "junit=x.xml", "markdown"])
def test_formats_for_verdicts_are_refused(format_: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--report", format_]) == 2
    assert f"--report {format_.partition('=')[0]}: a configuration is shown as table or json" in capsys.readouterr().err


def test_a_saved_configuration_is_shown_as_a_table_or_json_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", "--report", f"json={tmp_path / 'c.json'}"]) == 0
    assert cli.main(["show", str(tmp_path / "c.json")]) == 0
    for name in ("github", "junit", "markdown", "html"):
        assert cli.main(["show", str(tmp_path / "c.json"), "--report", name]) == 2
        assert "a configuration is shown as table or json" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["plan a --confidence nan", "apply a --margin nan"])
def test_a_number_that_is_none_is_out_of_range(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == 2
    assert "nan is not in the range" in capsys.readouterr().err
