"""`benchmarks/unchanged_answers.py`: its questions, and that it sees what an adapter changes and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.models import disturb
from support.paths import ROOT
from support.patience import HANGS

from lorasize import models
from lorasize.models import adapters
from lorasize.records import Site

pytestmark = pytest.mark.slow
SITE = Site(target_modules=("up_proj",), layers_to_transform=(1, 2))


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_it_tells_answers_that_changed(scale: float, able_llama: Path, tmp_path: Path, torch: Any) -> None:
    adapted = adapters.attach(models.load(str(able_llama), device="cpu").model, SITE, 2, 0)
    if scale:
        disturb(torch, adapted, scale)
    adapted.save_pretrained(tmp_path / "adapter")
    script, out = ROOT / "benchmarks" / "unchanged_answers.py", tmp_path / "answers.json"
    done = subprocess.run(
        [sys.executable, str(script), str(able_llama), str(tmp_path / "adapter"), "--json", str(out)],
        capture_output=True, text=True, check=False, timeout=HANGS, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text("utf-8"))
    rows = {kind: found[kind] for kind in ("sentences", "sums", "openings")}
    assert [row["n"] for row in rows.values()] == [100, 60, 100]
    for row in rows.values():
        assert len(row["changed"]) == round(row["n"] * (1 - row["unchanged"]))
        assert len({one["prompt"] for one in row["changed"]}) == len(row["changed"])
        assert row["unchanged"] <= row["tokens_alike"] <= 1
    assert (sum(len(row["changed"]) for row in rows.values()) > 0) is (scale > 0)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["items", *rows]
