"""The commands calibrate, verify, show, base and demo. Slow verbs are replaced by records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import records as made
from support.paths import ROOT
from support.verbs import Recorded

from lorasize import cli
from lorasize import records as r
from lorasize.artifacts.calibrations import calibration_path, write_calibration
from lorasize.verbs.apply import Applied
from lorasize.verbs.plan import Sized

pytestmark = pytest.mark.usefixtures("_folder")


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

        monkeypatch.setattr("lorasize.verbs.verify.verify", verb)
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


# Demo.
@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, calibrated: Recorded) -> Recorded:
    """The demo with its verbs replaced; `lost` makes verify lose a passage."""
    state: Recorded = {"lost": False, "plan": made.plan(), "calibrated": calibrated}
    encoded = (SimpleNamespace(passage=SimpleNamespace(id="page.md:1", target="On [Tuesday]")),)

    def plan(corpus: Any, **arguments: Any) -> Any:
        state.update(arguments, corpus=corpus)
        return Sized(state["plan"], ())

    def apply(plan: r.Plan, out: Path, how: Any, notify: Any) -> Any:
        return Applied(made.memorization(), made.recall(), encoded, Path("adapter"))  # type: ignore[arg-type]

    monkeypatch.setattr("lorasize.models.BUILTIN", str(tiny_llama))
    monkeypatch.setattr("lorasize.verbs.plan.plan", plan)
    monkeypatch.setattr("lorasize.verbs.apply.apply", apply)
    monkeypatch.setattr("lorasize.verbs.verify.verify", lambda *_, **__: made.recall(recalled=not state["lost"]))
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


@pytest.mark.slow
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
