"""A device that is not there: one line from each command that runs a model, and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.corpora import LINES
from support.models import plan_by_hand
from support.sites import MLP

from lorasize import cli
from lorasize.artifacts.plans import write_plan

pytestmark = pytest.mark.usefixtures("_folder", "_same_process")


def test_an_absent_device_is_one_line_from_every_command(
    torch: Any, able_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (torch.cuda, torch.backends.mps, torch.xpu):
        monkeypatch.setattr(place, "is_available", lambda: False)
    corpus = Path("corpus.jsonl")
    corpus.write_text("".join(json.dumps(line) + "\n" for line in LINES), "utf-8")
    write_plan(plan_by_hand(able_llama, corpus, MLP, 1), Path("lorasize.plan.json"))
    assert cli.main(["apply", "--device", "cpu", "--max-steps", "1", "-q"]) == 4
    model = ["--model", str(able_llama)]
    capsys.readouterr()
    lines = (["plan", str(corpus), *model], ["apply", "--out", "other"], ["verify", "adapter"], ["calibrate", *model])
    for device, kind in (("cuda", "cuda"), ("cuda:1", "cuda"), ("mps", "mps"), ("xpu", "xpu")):
        wanted = f"cannot be used: torch {torch.__version__} finds no {kind} on this machine, only cpu"
        for line in lines:
            assert cli.main([*line, "--device", device, "-q"]) == 2
            said = capsys.readouterr()
            assert said.out == ""
            first, *rest = said.err.strip().splitlines()
            assert first.endswith(f"device '{device}' {wanted}")
            assert all(text.startswith("hint:") for text in rest), said.err
