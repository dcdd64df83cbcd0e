"""A merged model is proven from its own folder: what was written is what decodes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lorasize import cli
from lorasize.corpus.tokens import EncodedPassage
from lorasize.recall import decoding, verdict
from lorasize.recall.engines.merged import Merged
from lorasize.records import DecodeJob
from lorasize.report.facts.recall import decoding_line, is_proven
from lorasize.verbs.export import export
from lorasize.verbs.verify import verify


@pytest.fixture
def decoded_from(monkeypatch: pytest.MonkeyPatch) -> list[DecodeJob]:
    """The jobs that a fresh process would have been given; they run in this one."""
    jobs: list[DecodeJob] = []

    def here(job: DecodeJob) -> Any:
        jobs.append(job)
        return decoding.decode(job)

    monkeypatch.setattr(verdict, "decode_afresh", here)
    return jobs


def test_it_decodes_from_the_merged_folder_alone(
    memorised: Path, passages: list[EncodedPassage], tmp_path: Path, decoded_from: list[DecodeJob]
) -> None:
    folder = export(memorised, tmp_path / "m", kind="merged")
    report = verify(memorised, passages, engine=Merged(folder, device="cpu"))
    assert is_proven(report)
    assert [(job.base, job.adapter, job.dtype) for job in decoded_from] == [(str(folder), None, "float32")]
    assert (report.merged, report.engine and report.engine.model) == (True, "m")
    assert decoding_line(report).endswith(", batch 1, merged")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    save_file({**weights, name: weights[name] * 0}, folder / "model.safetensors", metadata={"format": "pt"})
    assert not verify(memorised, passages, engine=Merged(folder, device="cpu")).recalled


@pytest.mark.usefixtures("_folder", "decoded_from")
def test_the_command_proves_it(
    memorised: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", str(memorised), "--format", "merged", "--out", str(tmp_path / "m"), "--prove"]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'm'}\n"
    assert said.err.startswith("RECALLED: 3 of 3 passages recalled")
    shutil.rmtree(tmp_path / "m")
    monkeypatch.setattr("lorasize.models.merging.merged", lambda adapted: adapted.unload())  # the adapter is left out
    assert cli.main(command) == 4
    assert capsys.readouterr().err.startswith("LOST: 0 of 3 passages recalled")


@pytest.mark.slow
def test_a_fresh_process_decodes_from_it(memorised: Path, passages: list[EncodedPassage], tmp_path: Path) -> None:
    folder = export(memorised, tmp_path / "m", kind="merged", dtype="float32")
    report = verify(memorised, passages, engine=Merged(folder, "float32", "cpu"))
    assert is_proven(report)
    assert report.fresh_process
