"""Calibrations and plans on disk: found, refused with a reason, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lorasize.artifacts import calibrations as catalog
from lorasize.artifacts import files
from lorasize.artifacts.calibrations import (
    calibration_path,
    find_calibration,
    read_calibration,
    search_path,
    write_calibration,
)
from lorasize.artifacts.plans import read_plan, write_plan
from lorasize.errors import CalibrationError, LorasizeError
from lorasize.records import (
    RECIPE,
    Calibration,
    CalibrationModel,
    CorpusSummary,
    CostModel,
    Feasibility,
    Law,
    ModelFingerprint,
    Plan,
    PlanInputs,
    PlanModel,
    Transition,
)

FINGERPRINT = ModelFingerprint(weights="w", config="c", tokenizer="t")
OTHER = ModelFingerprint(weights="w2", config="c", tokenizer="t2")


def calibration(
    ref: str = "org/model",
    fingerprint: ModelFingerprint = FINGERPRINT,
    device: str = "cpu",
    dtype: str = "float32",
    recipe: str = RECIPE,
) -> Calibration:
    """A small valid calibration."""
    return Calibration(
        model=CalibrationModel(ref=ref, fingerprint=fingerprint, architecture="Llama", n_layers=2, max_positions=64),
        recipe=recipe,
        device=device,
        dtype=dtype,
        law=Law(
            coefficient=1.0 / 3.0,
            parameter_exponent=0.7,
            length_exponent=0.6,
            offset=0.0,
            covariance=tuple((0.0,) * 4 for _ in range(4)),
            r_squared=0.99,
            form="",
            reference_loss=14.0,
            residual_stderr=0.1,
            n_observations=9,
            parameters_range=(1.0, 2.0),
            tokens_range=(1.0, 2.0),
        ),
        sites=(),
        transition=Transition(
            location=0.0,
            location_stderr=0.1,
            scale=0.1,
            n_observations=9,
            n_successes=4,
            steps_coefficient=100.0,
            steps_exponent=1.0,
            steps_spread=0.2,
        ),
        cost=CostModel(
            seconds_overhead=0.1,
            seconds_per_layer_token=0.1,
            seconds_per_head_token=0.1,
            relative_spread=0.1,
            seconds_per_forward_token=0.1,
            memory_base_bytes=1,
            memory_bytes_per_token=1.0,
        ),
        observations=(),
        provenance={},
    )


def plan() -> Plan:
    """A small valid plan."""
    return Plan(
        status="infeasible",
        model=PlanModel(ref="org/model", fingerprint="f", dtype="float32", n_layers=2),
        corpus=CorpusSummary(n_passages=1, n_tokens=1, sha256="a", files=()),
        demand=None,
        feasibility=Feasibility(feasible=False),
        adapter=None,
        prediction=None,
        inputs=PlanInputs(
            corpus_sha256="a", model_fingerprint="f", tokenizer_sha256="t", calibration_sha256="c", recipe=RECIPE
        ),
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder with its own cache, and nothing shipped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORASIZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "_shipped", lambda: tmp_path / "shipped")
    return tmp_path


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("org/model-1.5", "org--model-1.5.cpu.float32.json"),
        ("builtin:smollm2", "builtin-smollm2.cpu.float32.json"),
        ("a b\n:*?<>|", "a-b-.cpu.float32.json"),
    ],
)
def test_names_are_file_name_safe(ref: str, name: str) -> None:
    assert calibration_path(ref, "cpu", "float32", Path("d")) == Path("d") / name


@pytest.mark.parametrize("ref", ["../../etc/passwd", "/home/me/models/mine", "~/x", "C:\\m\\mine", "x" * 500, ".."])
def test_a_path_stays_in_its_folder_and_shows_no_more_than_its_last_part(ref: str) -> None:
    path = calibration_path(ref, "cuda:0", "bfloat16", Path("d"))
    assert path.parent == Path("d")
    assert len(path.name) < 160
    assert not path.name.startswith(".")
    assert "home" not in path.name


def test_local_namesakes_get_different_files() -> None:
    one, other = (calibration_path(r, "cpu", "float32", Path("d")) for r in ("/a/b/model", "/a/c/model"))
    assert one != other


def test_the_search_goes_project_user_shipped(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert search_path() == [Path("calibrations"), project / "cache" / "calibrations", project / "shipped"]
    monkeypatch.delenv("LORASIZE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "xdg"))
    assert search_path()[1] == project / "xdg" / "lorasize" / "calibrations"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(project / "home"))
    assert search_path()[1] == project / "home" / ".cache" / "lorasize" / "calibrations"


def test_shipped_calibrations_are_found_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert search_path()[-1].name == "calibrations"
    assert search_path()[-1].is_dir()


def test_a_calibration_comes_back_to_the_last_digit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "c.json"
    write_calibration(calibration(), path)
    assert read_calibration(path) == calibration()
    assert json.loads(path.read_text())["schema"] == "lorasize.calibration/1"
    assert [p.name for p in path.parent.iterdir()] == ["c.json"]


def test_a_plan_comes_back(tmp_path: Path) -> None:
    write_plan(plan(), tmp_path / "lorasize.plan.json")
    assert read_plan(tmp_path / "lorasize.plan.json") == plan()


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = tmp_path / "c.json"
    write_calibration(calibration(), path)

    def fail(*_arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(OSError, match="disk full"):
        write_calibration(calibration(ref="another"), path)
    assert read_calibration(path) == calibration()
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def damaged(change: str) -> bytes:
    """The bytes of a calibration file with one thing wrong."""
    good = json.loads(calibration().model_dump_json(by_alias=True))
    match change:
        case "nan":
            good["law"]["offset"] = float("nan")
        case "newer":
            good["schema"] = "lorasize.calibration/2"
        case "plan":
            good["schema"] = "lorasize.plan/1"
        case "list":
            good = [good]
        case "field":
            good["law"]["coefficient"] = "much"
        case "extra":
            good["surprise"] = 1
        case "huge number":
            return json.dumps(good).replace('"offset": 0.0', '"offset": 1e999').encode()
        case "cut":
            return json.dumps(good).encode()[:-20]
        case "bytes":
            return b"\xff\xfe{}"
        case "deep":
            return b"[" * 200_000
    return json.dumps(good).encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("nan", "NaN, which is no number"),
        ("huge number", "law.offset"),
        ("newer", "lorasize.calibration/2.*update lorasize"),
        ("plan", "not a lorasize.calibration: its schema is 'lorasize.plan/1'"),
        ("list", "its schema is None"),
        ("field", "law.coefficient"),
        ("extra", "surprise"),
        ("cut", r"not JSON \(line 1"),
        ("bytes", "decode"),
        ("deep", "not"),
    ],
)
def test_a_damaged_calibration_is_refused_in_one_line(tmp_path: Path, change: str, says: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(damaged(change))
    with pytest.raises(CalibrationError, match=says) as caught:
        read_calibration(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match="No such file"):
        read_calibration(tmp_path / "absent.json")
    with pytest.raises(CalibrationError, match="not a regular file"):
        read_calibration(tmp_path)
    write_calibration(calibration(), tmp_path / "c.json")
    monkeypatch.setattr(files, "MAX_BYTES", 100)
    with pytest.raises(CalibrationError, match="larger than"):
        read_calibration(tmp_path / "c.json")


def test_an_unreadable_plan_is_an_input_error_not_a_calibrations_fault(tmp_path: Path) -> None:
    path = tmp_path / "lorasize.plan.json"
    write_calibration(calibration(), path)
    with pytest.raises(LorasizeError, match=r"not a lorasize\.plan") as caught:
        read_plan(path)
    assert type(caught.value) is LorasizeError


def find(**changes: object) -> tuple[Calibration, Path]:
    """Look for the calibration of org/model on a CPU in float32."""
    wanted = {"fingerprint": FINGERPRINT, "ref": "org/model", "device_type": "cpu", "dtype": "float32"}
    return find_calibration(**({**wanted, "recipe": RECIPE} | changes))  # type: ignore[arg-type]


def test_the_projects_own_calibration_comes_first(project: Path) -> None:
    for folder in (project / "shipped", project / "cache" / "calibrations", project / "calibrations"):
        write_calibration(calibration(ref=folder.name), calibration_path("org/model", "cpu", "float32", folder))
        assert find()[1].resolve().parent == folder


def test_a_copy_under_another_name_is_found_by_its_fingerprint(project: Path) -> None:
    write_calibration(calibration(fingerprint=OTHER), project / "calibrations" / "a.json")
    write_calibration(calibration(ref="elsewhere"), project / "calibrations" / "renamed.json")
    assert find()[0].model.ref == "elsewhere"


def test_the_models_own_file_is_preferred_to_an_earlier_name(project: Path) -> None:
    write_calibration(calibration(ref="copy"), project / "calibrations" / "a.json")
    own = calibration_path("org/model", "cpu", "float32", Path("calibrations"))
    write_calibration(calibration(), own)
    assert find()[1] == own


def test_the_kind_of_device_must_match_but_not_the_device(project: Path) -> None:
    write_calibration(calibration(device="cuda (NVIDIA A100)"), project / "calibrations" / "gpu.json")
    assert find(device_type="cuda")[0].device == "cuda (NVIDIA A100)"
    with pytest.raises(CalibrationError, match="made on cuda"):
        find(device_type="cpu")


def test_a_refusal_says_what_was_found_and_why_each_did_not_match(project: Path) -> None:
    folder = project / "calibrations"
    write_calibration(calibration(fingerprint=OTHER), folder / "a.json")
    write_calibration(calibration(dtype="bfloat16"), folder / "b.json")
    write_calibration(calibration(recipe="memft/0"), folder / "c.json")
    (folder / "d.json").write_text("{")
    with pytest.raises(CalibrationError) as caught:
        find()
    message = str(caught.value)
    assert message.startswith("No calibration fits org/model in float32 on cpu. Run a calibration")
    assert "a.json: made for org/model, whose weights and tokenizer differ" in message
    assert "b.json: dtype bfloat16, not float32" in message
    assert f"c.json: recipe memft/0, not {RECIPE}" in message
    assert "d.json: not JSON" in message
    assert "--" not in message.replace("org--model", "")


def test_with_nothing_to_look_at_the_folders_are_named(project: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none found in calibrations, .*cache.*shipped"):
        find()


def test_an_explicit_file_is_the_only_one_looked_at(project: Path) -> None:
    write_calibration(calibration(), project / "calibrations" / "good.json")
    write_calibration(calibration(device="cuda:1"), project / "mine.json")
    assert find(explicit=project / "mine.json")[0].device == "cuda:1"
    write_calibration(calibration(fingerprint=OTHER), project / "theirs.json")
    with pytest.raises(CalibrationError, match=r"theirs\.json: made for"):
        find(explicit=project / "theirs.json")
